"""Training: what a stage trains (config, groups), what it minimises (objective), how it runs (step, loop)."""
