"""Wrong input: one line that names the key and what is allowed, exit status 2, nothing compiled, nothing written.

Most command lines run in copies of one process (command_lines.py); one of each module is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags

from configs import arithmetic, base
from experiments import cli, overrides
from experiments.arguments import local_path
from salt_jax.run import workdir
from salt_jax.run.config import parse
from salt_jax.run.loop import train
from salt_jax.spec import ConfigError
from tests.experiments.command_lines import CommandLines
from tests.house import REPOSITORY

SMALL = "--config=configs/arithmetic.py:small"


LOGGING = {"JAX_LOG_COMPILES": "1"}  # JAX names every compilation on stderr: none can be begun in silence


def launch(environment: dict[str, str], *arguments: str, module: str = "experiments.train"):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY, env=environment | LOGGING, capture_output=True, text=True, timeout=120,
    )


@pytest.fixture(scope="module")
def copy_of(subprocess_env) -> Iterator[CommandLines]:
    lines = CommandLines(subprocess_env | LOGGING)
    yield lines
    lines.close()


def assert_refused(done, *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING:jax")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("error: "), done.stderr
    assert "Compiling" not in done.stderr
    assert "compilation" not in done.stderr
    for word in words:
        assert word in said[0]


REFUSED = [
    pytest.param(["--config.salt.roh=1"], ["config.salt.roh", "did you mean rho", "k_min"], id="unknown-key"),
    pytest.param(["--config.speed=1"], ["config.speed", "allowed", "steps"], id="unknown-top-key"),
    pytest.param(
        ["--config.objective.estimator=ppo"], ["config.objective.estimator", "grpo, dr_grpo, rloo"], id="estimator"
    ),
    pytest.param(["--config.salt.variant=slat"], ["config.salt.variant", "shared_only"], id="variant"),
    pytest.param(["--config.salt.feature=head"], ["config.salt.feature", "lm_head, lm_head_sketch"], id="feature"),
    pytest.param(["--config.salt.rank_vocab=0"], ["config.salt.rank_vocab = 0", "numbers >= 1"], id="rank"),
    pytest.param(
        ["--config.policy.attention=splash"],
        ["config.policy.attention = 'splash' needs a tpu", "segments"],
        id="attention",
    ),
    pytest.param(
        ["--config.learner.minibatches=3"], ["config.learner.minibatches = 3", "prompts_per_step = 8"], id="division"
    ),
    pytest.param(
        ["--config.sampling.max_prompt_length=3"],
        ["config.sampling.max_prompt_length = 3", "4 tokens"],
        id="prompt-too-long",
    ),
    pytest.param(
        ["--config.sampling.temperature=0"], ["config.sampling.temperature", "> 0"], id="temperature-zero"
    ),
    pytest.param(
        ["--config.sampling.temperature=-1"], ["config.sampling.temperature", "> 0"], id="temperature-negative"
    ),
    pytest.param(["--config.salt.rho=abc"], ["config.salt.rho", "abc"], id="type"),
    pytest.param(["--config.task.digits=0"], ["config.task.digits", ">= 1"], id="task"),
    pytest.param(["--config.mesh.data=2"], ["config.mesh", "2 x 1 x 1", "there are 1"], id="devices"),
    pytest.param(["--config.init_from=nowhere"], ["config.init_from", "nowhere"], id="init-from"),
    pytest.param(
        ["--config.salt.feature=per_rollout", "--config.salt.subset=attention_head"],
        ["config.salt.subset = 'attention_head'", "layers/q"],
        id="subset",
    ),
    pytest.param(["nonsense"], ["nonsense"], id="stray-argument"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_bad_input(overrides, words, copy_of, tmp_path):
    folder = tmp_path / "run"
    assert_refused(copy_of("experiments.train", SMALL, f"--workdir={folder}", *overrides), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own(subprocess_env, tmp_path):
    done = launch(subprocess_env, SMALL, f"--workdir={tmp_path / 'run'}", "--config.salt.roh=1")
    assert_refused(done, "config.salt.roh", "did you mean rho", "k_min")
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_holds_another_configuration(copy_of, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    other = arithmetic.get_config("small").to_dict()
    other["salt"]["rho"] = 0.5
    (folder / "config.json").write_text(json.dumps(other))
    done = copy_of("experiments.train", SMALL, f"--workdir={folder}")
    assert_refused(done, "config.salt.rho is 0.5 there and 1.0 here", str(folder))
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_workdir_with_somebody_elses_files(copy_of, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    assert_refused(copy_of("experiments.train", SMALL, f"--workdir={tmp_path}"), "thesis.tex", "another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--config=configs/none.py", "--workdir=x"], "configs/none.py is not a file"),
        (["--config=configs/arithmetic.py:huge", "--workdir=x"], "allowed: full, small"),
        ([SMALL], "--workdir is missing"),
    ],
)
def test_flags(arguments, word, copy_of):
    assert_refused(copy_of("experiments.train", *arguments), word)


def test_compare_checks_all_arms_first(subprocess_env, tmp_path):
    folder = tmp_path / "runs"
    (folder / "salt").mkdir(parents=True)
    (folder / "salt" / "notes.txt").write_text("mine")
    done = launch(subprocess_env, SMALL, f"--workdir={folder}", module="experiments.compare")
    assert_refused(done, "notes.txt")
    assert sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*")) == ["salt", "salt/notes.txt"]


# --- overrides, in this process ---


def changed(*arguments: str) -> dict:
    """The small configuration, and a task of files, as a command line changes it."""
    config = arithmetic.get_config("small")
    base.set_task(config, "jsonl", train="a.jsonl", test=("b.jsonl",), reward_arguments={"boxed_only": False})
    rest, found = overrides.split(["train", *arguments])
    assert rest == ["train"]
    overrides.apply(config, found)
    assert config.is_locked
    return workdir.flat(config.to_dict())


TAKEN = [
    # None for whatever may be None, and for what parse then refuses
    ("sampling.wave_mib=None", None), ("salt.k_max=None", None), ("monitors.truncated_high_warn=None", None),
    ("steps=None", None), ("init_from=None", None), ("model.template=None", None), ("task.train=None", None),
    ("sampling.wave_mib=64", 64), ("monitors.ratio_high_stop=2", 2.0), ("objective.dual_clip=3", 3.0),
    # texts stay as they are
    ("policy.remat=none", "none"), ("model.system=null", "null"), ("salt.scope=4", "4"), ("init_from=", ""),
    ("model.system='a'", "'a'"), ("model.system=a=b", "a=b"), ("task.train=2024", "2024"),
    # true and false
    ("salt.enabled=true", True), ("salt.enabled=True", True), ("salt.enabled=1", True), ("salt.enabled=t", True),
    ("salt.enabled=false", False), ("salt.enabled=FALSE", False), ("salt.enabled=0", False), ("salt.enabled", True),
    # numbers; what is none is kept for parse to refuse
    ("steps=12", 12), ("steps=1_000", 1000), ("steps=-1", -1), ("optimizer.learning_rate=1e-3", 1e-3),
    ("steps=1.5", "1.5"), ("steps=", ""), ("steps=ten", "ten"), ("salt.rho=0,5", "0,5"), ("salt.enabled=yes", "yes"),
    # open dictionaries
    ("model.template.enable_thinking=False", False), ("model.template.enable_thinking=false", False),
    ("model.template.enable_thinking", True), ("model.template.date_string=26 Jul 2024", "26 Jul 2024"),
    ("model.template.n=3", 3), ("model.template.text='3'", "3"), ("model.template.a.b=[1, 2]", [1, 2]),
    ("model.template.x=None", None), ("model.template.x=", ""), ("task.reward_arguments.boxed_only=True", True),
    ("task.reward_arguments.last_number=True", True), ("task.suffix=5", "5"), ("task.seed=3", 3),
    ("task.parts.sums.weight=2.5", 2.5), ("task.settings.deep.deeper=(1,)", (1,)),
    # lists of files
    ("task.test=('c.jsonl', 'd.jsonl')", ("c.jsonl", "d.jsonl")), ("task.test=data/*.jsonl", "data/*.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "value"), TAKEN)
def test_what_an_override_is_read_as(argument, value):
    found = changed(f"--config.{argument}")[f"config.{argument.partition('=')[0]}"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("word", ["no", "Off", "yes"])
def test_a_word_that_is_nearly_a_boolean(word):
    with pytest.raises(ConfigError, match=f"= '{word}' is not allowed; allowed: True, False, or the text in quotes"):
        changed(f"--config.model.template.enable_thinking={word}")
    assert changed("--config.model.template.a='no'")["config.model.template.a"] == "no"


def test_the_forms_of_an_override():
    assert changed("--config.steps", "3", "-config.seed", "-1")["config.steps"] == 3
    assert changed("--config.steps", "3", "-config.seed", "-1")["config.seed"] == -1
    assert changed("--noconfig.salt.enabled")["config.salt.enabled"] is False
    assert changed("--config.salt.enabled", "--config.steps=1")["config.steps"] == 1
    assert changed("--config.steps=ten", "--config.steps=3")["config.steps"] == 3  # the last counts
    before = {key: value for key, value in changed().items() if key != "config.steps"}
    assert before == {key: value for key, value in changed("--config.steps=99").items() if key != "config.steps"}
    assert overrides.split(["train", "--", "--config.steps=3"]) == (["train", "--", "--config.steps=3"], {})


def test_a_dictionary_whole_and_then_a_key_of_it():
    whole = "--config.model.template={'a': 1, 'b': {'c': 2}}"
    found = changed(whole, "--config.model.template.b.c=3")
    assert (found["config.model.template.a"], found["config.model.template.b.c"]) == (1, 3)
    found = changed("--config.task={'name': 'gsm8k', 'correct_from': 1.0}", "--config.task.path=x")
    assert {key: value for key, value in found.items() if key.startswith("config.task")} == {
        "config.task.name": "gsm8k", "config.task.correct_from": 1.0, "config.task.path": "x",
    }  # fmt: skip


NOT_TAKEN = [
    (["--config.model.template.a=1", "--config.model.template={}"], "would undo --config.model.template.a before it"),
    (["--config.steps"], "config.steps needs a value; write --config.steps=VALUE"),
    (["--config.init_from"], "config.init_from needs a value"),
    (["--noconfig.steps"], "config.steps needs a value"),
    (["--noconfig.salt.enabled=1"], "takes no value; write --config.salt.enabled=1"),
    (["--config.sampling.wave_mib=none"], "for no value write --config.sampling.wave_mib=None"),
    (["--config.model.template.x=null"], "for no value write --config.model.template.x=None"),
    (["--config.steps.x=1"], "config.steps.x is not a key: config.steps is a value"),
    (["--config.task.name.x=1"], "config.task.name.x is not a key: config.task.name is a value, 'jsonl'"),
    (["--config.model.x.y=1"], "config.model.x.y is not a key; allowed: chat, path, system, template"),
    (["--config.templat.x=1"], "config.templat.x is not a key; allowed: checkpoint, "),
    (["--config.=1"], "config. is not a key; allowed: checkpoint, "),
    (["--config.task.=1"], "config.task. is not a key; allowed: correct_from, name, "),
    (["--config.model.template.=1"], "config.model.template. is not a key"),
    (["--config.sampling={'temperature': 0.5}"], "config.sampling is a section; set its keys"),
    (["--config.model.template={enable_thinking:"], "config.model.template.KEY=VALUE, or a dictionary in quotes"),
    (["--config.model.template=[1]"], "config.model.template.KEY=VALUE, or a dictionary in quotes"),
    (["--config.task={'a.b': 1}"], "config.task = \"{'a.b': 1}\" is not allowed: "),
    (["--config.evaluation.correct_from=1"], "config.evaluation.correct_from is now config.task.correct_from"),
]


@pytest.mark.parametrize(("arguments", "message"), NOT_TAKEN)
def test_overrides_that_are_refused(arguments, message):
    with pytest.raises(ConfigError) as error:
        changed(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not str(error.value).rstrip().endswith("allowed:")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sampling.wave_mib=x", "config.sampling.wave_mib = 'x' is not allowed; allowed: int or None"),
        ("steps=None", "config.steps = None is not allowed; allowed: int"),
        ("salt.enabled=yes", "config.salt.enabled = 'yes' is not allowed; allowed: bool"),
        ("init_from=None", "config.init_from = None is not allowed; allowed: str"),
        ("salt.rho=0,5", "config.salt.rho = '0,5' is not allowed; allowed: float"),
        ("task.didgits=3", "config.task.didgits is not a key; did you mean digits? allowed: correct_from, "),
    ],
)
def test_what_parse_says_of_them(argument, message):
    config = arithmetic.get_config("small")
    overrides.apply(config, overrides.split([f"--config.{argument}"])[1])
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        parse(config)


# --- paths ---


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.py").write_text(
        "from configs import arithmetic\n"
        "def get_config(init='~/runs/b'):\n    c = arithmetic.get_config('small')\n"
        "    c.init_from = init\n    return c\n"
    )
    yield tmp_path
    for name in ("config", "workdir"):
        flags.FLAGS[name].unparse()


def test_the_home_folder_in_flags_and_configurations(home):
    config = cli.parse_flags(["train", "--config=~/c.py", "--workdir=~/runs/a", "--config.model.path=~/m"])
    assert cli.CONFIG.value is config
    assert (cli.WORKDIR.value, config.model.path, config.init_from) == (
        f"{home}/runs/a", f"{home}/m", f"{home}/runs/b",
    )  # fmt: skip
    config.init_from, config.model.path = "~/x", ""  # of a notebook, which has no command line
    assert parse(config).init_from == f"{home}/x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=$HOME/c.py", "--workdir=x"], "--config: $HOME/c.py begins with a variable"),
        (["--config=~/none.py", "--workdir=x"], "none.py is not a file"),
        (["--config=~/c.py", "--workdir=$HOME/x"], "--workdir=$HOME/x: $HOME/x begins with a variable"),
        (["--config=~/c.py", "--workdir=~nobody-of-this-name/x"], "home folder of a user who is not known"),
        (["--config=~/c.py", "--workdir=gs://bucket/x"], "gs://bucket/x is an address"),
        (["--config=~/c.py:$X/run", "--workdir=x"], "config.init_from: $X/run begins with a variable"),
        (["--config=~/c.py", "--workdir=x", "--config.model.path=hf://a"], "config.model.path: hf://a is an address"),
        (["--config=~/c.py", "--workdir=x", "--nonsense=1"], "nonsense"),
        (["--config=~/c.py", "--workdir=x", "more"], "'more' is not a flag"),
    ],
)
def test_paths_that_are_refused(arguments, message, home):
    with pytest.raises(ConfigError) as error:
        cli.parse_flags(["train", *arguments])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return {}", "get_config must return a ConfigDict, got dict"),
        ("x = 1", "has no get_config"),
        ("def get_config():\n    return {}['steps']", "KeyError: 'steps'"),
        ("def get_config(:", "SyntaxError"),
    ],
)
def test_files_that_are_no_configuration(text, message, tmp_path):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ConfigError, match=f"c.py: .*{message}"):
        cli.read_config(str(tmp_path / "c.py"))


def test_arguments_that_name_a_path(home):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--out", type=local_path)
    assert parser.parse_args(["--out=~/x"]).out == home / "x"
    with pytest.raises(argparse.ArgumentError, match=r"argument --out: \$HOME/x begins with a variable"):
        parser.parse_args(["--out=$HOME/x"])


def test_a_workdir_named_in_a_notebook(home, tmp_path):
    with pytest.raises(ConfigError, match=r"^folder: \$HOME/x begins with a variable"):
        train(arithmetic.get_config("small"), "$HOME/x")
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigError, match=f"^--workdir={tmp_path}/x is a file"):
        train(arithmetic.get_config("small"), "~/x")
