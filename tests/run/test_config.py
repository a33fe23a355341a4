"""Wrong configurations are one line that names the key and what is allowed; nothing else ever leaves `parse`."""

import copy
import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_dict

from configs import arithmetic, base
from salt_jax.objective import AGGREGATIONS
from salt_jax.objective.advantages import ESTIMATORS
from salt_jax.policy.attention import ATTENTION
from salt_jax.policy.layers import REMAT, TransformerConfig
from salt_jax.run.config import FEATURES, SCHEDULES, RunConfig, parse
from salt_jax.salt import VARIANTS
from salt_jax.spec import ConfigError
from salt_jax.tasks import TASKS
from tests.conftest import REPOSITORY
from tests.training_setup import tiny_config

DEFAULTS = base.get_config().to_dict()


def refused(overrides):
    """The message, one line."""
    with pytest.raises(ConfigError) as caught:
        parse(tiny_config(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_configurations_of_the_repository_are_right(size):
    run = parse(arithmetic.get_config(size))
    assert run.rows == run.rollouts.prompts_per_step * run.rollouts.rollouts_per_prompt
    assert run.task_name == "arithmetic"
    assert not {"name", "correct_from"} & set(run.task_arguments)


def test_every_key_arrives_where_it_belongs():
    """A value unlike any default, in every leaf whose type leaves room for one, is found in the RunConfig."""
    values = tiny_config({"salt.k_max": 9, "objective.kl_coef": 0.125, "salt.rho": 0.375, "optimizer.b2": 0.96875})
    run = parse(values)
    assert run.salt.k_max == 9
    assert run.salt.rho == 0.375
    assert run.objective.kl_coef == 0.125
    assert run.optimizer.b2 == 0.96875
    assert run.rollouts.prompts_per_step == 4
    assert run.sampling.max_new_tokens == 4
    assert isinstance(run.policy, TransformerConfig)
    for section in ("learner", "optimizer", "warm_start", "evaluation", "checkpoint", "mesh", "logging"):
        assert dataclasses.asdict(getattr(run, section)) == values[section]


def test_sizes_that_follow_from_others():
    run = parse(tiny_config({"learner.minibatches": 2}))
    assert (run.rows, run.minibatch_rows, run.unit_rows) == (16, 8, 8)
    assert parse(tiny_config({"salt.scope": "group"})).unit_rows == 4
    assert parse(tiny_config({"salt.scope": "2"})).unit_rows == 2


def test_the_denominator_of_dr_grpo_is_the_length_limit():
    assert parse(tiny_config({"objective.aggregation": "dr_grpo"})).objective.max_length == 4
    assert parse(tiny_config()).objective.max_length is None


def test_a_whole_number_is_a_float_and_a_bool_is_not():
    assert isinstance(parse(tiny_config({"optimizer.learning_rate": 1})).optimizer.learning_rate, float)
    assert "bool" in refused({"salt.enabled": 1})
    assert "config.steps" in refused({"steps": True})
    assert "float" in refused({"salt.rho": False})


@pytest.mark.parametrize(
    ("key", "near"),
    [("stepz", "steps"), ("salt.roh", "rho"), ("learner.minibatch", "minibatches"), ("task.digit", "digits"),
     ("sampling.temprature", "temperature"), ("policy.d_mode", "d_model"), ("zzz", None)],
)  # fmt: skip
def test_unknown_keys(key, near):
    message = refused({key: 1})
    assert f"config.{key} is not a key" in message
    assert (f"did you mean {near}?" in message) if near else ("did you mean" not in message)
    section = DEFAULTS
    for part in key.split(".")[:-1]:
        section = section[part]
    assert all(name in message for name in section if name != "name")  # what is allowed


@pytest.mark.parametrize("key", ["evaluation.correct_from", "collection.positive_above"])
def test_a_key_that_moved_names_where_to(key):
    assert refused({key: 0.5}) == f"config.{key} is now config.task.correct_from"


@pytest.mark.parametrize("key", ["policy.vocab_size", "objective.max_length"])
def test_what_follows_from_elsewhere_cannot_be_set(key):
    assert f"config.{key} is not a key" in refused({key: 3})


@pytest.mark.parametrize(
    "key", ["seed", "salt", "salt.rho", "mesh.data", "task.name", "task.correct_from", "policy.qkv_bias"]
)
def test_missing_keys(key):
    values = tiny_config()
    section, _, name = key.rpartition(".")
    del (values[section] if section else values)[name]
    with pytest.raises(ConfigError, match=f"config.{key} is missing") as caught:
        parse(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["salt", "task", "policy"])
def test_a_value_in_place_of_a_section(section):
    assert f"config.{section}" in refused({section: 3})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("steps", "10", "int"), ("steps", 1.5, "int"), ("salt.enabled", "yes", "bool"), ("salt.rho", "1", "float"),
        ("salt.k_max", "3", "int or None"), ("salt.scope", 4, "str"), ("policy.d_model", None, "int"),
        ("init_from", None, "str"), ("optimizer.learning_rate", [1], "float"),
    ],
)  # fmt: skip
def test_wrong_types(key, value, allowed):
    message = refused({key: value})
    assert f"config.{key}" in message
    assert allowed in message
    assert repr(value) in message


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("objective.estimator", "gpro", ESTIMATORS), ("objective.aggregation", "mean", AGGREGATIONS),
        ("objective.kl_estimator", "k4", ("k2", "k3")), ("salt.variant", "slat", VARIANTS),
        ("salt.feature", "head", FEATURES), ("salt.scope", "batch", ("mini_batch", "group")),
        ("optimizer.schedule", "step", SCHEDULES), ("task.name", "chess", TASKS), ("task.name", ["arithmetic"], TASKS),
        ("policy.compute_dtype", "float16", ("float32", "bfloat16")), ("policy.remat", "all", REMAT),
        ("policy.attention", "flash", ATTENTION),
    ],
)  # fmt: skip
def test_unknown_names(key, value, allowed):
    message = refused({key: value})
    assert f"config.{key}" in message
    assert repr(value) in message
    assert all(name in message for name in allowed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1), ("steps", -1), ("sampling.prompts_per_step", 0), ("sampling.max_prompt_length", 0),
        ("sampling.max_new_tokens", 0), ("sampling.temperature", 0.0), ("sampling.temperature", -1.0),
        ("sampling.temperature", float("nan")), ("sampling.temperature", float("inf")), ("sampling.top_k", 5),
        ("sampling.top_k", -5), ("sampling.top_p", 0.9), ("sampling.top_p", 0.0), ("objective.ddof", 2),
        ("sampling.rollouts_per_prompt", 1), ("sampling.rollouts_per_prompt", 0),
        ("objective.eps", -1.0), ("objective.clip_low", -0.1), ("objective.kl_coef", float("nan")),
        ("salt.rho", 0.0), ("salt.k_min", 0), ("salt.k_max", 0), ("salt.alpha_min", 1.5), ("salt.alpha_max", -0.5),
        ("salt.fixed_alpha", 2.0), ("salt.scope", "0"), ("salt.scope", "-4"), ("salt.scope", "4.0"),
        ("salt.scope", "9" * 5000), ("salt.rho", 10**400),
        ("salt.subset", "("), ("salt.subset_microbatch", 0), ("salt.measure_every", -1),
        ("learner.minibatches", 0), ("learner.epochs", 0), ("learner.microbatches", 0), ("learner.vocab_chunk", 0),
        ("learner.length_buckets", 0), ("learner.prompt_buckets", -1),
        ("optimizer.learning_rate", 0.0), ("optimizer.learning_rate", float("inf")), ("optimizer.b1", 1.0),
        ("optimizer.b2", -0.1), ("optimizer.eps", 0.0), ("optimizer.clip_norm", -1.0), ("optimizer.warmup_steps", -1),
        ("optimizer.weight_decay", float("nan")), ("warm_start.batch_size", 0), ("evaluation.problems", 0),
        ("task.correct_from", float("inf")), ("task.correct_from", float("nan")),
        ("checkpoint.every", 0), ("checkpoint.keep", 0), ("mesh.data", 0), ("logging.print_every", 0),
        ("policy.head_dim", 3), ("policy.num_kv_heads", 3), ("policy.num_layers", 0), ("policy.rope_theta", 0.0),
    ],
)  # fmt: skip
def test_values_out_of_range(key, value):
    message = refused({key: value})
    assert f"config.{key}" in message
    assert str(value) in message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"learner.minibatches": 3}, ("config.learner.minibatches = 3", "prompts_per_step = 4")),
        ({"learner.microbatches": 3}, ("config.learner.microbatches = 3", "= 16")),
        ({"learner.minibatches": 2, "learner.microbatches": 16}, ("config.learner.microbatches = 16", "= 8")),
        ({"salt.scope": "3"}, ("config.salt.scope = 3", "= 16")),
        ({"salt.scope": "32"}, ("config.salt.scope = 32", "= 16")),
        ({"salt.feature": "per_rollout", "salt.subset_microbatch": 5}, ("config.salt.subset_microbatch = 5", "= 16")),
        ({"mesh.data": 3}, ("config.mesh.data", "= 3", "config.sampling.prompts_per_step = 4")),
        ({"mesh.data": 2, "learner.microbatches": 16}, ("config.mesh.data", "microbatch = 1")),
        ({"mesh.fsdp": 2, "warm_start.batch_size": 3}, ("config.mesh.fsdp = 2", "config.warm_start.batch_size = 3")),
        ({"mesh.fsdp": 2, "evaluation.batch_size": 3}, ("config.mesh.fsdp = 2", "config.evaluation.batch_size = 3")),
        ({"mesh.tensor": 4}, ("config.mesh.tensor = 4", "config.policy.num_kv_heads = 2")),
        ({"mesh.tensor": 2, "policy.mlp_dim": 9}, ("config.mesh.tensor = 2", "config.policy.mlp_dim = 9")),
    ],
)  # fmt: skip
def test_arithmetic_that_does_not_divide(overrides, parts):
    message = refused(overrides)
    assert "must divide" in message
    assert all(part in message for part in parts)


def test_a_config_dict_is_left_as_it_was():
    config = config_dict.ConfigDict(tiny_config()).lock()
    before = copy.deepcopy(config)
    parse(config)
    assert config == before


def paths(values, prefix=()):
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from([0, 1, 2, 3, 4, 8, 10**400, 0.5, "group", "4", "9" * 5000, "salt", "k2", "(", {}, [], [1]])
)  # fmt: skip


@given(
    changes=st.lists(st.tuples(st.sampled_from(sorted(paths(DEFAULTS))), VALUES), max_size=4),
    extra=st.none() | st.tuples(st.sampled_from(["", *DEFAULTS]), st.text(max_size=6) | st.integers(), VALUES),
    removed=st.none() | st.sampled_from(sorted(paths(DEFAULTS))),
)
def test_parse_returns_a_run_or_refuses_in_one_line(changes, extra, removed):
    values = tiny_config()

    def section_of(path):
        node = values
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    for path, value in changes:
        section = section_of(path[:-1])
        if isinstance(section, dict):
            section[path[-1]] = copy.deepcopy(value)
    if extra is not None:
        section = section_of([extra[0]] if extra[0] else [])
        if isinstance(section, dict):
            section[extra[1]] = extra[2]
    if removed is not None and isinstance(section_of(removed[:-1]), dict):
        section_of(removed[:-1]).pop(removed[-1], None)
    message = None
    try:
        run = parse(values)
    except ConfigError as error:
        message = str(error)
    if message is None:
        assert isinstance(run, RunConfig)
    else:
        assert len(message.splitlines()) == 1
        assert message.startswith("config")


def test_a_key_that_is_more_than_a_line_is_shown_as_one():
    assert r"config.a\nb is not a key" in refused({"a\nb": 1})


def test_parse_touches_no_device(subprocess_env):
    """A platform that does not exist: any use of a backend would fail."""
    code = (
        "from configs import arithmetic\n"
        "from salt_jax.run.config import parse\n"
        "print(parse(arithmetic.get_config()).rows)\n"
        "import jax\n"
        "try:\n"
        "    jax.devices()\n"
        "except RuntimeError:\n"
        "    print('no backend')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=subprocess_env | {"JAX_PLATFORMS": "nowhere"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.stdout.split("\n")[:2] == ["512", "no backend"], result.stderr
