"""A network as a function of its flat parameters theta, and its loss."""
