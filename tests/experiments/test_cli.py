"""Wrong input: one line that names the key and what is allowed, exit status 2, nothing compiled, nothing written.

Most command lines run in copies of one process (command_lines.py); one of each module is a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import arithmetic
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
