"""Many processes: what they say to each other, tested with two on this machine; how they find each other, by tables."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from salt_jax.collect import generation
from salt_jax.distributed import hosts, hosts_start
from salt_jax.distributed.hosts_start import ADDRESS, COUNT, INDEX
from salt_jax.distributed.sharding import batch_sharding, make_mesh
from salt_jax.graders import GraderError
from salt_jax.run.checkpoint import CheckpointError
from salt_jax.run.dumps import DumpError
from salt_jax.spec import ConfigError
from tests.conftest import REPOSITORY
from tests.distributed.two_processes import rollouts

HAND = {ADDRESS: "10.0.0.1:1234", COUNT: "4", INDEX: "3"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
         "SLURM_LOCALID": "0"}  # fmt: skip


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def run_both(out: Path, environment: dict[str, str], *methods: str) -> list[dict[str, Any]]:
    """What each of two processes with four devices found, with rollouts of these methods."""
    shared = environment | {
        "XLA_FLAGS": environment["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4",
        ADDRESS: f"localhost:{free_port()}", COUNT: "2", "SALT_JAX_START_SECONDS": "100",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.two_processes", str(out), *methods], cwd=REPOSITORY,
            env=shared | {INDEX: str(i)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return [json.loads(Path(f"{out}.{i}").read_text()) for i in range(2)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, subprocess_env: dict[str, str]) -> list[dict[str, Any]]:
    return run_both(tmp_path_factory.mktemp("two") / "found", subprocess_env, "plain")


def test_two_processes_find_each_other(both: list[dict[str, Any]]) -> None:
    assert [found["who"] for found in both] == [[0, 2, True, 8], [1, 2, False, 8]]
    for i, found in enumerate(both):
        assert found["said"].startswith(f"process {i} of 2, coordinator localhost:")


def test_arrays_go_out_and_come_back_whole(both: list[dict[str, Any]]) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    for found in both:
        assert found["fetched"] == (2 * rows).tolist()
        assert found["passed_on"]
        assert found["key"] == jax.random.key_data(jax.random.key(3)).tolist()
        assert found["number"] == 7
        assert found["weights"] == np.arange(32.0).reshape(8, 4).tolist()
        assert found["axes"] == ["tensor", "fsdp"]
        assert found["dtype"] == "float32"


def test_each_row_is_one_processs(both: list[dict[str, Any]]) -> None:
    first, second = both
    assert sorted(first["rows"] + second["rows"]) == list(range(8))
    rows = 2 * np.arange(24, dtype=np.float32).reshape(8, 3)
    for found in both:
        assert found["local"] == rows[found["rows"]].tolist()


def test_objects_and_flags_go_to_all(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert [part["text"] for part in found["gathered"]] == ["", "é\ud800" * 3000]
        assert all(math.isnan(part["nan"]) for part in found["gathered"])
        assert found["largest"] == [15, 0]
        assert found["first"] == {"from": 0}
        assert found["first_long"]


def test_what_fails_on_one_process_is_refused_by_all(both: list[dict[str, Any]]) -> None:
    assert [found["agreed"] for found in both] == [10, 11]
    for found in both:
        assert found["one_fails"] == "process 1 of 2: no such file"
        assert found["broken"] == "process 1 of 2: no such package"


def test_grades_of_all_rows_are_the_same_everywhere(both: list[dict[str, Any]]) -> None:
    for found in both:
        rewards, rewarded, answers, missing = found["grades"]
        # row 7 is not its reference; rows 2 and 5 are missing, not 0
        np.testing.assert_array_equal(rewards, [1, 1, math.nan, 1, 1, math.nan, 1, 0])
        assert rewarded == [True, True, False, True, True, False, True, True]
        assert answers == ["a", "b", None, "d", "e", None, "g", "h"]
        assert (missing, found["first_error"], found["texts"]) == (2, "lost", ["a", "b", "", "d", "e", "", "g", "h"])
        second = both[1]["rows"]
        for row, components in enumerate(found["components"]):
            expected = [1.0, 0.5] if row in second and rewarded[row] else [math.nan, math.nan]
            np.testing.assert_array_equal(components, expected)


def test_a_mesh_uses_all_devices_and_keeps_a_row_on_one_process(both: list[dict[str, Any]]) -> None:
    for found in both:
        right, few, across = found["mesh"]
        assert right == ""
        assert few == "config.mesh asks for 4 x 1 x 1 = 4 devices; 2 processes have 8"
        assert across.startswith("config.mesh.tensor splits a rollout over processes 0, 1; allowed:")


def test_rollouts_are_those_of_one_process(both: list[dict[str, Any]]) -> None:
    assert_rollouts_are_those_of_one_process("plain", both)


@pytest.mark.slow
def test_rollouts_of_two_samplings_are_those_of_one_process(tmp_path: Path, subprocess_env: dict[str, str]) -> None:
    assert_rollouts_are_those_of_one_process("aepo", run_both(tmp_path / "found", subprocess_env, "aepo"))


def assert_rollouts_are_those_of_one_process(method: str, both: list[dict[str, Any]]) -> None:
    """Completions and rewards to the last bit; log-probs up to the order of sums over the parts of the vocabulary."""
    alone = rollouts(method)  # this process has eight devices, too
    first, second = (found["rollouts"][method] for found in both)
    assert first["graded"] + second["graded"] == alone["graded"] > 0
    assert first["graded"] == second["graded"]
    for found in (first, second):
        for name in ("tokens", "completion_mask", "rewards", "rewarded", "valid"):
            np.testing.assert_array_equal(found[name], alone[name], err_msg=name)
        np.testing.assert_allclose(found["log_probs"], alone["log_probs"], rtol=1e-5, atol=1e-5)
        assert found["metrics"].keys() == alone["metrics"].keys()
        for name, value in alone["metrics"].items():
            np.testing.assert_allclose(found["metrics"][name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_with_a_line(subprocess_env: dict[str, str], lost: int) -> None:
    """Process 0 is the coordinator, whose loss JAX's runtime answers with abort()."""
    talk = (
        "from salt_jax.distributed import hosts\nhosts.initialize_from_environment()\n"
        "try:\n    while True: print(hosts.gather('here'), flush=True)\n"
        "except Exception as error: hosts.end_process(1, hosts.explain(error) or repr(error))\n"
    )
    shared = subprocess_env | {ADDRESS: f"localhost:{free_port()}", COUNT: "2", "SALT_JAX_HEARTBEAT_SECONDS": "10"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", talk], env=shared | {INDEX: str(i)}, cwd=REPOSITORY, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    out = started[1 - lost].stdout
    assert out is not None
    while "['here', 'here']" not in (line := out.readline()):
        assert line, started[1 - lost].communicate()
    started[lost].kill()
    said = started[1 - lost].communicate(timeout=60)[1]
    started[lost].communicate()
    assert started[1 - lost].returncode == 1
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.endswith("start all again to resume")]
    assert len(lines) == 1, said
    assert lines[0].startswith(f"process {1 - lost} of 2")


def test_a_lost_process_is_told_from_other_errors(both: list[dict[str, Any]]) -> None:
    for i, found in enumerate(both):
        said = "(UNKNOWN: Gloo AllGather failed: Connection closed by peer); start all again to resume"
        assert found["explained"] == f"process {i} of 2: another process of this run is gone {said}"
        assert found["not_explained"] is None


def raised_from(error: Exception, cause: Exception | None) -> Exception:
    error.__cause__ = cause
    return error


GLOO = "UNKNOWN: Gloo all-reduce failed: [external/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
BARRIER = "DEADLINE_EXCEEDED: Barrier timed out. Id: x::0. # of tasks that reached the barrier: 1/2."


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(GLOO), GLOO),
        (jax.errors.JaxRuntimeError(GLOO), GLOO),
        (jax.errors.JaxRuntimeError(BARRIER), BARRIER),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed"), "INTERNAL: NCCL operation failed"),
        (raised_from(CheckpointError("step 3: could not be written"), jax.errors.JaxRuntimeError(BARRIER)), BARRIER),
        (raised_from(DumpError("runs"), raised_from(OSError("x"), ValueError(GLOO))), GLOO),
        (CheckpointError("/runs/nccl-test/checkpoints/train/3 cannot be restored: barrier"), None),
        (raised_from(CheckpointError("/runs/nccl/3"), OSError(28, "No space left", "/runs/nccl/3")), None),
        (ConfigError("SALT_JAX_HEARTBEAT_SECONDS = '1' is not allowed"), None),
        (ValueError("no task 'barrier'"), None),
        (ValueError("RESOURCE_EXHAUSTED: Error writing file:///runs/gloo/3/params"), None),
        (jax.errors.JaxRuntimeError("INTERNAL: cannot read /home/nccl/cache"), None),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes"), None),
        (KeyError(GLOO), None),
    ],
)
def test_only_what_the_runtime_says_tells_of_a_lost_process(error: Exception, text: str | None) -> None:
    assert hosts.gone(error) == text


def test_sigterm_is_nobodys_before_ours(both: list[dict[str, Any]]) -> None:
    """JAX's preemption notifier would swallow it while a run starts."""
    assert [found["sigterm"] for found in both] == [False, False]


def test_one_process_is_left_as_it_was() -> None:
    mesh = make_mesh(8)
    rows = np.arange(8)
    placed = hosts.put({"rows": rows}, batch_sharding(mesh))
    assert hosts.fetch_local(placed["rows"]).tolist() == hosts.fetch(placed)["rows"].tolist() == rows.tolist()
    assert (hosts.lead(), hosts.count(), hosts.index(), hosts.largest(-3)) == (True, 1, 0, -3)
    hosts.check_mesh(make_mesh(4))  # some of the devices are enough
    assert hosts.explain(RuntimeError("gloo")) is None
    with pytest.raises(ConfigError, match="^no file$"):
        hosts.agree(lambda: refuse("no file"))


def refuse(message: str) -> None:
    raise ConfigError(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({COUNT: None}, f"{ADDRESS} and {INDEX} without {COUNT}"),
        ({INDEX: ""}, f"{ADDRESS} and {COUNT} without {INDEX}"),
        ({ADDRESS: None}, f"{COUNT} and {INDEX} without {ADDRESS}"),
        ({COUNT: None, INDEX: None}, f"{ADDRESS} without {COUNT} and {INDEX}"),
        ({COUNT: "two"}, f"{COUNT} = 'two' is not allowed; allowed: integers >= 1"),
        ({COUNT: "0"}, f"{COUNT} = '0' is not allowed; allowed: integers >= 1"),
        ({COUNT: "²"}, f"{COUNT} = '²' is not allowed; allowed: integers >= 1"),
        ({INDEX: "-1"}, f"{INDEX} = '-1' is not allowed; allowed: integers >= 0"),
        ({INDEX: "4"}, f"{INDEX} = 4 is not allowed with {COUNT} = 4; allowed: 0 to 3"),
        ({ADDRESS: "10.0.0.1"}, f"{ADDRESS} = '10.0.0.1' is not allowed; allowed: host:port of process 0"),
        ({ADDRESS: "host:0"}, f"{ADDRESS} = 'host:0' is not allowed; allowed: host:port of process 0"),
        ({ADDRESS: "host:99999"}, f"{ADDRESS} = 'host:99999' is not allowed; allowed: host:port of process 0"),
        ({"SALT_JAX_HEARTBEAT_SECONDS": "1"}, "SALT_JAX_HEARTBEAT_SECONDS = '1' is not allowed; allowed: integers"),
        ({"SALT_JAX_START_SECONDS": "x"}, "SALT_JAX_START_SECONDS = 'x' is not allowed; allowed: integers"),
    ],
)
def test_wrong_variables_are_one_line(change: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in (HAND | change).items() if value is not None}
    with pytest.raises(ConfigError) as refused:
        hosts.initialize_from_environment(environment)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "environment",
    [{}, {COUNT: "1"}, HAND | {COUNT: "1"}, SLURM | {COUNT: "1"}, SLURM | {"SLURM_NTASKS": "1"},
     {"OMPI_COMM_WORLD_SIZE": "1"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}],
)  # fmt: skip
def test_one_process_starts_nothing(environment: dict[str, str]) -> None:
    assert hosts.initialize_from_environment(environment) is None
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        (SLURM, "slurm"),
        ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}, None),  # not under srun
        (SLURM | {"SLURM_NTASKS": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, None),  # a step of one task is what was asked
        ({"OMPI_COMM_WORLD_SIZE": "8"}, "ompi"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ML_PLATFORM": "JAX"}, None),
        ({"TPU_ML_PLATFORM": "JAX"}, "tpu"),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
    ],
)
def test_clusters_are_told_by_their_variables(environment: dict[str, str], found: str | None) -> None:
    assert hosts_start.cluster(environment) == found


def test_a_cluster_may_be_told_where_the_coordinator_is() -> None:
    assert hosts_start.by_hand(SLURM | {ADDRESS: "n1:99"}) is None


def test_a_coordinator_that_nobody_is_at_is_refused_in_bounded_time() -> None:
    port = free_port()
    with pytest.raises(ConfigError, match=rf"^{ADDRESS} = 'localhost:{port}' was not reached in 1 s: .*refused"):
        hosts_start._wait_for(f"localhost:{port}", 1)


def test_a_port_that_is_taken_is_refused() -> None:
    """Two coordinators at one port would each be told of a part of the processes."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"^{ADDRESS} = '{address}' is taken on this host: .* {INDEX} = 0"):
            hosts.initialize_from_environment({ADDRESS: address, COUNT: "2", INDEX: "0"})
    hosts_start._check_free(f"localhost:{free_port()}")


@pytest.mark.parametrize(
    ("environment", "who", "others"),
    [
        (HAND, "process 3 of 4", "10.0.0.1:1234 (JAX_NUM_PROCESSES = 4)"),
        (SLURM | {"SLURM_NTASKS": "4"}, "process 0 of 4", "n[1-2] (SLURM_NTASKS = 4)"),
        (SLURM | {ADDRESS: "n1:99"}, "process 0 of 2", "n[1-2] (SLURM_NTASKS = 2)"),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}, "process 5 of 8",
         "Open MPI (OMPI_COMM_WORLD_SIZE = 8)"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "this process", "TPU machines"),
    ],
)  # fmt: skip
def test_whom_a_process_waits_for(environment: dict[str, str], who: str, others: str) -> None:
    assert hosts_start.waiting(environment) == (who, others)


SAME = "two processes have the same number, and each needs its own (JAX_PROCESS_ID)"
LATE = "not all processes of the run came within 9 s, or one ended"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("absl::Status: ALREADY_EXISTS: Aborted connect attempt as there is a request from a newer incarnation.", SAME),
        ("CANCELLED: Cancelled because there's a more recent barrier call for [Init] from the same task.", SAME),
        ("absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: RegisterTask\n@ 0x7f991a440634", LATE),
        ("", LATE),
    ],
)
def test_why_a_start_failed(words: str, why: str) -> None:
    assert hosts_start._why(words, 9) == why


def test_words_of_a_start_are_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with hosts_start._words_kept(9):
        os.write(2, b"a warning\n")
        assert "start" in hosts_start._STATE
    assert capfd.readouterr().err == "a warning\n"  # it went well
    with pytest.raises(ConfigError, match="^said$"):
        start_that_fails()
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"
    assert "start" not in hosts_start._STATE


def start_that_fails() -> None:
    with hosts_start._words_kept(9):
        os.write(2, b"what the error says\n")
        refuse("said")


@pytest.mark.slow
def test_a_missing_process_ends_the_first_one_with_a_line(subprocess_env: dict[str, str]) -> None:
    started = "from salt_jax.distributed import hosts; hosts.initialize_from_environment()"
    environment = subprocess_env | {
        ADDRESS: f"localhost:{free_port()}", COUNT: "2", INDEX: "0", "SALT_JAX_START_SECONDS": "5",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", started], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    first, last = done.stderr.strip().splitlines()  # and no stack trace of C++
    own = "JAX_NUM_PROCESSES=1 makes a process a run of its own"
    address = environment[ADDRESS]
    assert first == f"process 0 of 2 waits up to 5 s for the others at {address} (JAX_NUM_PROCESSES = 2); {own}"
    why = f"not all processes of the run came within 5 s, or one ended ({own})"
    assert last == f"process 0 of 2 is stopped: {why}; start all again to resume"


def said(rows: list[int], **change: Any) -> dict[str, Any]:
    """What one process says of its rows."""
    n = len(rows)
    whole = {"rows": rows, "texts": ["t"] * n, "rewards": [1.0] * n, "answers": [None] * n, "components": None,
             "missing": 0, "first": ""}  # fmt: skip
    return whole | change


def test_grades_are_joined_where_a_process_has_no_row() -> None:
    grades, texts = generation.joined([{"rows": [], "texts": []}, said([1, 0], components=[[3.0], [4.0]])], 2)
    assert grades.rewards.tolist() == [1.0, 1.0]
    assert grades.components is not None
    assert grades.components.tolist() == [[4.0], [3.0]]
    assert texts == ["t", "t"]


def test_graders_that_disagree_on_components_are_refused() -> None:
    with pytest.raises(GraderError, match="^the verifier returned 1 and 2 components$"):
        generation.joined([said([0], components=[[1.0]]), said([1], components=[[1.0, 2.0]])], 2)


def test_the_first_message_is_the_first_processs_that_has_one() -> None:
    parts = [said([0]), said([1], rewards=[math.nan], missing=1, first="b"),
             said([2], rewards=[math.nan], missing=1, first="c")]  # fmt: skip
    grades, _ = generation.joined(parts, 3)
    assert (grades.errors.count, grades.errors.first) == (2, "b")
