"""From prompts to graded rollouts: jitted sampling on the mesh, grading on the host, one pytree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from salt_jax.distributed import hosts
from salt_jax.distributed.sharding import batch_sharding, replicated, tree_shardings
from salt_jax.evaluation.evaluate import decode_completions
from salt_jax.graders import ErrorReport, GraderError, Grades
from salt_jax.learner.settings import RunConfig
from salt_jax.policy.sampler import Samples, SamplingConfig, sample
from salt_jax.policy.waves import Waves
from salt_jax.rollout import RolloutBatch, bucket_length
from salt_jax.tasks import Task, Tokenizer

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
    poll: Callable[[], None] = lambda: None,
) -> Callable[[Any, Any, Any, Array], Samples]:
    """``sample`` jitted on the mesh: (params, prompts (B, P), prompt_mask (B, P), key) -> Samples of B·G rows.

    Prompts are NumPy arrays, whole on every process; they are put on the mesh explicitly. ``waves`` generate one part
    after another, from one compiled program, and change no rollout; None generates all at once. ``poll`` is called
    before each of them, and what it raises ends the generation.
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
        poll()
        prompts, prompt_mask = hosts.put((prompts, prompt_mask), batch)
        where = (np.int32(at[0]), np.int32(at[1]))
        return generate(params, prompts, prompt_mask, *hosts.put((key, where), everywhere))

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


def as_rollouts(
    prompts: Array, prompt_mask: Array, samples: Samples, rewards: Array, rewarded: Array, group_size: int,
    *, valid: Array | None = None, extra: dict[str, Array] | None = None,
) -> RolloutBatch:  # fmt: skip
    """The samples (N, T) of prompts (B, P) with their rewards (N,), N = B · group_size, as one pytree. Pure."""
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
        valid=jnp.ones(n, bool) if valid is None else valid,
        truncated=samples.truncated,
        extra=extra or {},
    )


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
        rollouts = as_rollouts(prompts, prompt_mask, samples, rewards, rewarded, group_size, valid=valid, extra=extra)
        return rollouts if lengths is None else rollouts.trimmed(*lengths)

    def put_and_assemble(
        prompts: Any, prompt_mask: Any, samples: Samples, rewards: Any, rewarded: Any,
        lengths: tuple[int, int] | None = None, valid: Any = None, extra: Any = None,
    ) -> RolloutBatch:
        given = (prompts, prompt_mask, samples, rewards, rewarded)  # samples may be on the mesh already
        host, valid, extra = hosts.put((given, valid, extra or {}), batch)
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


def grade_shares(
    grade: Callable[[Sequence[str], Sequence[str]], Grades],
    rows: Sequence[int],
    texts: Sequence[str],
    references: Sequence[str],
    total: int,
) -> tuple[Grades, list[str]]:
    """Grades and texts of all completions, of which each process grades its own; the same on every process.

    Args:
      grade: of n texts and references.
      rows: the n rows that this process grades; each row is some process's.
      texts: n completions. references: n answers.
      total: N, rows of all processes.

    Returns:
      ``Grades`` and texts of N rows. Where several processes miss rewards, the first message is the first process's.

    Raises:
      GraderError: on all processes, if the grader of one cannot work.
    """
    if hosts.count() == 1:
        return grade(texts, references), list(texts)
    try:
        found = grade(texts, references) if texts else None
        said: dict[str, Any] = {} if found is None else {
            "rewards": found.rewards.tolist(), "answers": found.answers or [None] * len(texts),
            "components": None if found.components is None else found.components.tolist(),
            "missing": found.errors.count, "first": found.errors.first,
        }  # fmt: skip
    except GraderError as error:
        said = {"error": str(error)}
    parts = hosts.gather(said | {"rows": [int(row) for row in rows], "texts": list(texts)})
    if (line := hosts.together([part.get("error") for part in parts])) is not None:
        raise GraderError(line)
    return joined(parts, total)


def joined(parts: Sequence[Mapping[str, Any]], total: int) -> tuple[Grades, list[str]]:
    """What ``grade_shares`` returns, of what each process said.

    Example:
      >>> one = {"rows": [1], "texts": ["b"], "rewards": [1.0], "answers": ["b"], "components": None, "missing": 0,
      ...        "first": ""}
      >>> other = one | {"rows": [0], "texts": ["a"], "rewards": [float("nan")], "missing": 1, "first": "no answer"}
      >>> grades, texts = joined([one, other], 2)
      >>> grades.rewards.tolist(), grades.errors, texts
      ([nan, 1.0], ErrorReport(count=1, first='no answer'), ['a', 'b'])
    """
    rewards, texts = np.full(total, np.nan, np.float32), [""] * total
    answers: list[str | None] = [None] * total
    there = [part for part in parts if part["rows"]]
    for part in there:
        rewards[part["rows"]] = part["rewards"]
        for row, text, answer in zip(part["rows"], part["texts"], part["answers"], strict=True):
            texts[row], answers[row] = text, answer
    widths = {len(part["components"][0]) for part in there if part["components"] is not None}
    if len(widths) > 1:
        raise GraderError(f"the verifier returned {' and '.join(map(str, sorted(widths)))} components")
    components = np.full((total, widths.pop()), np.nan, np.float32) if widths else None
    for part in there if components is not None else ():
        if part["components"] is not None:
            components[part["rows"]] = part["components"]  # type: ignore[index]
    first = next((part["first"] for part in there if part["missing"]), "")
    report = ErrorReport(sum(part["missing"] for part in there), first)
    return Grades(rewards, np.isfinite(rewards), report, tuple(answers), components), texts


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
