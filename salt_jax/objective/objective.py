"""One configuration of the objective, and the two calls that a trainer makes with it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.advantages import check_advantage_options, group_advantages
from salt_jax.objective.losses import LossMetrics, check_loss_options, policy_loss

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Everything that defines the objective; hashable, so it may be a static argument of jit.

    Attributes:
      estimator: advantage estimator: 'grpo', 'dr_grpo', 'rloo'.
      ddof: 1 for the sample std, 0 for the population std ('grpo' only).
      eps: added to the std, in units of reward ('grpo' only).
      clip_low: lower clip of the ratio, below 1.
      clip_high: upper clip of the ratio, above 1.
      aggregation: 'token_mean', 'seq_mean_token_mean', 'seq_mean_token_sum', 'dr_grpo'.
      max_length: completion limit in tokens; needed by aggregation 'dr_grpo'.
      kl_estimator: 'k2' or 'k3'.
      kl_coef: weight of KL to the reference, per nat.
      entropy_coef: weight of the entropy bonus, per nat.

    Raises:
      ValueError: one line, naming the field and its allowed values.

    Example:
      >>> ObjectiveConfig(clip_high=0.28).aggregation
      'token_mean'
      >>> ObjectiveConfig(aggregation="mean")
      Traceback (most recent call last):
      ValueError: aggregation = 'mean' is unknown; allowed: token_mean, seq_mean_token_mean, ...
    """

    estimator: str = "grpo"
    ddof: int = 1
    eps: float = 1e-6
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: str = "token_mean"
    max_length: int | None = None
    kl_estimator: str = "k3"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check_advantage_options(self.estimator, self.ddof, self.eps)
        check_loss_options(
            self.clip_low,
            self.clip_high,
            self.aggregation,
            self.max_length,
            self.kl_estimator,
            self.kl_coef,
            self.entropy_coef,
        )


def advantages(
    rewards: ArrayLike, group_size: int, config: ObjectiveConfig, rewarded: ArrayLike | None = None
) -> Array:
    """``group_advantages`` for a flat batch whose groups are contiguous.

    Args:
      rewards: (N,) with N = B·G; rollout i belongs to prompt i // G.
      group_size: G, rollouts per prompt.
      config: estimator, ddof and eps are used.
      rewarded: (N,) bool, false where the grader failed.

    Returns:
      (N,) advantages.

    Raises:
      ValueError: rank other than 1, or N not a multiple of G.

    Example:
      >>> advantages(jnp.array([1., 0., 2., 2.]), 2, ObjectiveConfig(estimator="rloo")).tolist()
      [1.0, -1.0, 0.0, 0.0]
    """
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 1:
        raise ValueError(f"rewards must have shape (N,), got {rewards.shape}")
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f"{rewards.shape[0]} rewards do not divide into groups of group_size = {group_size}")
    groups = (rewards.shape[0] // group_size, group_size)
    return group_advantages(
        rewards.reshape(groups),
        estimator=config.estimator,
        ddof=config.ddof,
        eps=config.eps,
        rewarded=None if rewarded is None else jnp.reshape(rewarded, groups),
    ).reshape(-1)


def loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    config: ObjectiveConfig,
    ref_log_probs: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
    valid: ArrayLike | None = None,
) -> tuple[Array, Array, LossMetrics]:
    """``policy_loss`` with the options of a configuration.

    Args:
      log_probs: (N, T), nats. old_log_probs: (N, T), nats. advantages: (N,) or (N, T). mask: (N, T) bool.
      config: clip, aggregation, KL and entropy options are used.
      ref_log_probs: (N, T), nats; needed when config.kl_coef > 0.
      entropy: (N, T), nats; needed when config.entropy_coef ≠ 0.
      valid: (N,) bool, false for rows that only pad the batch.

    Returns:
      (sum, denominator, metrics), see ``policy_loss``.

    Raises:
      ValueError: a missing array, or shapes that do not fit.

    Example:
      >>> zeros = jnp.zeros((2, 3))
      >>> total, denominator, _ = loss(zeros, zeros, jnp.array([1., -2.]), zeros == 0, ObjectiveConfig())
      >>> float(total), float(denominator)
      (3.0, 6.0)
    """
    return policy_loss(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        aggregation=config.aggregation,
        max_length=config.max_length,
        ref_log_probs=ref_log_probs,
        kl_estimator=config.kl_estimator,
        kl_coef=config.kl_coef,
        entropy=entropy,
        entropy_coef=config.entropy_coef,
        valid=valid,
    )
