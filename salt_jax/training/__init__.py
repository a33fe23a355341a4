"""Training: configuration, state, the step, the loop around it, checkpoints and records."""
