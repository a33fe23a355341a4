"""The two stages that come before the loss: rewards to advantages, and what is decided token by token.

Between them, where a run has it, comes SALT, which reweights one advantage a rollout.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from salt_jax.objective import shaping
from salt_jax.objective.advantages import group_advantages
from salt_jax.objective.aggregation import AGGREGATIONS
from salt_jax.objective.config import ObjectiveConfig
from salt_jax.objective.estimators import ESTIMATORS, Group
from salt_jax.objective.hpt import demonstration_weight
from salt_jax.objective.importance import importance_weights
from salt_jax.objective.row_filters import FILTERS, names_of
from salt_jax.objective.signals import Signals
from salt_jax.objective.token_choices import CHOSEN, TOKEN_FILTERS, TOKEN_WEIGHTS, TokenChoices

Array = jax.Array


@struct.dataclass
class Estimate:
    """What comes of rewards.

    Attributes:
      advantages: (N,) or (N, T); exactly 0 where a rollout is dropped, not graded, or without signal (but see the
        estimators' own table). Constants.
      kept: (N,) bool, rollouts that stay in the loss and its denominator.
      silent: (N,) bool, rollouts that stay in the denominator but push nothing: demonstrations, whose loss is their
        own, and what a filter dropped that keeps its tokens there. SALT must not see them.
      signs: (N,), shaped reward less the mean of its group's counted ones; 0 where it does not count.
      metrics: scalars: the share of graded rollouts that filters dropped, the mean reward shaping.
    """

    advantages: Array
    kept: Array
    silent: Array
    signs: Array
    metrics: dict[str, Array]


def estimate(signals: Signals, group_size: int, config: ObjectiveConfig) -> Estimate:
    """Reward shaping, filters and estimator of a configuration, in this order::

        r' = r + overlong penalty − kl_coef · Σ_t k1_t (kl_in = 'reward'; token by token for 'reinforce_pp')
        filters before the estimator → A = estimator(r') · weight → 1 where injected → filters after it

    Args:
      signals: N = B·G rollouts and what the configuration ``needs`` to know of their tokens.
      group_size: G.
      config: everything but the surrogate, the token choices and the aggregation is used.

    Returns:
      ``Estimate``.

    Raises:
      ValueError: N not a multiple of G, a signal or an entry of ``rollouts.extra`` that is absent.

    Example:
      >>> from salt_jax.objective.signals import example_rollouts
      >>> made = estimate(Signals(example_rollouts([1.0, 0.0, 1.0, 1.0])), 2,
      ...                 ObjectiveConfig(estimator="rloo", filters="informative"))
      >>> made.advantages.tolist(), made.kept.tolist()
      ([1.0, -1.0, 0.0, 0.0], [True, True, False, False])
    """
    rollouts = signals.rollouts
    if group_size < 1 or rollouts.rewards.shape[0] % group_size:
        raise ValueError(
            f"{rollouts.rewards.shape[0]} rewards do not divide into groups of group_size = {group_size}"
        )
    signals = jax.lax.stop_gradient(signals)
    estimator = ESTIMATORS[config.estimator]
    graded = signals.graded
    rewards = shaped_rewards(signals, config)
    options = config.picked(estimator.options)
    if estimator.reads_kl and config.kl_coef and config.kl_in == "reward":
        options["token_kl"] = config.kl_coef * _log_ratio(signals)
    group = Group(signals, rewards, graded, group_size)

    counted, kept, silent = graded, jnp.ones_like(graded), _demonstrations(signals)
    names = names_of(config.filters)
    for row_filter in (FILTERS[name] for name in names if FILTERS[name].before):
        before, counted = counted, counted & row_filter.function(group, None, **config.picked(row_filter.options))
        dropped = before & ~counted
        kept, silent = (kept, silent | dropped) if row_filter.in_denominator else (kept & ~dropped, silent)
        group = group._replace(counted=counted)
    advantages = estimator.function(group, **options)
    advantages = _scaled(advantages, signals, config, counted)
    if estimator.silences is not None:
        silent = silent | estimator.silences(group, **options)
    for row_filter in (FILTERS[name] for name in names if not FILTERS[name].before):
        keep = row_filter.function(group, advantages, **config.picked(row_filter.options))
        # A filter before may have left a row in the denominator: it stays there.
        kept, silent = (kept, silent | ~keep) if row_filter.in_denominator else (kept & (keep | silent), silent)
    kept = kept | _demonstrations(signals)
    advantages = jnp.where(_like(kept & ~silent, advantages), advantages, 0)
    dropped = jnp.sum(graded & (silent | ~kept)) / jnp.maximum(jnp.sum(graded), 1)
    metrics = {"filtered": dropped} if names else {}
    if config.overlong_buffer or (config.kl_coef and config.kl_in == "reward"):
        change = jnp.where(graded, rewards - rollouts.rewards, 0)
        metrics["reward_shaping"] = jnp.sum(change) / jnp.maximum(jnp.sum(graded), 1)
    signs = group_advantages(group.rows(rewards), estimator="dr_grpo", rewarded=group.rows(counted)).reshape(-1)
    return jax.lax.stop_gradient(Estimate(advantages, kept, silent, signs, metrics))


def shaped_rewards(signals: Signals, config: ObjectiveConfig) -> Array:
    """(N,) rewards with DAPO's overlong penalty, and KL to the reference where it belongs in the reward."""
    rollouts = signals.rollouts
    rewards = rollouts.rewards
    rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
    if config.overlong_buffer:
        assert config.max_length is not None  # the configuration has been checked
        lengths = jnp.sum(rollouts.completion_mask, axis=1)
        rewards = rewards + shaping.overlong_penalty(lengths, config.max_length, config.overlong_buffer)
    if config.kl_coef and config.kl_in == "reward" and not ESTIMATORS[config.estimator].reads_kl:
        who = "kl_in = 'reward'"
        rewards = shaping.kl_in_reward(
            rewards, signals.known("log_probs", who), signals.known("ref_log_probs", who), rollouts.completion_mask,
            config.kl_coef,
        )
    return rewards


def choose_tokens(
    signals: Signals, advantages: Array, group_size: int, config: ObjectiveConfig
) -> TokenChoices:
    """What a configuration decides token by token, for all rows of one minibatch together.

    Args:
      signals: the rows of the minibatch; rows that are not ``valid`` take no part.
      advantages: (N,) or (N, T), those of the loss: SALT's where it is on.
      group_size: G.
      config: ``tokens``, ``surrogate`` (where it treats some tokens in its own way), ``importance`` and
        ``demonstration_coef`` are used.

    Returns:
      ``TokenChoices``, constants.

    Raises:
      ValueError: a signal that is absent.

    Example:
      >>> from salt_jax.objective.signals import example_rollouts
      >>> signals = Signals(example_rollouts([1.0, 0.0], tokens=[[3, 4], [3, 5]]))
      >>> choose_tokens(signals, jnp.array([1.0, -1.0]), 2, ObjectiveConfig(tokens="conflict")).weights.tolist()
      [[2.0, 1.0], [0.0, 1.0]]
    """
    signals, advantages = jax.lax.stop_gradient((signals, advantages))
    rollouts = signals.rollouts
    mask = rollouts.loss_mask & ~_demonstrations(signals)[:, None]
    signals = dataclasses.replace(signals, rollouts=dataclasses.replace(rollouts, completion_mask=mask))
    made = TokenChoices()

    def run(table: object, name: str) -> Array:
        choice = table[name]  # type: ignore[index]
        return choice.function(signals, advantages, group_size, **config.picked(choice.options))

    if config.tokens in TOKEN_WEIGHTS:
        made = dataclasses.replace(made, weights=run(TOKEN_WEIGHTS, config.tokens))
    if config.tokens in TOKEN_FILTERS:
        made = dataclasses.replace(made, kept=run(TOKEN_FILTERS, config.tokens) | _demonstrations(signals)[:, None])
    if config.surrogate in CHOSEN:
        made = dataclasses.replace(made, chosen=run(CHOSEN, config.surrogate), log_proxy=signals.log_proxy)
    if config.importance != "none":
        drawn = mask
        if "injected" in rollouts.extra:  # another temperature drew them, on purpose: their weight is 1
            drawn = mask & ~rollouts.extra["injected"][:, None]
        weights = importance_weights(
            signals.known("log_probs", f"importance = {config.importance!r}"), rollouts.sampler_log_probs, drawn,
            mode=config.importance, low=config.importance_low, high=config.importance_high,
            normalize=config.importance_normalize,
        )
        weights = jnp.where(mask & ~drawn, 1, weights)
        made = dataclasses.replace(made, weights=weights if made.weights is None else made.weights * weights)
    if "demonstration" in rollouts.extra:
        left = mask if made.kept is None else mask & made.kept
        rows = rollouts.valid & rollouts.rewarded & ~_demonstrations(signals)
        floats = jnp.float32 if made.weights is None else made.weights.dtype
        _, denominator = AGGREGATIONS[config.aggregation](
            left.astype(floats), rows.astype(floats), config.max_length
        )
        shown = _demonstrations(signals)[:, None] & rollouts.completion_mask & rollouts.valid[:, None]
        weight = demonstration_weight(jnp.sum(shown), denominator, config.demonstration_coef)
        made = dataclasses.replace(
            made, demonstration_weight=jnp.broadcast_to(weight, rollouts.rewards.shape).astype(floats)
        )
    return jax.lax.stop_gradient(made)


def rollout_advantages(advantages: Array, mask: Array) -> Array:
    """One advantage a rollout: (N,) as they are, (N, T) by their mean over the unmasked tokens.

    Args:
      advantages: (N,) or (N, T).
      mask: (N, T) bool.

    Returns:
      (N,); 0 for a row without a token.

    Example:
      >>> rollout_advantages(jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[True, True, False]])).tolist()
      [2.0]
    """
    if advantages.ndim == 1:
        return advantages
    total = jnp.sum(jnp.where(mask, advantages, 0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1), 1)


def _scaled(advantages: Array, signals: Signals, config: ObjectiveConfig, counted: Array) -> Array:
    """Weights from outside, and 1 for what was injected."""
    extra = signals.rollouts.extra
    if "weight" in extra:
        advantages = jnp.where(_like(counted, advantages), advantages * _like(extra["weight"], advantages), 0)
    if "injected" in extra:
        advantages = jnp.where(_like(extra["injected"] & counted, advantages), 1, advantages)
    return advantages


def _log_ratio(signals: Signals) -> Array:
    """(N, T) log p − log p_ref on completion tokens, 0 elsewhere."""
    who, mask = "kl_in = 'reward'", signals.rollouts.completion_mask
    return jnp.where(mask, signals.known("log_probs", who) - signals.known("ref_log_probs", who), 0)


def _demonstrations(signals: Signals) -> Array:
    extra = signals.rollouts.extra
    return extra["demonstration"] if "demonstration" in extra else jnp.zeros_like(signals.rollouts.valid)


def _like(rows: Array, advantages: Array) -> Array:
    return rows if advantages.ndim == 1 else rows[:, None]
