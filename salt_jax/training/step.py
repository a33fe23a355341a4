"""The train step: one pure function from (state, rollouts) to (state, metrics).

Two forms of the same mathematics. A single-shot step (one minibatch, one epoch, no accumulation) takes the
geometry from the hidden states of its own loss. Otherwise a pass over the whole rollout batch gives the old
log-probs, and the geometry is harvested there. Either way SALT costs no forward of the backbone of its own,
its unit is the minibatch, and how the minibatch is split for memory changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.sharding import Mesh
from optax import microbatching

from salt_jax.geometry import Sketch, orthonormal
from salt_jax.layout import Layout
from salt_jax.objective.losses import LossMetrics, finalize
from salt_jax.objective.objective import advantages as group_relative_advantages
from salt_jax.objective.objective import loss as policy_objective
from salt_jax.policy.logprobs import CompletionScores, completion_scores
from salt_jax.rollout import RolloutBatch, bundle, unbundle
from salt_jax.training.reweighting import mini_batch_gram, observe_and_reweight, sketch_of
from salt_jax.training.settings import RunConfig
from salt_jax.training.sharding import batch_sharding, replicated, tree_shardings
from salt_jax.training.sharding import layout as mesh_layout
from salt_jax.training.state import TrainState, vocabulary

Array = jax.Array
HIDDEN_FEATURES = ("lm_head", "taken_token")  # the geometry is made from hidden states
SUM, CONCAT = microbatching.AccumulationType.SUM, microbatching.AccumulationType.CONCAT
MAXIMUM = microbatching.Accumulator(
    init=lambda value: jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), value),  # maxima are >= 0
    update=lambda carry, value, _: jax.tree.map(jnp.maximum, carry, value),
    finalize=lambda carry: carry,
    aggregate=lambda values: jax.tree.map(jnp.max, values),
)


@struct.dataclass
class Batch:
    """Rollouts with what the loss needs besides; None where the loss itself finds it.

    Attributes:
      rollouts: N rollouts.
      advantages: (N,) group-relative advantages, already reweighted where the geometry was harvested.
      old_log_probs: (N, T) nats, or None: those of the loss's own forward pass.
      ref_log_probs: (N, T) nats, or None without a KL term.
    """

    rollouts: RolloutBatch
    advantages: Array
    old_log_probs: Array | None = None
    ref_log_probs: Array | None = None


def train_step(
    state: TrainState,
    rollouts: RolloutBatch,
    *,
    run: RunConfig,
    policy: Any,
    optimizer: optax.GradientTransformation,
    measure: bool = False,
    layout: Layout | None = None,
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

    Returns:
      The state after the step, and scalar metrics.
    """
    group_size = run.rollouts.rollouts_per_prompt
    graded = rollouts.rewarded & rollouts.valid
    advantages = group_relative_advantages(rollouts.rewards, group_size, run.objective, rewarded=graded)
    metrics = reward_metrics(rollouts, advantages, group_size, run.evaluation.correct_from)
    batch = Batch(rollouts, advantages)
    if run.objective.kl_coef:
        scores, _ = harvest(run, policy, state.ref_params, rollouts, layout=layout)
        batch = dataclasses.replace(batch, ref_log_probs=scores.log_probs)

    with_geometry = run.geometry.enabled or measure
    sketch = None
    if with_geometry:
        sketch = sketch_of(run, sketch_key(state), rollouts, vocabulary(state.params), state.sketch_basis)
    updates = run.learner.minibatches * run.learner.epochs
    if updates == 1 and run.learner.microbatches == 1:
        state, seen = single_shot(
            state, batch, run=run, policy=policy, optimizer=optimizer, geometry=with_geometry,
            layout=layout, sketch=sketch,
        )
        return finish(state, run), metrics | seen

    entropy_range = state.entropy_range
    batches = split_minibatches(batch, run)
    if updates > 1 or with_geometry:
        wanted = with_geometry and run.geometry.feature in HIDDEN_FEATURES
        scores, moment = harvest(
            run, policy, state.params, rollouts, with_hidden=wanted, layout=layout, sketch=sketch
        )
        batches = split_minibatches(dataclasses.replace(batch, old_log_probs=scores.log_probs), run)
        if with_geometry:
            now, entropy_range = track_entropy(scores.entropy, rollouts, entropy_range)

            def unit(batch: Batch, scores: CompletionScores, key: Array) -> tuple[Array, dict[str, Array]]:
                gram = mini_batch_gram(run, policy, state.params, batch.rollouts, scores, layout)
                entropy = (now, entropy_range[0], entropy_range[1])
                return observe_and_reweight(run, gram, batch.advantages, batch.rollouts, key, entropy, layout)

            keys = jax.random.split(salt_key(state), run.learner.minibatches)
            new, seen = jax.lax.map(lambda x: unit(*x), (batches, split_minibatches(scores, run), keys))
            batches = dataclasses.replace(batches, advantages=new)
            metrics |= average(seen)
            state = with_basis(state, moment)

    def update(carry: tuple[Any, Any], batch: Batch) -> tuple[tuple[Any, Any], dict[str, Array]]:
        params, opt_state = carry
        grads, loss_metrics = accumulated_grads(params, batch, run=run, policy=policy, layout=layout)
        params, opt_state, norms = apply(params, opt_state, grads, optimizer)
        return (params, opt_state), loss_metrics | norms

    carry = (state.params, state.opt_state)
    per_epoch = []
    for _ in range(run.learner.epochs):
        carry, seen = jax.lax.scan(update, carry, batches)
        per_epoch.append(seen)
    metrics |= average(jax.tree.map(lambda *x: jnp.concatenate(x), *per_epoch))
    state = dataclasses.replace(state, params=carry[0], opt_state=carry[1], entropy_range=entropy_range)
    return finish(state, run), metrics


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
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on the whole batch; the geometry comes from the loss's own hidden states."""

    def loss(params: Any) -> tuple[Array, Any]:
        scores = _scores(run, policy, params, batch.rollouts, layout=layout, sketch=sketch)
        seen: dict[str, Array] = {}
        advantages, entropy_range = batch.advantages, state.entropy_range
        if geometry:
            constant = jax.lax.stop_gradient(scores)
            now, entropy_range = track_entropy(constant.entropy, batch.rollouts, entropy_range)
            gram = mini_batch_gram(run, policy, jax.lax.stop_gradient(params), batch.rollouts, constant, layout)
            entropy = (now, entropy_range[0], entropy_range[1])
            key = jax.random.split(salt_key(state), 1)[0]  # the first minibatch's
            advantages, seen = observe_and_reweight(
                run, gram, advantages, batch.rollouts, key, entropy, layout
            )
        total, denominator, metrics = _loss(run, dataclasses.replace(batch, advantages=advantages), scores)
        scale = jnp.maximum(denominator, 1)
        return total / scale, (finalize(metrics) | seen, entropy_range, scores.moment)

    grads, (metrics, entropy_range, moment) = jax.grad(loss, has_aux=True)(state.params)
    params, opt_state, norms = apply(state.params, state.opt_state, grads, optimizer)
    state = dataclasses.replace(state, params=params, opt_state=opt_state, entropy_range=entropy_range)
    return with_basis(state, moment), metrics | norms


def accumulated_grads(
    params: Any, batch: Batch, *, run: RunConfig, policy: Any, layout: Layout | None = None
) -> tuple[Any, dict[str, Array]]:
    """Gradient of one minibatch's loss, summed over microbatches and divided once by the whole denominator."""
    size = bundle_size(run, layout)

    def sums(bundles: Batch) -> tuple[Any, Array, dict[str, Any], dict[str, Any]]:
        part = unbundle(bundles)

        def loss(params: Any) -> tuple[Array, Any]:
            scores = _scores(run, policy, params, part.rollouts, group_size=size, layout=layout)
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


def harvest(
    run: RunConfig,
    policy: Any,
    params: Any,
    rollouts: RolloutBatch,
    *,
    with_hidden: bool = False,
    layout: Layout | None = None,
    sketch: Sketch | None = None,
) -> tuple[CompletionScores, Array | None]:
    """Scores of the whole rollout batch without gradients, microbatch by microbatch; and the sum of their moments.

    What stays of each rollout for the geometry: (T, D) hidden states for an exact Gram, r numbers for a sketch.
    """
    size = bundle_size(run, layout)
    rows = run.minibatch_rows // run.learner.microbatches

    def part(bundles: RolloutBatch) -> tuple[CompletionScores, Array | None]:
        scores = _scores(run, policy, params, unbundle(bundles), group_size=size, layout=layout, sketch=sketch)
        if not with_hidden:
            scores = scores._replace(hidden=None)
        return bundle(scores._replace(moment=None), size), scores.moment

    over_parts = microbatching.microbatch(part, argnums=0, microbatch_size=rows // size, accumulator=(CONCAT, SUM))
    scores, moment = jax.lax.stop_gradient(over_parts(bundle(rollouts, size)))
    return unbundle(scores), moment


def bundle_size(run: RunConfig, layout: Layout | None = None) -> int:
    """Rows that stay together in a microbatch, on one device, and share one prompt: the most that divide all three."""
    shards = 1 if layout is None else layout.batch_shards
    return math.gcd(run.minibatch_rows // run.learner.microbatches // shards, run.rollouts.rollouts_per_prompt)


def split_minibatches(tree: Any, run: RunConfig) -> Any:
    """Leading axis N -> (minibatches, m), whole groups; strided, so that each keeps the batch's sharding."""
    group_size = run.rollouts.rollouts_per_prompt
    groups = microbatching.reshape_batch_axis(bundle(tree, group_size), run.minibatch_rows // group_size)
    return jax.tree.map(lambda x: jnp.reshape(x, (x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])), groups)


def _scores(
    run: RunConfig,
    policy: Any,
    params: Any,
    rollouts: RolloutBatch,
    *,
    group_size: int | None = None,
    layout: Layout | None = None,
    sketch: Sketch | None = None,
) -> CompletionScores:
    return completion_scores(
        nnx.merge(policy, params),
        rollouts,
        group_size=group_size or bundle_size(run, layout),
        temperature=run.sampling.temperature,
        chunk_size=run.learner.vocab_chunk,
        layout=layout,
        sketch=sketch,
    )


def _loss(run: RunConfig, batch: Batch, scores: CompletionScores) -> tuple[Array, Array, LossMetrics]:
    rollouts, mask = batch.rollouts, batch.rollouts.loss_mask
    old = batch.old_log_probs
    old = jax.lax.stop_gradient(scores.log_probs) if old is None else old
    total, denominator, metrics = policy_objective(
        scores.log_probs,
        old,
        batch.advantages,
        mask,
        run.objective,
        ref_log_probs=batch.ref_log_probs,
        entropy=scores.entropy if run.objective.entropy_coef else jax.lax.stop_gradient(scores.entropy),
        valid=rollouts.valid & rollouts.rewarded,
    )
    gap = jnp.where(mask, jnp.abs(old - rollouts.sampler_log_probs), 0.0)
    metrics.sums["sampler_gap"] = (jnp.sum(gap), jnp.sum(mask, dtype=jnp.float32))
    metrics.sums["loss"] = (jax.lax.stop_gradient(total), denominator)
    metrics.maxima["sampler_gap_max"] = jnp.max(gap)
    return total, denominator, metrics


def apply(
    params: Any, opt_state: Any, grads: Any, optimizer: optax.GradientTransformation
) -> tuple[Any, Any, dict[str, Array]]:
    """One optimizer step; also the global norms of the gradient and of the update."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
    return optax.apply_updates(params, updates), opt_state, norms


def with_basis(state: TrainState, moment: Array | None) -> TrainState:
    """The sketch's basis one round of subspace iteration further."""
    return state if moment is None else dataclasses.replace(state, sketch_basis=orthonormal(moment))


def finish(state: TrainState, run: RunConfig) -> TrainState:
    """Advances the counters."""
    consumed = state.consumed_prompts + run.rollouts.prompts_per_step
    return dataclasses.replace(state, step=state.step + 1, consumed_prompts=consumed)


def salt_key(state: TrainState) -> Array:
    """What SALT's random variants draw from in this step; the sampler uses stream 0."""
    return jax.random.fold_in(state.step_key(), 1)


def sketch_key(state: TrainState) -> Array:
    """What the random projection of this step's sketch is made from."""
    return jax.random.fold_in(state.step_key(), 2)


def sampling_key(state: TrainState) -> Array:
    """What the sampler draws from in this step."""
    return jax.random.fold_in(state.step_key(), 0)


def track_entropy(entropy: Array, rollouts: RolloutBatch, seen: Array) -> tuple[Array, Array]:
    """Mean token entropy of the batch, nats, and the running (least, greatest) with it included."""
    mask = rollouts.loss_mask
    now = jnp.sum(jnp.where(mask, entropy, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
    return now, jnp.stack([jnp.minimum(seen[0], now), jnp.maximum(seen[1], now)])


def reward_metrics(
    rollouts: RolloutBatch, advantages: Array, group_size: int, correct_from: float = 1.0
) -> dict[str, Array]:
    """Rewards, the share of correct ones, lengths, truncation and missing grades of a rollout batch."""
    valid = rollouts.valid
    graded = valid & rollouts.rewarded
    count, rows = jnp.maximum(jnp.sum(graded), 1), jnp.maximum(jnp.sum(valid), 1)
    signal = jnp.any(bundle(advantages, group_size) != 0, axis=1)
    lengths = jnp.sum(rollouts.completion_mask, axis=1)
    return {
        "reward": jnp.sum(jnp.where(graded, rollouts.rewards, 0.0)) / count,
        "accuracy": jnp.sum(graded & (rollouts.rewards >= correct_from)) / count,
        "groups_with_signal": jnp.sum(signal) / jnp.maximum(jnp.sum(jnp.any(bundle(valid, group_size), axis=1)), 1),
        "completion_length": jnp.sum(jnp.where(valid, lengths, 0)) / rows,
        "truncated": jnp.sum(valid & rollouts.truncated) / rows,
        "missing_rewards": jnp.sum(valid & ~rollouts.rewarded),
    }


def average(stacked: dict[str, Array]) -> dict[str, Array]:
    """One scalar a metric over the minibatches and epochs of a step: the mean, or the maximum for ``*_max``."""
    return {
        name: jnp.max(x) if name.endswith("_max") else jnp.mean(x.astype(jnp.float32))
        for name, x in stacked.items()
    }


def jit_train_step(
    run: RunConfig, policy: Any, optimizer: Any, mesh: Mesh, state: TrainState, *, measure: bool = False
) -> Callable[[TrainState, RolloutBatch], tuple[TrainState, dict[str, Array]]]:
    """``train_step`` jitted with in and out shardings on ``mesh``; the state is donated."""
    shardings = tree_shardings(state, mesh)
    layout = mesh_layout(mesh, vocabulary(state.params))
    step = functools.partial(
        train_step, run=run, policy=policy, optimizer=optimizer, measure=measure, layout=layout
    )
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
