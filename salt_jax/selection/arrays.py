"""What every file of this room does to its arrays first: precision, padding rows, checks of shapes."""

from __future__ import annotations

import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp

from salt_jax.geometry.numerics import safe_ratio
from salt_jax.vocab import check_positive

Array = jax.Array


def wide(x: Array) -> Array:
    """The array in float32, or float64 where it is that.

    >>> str(wide(jnp.ones(2, jnp.bfloat16)).dtype)
    'float32'
    """
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def valid_rows(valid: Array | None, n: int) -> Array:
    """(n,) bool: all true where ``valid`` is None.

    Raises:
      ValueError: another shape than (n,).

    >>> valid_rows(None, 2).tolist()
    [True, True]
    """
    if valid is None:
        return jnp.ones(n, bool)
    if jnp.shape(valid) != (n,):
        raise ValueError(f"valid must be ({n},), got {jnp.shape(valid)}")
    return jnp.asarray(valid).astype(bool)


def checked_gram(gram: Array, valid: Array | None) -> tuple[Array, Array]:
    """(K + Kᵀ)/2 with padding rows and columns 0, and which rows are valid.

    Raises:
      ValueError: a matrix that is not square, or ``valid`` that does not fit it.

    >>> checked_gram(jnp.array([[1.0, jnp.nan], [jnp.nan, 1.0]]), jnp.array([True, False]))[0].tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    shape = jnp.shape(gram)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"gram must be square (n, n), got {shape}")
    present = valid_rows(valid, shape[0])
    gram = jnp.where(present[:, None] & present[None, :], wide(gram), 0.0)
    return (gram + gram.T) / 2, present


def checked_features(features: Array, valid: Array | None) -> tuple[Array, Array]:
    """(n, d) with padding rows 0, and which rows are valid.

    Raises:
      ValueError: not a matrix, or ``valid`` that does not fit it.

    >>> checked_features(jnp.ones((2, 3)), jnp.array([True, False]))[0].sum(axis=1).tolist()
    [3.0, 0.0]
    """
    if jnp.ndim(features) != 2:
        raise ValueError(f"features must be (n, d), got {jnp.shape(features)}")
    present = valid_rows(valid, jnp.shape(features)[0])
    return jnp.where(present[:, None], wide(features), 0.0), present


def checked_count(k: int, n: int) -> int:
    """k as an int; ValueError unless 1 <= k <= n.

    >>> checked_count(2, 3)
    2
    """
    if (k := check_positive("k", k)) > n:
        raise ValueError(f"k = {k} is not allowed; allowed: integers from 1 to the number of examples, {n}")
    return k


def check_number(name: str, value: object, fits: Callable[[float], bool], allowed: str) -> None:
    """ValueError for a number that does not fit; a traced one passes.

    >>> check_number("alpha", -1, lambda x: x > 0, "numbers > 0")
    Traceback (most recent call last):
    ValueError: alpha = -1 is not allowed; allowed: numbers > 0
    """
    if isinstance(value, numbers.Real) and not fits(float(value)):
        raise ValueError(f"{name} = {value} is not allowed; allowed: {allowed}")


def checked_layer(
    activations: Array, output_gradients: Array, token_weights: Array | None
) -> tuple[Array, Array]:
    """Inputs (N, T, d) and weighted output gradients (N, T, p) of a layer, both 0 where the token's weight is 0.

    Raises:
      ValueError: shapes that do not fit.

    >>> checked_layer(jnp.ones((1, 2, 1)), jnp.ones((1, 2, 1)), jnp.array([[3.0, 0.0]]))[1].ravel().tolist()
    [3.0, 0.0]
    """
    a, d = wide(activations), wide(output_gradients)
    if a.ndim != 3 or d.ndim != 3 or a.shape[:2] != d.shape[:2]:
        raise ValueError(f"activations {a.shape} and output_gradients {d.shape} must be (N, T, d) and (N, T, p)")
    dtype = jnp.promote_types(a.dtype, d.dtype)
    a, d = a.astype(dtype), d.astype(dtype)
    if token_weights is None:
        return a, d
    if jnp.shape(token_weights) != a.shape[:2]:
        raise ValueError(f"token_weights must be {a.shape[:2]}, got {jnp.shape(token_weights)}")
    weights = jnp.asarray(token_weights).astype(dtype)[:, :, None]
    return jnp.where(weights != 0, a, 0.0), jnp.where(weights != 0, d, 0.0) * weights


def unit_rows(x: Array) -> Array:
    """Rows (the last axis) divided by their length; a zero row stays zero, and no square over- or underflows.

    >>> unit_rows(jnp.array([[3e-30, 4e-30], [0.0, 0.0]])).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    x = wide(x)
    x = safe_ratio(x, jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0))
    return safe_ratio(x, jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)))


def best(scores: Array, free: Array) -> Array:
    """Index of the greatest score among the free; the lowest such index.

    >>> int(best(jnp.array([3.0, 2.0, 2.0]), jnp.array([False, True, True])))
    1
    """
    return jnp.argmax(jnp.where(free, scores, -jnp.inf)).astype(jnp.int32)
