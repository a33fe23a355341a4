"""Rollouts -> Gram matrix K_ij = ⟨s_i, s_j⟩ of LM-head gradient features (arXiv 2606.05800, Eq. 19).

Both routes stream over vocabulary chunks: per chunk c the slice F_c (m, C, H) of all features, then
K += F_c F_cᵀ. Peak memory is m·C·(T + H) floats; an (m, V, H) or (m, T, V) array never exists.

Shape letters: m rollouts, T tokens, H hidden size, V vocabulary, C columns of one chunk, N = m·T.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax import vocab

DEFAULT_CHUNK = 512
"""Vocabulary columns held at once: m x 512 x (T + H) floats, hence smaller than vocab.DEFAULT_CHUNK."""


def lm_head_gram(
    hidden: jax.Array,
    lm_head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: vocab.Scalar = 1.0,
    chunk_size: int = DEFAULT_CHUNK,
    length_normalize: bool = True,
    log_normalizer: jax.Array | None = None,
) -> jax.Array:
    """Exact Gram matrix of the score features of the LM head, K_ij = ⟨s_i, s_j⟩ (arXiv 2606.05800, Eq. 19).

        s_i = (1/|o_i|) Σ_t M_it (p_it − onehot(y_it)) ⊗ h_it,     p_it = softmax(h_it W / τ)

    the gradient of τ times the rollout's mean negative log-likelihood in W: the constant 1/τ is left out.
    Constant in every argument (no gradient flows through).

    Args:
      hidden: (m, T, H) final hidden states. What stands at masked positions does not matter, NaN included.
      lm_head: (H, V) output projection.
      targets: (m, T) int token ids. An id outside [0, V) under the mask makes its rollout's row NaN.
      mask: (m, T) true (or nonzero) for the rollout's own tokens. An empty row gives s_i = 0.
      temperature: > 0, the sampling temperature.
      chunk_size: vocabulary columns held at once; changes memory, not the result.
      length_normalize: True divides by |o_i| (the paper), False sums over tokens (the authors' release).
      log_normalizer: (m, T) from `vocab.token_log_probs` at the same temperature;
        saves the first of two passes.

    Returns: (m, m) float32.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0, chunk_size not a positive integer.

    >>> h, W = jnp.ones((2, 1, 1)), jnp.zeros((1, 2))   # p = (1/2, 1/2): s = ±(1/2, −1/2)
    >>> lm_head_gram(h, W, jnp.array([[0], [1]]), jnp.ones((2, 1))).round(3).tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    _check_inputs(hidden, lm_head, targets, mask)
    if log_normalizer is not None and log_normalizer.shape != targets.shape:
        raise ValueError(f"log_normalizer {log_normalizer.shape} must have the shape of {targets.shape=}")
    temperature = vocab.check_temperature(temperature)
    chunk_size = vocab.check_chunk_size(chunk_size)
    hidden, lm_head = lax.stop_gradient((hidden, lm_head))
    keep_mxT = mask.astype(bool)
    hidden = jnp.where(keep_mxT[:, :, None], hidden, 0)
    flat_NxH = hidden.reshape(-1, hidden.shape[-1])
    targets_N = targets.reshape(-1)
    if log_normalizer is None:
        normalizer_N = vocab.log_normalizers(flat_NxH, lm_head, temperature, chunk_size)
    else:
        normalizer_N = jnp.where(keep_mxT, lax.stop_gradient(log_normalizer), 0.0).reshape(-1)

    def score(chunk: vocab.Chunk) -> jax.Array:
        logits_NxC = vocab.scaled_logits(flat_NxH, chunk.weights(lm_head), temperature)
        return vocab.residual(logits_NxC, normalizer_N, targets_N, chunk)

    weighted_mxTxH = _weighted(hidden, targets, keep_mxT, lm_head.shape[1], length_normalize)
    return _streamed_gram(score, weighted_mxTxH, lm_head.shape[1], chunk_size)


def taken_token_gram(
    hidden: jax.Array,
    lm_head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    length_normalize: bool = True,
) -> jax.Array:
    """Gram matrix of the features without their softmax term, s_i = −(1/|o_i|) Σ_t M_it onehot(y_it) ⊗ h_it.

        K_ij = (1/(|o_i||o_j|)) Σ_{t,u} M_it M_ju [y_it = y_ju] ⟨h_it, h_ju⟩

    What the authors' release computes from the second rollout of a micro-batch on, in place of Eq. 19 of
    arXiv 2606.05800; kept to measure both side by side. Constant in every argument.

    Args: as `lm_head_gram` (of lm_head only the vocabulary size is used). Returns: (m, m) float32.

    Raises:
      ValueError: shapes that do not fit, chunk_size not a positive integer.

    >>> h, W = jnp.ones((2, 1, 1)), jnp.zeros((1, 2))
    >>> taken_token_gram(h, W, jnp.array([[0], [1]]), jnp.ones((2, 1))).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    _check_inputs(hidden, lm_head, targets, mask)
    chunk_size = vocab.check_chunk_size(chunk_size)
    keep_mxT = mask.astype(bool)
    hidden = jnp.where(keep_mxT[:, :, None], lax.stop_gradient(hidden), 0)
    targets_N = targets.reshape(-1)

    def taken(chunk: vocab.Chunk) -> jax.Array:
        return -chunk.onehot(targets_N).astype(jnp.float32)

    weighted_mxTxH = _weighted(hidden, targets, keep_mxT, lm_head.shape[1], length_normalize)
    return _streamed_gram(taken, weighted_mxTxH, lm_head.shape[1], chunk_size)


def _weighted(
    hidden: jax.Array, targets: jax.Array, keep: jax.Array, vocab_size: int, length_normalize: bool
) -> jax.Array:
    """h_it M_it / |o_i| (or h_it M_it) in float32, (m, T, H); NaN where a kept target is no token."""
    weight_mxT = keep.astype(jnp.float32)
    if length_normalize:
        weight_mxT /= jnp.maximum(keep.sum(axis=1, keepdims=True), 1)
    known_mxT = (targets >= 0) & (targets < vocab_size)
    weight_mxT = jnp.where(known_mxT | ~keep, weight_mxT, jnp.nan)
    return hidden.astype(jnp.float32) * weight_mxT[:, :, None]


def _streamed_gram(
    delta: Callable[[vocab.Chunk], jax.Array], weighted: jax.Array, vocab_size: int, chunk_size: int
) -> jax.Array:
    """K = Σ_c F_c F_cᵀ, F_c[i] = delta(c)[i]ᵀ weighted[i]; delta(c) (N, C), weighted (m, T, H) -> (m, m)."""
    m, t, h = weighted.shape

    def step(gram_mxm: jax.Array, chunk: vocab.Chunk) -> jax.Array:
        delta_mxTxC = delta(chunk).reshape(m, t, chunk.size)
        # Full float32 products on accelerators too: the geometry is made of small differences.
        features_mxCxH = jnp.einsum("mtc,mth->mch", delta_mxTxC, weighted, precision=lax.Precision.HIGHEST)
        flat_mxD = features_mxCxH.reshape(m, chunk.size * h)
        return gram_mxm + jnp.dot(flat_mxD, flat_mxD.T, precision=lax.Precision.HIGHEST)

    return vocab.fold_chunks(step, jnp.zeros((m, m)), vocab_size, chunk_size)


def _check_inputs(hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, mask: jax.Array) -> None:
    if hidden.ndim != 3:
        raise ValueError(f"hidden must be (m, T, H), got {hidden.shape}")
    vocab.check_shapes(hidden, lm_head, targets)
    if mask.shape != targets.shape:
        raise ValueError(f"mask {mask.shape} must have the shape of targets {targets.shape}")
