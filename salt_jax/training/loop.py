"""A whole run: warm start, training with rollouts, evaluation, checkpoints. A killed run resumes bit for bit.

The order of events at the end of step n is fixed, and a checkpoint comes last: metrics of n are written and
found finite, an evaluation that is due at n is made and written, then n is saved. So everything that belongs
to steps up to a checkpoint is on disk before it, and a resumed run drops and repeats only what came after.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from salt_jax.evaluate import write_problems
from salt_jax.policy.hf import open_checkpoint, write_policy_json
from salt_jax.policy.layers import TransformerConfig
from salt_jax.tasks import Task
from salt_jax.training import setup, workdir
from salt_jax.training.checkpoint import Checkpoints
from salt_jax.training.collect import Engine, make_collection
from salt_jax.training.judging import Judge, make_judge, record, score, sentence
from salt_jax.training.metrics import MetricWriter, check_finite
from salt_jax.training.reweighting import first_basis
from salt_jax.training.settings import RunConfig
from salt_jax.training.sharding import make_mesh, tree_shardings, vocabulary_axis
from salt_jax.training.state import TrainState, init_state, make_optimizer, make_policy
from salt_jax.training.step import jit_train_step
from salt_jax.training.warm_start import jit_warm_start_step, warm_start_batches, warm_start_optimizer

WARM = "warm_start"


@dataclasses.dataclass(frozen=True)
class Session:
    """What a run needs at hand: its checked configuration, task, mesh and folder."""

    run: RunConfig
    task: Task
    mesh: Mesh
    folder: Path
    policy: Any
    console: Console
    grade: setup.Grade

    def warn(self, text: str) -> None:
        """One line that a person should read."""
        self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def checkpoints(self, phase: str) -> Checkpoints:
        """The checkpoints of 'warm_start' or 'train'."""
        return Checkpoints(self.folder / "checkpoints" / phase, self.run.checkpoint.keep)


def train(config: Any, folder: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Runs, or resumes, everything that ``config`` asks for in ``folder``.

    Args:
      config: ConfigDict with every key of configs/base.py.
      folder: the run's workdir, made if absent. A run with the same configuration there is resumed.
      console: where progress is shown; the terminal by default.

    Returns:
      The summary: accuracy before and after, steps, wall seconds of this process.

    Raises:
      ConfigError: wrong input; nothing has been compiled or written.
      NonFiniteError: a statistic became NaN or infinite.
    """
    folder, console = Path(folder).absolute(), console or Console()
    run, values = setup.check(config, folder)
    workdir.open_workdir(folder, values)
    task = setup.make_task(run, folder / "data", setup.make_tokenizer(run))
    policy_config = setup.policy_config(run, task)
    mesh = make_mesh(run.mesh.data, run.mesh.fsdp, run.mesh.tensor)
    with setup.grading(run, task) as grade:
        session = Session(run, task, mesh, folder, make_policy(policy_config, mesh), console, grade)
        return train_in(session, policy_config)


def train_in(session: Session, policy_config: TransformerConfig) -> dict[str, Any]:
    """``train``, once all that a run needs is there."""
    run, mesh, folder, began = session.run, session.mesh, session.folder, time.perf_counter()
    if vocabulary_axis(mesh, policy_config.vocab_size) is None:
        split = f"config.mesh.tensor = {run.mesh.tensor} does not divide the vocabulary of {policy_config.vocab_size}"
        session.warn(f"{split}: every device holds all of the output projection")
    write_policy_json(folder, policy_config, open_checkpoint(run.model.path) if run.model.path else None)
    init_key, data_key = jax.random.split(jax.random.key(run.seed))
    train_checkpoints = session.checkpoints(setup.TRAIN)
    resumed = train_checkpoints.latest_step() is not None  # then its parameters are in its own checkpoint
    params = setup.initial_params(run, policy_config, init_key, mesh, pretrained=not resumed)
    if not resumed and run.init_from:
        params = setup.final_params(Path(run.init_from), params, f"config.init_from = {run.init_from!r}")
    if not resumed and run.warm_start.steps:
        params = warm_start(session, params, data_key)
    summary = train_with_rollouts(session, train_checkpoints, params, data_key)
    summary["seconds"] = time.perf_counter() - began
    if not (folder / workdir.SUMMARY).exists():
        workdir.write_atomically(folder / workdir.SUMMARY, json.dumps(summary, indent=2) + "\n")
    return json.loads((folder / workdir.SUMMARY).read_text())


def warm_start(session: Session, params: Any, key: Any) -> Any:
    """The supervised phase; returns its parameters."""
    run, steps = session.run, session.run.warm_start.steps
    optimizer = warm_start_optimizer(run)
    state = place(init_state(params, optimizer, key), session.mesh)
    iterator = warm_start_batches(run, session.task)
    step_fn = jit_warm_start_step(run, session.policy, optimizer, session.mesh, state)

    def one_step(state: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, float]]:
        state, metrics = step_fn(state, next(iterator))
        return state, metrics, {}

    state = run_phase(
        session, session.checkpoints(WARM), state, iterator, one_step,
        label="warm start", total=steps, records=workdir.WARM_START,
    )
    return state.params


def train_with_rollouts(session: Session, checkpoints: Checkpoints, params: Any, key: Any) -> dict[str, Any]:
    """The phase that samples, grades and updates; returns the summary."""
    run, task = session.run, session.task
    total_updates = run.steps * run.learner.minibatches * run.learner.epochs
    optimizer = make_optimizer(run.optimizer, total_updates)
    state = init_state(
        params, optimizer, key, keep_reference=run.objective.needs_reference, sketch_basis=first_basis(run)
    )
    state = place(state, session.mesh)
    source, skipped = setup.prompts_of(run, task, "train")
    if skipped:
        limit = f"config.sampling.max_prompt_length = {run.rollouts.max_prompt_length}"
        share = f"{skipped} of {len(task.source('train'))} prompts"
        session.warn(f"{share} are over {limit} and were skipped")
    collection = make_collection(Engine(
        run=run, task=task, source=source, policy=session.policy, shape=setup.policy_config(run, task),
        params=jax.eval_shape(lambda: state.params), mesh=session.mesh, grade=session.grade, warn=session.warn,
    ))
    make_step = functools.partial(jit_train_step, run, session.policy, optimizer, session.mesh, state)
    step_fns = {False: make_step(), True: make_step(measure=True)}
    every = 0 if run.geometry.enabled else run.geometry.measure_every
    number = 0  # of the step in hand, kept on the host so that nothing waits for the device

    def one_step(state: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, float]]:
        nonlocal number
        began = time.perf_counter()
        collected = collection(state, number + 1)
        state, metrics = step_fns[bool(every) and number % every == 0](state, collected.rollouts)
        number += 1
        seconds = time.perf_counter() - began
        host = {
            "seconds": seconds, "tokens_per_second": collected.tokens / seconds,
            "grading_seconds": collected.grading_seconds,
        }
        return state, metrics, host | dict(collected.metrics)

    judge = make_judge(run, task, session.policy, state.params, session.mesh, session.grade)

    def begin(step: int) -> None:
        nonlocal number
        number = step

    run_phase(
        session, checkpoints, state, collection.saved, one_step, label="train", total=run.steps,
        records=workdir.METRICS, judge=judge, every=run.evaluation.every, begin=begin,
    )
    records = workdir.read_records(session.folder / workdir.EVALUATIONS)
    return {"steps": run.steps, "before": records[0], "after": records[-1], "salt": run.geometry.enabled}


def run_phase(
    session: Session,
    checkpoints: Checkpoints,
    state: TrainState,
    iterator: Any,
    one_step: Callable[[TrainState], tuple[TrainState, dict[str, Any], dict[str, float]]],
    *,
    label: str,
    total: int,
    records: str,
    judge: Judge | None = None,
    every: int = 0,
    begin: Callable[[int], None] | None = None,
) -> TrainState:
    """Steps from the newest checkpoint to ``total``; the metrics of a step are fetched once the next is under way."""
    folder, run = session.folder, session.run
    latest = checkpoints.latest_step()
    start = latest or 0
    if latest is not None:
        state = checkpoints.restore(latest, state, iterator)
        session.console.print(f"{label}: resumed at step {latest} of {total}", highlight=False)
    for name in (records, workdir.EVALUATIONS) if judge else (records,):
        workdir.rewind(folder / name, start if latest is not None else -1)
    if begin is not None:
        begin(start)
    writer = MetricWriter(
        folder / records, total=total, start=start, label=label, console=session.console,
        events=folder / "tensorboard" / label.replace(" ", "_") if run.logging.tensorboard else None,
        print_every=run.logging.print_every,
    )
    last_saved = str(checkpoints.directory / str(latest)) if latest is not None else "none yet"
    pending: tuple[int, dict[str, Any], dict[str, float]] | None = None
    fallbacks = cut_off = False

    def flush() -> None:
        nonlocal pending, fallbacks, cut_off
        if pending is not None:
            step, metrics, host = pending
            pending = None
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            writer.write(step, values | host)  # written before it is checked, so that a bad step can be seen
            check_finite(step, values, last_saved)
            if values.get("salt/eigh_fallback") and not fallbacks:
                fallbacks = True
                text = "iterated eigenvectors were refused and a full eigh was used, slower and no less right"
                session.warn(f"step {step}: {text}; salt/eigh_fallback in the metrics counts")
            above = values.get("truncated", 0.0) > run.logging.warn_truncated
            if above and not cut_off:  # once each time the share rises past the limit
                limit = f"config.sampling.max_new_tokens = {run.sampling.max_new_tokens}"
                share = f"{values['truncated']:.0%} of the completions were cut off at {limit}"
                session.warn(f"step {step}: {share}, where few are right")
            cut_off = above

    def evaluate_at(step: int) -> None:
        if judge is not None:
            results = judge(state.params)
            if run.evaluation.keep_texts:
                (folder / workdir.TEXTS).mkdir(exist_ok=True)
                write_problems(folder / workdir.TEXTS / f"{step}.jsonl", results)
            writer.note(folder / workdir.EVALUATIONS, step, record(run, results), sentence(run, score(run, results)))

    def save(step: int) -> None:
        nonlocal last_saved
        checkpoints.save(step, state, iterator)
        last_saved = str(checkpoints.directory / str(step))

    try:
        if latest is None:
            evaluate_at(0)
            save(0)
        for step in range(start + 1, total + 1):
            state, metrics, host = one_step(state)
            flush()
            pending = (step, metrics, host)
            due = step == total or (every > 0 and step % every == 0)
            if due or step % run.checkpoint.every == 0:
                flush()
            if due:
                evaluate_at(step)
            if step == total or step % run.checkpoint.every == 0:
                save(step)
    finally:  # also when the run stops itself: the checkpoint that its message names must be whole
        checkpoints.close()
        writer.close()
    return state


def place(state: TrainState, mesh: Mesh) -> TrainState:
    """The state with every leaf where the mesh's rules want it."""
    return jax.device_put(state, tree_shardings(state, mesh))
