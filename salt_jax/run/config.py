"""From a ConfigDict to one frozen, typed RunConfig; every wrong input is found here, before anything compiles.

Defaults live in configs/base.py, names and types in settings.py, allowed values here. Errors are one line that
names the key as it is written on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salt_jax.collect.checks import check_collection
from salt_jax.geometry.streaming import ROUTES
from salt_jax.learner.settings import (
    CheckpointConfig,
    CollectionConfig,
    EvaluationConfig,
    GeometryConfig,
    GradingConfig,
    GuardsConfig,
    LearnerConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    MonitorsConfig,
    OptimizerConfig,
    RolloutsConfig,
    RunConfig,
    WarmStartConfig,
    named,
)
from salt_jax.models.hf import open_checkpoint
from salt_jax.objective import ObjectiveConfig
from salt_jax.objective.aggregation import NEED_MAX_LENGTH, WHOLE_BATCH
from salt_jax.objective.row_filters import names_of
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import SamplingConfig
from salt_jax.run.limits import check_limits
from salt_jax.salt import SaltConfig
from salt_jax.spec import ConfigError
from salt_jax.tasks import TASKS
from salt_jax.tasks.paths import expanded

FEATURES = ("lm_head", "lm_head_sketch", "taken_token", "per_rollout")
SCHEDULES = ("constant", "linear", "cosine")
WARM_START_OBJECTIVES = ("sft", "otr", "otr_exact")
OTR_OPTIONS = {"otr_samples": 256, "otr_temperature": 1.3, "otr_beta": -0.1}  # as in configs/base.py
ON_LONG_PROMPT = ("error", "skip")
OF_EVERY_TASK = ("name", "correct_from")  # keys of config.task that are no argument of its factory
DEEPEST = 20  # sections and lists in each other: a mixture's parts have four
# Options of the policy that are a run's own; the other keys of config.policy are the shape, which a checkpoint has.
OPTIONS = ("compute_dtype", "scan_layers", "attention", "remat")
RENAMED = {  # keys that once were, and the one in their place
    "config.evaluation.correct_from": "config.task.correct_from",
    "config.collection.positive_above": "config.task.correct_from",
}
FROM_CHECKPOINT = {"vocab_size", "rope_scaling"}  # no keys of config.policy


def parse(config: Any) -> RunConfig:
    """Checks a ConfigDict (or nested dict) and returns it as a ``RunConfig``.

    Args:
      config: every key of configs/base.py, nothing else.

    Returns:
      The checked configuration.

    Raises:
      ConfigError: an unknown or missing key, a value of another type or out of range, an unknown name, or
        batch arithmetic that does not divide; one line.
    """
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    _check_plain("config", values)
    sections = {
        "model": ("model", ModelConfig, {}),
        "grading": ("grading", GradingConfig, {}),
        "rollouts": ("sampling", RolloutsConfig, {}),
        "sampling": ("sampling", SamplingConfig, {}),
        "collection": ("collection", CollectionConfig, {}),
        "policy": ("policy", TransformerConfig, {"vocab_size": 1, "rope_scaling": None}),
        "objective": ("objective", ObjectiveConfig, {}),
        "geometry": ("salt", GeometryConfig, {}),
        "salt": ("salt", SaltConfig, {}),
        "learner": ("learner", LearnerConfig, {}),
        "optimizer": ("optimizer", OptimizerConfig, {}),
        "warm_start": ("warm_start", WarmStartConfig, {}),
        "evaluation": ("evaluation", EvaluationConfig, {}),
        "checkpoint": ("checkpoint", CheckpointConfig, {}),
        "guards": ("guards", GuardsConfig, {}),
        "monitors": ("monitors", MonitorsConfig, {}),
        "mesh": ("mesh", MeshConfig, {}),
        "logging": ("logging", LoggingConfig, {}),
    }
    scalars = {"seed": int, "steps": int, "init_from": str}
    _check_keys("config", values, {*scalars, "task", *(key for key, _, _ in sections.values())})
    known: dict[str, set[str]] = {}
    for key, cls, _ in sections.values():
        known.setdefault(key, set()).update(field.name for field in dataclasses.fields(cls))
    for key, names in known.items():
        absent = FROM_CHECKPOINT if key == "policy" else {"max_length"} if key == "objective" else set()
        _check_keys(f"config.{key}", values[key], names - absent)

    fields: dict[str, Any] = {}
    for name, kind in scalars.items():
        fields[name] = _typed(f"config.{name}", values[name], kind)
    aggregation, buffer = (values["objective"][name] for name in ("aggregation", "overlong_buffer"))
    if aggregation in NEED_MAX_LENGTH or buffer:  # the sampler's limit
        sections["objective"] = ("objective", ObjectiveConfig, {"max_length": values["sampling"]["max_new_tokens"]})
    # before SamplingConfig, which allows 0: greedy decoding is for evaluation only
    temperature = _typed("config.sampling.temperature", values["sampling"]["temperature"], float)
    _require("sampling.temperature", temperature, temperature > 0, "finite numbers > 0 in training")
    for name, (key, cls, extra) in sections.items():
        if name != "policy":
            fields[name] = _section(f"config.{key}", cls, values[key], extra)
    fields["policy"] = _policy(fields["model"].path, values["policy"], sections["policy"][2])
    fields["task_name"], fields["task_arguments"], fields["correct_from"] = _task(values["task"])
    try:
        fields["init_from"] = expanded(fields["init_from"])
        Path(fields["init_from"]).exists()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ConfigError(f"config.init_from = {fields['init_from']!r}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"config.init_from: {error}") from None
    run = RunConfig(**fields)
    _check_ranges(run)
    _check_divisions(run)
    check_collection(run)
    check_limits(run)
    return run


def _check_plain(path: str, value: Any, depth: int = 0) -> None:
    """ConfigError for what config.json could not hold, or what no setting has a use for, wherever it stands."""
    allowed = ""
    if depth > DEEPEST:
        raise ConfigError(f"{path} is nested too deeply; allowed: {DEEPEST} sections and lists in each other")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{path} has the key {key!r}; allowed: texts")
            _check_plain(f"{path}.{key}", inner, depth + 1)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_plain(f"{path}[{i}]", inner, depth + 1)
    elif isinstance(value, int):
        allowed = "" if abs(value) < 2**63 else "integers of 64 bits"
    elif isinstance(value, str):
        halves = any("\ud800" <= c <= "\udfff" for c in value)  # of a surrogate pair: no text for a file or a tokenizer
        allowed = "texts without the character 0 and without half characters" if halves or "\0" in value else ""
    elif value is not None and not isinstance(value, float):
        allowed = "numbers, texts, True, False, None, lists and sections of them"
    if allowed:
        shown = repr(value) if not isinstance(value, int) or value.bit_length() < 10_000 else "an integer of its size"
        raise ConfigError(f"{path} = {shown} is not allowed; allowed: {allowed}")


def _check_keys(path: str, values: Any, names: set[str]) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a section with keys {', '.join(sorted(names))}, got {values!r}")
    for key in values:
        if key not in names:
            raise ConfigError(unknown_key(f"{path}.{key}", sorted(names)))
    for name in sorted(names):
        if name not in values:
            raise ConfigError(f"{path}.{name} is missing; configs/base.py has its default")


def unknown_key(path: str, allowed: list[str]) -> str:
    """The message for a key that does not exist, with the one that took its place or the nearest that does.

    Example:
      >>> unknown_key("config.salt.roh", ["k_min", "rho"])
      'config.salt.roh is not a key; did you mean rho? allowed: k_min, rho'
    """
    if path in RENAMED:
        return f"{path} is now {RENAMED[path]}"
    near = difflib.get_close_matches(path.rpartition(".")[2], allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{path} is not a key; {hint}allowed: {', '.join(allowed) or 'no key'}"


def _typed(path: str, value: Any, kind: Any) -> Any:
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{path} = {value!r} is not allowed; allowed: numbers that a float can hold") from None
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join("None" if a is types.NoneType else a.__name__ for a in allowed)
        raise ConfigError(f"{path} = {value!r} is not allowed; allowed: {names}")
    return value


def _section(path: str, cls: type, values: Mapping[str, Any], extra: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    arguments = dict(extra)
    for field in dataclasses.fields(cls):
        if field.name in values and field.name not in extra:
            arguments[field.name] = _typed(f"{path}.{field.name}", values[field.name], hints[field.name])
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ConfigError(named(f"{path}.", hints, str(error), f"{path}: ")) from None


def _policy(path: str, values: Mapping[str, Any], extra: Mapping[str, Any]) -> TransformerConfig:
    """The policy of config.policy, or of a checkpoint, whose shape the keys of config.policy then leave open."""
    if not path:
        return _section("config.policy", TransformerConfig, values, extra)
    hints = typing.get_type_hints(TransformerConfig)
    for key, value in values.items():
        if key not in OPTIONS and value is not None:
            there = "it is the checkpoint's where config.model.path is set"
            raise ConfigError(f"config.policy.{key} = {value!r} is not allowed; allowed: None, as {there}")
    options = {name: _typed(f"config.policy.{name}", values[name], hints[name]) for name in OPTIONS}
    try:
        return open_checkpoint(path, **options).config
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"config.model.path: {error}") from None


def _task(values: Any) -> tuple[str, Mapping[str, Any], float]:
    for key in OF_EVERY_TASK:
        if not isinstance(values, Mapping) or key not in values:
            raise ConfigError(f"config.task.{key} is missing; configs/base.py has its default")
    if not isinstance(values["name"], str) or values["name"] not in TASKS:
        raise ConfigError(f"config.task.name = {values['name']!r} is unknown; allowed: {', '.join(TASKS)}")
    arguments = {key: value for key, value in values.items() if key not in OF_EVERY_TASK}
    ours = ("data_dir", "tokenizer")
    allowed = [name for name in inspect.signature(TASKS[values["name"]]).parameters if name not in ours]
    for key in arguments:
        if key not in allowed:
            raise ConfigError(unknown_key(f"config.task.{key}", [*OF_EVERY_TASK[1:], *allowed]))
    correct_from = _typed("config.task.correct_from", values["correct_from"], float)
    return values["name"], types.MappingProxyType(arguments), correct_from


def _require(path: str, value: Any, holds: bool, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"config.{path} = {value!r} is not allowed; allowed: {allowed}")


def _check_ranges(run: RunConfig) -> None:
    at_least = {
        "seed": (run.seed, 0),
        "steps": (run.steps, 0),
        "sampling.prompts_per_step": (run.rollouts.prompts_per_step, 1),
        "sampling.rollouts_per_prompt": (run.rollouts.rollouts_per_prompt, 2),
        "sampling.max_prompt_length": (run.rollouts.max_prompt_length, 1),
        "salt.rank_vocab": (run.geometry.rank_vocab, 1),
        "salt.rank_hidden": (run.geometry.rank_hidden, 1),
        "salt.subset_microbatch": (run.geometry.subset_microbatch, 1),
        "salt.measure_every": (run.geometry.measure_every, 0),
        "learner.minibatches": (run.learner.minibatches, 1),
        "learner.epochs": (run.learner.epochs, 1),
        "learner.microbatches": (run.learner.microbatches, 1),
        "learner.vocab_chunk": (run.learner.vocab_chunk, 1),
        "learner.length_buckets": (run.learner.length_buckets, 1),
        "learner.prompt_buckets": (run.learner.prompt_buckets, 1),
        "optimizer.warmup_steps": (run.optimizer.warmup_steps, 0),
        "optimizer.weight_decay": (run.optimizer.weight_decay, 0),
        "optimizer.clip_norm": (run.optimizer.clip_norm, 0),
        "warm_start.steps": (run.warm_start.steps, 0),
        "warm_start.batch_size": (run.warm_start.batch_size, 1),
        "warm_start.otr_samples": (run.warm_start.otr_samples, 1),
        "evaluation.every": (run.evaluation.every, 0),
        "evaluation.problems": (run.evaluation.problems, 1),
        "evaluation.batch_size": (run.evaluation.batch_size, 1),
        "evaluation.samples": (run.evaluation.samples, 1),
        "evaluation.temperature": (run.evaluation.temperature, 0),
        "grading.workers": (run.grading.workers, 1),
        "grading.memory_mib": (run.grading.memory_mib, 64),
        "guards.max_skipped": (run.guards.max_skipped, 0),
        "monitors.patience": (run.monitors.patience, 1),
        "checkpoint.every": (run.checkpoint.every, 1),
        "checkpoint.keep": (run.checkpoint.keep, 1),
        "mesh.data": (run.mesh.data, 1),
        "mesh.fsdp": (run.mesh.fsdp, 1),
        "mesh.tensor": (run.mesh.tensor, 1),
        "logging.print_every": (run.logging.print_every, 1),
    }
    for path, (value, least) in at_least.items():
        finite = "finite " if isinstance(value, float) else ""
        _require(path, value, least <= value < float("inf"), f"{finite}numbers >= {least}")
    for path, size in (
        ("salt.vocab_chunk", run.geometry.vocab_chunk),
        ("salt.memory_mib", run.geometry.memory_mib),
        ("sampling.wave_mib", run.rollouts.wave_mib),
        ("evaluation.max_new_tokens", run.evaluation.max_new_tokens),
    ):
        _require(path, size, size is None or size >= 1, "None, numbers >= 1")
    _require("sampling.on_long_prompt", run.rollouts.on_long_prompt, run.rollouts.on_long_prompt in ON_LONG_PROMPT,
             ", ".join(ON_LONG_PROMPT))
    _require("task.correct_from", run.correct_from, abs(run.correct_from) < float("inf"), "finite numbers")
    _require("evaluation.top_p", run.evaluation.top_p, 0 < run.evaluation.top_p <= 1, "numbers in (0, 1]")
    _require("salt.route", run.geometry.route, run.geometry.route in ROUTES, ", ".join(ROUTES))
    for path, rate in (
        ("optimizer.learning_rate", run.optimizer.learning_rate),
        ("optimizer.eps", run.optimizer.eps),
        ("warm_start.learning_rate", run.warm_start.learning_rate),
        ("warm_start.otr_temperature", run.warm_start.otr_temperature),
        ("grading.deadline", run.grading.deadline),
    ):
        _require(path, rate, 0 < rate < float("inf"), "finite numbers > 0")
    _require("warm_start.objective", run.warm_start.objective, run.warm_start.objective in WARM_START_OBJECTIVES,
             ", ".join(WARM_START_OBJECTIVES))
    penalty = run.warm_start.otr_beta
    _require("warm_start.otr_beta", penalty, -float("inf") < penalty < 1, "finite numbers < 1 (a right token has 1)")
    unread = {"sft": tuple(OTR_OPTIONS), "otr_exact": ("otr_samples",), "otr": ()}[run.warm_start.objective]
    for name in unread:
        value, usual = getattr(run.warm_start, name), OTR_OPTIONS[name]
        otr = "the default; it has no effect without config.warm_start.objective = 'otr'"
        _require(f"warm_start.{name}", value, value == usual, f"{usual!r}, {otr}")
    for path, beta in (("optimizer.b1", run.optimizer.b1), ("optimizer.b2", run.optimizer.b2)):
        _require(path, beta, 0 <= beta < 1, "numbers in [0, 1)")
    _require("optimizer.schedule", run.optimizer.schedule, run.optimizer.schedule in SCHEDULES, ", ".join(SCHEDULES))
    sampling = run.sampling
    biased = "in training: a filter would bias the policy gradient"
    _require("sampling.top_k", sampling.top_k, sampling.top_k == 0, f"0 {biased}")
    _require("sampling.top_p", sampling.top_p, sampling.top_p == 1.0, f"1.0 {biased}")
    _require("salt.feature", run.geometry.feature, run.geometry.feature in FEATURES, ", ".join(FEATURES))
    scope = run.geometry.scope
    number = scope.isdecimal() and len(scope) < 10 and int(scope) > 0
    _require("salt.scope", scope, scope in ("mini_batch", "group") or number, "mini_batch, group, or a number >= 1")
    try:
        re.compile(run.geometry.subset)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"config.salt.subset = {run.geometry.subset!r} is no regular expression: {error}") from None


def _check_divisions(run: RunConfig) -> None:
    def divides(part_path: str, part: int, whole_path: str, whole: int) -> None:
        if whole % part:
            raise ConfigError(f"config.{part_path} = {part} must divide {whole_path} = {whole}")

    prompts = run.rollouts.prompts_per_step
    per_minibatch = "the rollouts of a minibatch (prompts_per_step x rollouts_per_prompt / minibatches)"
    divides("learner.minibatches", run.learner.minibatches, "config.sampling.prompts_per_step", prompts)
    divides("learner.microbatches", run.learner.microbatches, per_minibatch, run.minibatch_rows)
    divides("salt.scope", run.unit_rows, per_minibatch, run.minibatch_rows)
    objective = run.objective
    if run.learner.microbatches > 1:
        parts = f"config.learner.microbatches = {run.learner.microbatches}"
        additive = f"another aggregation with {parts}, as its denominator does not add up; or 1 microbatch"
        _require("objective.aggregation", objective.aggregation, objective.aggregation not in WHOLE_BATCH, additive)
    group = run.rollouts.rollouts_per_prompt
    at_most = f"at most config.sampling.rollouts_per_prompt = {group}"
    for name, keys in (("pods", ("pods_keep",)), ("d3s", ("d3s_rollouts_first", "d3s_rollouts_last"))):
        for key in keys if name in names_of(objective.filters) else ():
            _require(f"objective.{key}", getattr(objective, key), getattr(objective, key) <= group, at_most)
    if run.geometry.feature == "per_rollout":
        divides("salt.subset_microbatch", run.geometry.subset_microbatch, per_minibatch, run.minibatch_rows)
    shards = run.mesh.data * run.mesh.fsdp
    if shards > 1:
        whole_batch = "'auto' or 'features' where mesh.data x mesh.fsdp > 1: pairs need every rollout on one device"
        _require("salt.route", run.geometry.route, run.geometry.route != "pairs", whole_batch)
    for path, whole in (
        ("config.sampling.prompts_per_step", prompts),
        ("the rollouts of a microbatch", run.minibatch_rows // run.learner.microbatches),
        ("config.warm_start.batch_size", run.warm_start.batch_size),
        ("config.evaluation.batch_size", run.evaluation.batch_size),
    ):
        divides("mesh.data x config.mesh.fsdp", shards, path, whole)
    for path, whole in (
        ("config.policy.num_kv_heads", run.policy.num_kv_heads),
        ("config.policy.mlp_dim", run.policy.mlp_dim),
    ):
        divides("mesh.tensor", run.mesh.tensor, path, whole)
    divides("mesh.fsdp", run.mesh.fsdp, "config.policy.d_model", run.policy.d_model)
