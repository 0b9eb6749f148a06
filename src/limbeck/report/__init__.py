"""Records of runs as pages, tables and plots; imports no torch."""
