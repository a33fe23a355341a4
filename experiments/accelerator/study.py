"""Stage `study`: the arms of the study's contrasts side by side, several seeds of each vmapped, grading on the device.

An arithmetic completion is right where its tokens are the solution's, so that sampling, grading and the update of many
steps are one program. Arms take turns, a chunk of steps each, until their 1,200 steps or the stage's time is over.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import arithmetic
from experiments.accelerator.learning import arithmetic_task, padded
from experiments.accelerator.measuring import compile_together
from experiments.accelerator.rows import Row, Setting
from experiments.study import plan
from salt_jax.collect.generation import as_rollouts
from salt_jax.learner.state import TrainState, init_params, init_state, make_optimizer, make_policy
from salt_jax.learner.step import sampling_key, train_step
from salt_jax.learner.warm_start import warm_start_optimizer, warm_start_step
from salt_jax.policy.sampler import sample
from salt_jax.run import config as training_config

Array = jax.Array
# Without the arms that need a whole eigendecomposition in every step of every seed, and without the null.
ARMS = ("grpo", "salt", "positive_only", "scaled")
RATE = 3e-4  # the middle one of the study, for all arms: this is a look, not the contrasts
SHARE = 0.75  # of the stage's seconds in which a chunk may begin


class Problems(NamedTuple):
    """A split: prompts (N, P) with their mask, solutions (N, T) with their end token and mask."""

    prompts: Array
    prompt_mask: Array
    solutions: Array
    solution_mask: Array


def study(setting: Setting) -> Iterator[Any]:
    """Accuracy of each arm after as many steps as there is time for, means over seeds, and differences to GRPO."""
    began = time.monotonic()
    arms, seeds, chunk, steps = (ARMS[:2], 2, 3, 6) if setting.tiny else (ARMS, 8, 100, plan.STEPS)
    size = "small" if setting.tiny else "full"
    lab = Laboratory(size, seeds)
    params, before = lab.warm_started()
    states = {arm: lab.begin(arm, params) for arm in arms}
    programs = compile_together(
        {
            arm: functools.partial(lab.trainer(arm, chunk).lower, states[arm], lab.chosen(0, chunk))
            for arm in arms
        }
    )
    for done in range(chunk, steps + 1, chunk):
        if time.monotonic() - began > SHARE * setting.seconds:
            return
        found = {}
        for arm in arms:
            start = time.monotonic()
            states[arm] = jax.block_until_ready(programs[arm](states[arm], lab.chosen(done, chunk)))
            each = (time.monotonic() - start) / chunk
            found[arm] = np.asarray(lab.accuracy(states[arm].params))
            mean, spread = float(found[arm].mean()), float(found[arm].std(ddof=1))
            note = f"greedy, mean of {seeds} seeds after {done} steps, ± {spread:.3f}; {before.mean():.3f} before; "
            note += f"rate {lab.rate(arm):g}"
            yield Row(f"accuracy, {arm}", mean, run=each, compile=programs[arm].seconds, note=note)
        for arm in arms[1:]:
            difference = found[arm] - found["grpo"]
            above = f"{(difference > 0).sum()} of {seeds} above 0"
            note = f"paired by seed after {done} steps, ± {difference.std(ddof=1):.3f}, {above}"
            yield Row(f"{arm} − grpo", float(difference.mean()), note=note)


class Laboratory:
    """Arithmetic for several seeds at once: every function is vmapped over them, problems are shared.

    Args:
      size: of configs/arithmetic.py.
      seeds: how many, from 1.
    """

    def __init__(self, size: str, seeds: int) -> None:
        self.size, self.seeds = size, seeds
        self.run = self._run({})
        task = arithmetic_task(self.run)
        token = task.tokenizer
        self.run = dataclasses.replace(
            self.run, policy=dataclasses.replace(self.run.policy, vocab_size=token.vocab_size)
        )
        self.policy = make_policy(self.run.policy)
        self.stop_ids, self.pad_id = tuple(token.stop_ids), token.pad_id
        limit, new = self.run.rollouts.max_prompt_length, self.run.sampling.max_new_tokens
        self.splits = {}
        for split in ("train", "test"):
            examples = list(task.source(split))  # type: ignore[call-overload]
            prompts = padded([token.encode(e.prompt) for e in examples], limit, left=True)
            ids, mask = padded([[*token.encode(e.solution), token.eos_id] for e in examples], new, left=False)
            arrays = (*prompts, np.where(mask, ids, self.pad_id), mask)
            self.splits[split] = Problems(*map(jnp.asarray, arrays))
        self._greedy = jax.jit(jax.vmap(self._accuracy))

    def _run(self, changes: dict[str, Any]) -> training_config.RunConfig:
        config = arithmetic.get_config(self.size)
        config.learner.length_buckets = 1
        config.salt.measure_every = 0
        if self.size == "small":
            config.policy.num_layers = 1  # of two: a rehearsal compiles it
        config.update_from_flattened_dict(changes)
        return training_config.parse(config)

    def _of_arm(self, arm: str) -> training_config.RunConfig:
        run = self._run(plan.ARMS[arm] | {"optimizer.learning_rate": self.rate(arm)})
        return dataclasses.replace(run, policy=self.run.policy)

    def rate(self, arm: str) -> float:
        """The learning rate."""
        return RATE if self.size == "full" else self.run.optimizer.learning_rate

    def _sample(self, params: Any, problems: Problems, key: Array, *, greedy: bool) -> tuple[Any, Array]:
        """Samples of every problem, G each or one where greedy, and whether each is right, (N,) float32."""
        config = dataclasses.replace(self.run.sampling, temperature=0.0) if greedy else self.run.sampling
        group = 1 if greedy else self.run.rollouts.rollouts_per_prompt
        samples = sample(
            nnx.merge(self.policy, params), problems.prompts, problems.prompt_mask, key, group_size=group,
            config=config, stop_ids=self.stop_ids, pad_id=self.pad_id,
        )  # fmt: skip
        same = samples.tokens == jnp.repeat(problems.solutions, group, axis=0)
        return samples, jnp.all(same, axis=1).astype(jnp.float32)

    def _accuracy(self, params: Any) -> Array:
        return jnp.mean(self._sample(params, self.splits["test"], jax.random.key(0), greedy=True)[1])

    def accuracy(self, params: Any) -> Array:
        """(seeds,) greedy accuracy on the held-out problems."""
        return self._greedy(params)

    def warm_started(self) -> tuple[Any, np.ndarray]:
        """Parameters of every seed after the supervised phase, and their accuracies."""
        optimizer, run = warm_start_optimizer(self.run), self.run

        def begin(key: Array) -> TrainState:
            return init_state(init_params(run.policy, key), optimizer, key)

        def one(state: TrainState, chosen: Array) -> TrainState:
            problems = jax.tree.map(lambda x: x[chosen], self.splits["train"])
            batch = {
                "prompt_tokens": problems.prompts, "prompt_mask": problems.prompt_mask,
                "completion_tokens": problems.solutions, "completion_mask": problems.solution_mask,
            }  # fmt: skip
            return warm_start_step(state, batch, run=run, policy=self.policy, optimizer=optimizer)[0]

        @jax.jit
        def whole(keys: Array, chosen: Array) -> Any:
            states = jax.vmap(begin)(keys)
            return jax.lax.scan(lambda states, at: (jax.vmap(one)(states, at), None), states, chosen)[
                0
            ].params

        size = (run.warm_start.steps, self.seeds, run.warm_start.batch_size)
        chosen = np.random.default_rng(0).integers(len(self.splits["train"].prompts), size=size)
        params = whole(self._keys(), jnp.asarray(chosen))
        return params, np.asarray(self.accuracy(params))

    def _keys(self) -> Array:
        return jax.vmap(jax.random.key)(jnp.arange(1, self.seeds + 1))

    def begin(self, arm: str, params: Any) -> TrainState:
        """States before the first rollout."""
        optimizer = make_optimizer(self._of_arm(arm).optimizer, plan.STEPS)
        params = jax.tree.map(jnp.copy, params)  # donated step by step
        return jax.vmap(lambda params, key: init_state(params, optimizer, key))(params, self._keys())

    def chosen(self, done: int, chunk: int) -> Array:
        """(chunk, seeds, B) problems of the steps up to ``done``: the same for every arm."""
        size = (chunk, self.seeds, self.run.rollouts.prompts_per_step)
        return jnp.asarray(np.random.default_rng(done).integers(len(self.splits["train"].prompts), size=size))

    def trainer(self, arm: str, chunk: int) -> Any:
        """Jitted: (states, chosen) -> states after ``chunk`` steps of sampling, grading and updating."""
        run = self._of_arm(arm)
        update = functools.partial(
            train_step, run=run, policy=self.policy, optimizer=make_optimizer(run.optimizer, plan.STEPS)
        )

        def one(state: TrainState, chosen: Array) -> TrainState:
            problems = jax.tree.map(lambda x: x[chosen], self.splits["train"])
            samples, right = self._sample(state.params, problems, sampling_key(state), greedy=False)
            rollouts = as_rollouts(
                problems.prompts, problems.prompt_mask, samples, right, jnp.ones_like(right, bool),
                run.rollouts.rollouts_per_prompt,
            )  # fmt: skip
            return update(state, rollouts)[0]

        @functools.partial(jax.jit, donate_argnums=0)
        def steps(states: TrainState, chosen: Array) -> TrainState:
            return jax.lax.scan(lambda states, at: (jax.vmap(one)(states, at), None), states, chosen)[0]

        return steps
