"""Held-out evaluation: completions of problems, avg@n, pass@k, maj@n, paired differences."""
