"""The compiled network: its C++ source, how it is built, and how it is loaded."""
