"""The 47 numeric cases of the objective family: reading them, and evaluating a function in both precisions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

# precision -> relative and absolute tolerance against the float64 numbers of the file
PRECISIONS = {"float64": 1e-12, "float32": 1e-5}


def cases(golden: Path) -> dict[str, Any]:
    """Every case by its name."""
    return json.loads((golden / "methods_vectors.json").read_text())


def case(golden: Path, name: str) -> tuple[Any, Any]:
    """(inputs, outputs) of one case."""
    found = cases(golden)[name]
    return found["inputs"], found["outputs"]


def evaluate(function: Callable[..., Any], *arrays: Any, precision: str) -> Any:
    """``function(*arrays)`` under jit; real numbers enter in the named precision, integers and booleans as they are."""

    def cast(x: Any) -> Any:
        x = np.asarray(x)
        return x.astype(precision) if x.dtype.kind == "f" else x

    with jax.enable_x64(precision == "float64"):
        return jax.tree.map(np.asarray, jax.jit(function)(*[cast(x) for x in arrays]))


def assert_close(actual: Any, expected: Any, precision: str) -> None:
    """Equal within the precision's tolerance, and computed in that precision where it is a float."""
    actual = np.asarray(actual)
    if actual.dtype.kind == "f":
        assert actual.dtype == precision
    tolerance = PRECISIONS[precision]
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=tolerance, atol=tolerance)
