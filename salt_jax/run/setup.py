"""What a run needs before its first step: everything checked, its tokenizer, task, graders and initial policy."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from salt_jax.collect.checks import check_problems
from salt_jax.distributed import hosts
from salt_jax.distributed.sharding import make_mesh, path_of, replicated, tree_shardings
from salt_jax.graders import Grader, Grades
from salt_jax.graders.pool import GraderPool
from salt_jax.learner.settings import RunConfig, named
from salt_jax.learner.state import init_params
from salt_jax.models import integrity, run_steps
from salt_jax.models.hf import open_checkpoint
from salt_jax.objective.row_filters import names_of
from salt_jax.policy.attention import check_backend
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.waves import Waves, plan_waves
from salt_jax.run import identity, provenance, workdir
from salt_jax.run.checkpoint import CheckpointError, Checkpoints, chosen_step
from salt_jax.run.config import OPTIONS, parse
from salt_jax.spec import ConfigError
from salt_jax.tasks import (
    TASKS,
    Source,
    Task,
    Tokenizer,
    check_prompt_lengths,
    check_solution_lengths,
    fitting,
)

TRAIN = "train"  # the phase whose checkpoints hold a run's policy
OF_TOKENIZER = ("model.chat", "model.system", "model.template")  # what a message of the tokenizer may begin with
Grade = Callable[[Sequence[str], Sequence[str]], Grades]


@dataclasses.dataclass(frozen=True)
class Checked:
    """What ``check`` found.

    Attributes:
      run: the checked configuration.
      values: the same as a nested dict, for config.json.
      made_from: the run's date, and what it is made from, as JSON.
      may_change: further keys that may differ from those of a run that is resumed, see ``workdir.check_workdir``.
      said: lines that a person should read.
    """

    run: RunConfig
    values: dict[str, Any]
    made_from: dict[str, Any]
    may_change: Mapping[str, str]
    said: Sequence[str]


def check(config: Any, folder: Path, *, date: str | None = None, allow: Sequence[str] = ()) -> Checked:
    """Everything that can be wrong with a run, found before anything compiles or is written.

    Args:
      config: ConfigDict with every key of configs/base.py.
      folder: the run's workdir.
      date: ``provenance.first_date``, which of many processes the first has read.
      allow: names of what a resumed run may be made from that is not as it was: see ``identity.check_resumed``.

    Raises:
      ConfigError: one line naming the key and what is allowed.
    """
    run = parse(config)
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    before = provenance.made_from(folder)
    also = may_change(run, folder, before)
    resumed = workdir.check_workdir(folder, values, also)
    date = date or provenance.first_date(folder, *([run.init_from] if run.init_from else []))
    with tempfile.TemporaryDirectory() as scratch:  # the workdir stays untouched until all is checked
        task = checked_task(run, folder / "data" if resumed else Path(scratch), splits=("train", "test"), date=date)
        if run.warm_start.steps:
            limit = "config.sampling.max_new_tokens: "
            with naming(limit, ["max_completion_length"], otherwise="config.warm_start.steps: "):
                check_solution_lengths(task.source("train"), task.tokenizer, run.sampling.max_new_tokens)
        check_problems(run, lambda: prompts_of(run, task, "train")[0], task.tokenizer)
        check_subset(run, task)
        checked_mesh(run, policy_config(run, task))
        made = identity.of_run(run, task)
        said = date_said(task, date)
    identity.check_names(allow, made.fingerprints)
    if resumed:
        said = [*identity.check_resumed(folder, before, made, allow), *said]
    if run.init_from:
        named = f"config.init_from = {run.init_from!r}"
        check_same_policy(run, values, Path(run.init_from), named)
        if not (Path(run.init_from) / workdir.SUMMARY).exists():
            raise ConfigError(f"{named} is not a finished run: it has no {workdir.SUMMARY}")
    return Checked(run, values, {provenance.DATE: date, **made.record()}, also, said)


def may_change(run: RunConfig, folder: Path, before: Mapping[str, Any]) -> dict[str, str]:
    """Keys that may differ from those of the run in ``folder`` where that changes nothing: '', or why it may not.

    A file may be another one where it was fingerprinted and its content is the same, which is checked later. The
    number of steps may be any that is not yet passed, where nothing depends on it but the end.

    Args:
      run: the checked configuration.
      folder: the workdir.
      before: ``provenance.made_from`` of it.
    """
    try:
        if not (folder / workdir.CONFIG).is_file():
            return {}
    except OSError:  # a name that is too long: said where the folder is checked
        return {}
    known = {f"config.{name}" for name in before.get(provenance.FINGERPRINTS, {})}
    if "config.model.weights" in known:
        known.add("config.model.path")
    unknown = "that run is from before fingerprints: whether the content is the same is unknown"
    keys = {key: "" if key in known else unknown for key in identity.files_in(run) if key in known or not before}
    return keys | {workdir.STEPS: steps_reason(run, folder)}


def steps_reason(run: RunConfig, folder: Path) -> str:
    """Why the run in ``folder`` may not end after config.steps instead of what it was started with; '' if it may."""
    if run.optimizer.schedule != "constant":
        return f"config.optimizer.schedule = {run.optimizer.schedule!r} ends at the last step; only 'constant' does not"
    for key, chosen in (("filters", names_of(run.objective.filters)), ("tokens", (run.objective.tokens,))):
        if "d3s" in chosen:
            return f"config.objective.{key} has 'd3s', whose shares go by the last step"
    done = max(integrity.steps(folder / run_steps.STEPS), default=0)
    return f"it has done {done} steps; allowed: {done} or more" if run.steps < done else ""


def date_said(task: Task, date: str) -> list[str]:
    """The line that says what date the chat template writes; [] where it writes none."""
    writes = getattr(task.tokenizer, "writes_date", None)
    prompts = [source[0].prompt for source in task.sources.values() if len(source)]
    if writes is None or not any(writes(prompt) for prompt in prompts):
        return []
    return [f"the chat template writes the date: in every prompt it is {date}, whatever the day"]


def checked_task(run: RunConfig, data_dir: Path, splits: Sequence[str], date: str | None = None) -> Task:
    """The run's task, after a look at every prompt of some splits.

    Raises:
      ConfigError: no tokenizer, a wrong setting or data set, a prompt over the limit where that is an error.
    """
    with naming("config.", OF_TOKENIZER, otherwise="config.model.path: "):
        tokenizer = make_tokenizer(run, date)
    try:
        with naming("config.task.", ["name", *task_settings(run)], otherwise="config.task: "):
            task = make_task(run, data_dir, tokenizer)
    except OSError as error:  # a file where the folder of the data should be, a full disk
        raise ConfigError(workdir.reason(error, data_dir)) from None
    for split in splits:
        if split not in task.sources:
            raise ConfigError(f"config.task has no {split} split; it has {', '.join(task.sources)}")
        of_rows = f"config.task.{split}: " if split in run.task_arguments else "config.task: "
        with naming("config.sampling.", ["max_prompt_length"], otherwise=of_rows):
            prompts_of(run, task, split)
    check_deadline(run, task)
    with naming("config.grading: "), grading(run, task) as grade:  # a grader that cannot start is found now
        grade([""], [task.source(splits[0])[0].reference])
    return task


def check_deadline(run: RunConfig, task: Task) -> None:
    """ConfigError where a worker would be killed while the program that it runs still has time."""
    if not isinstance(task.verifier, Grader):
        return
    own = task.verifier.arguments
    parts = [part["arguments"] for part in own.values() if isinstance(part, Mapping) and "arguments" in part]
    limits = [arguments["wall_limit"] for arguments in (own, *parts) if "wall_limit" in arguments]
    if limits and run.grading.deadline <= max(limits):
        limit = f"a program of config.task may run for {max(limits):g} s (1.5 x time_limit)"
        raise ConfigError(f"config.grading.deadline = {run.grading.deadline:g} is too short: {limit}")


def checked_mesh(run: RunConfig, config: TransformerConfig) -> Mesh:
    """The run's mesh, after a look at whether rollouts and attention fit it.

    Raises:
      ConfigError: too few devices, waves that fit no rollout, a kernel that this backend does not have.
    """
    with naming("config.sampling."):
        training_waves(run, config)
        evaluation_waves(run, config)
    with naming("config.policy."):
        check_backend(run.policy.attention, jax.default_backend())
    with naming(""):
        mesh = make_mesh(run.mesh.data, run.mesh.fsdp, run.mesh.tensor)
    hosts.check_mesh(mesh)
    return mesh


@contextlib.contextmanager
def naming(prefix: str, keys: Iterable[str] | None = None, otherwise: str = "") -> Iterator[None]:
    """Turns an error into a ConfigError that begins with a whole key.

    Args:
      prefix: what the message gets, which begins with the rest of the key, or with anything behind 'key: '.
      keys: what such a rest begins with, where a message may begin with something else.
      otherwise: what that one gets.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(prefix + str(error) if keys is None else named(prefix, keys, str(error), otherwise)) from None


def make_tokenizer(run: RunConfig, date: str | None = None) -> Tokenizer | None:
    """The pretrained model's tokenizer; None where the run starts from random weights and the task has its own.

    ``date`` is what its chat template takes for today, ISO 8601; by default the time of the call.
    """
    if not run.model.path:
        return None
    # here, because the packages behind it need not be installed
    from salt_jax.tasks.hf_tokenizer import load_tokenizer

    checkpoint = open_checkpoint(run.model.path)
    if checkpoint.tokenizer_source is None:
        raise ValueError(f"{run.model.path} has no tokenizer: it is a run whose task had its own")
    return load_tokenizer(
        checkpoint.tokenizer_source, vocab_size=checkpoint.config.vocab_size, stop_ids=checkpoint.stop_ids,
        chat=run.model.chat, system=run.model.system, template=run.model.template,
        date=None if date is None else datetime.datetime.fromisoformat(date),
    )


def task_settings(run: RunConfig) -> list[str]:
    """The keys of config.task that the run's task has."""
    return [*run.task_arguments, *inspect.signature(TASKS[run.task_name]).parameters]


def make_task(run: RunConfig, data_dir: Path, tokenizer: Tokenizer | None) -> Task:
    """The run's task, its data set under ``data_dir``."""
    return TASKS[run.task_name](data_dir, **run.task_arguments, tokenizer=tokenizer)


def policy_config(run: RunConfig, task: Task) -> TransformerConfig:
    """The policy's shape with its vocabulary: the checkpoint's, or the task's tokenizer's."""
    return run.policy if run.model.path else dataclasses.replace(run.policy, vocab_size=task.tokenizer.vocab_size)


def prompts_of(run: RunConfig, task: Task, split: str) -> tuple[Source, int]:
    """A split's examples whose prompts are within the limit, and how many were left out (``sampling.on_long_prompt``).

    Raises:
      ValueError: a prompt over the limit where that is an error; no example, or none that fits.
    """
    source, limit = task.source(split), run.rollouts.max_prompt_length
    if run.rollouts.on_long_prompt == "skip":
        return fitting(source, task.tokenizer, limit)
    check_prompt_lengths(source, task.tokenizer, limit)
    return source, 0


def training_waves(run: RunConfig, policy: TransformerConfig) -> Waves:
    """How the rollouts of a step are generated within ``sampling.wave_mib``."""
    return plan_waves(
        policy, run.sampling, prompts=run.rollouts.prompts_per_step, rollouts=run.rollouts.rollouts_per_prompt,
        prompt_length=run.rollouts.max_prompt_length, budget_mib=run.rollouts.wave_mib,
        shards=run.mesh.data * run.mesh.fsdp,
    )


def evaluation_waves(run: RunConfig, policy: TransformerConfig) -> Waves:
    """How the completions of an evaluation batch are generated within ``sampling.wave_mib``."""
    return plan_waves(
        policy, run.evaluation_sampling, prompts=run.evaluation.batch_size, rollouts=run.evaluation.samples,
        prompt_length=run.rollouts.max_prompt_length, budget_mib=run.rollouts.wave_mib,
        shards=run.mesh.data * run.mesh.fsdp,
    )


@contextlib.contextmanager
def grading(run: RunConfig, task: Task) -> Iterator[Grade]:
    """Grades completions: in workers where the task's verifier is a ``Grader``, else in this process."""
    if not isinstance(task.verifier, Grader):
        yield task.grade
        return
    limits = run.grading
    with GraderPool(
        task.verifier, workers=limits.workers, deadline=limits.deadline, memory_mib=limits.memory_mib
    ) as pool:
        yield pool.grade


def check_subset(run: RunConfig, task: Task) -> None:
    """ConfigError if 'per_rollout' gradients are asked of parameters that do not exist."""
    if run.geometry.feature != "per_rollout":
        return
    shapes = jax.eval_shape(lambda: init_params(policy_config(run, task), jax.random.key(0)))
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    if not any(re.search(run.geometry.subset, path) for path in paths):
        raise ConfigError(f"config.salt.subset = {run.geometry.subset!r} matches none of {', '.join(paths)}")


def check_same_policy(run: RunConfig, values: Mapping[str, Any], source: Path, named: str) -> None:
    """ConfigError unless ``source`` is a run of the same policy; ``named`` says where that was asked for."""
    if not (source / workdir.CONFIG).exists():
        raise ConfigError(f"{named} is not a run: it has no {workdir.CONFIG}")
    other = json.loads((source / workdir.CONFIG).read_text())
    same_vocabulary = run.model.path or other["task"]["name"] == values["task"]["name"]
    same_policy = other["policy"] == values["policy"] and same_model(run, other.get("model"), values["model"], source)
    if not (same_policy and same_vocabulary):
        raise ConfigError(f"{named} holds another policy or task than this configuration's")


def same_model(run: RunConfig, there: Any, here: Mapping[str, Any], source: Path) -> bool:
    """Whether ``source`` has begun from this run's model, which may lie elsewhere by now."""
    if there == here or not isinstance(there, Mapping) or not (there.get("path") and here["path"]):
        return there == here
    before, now = provenance.made_from(source), identity.Identity()
    if {**there, "path": ""} != {**here, "path": ""} or not before:
        return False
    identity.add_model(now, run.model.path)
    return all(before[provenance.FINGERPRINTS].get(name) == value for name, value in now.fingerprints.items())


def initial_params(
    run: RunConfig, config: TransformerConfig, key: jax.Array, mesh: Mesh, *, pretrained: bool = True
) -> Any:
    """Float32 parameters on the mesh: of the pretrained model, else (and for ``pretrained=False``) random."""
    make = functools.partial(init_params, config)
    shardings = tree_shardings(jax.eval_shape(make, key), mesh)
    if run.model.path and pretrained:
        options = {name: getattr(config, name) for name in OPTIONS}
        with naming("config.model.path: "):  # a tensor that is not finite, seen as it is read
            return open_checkpoint(run.model.path, **options).load(shardings)
    return jax.jit(make, out_shardings=shardings)(hosts.put(key, replicated(mesh)))


def abstract_params(config: TransformerConfig, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of the parameters."""
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))

    def at(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(at, shapes, tree_shardings(shapes, mesh))


def final_params(source: Path, params: Any, named: str, warn: Callable[[str], None] = print) -> Any:
    """The newest parameters of another run, laid out like ``params``; ``named`` says where they were asked for."""
    return params_at(source, final_step(source, named, warn), params, named)


def final_step(
    source: Path, named: str, warn: Callable[[str], None] = print, checkpoint: str | int = run_steps.NEWEST
) -> int:
    """The step of another run's checkpoint whose parameters are sound.

    Args:
      source: the run's workdir, which is only read.
      named: where it was asked for.
      warn: takes a line about a damaged checkpoint.
      checkpoint: 'newest', 'best' or a step, see ``run_steps.choose``.

    Raises:
      ConfigError: if there is no such checkpoint, or it is damaged.
    """
    try:
        return chosen_step(source.absolute(), checkpoint, warn)
    except CheckpointError as error:
        raise ConfigError(f"{named}: {error}") from None


def params_at(source: Path, step: int, params: Any, named: str) -> Any:
    """Another run's parameters at a step that ``final_step`` has found, laid out like ``params``."""
    checkpoints = Checkpoints(source.absolute() / run_steps.STEPS, keep=None)
    try:
        return checkpoints.restore_params(step, params)
    except CheckpointError as error:
        raise ConfigError(f"{named}: {error}") from None
    finally:
        checkpoints.close()
