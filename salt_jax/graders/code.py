"""Programs graded by their tests, each in a confined process of its own, forked from a worker of ``GraderPool``.

What is protected, with sandbox 'full' (``confine`` has the list): files outside the program's empty folder cannot be
read or written, but for Python's own; there is no network, no new process, no signal to another; processor time,
memory and files are bounded; the environment and open files of the run are not there; what is printed goes nowhere.
Where the machine cannot confine so (no Linux, an old kernel), grading ends with a line that says what is missing.

A program passes when a random text, known to its process alone, comes back after its last test: neither an exit with
status 0 nor anything printed looks like that. **What is not protected is the verdict itself from a program that is
written to deceive.** It runs in one interpreter with its tests, so it can look for that text in the frames above it,
read the tests, replace functions the tests use, or return objects that are equal to everything. The items that wait in
the same worker are in its memory, too. For training that means: read what gets rewards.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import select
import signal
import sys
import tempfile
import threading
from typing import Any

from salt_jax.graders import confine
from salt_jax.graders.checks import read_tests
from salt_jax.graders.clock import LOOK, OwnTime
from salt_jax.graders.folders import empty_folder
from salt_jax.graders.program import READY, REFUSED, USELESS, child, within
from salt_jax.graders.verdict import GraderError, Verdict

KEYS: dict[str, tuple[type, ...]] = {
    "setup": (str,), "tests": (str, list), "entry_point": (str, type(None)), "prefix": (str,)
}  # fmt: skip


EMPTY_SECONDS = 1.0  # for tests that are tried without a program


def parse_reference(reference: str) -> dict[str, Any]:
    """The fields of a reference, all there; its tests parse, import what is there, and check something.

    Raises:
      ValueError: unless it is a JSON object with those fields, and tests that check a program (``checks``).

    Example:
      >>> parse_reference('{"tests": "assert f(1) == 2"}')
      {'setup': '', 'tests': ['assert f(1) == 2'], 'entry_point': None, 'prefix': ''}
    """
    found = _fields(reference)
    _read(found)
    return found


def check_reference(reference: str, **_: Any) -> None:
    """ValueError for a reference that ``run_tests`` cannot use, whatever its arguments."""
    _what(reference)


def _fields(reference: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(reference)
    except RecursionError:
        raise ValueError("the reference is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the reference is no JSON: {error}") from None
    if not isinstance(found, dict) or not set(found) <= set(KEYS):
        raise ValueError(f"the reference is no JSON object with keys among {', '.join(KEYS)}")
    defaults: dict[str, Any] = {"setup": "", "tests": [], "entry_point": None, "prefix": ""}
    found = defaults | found
    for name, kinds in KEYS.items():
        if not isinstance(found[name], kinds):
            raise ValueError(f"{name} = {found[name]!r:.100} of the reference has the wrong type")
    tests: list[Any] = [found["tests"]] if isinstance(found["tests"], str) else list(found["tests"])
    if not all(isinstance(test, str) for test in tests) or not any(test.strip() for test in tests):
        raise ValueError("the reference has no tests: any program would pass")
    return found | {"tests": tests}


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    """What the confined process is told of a reference."""
    folders = within(sys.path, _PATHS)
    try:
        read = read_tests(fields["setup"], fields["tests"], fields["entry_point"], folders)
    except RecursionError:
        raise ValueError("the tests are nested too deeply to be read") from None
    return fields | read._asdict()


@functools.lru_cache(maxsize=256)
def _what(reference: str) -> dict[str, Any]:
    return _read(_fields(reference))


def run_tests(
    completion: str,
    reference: str,
    *,
    time_limit: float = 6.0,
    wall_limit: float = 9.0,
    memory_mib: int = 1024,
    sandbox: str = "full",
) -> Verdict:
    """1.0 if a program passes all its tests, else 0.0.

    The program is the completion's last whole one that defines what the tests use (see ``solution.pieces``). It runs
    after `setup` and, where it does not define `entry_point` itself, as a continuation of `prefix` (HumanEval's
    prompt); then the tests run in the same module, and `check(entry_point)` where they define such a function. What of
    `setup` uses the program's own names runs between the two.

    ====================================================  ===================================================
    what happens                                          reward
    ====================================================  ===================================================
    every test passes                                     1
    an assertion fails, anything is raised, exits         0
    no valid Python, or no program                        0
    too much processor time or memory, a forbidden act    0
    it waits for itself (a deadlock, sleep, input)        0, once wall_limit has passed
    the machine keeps it waiting                          it goes on, to the end of the pool's patience; then missing
    a reference that is not one, whose tests check        missing
    nothing, or whose setup fails
    tests that also pass without a program                missing
    ====================================================  ===================================================

    Args:
      completion: what the policy wrote.
      reference: JSON object: "tests" (a text or a list of texts), and "setup", "prefix" (texts), "entry_point" (a
        name) where needed.
      time_limit: processor seconds, rounded up to whole ones.
      wall_limit: seconds, of which those that the program waits for a processor or the disk do not count
        (``clock.OwnTime``); some way below the pool's deadline, so that it does not cost the worker.
      memory_mib: address space, MiB.
      sandbox: 'full', or 'limits' for machines that cannot confine and programs that mean no harm.

    Returns:
      ``Verdict`` without an answer: programs are not voted on.

    Raises:
      GraderError: an unknown sandbox, a machine that lacks its protections, or a process with threads, which must not
        fork: programs are graded in the workers of ``GraderPool``.
      ValueError: a reference that is not one, see the table.
      ChildProcessError: a process that ended, or waited, before the program began.
    """
    _check(sandbox)
    what = _what(reference)
    limits: dict[str, Any] = {"sandbox": sandbox, "memory_mib": memory_mib}
    passed = _passes({**what, "completion": completion}, wall_limit, cpu_seconds=time_limit, **limits)
    if passed and reference not in _SEEN_TO_FAIL:
        if _passes(what, EMPTY_SECONDS, cpu_seconds=EMPTY_SECONDS, **limits, empty=True):
            raise ValueError("the tests of the reference pass without a program")
        _SEEN_TO_FAIL.add(reference)
    return Verdict(float(passed))


def _passes(what: dict[str, Any], wall_limit: float, *, empty: bool = False, **limits: Any) -> bool:
    """Whether a program comes to the end of its tests, in a process of its own; ``empty``: what comes without one."""
    folder = _folder()
    try:
        nonce = secrets.token_bytes(16)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(write, nonce, folder, _PATHS, empty=empty, what=what, **limits)
        try:
            os.close(write)
            message = _message(read, 1 + len(nonce), OwnTime(pid), wall_limit)
        finally:
            os.close(read)
            _end(pid)
    finally:
        empty_folder(folder)
    said = message[1:].decode(errors="replace")
    if message[:1] == REFUSED:
        raise GraderError(f"a program could not be confined: {said}")
    if message[:1] == USELESS:
        raise ValueError(f"the setup of the reference fails: {said}")
    if not message:
        raise ChildProcessError("the process ended or waited before the program began: in the setup, if there is one")
    return message == READY + nonce


_PATHS = confine.readable()
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
_SEEN_TO_FAIL: set[str] = set()  # references whose tests do not pass without a program
_CHECKED: set[str] = set()  # sandboxes that this process was found fit for


@functools.cache
def _folder() -> str:
    """This process's folder for programs, emptied after each: it goes with the process, or with the pool's worker."""
    folder = tempfile.TemporaryDirectory(prefix="program-")
    _FOLDERS.append(folder)
    return folder.name


def _check(sandbox: str) -> None:
    if sandbox not in _CHECKED:
        confine.check(sandbox)
        _CHECKED.add(sandbox)
    tasks = "/proc/self/task"
    threads = len(os.listdir(tasks)) if os.path.isdir(tasks) else threading.active_count()
    if threads > 1:
        raise GraderError(f"programs are graded in a GraderPool: this process has {threads} threads and must not fork")


def _message(read: int, length: int, time: OwnTime, limit: float) -> bytes:
    """What the child says, until it has said all, has ended or has had its time."""
    poll, message = select.poll(), b""
    poll.register(read, select.POLLIN)
    while message[:1] in (REFUSED, USELESS) or len(message) < length:
        if poll.poll(1000 * LOOK):
            data = os.read(read, 1 << 12)
            if not data:
                break
            message += data
        elif time.passed() >= limit:
            break
    return message


def _end(pid: int) -> None:
    """Kills the child's process group and waits for the child."""
    for kill in (os.killpg, os.kill):  # by its own id, in case it had not yet made its group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
