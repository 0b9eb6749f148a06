"""Studies: grids of runs, resumed over days, sessions and machines, and compared over the same seeds."""
