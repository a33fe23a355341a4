"""What a forward pass says about a rollout batch before the update: scores, in parts that fit in memory."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from optax import microbatching

from salt_jax.distributed.layout import Layout
from salt_jax.geometry import Sketch
from salt_jax.learner.settings import RunConfig
from salt_jax.policy.logprobs import CompletionScores, completion_scores
from salt_jax.rollout import RolloutBatch, bundle, unbundle
from salt_jax.vocab.kept import KeptRule

Array = jax.Array
SUM, CONCAT = microbatching.AccumulationType.SUM, microbatching.AccumulationType.CONCAT


def scores_of(
    run: RunConfig,
    policy: Any,
    params: Any,
    rollouts: RolloutBatch,
    *,
    group_size: int | None = None,
    layout: Layout | None = None,
    sketch: Sketch | None = None,
    kept: bool = False,
) -> CompletionScores:
    """Scores of rollouts with the run's temperature and chunks; differentiable in ``params``."""
    return completion_scores(
        nnx.merge(policy, params),
        rollouts,
        group_size=group_size or bundle_size(run, layout),
        temperature=run.sampling.temperature,
        chunk_size=run.learner.vocab_chunk,
        layout=layout,
        sketch=sketch,
        kept=KeptRule(run.objective.lp_reg_proxy, run.objective.lp_reg_kappa) if kept else None,
    )


def harvest(
    run: RunConfig,
    policy: Any,
    params: Any,
    rollouts: RolloutBatch,
    *,
    with_hidden: bool = False,
    layout: Layout | None = None,
    sketch: Sketch | None = None,
    kept: bool = False,
) -> tuple[CompletionScores, Array | None]:
    """Scores of the whole rollout batch without gradients, microbatch by microbatch; and the sum of their moments.

    What stays of each rollout for the geometry: (T, D) hidden states for an exact Gram, r numbers for a sketch.
    """
    size = bundle_size(run, layout)
    rows = run.minibatch_rows // run.learner.microbatches

    def part(bundles: RolloutBatch) -> tuple[CompletionScores, Array | None]:
        scores = scores_of(
            run, policy, params, unbundle(bundles), group_size=size, layout=layout, sketch=sketch,
            kept=kept,
        )
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
