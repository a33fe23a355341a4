"""Runnable studies: ``python -m experiments.train`` and its companions."""
