"""Training runs that are timed: what the benchmarks of whole steps share.

An arm is one run with its state; arms take turns step by step, so that all of them see the same machine.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import config_dict

from experiments.benchmarks import report
from salt_jax.collect import generation
from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.learner.reweighting import first_basis
from salt_jax.learner.state import TrainState, init_params, init_state, make_optimizer, make_policy
from salt_jax.learner.step import jit_train_step, sampling_key
from salt_jax.learner.warm_start import jit_warm_start_step, warm_start_batches, warm_start_optimizer
from salt_jax.rollout import RolloutBatch
from salt_jax.run import config as training_config
from salt_jax.run.setup import make_task, make_tokenizer
from salt_jax.tasks import prompt_batches

PARTS = ("sample", "reward", "update", "step")


class Arm:
    """A run and the seconds of its steps, by part.

    Args:
      run: the checked configuration, for those who report it.
      state: before the first step; donated step by step.
      sample: state -> sampled rollouts, any pytree; on the device.
      grade: what ``sample`` returned -> graded ``RolloutBatch``; on the host.
      update: (state, rollouts) -> (state, metrics).
    """

    def __init__(
        self,
        run: training_config.RunConfig,
        state: TrainState,
        sample: Callable[[TrainState], Any],
        grade: Callable[[Any], RolloutBatch],
        update: Callable[[TrainState, RolloutBatch], tuple[TrainState, dict[str, jax.Array]]],
    ) -> None:
        self.run, self.state = run, state
        self.sample, self.grade, self.update = sample, grade, update
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.metrics: list[dict[str, float]] = []

    @property
    def parameters(self) -> int:
        """How many numbers the policy has."""
        return sum(x.size for x in jax.tree.leaves(self.state.params))

    def step(self) -> None:
        """One whole step; its times and metrics are kept."""
        start = time.perf_counter()
        samples = jax.block_until_ready(self.sample(self.state))
        sampled = time.perf_counter()
        rollouts = jax.block_until_ready(self.grade(samples))
        graded = time.perf_counter()
        self.state, metrics = jax.block_until_ready(self.update(self.state, rollouts))
        end = time.perf_counter()
        for part, seconds in zip(PARTS, (sampled - start, graded - sampled, end - graded, end - start), strict=True):
            self.seconds[part].append(seconds)
        self.metrics.append({name: float(value) for name, value in jax.device_get(metrics).items()})

    def warm_up(self, steps: int = 2) -> float:
        """Steps that are not counted: the first compiles. Returns the seconds they took."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        for times in self.seconds.values():
            times.clear()
        return time.perf_counter() - start

    def spreads(self) -> dict[str, dict[str, float]]:
        """Median and minimum of each part."""
        return {part: report.spread(times) for part, times in self.seconds.items()}


def take_turns(arms: Mapping[str, Arm], steps: int) -> None:
    """``steps`` steps of every arm, in turns; every other round in reverse, so that none always goes first."""
    order = list(arms.values())
    for i in range(steps):
        for arm in order if i % 2 == 0 else order[::-1]:
            arm.step()


def medians(arms: Mapping[str, Arm]) -> dict[str, float]:
    """Median seconds of a whole step of each arm."""
    return {name: statistics.median(arm.seconds["step"]) for name, arm in arms.items()}


class TaskRun:
    """A run on a real task, as ``salt_jax.run.loop`` sets it up, without a workdir.

    A context manager: the data set's files last as long as it does.
    """

    def __init__(self, config: config_dict.ConfigDict) -> None:
        run = training_config.parse(config)
        self._folder = tempfile.TemporaryDirectory()
        self.task = make_task(run, Path(self._folder.name), make_tokenizer(run))
        self.run = dataclasses.replace(
            run, policy=dataclasses.replace(run.policy, vocab_size=self.task.tokenizer.vocab_size)
        )
        self.policy = make_policy(self.run.policy)
        mesh, group_size = make_mesh(), run.rollouts.rollouts_per_prompt
        shapes = jax.eval_shape(lambda: init_params(self.run.policy, jax.random.key(0)))
        # Shared by the arms, so that it compiles once.
        self._generate = generation.jit_sampler(
            self.policy, shapes, mesh, group_size=group_size, config=run.sampling, tokenizer=self.task.tokenizer
        )
        self._assemble, self._key_of = generation.jit_assemble(mesh, group_size), jax.jit(sampling_key)

    def __enter__(self) -> TaskRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def warm_started(self) -> Any:
        """Parameters after the configuration's supervised phase, or at random where it has none."""
        init_key, data_key = jax.random.split(jax.random.key(self.run.seed))
        params, mesh = jax.jit(lambda key: init_params(self.run.policy, key))(init_key), make_mesh()
        if not self.run.warm_start.steps:
            return params
        optimizer = warm_start_optimizer(self.run)
        state = init_state(params, optimizer, data_key)
        state = jax.device_put(state, tree_shardings(state, mesh))
        step = jit_warm_start_step(self.run, self.policy, optimizer, mesh, state)
        batches = warm_start_batches(self.run, self.task)
        for _ in range(self.run.warm_start.steps):
            state, _ = step(state, next(batches))
        return state.params

    def arm(self, params: Any, *, variant: Mapping[str, Any] | None = None) -> Arm:
        """An arm that trains a copy of ``params``.

        Args:
          params: the policy to start from; not donated.
          variant: fields of ``run.geometry`` that differ in this arm, such as ``enabled`` and ``feature``.
        """
        run = dataclasses.replace(self.run, geometry=dataclasses.replace(self.run.geometry, **(variant or {})))
        optimizer, mesh = make_optimizer(run.optimizer, run.steps), make_mesh()
        state = init_state(
            jax.tree.map(lambda x: x.copy(), params), optimizer, jax.random.key(run.seed), sketch_basis=first_basis(run)
        )
        state = jax.device_put(state, tree_shardings(state, mesh))
        group_size = run.rollouts.rollouts_per_prompt
        prompts = prompt_batches(
            self.task.source("train"), self.task.tokenizer, batch_size=run.rollouts.prompts_per_step,
            max_prompt_length=run.rollouts.max_prompt_length, seed=run.seed,
        )  # fmt: skip

        def sample(state: TrainState) -> Any:
            batch = next(prompts)
            tokens, mask = batch["prompt_tokens"], batch["prompt_mask"]
            samples = self._generate(state.params, tokens, mask, self._key_of(state))
            return tokens, mask, samples, Unseen(tuple(batch["references"]))

        def grade(sampled: Any) -> RolloutBatch:
            tokens, mask, samples, references = sampled
            grades = generation.grade_samples(
                self.task, self.task.grade, samples, list(references.values), group_size
            )
            if grades.errors.count:
                raise RuntimeError(f"grader failed: {grades.errors.first}")
            lengths = generation.batch_lengths(run, mask, jax.device_get(samples.lengths))  # as the loop trims
            return self._assemble(tokens, mask, samples, grades.rewards, grades.rewarded, lengths)

        return Arm(run, state, sample, grade, jit_train_step(run, self.policy, optimizer, mesh, state))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Unseen:
    """Strings that ride along in a pytree without being leaves of it."""

    values: tuple[str, ...]
