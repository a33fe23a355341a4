"""Weights against a sampler that is not quite the policy: truncated importance sampling (TIS) and its masks.

The sampler's log-probabilities may differ from the trainer's for the same parameters (kernels, precision, a stale
copy). With d = log p_old − log p_sampler on the sampled tokens, w multiplies the token's loss after the clip and
before the aggregation:

================  ============================  ==========================================================
mode              ratio                         w
================  ============================  ==========================================================
token             exp(d_t)                      clip(ratio, low, high); TIS: low 0, high C = 2 (verl)
sequence          exp(Σ_t d_t), one a row       clip(ratio, low, high)
token_mask        exp(d_t)                      ratio inside [low, high], else 0 (IcePop)
sequence_mask     exp(Σ_t d_t)                  ratio inside [low, high], else 0 (TRL's default, high 3)
================  ============================  ==========================================================

OpenRLHF clips tokens to [0.5, 5]. Dropped tokens stay in the loss's denominator.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.kl import LOG_RATIO_LIMIT

Array = jax.Array
MODES = ("token", "sequence", "token_mask", "sequence_mask")


def check_importance_options(mode: str, low: float, high: float) -> None:
    """Raises a one-line ValueError that names the option and what it allows.

    Example:
      >>> check_importance_options("token", 0.0, 2.0)
      >>> check_importance_options("tokens", 0.0, 2.0)
      Traceback (most recent call last):
      ValueError: importance mode = 'tokens' is unknown; allowed: token, sequence, token_mask, sequence_mask
    """
    if mode not in MODES:
        raise ValueError(f"importance mode = {mode!r} is unknown; allowed: {', '.join(MODES)}")
    if not 0 <= low <= high or not high > 0:
        given = f"importance low = {low!r}, high = {high!r}"
        raise ValueError(f"{given} is not allowed; allowed: 0 <= low <= high, 0 < high")


def importance_weights(
    old_log_probs: ArrayLike,
    sampler_log_probs: ArrayLike,
    mask: ArrayLike,
    *,
    mode: str = "token",
    low: float = 0.0,
    high: float = 2.0,
    normalize: bool = False,
) -> Array:
    """w of the module's table, without gradient; log-ratios are limited to ±20.

    =============================  ==================================================================
    masked position                0, whatever it holds
    everything masked              all 0, also with ``normalize``
    every weight 0                 all 0, also with ``normalize``
    NaN at an unmasked position    NaN: not hidden
    =============================  ==================================================================

    Args:
      old_log_probs: (N, T) of the sampled tokens under the policy before the update, as the trainer computes it, nats.
      sampler_log_probs: (N, T) as the sampler reported it, nats.
      mask: (N, T) bool.
      mode: 'token', 'sequence', 'token_mask', 'sequence_mask'.
      low: lower bound of w, or edge of what is kept. high: upper bound, or edge.
      normalize: divide by the mean weight, of the unmasked tokens or, in the modes of sequences, of the rows that
        have any (verl). The mean is of the whole array, so compute weights before a batch is split.

    Returns:
      (N, T), in float32 or wider.

    Raises:
      ValueError: an unknown mode, bounds out of order, or shapes that differ.

    Example:
      >>> d = jnp.log(jnp.array([[0.25, 1.5, 8.0]]))
      >>> mask = jnp.ones((1, 3), bool)
      >>> [[round(float(w), 4) for w in importance_weights(d, 0 * d, mask, mode=m)[0]] for m in ("token", "token_mask")]
      [[0.25, 1.5, 2.0], [0.25, 1.5, 0.0]]
    """
    check_importance_options(mode, low, high)
    if not jnp.shape(old_log_probs) == jnp.shape(sampler_log_probs) == jnp.shape(mask):
        raise ValueError(
            "old_log_probs, sampler_log_probs and mask must have one shape (N, T), got"
            f" {jnp.shape(old_log_probs)}, {jnp.shape(sampler_log_probs)}, {jnp.shape(mask)}"
        )
    mask = jnp.asarray(mask).astype(bool)
    dtype = jnp.promote_types(jnp.result_type(old_log_probs), jnp.float32)
    old, sampler = (
        jnp.where(mask, jnp.asarray(x).astype(dtype), 0) for x in (old_log_probs, sampler_log_probs)
    )
    by_row = mode.startswith("sequence")
    log_ratio = old - sampler
    if by_row:
        log_ratio = jnp.broadcast_to(jnp.sum(log_ratio, axis=1, keepdims=True), mask.shape)
    ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    if mode.endswith("mask"):
        weights = jnp.where((ratio < low) | (ratio > high), 0, ratio)  # so written, a NaN stays
    else:
        weights = jnp.clip(ratio, low, high)
    weights = jnp.where(mask, weights, 0)
    if normalize:
        counted = jnp.any(mask, axis=1) if by_row else mask
        values = jnp.max(weights, axis=1) if by_row else weights
        mean = jnp.sum(values) / jnp.maximum(jnp.sum(counted), 1)
        weights = weights / jnp.where(mean == 0, 1, mean)
    return jax.lax.stop_gradient(weights)
