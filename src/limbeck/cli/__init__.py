"""The command line: every command parses its arguments and makes one call."""
