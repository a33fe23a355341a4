"""The pool: whatever a grader does, its own item is missing, every other is graded, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.graders import ErrorReport, Grader, GraderError, GraderPool, exact_match, grade_all
from salt_jax.graders import pool as pools
from salt_jax.graders.pool import _Worker

ACT = Grader("tests.graders.misbehaving:act")
EXACT = Grader("salt_jax.graders.verdict:exact_match")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped by init does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    """Waits for the kernel to end a process that was killed."""
    for _ in range(400):
        if not alive(pid):
            return True
        time.sleep(0.025)
    return False


def worker_pids(pool: GraderPool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


@pytest.fixture(scope="module")
def pool():
    with GraderPool(ACT, workers=2, deadline=0.5) as pool:
        yield pool


MISSING = {
    "hang": "TimeoutError: no verdict in 0.5 s",
    "hang without the lock": "TimeoutError: no verdict in 0.5 s",
    "deaf": "TimeoutError: no verdict in 0.5 s",
    "kill": "ChildProcessError: the grader's process was ended by SIGKILL",
    "exit": "ChildProcessError: the grader's process ended with exit status 0",
    "segfault": "ChildProcessError: the grader's process was ended by SIGSEGV",
    "close": "ChildProcessError",
    "garbage": "ChildProcessError",
    "flood": "",  # a deadline or a reply without an end, whichever comes first
    "child that stays": "ChildProcessError: the grader's process ended with exit status 0",
    "memory": "MemoryError:",
    "raise": "RuntimeError: two lines",
    "sys.exit": "SystemExit: 3",
    "nan": "ValueError: the verifier returned nan, not a finite float32",
    "no text": "TypeError: the answer is a int, not a text",
}


@pytest.mark.parametrize("act", MISSING)
def test_a_misbehaving_grader_costs_its_own_item(pool, act):
    if act in ("memory", "child that stays") and sys.platform != "linux":
        pytest.skip("Linux limits address space and reports the end of a process whose pipe is held open")
    grades = pool.grade(["right", act, "right", "wrong"], ["r"] * 4)
    np.testing.assert_array_equal(grades.rewards, np.array([1, np.nan, 1, 0], np.float32))
    np.testing.assert_array_equal(grades.rewarded, [True, False, True, True])
    assert grades.errors.count == 1
    assert grades.errors.first.startswith(MISSING[act])


def test_a_deadline_leaves_out_what_the_machine_keeps_from_a_worker(monkeypatch):
    """By what is seen of it, it never gets a processor; the wall ends it in the end."""
    with GraderPool(ACT, workers=1, deadline=0.2) as pool:
        assert pool.grade(["slow"], ["r"]).errors.first == "TimeoutError: no verdict in 0.2 s"
        monkeypatch.setattr(pools, "seen_with_children", lambda pid: ("R", 0.0))
        grades = pool.grade(["slow", "hang", "right"], ["r"] * 3)
    np.testing.assert_array_equal(grades.rewards, np.array([1, np.nan, 1], np.float32))
    assert grades.errors.first == "TimeoutError: no verdict in 0.2 s"


def test_what_a_grader_prints_is_no_verdict(pool):
    before = pool.restarts
    grades = pool.grade(["print", "right"], ["r", "r"])
    assert grades.rewards.tolist() == [0.0, 1.0]
    assert pool.restarts == before


def test_the_same_as_in_this_process(pool):
    completions, references = ["right", "wrong", "answer", "nan"], ["a", "b", "c", "d"]
    grades, direct = pool.grade(completions, references), grade_all(ACT, completions, references)
    np.testing.assert_array_equal(grades.rewards, direct.rewards)
    assert grades.answers == direct.answers == (None, None, "c", None)
    assert grades.errors == direct.errors


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=6), max_size=12))
def test_any_text_arrives_as_it_is(texts):
    grades = ECHO.grade(["answer"] * len(texts), texts)
    assert grades.answers == tuple(texts)


@pytest.fixture(scope="module", autouse=True)
def _echo():
    global ECHO
    with GraderPool(ACT, workers=1) as ECHO:
        yield


def test_long_texts_and_their_order(pool):
    lengths = [1_000_000, 3, 0, 70_000, 1_000_000, 65_536]
    grades = pool.grade(["length"] * 6, ["\u20ac" * length for length in lengths])
    assert grades.rewards.tolist() == lengths
    numbers = [str(i) for i in range(300)]
    assert pool.grade(["answer"] * 300, numbers).answers == tuple(numbers)
    assert ECHO.grade(["answer"], ["x" * 1_000_000]).answers == ("x" * 1_000_000,)


def test_no_items_and_lengths_that_differ(pool):
    grades = pool.grade([], [])
    assert (grades.rewards.shape, grades.errors) == ((0,), ErrorReport(0, ""))
    with pytest.raises(ValueError, match="1 completions do not match 2 references"):
        pool.grade(["a"], ["a", "b"])


def test_a_worker_imports_no_jax_and_no_numpy(pool):
    modules = set(pool.grade(["modules"], [""]).answers[0].split())
    assert "salt_jax" in modules
    assert not modules & {"jax", "numpy", "grain", "flax", "optax", "pytest"}


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        (Grader("nowhere:f"), "grader 'nowhere:f' cannot be imported: No module named 'nowhere'"),
        (Grader("tests.graders.misbehaving:none"), "cannot be imported: module .* has no attribute 'none'"),
        (Grader("tests.graders.misbehaving:NUMBER"), "grader 'tests.graders.misbehaving:NUMBER' is not a function"),
        (Grader("tests.graders.misbehaving:nothing", {"size": 1}), "does not take its arguments: .*'size'"),
        (Grader("breaks_on_import:f"), "before it was ready: RuntimeError: no such table"),
    ],
)
def test_a_grader_that_cannot_start_is_one_line_and_not_a_thousand_missing_rewards(
    grader, message, tmp_path, monkeypatch
):
    (tmp_path / "breaks_on_import.py").write_text("raise RuntimeError('no such table')")
    monkeypatch.syspath_prepend(tmp_path)
    with GraderPool(grader) as pool, pytest.raises(GraderError, match=message) as caught:
        pool.grade(["a"] * 1000, ["a"] * 1000)
    assert "\n" not in str(caught.value)


def test_a_grader_that_cannot_grade_at_all_says_so(pool):
    with pytest.raises(GraderError, match="size = 3 is not allowed; allowed: 1, 2"):
        pool.grade(["right", "cannot"] * 10, ["r"] * 20)
    assert pool.grade(["right"], ["r"]).rewards.tolist() == [1.0], "the pool goes on after it"


@pytest.mark.parametrize(
    "settings", [{"workers": 0}, {"deadline": 0.0}, {"deadline": float("inf")}, {"memory_mib": 1}]
)
def test_settings_out_of_range(settings):
    ((name, _),) = settings.items()
    with pytest.raises(ValueError, match=rf"{name} = .* is not allowed; allowed: "):
        GraderPool(EXACT, **settings)


def test_a_closed_pool_is_closed():
    pool = GraderPool(EXACT, workers=1)
    pool.grade(["a"], ["a"])
    (pid,) = worker_pids(pool)
    pool.close()
    pool.close()
    assert not alive(pid)
    with pytest.raises(ValueError, match="this GraderPool is closed"):
        pool.grade(["a"], ["a"])


def test_nothing_is_left(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = descriptors()
    pool = GraderPool(ACT, workers=2, deadline=0.4)
    acts = ["file", "hang", "kill", "pid", "right", "close", "child that stays"]
    with pool:
        grades = pool.grade(acts, [str(tmp_path / "environment")] * len(acts))
        pids = worker_pids(pool)
        assert Path(grades.answers[3].split()[1]).parent == tmp_path / "tmp"
    assert pool.restarts == 4
    assert descriptors() == before
    assert not any(alive(pid) for pid in pids)
    assert os.listdir(tmp_path / "tmp") == []


def test_a_worker_has_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_TOKEN", "secret")
    with GraderPool(ACT, workers=1) as pool:
        pool.grade(["file"], [str(tmp_path / "environment")])
    text = (tmp_path / "environment").read_text()
    assert "secret" not in text
    assert "PYTHONHASHSEED=0" in text


def test_a_worker_that_died_between_two_calls_is_replaced():
    with GraderPool(EXACT, workers=1) as pool:
        pool.grade(["a"], ["a"])
        (pid,) = worker_pids(pool)
        os.kill(pid, signal.SIGKILL)
        assert pool.grade(["a", "b"], ["a", "a"]).rewards.tolist() == [1.0, 0.0]
        assert worker_pids(pool) != [pid]


def test_off_the_main_thread_and_after_that_thread_ended():
    """The kernel's parent-death signal counts the thread that started a worker: it must not end with the thread."""
    with GraderPool(ACT, workers=1) as pool:
        pids: list[list[int]] = []

        def first():
            assert pool.grade(["right"], ["r"]).rewards.tolist() == [1.0]
            pids.append(worker_pids(pool))

        thread = threading.Thread(target=first)
        thread.start()
        thread.join()
        assert pool.grade(["right", "wrong"], ["r", "r"]).rewards.tolist() == [1.0, 0.0]
        assert [worker_pids(pool)] == pids
        assert pool.restarts == 0


def test_components_come_through_the_pipe(pool):
    grades = pool.grade(["components", "raise", "components"], ["a", "", "b"])
    np.testing.assert_array_equal(grades.components, [[1, 0.25], [np.nan] * 2, [1, 0.25]])
    assert grades.answers == ("a", None, "b")
    assert pool.grade(["right"], [""]).components is None


@pytest.fixture
def interruptible():
    """A shell starts its background jobs with the signal ignored, and Python then installs no handler of its own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_keyboard_interrupt_leaves_no_worker():
    with GraderPool(ACT, workers=2, deadline=60) as pool:
        pids = [int(answer.split()[0]) for answer in pool.grade(["pid"] * 8, [""] * 8).answers]
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.grade(["hang"] * 4, ["r"] * 4)
        timer.join()
        assert not any(map(alive, pids))
        assert pool.grade(["right"], ["r"]).rewards.tolist() == [1.0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker ends with its item")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_workers_end_with_a_parent_that_is_killed(where, tmp_path, subprocess_env):
    """Also while they hang, and where the kernel's parent-death signal cannot be used."""
    code = """
import os, signal, sys, threading, time
from salt_jax.graders import Grader, GraderPool
pool = GraderPool(Grader("tests.graders.misbehaving:act"), workers=2, deadline=60)
def work():
    print(*(answer.split()[0] for answer in pool.grade(["pid"] * 20, [""] * 20).answers), flush=True)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    pool.grade(["deaf", "hang without the lock"], ["", ""])
if sys.argv[1] == "main":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()  # once the main thread has ended, Python 3.12 starts no other
"""
    root = Path(__file__).resolve().parents[2]
    env = subprocess_env | {"TMPDIR": str(tmp_path)}  # nobody is left to remove the workers' folders
    run = subprocess.run([sys.executable, "-c", code, where], cwd=root, env=env, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    pids = {int(pid) for pid in run.stdout.split()}
    assert pids
    assert all(map(gone, pids))


def test_exact_match_in_workers_is_exact_match_here():
    completions = [f" {i % 7}\n" for i in range(500)]
    references = [str(i % 5) for i in range(500)]
    with GraderPool(EXACT) as pool:
        grades = pool.grade(completions, references)
    np.testing.assert_array_equal(grades.rewards, grade_all(exact_match, completions, references).rewards)


def test_a_reply_and_the_end_are_heard_at_once():
    """What a worker said before it ended is not lost, and its end is seen in the same look."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.write(write, b'{"id": 0}\n')
    os.close(write)
    worker = _Worker.__new__(_Worker)
    worker.read, worker.received = read, b""
    found = []
    thread = threading.Thread(target=lambda: found.append(worker.replies()), daemon=True)
    thread.start()
    thread.join(20)  # or it looks for ever
    assert found == [([{"id": 0}], True)]
    os.close(read)
