"""The one streaming core over vocabulary chunks: log-probabilities, entropy, normalizers, projected softmax.

Everything that needs softmax(hidden @ lm_head / temperature) goes through here, so that the sampler, the
trainer and the geometry share one logits transform and none of them holds an (N, V) array past one chunk.

    z_v = ⟨h, W_v⟩ / τ        p = softmax(z)        log p_y = z_y − lse(z)        H = lse(z) − Σ_v p_v z_v

Matrix products accumulate in float32; a hidden state in bfloat16 is multiplied by the output projection in bfloat16,
any other in full (`products`). With a `Layout` each device takes its own tokens and
its own part of the vocabulary, and only sums over the vocabulary, one number a token each, are exchanged.

Shape letters: N tokens, H hidden size, V vocabulary, C columns of one chunk, e and S columns of a projection.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from salt_jax.distributed.layout import Layout
from salt_jax.products import matmul
from salt_jax.vocab.backward import pull_back
from salt_jax.vocab.chunks import (
    Chunk,
    Scalar,
    check_positive,
    check_shapes,
    check_temperature,
    fold_chunks,
    scaled_logits,
    sign_key,
    signs,
)

DEFAULT_CHUNK = 4096
"""Vocabulary columns held at once: N x 4096 float32 logits, 16 MiB per thousand tokens."""


class TokenLogProbs(NamedTuple):
    """What the policy says about each target token; every field has the shape of `targets`, float32.

    log_probs: log p(target), in nats.  entropy: of the whole distribution, in nats.
    log_normalizer: log Σ_v exp(z_v), a constant (no gradient); lets a later pass skip its own log-sum-exp.
    """

    log_probs: jax.Array
    entropy: jax.Array
    log_normalizer: jax.Array


class _Plan(NamedTuple):
    """What is static: columns of a chunk, of the random part of the projection, and where things lie."""

    chunk_size: int
    signs: int
    layout: Layout | None


def token_log_probs(
    hidden: jax.Array,
    lm_head: jax.Array,
    targets: jax.Array,
    *,
    temperature: Scalar = 1.0,
    chunk_size: int = DEFAULT_CHUNK,
    layout: Layout | None = None,
) -> TokenLogProbs:
    """Log-probability of targets[t] and entropy under hidden[t], the state that predicts targets[t].

    Streamed over vocabulary chunks:

        log p_y = z_y − lse(z),   H = lse(z) − Σ_v p_v z_v,   z = (hidden @ lm_head) / temperature

    Differentiable in `hidden` and `lm_head` (both outputs; not in `temperature`). The backward pass
    recomputes logits chunk by chunk:  ∂/∂z_v = g_logp (1[v = y] − p_v) − g_H p_v (log p_v + H).

    Args:
      hidden: (..., H) final hidden states, float32 or bfloat16, each that of the token before its target.
      lm_head: (H, V) output projection.
      targets: (...) int token ids. An id outside [0, V) gets log-probability NaN.
      temperature: > 0, a number or a traced scalar; the distribution is the one sampled from.
      chunk_size: vocabulary columns held at once; peak memory is tokens x chunk_size.
      layout: where the leading axis of `hidden` and both axes of `lm_head` lie on a mesh; None leaves it to jit.

    Returns: TokenLogProbs(log_probs, entropy, log_normalizer), each of targets.shape, float32, in nats.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0, chunk_size not a positive integer, a mesh that does
        not divide the tokens, the vocabulary or the width.

    >>> out = token_log_probs(jnp.zeros((1, 3)), jnp.ones((3, 4)), jnp.array([2]))
    >>> jnp.exp(out.log_probs).round(3).tolist(), jnp.exp(out.entropy).round(3).tolist()
    ([0.25], [4.0])
    """
    return _call(hidden, lm_head, targets, temperature, _Plan(chunk_size, 0, layout), None, None)[0]


def projected_log_probs(
    hidden: jax.Array,
    lm_head: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    heavy: jax.Array,
    *,
    num_signs: int,
    temperature: Scalar = 1.0,
    chunk_size: int = DEFAULT_CHUNK,
    layout: Layout | None = None,
) -> tuple[TokenLogProbs, jax.Array]:
    """`token_log_probs`, and from the same logits the residuals δ = p − onehot(y) in fewer columns.

        q = [δ_v for v in heavy,  (Σ_{v not heavy} δ_v S_v) / √s],      E ⟨q, q'⟩ = ⟨δ, δ'⟩

    with S (V, s) random ±1: exact on the heavy entries, unbiased on the rest. Σ_v p_v S_v is rescaled as the running
    maximum of the logits moves, so no second pass over the vocabulary is needed; S is made anew for each chunk from
    the key and never stored.

    Args:
      key: PRNG key; the same key gives the same S for any chunk size, layout or set of tokens.
      heavy: (e,) distinct token ids whose entries are kept as they are; all V of them keep everything.
      num_signs: s, columns of S; 0 drops the rest (exact where `heavy` is the whole vocabulary).
      (the others as in `token_log_probs`)

    Returns: TokenLogProbs, and q (..., e + s) float32, a constant; NaN for a target outside [0, V).

    Raises:
      ValueError: as `token_log_probs`; num_signs below 0, heavy not (e,).

    >>> h, W, y = jnp.zeros((1, 3)), jnp.ones((3, 4)), jnp.array([2])
    >>> projected_log_probs(h, W, y, jax.random.key(0), jnp.array([2, 0]), num_signs=0)[1].tolist()
    [[-0.75, 0.25]]
    """
    if heavy.ndim != 1 or num_signs < 0:
        raise ValueError(f"heavy must be (e,) and num_signs >= 0, got {heavy.shape} and {num_signs}")
    plan = _Plan(chunk_size, num_signs, layout)
    out, projected = _call(hidden, lm_head, targets, temperature, plan, key, heavy)
    return out, lax.stop_gradient(projected.reshape(*targets.shape, heavy.shape[0] + num_signs))


def log_normalizers(
    hidden: jax.Array, lm_head: jax.Array, temperature: Scalar = 1.0, chunk_size: int = DEFAULT_CHUNK,
    layout: Layout | None = None,
) -> jax.Array:
    """log Σ_v exp(z_v), streamed: (N, H) x (H, V) -> (N,) float32. No gradient rule of its own.

    With a layout: to be called inside shard_map, on this device's tokens and its part (H, V / vocab) of lm_head.

    >>> jnp.exp(log_normalizers(jnp.zeros((1, 2)), jnp.ones((2, 8)), chunk_size=3)).round(3).tolist()
    [8.0]
    """
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)

    def step(carry: tuple[jax.Array, jax.Array], chunk: Chunk) -> tuple[jax.Array, jax.Array]:
        peak_N, total_N = carry
        logits_NxC = scaled_logits(hidden, chunk.weights(lm_head), temperature)
        new_peak_N = jnp.maximum(peak_N, logits_NxC.max(axis=1))  # stale columns were in the peak already
        mass_N = chunk.zero_stale(jnp.exp(logits_NxC - new_peak_N[:, None])).sum(axis=1)
        return new_peak_N, total_N * jnp.exp(peak_N - new_peak_N) + mass_N

    n = hidden.shape[0]
    start = (_lowest(n, dtype), jnp.zeros(n, dtype))
    peak_N, total_N = fold_chunks(step, start, lm_head.shape[1], chunk_size)
    if layout is not None:
        local_N = peak_N
        peak_N = layout.max_vocab(peak_N)
        total_N = layout.sum_vocab(total_N * jnp.exp(local_N - peak_N))
    return peak_N + jnp.log(total_N)


def _call(
    hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, temperature: Scalar, plan: _Plan, key: Any, heavy: Any
) -> tuple[TokenLogProbs, jax.Array]:
    check_shapes(hidden, lm_head, targets)
    temperature = check_temperature(temperature)
    plan = plan._replace(chunk_size=check_positive("chunk_size", plan.chunk_size))
    if plan.layout is not None:
        plan.layout.check(("rows", targets.shape[0] if targets.ndim else 1), lm_head.shape)
    projection = None if key is None else (sign_key(key), heavy)
    flat_NxH = hidden.reshape(-1, hidden.shape[-1])  # 2-D products are much faster than batched ones on CPU
    *fields, projected = _statistics(flat_NxH, lm_head, targets.reshape(-1), temperature, projection, plan)
    log_probs, entropy, log_normalizer = (field.reshape(targets.shape) for field in fields)
    return TokenLogProbs(log_probs, entropy, lax.stop_gradient(log_normalizer)), projected


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _statistics(
    hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, temperature: jax.Array, projection: Any, plan: _Plan
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(N, H), (H, V), (N,) -> log_probs, entropy, log_normalizer, each (N,), and the projected residual (N, e + s)."""
    layout = plan.layout
    forward = functools.partial(_forward, plan=plan)
    args = (hidden, lm_head.astype(hidden.dtype), targets, temperature, projection)  # cast before it is gathered
    if layout is None:
        return forward(*args)
    once = PartitionSpec()
    return jax.shard_map(
        forward, mesh=layout.mesh, out_specs=(layout.rows,) * 4, check_vma=False,
        in_specs=(layout.rows, layout.head, layout.rows, once, once),
    )(*args)


def _forward(
    hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, temperature: jax.Array, projection: Any, *, plan: _Plan
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`_statistics` on one device: its tokens, and its columns of the vocabulary."""
    layout, n = plan.layout, hidden.shape[0]
    offset: int | jax.Array = 0
    vocab_size = columns = lm_head.shape[1]
    if layout is not None:
        lm_head, offset = layout.gather_width(lm_head), layout.vocab_offset(columns)
        vocab_size *= layout.vocab_shards
    local_N = targets - offset
    key_data, heavy_e = (jnp.zeros(2, jnp.uint32), jnp.zeros(0, jnp.int32)) if projection is None else projection
    at_e = heavy_e - offset
    inside_e = (at_e >= 0) & (at_e < columns)
    light_V = jnp.ones(columns, bool).at[jnp.where(inside_e, at_e, columns)].set(False, mode="drop")

    def step(carry: Any, chunk: Chunk) -> Any:
        peak_N, total_N, moment_N, picked_N, mean_NxS = carry
        logits_NxC = scaled_logits(hidden, chunk.weights(lm_head), temperature)
        new_peak_N = jnp.maximum(peak_N, logits_NxC.max(axis=1))
        # Sums of exp(u) and u·exp(u) with u = z − peak: entropy without cancelling two large numbers.
        below_NxC = logits_NxC - new_peak_N[:, None]
        mass_NxC = chunk.zero_stale(jnp.exp(below_NxC))
        drop_N = peak_N - new_peak_N
        keep_N = jnp.exp(drop_N)
        moment_N = keep_N * (moment_N + total_N * drop_N) + (mass_NxC * below_NxC).sum(axis=1)
        total_N = keep_N * total_N + mass_NxC.sum(axis=1)
        at_N = local_N - chunk.start
        inside_N = (at_N >= 0) & (at_N < chunk.size)
        column_Nx1 = jnp.clip(at_N, 0, chunk.size - 1)[:, None]
        hit_N = jnp.take_along_axis(logits_NxC, column_Nx1, axis=1, mode="promise_in_bounds")[:, 0]
        if plan.signs:
            light_C = lax.dynamic_slice_in_dim(light_V, chunk.start, chunk.size)
            rows_CxS = signs(key_data, offset + chunk.ids(), plan.signs) * light_C[:, None]
            mean_NxS = keep_N[:, None] * mean_NxS + _dot_signs(mass_NxC, rows_CxS, hidden.dtype)
        return new_peak_N, total_N, moment_N, jnp.where(inside_N, hit_N, picked_N), mean_NxS

    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    zeros = jnp.zeros(n, dtype)
    start = (_lowest(n, dtype), zeros, zeros, zeros, jnp.zeros((n, plan.signs), dtype))
    peak_N, total_N, moment_N, picked_N, mean_NxS = fold_chunks(step, start, columns, plan.chunk_size)
    if layout is not None and layout.vocab_shards > 1:
        drop_N = peak_N - layout.max_vocab(peak_N)
        keep_N = jnp.exp(drop_N)
        moment_N = layout.sum_vocab(keep_N * (moment_N + total_N * drop_N))
        total_N, mean_NxS = layout.sum_vocab(keep_N * total_N), layout.sum_vocab(keep_N[:, None] * mean_NxS)
        picked_N = layout.sum_vocab(picked_N)  # 0 on every device but one
        peak_N = peak_N - drop_N
    picked_N = jnp.where((targets >= 0) & (targets < vocab_size), picked_N, jnp.nan)
    log_total_N = jnp.log(total_N)
    # XLA may round one logit differently in two fusions: keep log p <= 0 <= H. NaN passes through.
    log_probs_N = jnp.minimum((picked_N - peak_N) - log_total_N, 0.0)
    entropy_N = jnp.maximum(log_total_N - moment_N / total_N, 0.0)
    log_normalizer_N = peak_N + log_total_N
    if projection is None:
        return log_probs_N, entropy_N, log_normalizer_N, mean_NxS
    logits_Nxe = scaled_logits(hidden, jnp.take(lm_head, jnp.clip(at_e, 0, columns - 1), axis=1), temperature)
    logits_Nxe = jnp.where(inside_e[None, :], logits_Nxe, 0.0)
    if layout is not None:
        logits_Nxe = layout.sum_vocab(logits_Nxe)  # each column comes from one device
    hit_Nxe = targets[:, None] == heavy_e[None, :]
    projected = [jnp.exp(logits_Nxe - log_normalizer_N[:, None]) - hit_Nxe]
    if plan.signs:
        taken_NxS = signs(key_data, targets, plan.signs) * ~hit_Nxe.any(axis=1, keepdims=True)
        projected.append((mean_NxS / total_N[:, None] - taken_NxS) / math.sqrt(plan.signs))
    known_N = (targets >= 0) & (targets < vocab_size)
    return (
        log_probs_N, entropy_N, log_normalizer_N,
        jnp.where(known_N[:, None], jnp.concatenate(projected, axis=1), jnp.nan),
    )  # fmt: skip


def _dot_signs(mass: jax.Array, rows: jax.Array, compute: Any) -> jax.Array:
    """(N, C) x (C, R): signs are exact in any dtype; the mass is as exact as the hidden states were."""
    compute = compute if jnp.dtype(compute) == jnp.bfloat16 else mass.dtype
    return matmul(mass.astype(compute), rows.astype(compute), mass.dtype)


def _statistics_fwd(hidden: Any, lm_head: Any, targets: Any, temperature: Any, projection: Any, plan: _Plan) -> Any:
    args = (hidden.value, lm_head.value, targets.value, temperature.value)
    outputs = _statistics(*args, None if projection is None else tuple(x.value for x in projection), plan)
    return outputs, (*args, outputs[1], outputs[2])


def _statistics_bwd(plan: _Plan, saved: Any, cotangents: Any) -> Any:
    hidden, lm_head, targets, temperature, entropy_N, log_normalizer_N = saved
    # Symbolic zeros: an unused entropy (no entropy bonus) costs nothing in the backward pass.
    g_log_prob_N, g_entropy_N = (_known(g) for g in cotangents[:2])
    if g_log_prob_N is None and g_entropy_N is None:
        return jnp.zeros_like(hidden), jnp.zeros_like(lm_head), None, jnp.zeros_like(temperature), None
    backward: Callable[..., Any] = functools.partial(_backward, plan=plan)
    seen = (hidden, lm_head.astype(hidden.dtype), targets, temperature, entropy_N, log_normalizer_N)
    if plan.layout is not None:
        rows, head, once = plan.layout.rows, plan.layout.head, PartitionSpec()
        backward = jax.shard_map(
            backward, mesh=plan.layout.mesh, out_specs=(rows, head), check_vma=False,
            in_specs=(rows, head, rows, once, rows, rows, rows, rows),
        )
    g_hidden, g_head = backward(*seen, g_log_prob_N, g_entropy_N)
    return g_hidden, g_head.astype(lm_head.dtype), None, jnp.zeros_like(temperature), None


def _backward(
    hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, temperature: jax.Array, entropy: jax.Array,
    log_normalizer: jax.Array, g_log_prob: Any, g_entropy: Any, *, plan: _Plan,
) -> tuple[jax.Array, jax.Array]:
    """Gradients (N, H) and (H, V) on one device; the second summed over the tokens of all."""
    if plan.layout is not None:
        targets = targets - plan.layout.vocab_offset(lm_head.shape[1])

    def of_logits(logits_NxC: jax.Array, chunk: Chunk) -> jax.Array:
        log_p_NxC = logits_NxC - log_normalizer[:, None]
        p_NxC = chunk.zero_stale(jnp.exp(log_p_NxC))
        g_NxC = jnp.zeros_like(p_NxC)
        if g_log_prob is not None:
            g_NxC = g_log_prob[:, None] * (chunk.onehot(targets) - p_NxC)
        if g_entropy is not None:
            g_NxC = g_NxC - g_entropy[:, None] * p_NxC * (log_p_NxC + entropy[:, None])
        return g_NxC

    return pull_back(of_logits, hidden, lm_head, temperature, plan.chunk_size, plan.layout)


_statistics.defvjp(_statistics_fwd, _statistics_bwd, symbolic_zeros=True)


def _known(cotangent: Any) -> jax.Array | None:
    return None if isinstance(cotangent, jax.custom_derivatives.SymbolicZero) else cotangent


def _lowest(n: int, dtype: Any) -> jax.Array:
    """The start of a running maximum: finite, so that no −inf − (−inf) can arise."""
    return jnp.full(n, jnp.finfo(jnp.float32).min, dtype)
