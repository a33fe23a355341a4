"""A worker of ``GraderPool``: grades what one pipe brings, answers on another, and ends with its parent.

    python -m salt_jax.graders.worker '{"read": 5, "write": 6, "lifeline": 7, "path": …, "arguments": …, …}'

Both pipes carry JSON, one object a line. From the pool: ``{"id", "completion", "reference"}``. To the pool, first
``{"ready": true}`` or ``{"fatal": message}``; then for each item ``{"start": id}``, from which its deadline runs, and
``{"id", "reward", "answer", "components"}`` or ``{"id", "error"}``. What a grader prints goes nowhere.
"""

from __future__ import annotations

import ctypes
import fcntl
import inspect
import json
import os
import resource
import signal
import sys
from typing import Any

from salt_jax.graders.verdict import Grader, GraderError, checked

PR_SET_PDEATHSIG = 1
CHUNK = 1 << 16
MESSAGE = 1000  # characters of an error that are passed on


def end_with_parent(lifeline: int, parent: int | None) -> None:
    """Has the kernel kill this process group once the parent is gone, also while a grader hangs in C code.

    Args:
      lifeline: reading end of a pipe whose other end only the parent holds, and never writes to: its end is a signal.
      parent: the parent's id if it started this process from its main thread, else None. The kernel takes the end
        of the starting *thread* for the parent's death, so this second net is for main threads alone.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return  # no Linux: the end of the pipe of requests ends a worker, once its item is graded
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        gone = os.read(lifeline, 1) == b""  # it ended before the signal was armed
    except BlockingIOError:
        gone = False
    if parent is not None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        gone = gone or os.getppid() != parent
    if gone:
        os._exit(1)


def limit(memory_mib: int) -> None:
    """Address space (Linux alone; macOS refuses the limit) and no core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))


def one_line(error: BaseException) -> str:
    """'Type: message' on one line, cut where it is long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE]


def write(descriptor: int, *messages: dict[str, Any]) -> None:
    """Sends messages in one go."""
    data = memoryview("".join(json.dumps(message) + "\n" for message in messages).encode())
    while data:
        data = data[os.write(descriptor, data) :]


class Requests:
    """Lines of a pipe, with a way to know that the next one is already here."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lines: list[bytes] = []
        self.rest: list[bytes] = []

    def next(self) -> dict[str, Any] | None:
        """The next request; None once the pipe ended."""
        while not self.lines:
            data = os.read(self.descriptor, CHUNK)
            if not data:
                return None
            first, *others = data.split(b"\n")
            self.rest.append(first)
            for line in others:
                self.lines.append(b"".join(self.rest))
                self.rest = [line]
        return json.loads(self.lines.pop(0))


def serve(requests: Requests, replies: int, grader: Grader) -> None:
    """Grades until the requests end."""
    function = grader.load()
    try:
        inspect.signature(function).bind("", "", **grader.arguments)
    except TypeError as error:
        raise GraderError(f"grader {grader.path!r} does not take its arguments: {error}") from None
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # what an import had to say went to the pool; a grader's words go nowhere
    os.close(null)
    write(replies, {"ready": True})
    done: list[dict[str, Any]] = []
    while True:
        if done and not requests.lines:
            write(replies, *done)
            done = []
        request = requests.next()
        if request is None:
            return
        write(replies, *done, {"start": request["id"]})
        try:
            verdict = checked(function(request["completion"], request["reference"], **grader.arguments))
            if not isinstance(verdict.answer, str | None):
                raise TypeError(f"the answer is a {type(verdict.answer).__name__}, not a text")
            done = [{"id": request["id"], **verdict._asdict()}]
        except GraderError:
            raise
        except BaseException as error:  # whatever a grader throws: counted and reported, not hidden
            done = [{"id": request["id"], "error": one_line(error)}]


def main() -> None:
    """What ``GraderPool`` starts."""
    options = json.loads(sys.argv[1])
    end_with_parent(options["lifeline"], options["parent"])
    limit(options["memory_mib"])
    try:
        serve(Requests(options["read"]), options["write"], Grader(options["path"], options["arguments"]))
    except GraderError as error:
        write(options["write"], {"fatal": " ".join(str(error).split())})


if __name__ == "__main__":
    main()
