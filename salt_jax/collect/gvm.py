"""GVM-RAFT (arXiv 2505.02391): pilots say how hard a prompt is and how large its gradients; slots follow from both.

N′ pilots of each of D prompts give the acceptance rate p and, over the accepted ones, the mean norm G of ∇ ln P in
the LM head (the release takes that of the embeddings; either is one matrix). The B slots of G rollouts each are then
shared out by ``allocation.gvm_weights``. The pilots are not trained on. A prompt without an accepted pilot gets
nothing, unless no prompt has one: then all get the same. Each other one keeps at least ``min_slots``, without which
the estimator would not be unbiased.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from salt_jax import geometry
from salt_jax.collect import allocation
from salt_jax.collect.ada import rows_of
from salt_jax.collect.groups import Groups
from salt_jax.collect.turn import Engine, Memory, Turn
from salt_jax.distributed.sharding import batch_sharding, layout, replicated, tree_shardings
from salt_jax.learner.settings import RunConfig
from salt_jax.policy.logprobs import completion_scores
from salt_jax.rollout import RolloutBatch


def collect(turn: Turn, data: Any, memory: Memory) -> tuple[RolloutBatch, Memory]:
    """Extra: 'weight', N / (D n p) of ``allocation.row_weights``."""
    settings, slots = turn.settings, turn.run.rollouts.prompts_per_step
    batch = next(data)
    pilots = turn.groups(batch, draw=0, rollouts=settings.pilots)
    accepted = turn.succeeded(pilots)
    rates = accepted.sum(axis=1) / np.maximum(pilots.rewarded.sum(axis=1), 1)
    norms = allocation.mean_norms(gradient_norms(turn, pilots), accepted)
    given = slots_of(norms, rates, slots, settings)
    which = np.repeat(np.arange(len(rates)), given)
    groups = turn.groups(rows_of(batch, which.tolist()), draw=1, new=False)
    weights = allocation.row_weights(given * turn.group_size, rates)
    turn.note(
        largest_share=float(given.max()), prompts_left_out=float((given == 0).mean()),
        pilot_success=float(rates.mean()),
        gradient_norm=float(norms.sum() / max(int((norms > 0).sum()), 1)),
    )
    return turn.finish(groups, {"weight": weights[which]}), memory


def slots_of(norms: np.ndarray, rates: np.ndarray, slots: int, settings: Any) -> np.ndarray:
    """(D,) whole slots: in proportion to the weights, within the bounds; 0 where the weight is 0."""
    weights = allocation.gvm_weights(norms, rates, alpha=settings.gvm_alpha, beta=settings.gvm_beta)
    live = weights > 0
    most = max(settings.max_slots, -(-slots // int(live.sum())))  # few prompts with a right pilot take all slots
    least = min(settings.min_slots, slots // int(live.sum()))
    given = np.zeros(len(weights), np.int64)
    given[live] = allocation.integer_counts(allocation.water_fill(weights[live], slots, least, most), slots)
    return given


def gradient_norms(turn: Turn, pilots: Groups) -> np.ndarray:
    """(D, N′) ‖∇ ln P(completion)‖₂ in the LM head under the current parameters, log P summed over tokens.

    Some prompts at a time, as many as a microbatch of the update holds.
    """
    engine, per_call = turn.engine, prompts_at_once(turn.run, len(pilots), pilots.size, turn.engine.shards)
    compute = engine.made(("gradient_norms", per_call, pilots.size), lambda: jit_norms(engine, pilots.size))
    parts = [
        compute(turn.state.params, turn.assemble(pilots.take(slice(first, first + per_call))))
        for first in range(0, len(pilots), per_call)
    ]
    return np.concatenate(jax.device_get(parts)).reshape(len(pilots), pilots.size)


def prompts_at_once(run: RunConfig, prompts: int, pilots: int, shards: int) -> int:
    """The most prompts that divide all, and devices divide, whose pilots fit a microbatch; at least one a device."""
    rows = run.minibatch_rows // run.learner.microbatches
    sizes = [b for b in range(shards, prompts + 1, shards) if prompts % b == 0]
    return max(b for b in sizes if b * pilots <= rows or b == shards)


def jit_norms(engine: Engine, pilots: int) -> Any:
    """Jitted: (params, N rollouts) -> (N,) norms, the root of the diagonal of the LM head's Gram matrix."""
    run, places = engine.run, layout(engine.mesh, engine.shape.vocab_size)
    settings = run.geometry

    @functools.partial(
        jax.jit,
        in_shardings=(tree_shardings(engine.params, engine.mesh), batch_sharding(engine.mesh)),
        out_shardings=replicated(engine.mesh),
    )
    def norms(params: Any, rollouts: RolloutBatch) -> jax.Array:
        model = nnx.merge(engine.policy, params)
        scores = completion_scores(
            model, rollouts, group_size=pilots, temperature=run.sampling.temperature,
            chunk_size=run.learner.vocab_chunk, layout=places,
        )
        hidden: Any = scores.hidden  # there: nothing has dropped it
        gram = geometry.lm_head_gram(
            hidden, model.lm_head, rollouts.completions, rollouts.loss_mask,
            temperature=run.sampling.temperature, log_normalizer=scores.log_normalizer, length_normalize=False,
            chunk_size=settings.vocab_chunk, layout=places,
            memory_budget=None if settings.memory_mib is None else settings.memory_mib * 2**20,
        )
        return jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0)) / run.sampling.temperature

    return norms
