"""What can be wrong with config.collection, found before anything compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from salt_jax.collect import COLLECTORS
from salt_jax.collect.collection import distinct_prompts
from salt_jax.collect.extras import CLUSTERS, SEGMENTS, cluster_function
from salt_jax.graders import Grader
from salt_jax.learner.settings import CollectionConfig, RunConfig
from salt_jax.objective import ESTIMATORS, ObjectiveConfig
from salt_jax.spec import ConfigError
from salt_jax.tasks import Source, Tokenizer

ALWAYS = ("method", "clusters", "segments")  # what every method reads
SEGMENTED = ("macro_sum", "macro_mean")  # surrogates that take ``extra["segments"]``
CHOICES = {
    "segments": SEGMENTS, "on_exhausted": ("error", "train"), "exit_rule": ("balance", "positive"),
    "pool_weight": ("one", "inverse_rate"),
}  # fmt: skip
AT_LEAST = {
    "max_batches": 1, "max_rounds": 1, "positives": 1, "min_slots": 1, "max_slots": 1, "pilots": 1, "max_injected": 0,
}  # fmt: skip
SHARES = ("count_decay", "decay_selected", "decay_others")
POSITIVE = ("prior_positive", "prior_negative", "rate_eps", "temperature_high", "temperature_low")
FINITE = ("entropy_target", "inject_above", "hpt_gate", "gvm_alpha", "gvm_beta")


def check_collection(run: RunConfig) -> None:
    """ConfigError for an unknown name, a value out of range, an option without effect, or counts that do not fit."""
    settings = run.collection
    _require("method", settings.method, settings.method in COLLECTORS, ", ".join(COLLECTORS))
    _check_ranges(settings)
    _check_effect(settings)
    _check_estimator(run)
    _check_counts(run)


def check_problems(run: RunConfig, problems: Callable[[], Source], tokenizer: Tokenizer) -> None:
    """ConfigError for problems that the method cannot use: no solution, one too long, or too few problems.

    Also for a function that cannot be imported: here, where a run begins, and not where a configuration is read, which
    may be that of a folder from elsewhere, and must not choose what is imported.

    ``problems`` is called where the method has something to ask of them: reading all of a large split takes seconds.
    """
    _check_clusters(run.collection.clusters, cluster_function)
    method, limit = run.collection.method, run.sampling.max_new_tokens
    slots, data = run.rollouts.prompts_per_step, COLLECTORS[method].data
    if data == "prompts":
        return
    source = problems()
    if data == "source" and slots > len(source):
        few = f"there are {len(source)} problems, of which config.collection.method = {method!r} takes each once a step"
        raise ConfigError(f"config.sampling.prompts_per_step = {slots} is too many: {few}")
    if data != "solutions":
        return
    for example in (source[i] for i in range(len(source))):
        if not example.solution:
            needs = f"config.collection.method = {method!r} needs a solution of every problem"
            raise ConfigError(f"{needs}; example {example.id!r} has none")
        length = len(tokenizer.encode(example.solution)) + 1
        if length > limit:
            long = f"the solution of example {example.id!r} has {length} tokens with its end token"
            named = f"config.collection.method = {method!r}, config.sampling.max_new_tokens = {limit}"
            raise ConfigError(f"{named}: {long}")


def _require(name: str, value: Any, holds: bool, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"config.collection.{name} = {value!r} is not allowed; allowed: {allowed}")


def _check_ranges(settings: CollectionConfig) -> None:
    for name, choices in CHOICES.items():
        value = getattr(settings, name)
        _require(name, value, value in choices, ", ".join(repr(choice) for choice in choices))
    for name, fewest in AT_LEAST.items():
        _require(name, getattr(settings, name), getattr(settings, name) >= fewest, f"integers >= {fewest}")
    for name in ("sampled_rollouts", "round_rollouts", "distinct_prompts"):
        value = getattr(settings, name)
        _require(name, value, value is None or value >= 1, "None, integers >= 1")
    for name in SHARES:
        _require(name, getattr(settings, name), 0 <= getattr(settings, name) <= 1, "numbers in [0, 1]")
    infinite = float("inf")
    for name in POSITIVE:
        _require(name, getattr(settings, name), 0 < getattr(settings, name) < infinite, "finite numbers > 0")
    for name in FINITE:
        least = {"gvm_alpha": 0.0, "gvm_beta": 1.0}.get(name, -infinite)
        allowed = "finite numbers" + (f" >= {least:g}" if least > -infinite else "")
        value = getattr(settings, name)
        _require(name, value, least <= value < infinite and value > -infinite, allowed)
    _check_clusters(settings.clusters, Grader)


def _check_clusters(clusters: str, read: Callable[[str], Any]) -> None:
    if clusters and clusters not in CLUSTERS:
        try:
            read(clusters)
        except ValueError as error:
            why = str(error).replace("grader", "function", 1)
            allowed = f"'', {', '.join(map(repr, CLUSTERS))}, a function: {why}"
            raise ConfigError(f"config.collection.clusters = {clusters!r} is not allowed; allowed: {allowed}") from None


def _check_effect(settings: CollectionConfig) -> None:
    """An option that the method does not read keeps its default."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in (*ALWAYS, *COLLECTORS[settings.method].options) and value != field.default:
            readers = [repr(name) for name, method in COLLECTORS.items() if field.name in method.options]
            there = f"it belongs to config.collection.method = {' or '.join(readers)}"
            raise ConfigError(f"config.collection.{field.name} = {value!r} has no effect here; {there}")


def _check_estimator(run: RunConfig) -> None:
    name, estimator = run.collection.method, run.objective.estimator
    allowed = COLLECTORS[name].estimators
    if allowed and estimator not in allowed:
        needs = f"config.objective.estimator = {' or '.join(map(repr, allowed))}, not {estimator!r}"
        raise ConfigError(f"config.collection.method = {name!r} needs {needs}")
    if run.objective.demonstration_coef != ObjectiveConfig.demonstration_coef and name != "hpt":
        given = f"config.objective.demonstration_coef = {run.objective.demonstration_coef!r} has no effect here"
        raise ConfigError(f"{given}; it belongs to config.collection.method = 'hpt'")
    if estimator == "given_baseline" and not allowed:
        givers = [repr(key) for key, method in COLLECTORS.items() if estimator in method.estimators]
        needs = f"config.objective.estimator = {estimator!r} needs config.collection.method = {' or '.join(givers)}"
        raise ConfigError(f"{needs}, not {name!r}")
    readers = {
        "clusters": [f"estimator = {key!r}" for key, one in ESTIMATORS.items() if "clusters" in one.extra],
        "segments": [f"estimator = {key!r}" for key, one in ESTIMATORS.items() if "segments" in one.extra]
        + [f"surrogate = {key!r}" for key in SEGMENTED],
    }
    chosen = (f"estimator = {estimator!r}", f"surrogate = {run.objective.surrogate!r}")
    for key, those in readers.items():
        value = getattr(run.collection, key)
        if value and not set(those) & set(chosen):
            there = f"it belongs to config.objective with {' or '.join(those)}"
            raise ConfigError(f"config.collection.{key} = {value!r} has no effect here; {there}")
    wanted = {"clusters": "'text', 'answer' or a function", "segments": "'newline'"}
    for key in ESTIMATORS[estimator].extra:
        if key in wanted and not getattr(run.collection, key):
            needs = f"config.objective.estimator = {estimator!r} needs config.collection.{key}"
            raise ConfigError(f"{needs} = {wanted[key]}")


def _check_counts(run: RunConfig) -> None:
    settings, slots, group = run.collection, run.rollouts.prompts_per_step, run.rollouts.rollouts_per_prompt
    shards = run.mesh.data * run.mesh.fsdp
    if settings.method == "reinforce_ada" and (settings.round_rollouts or group) < group:
        least = f"config.sampling.rollouts_per_prompt = {group}, which a pool of one round must hold"
        raise ConfigError(f"config.collection.round_rollouts = {settings.round_rollouts} is less than {least}")
    if settings.method == "pods" and (settings.sampled_rollouts or 4 * group) <= group:
        least = f"config.sampling.rollouts_per_prompt = {group}, of which none would be dropped"
        raise ConfigError(f"config.collection.sampled_rollouts = {settings.sampled_rollouts} is not above {least}")
    if not COLLECTORS[settings.method].shared:
        return
    prompts = distinct_prompts(run)
    named = f"config.collection.distinct_prompts = {prompts}"
    if not prompts * settings.min_slots <= slots <= prompts * settings.max_slots:
        bounds = f"of {settings.min_slots} to {settings.max_slots} slots each (min_slots, max_slots)"
        raise ConfigError(f"{named} {bounds} cannot share config.sampling.prompts_per_step = {slots} slots")
    if settings.method == "gvm" and prompts % shards:
        raise ConfigError(f"config.mesh.data x config.mesh.fsdp = {shards} must divide {named}")
