"""Chunks of the vocabulary: the loop over them, the logits transform, residuals and random signs on one chunk.

And the uniform numbers at which distribution functions over the vocabulary are inverted.

Shape letters: N tokens, H hidden size, V vocabulary, C columns of one chunk, R columns of a random projection.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.products import matmul

Scalar = float | jax.Array
Carry = TypeVar("Carry")


class Chunk(NamedTuple):
    """Columns [start, start + size) of the vocabulary (on a mesh: of this device's part of it).

    `fresh` (size,) marks the columns that no earlier chunk covered; None when all are fresh.
    """

    start: int | jax.Array
    size: int
    fresh: jax.Array | None

    def weights(self, lm_head: jax.Array) -> jax.Array:
        """(H, V) -> (H, C)."""
        if self.size == lm_head.shape[1]:
            return lm_head
        return lax.dynamic_slice_in_dim(lm_head, self.start, self.size, axis=1)

    def onehot(self, targets: jax.Array) -> jax.Array:
        """(N,) -> (N, C) bool; never true in a stale column."""
        hit_NxC = (targets - self.start)[:, None] == jnp.arange(self.size)[None, :]
        return hit_NxC if self.fresh is None else hit_NxC & self.fresh[None, :]

    def zero_stale(self, values: jax.Array) -> jax.Array:
        """(N, C) -> (N, C) with zeros in the columns that an earlier chunk has already covered."""
        return values if self.fresh is None else jnp.where(self.fresh[None, :], values, 0.0)

    def ids(self) -> jax.Array:
        """(C,) vocabulary ids of the columns."""
        return self.start + jnp.arange(self.size)


def fold_chunks(
    step: Callable[[Carry, Chunk], Carry], carry: Carry, vocab_size: int, chunk_size: int
) -> Carry:
    """Fold `step(carry, chunk) -> carry` over the vocabulary; every column is fresh in exactly one chunk.

    One chunk: straight-line code. Several: one loop; the last chunk moves left to fit, its overlap is stale.

    >>> int(fold_chunks(lambda n, c: n + (c.size if c.fresh is None else c.fresh.sum()), 0, 5, 3))
    5
    """
    if vocab_size <= chunk_size:
        return step(carry, Chunk(0, vocab_size, None))
    ragged = vocab_size % chunk_size != 0

    def body(j: jax.Array, carry: Carry) -> Carry:
        first = j * chunk_size
        start = jnp.minimum(first, vocab_size - chunk_size)
        fresh = start + jnp.arange(chunk_size) >= first if ragged else None
        return step(carry, Chunk(start, chunk_size, fresh))

    return lax.fori_loop(0, math.ceil(vocab_size / chunk_size), body, carry)


def scaled_logits(hidden: jax.Array, lm_head: jax.Array, temperature: Scalar = 1.0) -> jax.Array:
    """z = (hidden @ lm_head) / temperature, (N, H) x (H, V) -> (N, V) float32: the one logits transform.

    The sampler calls it for its one step with the whole head, the trainer with the columns of one chunk.
    float64 hidden states (with jax_enable_x64) give float64.

    >>> scaled_logits(jnp.ones((1, 2)), jnp.eye(2), 0.5).tolist()
    [[2.0, 2.0]]
    """
    # In the dtype of the hidden states (bfloat16 policies keep float32 parameters), summed in float32.
    sums = jnp.promote_types(hidden.dtype, jnp.float32)
    logits_NxV = matmul(hidden, lm_head.astype(hidden.dtype), sums)
    return logits_NxV / jnp.asarray(temperature, sums)


def residual(logits: jax.Array, log_normalizer: jax.Array, targets: jax.Array, chunk: Chunk) -> jax.Array:
    """p − onehot(target) on one chunk, zero in stale columns.

    logits (N, C), log_normalizer (N,), targets (N,) -> (N, C) in the dtype of logits.

    >>> z = jnp.zeros((1, 2))
    >>> residual(z, jnp.log(jnp.array([2.0])), jnp.array([1]), Chunk(0, 2, None)).round(3).tolist()
    [[0.5, -0.5]]
    """
    probs_NxC = chunk.zero_stale(jnp.exp(logits - log_normalizer[:, None]))
    return probs_NxC - chunk.onehot(targets)


def signs(key_data: jax.Array, ids: jax.Array, rank: int) -> jax.Array:
    """The rows `ids` of a random matrix of independent ±1 entries, made anew from the key at each call.

    Row v depends on the key and on v alone: not on the chunk, the device or the other rows asked for.

    key_data (2,) uint32 of `sign_key`, ids (...) int, rank > 0 -> (..., rank) float32.

    >>> rows = signs(sign_key(jax.random.key(0)), jnp.arange(100), 40)
    >>> rows.shape, bool(jnp.all(jnp.abs(rows) == 1)), bool(jnp.abs(rows.mean()) < 0.06)
    ((100, 40), True, True)
    """
    words = math.ceil(rank / 32)
    # threefry by name: other generators give different bits under vmap than one by one
    key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
    flat = ids.reshape(-1)
    bits_Nxw = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (words,), jnp.uint32))(flat)
    bits = (bits_Nxw[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None, :]) & 1
    return (1.0 - 2.0 * bits.reshape(-1, words * 32)[:, :rank].astype(jnp.float32)).reshape(*ids.shape, rank)


def sign_key(key: jax.Array) -> jax.Array:
    """(2,) uint32 that `signs` draws from, of a PRNG key of any kind."""
    return jax.random.bits(key, (2,), jnp.uint32)


def open_uniforms(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform numbers for inverse distribution functions, float32, never 0 or 1: those of `open_unit`.

    `jax.random.uniform` gives 0 once in 2^23 draws, and a distribution function inverted there gives the lowest
    token id, whatever its probability.

    >>> open_uniforms(jax.random.key(0), (2, 3)).shape
    (2, 3)
    """
    return open_unit(jax.random.bits(key, shape, jnp.uint32))


def open_unit(bits: jax.Array) -> jax.Array:
    """(k + ½) / 2^23 of the highest 23 of 32 random bits k: from 2^-24 to 1 − 2^-24, each exact in float32.

    >>> (open_unit(jnp.array([0, 2**32 - 1], jnp.uint32)) * 2**24).tolist()
    [1.0, 16777215.0]
    """
    return ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def check_shapes(hidden: jax.Array, lm_head: jax.Array, targets: jax.Array) -> None:
    """ValueError unless hidden (..., H), lm_head (H, V) and targets (...) fit together."""
    if lm_head.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != lm_head.shape[0]:
        raise ValueError(f"hidden {hidden.shape} must end in H of lm_head (H, V), got {lm_head.shape}")
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(f"targets {targets.shape} must be hidden {hidden.shape} without its last axis")


def check_temperature(temperature: Scalar) -> jax.Array:
    """Temperature as a float32 scalar; ValueError for a number not finite and > 0 (a traced one passes)."""
    if isinstance(temperature, numbers.Real) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be finite and > 0, got {temperature}")
    return jnp.asarray(temperature, jnp.float32)


def check_positive(name: str, value: int) -> int:
    """The value as an int; ValueError unless a positive integer."""
    try:
        size = operator.index(value)
    except TypeError:
        size = 0
    if size < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return size
