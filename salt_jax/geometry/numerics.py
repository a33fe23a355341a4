"""Float32 care that every function of a Gram matrix shares: 0/0 := 0, padding, sizes from 1e-30 to 1e+30.

A Gram is symmetrised and divided by a power of two near its largest entry before anything is squared: nothing
overflows, and scaling K by a power of two changes no bit of a scale-free result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.products import matmul

LOWEST_EXPONENT, HIGHEST_EXPONENT = -120, 128
"""Rescaling stays inside the normal float32 range."""


def safe_ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """numerator / denominator, and 0 where the denominator is 0; NaN stays NaN.

    >>> safe_ratio(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])).tolist()
    [0.5, 0.0]
    """
    zero = denominator == 0
    return jnp.where(zero, 0.0, numerator / jnp.where(zero, 1.0, denominator))


def quadratic_form(gram: jax.Array, vector: jax.Array) -> jax.Array:
    """max(0, xᵀKx): gram (m, m), vector (m,) -> scalar; rounding cannot make it negative.

    >>> float(quadratic_form(jnp.eye(2), jnp.array([1.0, 2.0])))
    5.0
    """
    return jnp.maximum(matmul(vector, matmul(gram, vector)), 0.0)


def power_of_two_exponent(values: jax.Array) -> jax.Array:
    """e, int32, with max|values| · 2^−e in [1/2, 1); 0 where that maximum is 0, NaN or inf.

    >>> int(power_of_two_exponent(jnp.array([-9.0, 2.0])))
    4
    """
    peak = jnp.max(jnp.abs(values), initial=0.0)
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(peak), peak, 0.0))
    return jnp.clip(exponent.astype(jnp.int32), LOWEST_EXPONENT, HIGHEST_EXPONENT)


def times_power_of_two(values: jax.Array, exponent: jax.Array) -> jax.Array:
    """values · 2^exponent without rounding, in two halves so that neither factor leaves float32.

    >>> times_power_of_two(jnp.array([3.0]), jnp.array(2)).tolist()
    [12.0]
    """
    half = exponent // 2
    return values * _exact_power(half) * _exact_power(exponent - half)


def _exact_power(exponent: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type((exponent.astype(jnp.int32) + 127) << 23, jnp.float32)


def power_of_two_scaled(arrays: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Arrays divided by one power of two that brings the largest entry of all to [0.5, 1), and its exponent."""
    exponents = jnp.stack([power_of_two_exponent(array) for array in arrays])
    exponent = jnp.max(exponents)
    return tuple(times_power_of_two(array, -exponent) for array in arrays), exponent


def presence(gram: jax.Array, valid: jax.Array | None) -> jax.Array:
    """1.0 for a valid rollout, 0.0 for padding, (m,)."""
    return jnp.ones(gram.shape[0]) if valid is None else valid.astype(jnp.float32)


def normalized(gram: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Valid part of (K + Kᵀ)/2 divided by 2^e, padding rows and columns 0 -> (m, m) float32, e."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be square (m, m), got {gram.shape}")
    gram = lax.stop_gradient(jnp.asarray(gram, jnp.float32))
    if valid is not None:
        if valid.shape != gram.shape[:1]:
            raise ValueError(f"valid {valid.shape} must be (m,) of gram {gram.shape}")
        both_mxm = valid.astype(bool)[:, None] & valid.astype(bool)[None, :]
        gram = jnp.where(both_mxm, gram, 0.0)
    exponent = power_of_two_exponent(gram)
    gram = times_power_of_two(gram, -exponent)
    return (gram + gram.T) / 2, exponent


def normalized_vector(
    vector: jax.Array, gram: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Valid part of c divided by 2^e -> (m,) float32, e."""
    if vector.shape != gram.shape[:1]:
        raise ValueError(f"coefficients {vector.shape} must be (m,) of gram {gram.shape}")
    vector = lax.stop_gradient(jnp.asarray(vector, jnp.float32))
    if valid is not None:
        vector = jnp.where(valid.astype(bool), vector, 0.0)
    exponent = power_of_two_exponent(vector)
    return times_power_of_two(vector, -exponent), exponent


def same_shape(new: jax.Array, old: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Two coefficient vectors (m,) as float32 constants, zero in padding; ValueError unless alike in shape."""
    if new.ndim != 1 or new.shape != old.shape:
        raise ValueError(f"new {new.shape} and old {old.shape} must be (m,)")
    new, old = (lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (new, old))
    if valid is None:
        return new, old
    return jnp.where(valid.astype(bool), new, 0.0), jnp.where(valid.astype(bool), old, 0.0)


def sqrt_scaled(square: jax.Array, exponent: jax.Array) -> jax.Array:
    """√(square · 2^exponent)."""
    half = exponent // 2
    return times_power_of_two(jnp.sqrt(times_power_of_two(square, exponent - 2 * half)), half)
