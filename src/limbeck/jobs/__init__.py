"""One job from its configuration to its record: prepare, estimate, run, and the presets."""
