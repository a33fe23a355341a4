"""What every way to collect rollouts works with: an engine that samples and grades, and one step's turn of it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from salt_jax.collect import extras, generation
from salt_jax.collect.groups import Groups, of_batch
from salt_jax.distributed import hosts
from salt_jax.distributed.sharding import replicated
from salt_jax.evaluation.evaluate import decode_completions
from salt_jax.graders import ErrorReport, Grades
from salt_jax.learner.settings import RunConfig
from salt_jax.learner.state import TrainState
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import Samples
from salt_jax.policy.waves import plan_waves
from salt_jax.rollout import RolloutBatch, succeeded
from salt_jax.tasks import Source, Task

Memory = Mapping[str, np.ndarray]  # what a way remembers from step to step, by name
SAMPLER, CHOICE = 0, 5  # streams of a step's key; 1 to 4 are the train step's


class CollectionError(RuntimeError):
    """A step's rollouts could not be had; the message names the step and the setting.

    Example:
      >>> raise CollectionError("step 3: no rollouts")
      Traceback (most recent call last):
      salt_jax.collect.turn.CollectionError: step 3: no rollouts
    """


@dataclasses.dataclass(frozen=True)
class Collected:
    """One step's rollouts.

    Attributes:
      rollouts: N = B·G rows, on the mesh.
      metrics: of the collection, host numbers.
      tokens: sampled for it, also those of rollouts that are not in the batch.
      grading_seconds: spent in graders.
    """

    rollouts: RolloutBatch
    metrics: Mapping[str, float]
    tokens: float
    grading_seconds: float


@dataclasses.dataclass(frozen=True)
class Engine:
    """What a run's collection needs at hand.

    Attributes:
      run: the checked configuration.
      task: tokenizer and verifier.
      source: the problems to train on.
      policy: static part of the model.
      shape: the policy's, with its vocabulary.
      params: the parameters, or their shapes: where they lie on the mesh is looked at.
      mesh: of the run.
      grade: (texts, references) -> Grades.
      warn: says one line to a person.
      poll: called before each generation and between its waves; what it raises ends the collection.
    """

    run: RunConfig
    task: Task
    source: Source
    policy: Any
    shape: TransformerConfig
    params: Any
    mesh: Mesh
    grade: Callable[[Sequence[str], Sequence[str]], Grades]
    warn: Callable[[str], None]
    poll: Callable[[], None] = lambda: None

    @functools.cached_property
    def compiled(self) -> dict[Any, Any]:
        """Jitted functions by what they are for; each is made when it is first needed."""
        return {}

    def made(self, key: Any, make: Callable[[], Any]) -> Any:
        """A jitted function, kept for the next call."""
        if key not in self.compiled:
            self.compiled[key] = make()
        return self.compiled[key]

    @property
    def shards(self) -> int:
        """Devices that rows are split over."""
        return self.run.mesh.data * self.run.mesh.fsdp

    def sampler(self, prompts: int, rollouts: int, temperature: float | None) -> Any:
        """The jitted sampler of so many prompts and rollouts of each, within config.sampling.wave_mib."""
        config, limits = self.run.sampling, self.run.rollouts
        if temperature is not None:
            config = dataclasses.replace(config, temperature=temperature)

        def make() -> Any:
            waves = plan_waves(
                self.shape, config, prompts=prompts, rollouts=rollouts, prompt_length=limits.max_prompt_length,
                budget_mib=limits.wave_mib, shards=self.shards,
            )
            return generation.jit_sampler(
                self.policy, self.params, self.mesh, group_size=rollouts, config=config,
                tokenizer=self.task.tokenizer, waves=waves, poll=self.poll,
            )

        return self.made(("sampler", prompts, rollouts, config.temperature), make)

    def assembler(self, rollouts: int) -> Any:
        """The jitted assembly of groups of so many rollouts."""
        return self.made(("assembler", rollouts), lambda: generation.jit_assemble(self.mesh, rollouts))

    def key(self, state: TrainState, stream: int, draw: int | None) -> jax.Array:
        """fold_in(step key, stream), and with the number of a draw in it fold_in(that, draw)."""
        stream_key = self.made("stream", lambda: jax.jit(lambda state, i: jax.random.fold_in(state.step_key(), i)))
        fold = self.made("fold", lambda: jax.jit(jax.random.fold_in))
        at = replicated(self.mesh)
        key = stream_key(state, hosts.put(np.int32(stream), at))
        return key if draw is None else fold(key, hosts.put(np.int32(draw), at))


class Turn:
    """One step's sampling and grading; counts what it cost.

    Args:
      engine: of the run.
      state: before the step; its parameters sample.
      step: number of the step, from 1, for messages.
    """

    def __init__(self, engine: Engine, state: TrainState, step: int) -> None:
        self.engine, self.run, self.state, self.step = engine, engine.run, state, step
        self.prompts = self.rollouts = 0
        self.tokens = self.grading_seconds = self.graded = self.rewards = 0.0
        self.metrics: dict[str, float] = {}

    @property
    def settings(self) -> Any:
        """config.collection."""
        return self.run.collection

    @property
    def group_size(self) -> int:
        """G."""
        return self.run.rollouts.rollouts_per_prompt

    def random(self) -> np.random.Generator:
        """For choices on the host, from the step's key."""
        words = jax.random.key_data(self.engine.key(self.state, CHOICE, None))
        return np.random.default_rng(jax.device_get(words).tolist())

    def sample(
        self, prompts: Any, prompt_mask: Any, *, draw: int | None, rollouts: int, temperature: float | None = None
    ) -> Samples:
        """Completions of (B, P) prompts on the mesh, ``rollouts`` each; ``draw`` is the round of the step."""
        generate = self.engine.sampler(len(prompts), rollouts, temperature)
        return generate(self.state.params, prompts, prompt_mask, self.engine.key(self.state, SAMPLER, draw))

    def grade(
        self, samples: Samples, references: Sequence[str], sampled: int | None = None
    ) -> tuple[Grades, list[str]]:
        """Grades and texts of N completions by the references of their B prompts.

        Every process decodes and grades the rows that its own devices sampled, and hears of the others.

        Args:
          samples: N rows on the mesh, or on the host the first N of those that were sampled.
          references: B answers.
          sampled: how many were; None: N.
        """
        total = samples.lengths.shape[0]
        rows = hosts.local_rows(self.engine.mesh, sampled or total)
        rows = rows[rows < total]
        if isinstance(samples.tokens, np.ndarray):
            tokens, lengths = samples.tokens[rows], samples.lengths[rows]
        else:
            tokens, lengths = hosts.fetch_local((samples.tokens, samples.lengths))
        own = decode_completions(self.engine.task, dataclasses.replace(samples, tokens=tokens, lengths=lengths))
        group = total // len(references)
        began = time.perf_counter()
        grades, texts = generation.grade_shares(
            self.engine.grade, rows.tolist(), own, [references[row // group] for row in rows.tolist()], total
        )
        self.grading_seconds += time.perf_counter() - began
        if grades.errors.count:
            lost = f"{grades.errors.count} of {len(grades.rewards)} rewards are missing"
            self.engine.warn(f"{lost}, the first: {grades.errors.first}")
        return grades, texts

    def count(self, prompts: int, lengths: np.ndarray) -> None:
        """Adds to what this step has sampled: prompts that are new in it, and rollouts by their lengths."""
        self.prompts += prompts
        self.rollouts += lengths.size
        self.tokens += float(lengths.sum())

    def groups(
        self,
        batch: Mapping[str, Any],
        *,
        draw: int,
        rollouts: int | None = None,
        temperature: float | None = None,
        only: int | None = None,
        new: bool = True,
    ) -> Groups:
        """Graded groups of a batch's prompts, on the host.

        Args:
          batch: of ``prompt_batches``.
          draw: the round of this step, for the random key.
          rollouts: of each prompt; None: G.
          temperature: None: config.sampling's.
          only: the first so many prompts count, the rest fills up the shape; None: all.
          new: whether these prompts are new in this step, for the counts.
        """
        rollouts, only = rollouts or self.group_size, len(batch["ids"]) if only is None else only
        samples = self.sample(
            batch["prompt_tokens"], batch["prompt_mask"], draw=draw, rollouts=rollouts, temperature=temperature
        )
        sampled = len(batch["ids"]) * rollouts
        samples = jax.tree.map(lambda x: x[: only * rollouts], hosts.fetch(samples))
        grades, texts = self.grade(samples, batch["references"][:only], sampled)
        self.count(only if new else 0, samples.lengths)
        if temperature is None:  # the policy's own
            self.graded += float(grades.rewarded.sum())
            self.rewards += float(np.where(grades.rewarded, grades.rewards, 0.0).sum(dtype=np.float64))
        return of_batch(batch, samples, grades, texts, only)

    def succeeded(self, groups: Groups) -> np.ndarray:
        """(B, g) bool: which rollouts reached config.task.correct_from."""
        return succeeded(groups.rewards, groups.rewarded, self.run.correct_from)

    def assemble(self, groups: Groups, extra: Mapping[str, np.ndarray] | None = None) -> RolloutBatch:
        """Groups on the mesh; nothing is trimmed and nothing added."""
        flat = groups.flat()
        return self.engine.assembler(groups.size)(
            groups.prompts, groups.prompt_mask, flat.samples, flat.rewards, flat.rewarded, None, flat.valid,
            dict(extra or {}),
        )

    def finish(self, groups: Groups, extra: Mapping[str, np.ndarray] | None = None) -> RolloutBatch:
        """The step's batch: B groups of G rows on the mesh, trimmed to what its valid rows need.

        Args:
          groups: B groups of G.
          extra: entries of ``RolloutBatch.extra`` by name, each (B, G) or (B,) of the groups.
        """
        flat = groups.flat()
        rows = flat.samples.lengths[flat.valid] if flat.valid.any() else np.ones(1, np.int32)
        trimmed = generation.batch_lengths(self.run, groups.prompt_mask, rows)
        entries = {name: _rows(value, groups) for name, value in (extra or {}).items()}
        entries |= extras.of_rollouts(
            self.run.collection, self.engine.task.tokenizer, self.group_size, flat.texts, flat.answers,
            flat.components, flat.samples,
        )
        self.note_clusters(entries)
        own = flat.rewarded & flat.valid & ~entries.get("demonstration", np.zeros_like(flat.valid))
        self.by_source(groups.ids.tolist(), flat.rewards, own)
        return self.engine.assembler(groups.size)(
            groups.prompts, groups.prompt_mask, flat.samples, flat.rewards, flat.rewarded, trimmed, flat.valid, entries
        )

    def by_source(self, ids: Sequence[str], rewards: np.ndarray, rewarded: np.ndarray) -> None:
        """Notes the mean reward of each part of a mixture."""
        if self.run.task_name == "mixture":
            grades = Grades(rewards, rewarded, ErrorReport(0, ""))
            self.metrics |= generation.rewards_by_source(ids, grades, self.group_size)

    def note_clusters(self, extra: Mapping[str, np.ndarray]) -> None:
        """Notes how many classes a group's completions fall into, where they are told apart."""
        if "clusters" in extra:
            classes = np.reshape(extra["clusters"], (-1, self.group_size))
            self.metrics["collection/clusters_per_group"] = float(np.mean([len(set(row)) for row in classes.tolist()]))

    def note(self, **metrics: float) -> None:
        """Metrics of the collection, beside the counts and the mean reward of all that the policy sampled."""
        found = {"prompts_sampled": self.prompts, "rollouts_sampled": self.rollouts} | metrics
        if self.graded:
            found["reward_sampled"] = self.rewards / self.graded
        self.metrics |= {f"collection/{name}": float(value) for name, value in found.items()}


class Method(NamedTuple):
    """One way to collect.

    Attributes:
      collect: (turn, data, memory) -> (rollouts, memory). ``data`` is what ``data`` says.
      start: engine -> the memory before the first step.
      data: 'prompts': an iterator over batches of prompts; 'solutions': the same with the problems' solutions;
        'source': none, the way itself chooses among ``engine.source``.
      shared: config.collection.distinct_prompts prompts a batch share the B slots; else B prompts.
      options: fields of ``CollectionConfig`` that it reads.
      estimators: allowed for config.objective.estimator; () allows all that need no baseline.
    """

    collect: Callable[[Turn, Any, Memory], tuple[RolloutBatch, Memory]]
    start: Callable[[Engine], Memory] = lambda engine: {}
    data: str = "prompts"
    shared: bool = False
    options: tuple[str, ...] = ()
    estimators: tuple[str, ...] = ()


def _rows(value: np.ndarray, groups: Groups) -> np.ndarray:
    """(B,) or (B, G) -> (N,); floats in float32."""
    value = np.asarray(value)
    value = value[:, None] if value.ndim == 1 else value
    dtype = np.float32 if value.dtype.kind == "f" else value.dtype
    return np.broadcast_to(value, groups.rewards.shape).reshape(-1).astype(dtype)
