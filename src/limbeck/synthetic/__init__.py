"""The synthetic set, its file, the outer loop that improves it, and the hooks of that loop."""
