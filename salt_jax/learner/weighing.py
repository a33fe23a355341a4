"""From graded rollouts and what a forward pass said of them to all that the loss takes as given.

First advantages, for a whole rollout batch; then, a minibatch at a time, SALT and what is decided token by token.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from salt_jax.distributed.layout import Layout
from salt_jax.learner.keys import estimate_key
from salt_jax.learner.reweighting import mini_batch_gram, observe_and_reweight, success_rates
from salt_jax.learner.settings import RunConfig
from salt_jax.learner.state import TrainState
from salt_jax.objective import Signals, TokenChoices, choose_tokens, estimate, rollout_advantages
from salt_jax.policy.logprobs import CompletionScores
from salt_jax.rollout import RolloutBatch

Array = jax.Array


@struct.dataclass
class Batch:
    """Rollouts with what the loss needs besides; None where the loss itself finds it.

    Attributes:
      rollouts: N rollouts; those that a filter drops are not ``valid``.
      advantages: (N,) or (N, T), already reweighted where the geometry was harvested; None before they are made.
      old_log_probs: (N, T) nats, or None: those of the loss's own forward pass.
      ref_log_probs: (N, T) nats, or None without a reference.
      choices: what was decided token by token.
      silent: (N,) bool, rows that push nothing by an advantage: SALT does not see them.
      signs: (N,), reward less its group's mean, before entropy, filters and SALT: what GTPO takes signs from.
      rates: (N,) success rate of each row's group, before any filter.
    """

    rollouts: RolloutBatch
    advantages: Array | None = None
    old_log_probs: Array | None = None
    ref_log_probs: Array | None = None
    choices: TokenChoices = TokenChoices()
    silent: Array | None = None
    signs: Array | None = None
    rates: Array | None = None


def with_advantages(
    state: TrainState, batch: Batch, run: RunConfig, scores: CompletionScores | None
) -> tuple[Batch, dict[str, Array]]:
    """Advantages of a whole rollout batch; rows that a filter drops are no longer valid."""
    signals = signals_of(run, state, batch, scores, estimate_key(state))
    made = estimate(signals, run.rollouts.rollouts_per_prompt, run.objective)
    rollouts = dataclasses.replace(batch.rollouts, valid=batch.rollouts.valid & made.kept)
    rates = success_rates(batch.rollouts, run.rollouts.rollouts_per_prompt, run.correct_from)
    batch = dataclasses.replace(
        batch, rollouts=rollouts, advantages=made.advantages, silent=made.silent, signs=made.signs, rates=rates
    )
    return batch, made.metrics


def signals_of(
    run: RunConfig, state: TrainState, batch: Batch, scores: CompletionScores | None, key: Array
) -> Signals:
    """What estimators and token choices may look at."""
    return Signals(
        batch.rollouts,
        log_probs=None if scores is None else scores.log_probs,
        ref_log_probs=batch.ref_log_probs,
        entropy=None if scores is None else scores.entropy,
        log_proxy=None if scores is None else scores.log_proxy,
        signs=batch.signs,
        key=key,
        correct_from=run.correct_from,
        progress=state.step / max(run.steps - 1, 1),
    )


def weigh(
    run: RunConfig,
    policy: Any,
    state: TrainState,
    batch: Batch,
    scores: CompletionScores | None,
    keys: Array,
    entropy: Any,
    layout: Layout | None,
) -> tuple[Batch, dict[str, Array]]:
    """SALT's advantages in place of a minibatch's own where it is on, then what is decided token by token.

    Args:
      run: the checked configuration.
      policy: static part of the model.
      state: parameters are used, for feature 'per_rollout' and the output projection; constants.
      batch: one minibatch.
      scores: what a forward pass said of it.
      keys: (2,) of SALT and of the token choices.
      entropy: (now, least, greatest) mean token entropy; None without geometry.
      layout: where things lie on a mesh.

    Returns:
      The batch with its final advantages and choices; metrics of the geometry.
    """
    seen: dict[str, Array] = {}
    own, silent, rates = batch.advantages, batch.silent, batch.rates
    assert own is not None  # with_advantages has been there
    assert silent is not None
    assert rates is not None
    if entropy is not None and scores is not None:
        gram = mini_batch_gram(run, policy, state.params, batch.rollouts, scores, layout)
        flat = rollout_advantages(own, batch.rollouts.loss_mask)
        heard = dataclasses.replace(batch.rollouts, valid=batch.rollouts.valid & ~silent)
        new, seen = observe_and_reweight(run, gram, flat, heard, keys[0], entropy, layout, rates=rates)
        if run.geometry.enabled:
            seen["salt/collapsed"] = jnp.asarray(float(own.ndim == 2))  # one advantage a token became one a rollout
            batch, own = dataclasses.replace(batch, advantages=new), new
    if needs_choices(run, batch.rollouts):
        signals = signals_of(run, state, batch, scores, keys[1])
        choices = choose_tokens(signals, own, run.rollouts.rollouts_per_prompt, run.objective)
        batch = dataclasses.replace(batch, choices=choices)
    return batch, seen


def advantages_finite(batch: Batch) -> Array:
    """Scalar bool: whether the advantages of every graded row, () or (T,) each, are finite numbers."""
    advantages, rollouts = batch.advantages, batch.rollouts
    assert advantages is not None
    counted = rollouts.valid & rollouts.rewarded if advantages.ndim == 1 else rollouts.loss_mask
    return jnp.all(jnp.isfinite(jnp.where(counted, advantages, 0)))


def needs_choices(run: RunConfig, rollouts: RolloutBatch) -> bool:
    """Whether anything is decided token by token."""
    return run.objective.chooses_tokens or "demonstration" in rollouts.extra


def needs_kept_mass(run: RunConfig) -> bool:
    """Whether the loss itself takes the probability of the likely tokens, with its gradient (Lp-Reg's paper form)."""
    return run.objective.surrogate == "lp_reg" and run.objective.lp_reg_form == "paper"
