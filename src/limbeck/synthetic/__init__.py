"""The synthetic set, its file, the outer loop that improves it, and that loop's hooks."""
