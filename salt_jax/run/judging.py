"""Held-out evaluation of a policy: inside a run, or of a run that has been made."""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from salt_jax.collect.generation import grade_shares, jit_sampler
from salt_jax.distributed import hosts
from salt_jax.distributed.sharding import replicated
from salt_jax.evaluation.evaluate import (
    Evaluation,
    ProblemResult,
    by_part,
    collect,
    decode_completions,
    summarize,
)
from salt_jax.evaluation.scores import powers_of_two
from salt_jax.graders import Grades
from salt_jax.learner.settings import RunConfig
from salt_jax.learner.state import make_policy
from salt_jax.policy.sampler import Samples
from salt_jax.run import identity, provenance, setup
from salt_jax.run.identity import Identity
from salt_jax.spec import ConfigError
from salt_jax.tasks import Task, prompt_batches

Judge = Callable[[Any], list[ProblemResult]]


def make_judge(
    run: RunConfig,
    task: Task,
    policy: Any,
    params: Any,
    mesh: Mesh,
    grade: setup.Grade,
    *,
    poll: Callable[[], None] = lambda: None,
) -> Judge:
    """A function from parameters to the results on the test split, with config.evaluation's samples and temperature.

    The random key depends on config.seed and the place of a call, not on the training step: evaluations of one run,
    and of runs that differ in training alone, share their luck. Every process has all results, and grades a share of
    them. ``poll`` is called before each generation and between its waves; what it raises ends the evaluation.
    """
    source, _ = setup.prompts_of(run, task, "test")
    problems = [source[i] for i in range(min(run.evaluation.problems, len(source)))]
    generate = jit_sampler(
        policy, params, mesh, group_size=run.evaluation.samples, config=run.evaluation_sampling,
        tokenizer=task.tokenizer, waves=setup.evaluation_waves(run, setup.policy_config(run, task)),
        poll=poll,
    )
    everywhere = jax.jit(lambda samples: samples, out_shardings=replicated(mesh)) if hosts.count() > 1 else None
    key = jax.random.fold_in(jax.random.key(run.seed), 0x65)  # not the keys of data and parameters

    def judge(params: Any) -> list[ProblemResult]:
        batches = prompt_batches(
            problems, task.tokenizer, batch_size=run.evaluation.batch_size,
            max_prompt_length=run.rollouts.max_prompt_length, seed=0, shuffle=False, repeat=False,
        )

        def sampled(prompts: Any, mask: Any, number: int) -> Samples:
            made = generate(params, prompts, mask, jax.random.fold_in(key, number))
            return made if everywhere is None else everywhere(made)

        return collect(
            sampled, batches, lambda samples: decode_completions(task, samples), shared(grade),
            samples=run.evaluation.samples,
            prompts={problem.id: shown(problem.prompt) for problem in problems},
        )

    return judge


def shared(grade: setup.Grade) -> setup.Grade:
    """The same grades, where each process works on a share of the completions."""
    if hosts.count() == 1:
        return grade

    def of_all(texts: Sequence[str], references: Sequence[str]) -> Grades:
        rows = range(hosts.index(), len(texts), hosts.count())
        mine = [texts[i] for i in rows], [references[i] for i in rows]
        return grade_shares(grade, rows, *mine, len(texts))[0]

    return of_all


def shown(prompt: Any) -> str:
    """A prompt for people: its text, or its messages one after another.

    Example:
      >>> shown(({"role": "user", "content": "1+1=?"},))
      'user: 1+1=?'
    """
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def score(run: RunConfig, results: list[ProblemResult]) -> Evaluation:
    """avg@n, pass@k for powers of two, maj@n."""
    return summarize(results, ks=powers_of_two(run.evaluation.samples), correct_from=run.correct_from)


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


def of_one_sample(run: RunConfig) -> str | None:
    """A line where several samples of a problem are sure to be one; None elsewhere."""
    if run.evaluation.samples == 1 or run.evaluation.temperature > 0:
        return None
    same = f"the {run.evaluation.samples} samples of a problem are one and the same"
    return f"config.evaluation.temperature = 0 is greedy: {same}; set it above 0, or config.evaluation.samples to 1"


def evaluate_run(
    config: Any,
    run_folder: Path | None,
    console: Console,
    step: int | None = None,
    accept: Callable[[Identity, Mapping[str, Any]], None] = lambda made, record: None,
) -> list[ProblemResult]:
    """Results of a policy on the config's test split.

    Args:
      config: ConfigDict with every key of configs/base.py.
      run_folder: a run's workdir; None for the model at config.model.path.
      console: where to say what is evaluated.
      step: of the run's checkpoint, from ``setup.final_step``; its newest that is sound by default.
      accept: is called once all is checked with what the evaluation is made from, also as a record with the date that
        a chat template takes for today, which is the run's first; what it raises ends the evaluation.

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
        origins = [] if run_folder is None else [run_folder]
        date = hosts.first_to_all(provenance.first_date(*origins) if hosts.lead() else "")
        task = setup.checked_task(run, data, splits=("test",), date=date)
        for line in task.said_of_left_out():
            console.print(f"config.task: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        config = setup.policy_config(run, task)
        mesh = setup.checked_mesh(run, config)
        made = identity.of_run(run, task)
        accept(made, {provenance.DATE: date, **made.record()})
        before = {} if run_folder is None else provenance.made_from(run_folder)
        other = identity.differences(before, made, "the run") if before else {}
        prompts = [text for name, text in other.items() if name in ("tokenizer", "template")]
        for said in [*setup.date_said(task, date), *prompts]:
            console.print(said, markup=False, highlight=False, soft_wrap=True)
        grade = open_until_done.enter_context(setup.grading(run, task))
        if run_folder is None:
            params = setup.initial_params(run, config, jax.random.key(0), mesh)
        else:
            named, shapes = f"--run={run_folder}", setup.abstract_params(config, mesh)
            if step is None:
                warn = functools.partial(console.print, markup=False, soft_wrap=True)
                step = setup.final_step(run_folder, named, warn)
            params = setup.params_at(run_folder, step, shapes, named)
        judge = make_judge(run, task, make_policy(config, mesh), params, mesh, grade)
        source = run.model.path if run_folder is None else f"{run_folder} at step {step}"
        if (same := of_one_sample(run)) is not None:
            console.print(f"warning: {same}", highlight=False, soft_wrap=True)
        console.print(f"evaluating {source}: {run.evaluation.samples} samples a problem", highlight=False)
        return judge(params)
