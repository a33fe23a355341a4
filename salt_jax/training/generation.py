"""From prompts to graded rollouts: jitted sampling on the mesh, grading on the host, one pytree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from salt_jax.evaluate import decode_completions
from salt_jax.graders import Grades
from salt_jax.policy.sampler import Samples, SamplingConfig, sample
from salt_jax.policy.waves import Waves
from salt_jax.rollout import RolloutBatch, bucket_length
from salt_jax.tasks import Task, Tokenizer
from salt_jax.training.settings import RunConfig
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
    waves: Waves | None = None,
) -> Callable[[Any, Any, Any, Array], Samples]:
    """``sample`` jitted on the mesh: (params, prompts (B, P), prompt_mask (B, P), key) -> Samples of B·G rows.

    Prompts are NumPy arrays; they are put on the mesh explicitly. ``waves`` generate one part after another, from
    one compiled program, and change no rollout; None generates all at once.
    """
    stop_ids, pad_id = tuple(tokenizer.stop_ids), tokenizer.pad_id
    batch, everywhere = batch_sharding(mesh), replicated(mesh)

    @functools.partial(
        jax.jit,
        in_shardings=(tree_shardings(params, mesh), batch, batch, everywhere, everywhere),
        out_shardings=batch,
    )
    def generate(params: Any, prompts: Array, prompt_mask: Array, key: Array, at: tuple[Array, Array]) -> Samples:
        return sample(
            nnx.merge(policy, params), prompts, prompt_mask, key,
            group_size=group_size if waves is None else waves.rollouts, config=config, stop_ids=stop_ids,
            pad_id=pad_id, part_of=None if waves is None else waves.of, at=at,
        )

    @functools.partial(jax.jit, out_shardings=batch)
    def join(parts: list[list[Samples]]) -> Samples:
        """Waves of each block of prompts -> rows in the order of prompts, then rollouts."""
        def of_prompts(*parts: Array) -> Array:
            blocks = [jnp.reshape(x, (waves.prompts, waves.rollouts, *x.shape[1:])) for x in parts]  # type: ignore[union-attr]
            merged = jnp.concatenate(blocks, axis=1)
            return jnp.reshape(merged, (-1, *merged.shape[2:]))

        groups = [jax.tree.map(of_prompts, *block) for block in parts]
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *groups)

    def one(params: Any, prompts: Any, prompt_mask: Any, key: Array, at: tuple[int, int]) -> Samples:
        prompts, prompt_mask = jax.device_put((prompts, prompt_mask), batch)
        where = (np.int32(at[0]), np.int32(at[1]))
        return generate(params, prompts, prompt_mask, *jax.device_put((key, where), everywhere))

    def put_and_generate(params: Any, prompts: Any, prompt_mask: Any, key: Array) -> Samples:
        if waves is None or len(waves) == 1:
            return one(params, prompts, prompt_mask, key, (0, 0))
        parts: dict[int, list[Samples]] = {}
        for first, rollout in waves:
            rows = slice(first, first + waves.prompts)
            made = one(params, prompts[rows], prompt_mask[rows], key, (first, rollout))
            parts.setdefault(first, []).append(jax.block_until_ready(made))  # one wave's cache at a time
        return join(list(parts.values()))

    return put_and_generate


def jit_assemble(mesh: Mesh, group_size: int) -> Callable[..., RolloutBatch]:
    """Jitted: (prompts, prompt_mask, samples, rewards, rewarded, lengths=None, …) -> RolloutBatch, all on the mesh.

    ``lengths`` are the static (P, T) that the batch is trimmed to, from ``batch_lengths``; None keeps all columns.
    ``valid`` (N,) is false on rows that only pad the batch; None: all are rollouts. ``extra``: see ``rollout.EXTRA``.
    """
    batch = batch_sharding(mesh)

    @functools.partial(jax.jit, in_shardings=batch, out_shardings=batch, static_argnums=5)
    def assemble(
        prompts: Array, prompt_mask: Array, samples: Samples, rewards: Array, rewarded: Array,
        lengths: tuple[int, int] | None, valid: Array | None, extra: dict[str, Array],
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
            valid=jnp.ones(n, bool) if valid is None else valid,
            truncated=samples.truncated,
            extra=extra,
        )
        return rollouts if lengths is None else rollouts.trimmed(*lengths)

    def put_and_assemble(
        prompts: Any, prompt_mask: Any, samples: Samples, rewards: Any, rewarded: Any,
        lengths: tuple[int, int] | None = None, valid: Any = None, extra: Any = None,
    ) -> RolloutBatch:
        given = (prompts, prompt_mask, samples, rewards, rewarded)  # samples may be on the mesh already
        host, valid, extra = jax.device_put((given, valid, extra or {}), batch)
        return assemble(*host, lengths, valid, extra)

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


def grade_samples(
    task: Task, grade: Callable[[Sequence[str], Sequence[str]], Grades], samples: Samples, references: list[str],
    group_size: int,
) -> Grades:
    """Grades of all rollouts, N = B·G rows, by the references of their B prompts."""
    repeated = [reference for reference in references for _ in range(group_size)]
    return grade(decode_completions(task, samples), repeated)


def rewards_by_source(ids: Sequence[str], grades: Grades, group_size: int) -> dict[str, float]:
    """Mean graded reward of each part of a mixture, whose ids begin with 'part/'.

    Example:
      >>> from salt_jax.graders import Verdict
      >>> from salt_jax.graders.verdict import gather
      >>> rewards_by_source(["sums/7", "words/1"], gather([Verdict(1.0), Verdict(0.0), "lost", Verdict(1.0)]), 2)
      {'reward/sums': 0.5, 'reward/words': 1.0}
    """
    found: dict[str, list[float]] = {}
    for i, (reward, rewarded) in enumerate(zip(grades.rewards.tolist(), grades.rewarded.tolist(), strict=True)):
        if rewarded:
            found.setdefault(f"reward/{ids[i // group_size].partition('/')[0]}", []).append(reward)
    return {name: sum(rewards) / len(rewards) for name, rewards in sorted(found.items())}
