"""The largest array that a traced program ever makes, loops and custom gradients included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def largest_array(jaxpr: Any) -> int:
    """Most elements of any intermediate or result (inputs do not count)."""
    return max((math.prod(shape) for shape in shapes(jaxpr)), default=0)


def shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of every equation's outputs, in this jaxpr and in those nested in its parameters."""
    return (tuple(getattr(aval, "shape", ())) for aval in outputs(jaxpr))


def outputs(jaxpr: Any) -> Iterator[Any]:
    """Abstract values, with shape and dtype, of the same."""
    return (variable.aval for equation in equations(jaxpr) for variable in equation.outvars)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of this jaxpr and of those nested in its parameters."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)
