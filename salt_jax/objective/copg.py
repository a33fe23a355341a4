"""CoPG: contrastive policy gradient, off-policy without importance weights (arXiv 2406.19185).

With l = Σ_t log π/π_ref of a completion and R_β = R − β·l, a pair (i, j) of completions of one prompt has the value

    ℓ_ij = (R_i − R_j)(l_i − l_j) − (β/2)(l_i − l_j)²,        largest at l_i − l_j = (R_i − R_j)/β

whose gradient is (R_β,i − R_β,j)(∇ log π_i − ∇ log π_j): a policy gradient against a contrastive baseline, right for
completions from any policy of full support. The paper's eq. 17 says that ℓ is minimised, a slip of sign.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array


def copg_loss(
    rewards: ArrayLike, log_ratio: ArrayLike, beta: float = 0.06, rewarded: ArrayLike | None = None
) -> Array:
    """Minus the mean of ℓ over the unordered pairs of a group, averaged over all B groups.

    arXiv 2406.19185; the mean over more than two completions is derived here: the gradient in l_i is
    −c_i / B with c_i = 2/(n−1)·(R_β,i − mean R_β), n rewarded completions, which is 2× RLOO's.

    ==============================  ==================================================================
    all rewards equal               not 0: l_i − l_j is pulled to 0, back to the reference policy
    one rewarded completion, none   the group adds 0, and is still counted in B
    a missing reward                in no pair; reward and log-ratio may be NaN there
    ==============================  ==================================================================

    Args:
      rewards: (B, G).
      log_ratio: (B, G) nats, l = Σ_t (log π − log π_ref), summed over the tokens; with gradient.
      beta: β >= 0, per nat; the paper sweeps 0.01 to 1 and finds 0.06 best.
      rewarded: (B, G) bool, false where the grader failed; None means all true.

    Returns:
      Scalar, to be minimised.

    Raises:
      ValueError: rank other than 2, shapes that differ, beta negative or not finite.

    Example:
      >>> print(f"{float(copg_loss(jnp.array([[1.5, 0.25]]), jnp.array([[0.3, -0.4]]), 0.1)):.4f}")
      -0.8505
    """
    rewards, log_ratio, rewarded = _checked(rewards, log_ratio, beta, rewarded)
    gap_r_BxGxG = rewards[:, :, None] - rewards[:, None, :]
    gap_l_BxGxG = log_ratio[:, :, None] - log_ratio[:, None, :]
    paired = rewarded[:, :, None] & rewarded[:, None, :]
    value_BxGxG = jnp.where(paired, (gap_r_BxGxG - beta / 2 * gap_l_BxGxG) * gap_l_BxGxG, 0)
    count_B = jnp.sum(rewarded, axis=1, dtype=rewards.dtype)
    pairs_B = jnp.maximum(count_B * (count_B - 1), 1)  # ordered: ℓ is symmetric and 0 on the diagonal
    return -jnp.mean(jnp.sum(value_BxGxG, axis=(1, 2)) / pairs_B)


def copg_advantages(
    rewards: ArrayLike, log_ratio: ArrayLike, beta: float = 0.06, rewarded: ArrayLike | None = None
) -> Array:
    """Advantages that turn a policy-gradient loss into ``copg_loss``: A_i = G·c_i = 2G/(n−1)·(R_β,i − mean R_β).

    The gradient of −(1/(B·G)) Σ_i A_i Σ_t log π_t, log-probs summed over tokens and averaged over all B·G rows
    (aggregation 'seq_mean_token_sum', no row empty; unclipped, ratio 1), is exactly that of ``copg_loss``: the factor G
    turns the mean over rows into the mean over groups, 2/(n−1) the sum over rows into the mean over pairs. Derived
    here. Nothing is divided by a standard deviation.

    ==============================  ==================================================================
    all rewards equal               −2G/(n−1)·β·(l_i − mean l), not 0
    one rewarded completion, none   exactly 0
    a missing reward                exactly 0; outside mean and n; reward and log-ratio may be NaN there
    ==============================  ==================================================================

    Args:
      rewards: (B, G).
      log_ratio: (B, G) nats, Σ_t (log π − log π_ref) under the policy that is updated. A constant here.
      beta: β >= 0, per nat.
      rewarded: (B, G) bool, false where the grader failed; None means all true.

    Returns:
      (B, G) in units of reward, without gradient.

    Raises:
      ValueError: rank other than 2, shapes that differ, beta negative or not finite.

    Example:
      >>> copg_advantages(jnp.array([[1.0, 0.0, 0.5]]), jnp.zeros((1, 3))).tolist()
      [[1.5, -1.5, 0.0]]
    """
    rewards, log_ratio, rewarded = _checked(rewards, log_ratio, beta, rewarded)
    regularised = jnp.where(rewarded, rewards - beta * log_ratio, 0)
    count_Bx1 = jnp.sum(rewarded, axis=1, keepdims=True, dtype=rewards.dtype)
    mean_Bx1 = jnp.sum(regularised, axis=1, keepdims=True) / jnp.maximum(count_Bx1, 1)
    scale_Bx1 = 2 * rewards.shape[1] / jnp.maximum(count_Bx1 - 1, 1)
    advantages = jnp.where(rewarded & (count_Bx1 > 1), scale_Bx1 * (regularised - mean_Bx1), 0)
    return jax.lax.stop_gradient(advantages)


def _checked(
    rewards: ArrayLike, log_ratio: ArrayLike, beta: float, rewarded: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Floats in float32 or wider, 0 where the reward is missing."""
    rewards, log_ratio = jnp.asarray(rewards), jnp.asarray(log_ratio)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have shape (B, G), got {rewards.shape}")
    if log_ratio.shape != rewards.shape:
        raise ValueError(f"log_ratio must have the shape of rewards {rewards.shape}, got {log_ratio.shape}")
    rewarded = jnp.ones(rewards.shape, bool) if rewarded is None else jnp.asarray(rewarded).astype(bool)
    if rewarded.shape != rewards.shape:
        raise ValueError(f"rewarded must have the shape of rewards {rewards.shape}, got {rewarded.shape}")
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta = {beta!r} is not allowed; allowed: finite numbers >= 0")
    dtype = jnp.promote_types(jnp.result_type(rewards, log_ratio), jnp.float32)
    # Garbage is replaced before any arithmetic: a `where` after it would let NaN into the gradient.
    rewards, log_ratio = (jnp.where(rewarded, x.astype(dtype), 0) for x in (rewards, log_ratio))
    return jax.lax.stop_gradient(rewards), log_ratio, rewarded
