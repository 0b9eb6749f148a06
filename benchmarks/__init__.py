"""Scripts that time limbeck against the field's way of doing the same; see `python -m benchmarks --help`."""
