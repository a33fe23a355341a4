"""Tests; `tests.reference` holds the NumPy float64 references."""
