"""Rollouts -> Gram matrix K_ij = ⟨s_i, s_j⟩ of LM-head gradient features (arXiv 2606.05800, Eq. 19).

Streamed over vocabulary chunks: per chunk c the slice F_c (m, C, H) of all features, then K += F_c F_cᵀ; or, for
short completions, inner products of token pairs. An (m, V, H) or (m, T, V) array never exists. On a mesh a
device makes the features of its own rollouts and vocabulary columns, and an all-to-all hands each device all
rollouts of a share of the columns: every feature is sent once, none is gathered.

Shape letters: m rollouts, T tokens, H hidden size, V vocabulary, C columns of one chunk, N = m·T.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from salt_jax import vocab
from salt_jax.distributed.layout import Layout
from salt_jax.geometry.streaming import (
    Lower,
    Streaming,
    check_accumulation,
    plan,
    product_dtype,
)


def lm_head_gram(
    hidden: jax.Array,
    lm_head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: vocab.Scalar = 1.0,
    chunk_size: int | None = None,
    length_normalize: bool = True,
    log_normalizer: jax.Array | None = None,
    memory_budget: int | None = None,
    route: str = "auto",
    accumulation_dtype: Any = jnp.float32,
    layout: Layout | None = None,
) -> jax.Array:
    """Exact Gram matrix of the LM head's score features; hidden[t] is the state that predicts targets[t].

        K_ij = ⟨s_i, s_j⟩  (arXiv 2606.05800, Eq. 19)
        s_i = (1/|o_i|) Σ_t M_it (p_it − onehot(y_it)) ⊗ h_it,     p_it = softmax(h_it W / τ)

    the gradient of τ times the rollout's mean negative log-likelihood in W: the constant 1/τ is left out.
    Constant in every argument (no gradient flows through). bfloat16 hidden states are multiplied in bfloat16 and
    summed in float32, others in full float32.

    Args:
      hidden: (m, T, H) final hidden states, each that of the token before its target. What stands at masked
        positions does not matter, NaN included.
      lm_head: (H, V) output projection.
      targets: (m, T) int token ids. An id outside [0, V) under the mask makes its rollout's row NaN.
      mask: (m, T) true (or nonzero) for the rollout's own tokens. An empty row gives s_i = 0.
      temperature: > 0, the sampling temperature.
      chunk_size: vocabulary columns held at once; None: as many as `memory_budget` holds. Changes memory, not
        the result.
      length_normalize: True divides by |o_i| (the paper), False sums over tokens (the authors' release).
      log_normalizer: (m, T) from `vocab.token_log_probs` at the same temperature;
        saves the first of two passes.
      memory_budget: bytes of working memory on each device, used where chunk_size is None; None: 16 MiB on a CPU,
        1 GiB elsewhere, or as much as 128 columns need.
      route: 'features', 'pairs' (K_ij = Σ_tu ⟨δ_it, δ_ju⟩⟨h_it, h_ju⟩, δ = p − onehot), or 'auto': the one of fewer
        operations that fits the budget (`geometry.streaming.plan`).
      accumulation_dtype: float32, or float64 (with jax_enable_x64) to check against.
      layout: where rollouts, vocabulary and width lie on a mesh; None leaves it to jit.

    Returns: (m, m) float32 (or accumulation_dtype), the same on every device.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0, chunk_size or memory_budget not a positive integer or
        too small, an unknown route, a sum in less than float32, a mesh that does not divide m, V or H.

    >>> h, W = jnp.ones((2, 1, 1)), jnp.zeros((1, 2))   # p = (1/2, 1/2): s = ±(1/2, −1/2)
    >>> lm_head_gram(h, W, jnp.array([[0], [1]]), jnp.ones((2, 1))).round(3).tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    check_inputs(hidden, lm_head, targets, mask, layout)
    if log_normalizer is not None and log_normalizer.shape != targets.shape:
        raise ValueError(f"log_normalizer {log_normalizer.shape} must have the shape of {targets.shape=}")
    temperature = vocab.check_temperature(temperature)
    dtype = check_accumulation(accumulation_dtype)
    streaming = _plan(hidden, lm_head, layout, dtype, route, chunk_size, memory_budget)
    settings = _Settings(streaming, layout, length_normalize, dtype, score=True)
    hidden, lm_head, log_normalizer = lax.stop_gradient((hidden, lm_head, log_normalizer))
    return _on_mesh(settings, hidden, lm_head, targets, mask, temperature, log_normalizer)


def taken_token_gram(
    hidden: jax.Array,
    lm_head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    chunk_size: int | None = None,
    length_normalize: bool = True,
    memory_budget: int | None = None,
    route: str = "auto",
    layout: Layout | None = None,
) -> jax.Array:
    """Gram matrix of the features without their softmax term, s_i = −(1/|o_i|) Σ_t M_it onehot(y_it) ⊗ h_it.

        K_ij = (1/(|o_i||o_j|)) Σ_{t,u} M_it M_ju [y_it = y_ju] ⟨h_it, h_ju⟩

    What the authors' release computes from the second rollout of a micro-batch on, in place of Eq. 19 of
    arXiv 2606.05800; kept to measure both side by side. Constant in every argument.

    Args: as `lm_head_gram` (of lm_head only the vocabulary size is used). Returns: (m, m) float32.

    Raises:
      ValueError: as `lm_head_gram`.

    >>> h, W = jnp.ones((2, 1, 1)), jnp.zeros((1, 2))
    >>> taken_token_gram(h, W, jnp.array([[0], [1]]), jnp.ones((2, 1))).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    check_inputs(hidden, lm_head, targets, mask, layout)
    dtype = jnp.dtype(jnp.float32)
    streaming = _plan(hidden, lm_head, layout, dtype, route, chunk_size, memory_budget)
    settings = _Settings(streaming, layout, length_normalize, dtype, score=False)
    hidden, lm_head = lax.stop_gradient((hidden, lm_head))
    return _on_mesh(settings, hidden, lm_head, targets, mask, jnp.ones(()), None)


class _Settings(NamedTuple):
    streaming: Streaming
    layout: Layout | None
    length_normalize: bool
    dtype: Any  # of sums
    score: bool  # p − onehot, or −onehot alone


def _plan(
    hidden: jax.Array, lm_head: jax.Array, layout: Layout | None, dtype: Any, route: str,
    chunk_size: int | None, memory_budget: int | None,
) -> Streaming:
    (m, t, h), v = hidden.shape, lm_head.shape[1]
    total, platform = m, jax.default_backend()
    if layout is not None:
        platform = layout.mesh.devices.flat[0].platform
        m, v = m // layout.batch_shards, v // layout.vocab_shards
    return plan(
        m, t, h, v, route=route, total_rows=total, itemsize=product_dtype(hidden, dtype)[0].itemsize,
        chunk_size=None if chunk_size is None else vocab.check_positive("chunk_size", chunk_size),
        memory_budget=None if memory_budget is None else vocab.check_positive("memory_budget", memory_budget),
        platform=platform,
    )


def _on_mesh(
    settings: _Settings, hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, mask: jax.Array,
    temperature: jax.Array, log_normalizer: jax.Array | None,
) -> jax.Array:
    local = functools.partial(_local_gram, settings)
    dtype = product_dtype(hidden, settings.dtype)[0]
    args = (hidden, lm_head.astype(dtype), targets, mask, temperature, log_normalizer)  # cast before it is gathered
    layout = settings.layout
    if layout is None:
        return local(*args)
    rows, once = layout.rows, PartitionSpec()
    specs = (rows, layout.head, rows, rows, once, rows)
    return jax.shard_map(local, mesh=layout.mesh, in_specs=specs, out_specs=once, check_vma=False)(*args)


def _local_gram(
    settings: _Settings, hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, mask: jax.Array,
    temperature: jax.Array, log_normalizer: jax.Array | None,
) -> jax.Array:
    """The Gram matrix, on one device of the layout (or on the only one)."""
    streaming, layout, dtype = settings.streaming, settings.layout, settings.dtype
    compute, precision = product_dtype(hidden, dtype)
    m, t, h = hidden.shape
    columns = vocab_size = lm_head.shape[1]
    if layout is not None:
        lm_head = layout.gather_width(lm_head) if settings.score else lm_head
        vocab_size = columns * layout.vocab_shards
        targets = targets - layout.vocab_offset(columns)
    # An id that is no token: below zero or past the end of the whole vocabulary.
    first = 0 if layout is None else -layout.vocab_offset(columns)
    keep_mxT = mask.astype(bool)
    known_mxT = (targets >= first) & (targets < first + vocab_size)
    weight_mxT = keep_mxT.astype(dtype)
    if settings.length_normalize:
        weight_mxT /= jnp.maximum(keep_mxT.sum(axis=1, keepdims=True), 1).astype(dtype)
    weight_mxT = jnp.where(known_mxT | ~keep_mxT, weight_mxT, jnp.nan)
    hidden = jnp.where(keep_mxT[:, :, None], hidden, 0).astype(compute)

    flat_NxH = hidden.reshape(-1, h)
    if not settings.score:
        normalizer_mxT = jnp.zeros(targets.shape, dtype)
    elif log_normalizer is None:
        flat_N = vocab.log_normalizers(flat_NxH, lm_head, temperature, _pass_chunk(streaming, m), layout)
        normalizer_mxT = flat_N.reshape(m, t)
    else:
        normalizer_mxT = jnp.where(keep_mxT, log_normalizer, 0.0).astype(dtype)

    def residuals(chunk: vocab.Chunk, hidden: Any, targets: Any, normalizer: Any, weight: Any) -> jax.Array:
        """δ_it weight_it on the chunk's columns: (..., T, H), (..., T) -> (N, C)."""
        targets_N = targets.reshape(-1)
        if settings.score:
            logits_NxC = vocab.scaled_logits(hidden.reshape(-1, h), chunk.weights(lm_head), temperature)
            delta_NxC = vocab.residual(logits_NxC, normalizer.reshape(-1), targets_N, chunk)
        else:
            delta_NxC = -chunk.onehot(targets_N).astype(dtype)
        return (delta_NxC * weight.reshape(-1)[:, None]).astype(compute)

    per_token = (hidden, targets, normalizer_mxT, weight_mxT)
    if streaming.route == "pairs":

        def add_pairs(inner: Lower, chunk: vocab.Chunk) -> Lower:
            return inner.add_product(residuals(chunk, *per_token), precision)

        inner = vocab.fold_chunks(add_pairs, Lower.zeros(m * t, dtype), columns, streaming.chunk_size)
        gram_mxm = inner.product_sums(flat_NxH, t, precision).full()
        return gram_mxm if layout is None else layout.sum_vocab(gram_mxm)

    def features(chunk: vocab.Chunk, part: Any) -> jax.Array:
        """The chunk's columns of a block's features: (b, T, H) … -> (b, C, H)."""
        delta_bxTxC = residuals(chunk, *part).reshape(-1, t, chunk.size)
        product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=dtype)
        return product("btc,bth->bch", delta_bxTxC, part[0]).astype(compute)

    block, shards = streaming.block, 1 if layout is None else layout.batch_shards

    def add_features(gram: Lower, chunk: vocab.Chunk) -> Lower:
        if block == m:
            features_mxCxH = features(chunk, per_token)
        else:
            parts = jax.tree.map(lambda x: x.reshape(m // block, block, *x.shape[1:]), per_token)
            features_mxCxH = lax.map(lambda part: features(chunk, part), parts)
        flat_mxD = features_mxCxH.reshape(m, chunk.size * h)
        if layout is not None and shards > 1:
            flat_mxD = jnp.pad(flat_mxD, ((0, 0), (0, -flat_mxD.shape[1] % shards)))
            flat_mxD = lax.all_to_all(flat_mxD, layout.batch, split_axis=1, concat_axis=0, tiled=True)
        return gram.add_product(flat_mxD, precision)

    gram = vocab.fold_chunks(add_features, Lower.zeros(m * shards, dtype), columns, streaming.chunk_size).full()
    if layout is None:
        return gram
    return layout.sum_vocab(gram if shards == 1 else lax.psum(gram, layout.batch))


def _pass_chunk(streaming: Streaming, m: int) -> int:
    """Columns of the normalizer's own pass: it has no features, but logits of all rollouts at once."""
    return max(1, math.ceil(streaming.chunk_size * streaming.block / m))


def check_inputs(
    hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, mask: jax.Array, layout: Layout | None = None
) -> None:
    """ValueError unless hidden (m, T, H), lm_head (H, V), targets and mask (m, T) fit together and on the mesh."""
    if hidden.ndim != 3:
        raise ValueError(f"hidden must be (m, T, H), got {hidden.shape}")
    vocab.check_shapes(hidden, lm_head, targets)
    if mask.shape != targets.shape:
        raise ValueError(f"mask {mask.shape} must have the shape of targets {targets.shape}")
    if layout is not None:
        layout.check(("rollouts", hidden.shape[0]), lm_head.shape)
