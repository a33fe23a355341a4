"""Configurations and command lines that lie: taken, or refused in one line; nothing compiled, nothing written."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from experiments import cli
from salt_jax.collect import COLLECTORS
from salt_jax.objective import AGGREGATIONS, ESTIMATORS, SURROGATES
from salt_jax.run.config import FEATURES, SCHEDULES
from salt_jax.run.setup import check
from salt_jax.salt import VARIANTS
from salt_jax.spec import ConfigError
from salt_jax.tasks import TASKS
from tests.house import REPOSITORY
from tests.training_setup import tiny_config

EXAMPLES = 200
DEFAULTS = tiny_config({"task.digits": 1, "task.num_train": 16, "task.num_test": 8, "sampling.max_prompt_length": 4})
NAMES = {
    "objective.estimator": ESTIMATORS, "objective.surrogate": SURROGATES, "objective.aggregation": AGGREGATIONS,
    "salt.variant": VARIANTS, "salt.feature": FEATURES, "salt.scope": ["group", "mini_batch", "1", "4"],
    "optimizer.schedule": SCHEDULES, "collection.method": COLLECTORS, "task.operators": ["-", "*+", "+-*"],
    "task.name": TASKS, "objective.kl_in": ["loss", "reward"], "evaluation.top_p": [0.5, 0.95],
}  # fmt: skip


@pytest.fixture
def compilations():
    """A list that grows by one with every program that XLA compiles."""
    seen: list[str] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_compilation_is_counted(compilations):
    x = jax.device_put(1.0)
    before = len(compilations)
    jax.jit(lambda x: jnp.cos(x) + 1)(x)
    assert len(compilations) == before + 1


def paths(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in values.items():
        found.append((*prefix, key))
        found += paths(value, (*prefix, key)) if isinstance(value, dict) else []
    return found


PATHS = sorted(paths(DEFAULTS))
WILD = st.sampled_from([
    None, True, False, -1, 0, 10**30, -(10**30), 10**5000, 2**31, 2**62, 2**63, 1e308, 1e-320, -0.0, float("inf"),
    float("-inf"), float("nan"), "", " ", "\n", "a\nb", "\0", "\ud800", "\x1b[2J", "x" * 5000, "../" * 2000, "(", "*",
    "٣", "None", "salt", ".", "/", "tests.house:read_sources", "os:system", ":", "a:b:c", b"bytes", b"\xff", [], [[]],
    [1, "a"], (), (1, 2), {}, {"a": {}}, {1: 2}, {"name": "arithmetic"}, {"a\n": [b"x"]}, object, {1, 2}, 1j, print,
])  # fmt: skip
WILD |= st.text(max_size=6) | st.integers() | st.floats() | st.lists(st.integers(), max_size=2)


def near(path: tuple[str, ...], value: Any) -> st.SearchStrategy[Any]:
    """Values near the edges of what the key takes."""
    if (name := ".".join(path)) in NAMES:
        return st.sampled_from(sorted(NAMES[name], key=str))
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.sampled_from([0, 1, 2, 3, 4, 8, max(value - 1, 0), value + 1, 2 * value])
    if isinstance(value, float):
        return st.sampled_from([0, 0.0, 0.1, 0.5, 0.99, 1, 1.0, 1.5, 2 * value])
    return st.sampled_from([value]) if isinstance(value, str | dict) else st.sampled_from([None, 1, 2, 0.5])


@st.composite
def configs(draw) -> dict[str, Any]:
    values = copy.deepcopy(DEFAULTS)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(PATHS))
        kind = draw(st.sampled_from(["near", "near", "near", "near", "wild", "wild", "missing", "extra"]))
        node: Any = values
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            continue
        if kind == "missing":
            node.pop(path[-1], None)
        elif kind == "near" and path[-1] in node:
            node[path[-1]] = draw(near(path, node[path[-1]]))
        else:
            node[draw(st.text(max_size=4) | st.integers()) if kind == "extra" else path[-1]] = draw(WILD)
    return values


def refused(values: dict[str, Any], folder: Path) -> bool:
    """Whether a configuration is refused; in one line that begins with a key, whatever it is."""
    try:
        check(values, folder)
    except ConfigError as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        assert message.isprintable(), message
        assert re.match(r"config(\.\w+)*[ .:[]", message), message
        return True
    return False


def test_every_configuration_is_taken_or_refused_in_one_line(compilations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes = []

    @settings(max_examples=EXAMPLES)
    @given(configs())
    def every_configuration(values):
        before = copy.deepcopy(values)
        outcomes.append(refused(values, tmp_path / "run"))
        assert repr(values) == repr(before)

    every_configuration()
    assert list(tmp_path.iterdir()) == []
    assert compilations == []
    assert len(outcomes) >= EXAMPLES
    assert outcomes.count(False) >= 20
    assert outcomes.count(True) >= 50


# --- command lines ---

CONFIG = "--config=configs/arithmetic.py:small"
FLAG = st.sampled_from([
    "config.steps", "config.salt.rho", "config.salt", "config.salt.rho.x", "config.task.digits", "config", "config.",
    "config..", ".config", "config.a\nb", "config.ſalt.rho", "workdir", "flagfile", "undefok", "help", "", "-", "=",
    "config.collection.distinct_prompts", "config.model.template.x", "config.steps ", "config.salt.enabled",
    "noconfig.salt.enabled", "config.task", "config.monitors.ratio_high_stop", "config.sampling.wave_mib",
])  # fmt: skip
VALUE = st.sampled_from([
    "1", "2", "0.5", "abc", "", " ", "None", "True", "1e999", "nan", "9" * 5000, "-1", "(1, 2", "[1]", "{'a': 1}", "'",
    "\n", "\x1b[2J", "\udcff", "x" * 5000, "/dev/null", "configs/base.py", "configs/none.py", "README.md", "configs",
    "__import__('os')", "1_000", "٣", "0x10", "tests/house.py", "configs/methods.py:none", "configs/arithmetic.py:a:b",
])  # fmt: skip
ARGUMENT = st.tuples(st.sampled_from(["--", "--", "--", "-", ""]), FLAG, st.sampled_from(["=", "=", "=", ""]), VALUE)
ARGUMENTS = ARGUMENT.map("".join) | VALUE | st.sampled_from([CONFIG, "--", "--config", "--workdir", "--config.steps"])


def study() -> None:
    check(cli.CONFIG.value, Path(str(cli.WORKDIR.value)))


def command(arguments: list[str], monkeypatch: Any) -> tuple[int, str]:
    """Exit status and stderr of a study that only checks its configuration, in this process."""
    for name in list(flags.FLAGS):
        if name.startswith("config."):  # what an earlier command line made flags of
            delattr(flags.FLAGS, name)
    for name in ("config", "workdir"):
        flags.FLAGS[name].unparse()
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = cli.run(study)
    return status, said.getvalue()


# ml_collections loads a configuration's file with it
@pytest.mark.filterwarnings("ignore:the load_module\\(\\) method is deprecated:DeprecationWarning")
def test_every_command_line_is_taken_or_refused_in_one_line(compilations, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    folder = tmp_path / "run"
    statuses = []

    @settings(max_examples=60)
    @given(st.lists(ARGUMENTS, max_size=3), st.sampled_from([3, 3, 3, 2, 1, 0]))
    def every_command_line(arguments, usual):
        first = [CONFIG, f"--workdir={folder}"]
        argv = [*(first if usual == 3 else first[:1] if usual == 2 else first[1:] if usual else []), *arguments]
        status, said = command(argv, monkeypatch)
        statuses.append(status)
        assert status in (0, cli.BAD_INPUT), (argv, said)
        assert len(said.splitlines()) == (status != 0), (argv, said)
        if status:
            assert said.startswith("error: "), (argv, said)
            assert said[:-1].isprintable(), (argv, said)

    every_command_line()
    assert statuses.count(0) >= 2
    assert statuses.count(cli.BAD_INPUT) >= 30
    assert list(tmp_path.iterdir()) == []
    assert compilations == []


# Command lines that once ended in a traceback; FILE is a configuration file with the text beside it.
FOUND = {
    "a second file that is none": ([CONFIG, "--config=x"], "", "--config=x is not a file"),
    "a file that is no Python": (["--config=FILE"], "def (", "SyntaxError"),
    "a file that raises": (["--config=FILE"], "raise RuntimeError('a\\nb')", "RuntimeError: a b"),
    "a file with another function": (["--config=FILE"], "def config(): pass", "get_config"),
    "a function that raises": (["--config=FILE"], "def get_config(): 1 / 0", "ZeroDivisionError"),
    "a long folder": ([CONFIG, "--workdir=" + "x" * 5000], "", "File name too long"),
    "a long name of a run": ([CONFIG, "--config.init_from=" + "x" * 5000], "", "File name too long"),
    "a number of any size": ([CONFIG, "--config.seed=" + "9" * 30], "", "integers of 64 bits"),
    "problems without end": ([CONFIG, "--config.task.digits=100000000"], "", "integers up to 60"),
    "half a character": ([CONFIG, "--config.task.operators=\udcff"], "", "texts without"),
    "a deep expression": ([CONFIG, "--config.salt.subset=" + "(" * 3000 + ")" * 3000], "", "no regular expression"),
}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.filterwarnings("ignore:the load_module\\(\\) method is deprecated:DeprecationWarning")
def test_what_was_found_stays_refused(name, compilations, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    arguments, text, words = FOUND[name]
    file = tmp_path / "mine.py"
    file.write_text(text + "\n")
    arguments = [f"--workdir={tmp_path / 'run'}", *(a.replace("FILE", str(file)) for a in arguments)]
    status, said = command(arguments, monkeypatch)
    assert status == cli.BAD_INPUT
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert words in said
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("path", sorted(path.stem for path in (REPOSITORY / "configs").glob("[!_]*.py")))
def test_every_configuration_file_passes_or_says_what_it_needs(path, compilations, tmp_path, monkeypatch):
    """Those of real models need a model and data, which are not here: one line each."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"configs.{path}")
    form = "grpo" if path == "methods" else "small"
    config = base.get_config() if path == "base" else module.get_config(form)
    config.model.path = config.model.path and "no-such-model"
    assert refused(config, tmp_path / "run") == bool(config.model.path)
    assert list(tmp_path.iterdir()) == []
    assert compilations == []
