"""The calls that a trainer makes with one configuration of the objective: advantages of a flat batch, and the loss."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.config import ObjectiveConfig
from salt_jax.objective.losses import LossMetrics, policy_loss
from salt_jax.objective.signals import Signals, example_rollouts
from salt_jax.objective.stages import estimate
from salt_jax.objective.token_choices import TokenChoices

__all__ = ["ObjectiveConfig", "advantages", "loss"]

Array = jax.Array


def advantages(
    rewards: ArrayLike, group_size: int, config: ObjectiveConfig, rewarded: ArrayLike | None = None
) -> Array:
    """Advantages of a flat batch whose groups are contiguous, from rewards alone.

    Estimators and filters that look at tokens, log-probs or ``RolloutBatch.extra`` want ``estimate``.

    Args:
      rewards: (N,) with N = B·G; rollout i belongs to prompt i // G.
      group_size: G, rollouts per prompt.
      config: estimator, filters and their options are used.
      rewarded: (N,) bool, false where the grader failed.

    Returns:
      (N,) advantages; 0 for rollouts that a filter drops.

    Raises:
      ValueError: rank other than 1, N not a multiple of G, a configuration that needs more than rewards.

    Example:
      >>> advantages(jnp.array([1., 0., 2., 2.]), 2, ObjectiveConfig(estimator="rloo")).tolist()
      [1.0, -1.0, 0.0, 0.0]
    """
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 1:
        raise ValueError(f"rewards must have shape (N,), got {rewards.shape}")
    if config.overlong_buffer:
        raise ValueError(f"overlong_buffer = {config.overlong_buffer} needs lengths: call estimate with the rollouts")
    rollouts = example_rollouts(rewards)
    if rewarded is not None:
        rollouts = dataclasses.replace(rollouts, rewarded=jnp.asarray(rewarded).astype(bool))
    made = estimate(Signals(rollouts), group_size, config).advantages
    return made if made.ndim == 1 else made[:, 0]


def loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    config: ObjectiveConfig,
    ref_log_probs: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    *,
    choices: TokenChoices | None = None,
    demonstration: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    kept_log_mass: ArrayLike | None = None,
) -> tuple[Array, Array, LossMetrics]:
    """``policy_loss`` with the options of a configuration.

    Args:
      log_probs: (N, T), nats. old_log_probs: (N, T), nats. advantages: (N,) or (N, T). mask: (N, T) bool.
      config: surrogate, clip, aggregation, KL and entropy options are used.
      ref_log_probs: (N, T), nats; needed when config.kl_coef > 0 and KL is in the loss.
      entropy: (N, T), nats; needed when config.entropy_coef ≠ 0.
      valid: (N,) bool, false for rows that only pad the batch.
      choices: from ``choose_tokens``.
      demonstration: (N,) bool, rows written by data.
      segments: (N, T) int32, macro-actions or list items.
      kept_log_mass: (N, T) nats, log of the probability of the likely tokens, for 'lp_reg' in its paper form.

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
    choices = choices or TokenChoices()
    mask = jnp.asarray(mask).astype(bool)
    if choices.kept is not None:
        mask = mask & choices.kept
    in_loss = config.kl_in == "loss"
    weight = choices.demonstration_weight
    return policy_loss(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        surrogate=config.surrogate,
        options=config.surrogate_options,
        aggregation=config.aggregation,
        max_length=config.max_length,
        ref_log_probs=ref_log_probs if in_loss else None,
        kl_estimator=config.kl_estimator if in_loss else "k3",
        kl_coef=config.kl_coef if in_loss else 0.0,
        entropy=entropy,
        entropy_coef=config.entropy_coef,
        valid=valid,
        token_weights=choices.weights,
        chosen=choices.chosen,
        log_proxy=choices.log_proxy,
        kept_log_mass=kept_log_mass,
        segments=segments,
        demonstration=demonstration,
        demonstration_weight=None if weight is None else jnp.max(weight, initial=0),
    )
