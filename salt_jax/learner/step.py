"""The train step: one pure function from (state, rollouts) to (state, metrics).

Two forms of the same mathematics. A single-shot step (one minibatch, one epoch, no accumulation) takes the
geometry from the hidden states of its own loss. Otherwise a pass over the whole rollout batch gives the old
log-probs, and the geometry is harvested there: SALT of the minibatches and epochs after the first uses the Gram
from before the step, not that of the policy they update. Either way SALT costs no forward of the backbone of its
own, its unit is the minibatch, and how the minibatch is split for memory changes nothing.

An optimizer update whose loss, advantages, gradient norm or (where SALT is on) Gram matrix is not finite changes
nothing and is counted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from optax import microbatching

from salt_jax.distributed.layout import Layout
from salt_jax.distributed.sharding import batch_sharding, replicated, tree_shardings
from salt_jax.distributed.sharding import layout as mesh_layout
from salt_jax.geometry import Sketch, orthonormal
from salt_jax.learner.harvest import SUM, bundle_size, harvest, scores_of, split_minibatches
from salt_jax.learner.keys import salt_key, sampling_key, sketch_key, token_key
from salt_jax.learner.reweighting import sketch_of
from salt_jax.learner.settings import RunConfig
from salt_jax.learner.state import TrainState, vocabulary
from salt_jax.learner.step_metrics import GUARDED, average, reward_metrics, track_entropy
from salt_jax.learner.weighing import (
    Batch,
    advantages_finite,
    needs_choices,
    needs_kept_mass,
    weigh,
    with_advantages,
)
from salt_jax.objective.losses import LossMetrics, finalize
from salt_jax.objective.objective import loss as policy_objective
from salt_jax.policy.logprobs import CompletionScores
from salt_jax.rollout import RolloutBatch, bundle, unbundle

__all__ = [
    "accumulated_grads", "apply", "jit_train_step", "salt_key", "sampling_key", "single_shot", "sketch_key",
    "split_minibatches", "train_step",
]  # fmt: skip

Array = jax.Array
HIDDEN_FEATURES = ("lm_head", "taken_token")  # the geometry is made from hidden states
MAXIMUM = microbatching.Accumulator(
    init=lambda value: jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), value),  # maxima are >= 0
    update=lambda carry, value, _: jax.tree.map(jnp.maximum, carry, value),
    finalize=lambda carry: carry,
    aggregate=lambda values: jax.tree.map(jnp.max, values),
)


def train_step(
    state: TrainState,
    rollouts: RolloutBatch,
    *,
    run: RunConfig,
    policy: Any,
    optimizer: optax.GradientTransformation,
    measure: bool = False,
    layout: Layout | None = None,
    guard: bool = True,
) -> tuple[TrainState, dict[str, Array]]:
    """One rollout batch: advantages, geometry, and minibatches × epochs optimizer steps. Pure.

    Args:
      state: before the step.
      rollouts: N = B·G graded rollouts, sampled from ``state.params``.
      run: the checked configuration, static.
      policy: static part of the model, from ``make_policy``.
      optimizer: from ``make_optimizer``.
      measure: report the geometry although SALT is off.
      layout: where rollouts and parameters lie on a mesh; None on one device.
      guard: false applies every update, also one that is not finite: to measure what the guard costs.

    Returns:
      The state after the step, and scalar metrics; ``guards/skipped`` counts the updates that changed nothing.
    """
    metrics = reward_metrics(rollouts, run.rollouts.rollouts_per_prompt, run.correct_from)
    batch = Batch(rollouts)
    if run.objective.needs_reference:
        reference, _ = harvest(run, policy, state.ref_params, rollouts, layout=layout)
        batch = dataclasses.replace(batch, ref_log_probs=reference.log_probs)

    with_geometry = run.geometry.enabled or measure
    sketch = None
    if with_geometry:
        sketch = sketch_of(run, sketch_key(state), rollouts, vocabulary(state.params), state.sketch_basis)
    updates = run.learner.minibatches * run.learner.epochs
    if updates == 1 and run.learner.microbatches == 1:
        state, seen = single_shot(
            state, batch, run=run, policy=policy, optimizer=optimizer, geometry=with_geometry,
            layout=layout, sketch=sketch, guard=guard,
        )
        return finish(state, run), metrics | seen

    entropy_range, moment = state.entropy_range, None
    scores: CompletionScores | None = None
    if updates > 1 or with_geometry or run.objective.needs - {"key", "ref_log_probs"}:
        wanted = with_geometry and run.geometry.feature in HIDDEN_FEATURES
        scores, moment = harvest(
            run, policy, state.params, rollouts, with_hidden=wanted, layout=layout, sketch=sketch,
            kept="log_proxy" in run.objective.needs,
        )
        batch = dataclasses.replace(batch, old_log_probs=scores.log_probs)
    batch, seen = with_advantages(state, batch, run, scores)
    metrics |= seen
    batches = split_minibatches(batch, run)
    sound = finite = jax.vmap(advantages_finite)(batches)
    if with_geometry or needs_choices(run, rollouts):
        entropy = None
        if with_geometry:
            assert scores is not None
            now, entropy_range = track_entropy(scores.entropy, rollouts, entropy_range)
            entropy = (now, entropy_range[0], entropy_range[1])

        def unit(batch: Batch, scores: CompletionScores | None, keys: Array) -> tuple[Batch, dict[str, Array]]:
            return weigh(run, policy, state, batch, scores, keys, entropy, layout)

        keys = jnp.stack([jax.random.split(key(state), run.learner.minibatches) for key in (salt_key, token_key)], 1)
        of_each = None if scores is None else split_minibatches(scores, run)
        batches, seen = jax.lax.map(lambda x: unit(*x), (batches, of_each, keys))
        metrics |= average(seen)
        finite &= jax.vmap(advantages_finite)(batches)
        sound = finite & seen["geometry/gram_finite"] if run.geometry.enabled else finite

    def update(carry: tuple[Any, Any], given: tuple[Batch, Array]) -> tuple[tuple[Any, Any], dict[str, Array]]:
        (params, opt_state), (batch, sound) = carry, given
        grads, loss_metrics = accumulated_grads(params, batch, run=run, policy=policy, layout=layout)
        sound = sound & jnp.isfinite(loss_metrics["loss"])
        params, opt_state, norms = apply(params, opt_state, grads, optimizer, sound if guard else None)
        return (params, opt_state), loss_metrics | norms

    carry = (state.params, state.opt_state)
    per_epoch = []
    for _ in range(run.learner.epochs):
        carry, seen = jax.lax.scan(update, carry, (batches, sound))
        per_epoch.append(seen)
    metrics |= average(jax.tree.map(lambda *x: jnp.concatenate(x), *per_epoch))
    metrics["guards/advantages_finite"] = jnp.all(finite)
    state = dataclasses.replace(state, params=carry[0], opt_state=carry[1])
    learnt = metrics[GUARDED] < updates if guard else None
    return finish(with_observed(state, entropy_range, moment, learnt), run), metrics


def single_shot(
    state: TrainState,
    batch: Batch,
    *,
    run: RunConfig,
    policy: Any,
    optimizer: Any,
    geometry: bool,
    layout: Layout | None = None,
    sketch: Sketch | None = None,
    guard: bool = True,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on the whole batch; the geometry comes from the loss's own hidden states."""

    def loss(params: Any) -> tuple[Array, Any]:
        scores = scores_of(
            run, policy, params, batch.rollouts, layout=layout, sketch=sketch, kept=run.objective.surrogate == "lp_reg"
        )
        constant = jax.lax.stop_gradient(scores)
        entropy, entropy_range = None, state.entropy_range
        if geometry:
            now, entropy_range = track_entropy(constant.entropy, batch.rollouts, entropy_range)
            entropy = (now, entropy_range[0], entropy_range[1])
        ready, seen = with_advantages(state, batch, run, constant)
        finite = advantages_finite(ready)
        keys = jnp.stack([jax.random.split(key(state), 1)[0] for key in (salt_key, token_key)])  # of one minibatch
        still = dataclasses.replace(state, params=jax.lax.stop_gradient(params))
        ready, of_geometry = weigh(run, policy, still, ready, constant, keys, entropy, layout)
        seen["guards/advantages_finite"] = finite & advantages_finite(ready)
        total, denominator, metrics = _loss(run, ready, scores)
        scale = jnp.maximum(denominator, 1)
        return total / scale, (finalize(metrics) | seen | of_geometry, entropy_range, scores.moment)

    grads, (metrics, entropy_range, moment) = jax.grad(loss, has_aux=True)(state.params)
    sound = metrics["guards/advantages_finite"] & jnp.isfinite(metrics["loss"])
    if run.geometry.enabled:
        sound &= metrics["geometry/gram_finite"]
    params, opt_state, norms = apply(state.params, state.opt_state, grads, optimizer, sound if guard else None)
    state = dataclasses.replace(state, params=params, opt_state=opt_state)
    learnt = norms[GUARDED] == 0 if guard else None
    return with_observed(state, entropy_range, moment, learnt), metrics | norms


def accumulated_grads(
    params: Any, batch: Batch, *, run: RunConfig, policy: Any, layout: Layout | None = None
) -> tuple[Any, dict[str, Array]]:
    """Gradient of one minibatch's loss, summed over microbatches and divided once by the whole denominator."""
    size = bundle_size(run, layout)

    def sums(bundles: Batch) -> tuple[Any, Array, dict[str, Any], dict[str, Any]]:
        part = unbundle(bundles)

        def loss(params: Any) -> tuple[Array, Any]:
            scores = scores_of(
                run, policy, params, part.rollouts, group_size=size, layout=layout, kept=needs_kept_mass(run)
            )
            total, denominator, metrics = _loss(run, part, scores)
            return total, (denominator, metrics)

        grads, (denominator, metrics) = jax.grad(loss, has_aux=True)(params)
        return grads, denominator, metrics.sums, metrics.maxima

    rows = run.minibatch_rows // run.learner.microbatches
    summed = microbatching.microbatch(
        sums, argnums=0, microbatch_size=rows // size, accumulator=(SUM, SUM, SUM, MAXIMUM)
    )
    grads, denominator, total, maxima = summed(bundle(batch, size))
    scale = jnp.maximum(denominator, 1)
    return jax.tree.map(lambda g: g / scale, grads), finalize(LossMetrics(total, maxima))


def _loss(run: RunConfig, batch: Batch, scores: CompletionScores) -> tuple[Array, Array, LossMetrics]:
    rollouts, mask = batch.rollouts, batch.rollouts.loss_mask
    old = batch.old_log_probs
    old = jax.lax.stop_gradient(scores.log_probs) if old is None else old
    assert batch.advantages is not None  # with_advantages has been there
    demonstration = rollouts.extra.get("demonstration")
    total, denominator, metrics = policy_objective(
        scores.log_probs,
        old,
        batch.advantages,
        mask,
        run.objective,
        ref_log_probs=batch.ref_log_probs,
        entropy=scores.entropy if run.objective.entropy_coef else jax.lax.stop_gradient(scores.entropy),
        valid=rollouts.valid & rollouts.rewarded,
        choices=batch.choices,
        demonstration=demonstration,
        segments=rollouts.extra.get("segments"),
        kept_log_mass=scores.kept_log_mass if needs_kept_mass(run) else None,
    )
    sampled = mask
    for name in ("demonstration", "injected"):  # not drawn from this policy at this temperature
        if name in rollouts.extra:
            sampled = sampled & ~rollouts.extra[name][:, None]
    gap = jnp.where(sampled, jnp.abs(old - rollouts.sampler_log_probs), 0.0)
    metrics.sums["sampler_gap"] = (jnp.sum(gap), jnp.sum(sampled, dtype=jnp.float32))
    metrics.sums["loss"] = (jax.lax.stop_gradient(total), denominator)
    metrics.maxima["sampler_gap_max"] = jnp.max(gap)
    return total, denominator, metrics


def apply(
    params: Any,
    opt_state: Any,
    grads: Any,
    optimizer: optax.GradientTransformation,
    sound: Array | None = None,
) -> tuple[Any, Any, dict[str, Array]]:
    """One optimizer step; also the global norms of the gradient and of the update.

    Args:
      params: before it.
      opt_state: before it.
      grads: of the loss.
      optimizer: from ``make_optimizer``.
      sound: scalar bool, whether all that the gradient was made from is finite; None applies it whatever it is.

    Returns:
      Parameters and optimizer state, as they were unless ``sound`` and the gradient's norm is finite; and metrics.
    """
    norm = optax.tree.norm(grads)

    def move(params: Any, opt_state: Any) -> tuple[Any, Any, Array]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, optax.tree.norm(updates)

    if sound is None:
        params, opt_state, update_norm = move(params, opt_state)
        return params, opt_state, {"grad_norm": norm, "update_norm": update_norm, GUARDED: jnp.zeros(())}
    sound = sound & jnp.isfinite(norm)
    # A branch: what it does not take it passes on in place. Selecting number by number, XLA keeps old moments and new.
    stay = lambda params, opt_state: (params, opt_state, jnp.zeros_like(norm))
    params, opt_state, update_norm = jax.lax.cond(sound, move, stay, params, opt_state)
    return params, opt_state, {"grad_norm": norm, "update_norm": update_norm, GUARDED: 1.0 - sound}


def with_observed(state: TrainState, entropy_range: Array, moment: Array | None, learnt: Array | None) -> TrainState:
    """What a step saw on its way: the range of entropies, and the sketch's basis one round of iteration further.

    Both stay as they were where they would not be finite, and in a step that ``learnt`` nothing (None: not asked).
    """
    seen = {"entropy_range": entropy_range}
    if moment is not None:
        seen["sketch_basis"] = orthonormal(moment)
    if learnt is not None:
        seen = {
            name: jnp.where(learnt & jnp.all(jnp.isfinite(new)), new, getattr(state, name))
            for name, new in seen.items()
        }
    return dataclasses.replace(state, **seen)


def finish(state: TrainState, run: RunConfig) -> TrainState:
    """Advances the counters."""
    consumed = state.consumed_prompts + run.rollouts.prompts_per_step
    return dataclasses.replace(state, step=state.step + 1, consumed_prompts=consumed)


def jit_train_step(
    run: RunConfig,
    policy: Any,
    optimizer: Any,
    mesh: Mesh,
    state: TrainState,
    *,
    measure: bool = False,
    guard: bool = True,
) -> Callable[[TrainState, RolloutBatch], tuple[TrainState, dict[str, Array]]]:
    """``train_step`` jitted with in and out shardings on ``mesh``; the state is donated."""
    shardings = tree_shardings(state, mesh)
    layout = mesh_layout(mesh, vocabulary(state.params))
    step = functools.partial(
        train_step, run=run, policy=policy, optimizer=optimizer, measure=measure, layout=layout, guard=guard
    )
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
