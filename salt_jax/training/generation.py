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
from salt_jax.rollout import RolloutBatch, bucket_length
from salt_jax.tasks import Task, Tokenizer
from salt_jax.training.config import RunConfig
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
    """Jitted: (prompts, prompt_mask, samples, rewards, rewarded, lengths=None) -> RolloutBatch, all on the mesh.

    ``lengths`` are the static (P, T) that the batch is trimmed to, from ``batch_lengths``; None keeps all columns.
    """
    batch = batch_sharding(mesh)

    @functools.partial(jax.jit, in_shardings=batch, out_shardings=batch, static_argnums=5)
    def assemble(
        prompts: Array, prompt_mask: Array, samples: Samples, rewards: Array, rewarded: Array,
        lengths: tuple[int, int] | None,
    ) -> RolloutBatch:
        n = samples.tokens.shape[0]

        def spread(x: Array) -> Array:
            return jnp.repeat(x, group_size, axis=0, total_repeat_length=n)

        rollouts = RolloutBatch(
            tokens=jnp.concatenate([spread(prompts), samples.tokens], axis=1),
            prompt_mask=spread(prompt_mask),
            completion_mask=samples.mask,
            sampler_log_probs=samples.log_probs,
            rewards=rewards,
            rewarded=rewarded,
            valid=jnp.ones(n, bool),
            truncated=samples.truncated,
        )
        return rollouts if lengths is None else rollouts.trimmed(*lengths)

    def put_and_assemble(
        prompts: Any, prompt_mask: Any, samples: Samples, rewards: Any, rewarded: Any,
        lengths: tuple[int, int] | None = None,
    ) -> RolloutBatch:
        host = jax.device_put((prompts, prompt_mask, rewards, rewarded), batch)
        return assemble(host[0], host[1], samples, host[2], host[3], lengths)

    return put_and_assemble


def batch_lengths(run: RunConfig, prompt_mask: Any, completion_lengths: Any) -> tuple[int, int]:
    """(P, T) of the least buckets that hold a batch's longest prompt and completion.

    They depend on the batch alone, so that a resumed run trims as the uninterrupted one does.

    Args:
      run: ``learner.prompt_buckets`` and ``learner.length_buckets`` are used.
      prompt_mask: (B, P) NumPy bool.
      completion_lengths: (N,) NumPy integers, at least 1.
    """
    longest_prompt = max(int(prompt_mask.sum(axis=1).max()), 1)
    prompt = bucket_length(longest_prompt, run.rollouts.max_prompt_length, run.learner.prompt_buckets)
    limit, buckets = run.sampling.max_new_tokens, run.learner.length_buckets
    return prompt, bucket_length(int(completion_lengths.max()), limit, buckets)


def grade_samples(task: Task, samples: Samples, references: list[str], group_size: int) -> tuple[Any, Any, str]:
    """Rewards (N,) and rewarded (N,) of a group's completions, and the first grader failure's message or ''."""
    repeated = [reference for reference in references for _ in range(group_size)]
    grades = task.grade(decode_completions(task, samples), repeated)
    return np.asarray(grades.rewards, np.float32), np.asarray(grades.rewarded), grades.errors.first
