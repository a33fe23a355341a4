"""Stages `learning` and `deterministic`: GRPO on arithmetic for real, without the files of its data set."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import arithmetic
from experiments.accelerator.rows import Row, Setting
from salt_jax.collect import generation
from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.learner.state import TrainState, init_params, init_state, make_optimizer, make_policy
from salt_jax.learner.step import jit_train_step, sampling_key
from salt_jax.learner.warm_start import jit_warm_start_step, warm_start_optimizer
from salt_jax.run import config as training_config
from salt_jax.tasks import CharTokenizer, Example, Task, exact_match
from salt_jax.tasks.arithmetic import ALPHABET
from salt_jax.tasks.arithmetic_problems import ArithmeticProblems


def learning(setting: Setting) -> Iterator[Any]:
    """The GRPO arm of configs/arithmetic.py without its data set's files: seconds a step, accuracy, equal bits."""
    config = arithmetic.get_config("small" if setting.tiny else "full")
    config.salt.enabled = False
    config.learner.length_buckets = 1  # one program
    run = training_config.parse(config)
    task = arithmetic_task(run)
    run = dataclasses.replace(run, policy=dataclasses.replace(run.policy, vocab_size=task.tokenizer.vocab_size))
    train = _trainer(run, task)
    few, many = (3, 6) if setting.tiny else (20, 200)
    first, _, compile_seconds, _ = train(few)
    again, _, _, _ = train(few)
    equal = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True)]
    note = f"{sum(equal)} of {len(equal)} arrays, after {run.warm_start.steps} warm-up steps and {few} of GRPO"
    yield Row("same seed, same bits", float(all(equal)), "", 1.0, at_least=True, compile=compile_seconds, note=note)
    _, times, _, accuracies = train(many)
    median = float(np.median(times[1:]))
    note = f"sampling and grading included; {run.rows} rollouts"
    yield Row("seconds a step", median, "s", run=median, note=note)
    note = f"greedy, {len(task.source('test'))} held-out sums; {accuracies[0]:.3f} before GRPO"
    yield Row(f"accuracy after {many} steps", accuracies[1], "", accuracies[0], at_least=True, note=note)


def arithmetic_task(run: training_config.RunConfig) -> Task:
    """The task of configs/arithmetic.py, made in memory."""
    problems = ArithmeticProblems(**run.task_arguments)
    splits = {
        split: [Example(prompt, answer, answer, f"{split}/{i}") for i, (prompt, answer) in enumerate(found)]
        for split, found in problems.splits().items()
    }
    return Task("arithmetic", CharTokenizer(ALPHABET), splits, exact_match)


def padded(rows: list[list[int]], length: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (N, length) of rows of ids, zeros left or right of them."""
    ids, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        at = slice(length - len(row), length) if left else slice(len(row))
        ids[i, at], mask[i, at] = row, True
    return ids, mask


def _trainer(run: training_config.RunConfig, task: Task) -> Callable[[int], Any]:
    """(GRPO steps) -> parameters, seconds of each step, of the first call's first ones, accuracy before and after."""
    mesh, token, size = make_mesh(), task.tokenizer, run.rollouts
    limit, new = size.max_prompt_length, run.sampling.max_new_tokens
    examples = {split: list(task.source(split)) for split in ("train", "test")}  # type: ignore[call-overload]
    prompts = {k: padded([token.encode(e.prompt) for e in x], limit, left=True) for k, x in examples.items()}
    solutions = padded([[*token.encode(e.solution), token.eos_id] for e in examples["train"]], new, left=False)
    names = ("prompt_tokens", "prompt_mask", "completion_tokens", "completion_mask")
    policy, optimizer = make_policy(run.policy, mesh), make_optimizer(run.optimizer, run.steps)
    warm = warm_start_optimizer(run)
    group = size.rollouts_per_prompt

    def begin(params: Any, optimizer: Any) -> TrainState:
        state = init_state(params, optimizer, jax.random.key(run.seed))
        return jax.device_put(state, tree_shardings(state, mesh))

    initial = jax.jit(functools.partial(init_params, run.policy))(jax.random.key(run.seed))
    at_start = begin(initial, optimizer)
    sampler = functools.partial(generation.jit_sampler, policy, initial, mesh, tokenizer=token)
    generate = sampler(group_size=group, config=run.sampling)
    greedy = sampler(group_size=1, config=dataclasses.replace(run.sampling, temperature=0.0))
    assemble, key_of = generation.jit_assemble(mesh, group), jax.jit(sampling_key)
    update = jit_train_step(run, policy, optimizer, mesh, at_start)
    supervise = jit_warm_start_step(run, policy, warm, mesh, begin(initial, warm))

    def accuracy(params: Any) -> float:
        samples = greedy(params, *prompts["test"], jax.random.key(0))
        references = [example.reference for example in examples["test"]]
        return float(generation.grade_samples(task, task.grade, samples, references, 1).rewards.mean())

    def train(steps: int) -> tuple[Any, list[float], float, tuple[float, float]]:
        began, rng = time.perf_counter(), np.random.default_rng(run.seed)
        state = begin(jax.tree.map(jnp.copy, initial), warm)
        for _ in range(run.warm_start.steps):
            chosen = rng.choice(len(examples["train"]), run.warm_start.batch_size)
            batch = dict(zip(names, (x[chosen] for x in (*prompts["train"], *solutions)), strict=True))
            state, _ = supervise(state, batch)
        state = begin(state.params, optimizer)
        before, times, first = accuracy(state.params), [], 0.0
        for i in range(steps):
            start = time.perf_counter()
            chosen = rng.choice(len(examples["train"]), size.prompts_per_step)
            tokens, mask = (x[chosen] for x in prompts["train"])
            samples = generate(state.params, tokens, mask, key_of(state))
            references = [examples["train"][j].reference for j in chosen]
            grades = generation.grade_samples(task, task.grade, samples, references, group)
            rollouts = assemble(tokens, mask, samples, grades.rewards, grades.rewarded)
            state, _ = jax.block_until_ready(update(state, rollouts))
            times.append(time.perf_counter() - start)
            first = time.perf_counter() - began if i == 0 else first
        return jax.device_get(state.params), times, first, (before, accuracy(state.params))

    return train
