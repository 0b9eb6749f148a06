"""Judge a synthetic set by training networks on it, and the baselines that it is compared with."""
