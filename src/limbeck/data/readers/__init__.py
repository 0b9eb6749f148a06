"""Readers of data sets: one layout a file, each from a tree of files (or Python objects) to `RawData`."""
