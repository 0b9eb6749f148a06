"""limbeck's own path against the field's way of doing the same: plain scripts, see `python -m benchmarks --help`."""
