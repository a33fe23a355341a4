"""Held-out evaluation of a policy: inside a run, or of a run that has been made."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from salt_jax.evaluate import Evaluation, ProblemResult, by_part, collect, decode_completions, summarize
from salt_jax.evaluate_scores import powers_of_two
from salt_jax.tasks import Task, prompt_batches
from salt_jax.training import setup
from salt_jax.training.generation import jit_sampler
from salt_jax.training.settings import ConfigError, RunConfig
from salt_jax.training.state import make_policy

Judge = Callable[[Any], list[ProblemResult]]


def make_judge(run: RunConfig, task: Task, policy: Any, params: Any, mesh: Mesh, grade: setup.Grade) -> Judge:
    """A function from parameters to the results on the test split, with config.evaluation's samples and temperature.

    The random key depends on config.seed and the place of a call, not on the training step: evaluations of one run,
    and of runs that differ in training alone, share their luck.
    """
    source, _ = setup.prompts_of(run, task, "test")
    problems = [source[i] for i in range(min(run.evaluation.problems, len(source)))]
    generate = jit_sampler(
        policy, params, mesh, group_size=run.evaluation.samples, config=run.evaluation_sampling,
        tokenizer=task.tokenizer, waves=setup.evaluation_waves(run, setup.policy_config(run, task)),
    )
    key = jax.random.fold_in(jax.random.key(run.seed), 0x65)  # not the keys of data and parameters

    def judge(params: Any) -> list[ProblemResult]:
        batches = prompt_batches(
            problems, task.tokenizer, batch_size=run.evaluation.batch_size,
            max_prompt_length=run.rollouts.max_prompt_length, seed=0, shuffle=False, repeat=False,
        )
        return collect(
            lambda prompts, mask, number: generate(params, prompts, mask, jax.random.fold_in(key, number)),
            batches, lambda samples: decode_completions(task, samples), grade, samples=run.evaluation.samples,
            prompts={problem.id: shown(problem.prompt) for problem in problems},
        )

    return judge


def shown(prompt: Any) -> str:
    """A prompt for people: its text, or its messages one after another.

    Example:
      >>> shown(({"role": "user", "content": "1+1=?"},))
      'user: 1+1=?'
    """
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def score(run: RunConfig, results: list[ProblemResult]) -> Evaluation:
    """avg@n, pass@k for powers of two, maj@n."""
    return summarize(results, ks=powers_of_two(run.evaluation.samples), correct_from=run.evaluation.correct_from)


def record(run: RunConfig, results: list[ProblemResult]) -> dict[str, float | int | None]:
    """``score`` flat, for JSON; of a mixture also each part's accuracy and their mean, which weighs parts alike."""
    values = score(run, results).to_record()
    if run.task_name == "mixture":
        parts = {name: score(run, part).accuracy for name, part in by_part(results).items()}
        values |= {f"accuracy/{name}": accuracy for name, accuracy in parts.items()}
        values["accuracy/mean_of_parts"] = sum(parts.values()) / len(parts)
    return {name: None if value is not None and math.isnan(value) else value for name, value in values.items()}


def sentence(run: RunConfig, result: Evaluation) -> str:
    """One line for people."""
    n, where = run.evaluation.samples, f"on {result.problems} held-out problems"
    name = "greedy accuracy" if run.evaluation.temperature == 0 else f"avg@{n}"
    more = f", pass@{n} {result.pass_at[n].value:.3f}" if n in result.pass_at and n > 1 else ""
    missing = f", {result.missing} of {result.samples} rewards missing" if result.missing else ""
    return f"{name} {result.accuracy:.3f}{more} {where}{missing}"


def evaluate_run(config: Any, run_folder: Path | None, console: Console) -> list[ProblemResult]:
    """Results of a policy on the config's test split.

    Args:
      config: ConfigDict with every key of configs/base.py.
      run_folder: a run's workdir, whose newest checkpoint is taken; None for the model at config.model.path.
      console: where to say what is evaluated.

    Returns:
      One result a problem.

    Raises:
      ConfigError: wrong input; nothing has been compiled.
    """
    run, values = setup.parse(config), config.to_dict()
    if run_folder is None and not run.model.path:
        raise ConfigError("config.model.path is empty: name a run with --run, or a model to evaluate")
    if run_folder is not None:
        setup.check_same_policy(run, values, run_folder, f"--run={run_folder}")
    with contextlib.ExitStack() as open_until_done:
        data = run_folder / "data" if run_folder is not None else None
        if data is None or not data.is_dir():
            data = Path(open_until_done.enter_context(tempfile.TemporaryDirectory()))
        task = setup.checked_task(run, data, splits=("test",))
        config = setup.policy_config(run, task)
        mesh = setup.checked_mesh(run, config)
        grade = open_until_done.enter_context(setup.grading(run, task))
        if run_folder is None:
            params = setup.initial_params(run, config, jax.random.key(0), mesh)
        else:
            params = setup.final_params(run_folder, setup.abstract_params(config, mesh), f"--run={run_folder}")
        judge = make_judge(run, task, make_policy(config, mesh), params, mesh, grade)
        source = run.model.path if run_folder is None else run_folder
        console.print(f"evaluating {source}: {run.evaluation.samples} samples a problem", highlight=False)
        return judge(params)
