"""A reward for test_pretrained.py, in a file of its own: each grading worker imports it, and nothing heavy with it."""

from __future__ import annotations

import time


def reward(completion: str, row: dict) -> float:
    """The share of 'one', as run in a worker; a row may ask for a failure or a hang."""
    if row.get("fail"):
        raise ValueError("this row cannot be graded")
    if row.get("hang"):
        time.sleep(600)
    words = [word for word in ("one", "two", "plus") for _ in range(completion.count(word))]
    return float(words.count("one") > len(words) / 4)
