"""The estimators a configuration can name, each from ``Signals`` to advantages, with the options it reads.

A new one is a function and a line in ``ESTIMATORS``. Options are fields of ``ObjectiveConfig`` and reach the function
as keywords of the same name: what a method reads is written here once, for the checks and for the docs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from salt_jax.objective.advantages import group_advantages
from salt_jax.objective.beta_normalization import bnpo_components
from salt_jax.objective.copg import copg_advantages
from salt_jax.objective.gtpo import gtpo_advantages
from salt_jax.objective.rank_grpo import rank_advantages, rank_rewards, token_advantages
from salt_jax.objective.reinforce_pp import reinforce_pp_advantages, reinforce_pp_baseline
from salt_jax.objective.signals import Signals
from salt_jax.rollout import succeeded

Array = jax.Array


class Group(NamedTuple):
    """What every estimator is given.

    Attributes:
      signals: the batch.
      rewards: (N,) after reward shaping.
      counted: (N,) bool, rows whose reward enters the statistics of its group.
      size: G, rollouts of a prompt.
    """

    signals: Signals
    rewards: Array
    counted: Array
    size: int

    def rows(self, x: Array) -> Array:
        """(N, …) -> (B, G, …)."""
        return jnp.reshape(x, (x.shape[0] // self.size, self.size, *x.shape[1:]))


class Estimator(NamedTuple):
    """One estimator.

    Attributes:
      function: (Group, **options) -> (N,) or (N, T) advantages, 0 where not counted.
      options: fields of ``ObjectiveConfig`` that it reads.
      needs: optional ``Signals`` it reads.
      extra: entries of ``RolloutBatch.extra`` it reads.
      per_token: whether advantages are (N, T).
      reads_kl: whether KL to the reference in the reward reaches it token by token.
      shaped: whether a penalty or KL may be taken off the reward: not where rewards must stay in [0, 1], are given in
        parts, or are compared with a baseline from outside.
      silences: (Group, **options) -> (N,) bool, rows that the method itself drops: SALT must not see them.
    """

    function: Callable[..., Array]
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    per_token: bool = False
    reads_kl: bool = False
    shaped: bool = True
    silences: Callable[..., Array] | None = None


def _of_groups(group: Group, *, name: str, extra: tuple[str, ...] = (), **options: Any) -> Array:
    """An estimator of ``group_advantages``."""
    given: dict[str, Any] = {key: group.rows(group.signals.extra(key, f"estimator = {name!r}")) for key in extra}
    return group_advantages(
        group.rows(group.rewards), estimator=name, rewarded=group.rows(group.counted), **given, **options
    ).reshape(-1)


def _group_estimator(
    name: str, options: tuple[str, ...] = (), extra: tuple[str, ...] = (), *, shaped: bool = True
) -> Estimator:
    return Estimator(functools.partial(_of_groups, name=name, extra=extra), options, extra=extra, shaped=shaped)


def _bnpo(group: Group, *, singleton: str) -> Array:
    """BNPO of the reward, or the mean over its components where the grader gave some."""
    components = group.signals.rollouts.extra.get("components")
    rewards = group.rewards[:, None] if components is None else components
    of_parts = jnp.moveaxis(group.rows(rewards), -1, 0)
    return bnpo_components(of_parts, rewarded=group.rows(group.counted), singleton=singleton).reshape(-1)


def _reinforce_pp(group: Group, *, gamma: float, whiten_variance: str, token_kl: Array | None = None) -> Array:
    mask = group.signals.rollouts.completion_mask
    return reinforce_pp_advantages(
        group.rewards, mask, rewarded=group.counted, token_rewards=None if token_kl is None else -token_kl,
        gamma=gamma, variance=whiten_variance,
    )


def _reinforce_pp_baseline(
    group: Group, *, gamma: float, whiten_variance: str, token_kl: Array | None = None
) -> Array:
    mask = group.signals.rollouts.completion_mask
    return reinforce_pp_baseline(
        group.rewards, mask, group_size=group.size, rewarded=group.counted, gamma=gamma, variance=whiten_variance,
        token_rewards=None if token_kl is None else -token_kl,
    )


def _gtpo(group: Group, *, gtpo_gamma: float, gtpo_threshold: float, gtpo_penalize_degenerate: bool) -> Array:
    return gtpo_advantages(
        group.rows(group.rewards), group.rows(_mean_entropy(group)), rewarded=group.rows(group.counted),
        gamma=gtpo_gamma, threshold=gtpo_threshold, penalize_degenerate=gtpo_penalize_degenerate,
    ).reshape(-1)


def _mean_entropy(group: Group) -> Array:
    """(N,) nats."""
    mask = group.signals.rollouts.completion_mask
    entropy = jnp.where(mask, group.signals.known("entropy", "estimator = 'gtpo'"), 0)
    return jnp.sum(entropy, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)


def _over_entropy(group: Group, *, gtpo_threshold: float, **_: Any) -> Array:
    """GTPO's delta = 0."""
    return _mean_entropy(group) > gtpo_threshold


def _rank_grpo(group: Group, *, rank_reward: str, rank_gamma: float) -> Array:
    who = "estimator = 'rank_grpo'"
    relevance, segments = group.signals.extra("components", who), group.signals.extra("segments", who)
    rewards = rank_rewards(relevance, kind=rank_reward, gamma=rank_gamma)
    advantages = rank_advantages(group.rows(rewards), rewarded=group.rows(group.counted))
    return token_advantages(jnp.reshape(advantages, rewards.shape), segments)


def _copg(group: Group, *, copg_beta: float) -> Array:
    signals, who, mask = group.signals, "estimator = 'copg'", group.signals.rollouts.completion_mask
    ratio = signals.known("log_probs", who) - signals.known("ref_log_probs", who)
    sums = jnp.sum(jnp.where(mask, ratio, 0), axis=1)
    return copg_advantages(
        group.rows(group.rewards), group.rows(sums), beta=copg_beta, rewarded=group.rows(group.counted)
    ).reshape(-1)


def _darling(group: Group, *, darling_partition_correct: bool, **options: Any) -> Array:
    if darling_partition_correct:
        right = succeeded(group.signals.rollouts.rewards, group.counted, group.signals.correct_from)
        options["correct"] = group.rows(right)
    return _of_groups(group, name="darling", extra=("clusters",), **options)


WHITENING = ("gamma", "whiten_variance")
DIVERSITY = (
    "darling_floor", "darling_form", "darling_lambda_reward", "darling_lambda_diversity", "darling_add_bias",
    "darling_partition_correct",
)  # fmt: skip
ESTIMATORS: dict[str, Estimator] = {
    "grpo": _group_estimator("grpo", ("ddof", "eps", "singleton")),
    "dr_grpo": _group_estimator("dr_grpo", ("singleton",)),
    "rloo": _group_estimator("rloo", ("singleton",)),
    "reinforce_pp": Estimator(_reinforce_pp, WHITENING, per_token=True, reads_kl=True),
    "reinforce_pp_baseline": Estimator(_reinforce_pp_baseline, WHITENING, per_token=True, reads_kl=True),
    "bnpo": Estimator(_bnpo, ("singleton",), shaped=False),
    "gtpo": Estimator(
        _gtpo, ("gtpo_gamma", "gtpo_threshold", "gtpo_penalize_degenerate"), needs=("entropy",),
        silences=_over_entropy,
    ),
    "opmd": _group_estimator("opmd", ("singleton", "opmd_baseline", "tau")),
    "asymre": _group_estimator("asymre", ("singleton", "asymre_shift")),
    "raft": _group_estimator("raft"),
    "given_baseline": _group_estimator("given_baseline", extra=("baseline",), shaped=False),
    "darling": Estimator(_darling, DIVERSITY, extra=("clusters",)),
    "copg": Estimator(_copg, ("copg_beta",), needs=("log_probs", "ref_log_probs")),
    "rank_grpo": Estimator(
        _rank_grpo, ("rank_reward", "rank_gamma"), extra=("components", "segments"), per_token=True, shaped=False
    ),
}  # fmt: skip
