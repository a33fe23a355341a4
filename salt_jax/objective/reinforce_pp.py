"""REINFORCE++: advantages of tokens, discounted returns whitened over all tokens of the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.advantages import group_advantages

Array = jax.Array

VARIANCES = ("unbiased", "biased")


def check_whitening_options(gamma: float, variance: str, eps: float) -> None:
    """Raises a one-line ValueError that names the option and what it allows.

    Example:
      >>> check_whitening_options(1.0, "sample", 1e-8)
      Traceback (most recent call last):
      ValueError: variance = 'sample' is unknown; allowed: unbiased, biased
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma = {gamma!r} is not allowed; allowed: numbers from 0 to 1")
    if variance not in VARIANCES:
        raise ValueError(f"variance = {variance!r} is unknown; allowed: {', '.join(VARIANCES)}")
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps = {eps!r} is not allowed; allowed: finite numbers > 0")


def token_returns(
    final_rewards: ArrayLike, mask: ArrayLike, token_rewards: ArrayLike | None = None, gamma: float = 1.0
) -> Array:
    """Discounted return of every token: R_t = Σ_{s >= t} gamma^(s − t)·rho_s, rho_s = token reward + r at the last one.

    s and t count unmasked tokens only: a gap in the mask (the words of a tool) neither discounts nor ends a rollout.

    Args:
      final_rewards: (N,), given at the last unmasked token.
      mask: (N, T) bool.
      token_rewards: (N, T), in units of reward, such as −coef·k1; None for 0. Anything may stand at masked places.
      gamma: discount a token, from 0 to 1.

    Returns:
      (N, T) returns, 0 at masked places.

    Raises:
      ValueError: gamma outside 0 … 1, or shapes that do not fit.

    Example:
      >>> token_returns(jnp.array([1.0]), jnp.array([[1, 1, 0]]), gamma=0.5).tolist()
      [[0.5, 1.0, 0.0]]
    """
    check_whitening_options(gamma, "unbiased", 1e-8)
    rewards_N, mask_NxT = _check(final_rewards, mask, "final_rewards")
    last_NxT = mask_NxT & (jnp.cumsum(mask_NxT[:, ::-1], axis=1)[:, ::-1] == 1)
    rho_NxT = jnp.where(last_NxT, rewards_N[:, None], 0)
    if token_rewards is not None:
        token_rewards = jnp.asarray(token_rewards)
        if token_rewards.shape != mask_NxT.shape:
            raise ValueError(f"token_rewards must have the shape of mask {mask_NxT.shape}, got {token_rewards.shape}")
        rho_NxT = rho_NxT.astype(jnp.promote_types(rho_NxT.dtype, token_rewards.dtype))
        rho_NxT += jnp.where(mask_NxT, token_rewards, 0)
    # R_t = rho_t + gamma·R_next, as a composition of affine maps from the right: log T steps instead of T.
    factor_NxT = jnp.where(mask_NxT, jnp.asarray(gamma, rho_NxT.dtype), 1)

    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    _, returns = jax.lax.associative_scan(compose, (factor_NxT, rho_NxT), reverse=True, axis=1)
    return jnp.where(mask_NxT, returns, 0)


def whiten(values: ArrayLike, mask: ArrayLike, variance: str = "unbiased", eps: float = 1e-8) -> Array:
    """(x − mean)/std over all unmasked entries of the whole array.

    With n unmasked entries and V = Σ(x − mean)²::

        unbiased    (x − mean) / sqrt(V/(n − 1) + eps)         verl
        biased      (x − mean) / sqrt(max(V/n, eps))           OpenRLHF

    ==================================  ==================================================================
    masked                              0, outside the statistics; may be NaN
    all unmasked values equal           exactly 0 (max == min)
    one unmasked value, or none         exactly 0 (verl stops)
    ==================================  ==================================================================

    Args:
      values: (N, T). mask: (N, T) bool.
      variance: 'unbiased' or 'biased'.
      eps: in squared units of the values.

    Returns:
      (N, T), dimensionless.

    Raises:
      ValueError: an option that is not allowed, or shapes that differ.

    Example:
      >>> whiten(jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[1, 1, 0]]), "biased").tolist()
      [[-1.0, 1.0, 0.0]]
    """
    check_whitening_options(1.0, variance, eps)
    values, mask = jnp.asarray(values), jnp.asarray(mask).astype(bool)
    if values.shape != mask.shape:
        raise ValueError(f"values must have the shape of mask {mask.shape}, got {values.shape}")
    values = jnp.where(mask, values, 0).astype(jnp.promote_types(values.dtype, jnp.float32))
    count = jnp.sum(mask, dtype=values.dtype)
    deviation = jnp.where(mask, values - jnp.sum(values) / jnp.maximum(count, 1), 0)
    # A second pass takes out what is left of the mean's rounding over many tokens.
    deviation = jnp.where(mask, deviation - jnp.sum(deviation) / jnp.maximum(count, 1), 0)
    total = jnp.sum(deviation**2)
    if variance == "unbiased":
        squared = total / jnp.maximum(count - 1, 1) + eps
    else:
        squared = jnp.maximum(total / jnp.maximum(count, 1), eps)
    highest = jnp.max(values, initial=-jnp.inf, where=mask)
    lowest = jnp.min(values, initial=jnp.inf, where=mask)
    return jnp.where((count <= 1) | (highest == lowest), 0, deviation * jax.lax.rsqrt(squared))


def reinforce_pp_advantages(
    rewards: ArrayLike,
    mask: ArrayLike,
    *,
    rewarded: ArrayLike | None = None,
    token_rewards: ArrayLike | None = None,
    gamma: float = 1.0,
    variance: str = "unbiased",
    eps: float = 1e-8,
) -> Array:
    """REINFORCE++ (arXiv 2501.03262, as verl and OpenRLHF release it): ``whiten(token_returns(rewards))``.

    No groups: the baseline is the mean over every token of the batch. KL to the reference goes into the reward,
    token by token: pass −coef·(log p − log p_ref) as ``token_rewards`` (OpenRLHF: coef 0.01, and rewards clipped to
    ±10 before).

    ==========================================  ==========================================================
    a group of equal rewards, or of one         as any other rollouts: groups do not exist here
    all returns equal                           exactly 0
    a missing reward (``rewarded`` false)       0 at its tokens, which are outside mean and std; may be NaN
    an empty completion, or all of them         0; one token or none in all is 0 too
    a NaN among the rewarded                    NaN everywhere: not hidden
    ==========================================  ==========================================================

    Args:
      rewards: (N,). mask: (N, T) bool.
      rewarded: (N,) bool, false where the grader failed; None means all true.
      token_rewards: (N, T), added token by token, in units of reward; None for 0.
      gamma: discount a token.
      variance: 'unbiased' (verl) or 'biased' (OpenRLHF).
      eps: see ``whiten``.

    Returns:
      (N, T) advantages, dimensionless, without gradient; 0 at masked places.

    Raises:
      ValueError: an option that is not allowed, or shapes that do not fit.

    Example:
      >>> mask = jnp.array([[1, 1], [1, 0]])
      >>> a = reinforce_pp_advantages(jnp.array([1.0, 0.0]), mask, variance="biased")
      >>> [[round(x, 4) for x in row] for row in a.tolist()]
      [[0.7071, 0.7071], [-1.4142, 0.0]]
    """
    check_whitening_options(gamma, variance, eps)
    rewards_N, mask_NxT = _check(rewards, mask, "rewards")
    if rewarded is not None:
        rewarded_N = jnp.asarray(rewarded).astype(bool)
        if rewarded_N.shape != rewards_N.shape:
            raise ValueError(f"rewarded must have the shape of rewards {rewards_N.shape}, got {rewarded_N.shape}")
        rewards_N, mask_NxT = jnp.where(rewarded_N, rewards_N, 0), mask_NxT & rewarded_N[:, None]
    returns = token_returns(rewards_N, mask_NxT, token_rewards, gamma)
    return jax.lax.stop_gradient(whiten(returns, mask_NxT, variance, eps))


def reinforce_pp_baseline(
    rewards: ArrayLike,
    mask: ArrayLike,
    *,
    group_size: int,
    rewarded: ArrayLike | None = None,
    token_rewards: ArrayLike | None = None,
    gamma: float = 1.0,
    variance: str = "unbiased",
    eps: float = 1e-8,
) -> Array:
    """REINFORCE++-baseline: r minus its group's mean, then as ``reinforce_pp_advantages``.

    The releases broadcast r − mean over the tokens, which is gamma = 1 here.

    ==========================================  ==========================================================
    a group of equal rewards, or of one         r − mean is exactly 0; whitening then moves it by the mean
                                                over all tokens, which is 0 only for completions of equal
                                                length
    a missing reward                            outside its group's mean, else as above
    ==========================================  ==========================================================

    Args:
      rewards: (N,) with N = B·group_size, groups contiguous. mask: (N, T) bool.
      group_size: rollouts of a prompt.
      rewarded: as in ``reinforce_pp_advantages``, as all that follow.
      token_rewards: (N, T) or None.
      gamma: discount a token.
      variance: 'unbiased' or 'biased'.
      eps: see ``whiten``.

    Returns:
      (N, T) advantages, dimensionless, without gradient; 0 at masked places.

    Raises:
      ValueError: an option that is not allowed, or shapes that do not fit.

    Example:
      >>> rewards = jnp.array([1.0, 0.0, 1.0, 1.0])
      >>> a = reinforce_pp_baseline(rewards, jnp.ones((4, 1)), group_size=2, variance="biased")
      >>> [round(x, 4) for x in a[:, 0].tolist()]
      [1.4142, -1.4142, 0.0, 0.0]
    """
    rewards_N, mask_NxT = _check(rewards, mask, "rewards")
    n = rewards_N.shape[0]
    if group_size < 1 or n % group_size:
        raise ValueError(f"{n} rewards do not divide into groups of group_size = {group_size}")
    if rewarded is not None and jnp.shape(rewarded) != rewards_N.shape:
        raise ValueError(f"rewarded must have the shape of rewards {rewards_N.shape}, got {jnp.shape(rewarded)}")
    groups = (n // group_size, group_size)
    centred = group_advantages(
        rewards_N.reshape(groups),
        estimator="dr_grpo",
        rewarded=None if rewarded is None else jnp.reshape(rewarded, groups),
    ).reshape(-1)
    return reinforce_pp_advantages(
        centred, mask_NxT, rewarded=rewarded, token_rewards=token_rewards, gamma=gamma, variance=variance, eps=eps
    )


def _check(rewards: ArrayLike, mask: ArrayLike, name: str) -> tuple[Array, Array]:
    rewards_N, mask_NxT = jnp.asarray(rewards), jnp.asarray(mask).astype(bool)
    if mask_NxT.ndim != 2:
        raise ValueError(f"mask must have shape (N, T), got {mask_NxT.shape}")
    if rewards_N.shape != mask_NxT.shape[:1]:
        raise ValueError(f"{name} must have shape (N,) = {mask_NxT.shape[:1]}, got {rewards_N.shape}")
    return rewards_N.astype(jnp.promote_types(rewards_N.dtype, jnp.float32)), mask_NxT
