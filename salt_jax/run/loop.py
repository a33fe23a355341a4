"""A whole run: warm start, training with rollouts, evaluation, checkpoints. A killed run resumes bit for bit.

The same command on every host makes one run of many processes (``hosts``); files are written by the first of them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from salt_jax.collect import Engine, make_collection
from salt_jax.distributed import hosts
from salt_jax.distributed.sharding import make_mesh, tree_shardings, vocabulary_axis
from salt_jax.learner.reweighting import first_basis
from salt_jax.learner.state import TrainState, init_state, make_optimizer, make_policy
from salt_jax.learner.step import jit_train_step
from salt_jax.learner.warm_start import jit_warm_start_step, warm_start_batches, warm_start_optimizer
from salt_jax.models.hf import open_checkpoint, write_policy_json
from salt_jax.policy.layers import TransformerConfig
from salt_jax.run import provenance, quiet, setup, workdir
from salt_jax.run.checkpoint import Checkpoints
from salt_jax.run.judging import make_judge, of_one_sample
from salt_jax.run.lock import locked
from salt_jax.run.metrics import MetricWriter, RunConsole
from salt_jax.run.phase import Phase, Prepared, Work
from salt_jax.run.preemption import Watch, watching
from salt_jax.run.session import Session
from salt_jax.tasks.paths import expanded

__all__ = ["MetricWriter", "Session", "train"]

WARM = "warm_start"


def train(
    config: Any, folder: str | Path, console: Console | None = None, *, allow: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs, or resumes, everything that ``config`` asks for in ``folder``.

    SIGTERM or Ctrl-C ends it after the work in hand, saved; a second one at once.

    Args:
      config: ConfigDict with every key of configs/base.py.
      folder: the run's workdir, made if absent. A run with the same configuration there is resumed.
      console: where progress is shown; the terminal by default.
      allow: names of what a resumed run may be made from though it is not as it was, as 'task.train' or 'grader'.

    Returns:
      The summary: accuracy before and after, steps, wall seconds of this process.

    Raises:
      ConfigError: wrong input; nothing has been compiled or written.
      NonFiniteError: a statistic became NaN or infinite, more often in a row than config.guards.max_skipped.
      DivergenceError: a statistic passed its threshold of config.monitors.
      CheckpointError, StorageError: a file could not be written, or no sound checkpoint is left.
      Interrupted: a signal came; the last finished step is saved.
    """
    with setup.naming("folder: "):
        folder, console = Path(expanded(folder)).absolute(), console or RunConsole()
    source = config.get("init_from")
    origins: list[str | Path] = [folder, *([source] if source and isinstance(source, str) else [])]
    date = hosts.first_to_all(provenance.first_date(*origins) if hosts.lead() else "")  # of the clocks, the first one's
    found = hosts.agree(lambda: setup.check(config, folder, date=date, allow=allow))
    about = {"config": found.values, "made_by": provenance.stamp() | found.made_from}
    if hosts.count() > 1:
        first = hosts.first_to_all(about)
        hosts.agree(lambda: workdir.check_equal(first, about))
    try:
        with contextlib.ExitStack() as open_until_done:
            watch = open_until_done.enter_context(watching(hosts.largest))
            hosts.agree(lambda: open_until_done.enter_context(locked(folder)) if hosts.lead() else None)
            session = start(found, about, folder, console, watch, open_until_done)
            return train_in(session, setup.policy_config(found.run, session.task))
    except OSError as error:
        if not workdir.about_a_file(error):
            raise
        raise workdir.StorageError(workdir.reason(error, folder)) from error


def start(
    found: setup.Checked, about: dict[str, Any], folder: Path, console: Console, watch: Watch,
    until: contextlib.ExitStack,
) -> Session:
    """Opens the folder, says what differs from the run that is resumed there, and makes what a run needs."""
    run, date, warnings = found.run, about["made_by"][provenance.DATE], [*found.said]

    def open_folder() -> None:
        workdir.check_workdir(folder, found.values, found.may_change)  # again, now that nobody else can change it
        warnings.extend(workdir.open_workdir(folder, found.values, found.may_change))
        try:  # the data set is made once, by one process
            task = setup.make_task(run, folder / "data", setup.make_tokenizer(run, date))
        except ValueError as error:  # checked before: by now it is the disk
            raise workdir.StorageError(f"{folder / 'data'}: {quiet.reason(error)}") from error
        left_out = {"left_out": {split: len(lines) for split, lines in task.left_out.items()}} if task.left_out else {}
        provenance.note_start(folder, about["made_by"] | left_out, warnings.append)
        warnings.extend(f"config.task: {line}" for line in task.said_of_left_out())

    hosts.agree(lambda: open_folder() if hosts.lead() else None)  # the others wait: the folder is there then
    hosts.agree(lambda: workdir.check_shared(folder))
    task = setup.make_task(run, folder / "data", setup.make_tokenizer(run, date))
    mesh = make_mesh(run.mesh.data, run.mesh.fsdp, run.mesh.tensor)
    policy = make_policy(setup.policy_config(run, task), mesh)
    grade = until.enter_context(setup.grading(run, task))
    session = Session(run, task, mesh, folder, policy, console, grade, watch, about)
    warnings += [line] if (line := of_one_sample(run)) else []
    for text in warnings:
        session.warn(text)
    return session


def train_in(session: Session, policy_config: TransformerConfig) -> dict[str, Any]:
    """``train``, once all that a run needs is there."""
    run, mesh, folder, began = session.run, session.mesh, session.folder, time.perf_counter()
    if vocabulary_axis(mesh, policy_config.vocab_size) is None:
        split = f"config.mesh.tensor = {run.mesh.tensor} does not divide the vocabulary of {policy_config.vocab_size}"
        session.warn(f"{split}: every device holds all of the output projection")
    if hosts.lead():
        write_policy_json(folder, policy_config, open_checkpoint(run.model.path) if run.model.path else None)
    init_key, data_key = jax.random.split(jax.random.key(run.seed))
    train_checkpoints = session.checkpoints(setup.TRAIN)
    latest = train_checkpoints.latest_step()
    resumed = latest is not None  # then its parameters are in its own checkpoint
    if resumed:
        params = setup.abstract_params(policy_config, mesh)
    else:
        params = setup.initial_params(run, policy_config, init_key, mesh)
        if run.init_from:
            named = f"config.init_from = {run.init_from!r}"
            params = setup.final_params(Path(run.init_from), params, named, session.warn)
        if run.warm_start.steps:
            params = warm_start(session, params, data_key)
    train_with_rollouts(session, train_checkpoints, latest, params, data_key)
    if hosts.lead() and not (folder / workdir.SUMMARY).exists():
        records = workdir.read_records(folder / workdir.EVALUATIONS)
        before = next((row for row in records if row["step"] == 0), None)
        summary: dict[str, Any] = {"steps": run.steps, "before": before, "after": records[-1]}
        summary |= {"salt": run.geometry.enabled, "seconds": time.perf_counter() - began}
        workdir.write_atomically(folder / workdir.SUMMARY, json.dumps(summary, indent=2) + "\n")
    return hosts.first_to_all(json.loads((folder / workdir.SUMMARY).read_text()) if hosts.lead() else {})


def warm_start(session: Session, params: Any, key: Any) -> Any:
    """The supervised phase; returns its parameters."""
    run = session.run
    optimizer, checkpoints = warm_start_optimizer(run), session.checkpoints(WARM)
    latest = checkpoints.latest_step()
    state = first_state(lambda params: init_state(params, optimizer, key), params, session.mesh, latest)
    iterator = warm_start_batches(run, session.task)
    step_fn = jit_warm_start_step(run, session.policy, optimizer, session.mesh, state)

    def update(state: TrainState, prepared: Prepared, step: int) -> tuple[TrainState, Any, dict[str, float]]:
        return *step_fn(state, prepared.batch), {}

    work = Work(
        "warm start", run.warm_start.steps, workdir.WARM_START,
        prepare=lambda state, step: Prepared(next(iterator), {}), update=update, data=iterator,
    )
    return Phase(session, checkpoints, work, state, latest).run().params


def train_with_rollouts(
    session: Session, checkpoints: Checkpoints, latest: int | None, params: Any, key: Any
) -> None:
    """The phase that samples, grades and updates."""
    run, task = session.run, session.task
    total_updates = run.steps * run.learner.minibatches * run.learner.epochs
    optimizer = make_optimizer(run.optimizer, total_updates)
    def begin(params: Any) -> TrainState:
        return init_state(
            params, optimizer, key, keep_reference=run.objective.needs_reference, sketch_basis=first_basis(run)
        )

    state = first_state(begin, params, session.mesh, latest)
    source, skipped = setup.prompts_of(run, task, "train")
    if skipped:
        limit = f"config.sampling.max_prompt_length = {run.rollouts.max_prompt_length}"
        share = f"{skipped} of {len(task.source('train'))} prompts"
        session.warn(f"{share} are over {limit} and were skipped")
    collection = make_collection(Engine(
        run=run, task=task, source=source, policy=session.policy, shape=setup.policy_config(run, task),
        params=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params), mesh=session.mesh,
        grade=session.grade, warn=session.warn, poll=session.watch.check,
    ))
    make_step = functools.partial(jit_train_step, run, session.policy, optimizer, session.mesh, state)
    step_fns = {False: make_step(), True: make_step(measure=True)}
    every = 0 if run.geometry.enabled else run.geometry.measure_every
    began = 0.0

    def prepare(state: TrainState, step: int) -> Prepared:
        nonlocal began
        began = time.perf_counter()
        collected = collection(state, step)
        host = {"tokens_per_second": collected.tokens, "grading_seconds": collected.grading_seconds}
        return Prepared(collected.rollouts, host | dict(collected.metrics))

    def update(state: TrainState, prepared: Prepared, step: int) -> tuple[TrainState, Any, dict[str, float]]:
        state, metrics = step_fns[bool(every) and (step - 1) % every == 0](state, prepared.batch)
        seconds = time.perf_counter() - began
        host = dict(prepared.host)
        host["tokens_per_second"] /= seconds
        return state, metrics, {"seconds": seconds} | host

    judge = make_judge(run, task, session.policy, state.params, session.mesh, session.grade, poll=session.watch.check)
    work = Work(
        "train", run.steps, workdir.METRICS, prepare=prepare, update=update, data=collection.saved, samples=True,
        judge=judge, every=run.evaluation.every,
    )
    Phase(session, checkpoints, work, state, latest).run()


def first_state(
    begin: Callable[[Any], TrainState], params: Any, mesh: Mesh, latest: int | None
) -> TrainState:
    """The state before the first step; where there is a checkpoint of ``latest`` only its shapes and places.

    A resumed run must not hold two states: what is restored takes as much memory as what would be thrown away.
    """
    if latest is None:
        return place(begin(params), mesh)
    shapes = jax.eval_shape(begin, params)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes,
        tree_shardings(shapes, mesh),
    )


def place(state: TrainState, mesh: Mesh) -> TrainState:
    """The state with every leaf where the mesh's rules want it."""
    return hosts.put(state, tree_shardings(state, mesh))
