"""Two processes with four devices each make the run that one process with eight makes; one that is lost ends the other.

The two are stopped halfway and resumed: what is compared with the one process is a run of two and its resumption.
The rows of a batch lie on four parts of the mesh and a row's vocabulary on two devices, so that every kind of split
crosses a device; parameters are split within a process and batches between the two.
"""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

from configs import arithmetic
from salt_jax.distributed.hosts_start import ADDRESS, COUNT, INDEX
from salt_jax.run import loop, workdir
from tests.conftest import REPOSITORY

STEPS, WARM = 4, 6
OVERRIDES = {
    "steps": STEPS, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "task.num_train": 16, "task.num_test": 8,
    "policy.num_layers": 1, "warm_start.steps": WARM, "warm_start.batch_size": 16, "warm_start.learning_rate": 2e-2,
    "evaluation.every": 2, "evaluation.problems": 8, "evaluation.batch_size": 8, "evaluation.keep_texts": True,
    "checkpoint.every": 2, "learner.length_buckets": 1, "logging.tensorboard": False,
    # Adam divides a gradient by its own size: with the usual eps, rounding of a gradient near 0 becomes a whole step
    "optimizer.eps": 1e-2,
}  # fmt: skip
# What depends on the order in which devices add numbers: 4 steps of float32 sums, relative 2^-24 a sum, through a
# few hundred sums a step and divisions by small differences (eigengap). 1 is of the size of the largest statistics.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# With that eps a gradient's rounding, 1e-7 of 1, moves a parameter by 2e-2 · 1e-7 / 1e-2 a step
CLOSE_PARAMETERS = {"rtol": 1e-5, "atol": 2e-6}
TIMES = ("seconds", "tokens_per_second", "grading_seconds")
EXACT = ("reward", "accuracy", "length", "truncated")  # as the completions themselves are
OF_SALT = ("salt/alpha", "salt/k", "salt/n_eff", "salt/participation_ratio", "salt/coefficient_distortion")


def start(folder: Path, environment: dict[str, str]) -> list[subprocess.Popen]:
    """The command, once in each of two processes with four devices."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    command = [
        sys.executable, "-m", "experiments.train", "--config=configs/arithmetic.py:small", f"--workdir={folder}",
        *(f"--config.{key}={value}" for key, value in OVERRIDES.items()),
    ]  # fmt: skip
    flags = f"{environment['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    shared = environment | {
        "XLA_FLAGS": flags, ADDRESS: f"localhost:{port}", COUNT: "2",
        "SALT_JAX_HEARTBEAT_SECONDS": "10", "SALT_JAX_START_SECONDS": "150",
    }  # fmt: skip
    return [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=shared | {INDEX: str(i)}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]


def finish(processes: Sequence[subprocess.Popen]) -> None:
    """Waits for processes that must end well."""
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory, subprocess_env: dict[str, str]) -> tuple[Path, int, str, int]:
    """A run of two processes whose second is killed after two steps: the first's exit status and errors, the steps."""
    folder = tmp_path_factory.mktemp("two") / "run"
    first, second = start(folder, subprocess_env)
    until = time.monotonic() + 200
    while len(workdir.read_records(folder / workdir.METRICS)) < 2 and time.monotonic() < until:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    said = first.communicate(timeout=60)[1]  # its heartbeats stop after 10 s
    second.communicate()
    assert not (folder / workdir.SUMMARY).exists()
    return folder, first.returncode, said, len(workdir.read_records(folder / workdir.METRICS))


@pytest.fixture(scope="module")
def runs(
    lost: tuple[Path, int, str, int], tmp_path_factory: pytest.TempPathFactory, subprocess_env: dict[str, str]
) -> tuple[Path, Path]:
    """The run of one process, undisturbed, and that of two, resumed."""
    one, two = tmp_path_factory.mktemp("one") / "run", lost[0]
    resumed = start(two, subprocess_env)
    config = arithmetic.get_config("small")
    config.update_from_flattened_dict(OVERRIDES)
    loop.train(config, one, Console(file=io.StringIO()))  # this process has eight devices
    finish(resumed)
    return one, two


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """A run's records without what a clock says."""
    rows = workdir.read_records(folder / name)
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def arrays(folder: Path, phase: str, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by path, read by this process alone."""
    found = {}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for item in ("params", "state"):
        with ocp.StandardCheckpointer() as checkpointer:
            where = folder / "checkpoints" / phase / str(step) / item
            shapes = checkpointer.metadata(where).item_metadata.tree
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
            tree = checkpointer.restore(where, abstract)
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found |= {item + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return found


def texts(folder: Path) -> dict[str, str]:
    """Every completion of every evaluation, with its reward."""
    return {path.name: path.read_text() for path in sorted((folder / workdir.TEXTS).iterdir())}


@pytest.mark.parametrize("name", [workdir.WARM_START, workdir.METRICS, workdir.EVALUATIONS])
def test_records_are_those_of_one_process(runs: tuple[Path, Path], name: str) -> None:
    one, two = (records(folder, name) for folder in runs)
    assert [row.keys() for row in one] == [row.keys() for row in two]
    assert len(one) == {workdir.WARM_START: WARM, workdir.METRICS: STEPS, workdir.EVALUATIONS: 3}[name]
    for ours, theirs in zip(one, two, strict=True):
        for key, value in ours.items():
            if key in EXACT or not isinstance(value, float) or name == workdir.EVALUATIONS:
                assert value == theirs[key], key
            else:
                np.testing.assert_allclose(theirs[key], value, **CLOSE, err_msg=key)


def test_there_is_something_to_compare(runs: tuple[Path, Path]) -> None:
    rows = records(runs[1], workdir.METRICS)
    assert all(row["grad_norm"] > 0 for row in rows)
    assert any(0 < row["reward"] < 1 for row in rows)
    for name in OF_SALT:
        assert any(row[name] > 0 for row in rows), name


def test_completions_are_those_of_one_process(runs: tuple[Path, Path]) -> None:
    one, two = (texts(folder) for folder in runs)
    assert len(one) == 3
    assert one == two


@pytest.mark.parametrize(("phase", "step"), [("warm_start", WARM), ("train", STEPS)])
def test_checkpoints_are_those_of_one_process(runs: tuple[Path, Path], phase: str, step: int) -> None:
    one, two = (arrays(folder, phase, step) for folder in runs)
    assert one.keys() == two.keys()
    assert len(one) > 20
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, **CLOSE_PARAMETERS, err_msg=name)


def test_files_are_written_once(runs: tuple[Path, Path]) -> None:
    steps = [row["step"] for row in workdir.read_records(runs[1] / workdir.METRICS)]
    assert steps == list(range(1, STEPS + 1))
    assert json.loads((runs[1] / workdir.SUMMARY).read_text())["steps"] == STEPS


def test_a_lost_process_ends_the_other_with_a_line(lost: tuple[Path, int, str, int]) -> None:
    _, status, said, steps = lost
    assert status == 1, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.endswith("start all again to resume")]
    assert len(lines) == 1, said
    assert "process 0 of 2" in lines[0]
    assert 2 <= steps <= STEPS


@pytest.mark.slow  # below, to the bit; the quick tests compare the resumed run with that of one process, to rounding
def test_the_resumed_run_has_the_bits_of_an_undisturbed_one(
    runs: tuple[Path, Path], tmp_path: Path, subprocess_env: dict[str, str]
) -> None:
    folder = tmp_path / "run"
    finish(start(folder, subprocess_env))
    for name in (workdir.METRICS, workdir.EVALUATIONS):
        assert records(folder, name) == records(runs[1], name)
    assert texts(folder) == texts(runs[1])
    undisturbed = arrays(folder, "train", STEPS)
    for name, value in arrays(runs[1], "train", STEPS).items():
        np.testing.assert_array_equal(value, undisturbed[name], err_msg=name)
