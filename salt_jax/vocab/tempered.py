"""What a tempered copy of each distribution thinks of the distribution itself, streamed over vocabulary chunks.

With p = softmax(z) and the copy p' = softmax(z / κ), both of one token's logits, and ω either p' itself or the
shares of K tokens drawn from p':

    weight = ω_y          mean = Σ_v ω_v log p_v          ∂ mean / ∂z_v = ω_v − p_v

ω is a constant. Tokens are drawn by inverting the running sum of p', chunk by chunk: K numbers a token, where
Gumbel noise would be K·V. Nothing of shape (N, V) or (N, K, V) is held past one chunk.

Shape letters: N tokens, H hidden size, V vocabulary, C columns of one chunk, K draws.
"""

from __future__ import annotations

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


class TemperedStatistics(NamedTuple):
    """What the tempered copy says about each target; fields have the shape of the targets, float32 or wider.

    log_probs: log p(target), nats; differentiable.  mean: Σ_v ω_v log p_v, nats; differentiable.
    weight: ω of the target, a constant.
    """

    log_probs: Array
    mean: Array
    weight: Array


class _Plan(NamedTuple):
    """What is static."""

    tempering: float
    chunk_size: int
    layout: Layout | None


class _Sums(NamedTuple):
    """Of one pass over the vocabulary, (N,) each: largest logit and its column, Σ e^u, Σ e^(u/κ), Σ u e^(u/κ), z_y."""

    peak: Array
    top: Array
    total: Array
    tempered: Array
    moment: Array
    picked: Array


def tempered_statistics(
    hidden: Array,
    lm_head: Array,
    targets: Array,
    *,
    tempering: float,
    uniforms: Array | None = None,
    temperature: Scalar = 1.0,
    chunk_size: int = DEFAULT_CHUNK,
    layout: Layout | None = None,
) -> TemperedStatistics:
    """log p of the targets, and the mean of log p over the tempered copy p' ∝ p^(1/κ), exact or over K draws from it.

    Differentiable in `hidden` and `lm_head` through log p alone. The exact form takes one pass over the vocabulary,
    the drawn form two, and K numbers a token are kept for the backward pass.

    Draw k is the token where the running sum of p' passes u_k: the same uniforms give the same tokens for any chunk
    size and layout, up to draws that fall within rounding of an edge. A float32 sum cannot tell tokens apart
    whose p' is below about 1e-7.

    Args:
      hidden: (..., H) final hidden states, float32 or bfloat16.
      lm_head: (H, V) output projection.
      targets: (...) int token ids. An id outside [0, V) gives NaN.
      tempering: κ > 0; above 1 flattens.
      uniforms: (..., K) in (0, 1), from which K tokens are drawn; None takes the expectation instead.
      temperature: > 0; z = (hidden @ lm_head) / temperature.
      chunk_size: vocabulary columns held at once; peak memory is tokens x (chunk_size + K).
      layout: where the leading axis of `hidden` and both axes of `lm_head` lie on a mesh; None leaves it to jit.

    Returns: TemperedStatistics(log_probs, mean, weight), each of targets.shape.

    Raises:
      ValueError: shapes that do not fit, tempering or temperature not finite and > 0, chunk_size not a positive
        integer, a mesh that does not divide the tokens, the vocabulary or the width.

    >>> h, W, y = jnp.ones((1, 1)), jnp.log(jnp.array([[0.5, 0.25, 0.25]])), jnp.array([0])
    >>> exact = tempered_statistics(h, W, y, tempering=1.0)  # mean: minus the entropy
    >>> [round(float(x[0]), 4) for x in exact]
    [-0.6931, -1.0397, 0.5]
    >>> draws = tempered_statistics(h, W, y, tempering=1.0, uniforms=jnp.array([[0.1, 0.4, 0.6, 0.9]]))
    >>> [round(float(x[0]), 4) for x in draws]  # tokens 0, 0, 1, 2
    [-0.6931, -1.0397, 0.5]
    """
    check_shapes(hidden, lm_head, targets)
    if not 0 < tempering < math.inf:
        raise ValueError(f"tempering = {tempering!r} is not allowed; allowed: finite numbers > 0")
    if uniforms is not None and (uniforms.shape[:-1] != targets.shape or uniforms.shape[-1] < 1):
        raise ValueError(f"uniforms must be targets {targets.shape} with an axis of draws, got {uniforms.shape}")
    plan = _Plan(float(tempering), check_positive("chunk_size", chunk_size), layout)
    if layout is not None:
        layout.check(("rows", targets.shape[0] if targets.ndim else 1), lm_head.shape)
    flat_NxH = hidden.reshape(-1, hidden.shape[-1])  # 2-D products are much faster than batched ones on CPU
    draws = None if uniforms is None else uniforms.reshape(-1, uniforms.shape[-1])
    found = _tempered(flat_NxH, lm_head, targets.reshape(-1), check_temperature(temperature), draws, plan)
    log_probs, mean, weight = (field.reshape(targets.shape) for field in found[:3])
    return TemperedStatistics(log_probs, mean, lax.stop_gradient(weight))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _tempered(hidden: Array, lm_head: Array, targets: Array, temperature: Array, draws: Any, plan: _Plan) -> Any:
    """log_probs, mean, weight, the two log-normalizers (N,) each, and the drawn ids (N, K) or None."""
    layout = plan.layout
    forward: Any = functools.partial(_forward, plan=plan)
    args = (hidden, lm_head.astype(hidden.dtype), targets, temperature, draws)  # cast before it is gathered
    if layout is None:
        return forward(*args)
    rows, once = layout.rows, PartitionSpec()
    return jax.shard_map(
        forward, mesh=layout.mesh, out_specs=rows, check_vma=False, in_specs=(rows, layout.head, rows, once, rows)
    )(*args)


def _forward(hidden: Array, lm_head: Array, targets: Array, temperature: Array, draws: Any, *, plan: _Plan) -> Any:
    """`_tempered` on one device: its tokens, and its columns of the vocabulary."""
    layout = plan.layout
    offset: int | Array = 0
    vocab_size = columns = lm_head.shape[1]
    if layout is not None:
        lm_head, offset = layout.gather_width(lm_head), layout.vocab_offset(columns)
        vocab_size *= layout.vocab_shards
    sums = _measure(hidden, lm_head, targets - offset, temperature, plan)
    mine_N = sums.tempered
    if layout is not None and layout.vocab_shards > 1:
        sums, mine_N = _over_devices(sums, offset, plan)
    log_total_N, log_tempered_N = jnp.log(sums.total), jnp.log(sums.tempered)
    picked_N = jnp.where((targets >= 0) & (targets < vocab_size), sums.picked, jnp.nan) - sums.peak
    log_probs_N = jnp.minimum(picked_N - log_total_N, 0.0)  # XLA may round one logit differently in two fusions
    normalizers = sums.peak + log_total_N, sums.peak / plan.tempering + log_tempered_N
    if draws is None:
        weight_N = jnp.exp(picked_N / plan.tempering - log_tempered_N)
        return log_probs_N, sums.moment / sums.tempered - log_total_N, weight_N, *normalizers, None
    ids_NxK, below_NxK = _draw(hidden, lm_head, temperature, draws, sums, mine_N, offset, plan)
    weight_N = jnp.where(jnp.isnan(picked_N), jnp.nan, (ids_NxK == targets[:, None]).mean(axis=1, dtype=picked_N.dtype))
    return log_probs_N, below_NxK.mean(axis=1) - log_total_N, weight_N, *normalizers, ids_NxK


def _measure(hidden: Array, lm_head: Array, local: Array, temperature: Array, plan: _Plan) -> _Sums:
    """One pass over this device's columns."""

    def step(sums: _Sums, chunk: Chunk) -> _Sums:
        logits_NxC = scaled_logits(hidden, chunk.weights(lm_head), temperature)
        at_N = logits_NxC.argmax(axis=1)
        highest_N = jnp.take_along_axis(logits_NxC, at_N[:, None], axis=1)[:, 0]
        peak_N = jnp.maximum(sums.peak, highest_N)  # stale columns were in the peak already
        top_N = jnp.where(highest_N > sums.peak, chunk.start + at_N, sums.top).astype(jnp.int32)
        below_NxC = logits_NxC - peak_N[:, None]
        mass_NxC = chunk.zero_stale(jnp.exp(below_NxC / plan.tempering))
        drop_N = sums.peak - peak_N
        keep_N = jnp.exp(drop_N / plan.tempering)
        moment_N = keep_N * (sums.moment + sums.tempered * drop_N) + (mass_NxC * below_NxC).sum(axis=1)
        total_N = sums.total * jnp.exp(drop_N) + chunk.zero_stale(jnp.exp(below_NxC)).sum(axis=1)
        at_N = local - chunk.start
        column_Nx1 = jnp.clip(at_N, 0, chunk.size - 1)[:, None]
        hit_N = jnp.take_along_axis(logits_NxC, column_Nx1, axis=1, mode="promise_in_bounds")[:, 0]
        picked_N = jnp.where((at_N >= 0) & (at_N < chunk.size), hit_N, sums.picked)
        return _Sums(peak_N, top_N, total_N, keep_N * sums.tempered + mass_NxC.sum(axis=1), moment_N, picked_N)

    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    zeros = jnp.zeros(hidden.shape[0], dtype)
    lowest = jnp.full_like(zeros, jnp.finfo(jnp.float32).min)
    start = _Sums(lowest, zeros.astype(jnp.int32), zeros, zeros, zeros, zeros)
    return fold_chunks(step, start, lm_head.shape[1], plan.chunk_size)


def _over_devices(sums: _Sums, offset: Any, plan: _Plan) -> tuple[_Sums, Array]:
    """Sums over the whole vocabulary from those of each part of it; and this part's share of Σ e^(u/κ)."""
    layout = plan.layout
    assert layout is not None
    peak_N = layout.max_vocab(sums.peak)
    drop_N = sums.peak - peak_N
    keep_N = jnp.exp(drop_N / plan.tempering)
    mine_N = keep_N * sums.tempered
    top_N = jnp.where(drop_N == 0, offset + sums.top, -1).astype(jnp.int32)
    return _Sums(
        peak_N, layout.max_vocab(top_N), layout.sum_vocab(jnp.exp(drop_N) * sums.total), layout.sum_vocab(mine_N),
        layout.sum_vocab(keep_N * (sums.moment + sums.tempered * drop_N)),
        layout.sum_vocab(sums.picked),  # 0 on every device but one
    ), mine_N  # fmt: skip


def _draw(
    hidden: Array, lm_head: Array, temperature: Array, draws: Array, sums: _Sums, mine_N: Array, offset: Any,
    plan: _Plan,
) -> tuple[Array, Array]:
    """Ids (N, K) of the drawn tokens, and how far their logits are below the peak."""
    layout = plan.layout if plan.layout is not None and plan.layout.vocab_shards > 1 else None
    aim_NxK = draws.astype(mine_N.dtype) * sums.tempered[:, None]
    before_N = jnp.zeros_like(mine_N)  # mass on the devices whose part of the vocabulary comes first
    if layout is not None:
        shares_SxN = lax.all_gather(mine_N, layout.vocab)
        earlier_S = jnp.arange(layout.vocab_shards) < lax.axis_index(layout.vocab)
        before_N = jnp.where(earlier_S[:, None], shares_SxN, 0.0).sum(axis=0)

    def step(carry: tuple[Array, Array, Array], chunk: Chunk) -> tuple[Array, Array, Array]:
        ids_NxK, below_NxK, mass_N = carry
        below_NxC = scaled_logits(hidden, chunk.weights(lm_head), temperature) - sums.peak[:, None]
        mass_NxC = chunk.zero_stale(jnp.exp(below_NxC / plan.tempering))
        running_NxC = mass_N[:, None] + jnp.cumsum(mass_NxC, axis=1)
        end_N = running_NxC[:, -1]
        column_NxK = jax.vmap(lambda edges, aims: jnp.searchsorted(edges, aims, side="right"))(running_NxC, aim_NxK)
        hit_NxK = (aim_NxK >= mass_N[:, None]) & (aim_NxK < end_N[:, None])
        column_NxK = jnp.minimum(column_NxK, chunk.size - 1)
        ids_NxK = jnp.where(hit_NxK, chunk.start + column_NxK, ids_NxK).astype(jnp.int32)
        below_NxK = jnp.where(hit_NxK, jnp.take_along_axis(below_NxC, column_NxK, axis=1), below_NxK)
        return ids_NxK, below_NxK, end_N

    start = (jnp.full(draws.shape, -1, jnp.int32), jnp.zeros_like(aim_NxK), before_N)
    ids_NxK, below_NxK, _ = fold_chunks(step, start, lm_head.shape[1], plan.chunk_size)
    if layout is not None:
        local_NxK = jnp.where(ids_NxK >= 0, offset + ids_NxK, -1)
        ids_NxK = layout.max_vocab(local_NxK)  # rounding may let two neighbours claim one draw
        below_NxK = layout.sum_vocab(jnp.where((local_NxK == ids_NxK) & (local_NxK >= 0), below_NxK, 0.0))
    # A draw past the last running sum (rounding: the first pass summed in another order) is the likeliest token.
    return jnp.where(ids_NxK >= 0, ids_NxK, sums.top[:, None]), below_NxK


def _tempered_fwd(hidden: Array, lm_head: Array, targets: Array, temperature: Array, draws: Any, plan: _Plan) -> Any:
    outputs = _tempered(hidden, lm_head, targets, temperature, draws, plan)
    return outputs, (hidden, lm_head, targets, temperature, *outputs[3:])


def _tempered_bwd(plan: _Plan, saved: Any, cotangents: Any) -> Any:
    hidden, lm_head, targets, temperature, log_normalizer, log_tempered, ids = saved
    backward: Any = functools.partial(_backward, plan=plan)
    if plan.layout is not None:
        rows, head, once = plan.layout.rows, plan.layout.head, PartitionSpec()
        backward = jax.shard_map(
            backward, mesh=plan.layout.mesh, out_specs=(rows, head), check_vma=False,
            in_specs=(rows, head, rows, once, rows, rows, rows, rows, rows),
        )
    g_hidden, g_head = backward(
        hidden, lm_head.astype(hidden.dtype), targets, temperature, log_normalizer, log_tempered, ids, *cotangents[:2]
    )
    return g_hidden, g_head.astype(lm_head.dtype), None, jnp.zeros_like(temperature), None


def _backward(
    hidden: Array, lm_head: Array, targets: Array, temperature: Array, log_normalizer: Array, log_tempered: Array,
    ids: Any, g_log_prob: Array, g_mean: Array, *, plan: _Plan,
) -> tuple[Array, Array]:
    """Gradients (N, H) and (H, V) on one device; the second summed over the tokens of all."""
    offset = 0 if plan.layout is None else plan.layout.vocab_offset(lm_head.shape[1])

    def logit_gradient(logits_NxC: Array, chunk: Chunk) -> Array:
        p_NxC = chunk.zero_stale(jnp.exp(logits_NxC - log_normalizer[:, None]))
        if ids is None:
            shares_NxC = chunk.zero_stale(jnp.exp(logits_NxC / plan.tempering - log_tempered[:, None]))
        else:
            at_NxK = ids - offset - chunk.start
            at_NxK = jnp.where((at_NxK >= 0) & (at_NxK < chunk.size), at_NxK, chunk.size)
            add = lambda share_C, at_K: share_C.at[at_K].add(1.0 / ids.shape[1], mode="drop")
            shares_NxC = chunk.zero_stale(jax.vmap(add)(jnp.zeros_like(p_NxC), at_NxK))
        onto_target_NxC = chunk.onehot(targets - offset) - p_NxC
        return g_log_prob[:, None] * onto_target_NxC + g_mean[:, None] * (shares_NxC - p_NxC)

    return pull_back(logit_gradient, hidden, lm_head, temperature, plan.chunk_size, plan.layout)


_tempered.defvjp(_tempered_fwd, _tempered_bwd)
