"""The imperative part of training: settings, set-up, the loop, checkpoints, records."""
