"""Training: stages, optimiser, step, loop, checkpoints, and how a run is reported."""
