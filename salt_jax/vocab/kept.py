"""The mass of the tokens that a threshold keeps, streamed over vocabulary chunks: min-p, or a fixed probability.

    kept = {v : log p_v >= threshold},      log m = log Σ_{v kept} p_v,      proxy_v = p_v / m where kept, else 0

The kept set is a constant of the distribution it was made from. Then −log m is KL(proxy ‖ p) of a proxy held
constant, in value and in gradient:  ∂(−log m)/∂z_v = p_v − proxy_v.

Shape letters: N tokens, H hidden size, V vocabulary, C columns of one chunk.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from salt_jax.distributed.layout import Layout
from salt_jax.vocab.backward import pull_back
from salt_jax.vocab.chunks import (
    Chunk,
    Scalar,
    check_positive,
    check_shapes,
    check_temperature,
    fold_chunks,
    scaled_logits,
)
from salt_jax.vocab.streaming import DEFAULT_CHUNK

Array = jax.Array

DROPPED = -1e4
"""Nats that stand for log 0: of a token that the proxy drops, and of the mass of an empty kept set."""

KEPT_FORMS = ("min_p", "fixed")


@dataclasses.dataclass(frozen=True)
class KeptRule:
    """Which tokens of a distribution are kept; hashable, hence static under jit.

    Attributes:
      form: 'min_p' keeps p_v >= value · max p (at least one token); 'fixed' keeps p_v >= value (maybe none).
      value: κ of min-p, relative; or τ, a probability. In (0, 1). Lp-Reg (arXiv 2510.03222): κ = 0.02, or τ = 0.02.

    Raises:
      ValueError: a form that is not known, a value outside (0, 1).

    >>> KeptRule("min_p", 0.02).value
    0.02
    >>> KeptRule("top_p", 0.9)
    Traceback (most recent call last):
    ValueError: form = 'top_p' is unknown; allowed: min_p, fixed
    """

    form: str = "min_p"
    value: float = 0.02

    def __post_init__(self) -> None:
        if self.form not in KEPT_FORMS:
            raise ValueError(f"form = {self.form!r} is unknown; allowed: {', '.join(KEPT_FORMS)}")
        if not 0 < self.value < 1:
            raise ValueError(f"value = {self.value!r} is not allowed; allowed: numbers in (0, 1)")


class KeptMass(NamedTuple):
    """What is kept of each token's distribution; fields have the shape of the tokens, float32 or wider, nats.

    log_mass: log Σ_{v kept} p_v <= 0; differentiable. `DROPPED`, without gradient, where nothing is kept.
    log_threshold: tokens with log p >= log_threshold are kept; a constant. Above 0 (+inf) where nothing is.
    """

    log_mass: Array
    log_threshold: Array


class _Plan(NamedTuple):
    """What is static."""

    rule: KeptRule
    chunk_size: int
    layout: Layout | None


def kept_log_mass(
    hidden: Array,
    lm_head: Array,
    rule: KeptRule,
    *,
    temperature: Scalar = 1.0,
    chunk_size: int = DEFAULT_CHUNK,
    layout: Layout | None = None,
) -> KeptMass:
    """log Σ_{v kept} p_v of p = softmax((hidden @ lm_head) / temperature), streamed over vocabulary chunks.

    Two passes over the vocabulary: the threshold needs the largest logit and the log-sum-exp. Differentiable in
    `hidden` and `lm_head` (not in `temperature`); the backward pass recomputes logits chunk by chunk:

        ∂ log m / ∂z_v = proxy_v − p_v

    =====================================  ==========================================================
    nothing kept ('fixed' above max p)      log_mass = −1e4, its gradient 0, log_threshold = +inf
    everything kept                         log_mass = 0 up to rounding, never above it
    a token within rounding of the edge     kept or not: the logits of two passes may differ in a bit
    =====================================  ==========================================================

    Args:
      hidden: (..., H) final hidden states, float32 or bfloat16.
      lm_head: (H, V) output projection.
      rule: what is kept.
      temperature: > 0; the distribution is the one sampled from.
      chunk_size: vocabulary columns held at once; peak memory is tokens x chunk_size.
      layout: where the leading axis of `hidden` and both axes of `lm_head` lie on a mesh; None leaves it to jit.

    Returns: KeptMass(log_mass, log_threshold), each (...).

    Raises:
      ValueError: shapes that do not fit, temperature <= 0, chunk_size not a positive integer, a mesh that does
        not divide the tokens, the vocabulary or the width.

    >>> h, W = jnp.ones((1, 1)), jnp.log(jnp.array([[0.9, 0.07, 0.02, 0.01]]))
    >>> print(f"{float(jnp.exp(kept_log_mass(h, W, KeptRule('min_p', 0.02)).log_mass[0])):.4f}")
    0.9900
    """
    check_shapes(hidden, lm_head, jnp.zeros(hidden.shape[:-1], jnp.int32))
    temperature = check_temperature(temperature)
    plan = _Plan(rule, check_positive("chunk_size", chunk_size), layout)
    if layout is not None:
        layout.check(("rows", hidden.shape[0] if hidden.ndim > 1 else 1), lm_head.shape)
    flat_NxH = hidden.reshape(-1, hidden.shape[-1])  # 2-D products are much faster than batched ones on CPU
    log_mass, log_threshold, _, _ = _kept(flat_NxH, lm_head, temperature, plan)
    shape = hidden.shape[:-1]
    return KeptMass(log_mass.reshape(shape), lax.stop_gradient(log_threshold.reshape(shape)))


def log_proxy(log_probs: Array, kept: KeptMass) -> Array:
    """Log-probability of tokens under the proxy: log p − log m where kept, else −1e4 (the release's). A constant.

    log_probs (...) nats, of the same distributions as `kept` -> (...) nats.

    >>> log_proxy(jnp.array([-0.5, -3.0]), KeptMass(jnp.array(-0.25), jnp.array(-2.0))).tolist()
    [-0.25, -10000.0]
    """
    kept_tokens = log_probs >= kept.log_threshold
    return lax.stop_gradient(jnp.where(kept_tokens, log_probs - kept.log_mass, DROPPED))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _kept(hidden: Array, lm_head: Array, temperature: Array, plan: _Plan) -> tuple[Array, Array, Array, Array]:
    """(N, H), (H, V) -> log_mass, log_threshold, threshold of the logits, log_normalizer: (N,) each."""
    layout = plan.layout
    forward = functools.partial(_forward, plan=plan)
    args = (hidden, lm_head.astype(hidden.dtype), temperature)  # cast before it is gathered
    if layout is None:
        return forward(*args)
    return jax.shard_map(
        forward, mesh=layout.mesh, out_specs=(layout.rows,) * 4, check_vma=False,
        in_specs=(layout.rows, layout.head, PartitionSpec()),
    )(*args)


def _forward(hidden: Array, lm_head: Array, temperature: Array, *, plan: _Plan) -> tuple[Array, Array, Array, Array]:
    """`_kept` on one device: its tokens, and its columns of the vocabulary."""
    layout, n = plan.layout, hidden.shape[0]
    if layout is not None:
        lm_head = layout.gather_width(lm_head)
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)

    def measure(carry: tuple[Array, Array], chunk: Chunk) -> tuple[Array, Array]:
        peak_N, total_N = carry
        logits_NxC = scaled_logits(hidden, chunk.weights(lm_head), temperature)
        new_peak_N = jnp.maximum(peak_N, logits_NxC.max(axis=1))  # stale columns were in the peak already
        mass_N = chunk.zero_stale(jnp.exp(logits_NxC - new_peak_N[:, None])).sum(axis=1)
        return new_peak_N, total_N * jnp.exp(peak_N - new_peak_N) + mass_N

    start = (jnp.full(n, jnp.finfo(jnp.float32).min, dtype), jnp.zeros(n, dtype))
    peak_N, total_N = fold_chunks(measure, start, lm_head.shape[1], plan.chunk_size)
    if layout is not None:
        local_N = peak_N
        peak_N = layout.max_vocab(peak_N)
        total_N = layout.sum_vocab(total_N * jnp.exp(local_N - peak_N))
    log_total_N = jnp.log(total_N)  # of p relative to the largest: max log p = −log_total
    if plan.rule.form == "min_p":
        below_N = jnp.full(n, math.log(plan.rule.value), dtype)
    else:
        below_N = math.log(plan.rule.value) + log_total_N
    edge_N = peak_N + below_N

    def keep(kept_N: Array, chunk: Chunk) -> Array:
        logits_NxC = scaled_logits(hidden, chunk.weights(lm_head), temperature)
        inside_NxC = logits_NxC >= edge_N[:, None]
        mass_NxC = jnp.where(inside_NxC, jnp.exp(logits_NxC - peak_N[:, None]), 0.0)
        return kept_N + chunk.zero_stale(mass_NxC).sum(axis=1)

    kept_N = fold_chunks(keep, jnp.zeros(n, dtype), lm_head.shape[1], plan.chunk_size)
    if layout is not None:
        kept_N = layout.sum_vocab(kept_N)
    some_N = ~(kept_N <= 0)  # NaN passes through
    log_mass_N = jnp.minimum(jnp.log(jnp.where(some_N, kept_N, 1.0)) - log_total_N, 0.0)
    log_threshold_N = below_N - log_total_N
    return (
        jnp.where(some_N, log_mass_N, DROPPED), jnp.where(some_N, log_threshold_N, jnp.inf),
        edge_N, peak_N + log_total_N,
    )  # fmt: skip


def _kept_fwd(hidden: Array, lm_head: Array, temperature: Array, plan: _Plan) -> Any:
    outputs = _kept(hidden, lm_head, temperature, plan)
    return outputs, (hidden, lm_head, temperature, outputs[0], outputs[2], outputs[3])


def _kept_bwd(plan: _Plan, saved: Any, cotangents: Any) -> Any:
    hidden, lm_head, temperature, log_mass_N, edge_N, log_normalizer_N = saved
    backward: Any = functools.partial(_backward, plan=plan)
    if plan.layout is not None:
        rows, head, once = plan.layout.rows, plan.layout.head, PartitionSpec()
        backward = jax.shard_map(
            backward, mesh=plan.layout.mesh, out_specs=(rows, head), check_vma=False,
            in_specs=(rows, head, once, rows, rows, rows, rows),
        )
    g_hidden, g_head = backward(
        hidden, lm_head.astype(hidden.dtype), temperature, log_mass_N, edge_N, log_normalizer_N, cotangents[0]
    )
    return g_hidden, g_head.astype(lm_head.dtype), jnp.zeros_like(temperature)


def _backward(
    hidden: Array, lm_head: Array, temperature: Array, log_mass: Array, edge: Array, log_normalizer: Array,
    g_log_mass: Array, *, plan: _Plan,
) -> tuple[Array, Array]:
    """Gradients (N, H) and (H, V) on one device; the second summed over the tokens of all."""
    g_N = jnp.where(log_mass > DROPPED, g_log_mass, 0.0)  # nothing kept: a constant
    log_mass_N = jnp.where(log_mass > DROPPED, log_mass, 0.0)

    def logit_gradient(logits_NxC: Array, chunk: Chunk) -> Array:
        p_NxC = chunk.zero_stale(jnp.exp(logits_NxC - log_normalizer[:, None]))
        proxy_NxC = jnp.where(logits_NxC >= edge[:, None], p_NxC * jnp.exp(-log_mass_N)[:, None], 0.0)
        return g_N[:, None] * (proxy_NxC - p_NxC)

    return pull_back(logit_gradient, hidden, lm_head, temperature, plan.chunk_size, plan.layout)


_kept.defvjp(_kept_fwd, _kept_bwd)
