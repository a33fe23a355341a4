"""The supervised phase for policies that start from random weights: the task's own solutions, one loss of three."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from salt_jax.distributed import hosts
from salt_jax.distributed.layout import Layout
from salt_jax.distributed.sharding import batch_sharding, replicated, tree_shardings
from salt_jax.distributed.sharding import layout as mesh_layout
from salt_jax.learner.settings import RunConfig
from salt_jax.learner.state import TrainState, make_optimizer, vocabulary
from salt_jax.learner.step import apply
from salt_jax.objective.otr import streamed_otr
from salt_jax.policy.logprobs import completion_scores
from salt_jax.rollout import RolloutBatch
from salt_jax.tasks import Task, solution_batches

Array = jax.Array


def warm_start_optimizer(run: RunConfig) -> optax.GradientTransformation:
    """The run's optimizer at the warm start's own constant learning rate."""
    warm = run.warm_start
    config = dataclasses.replace(
        run.optimizer, learning_rate=warm.learning_rate, schedule="constant", warmup_steps=0
    )
    return make_optimizer(config, warm.steps)


def warm_start_batches(run: RunConfig, task: Task) -> Any:
    """Batches of prompts with their solutions, reshuffled every epoch; the iterator's state can be saved."""
    return solution_batches(
        task.source("train"),
        task.tokenizer,
        batch_size=run.warm_start.batch_size,
        max_prompt_length=run.rollouts.max_prompt_length,
        max_completion_length=run.sampling.max_new_tokens,
        seed=run.seed,
    )


def warm_start_step(
    state: TrainState,
    batch: dict[str, Array],
    *,
    run: RunConfig,
    policy: Any,
    optimizer: Any,
    layout: Layout | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One supervised step, at temperature 1. Pure. By config.warm_start.objective::

        sft        L = −Σ log π(solution token) / tokens
        otr        One-Token Rollout of arXiv 2509.26313, drawn from the state's key and step (``objective.otr``)
        otr_exact  its expectation over the draws

    Args:
      state: before the step.
      batch: prompt_tokens (N, P), prompt_mask (N, P), completion_tokens (N, T), completion_mask (N, T).
      run: the checked configuration.
      policy: static part of the model.
      optimizer: from ``warm_start_optimizer``.
      layout: where rows and parameters lie on a mesh; None on one device.

    Returns:
      The state after the step; ``loss``, in nats a token for 'sft', norms and ``guards/skipped``, 1 where one of
      these was not finite and nothing changed; with the other objectives ``nll``, what the loss of 'sft' would be.
    """
    rows = batch["prompt_tokens"].shape[0]
    blank = jnp.zeros(rows)
    rollouts = RolloutBatch(
        tokens=jnp.concatenate([batch["prompt_tokens"], batch["completion_tokens"]], axis=1),
        prompt_mask=batch["prompt_mask"],
        completion_mask=batch["completion_mask"],
        sampler_log_probs=jnp.zeros(batch["completion_mask"].shape),
        rewards=blank,
        rewarded=blank == 0,
        valid=blank == 0,
        truncated=blank > 0,
    )

    def loss(params: Any) -> tuple[Array, dict[str, Array]]:
        model, warm, chunk = nnx.merge(policy, params), run.warm_start, run.learner.vocab_chunk
        scores = completion_scores(model, rollouts, group_size=1, chunk_size=chunk, layout=layout)
        mask = rollouts.completion_mask
        if warm.objective == "sft":
            return -jnp.sum(jnp.where(mask, scores.log_probs, 0.0)) / jnp.maximum(jnp.sum(mask), 1), {}
        assert scores.hidden is not None
        # The log-probabilities of `scores` are not used, and so not computed: the next line has its own.
        value, nll = streamed_otr(
            scores.hidden, model.lm_head, rollouts.completions, mask, key=state.step_key(),
            samples=warm.otr_samples if warm.objective == "otr" else None,
            temperature=warm.otr_temperature, beta=warm.otr_beta, chunk_size=chunk, layout=layout,
        )
        return value, {"nll": nll}

    (value, more), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    params, opt_state, norms = apply(state.params, state.opt_state, grads, optimizer, jnp.isfinite(value))
    state = dataclasses.replace(state, params=params, opt_state=opt_state, step=state.step + 1)
    return state, {"loss": value} | more | norms


def jit_warm_start_step(
    run: RunConfig, policy: Any, optimizer: Any, mesh: Mesh, state: TrainState
) -> Callable[[TrainState, dict[str, Any]], tuple[TrainState, dict[str, Array]]]:
    """``warm_start_step`` jitted with in and out shardings; batches may be NumPy; the state is donated."""
    shardings, batch_at = tree_shardings(state, mesh), batch_sharding(mesh)
    layout = mesh_layout(mesh, vocabulary(state.params))
    step = jax.jit(
        functools.partial(warm_start_step, run=run, policy=policy, optimizer=optimizer, layout=layout),
        in_shardings=(shardings, batch_at),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    names = ("prompt_tokens", "prompt_mask", "completion_tokens", "completion_mask")

    def put_and_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, Array]]:
        return step(state, hosts.put({name: batch[name] for name in names}, batch_at))

    return put_and_step
