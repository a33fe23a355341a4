"""Group-relative advantages: a rollout is compared with the other rollouts of its own prompt."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array


def _grpo(deviation_BxG: Array, count_Bx1: Array, ddof: int, eps: float) -> Array:
    """(r − mean) / (std + eps), DeepSeekMath (arXiv 2402.03300) eq. 3 with the std of verl and TRL."""
    variance_Bx1 = jnp.sum(deviation_BxG**2, axis=1, keepdims=True) / jnp.maximum(count_Bx1 - ddof, 1)
    scale_Bx1 = jnp.sqrt(variance_Bx1) + eps
    # eps = 0 in a degenerate group would be 0/0; the result is overwritten by 0, but jax_debug_nans sees it.
    return deviation_BxG / jnp.where(scale_Bx1 > 0, scale_Bx1, 1)


def _dr_grpo(deviation_BxG: Array, count_Bx1: Array, ddof: int, eps: float) -> Array:
    """r − mean, "Understanding R1-Zero-like training" (arXiv 2503.20783)."""
    return deviation_BxG


def _rloo(deviation_BxG: Array, count_Bx1: Array, ddof: int, eps: float) -> Array:
    """r_i − mean of the others = n/(n−1)·(r_i − mean), arXiv 2402.14740."""
    return deviation_BxG * count_Bx1 / jnp.maximum(count_Bx1 - 1, 1)


# Each takes deviations from the group mean (0 where the reward is missing), the number of rewarded rollouts
# of each group, ddof and eps.
ESTIMATORS: dict[str, Callable[[Array, Array, int, float], Array]] = {
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
    "rloo": _rloo,
}


def check_advantage_options(estimator: str, ddof: int, eps: float) -> None:
    """Raises a one-line ValueError that names the option and what it allows.

    Example:
      >>> check_advantage_options("grpo", ddof=1, eps=1e-6)
      >>> check_advantage_options("ppo", ddof=1, eps=1e-6)
      Traceback (most recent call last):
      ValueError: estimator = 'ppo' is unknown; allowed: grpo, dr_grpo, rloo
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator = {estimator!r} is unknown; allowed: {', '.join(ESTIMATORS)}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof = {ddof!r} is not allowed; allowed: 0 (population std), 1 (sample std)")
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps = {eps!r} is not allowed; allowed: finite numbers >= 0")


def group_advantages(
    rewards: ArrayLike,
    *,
    estimator: str = "grpo",
    ddof: int = 1,
    eps: float = 1e-6,
    rewarded: ArrayLike | None = None,
) -> Array:
    """Advantages of B groups of G rollouts.

    With n, mean and std over the rewarded entries of a group::

        grpo      (r − mean) / (std_ddof + eps)      arXiv 2402.03300, eq. 3; sample std as in verl and TRL
        dr_grpo    r − mean                          arXiv 2503.20783
        rloo       r − mean of the other rewards     arXiv 2402.14740

    =============================================  =====================================================
    a group whose rewarded entries are all equal    exactly 0 (max == min, not std == 0: in float32 ten
                                                    rewards of 0.1 have a std of 1e-8, which over eps
                                                    becomes an advantage of −0.007)
    one rewarded entry, or none                     exactly 0 (verl gives r for G = 1)
    a missing reward (``rewarded`` false)           exactly 0; outside mean, std and n; may be NaN
    a NaN among the rewarded entries                NaN for its group: not hidden
    =============================================  =====================================================

    Args:
      rewards: (B, G), any real dtype; computed in float32 or wider.
      estimator: key of ``ESTIMATORS``.
      ddof: 1 divides the variance by n − 1, 0 by n. Used by ``grpo`` only.
      eps: added to the standard deviation, in units of reward. Used by ``grpo`` only.
      rewarded: (B, G) bool, false where the grader failed; None means all true.

    Returns:
      (B, G) advantages, dimensionless for ``grpo``, in units of reward otherwise.

    Raises:
      ValueError: unknown estimator, rank other than 2, shapes that differ, ddof not 0 or 1, eps < 0.

    Example:
      >>> import jax.numpy as jnp
      >>> group_advantages(jnp.array([[1., 0., 0., 1.], [1., 1., 1., 1.]]), estimator="dr_grpo").tolist()
      [[0.5, -0.5, -0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]
    """
    check_advantage_options(estimator, ddof, eps)
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have shape (B, G), got {rewards.shape}")
    rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
    rewarded = jnp.ones(rewards.shape, bool) if rewarded is None else jnp.asarray(rewarded).astype(bool)
    if rewarded.shape != rewards.shape:
        raise ValueError(f"rewarded must have the shape of rewards {rewards.shape}, got {rewarded.shape}")

    count_Bx1 = jnp.sum(rewarded, axis=1, keepdims=True, dtype=rewards.dtype)
    total_Bx1 = jnp.sum(jnp.where(rewarded, rewards, 0), axis=1, keepdims=True)
    deviation = jnp.where(rewarded, rewards - total_Bx1 / jnp.maximum(count_Bx1, 1), 0)
    highest = jnp.max(rewards, axis=1, keepdims=True, initial=-jnp.inf, where=rewarded)
    lowest = jnp.min(rewards, axis=1, keepdims=True, initial=jnp.inf, where=rewarded)
    degenerate_Bx1 = (count_Bx1 <= 1) | (highest == lowest)
    advantages = ESTIMATORS[estimator](deviation, count_Bx1, ddof, eps)
    return jnp.where(degenerate_Bx1 | ~rewarded, 0, advantages)
