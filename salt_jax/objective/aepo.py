"""AEPO, later named SCOPE-RL: entropy held at a target by rollouts drawn at another temperature (arXiv 2510.08141).

Correct completions drawn hot raise the entropy of a policy that imitates them, cold ones lower it. Where the entropy is
at or below its target, some prompts are sampled again hot, else cold; the correct completions found, with advantage 1,
take the place of the first rows of the batch, and one ordinary clipped step follows. (Another method of this name,
arXiv 2510.14545, is not this one.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array


def entropy_estimate(log_probs: ArrayLike, mask: ArrayLike) -> Array:
    """−mean of log p over the sampled tokens, in nats: unbiased for the mean entropy where the policy drew them.

    The release takes it from the update before, and 0 at the first one. Everything masked: 0.

    Args:
      log_probs: (N, T) log-probabilities of the sampled tokens at temperature 1, nats.
      mask: (N, T) bool, true on completion tokens; masked places may hold anything.

    Returns:
      Scalar, without gradient.

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> float(entropy_estimate(jnp.array([[-1.0, -2.0], [-3.0, 0.0]]), jnp.array([[1, 1], [1, 0]])))
      2.0
    """
    log_probs, mask = jnp.asarray(log_probs), jnp.asarray(mask).astype(bool)
    if log_probs.shape != mask.shape:
        raise ValueError(f"mask must have the shape of log_probs {log_probs.shape}, got {mask.shape}")
    dtype = jnp.promote_types(log_probs.dtype, jnp.float32)
    total = jnp.sum(jnp.where(mask, log_probs.astype(dtype), 0))
    return jax.lax.stop_gradient(-total / jnp.maximum(jnp.sum(mask), 1))


def temperature_for(entropy: ArrayLike, target: float, high: float = 1.2, low: float = 0.8) -> Array:
    """The temperature of the extra rollouts: `high` where entropy <= target, else `low`.

    Equality counts as too little entropy, as in the release.

    Args:
      entropy: scalar, nats.
      target: nats; 0.5 in the release's script, 0.75 is the paper's best.
      high: > 0, above 1 to raise the entropy.
      low: > 0, below 1 to lower it.

    Returns:
      Scalar.

    Raises:
      ValueError: a temperature that is not finite and > 0.

    Example:
      >>> [round(float(temperature_for(h, 0.5)), 1) for h in (0.4, 0.5, 0.6)]
      [1.2, 1.2, 0.8]
    """
    for name, value in (("high", high), ("low", low)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} = {value!r} is not allowed; allowed: finite numbers > 0")
    entropy = _float(entropy)
    return jnp.where(entropy <= target, jnp.asarray(high, entropy.dtype), jnp.asarray(low, entropy.dtype))


def injection(
    pool_advantages: ArrayLike, entropy: ArrayLike, target: float, max_inject: int = 60, threshold: float = 0.05
) -> tuple[Array, Array]:
    """Which rows of the pool, the rollouts at the other temperature, are taken into the batch, and how many::

        positive = advantage > threshold            n = min(max_inject, number of positive rows)
        entropy <= target: n rows                   else: n // 2 rows

    ===========================================  ===================================================
    no positive row (no signal, all missing)     0: the step is plain GRPO's (the release stops)
    a missing reward                             its advantage is 0 or NaN: not positive
    more positive rows than max_inject           the first ones of the pool
    ===========================================  ===================================================

    Args:
      pool_advantages: (M,) group-relative advantages of the pool.
      entropy: scalar, nats.
      target: nats.
      max_inject: at most so many rows, >= 0; 60 of a batch of 2,560 in the release.
      threshold: advantage above which a row is positive.

    Returns:
      order: (M,) int32 rows of the pool, positive ones first, each kind in the order of the pool. count: scalar int32;
      ``order[:count]`` are taken.

    Raises:
      ValueError: rank other than 1, max_inject negative.

    Example:
      >>> order, count = injection(jnp.array([1.2, -0.3, 0.04, 0.06, 0.9]), 0.4, 0.5, max_inject=2)
      >>> order.tolist(), int(count)
      ([0, 3, 4, 1, 2], 2)
    """
    advantages = jnp.asarray(pool_advantages)
    if advantages.ndim != 1:
        raise ValueError(f"pool_advantages must have shape (M,), got {advantages.shape}")
    if max_inject < 0:
        raise ValueError(f"max_inject = {max_inject!r} is not allowed; allowed: integers >= 0")
    positive = advantages > threshold
    order = jnp.argsort(~positive, stable=True).astype(jnp.int32)
    count = jnp.minimum(jnp.sum(positive, dtype=jnp.int32), max_inject)
    return order, jnp.where(_float(entropy) <= target, count, count // 2)


def inject(advantages: ArrayLike, count: ArrayLike) -> Array:
    """Advantages of the batch after its first `count` rows were replaced by injected ones: theirs are 1.

    Args:
      advantages: (N,). count: scalar integer, may be traced; 0 changes nothing, above N all rows are injected.

    Returns:
      (N,).

    Raises:
      ValueError: rank other than 1.

    Example:
      >>> inject(jnp.array([0.75, -0.75, 0.5]), 2).tolist()
      [1.0, 1.0, 0.5]
    """
    advantages = _float(advantages)
    if advantages.ndim != 1:
        raise ValueError(f"advantages must have shape (N,), got {advantages.shape}")
    return jnp.where(jnp.arange(advantages.shape[0]) < count, 1, advantages)


def aepo_paper_loss(
    grpo_loss: ArrayLike,
    rewards: ArrayLike,
    sequence_log_probs: ArrayLike,
    alpha: float,
    rewarded: ArrayLike | None = None,
) -> Array:
    """The paper's form: L_GRPO − α · mean_i R_i log π(o_i), o_i drawn at the other temperature.

    arXiv 2510.08141's README formula; REINFORCE at temperature 1 on completions of temperature T, without a
    correction. The paper's α was not found: the release has none, its strength is the share of injected rows.
    No completion with a reward: L_GRPO alone.

    Args:
      grpo_loss: scalar.
      rewards: (M,) of the completions at the other temperature.
      sequence_log_probs: (M,) nats, log π(o) summed over tokens, at temperature 1; with gradient.
      alpha: α.
      rewarded: (M,) bool, false where the grader failed: outside the mean; None means all true.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> print(f"{float(aepo_paper_loss(0.3, jnp.array([1.0, 0.0]), jnp.array([-2.0, -3.0]), 0.1)):.2f}")
      0.40
    """
    rewards, sequence_log_probs = _float(rewards), _float(sequence_log_probs)
    rewarded = jnp.ones(rewards.shape, bool) if rewarded is None else jnp.asarray(rewarded).astype(bool)
    for name, array in (("sequence_log_probs", sequence_log_probs), ("rewarded", rewarded)):
        if array.shape != rewards.shape:
            raise ValueError(f"{name} must have the shape of rewards {rewards.shape}, got {array.shape}")
    # Garbage is replaced before any arithmetic: a `where` after it would let NaN into the gradient.
    gain = jax.lax.stop_gradient(jnp.where(rewarded, rewards, 0)) * jnp.where(rewarded, sequence_log_probs, 0)
    return _float(grpo_loss) - alpha * jnp.sum(gain) / jnp.maximum(jnp.sum(rewarded), 1)


def _float(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
