"""The one streaming core over vocabulary chunks: log-probabilities, entropy, residuals p − onehot.

Everything that needs softmax(hidden @ lm_head / temperature) goes through here, so that the sampler, the
trainer and the geometry share one logits transform and none of them holds an (N, V) array past one chunk.

    z_v = ⟨h, W_v⟩ / τ        p = softmax(z)        log p_y = z_y − lse(z)        H = lse(z) − Σ_v p_v z_v

Matrix products of logits follow `jax_default_matmul_precision` and accumulate in float32; a hidden state in
bfloat16 is multiplied by the output projection in bfloat16.

Shape letters: N tokens, H hidden size, V vocabulary, C columns of one chunk.
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

DEFAULT_CHUNK = 4096
"""Vocabulary columns held at once: N x 4096 float32 logits, 16 MiB per thousand tokens."""

Scalar = float | jax.Array
Carry = TypeVar("Carry")
Sums = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class TokenLogProbs(NamedTuple):
    """What the policy says about each target token; every field has the shape of `targets`, float32.

    log_probs: log p(target), in nats.  entropy: of the whole distribution, in nats.
    log_normalizer: log Σ_v exp(z_v), a constant (no gradient); lets a later pass skip its own log-sum-exp.
    """

    log_probs: jax.Array
    entropy: jax.Array
    log_normalizer: jax.Array


class Chunk(NamedTuple):
    """Columns [start, start + size) of the vocabulary.

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

    >>> scaled_logits(jnp.ones((1, 2)), jnp.eye(2), 0.5).tolist()
    [[2.0, 2.0]]
    """
    # In the dtype of the hidden states (bfloat16 policies keep float32 parameters), summed in float32.
    logits_NxV = jnp.dot(hidden, lm_head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return logits_NxV / temperature


def residual(logits: jax.Array, log_normalizer: jax.Array, targets: jax.Array, chunk: Chunk) -> jax.Array:
    """p − onehot(target) on one chunk, zero in stale columns.

    logits (N, C), log_normalizer (N,), targets (N,) -> (N, C) float32.

    >>> z = jnp.zeros((1, 2))
    >>> residual(z, jnp.log(jnp.array([2.0])), jnp.array([1]), Chunk(0, 2, None)).round(3).tolist()
    [[0.5, -0.5]]
    """
    probs_NxC = chunk.zero_stale(jnp.exp(logits - log_normalizer[:, None]))
    return probs_NxC - chunk.onehot(targets)


def log_normalizers(
    hidden: jax.Array, lm_head: jax.Array, temperature: Scalar = 1.0, chunk_size: int = DEFAULT_CHUNK
) -> jax.Array:
    """log Σ_v exp(z_v), streamed: (N, H) x (H, V) -> (N,) float32. No gradient rule of its own.

    >>> jnp.exp(log_normalizers(jnp.zeros((1, 2)), jnp.ones((2, 8)), chunk_size=3)).round(3).tolist()
    [8.0]
    """

    def step(carry: tuple[jax.Array, jax.Array], chunk: Chunk) -> tuple[jax.Array, jax.Array]:
        peak_N, total_N = carry
        logits_NxC = scaled_logits(hidden, chunk.weights(lm_head), temperature)
        new_peak_N = jnp.maximum(peak_N, logits_NxC.max(axis=1))  # stale columns were in the peak already
        mass_N = chunk.zero_stale(jnp.exp(logits_NxC - new_peak_N[:, None])).sum(axis=1)
        return new_peak_N, total_N * jnp.exp(peak_N - new_peak_N) + mass_N

    n = hidden.shape[0]
    peak_N, total_N = fold_chunks(step, (_lowest(n), jnp.zeros(n)), lm_head.shape[1], chunk_size)
    return peak_N + jnp.log(total_N)


def token_log_probs(
    hidden: jax.Array,
    lm_head: jax.Array,
    targets: jax.Array,
    *,
    temperature: Scalar = 1.0,
    chunk_size: int = DEFAULT_CHUNK,
) -> TokenLogProbs:
    """Log-probability of each target and entropy of each distribution, streamed over vocabulary chunks.

        log p_y = z_y − lse(z),   H = lse(z) − Σ_v p_v z_v,   z = (hidden @ lm_head) / temperature

    Differentiable in `hidden` and `lm_head` (both outputs; not in `temperature`). The backward pass
    recomputes logits chunk by chunk:  ∂/∂z_v = g_logp (1[v = y] − p_v) − g_H p_v (log p_v + H).

    Args:
      hidden: (..., H) final hidden states, float32 or bfloat16.
      lm_head: (H, V) output projection.
      targets: (...) int token ids. An id outside [0, V) gets log-probability NaN.
      temperature: > 0, a number or a traced scalar; the distribution is the one sampled from.
      chunk_size: vocabulary columns held at once; peak memory is tokens x chunk_size.

    Returns: TokenLogProbs(log_probs, entropy, log_normalizer), each of targets.shape, float32, in nats.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0, chunk_size not a positive integer.

    >>> out = token_log_probs(jnp.zeros((1, 3)), jnp.ones((3, 4)), jnp.array([2]))
    >>> jnp.exp(out.log_probs).round(3).tolist(), jnp.exp(out.entropy).round(3).tolist()
    ([0.25], [4.0])
    """
    check_shapes(hidden, lm_head, targets)
    temperature = check_temperature(temperature)
    chunk_size = check_chunk_size(chunk_size)
    flat_NxH = hidden.reshape(-1, hidden.shape[-1])  # 2-D products are much faster than batched ones on CPU
    fields = _statistics(flat_NxH, lm_head, targets.reshape(-1), temperature, chunk_size)
    log_probs, entropy, log_normalizer = (field.reshape(targets.shape) for field in fields)
    return TokenLogProbs(log_probs, entropy, lax.stop_gradient(log_normalizer))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _statistics(
    hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, temperature: jax.Array, chunk_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(N, H), (H, V), (N,) -> log_probs, entropy, log_normalizer, each (N,)."""
    vocab_size = lm_head.shape[1]

    def step(carry: Sums, chunk: Chunk) -> Sums:
        peak_N, total_N, moment_N, picked_N = carry
        logits_NxC = scaled_logits(hidden, chunk.weights(lm_head), temperature)
        new_peak_N = jnp.maximum(peak_N, logits_NxC.max(axis=1))
        # Sums of exp(u) and u·exp(u) with u = z − peak: entropy without cancelling two large numbers.
        below_NxC = logits_NxC - new_peak_N[:, None]
        mass_NxC = chunk.zero_stale(jnp.exp(below_NxC))
        drop_N = peak_N - new_peak_N
        keep_N = jnp.exp(drop_N)
        moment_N = keep_N * (moment_N + total_N * drop_N) + (mass_NxC * below_NxC).sum(axis=1)
        total_N = keep_N * total_N + mass_NxC.sum(axis=1)
        local_N = targets - chunk.start
        inside_N = (local_N >= 0) & (local_N < chunk.size)
        column_Nx1 = jnp.clip(local_N, 0, chunk.size - 1)[:, None]
        hit_N = jnp.take_along_axis(logits_NxC, column_Nx1, axis=1, mode="promise_in_bounds")[:, 0]
        return new_peak_N, total_N, moment_N, jnp.where(inside_N, hit_N, picked_N)

    n = hidden.shape[0]
    start = (_lowest(n), jnp.zeros(n), jnp.zeros(n), jnp.full(n, jnp.nan))  # NaN: a target no chunk contains
    peak_N, total_N, moment_N, picked_N = fold_chunks(step, start, vocab_size, chunk_size)
    log_total_N = jnp.log(total_N)
    # XLA may round one logit differently in two fusions: keep log p <= 0 <= H. NaN passes through.
    log_probs_N = jnp.minimum((picked_N - peak_N) - log_total_N, 0.0)
    entropy_N = jnp.maximum(log_total_N - moment_N / total_N, 0.0)
    return log_probs_N, entropy_N, peak_N + log_total_N


def _statistics_fwd(hidden: Any, lm_head: Any, targets: Any, temperature: Any, chunk_size: int) -> Any:
    args = (hidden.value, lm_head.value, targets.value, temperature.value)
    outputs = _statistics(*args, chunk_size)
    return outputs, (*args, outputs[1], outputs[2])


def _statistics_bwd(chunk_size: int, saved: Any, cotangents: Any) -> Any:
    hidden, lm_head, targets, temperature, entropy_N, log_normalizer_N = saved
    # Symbolic zeros: an unused entropy (no entropy bonus) costs nothing in the backward pass.
    g_log_prob_N, g_entropy_N = (_known(g) for g in cotangents[:2])
    if g_log_prob_N is None and g_entropy_N is None:
        return jnp.zeros_like(hidden), jnp.zeros_like(lm_head), None, jnp.zeros_like(temperature)

    def step(carry: tuple[jax.Array, jax.Array], chunk: Chunk) -> tuple[jax.Array, jax.Array]:
        g_hidden_NxH, g_head_HxV = carry
        weights_HxC = chunk.weights(lm_head).astype(hidden.dtype)
        log_p_NxC = scaled_logits(hidden, weights_HxC, temperature) - log_normalizer_N[:, None]
        p_NxC = chunk.zero_stale(jnp.exp(log_p_NxC))
        g_NxC = jnp.zeros_like(p_NxC)
        if g_log_prob_N is not None:
            g_NxC = g_log_prob_N[:, None] * (chunk.onehot(targets) - p_NxC)
        if g_entropy_N is not None:
            g_NxC = g_NxC - g_entropy_N[:, None] * p_NxC * (log_p_NxC + entropy_N[:, None])
        g_NxC = (g_NxC / temperature).astype(hidden.dtype)
        g_hidden_NxH += jnp.dot(g_NxC, weights_HxC.T, preferred_element_type=jnp.float32)
        g_weights_HxC = jnp.dot(hidden.T, g_NxC, preferred_element_type=jnp.float32)
        if chunk.size == lm_head.shape[1]:
            return g_hidden_NxH, g_weights_HxC
        g_weights_HxC += chunk.weights(g_head_HxV)  # a stale column adds its zero to what is there
        return g_hidden_NxH, lax.dynamic_update_slice_in_dim(g_head_HxV, g_weights_HxC, chunk.start, axis=1)

    start = (jnp.zeros(hidden.shape), jnp.zeros(lm_head.shape))
    g_hidden_NxH, g_head_HxV = fold_chunks(step, start, lm_head.shape[1], chunk_size)
    g_hidden_NxH, g_head_HxV = g_hidden_NxH.astype(hidden.dtype), g_head_HxV.astype(lm_head.dtype)
    return g_hidden_NxH, g_head_HxV, None, jnp.zeros_like(temperature)


_statistics.defvjp(_statistics_fwd, _statistics_bwd, symbolic_zeros=True)


def _known(cotangent: Any) -> jax.Array | None:
    return None if isinstance(cotangent, jax.custom_derivatives.SymbolicZero) else cotangent


def _lowest(n: int) -> jax.Array:
    """The start of a running maximum: finite, so that no −inf − (−inf) can arise."""
    return jnp.full(n, jnp.finfo(jnp.float32).min)


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


def check_chunk_size(chunk_size: int) -> int:
    """chunk_size as an int; ValueError unless a positive integer."""
    try:
        size = operator.index(chunk_size)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"chunk_size must be a positive integer, got {chunk_size!r}")
    return size
