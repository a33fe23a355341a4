"""A run killed at any moment and started again ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.house import REPOSITORY

TIMINGS = {"seconds", "tokens_per_second", "grading_seconds"}
STEPS = 12


@pytest.fixture(scope="module")
def environment(subprocess_env, tmp_path_factory):
    # compilation cached between the processes of this file: the same programs, so the same bits
    return subprocess_env | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}


def command(folder: Path) -> list[str]:
    small = ["--config=configs/arithmetic.py:small", "--config.warm_start.steps=12", f"--config.steps={STEPS}"]
    return [sys.executable, "-m", "experiments.train", *small, f"--workdir={folder}"]


def run(folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command(folder), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_until(folder: Path, environment: dict[str, str], ready) -> bool:
    """Starts the run and kills it as soon as ``ready()``; False if it ended before."""
    with subprocess.Popen(
        command(folder), cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and not ready():
            assert time.monotonic() < deadline, "the run hangs"
            time.sleep(0.01)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
    return not ended


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def final_state(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint by its path, read back from disk."""
    with ocp.CheckpointManager(folder / "checkpoints" / "train") as manager:
        items = ocp.args.Composite(params=ocp.args.StandardRestore(), state=ocp.args.StandardRestore())
        restored = manager.restore(STEPS, args=items)
    tree = {"params": restored["params"], "state": restored["state"]}
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def records(folder: Path, name: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("warm_start.jsonl", "metrics.jsonl", "evaluations.jsonl"):
        assert records(one, name) == records(other, name)
    first, second = final_state(one), final_state(other)
    assert first.keys() == second.keys()
    assert len(first) > 20
    for path, value in first.items():
        assert (value.shape, value.dtype) == (second[path].shape, second[path].dtype), path
        assert value.tobytes() == second[path].tobytes(), path


@pytest.fixture(scope="module")
def untouched(environment, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untouched") / "run"
    run(folder, environment)
    return folder


def test_the_uninterrupted_run_writes_everything(untouched):
    assert [row["step"] for row in records(untouched, "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert [row["step"] for row in records(untouched, "evaluations.jsonl")] == [0, 6, 12]
    for name in ("config.json", "summary.json", "reward.png", "geometry.png"):
        assert (untouched / name).stat().st_size > 0
    assert list((untouched / "tensorboard" / "train").iterdir())
    state = final_state(untouched)
    assert state["['state']['consumed_prompts']"] == STEPS * 8
    assert state["['state']['step']"] == STEPS


def test_killed_in_every_phase_and_resumed(untouched, environment, tmp_path):
    folder = tmp_path / "run"
    moments = (
        lambda: lines(folder / "warm_start.jsonl") >= 6,
        lambda: lines(folder / "metrics.jsonl") >= 2,  # before the first checkpoint of that phase but step 0's
        lambda: lines(folder / "metrics.jsonl") >= 7,
    )
    for moment in moments:
        assert run_until(folder, environment, moment), "the run ended before the kill"
    run(folder, environment)
    assert_same_run(untouched, folder)


def test_a_finished_run_is_left_as_it_is(untouched, environment, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(untouched, folder)
    before = (folder / "summary.json").read_bytes(), (folder / "metrics.jsonl").read_bytes()
    run(folder, environment)
    assert before == ((folder / "summary.json").read_bytes(), (folder / "metrics.jsonl").read_bytes())
    assert_same_run(untouched, folder)


@pytest.mark.slow
def test_killed_at_random_times(untouched, environment, tmp_path):
    rng = random.Random(0)
    kills = 0
    for trial in range(5):
        folder = tmp_path / f"run{trial}"
        for _ in range(4):
            end = time.monotonic() + rng.uniform(0.5, 14.0)
            kills += run_until(folder, environment, lambda end=end: time.monotonic() > end)
        run(folder, environment)
        assert_same_run(untouched, folder)
    assert kills >= 5
