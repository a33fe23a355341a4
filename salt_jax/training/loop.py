"""A whole run: warm start, training with rollouts, evaluation, checkpoints. A killed run resumes bit for bit.

The order of events at the end of step n is fixed, and a checkpoint comes last: metrics of n are written and
found finite, an evaluation that is due at n is made and written, then n is saved. So everything that belongs
to steps up to a checkpoint is on disk before it, and a resumed run drops and repeats only what came after.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from salt_jax.evaluate import Evaluation, evaluate
from salt_jax.policy.attention import check_backend
from salt_jax.policy.sampler import SamplingConfig
from salt_jax.tasks import TASKS, Task, check_prompt_lengths, check_solution_lengths, prompt_batches
from salt_jax.training import generation, workdir
from salt_jax.training.checkpoint import Checkpoints
from salt_jax.training.config import ConfigError, RunConfig, parse
from salt_jax.training.metrics import MetricWriter, check_finite
from salt_jax.training.reweighting import first_basis
from salt_jax.training.sharding import make_mesh, path_of, tree_shardings, vocabulary_axis
from salt_jax.training.state import TrainState, init_params, init_state, make_optimizer, make_policy
from salt_jax.training.step import jit_train_step, sampling_key
from salt_jax.training.warm_start import jit_warm_start_step, warm_start_batches, warm_start_optimizer

TRAIN, WARM = "train", "warm_start"


@dataclasses.dataclass(frozen=True)
class Session:
    """What a run needs at hand: its checked configuration, task, mesh and folder."""

    run: RunConfig
    task: Task
    mesh: Mesh
    folder: Path
    policy: Any
    console: Console

    def checkpoints(self, phase: str) -> Checkpoints:
        """The checkpoints of 'warm_start' or 'train'."""
        return Checkpoints(self.folder / "checkpoints" / phase, self.run.checkpoint.keep)


def check(config: Any, folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Everything that can be wrong with a run, found before anything compiles or is written.

    Args:
      config: ConfigDict with every key of configs/base.py.
      folder: the run's workdir.

    Returns:
      The checked configuration, and the same as a nested dict for config.json.

    Raises:
      ConfigError: one line naming the key and what is allowed.
    """
    run = parse(config)
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    resumed = workdir.check_workdir(folder, values)
    limits = run.rollouts.max_prompt_length, run.sampling.max_new_tokens
    with tempfile.TemporaryDirectory() as scratch:  # the workdir stays untouched until all is checked
        with naming("config.task."):
            task = make_task(run, folder / "data" if resumed else Path(scratch))
        with naming("config.sampling."):
            for split in ("train", "test"):
                check_prompt_lengths(task.source(split), task.tokenizer, limits[0])
        if run.warm_start.steps:
            with naming("config.sampling.max_new_tokens: "):
                check_solution_lengths(task.source("train"), task.tokenizer, limits[1])
        check_subset(run, task)
    with naming("config.policy."):
        check_backend(run.policy.attention, jax.default_backend())
    with naming(""):
        make_mesh(run.mesh.data, run.mesh.fsdp, run.mesh.tensor)
    if run.init_from:
        check_initial(run, values, Path(run.init_from))
    return run, values


@contextlib.contextmanager
def naming(prefix: str) -> Iterator[None]:
    """Turns an error about a setting, whose message begins with its name, into a ConfigError with the whole key."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{prefix}{error}") from None


def make_task(run: RunConfig, data_dir: Path) -> Task:
    """The run's task, its data set under ``data_dir``."""
    return TASKS[run.task_name](data_dir, **run.task_arguments)


def check_subset(run: RunConfig, task: Task) -> None:
    """ConfigError if 'per_rollout' gradients are asked of parameters that do not exist."""
    if run.geometry.feature != "per_rollout":
        return
    policy = dataclasses.replace(run.policy, vocab_size=task.tokenizer.vocab_size)
    shapes = jax.eval_shape(lambda: init_params(policy, jax.random.key(0)))
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    if not any(re.search(run.geometry.subset, path) for path in paths):
        raise ConfigError(f"config.salt.subset = {run.geometry.subset!r} matches none of {', '.join(paths)}")


def check_initial(run: RunConfig, values: Mapping[str, Any], source: Path) -> None:
    """ConfigError unless ``config.init_from`` is a finished run of the same policy."""
    if not (source / workdir.SUMMARY).exists():
        raise ConfigError(f"config.init_from = {run.init_from!r} is not a finished run: it has no {workdir.SUMMARY}")
    other = json.loads((source / workdir.CONFIG).read_text())
    if other["policy"] != values["policy"] or other["task"]["name"] != values["task"]["name"]:
        raise ConfigError(f"config.init_from = {run.init_from!r} holds another policy or task than this run's")


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
    folder = Path(folder).absolute()
    run, values = check(config, folder)
    workdir.open_workdir(folder, values)
    task = make_task(run, folder / "data")
    policy_config = dataclasses.replace(run.policy, vocab_size=task.tokenizer.vocab_size)
    mesh = make_mesh(run.mesh.data, run.mesh.fsdp, run.mesh.tensor)
    session = Session(run, task, mesh, folder, make_policy(policy_config, mesh), console or Console())
    began = time.perf_counter()
    if vocabulary_axis(mesh, policy_config.vocab_size) is None:
        split = f"config.mesh.tensor = {run.mesh.tensor} does not divide the vocabulary of {policy_config.vocab_size}"
        session.console.print(f"{split}: every device holds all of the output projection", style="yellow")

    init_key, data_key = jax.random.split(jax.random.key(run.seed))
    shapes = jax.eval_shape(functools.partial(init_params, policy_config), init_key)
    params = jax.jit(
        functools.partial(init_params, policy_config), out_shardings=tree_shardings(shapes, mesh)
    )(init_key)
    train_checkpoints = session.checkpoints(TRAIN)
    if train_checkpoints.latest_step() is None:  # a resumed run has its parameters in its own checkpoint
        if run.init_from:
            params = restore_initial(Path(run.init_from), params)
        if run.warm_start.steps:
            params = warm_start(session, params, data_key)
    summary = train_with_rollouts(session, train_checkpoints, params, data_key)
    summary["seconds"] = time.perf_counter() - began
    if not (folder / workdir.SUMMARY).exists():
        workdir.write_atomically(folder / workdir.SUMMARY, json.dumps(summary, indent=2) + "\n")
    return json.loads((folder / workdir.SUMMARY).read_text())


def restore_initial(source: Path, params: Any) -> Any:
    """The final parameters of another run."""
    checkpoints = Checkpoints(source.absolute() / "checkpoints" / TRAIN, keep=None)
    step = checkpoints.latest_step()
    if step is None:
        raise ConfigError(f"config.init_from = {str(source)!r} has no checkpoint")
    params = checkpoints.restore_params(step, params)
    checkpoints.close()
    return params


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
    run, task, group_size = session.run, session.task, session.run.rollouts.rollouts_per_prompt
    total_updates = run.steps * run.learner.minibatches * run.learner.epochs
    optimizer = make_optimizer(run.optimizer, total_updates)
    state = init_state(
        params, optimizer, key, keep_reference=run.objective.kl_coef > 0, sketch_basis=first_basis(run)
    )
    state = place(state, session.mesh)
    iterator = prompt_batches(
        task.source("train"), task.tokenizer, batch_size=run.rollouts.prompts_per_step,
        max_prompt_length=run.rollouts.max_prompt_length, seed=run.seed,
    )
    generate = generation.jit_sampler(
        session.policy, state.params, session.mesh,
        group_size=group_size, config=run.sampling, tokenizer=task.tokenizer,
    )
    assemble = generation.jit_assemble(session.mesh, group_size)
    make_step = functools.partial(jit_train_step, run, session.policy, optimizer, session.mesh, state)
    step_fns = {False: make_step(), True: make_step(measure=True)}
    every = 0 if run.geometry.enabled else run.geometry.measure_every
    key_of = jax.jit(sampling_key)
    number = 0  # of the step in hand, kept on the host so that nothing waits for the device

    def one_step(state: TrainState) -> tuple[TrainState, dict[str, Any], dict[str, float]]:
        nonlocal number
        began = time.perf_counter()
        batch = next(iterator)
        prompts, mask = batch["prompt_tokens"], batch["prompt_mask"]
        samples = generate(state.params, prompts, mask, key_of(state))
        rewards, rewarded, failure = generation.grade_samples(task, samples, batch["references"], group_size)
        if failure:
            session.console.print(f"grader failed: {failure}", style="yellow")
        lengths = jax.device_get(samples.lengths)
        trimmed = generation.batch_lengths(run, mask, lengths)  # the update pays for the longest row, not the limit
        rollouts = assemble(prompts, mask, samples, rewards, rewarded, trimmed)
        tokens = float(lengths.sum())
        state, metrics = step_fns[bool(every) and number % every == 0](state, rollouts)
        number += 1
        seconds = time.perf_counter() - began
        return state, metrics, {"seconds": seconds, "tokens_per_second": tokens / seconds}

    judge = make_judge(session, state.params)

    def begin(step: int) -> None:
        nonlocal number
        number = step

    run_phase(
        session, checkpoints, state, iterator, one_step, label="train", total=run.steps,
        records=workdir.METRICS, judge=judge, every=run.evaluation.every, begin=begin,
    )
    records = workdir.read_records(session.folder / workdir.EVALUATIONS)
    return {"steps": run.steps, "before": records[0], "after": records[-1], "salt": run.geometry.enabled}


def make_judge(session: Session, params: Any) -> Callable[[Any], Evaluation]:
    """A function from parameters to greedy accuracy on the test split."""
    run, task = session.run, session.task
    source = task.source("test")
    problems = [source[i] for i in range(min(run.evaluation.problems, len(source)))]
    greedy = SamplingConfig(max_new_tokens=run.sampling.max_new_tokens, temperature=0.0)
    generate = generation.jit_sampler(
        session.policy, params, session.mesh, group_size=1, config=greedy, tokenizer=task.tokenizer
    )

    def judge(params: Any) -> Evaluation:
        batches = prompt_batches(
            problems, task.tokenizer, batch_size=run.evaluation.batch_size,
            max_prompt_length=run.rollouts.max_prompt_length, seed=0, shuffle=False, repeat=False,
        )
        return evaluate(lambda prompts, mask: generate(params, prompts, mask, jax.random.key(0)), batches, task)

    return judge


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
    judge: Callable[[Any], Evaluation] | None = None,
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
    fallbacks = False

    def flush() -> None:
        nonlocal pending, fallbacks
        if pending is not None:
            step, metrics, host = pending
            pending = None
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            writer.write(step, values | host)  # written before it is checked, so that a bad step can be seen
            check_finite(step, values, last_saved)
            if values.get("salt/eigh_fallback") and not fallbacks:
                fallbacks = True
                text = "iterated eigenvectors were refused and a full eigh was used, slower and no less right"
                session.console.print(f"step {step}: {text}; salt/eigh_fallback in the metrics counts", style="yellow")

    def evaluate_at(step: int) -> None:
        if judge is not None:
            result = judge(state.params)
            text = f"greedy accuracy {result.accuracy:.3f} on {result.problems} held-out problems"
            writer.note(folder / workdir.EVALUATIONS, step, result._asdict(), text)

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
