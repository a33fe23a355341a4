"""Reading selection_vectors.txt, and comparing as precisely as it is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}  # ten digits are printed
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


def block(golden: Path, number: int) -> str:
    """The text under '== number'."""
    _, _, rest = (golden / "selection_vectors.txt").read_text().partition(f"\n== {number} ")
    assert rest, number
    return rest.partition("\n== ")[0]


def printed(text: str, *labels: str) -> Any:
    """The number, list or matrix after some labels, each found behind the one before."""
    for label in labels:
        _, found, text = text.partition(label)
        assert found, label
    text = text.lstrip(" =:>-") if text.lstrip().startswith("->") else text.lstrip(" =:")
    if not text.startswith("[") and not NUMBER.match(text):  # the rest of a label, up to its '='
        text = text.partition("\n")[0].partition("=")[2] + "\n" + text.partition("\n")[2]
        text = text.lstrip()
    if not text.startswith("["):
        found = NUMBER.match(text)
        assert found, text[:20]
        return float(found.group())
    depth = 0
    for end, character in enumerate(text):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth == 0:
            return json.loads(text[: end + 1])
    raise AssertionError(text[:20])


def assert_printed(actual: Any, expected: Any, precision: str) -> None:
    """Equal to what is printed, and computed in that precision where it is a float."""
    actual = np.asarray(actual)
    if actual.dtype.kind == "f":
        assert actual.dtype == precision
    tolerance = TOLERANCE[precision]
    np.testing.assert_allclose(actual, np.asarray(expected, float), rtol=tolerance, atol=tolerance)
