"""The compiled network: its C++ source, how it is built, and the same derivatives composed of torch operations."""
