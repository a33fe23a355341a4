"""From prompts to graded rollouts: jitted sampling on the mesh, grading on the host, one pytree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from salt_jax.evaluate import decode_completions
from salt_jax.policy.sampler import Samples, SamplingConfig, sample
from salt_jax.rollout import RolloutBatch
from salt_jax.tasks import Task, Tokenizer
from salt_jax.training.sharding import batch_sharding, replicated, tree_shardings

Array = jax.Array


def jit_sampler(
    policy: Any,
    params: Any,
    mesh: Mesh,
    *,
    group_size: int,
    config: SamplingConfig,
    tokenizer: Tokenizer,
) -> Callable[[Any, Any, Any, Array], Samples]:
    """``sample`` jitted on the mesh: (params, prompts (B, P), prompt_mask (B, P), key) -> Samples.

    Prompts may be NumPy arrays; they are put on the mesh explicitly.
    """
    stop_ids, pad_id = tuple(tokenizer.stop_ids), tokenizer.pad_id
    batch = batch_sharding(mesh)

    @functools.partial(
        jax.jit,
        in_shardings=(tree_shardings(params, mesh), batch, batch, replicated(mesh)),
        out_shardings=batch,
    )
    def generate(params: Any, prompts: Array, prompt_mask: Array, key: Array) -> Samples:
        return sample(
            nnx.merge(policy, params), prompts, prompt_mask, key,
            group_size=group_size, config=config, stop_ids=stop_ids, pad_id=pad_id,
        )

    def put_and_generate(params: Any, prompts: Any, prompt_mask: Any, key: Array) -> Samples:
        prompts, prompt_mask = jax.device_put((prompts, prompt_mask), batch)
        return generate(params, prompts, prompt_mask, jax.device_put(key, replicated(mesh)))

    return put_and_generate


def jit_assemble(mesh: Mesh, group_size: int) -> Callable[..., RolloutBatch]:
    """Jitted: (prompts, prompt_mask, samples, rewards, rewarded) -> RolloutBatch, all on the mesh."""
    batch = batch_sharding(mesh)

    @functools.partial(jax.jit, in_shardings=batch, out_shardings=batch)
    def assemble(
        prompts: Array, prompt_mask: Array, samples: Samples, rewards: Array, rewarded: Array
    ) -> RolloutBatch:
        n = samples.tokens.shape[0]

        def spread(x: Array) -> Array:
            return jnp.repeat(x, group_size, axis=0, total_repeat_length=n)

        return RolloutBatch(
            tokens=jnp.concatenate([spread(prompts), samples.tokens], axis=1),
            prompt_mask=spread(prompt_mask),
            completion_mask=samples.mask,
            sampler_log_probs=samples.log_probs,
            rewards=rewards,
            rewarded=rewarded,
            valid=jnp.ones(n, bool),
            truncated=samples.truncated,
        )

    def put_and_assemble(prompts: Any, prompt_mask: Any, samples: Samples, rewards: Any, rewarded: Any) -> RolloutBatch:
        host = jax.device_put((prompts, prompt_mask, rewards, rewarded), batch)
        return assemble(host[0], host[1], samples, host[2], host[3])

    return put_and_assemble


def grade_samples(task: Task, samples: Samples, references: list[str], group_size: int) -> tuple[Any, Any, str]:
    """Rewards (N,) and rewarded (N,) of a group's completions, and the first grader failure's message or ''."""
    repeated = [reference for reference in references for _ in range(group_size)]
    grades = task.grade(decode_completions(task, samples), repeated)
    return np.asarray(grades.rewards, np.float32), np.asarray(grades.rewarded), grades.errors.first
