"""BNPO: deviations from the pass rate, normalised by a Beta density fitted to the pass rates of the batch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, xlog1py, xlogy
from jax.typing import ArrayLike

Array = jax.Array

LARGEST_WEIGHT = 1e6  # of the release; reached only where the density vanishes, at p = 0 and p = 1


class BetaParameters(NamedTuple):
    """Two Beta distributions, all scalars.

    Attributes:
      a, b: fitted to the pass rates by their moments; negative where these spread more than any Beta does.
      alpha, beta: of the normalising density, at least 1.
    """

    a: Array
    b: Array
    alpha: Array
    beta: Array


def beta_parameters(p: ArrayLike, counted: ArrayLike | None = None) -> BetaParameters:
    """Method of moments over the pass rates of a batch of prompts (BNPO, arXiv 2506.02864, and its release).

    With mu and var the mean and the unbiased variance of p over the counted prompts::

        k = mu(1 − mu)/var − 1       a = k·mu                    b = k(1 − mu)
                                     alpha = max(1, 1 + a/3)     beta = max(1, 1 + b/3)

    =====================================  ==============================================================
    one counted prompt, or none            mu = 0 and var = 1, as in the release: alpha = beta = 1
    all pass rates equal (to rounding)     a = b = 0: alpha = beta = 1 (the release gives NaN or stops). The
                                           formula tends elsewhere: weights shrink to 0 with var
    var > mu(1 − mu)                       k < 0: alpha = beta = 1
    =====================================  ==============================================================

    Args:
      p: (B,) pass rates in [0, 1].
      counted: (B,) bool, prompts that take part; None means all. p may be NaN elsewhere.

    Returns:
      ``BetaParameters``.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> [float(x) for x in beta_parameters(jnp.array([0.5, 0.25, 0.75]))]
      [1.5, 1.5, 1.5, 1.5]
    """
    p_B = jnp.asarray(p)
    if p_B.ndim != 1:
        raise ValueError(f"p must have shape (B,), got {p_B.shape}")
    p_B = p_B.astype(jnp.promote_types(p_B.dtype, jnp.float32))
    counted_B = jnp.ones(p_B.shape, bool) if counted is None else jnp.asarray(counted).astype(bool)
    if counted_B.shape != p_B.shape:
        raise ValueError(f"counted must have the shape of p {p_B.shape}, got {counted_B.shape}")
    p_B = jnp.where(counted_B, p_B, 0)
    count = jnp.sum(counted_B, dtype=p_B.dtype)
    several = count > 1
    mean = jnp.sum(p_B) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(counted_B, p_B - mean, 0) ** 2)
    mu = jnp.where(several, mean, 0)
    highest = jnp.max(p_B, initial=-jnp.inf, where=counted_B)
    lowest = jnp.min(p_B, initial=jnp.inf, where=counted_B)
    # Pass rates that differ by rounding alone would give a k of 1e14.
    equal = several & (highest - lowest <= 8 * jnp.finfo(p_B.dtype).eps)
    variance = jnp.where(several & ~equal, squares / jnp.maximum(count - 1, 1), 1)
    k = jnp.where(equal, 0, mu * (1 - mu) / variance - 1)
    a, b = k * mu, k * (1 - mu)
    return BetaParameters(a, b, jnp.maximum(1 + a / 3, 1), jnp.maximum(1 + b / 3, 1))


def beta_weights(p: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Array:
    """min(1 / BetaPDF(p; alpha, beta), 1e6), what BNPO multiplies the deviations with.

    Args:
      p: any shape, in [0, 1]; NaN comes out for other numbers.
      alpha: scalar, at least 1. beta: scalar, at least 1.

    Returns:
      Weights of p's shape; 1 where alpha = beta = 1.

    Example:
      >>> [round(x, 4) for x in jax.jit(beta_weights)(jnp.array([0.5, 0.0]), 1.5, 1.5).tolist()]
      [0.7854, 1000000.0]
    """
    p = jnp.asarray(p)
    p = p.astype(jnp.promote_types(p.dtype, jnp.float32))
    alpha, beta = jnp.asarray(alpha, p.dtype), jnp.asarray(beta, p.dtype)
    # betaln(1, 1) is 0, but for 1e-6 in float32: a flat density must give r − mean exactly.
    log_normalizer = jnp.where((alpha == 1) & (beta == 1), 0, betaln(alpha, beta))
    log_density = xlogy(alpha - 1, p) + xlog1py(beta - 1, -p) - log_normalizer
    weights = jnp.minimum(jnp.exp(jnp.minimum(-log_density, 20.0)), LARGEST_WEIGHT)
    return jnp.where((p >= 0) & (p <= 1), weights, jnp.nan)


def bnpo_advantages(
    rewards: ArrayLike,
    rewarded: ArrayLike | None = None,
    *,
    lowest: float = 0.0,
    highest: float = 1.0,
    singleton: str = "zero",
) -> Array:
    """BNPO (arXiv 2506.02864): A = (r − p)·min(1/BetaPDF(p; alpha, beta), 1e6), p the mean reward of the group.

    alpha and beta are those of ``beta_parameters`` over the whole batch. alpha = beta = 1 is r − mean;
    alpha = beta = 3/2 is π/8 times GRPO with the population std.

    ==========================================  ==========================================================
    a group whose rewarded entries are equal    exactly 0; its p enters mu and var
    one rewarded entry                          exactly 0, and p outside mu and var; with singleton =
                                                'reward' the release's p = 0, inside, and A = r·weight
    none rewarded                               exactly 0, and p outside mu and var
    a missing reward                            exactly 0, outside p
    p outside [0, 1]                            NaN: set lowest and highest (the release asserts)
    ==========================================  ==========================================================

    Args:
      rewards: (B, G), all groups of the batch: the density is the batch's.
      rewarded: (B, G) bool; None means all true.
      lowest: least possible reward, which counts as 0.
      highest: greatest possible reward, which counts as 1.
      singleton: 'zero' or 'reward'.

    Returns:
      (B, G) advantages, in units of highest − lowest.

    Raises:
      ValueError: an option or a shape that is not allowed.

    Example:
      >>> rewards = jnp.array([[1., 1., 0., 0.], [1., 0., 0., 0.], [1., 1., 1., 0.]])
      >>> [round(x, 4) for x in jax.jit(bnpo_advantages)(rewards)[0].tolist()]  # ±π/8
      [0.3927, 0.3927, -0.3927, -0.3927]
    """
    if singleton not in ("zero", "reward"):
        raise ValueError(f"singleton = {singleton!r} is unknown; allowed: zero, reward")
    if not lowest < highest:
        raise ValueError(f"lowest = {lowest!r} is not allowed; allowed: numbers < highest = {highest!r}")
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have shape (B, G), got {rewards.shape}")
    rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
    rewarded = jnp.ones(rewards.shape, bool) if rewarded is None else jnp.asarray(rewarded).astype(bool)
    if rewarded.shape != rewards.shape:
        raise ValueError(f"rewarded must have the shape of rewards {rewards.shape}, got {rewarded.shape}")
    scores = jnp.where(rewarded, (rewards - lowest) / (highest - lowest), 0)
    count_B = jnp.sum(rewarded, axis=1, dtype=scores.dtype)
    p_B = jnp.sum(scores, axis=1) / jnp.maximum(count_B, 1)
    equal_B = jnp.max(scores, axis=1, initial=-jnp.inf, where=rewarded) == jnp.min(
        scores, axis=1, initial=jnp.inf, where=rewarded
    )
    if singleton == "reward":
        p_B, counted_B, zero_B = jnp.where(count_B > 1, p_B, 0), count_B > 0, equal_B & (count_B > 1)
    else:
        counted_B, zero_B = count_B > 1, equal_B | (count_B <= 1)
    parameters = beta_parameters(p_B, counted_B)
    weights_B = beta_weights(jnp.where(counted_B, p_B, 0.5), parameters.alpha, parameters.beta)
    advantages = (scores - p_B[:, None]) * weights_B[:, None]
    inside_B = jnp.all(~rewarded | ((scores >= 0) & (scores <= 1)), axis=1)  # also false of NaN
    advantages = jnp.where(inside_B[:, None], advantages, jnp.nan)
    return jnp.where(rewarded & ~(zero_B & inside_B)[:, None], advantages, 0)


def bnpo_components(
    rewards: ArrayLike,
    rewarded: ArrayLike | None = None,
    *,
    lowest: float = 0.0,
    highest: float = 1.0,
    singleton: str = "zero",
) -> Array:
    """BNPO's advantage decomposition: the mean over K reward components of each component's own advantages.

    Args:
      rewards: (K, B, G), K >= 1.
      rewarded: (B, G) bool, of all components; None means all true.
      lowest: as in ``bnpo_advantages``, as all that follow.
      highest: greatest possible reward of a component.
      singleton: 'zero' or 'reward'.

    Returns:
      (B, G) advantages.

    Raises:
      ValueError: an option or a shape that is not allowed.

    Example:
      >>> correct, tidy = [[1., 0.]], [[1., 1.]]
      >>> jax.jit(bnpo_components)(jnp.array([correct, tidy])).tolist()
      [[0.25, -0.25]]
    """
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 3 or not rewards.shape[0]:
        raise ValueError(f"rewards must have shape (K, B, G) with K >= 1, got {rewards.shape}")
    rewarded = jnp.ones(rewards.shape[1:], bool) if rewarded is None else jnp.asarray(rewarded).astype(bool)

    def one(component: Array) -> Array:
        return bnpo_advantages(component, rewarded, lowest=lowest, highest=highest, singleton=singleton)

    return jnp.mean(jax.vmap(one)(rewards), axis=0)
