"""The fault campaign in its short form, and that it would notice what it looks for."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import fault_runs
from experiments.fault_kinds import KINDS, SmallDisk, damage
from salt_jax.models import integrity
from tests.experiments.command_lines import CommandLines
from tests.house import REPOSITORY

STEPS = 8
SMALL = (
    "--config=configs/arithmetic.py:small", "--config.policy.num_layers=1", "--config.seed=2",
    "--config.warm_start.steps=6", f"--config.steps={STEPS}", "--config.checkpoint.every=3",
    "--config.evaluation.every=4", "--config.evaluation.problems=40", "--config.evaluation.batch_size=20",
)  # fmt: skip
QUICK = ["kill_saving", "terminate", "corrupt"]  # seconds each; the others in the slow tests
PROMISED = ["kill", "kill_evaluating", *QUICK]


def campaign(folder: Path, environment: dict[str, str], *flags: str) -> tuple[dict, str]:
    command = [sys.executable, "-m", "experiments.fault_campaign", *SMALL, f"--workdir={folder}", *flags]
    # compilation cached between the processes: the same programs, and a run of a few seconds
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"
    }
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment | cache, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "campaign.json").read_text()), done.stdout


def mountable(folder: Path) -> bool:
    """Whether this process may make a small disk."""
    try:
        SmallDisk(folder, 1).close()
    except OSError:
        return False
    return True


def broken(folder: Path, environment: dict[str, str], kinds: list[str], trials: int) -> Path:
    """The undisturbed run of a campaign that broke others like it, and kept every promise."""
    report, said = campaign(folder, environment, f"--trials={trials}", f"--kinds={','.join(kinds)}")
    rows = [row for row in report["trials"] if row["kind"] in kinds]
    assert len(rows) == trials
    assert {row["kind"] for row in rows} == set(kinds)
    compared = [row for row in report["trials"] if row["kind"] == "finished"]
    assert compared  # a run that was broken went to its end
    for row in report["trials"]:
        assert not row["tracebacks"], row
        assert not row.get("failed"), row
        assert not row.get("differs"), row
    assert max(row["lost"] for row in rows if row["kind"].startswith("kill")) <= 3
    assert all(row["lost"] == 0 for row in rows if row["kind"] == "terminate")
    assert "0 trials broke a promise" in said
    return folder / "reference"


@pytest.fixture(scope="module")
def reference(subprocess_env, tmp_path_factory) -> Path:
    """An undisturbed run."""
    return broken(tmp_path_factory.mktemp("campaign") / "out", subprocess_env, QUICK, len(QUICK))


def test_faults(reference):
    state = fault_runs.final_arrays(reference)
    assert len(state) > 20
    assert state["['state']['step']"][2] == np.int32(STEPS).tobytes()
    assert fault_runs.steps(reference / "evaluations.jsonl") == [0, 4, 8]


def test_a_difference_is_seen(reference, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(reference, other)
    assert fault_runs.differences(reference, other) == []
    rows = (other / "metrics.jsonl").read_text().splitlines()
    row = json.loads(rows[2])
    rows[2] = json.dumps(row | {"loss": np.nextafter(row["loss"], 9.0)})
    (other / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert fault_runs.differences(reference, other) == ["metrics.jsonl"]


def test_another_array_is_seen(reference, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(reference, other)
    phase = other / "checkpoints" / "train"
    with ocp.CheckpointManager(phase) as manager:
        items = ocp.args.Composite(params=ocp.args.StandardRestore(), state=ocp.args.StandardRestore())
        restored = manager.restore(STEPS, args=items)
    restored["params"]["embedding"] = restored["params"]["embedding"].at[0, 0].add(1e-6)
    shutil.rmtree(phase / str(STEPS))
    with ocp.CheckpointManager(phase) as manager:
        both = {name: ocp.args.StandardSave(restored[name]) for name in ("params", "state")}
        manager.save(STEPS, args=ocp.args.Composite(**both), force=True)
    integrity.seal(phase / str(STEPS), STEPS, {})
    assert fault_runs.differences(reference, other) == ["['params']['embedding']"]


def test_lost_steps_are_counted(tmp_path):
    def write(name: str, steps: int) -> None:
        (tmp_path / name).write_text("".join(json.dumps({"step": i + 1}) + "\n" for i in range(steps)))

    def seal(phase: str, step: int) -> None:
        folder = tmp_path / "checkpoints" / phase / str(step)
        folder.mkdir(parents=True)
        (folder / "array").write_bytes(b"1")
        integrity.seal(folder, step, {})

    assert fault_runs.lost(tmp_path) == 0
    write("warm_start.jsonl", 5)
    assert fault_runs.lost(tmp_path) == 5
    seal("warm_start", 3)
    assert fault_runs.lost(tmp_path) == 2
    seal("train", 0)
    assert fault_runs.lost(tmp_path) == 0
    write("metrics.jsonl", 4)
    (tmp_path / "checkpoints" / "train" / "4").mkdir()  # not sealed
    assert fault_runs.lost(tmp_path) == 4
    seal("train", 3)
    assert fault_runs.lost(tmp_path) == 1
    (tmp_path / "checkpoints" / "train" / "3" / "array").write_bytes(b"2")
    assert fault_runs.lost(tmp_path) == 4


@pytest.mark.parametrize("seed", range(12))
def test_damage_changes_a_file(seed, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    how = damage(path, random.Random(seed))
    assert (how == "deleted") == (not path.exists())
    assert not path.exists() or path.read_bytes() != b"0123456789"


@pytest.fixture(scope="module")
def commands(subprocess_env, reference):
    lines = CommandLines(subprocess_env | {"JAX_COMPILATION_CACHE_DIR": str(reference.parents[1] / "compiled")})
    yield lines
    lines.close()


def test_a_finished_run_is_left_as_it_is(reference, commands):
    names = ("summary.json", "metrics.jsonl", "evaluations.jsonl", "config.json")
    before = [(reference / name).read_bytes() for name in names]
    arrays = fault_runs.final_arrays(reference)
    done = commands("experiments.train", *SMALL, f"--workdir={reference}")
    assert done.returncode == 0, done.stderr
    assert [(reference / name).read_bytes() for name in names] == before
    assert fault_runs.final_arrays(reference) == arrays
    for name in ("reward.png", "geometry.png"):
        assert (reference / name).stat().st_size > 0
    assert list((reference / "tensorboard" / "train").iterdir())


def test_wrong_flags_are_one_line(commands, tmp_path):
    for flags, words in ((["--kinds=flood"], "--kinds=flood is unknown"), (["--trials=0"], "trials")):
        done = commands("experiments.fault_campaign", *SMALL, f"--workdir={tmp_path}", *flags)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_hundred_kills(subprocess_env, tmp_path):
    report, _ = campaign(tmp_path / "out", subprocess_env, "--trials=100", "--kinds=kill")
    assert sum(row["kind"] == "kill" for row in report["trials"]) == 100


@pytest.mark.slow
def test_twenty_faults_of_every_kind_with_a_full_disk_in_one_line(subprocess_env, tmp_path):
    if not mountable(tmp_path / "probe"):
        pytest.skip("no tmpfs can be mounted here")
    broken(tmp_path / "out", subprocess_env, [*PROMISED, "full_disk"], 20)
    report = json.loads((tmp_path / "out" / "campaign.json").read_text())
    trials = [row for row in report["trials"] if row["kind"] == "full_disk"]
    assert {row["status"] for row in trials} <= {0, 1, 2}
    assert any(row["status"] for row in trials)
    for row in trials:
        assert not row["status"] or "No space left on device" in row["said"][0]


def test_every_kind_is_known():
    assert {*PROMISED, "kill_grader"} == set(KINDS)
