"""A function under jit, called as it is eagerly: an eager call compiles a program for each of its operations.

Public functions are also called eagerly, as in a notebook: by most docstrings' examples, which are tests, by
test_equals_loops of objective/test_advantages.py, by objective/test_rec.py and by test_closed_forms of
geometry/test_spectrum.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@functools.cache
def _program(function: Callable[..., Any], positions: tuple[int, ...], names: tuple[str, ...]) -> Callable[..., Any]:
    return jax.jit(function, static_argnums=positions, static_argnames=names)


def _is_static(x: Any) -> bool:
    """Sizes, options, configurations and None; not what holds an array."""
    return not any(isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in jax.tree.leaves(x))


def one_program(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, one program for each shape of its arrays and each value of its other arguments.

    Lists become arrays, as they do in the functions themselves. What a function refuses it refuses while traced.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        args = tuple(np.asarray(x) if isinstance(x, list) else x for x in args)
        options = {name: np.asarray(x) if isinstance(x, list) else x for name, x in options.items()}
        positions = tuple(i for i, x in enumerate(args) if _is_static(x))
        names = tuple(sorted(name for name, x in options.items() if _is_static(x)))
        return _program(function, positions, names)(*args, **options)

    return call
