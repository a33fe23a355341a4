"""Grading in workers that can be killed: a grader that hangs, crashes or eats memory costs its own item's reward.

A worker is a process of its own (a fresh interpreter, no fork of this one), which imports this room and the grader's
module and no JAX. It has few environment variables, so that no key or token reaches it, an empty folder as its working
directory and for temporary files, no terminal, and ends with this process however that ends. (Only where this process
itself is killed do folders stay behind.)
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

from salt_jax.graders.clock import OwnTime, seen_with_children
from salt_jax.graders.folders import remove_folder
from salt_jax.graders.verdict import Grader, GraderError, Grades, Verdict, gather

AHEAD = 8  # items sent to a worker before it asks: it never waits for the pool
START_LIMIT = 120.0  # seconds for a worker to import its grader
FUTILE = 3  # workers in a row that may die without having begun anything
GLANCE = 0.2  # seconds between looks for workers that died in silence, or are kept waiting
PATIENCE = 8  # deadlines after which an item is late, however little of the processor it had
CHUNK = 1 << 16
HEARD = 64 * CHUNK  # bytes of a worker that are taken in at once
REPLY = 1 << 26  # bytes of the longest reply; a verdict has a few dozen
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ", "GLIBC_TUNABLES")
# One thread: a code grader forks, and idle threads of a linear algebra library would take address space.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class _Worker:
    """One process and what the pool knows of it."""

    def __init__(self, grader: Grader, memory_mib: int) -> None:
        self.folder = tempfile.mkdtemp(prefix="salt-jax-grader-")
        self.unsent = bytearray()  # what of the requests the pipe has not taken
        self.received = b""  # an unfinished line of the replies
        self.items: deque[int] = deque()  # sent and not graded, in order
        self.started: int | None = None
        self.ready = self.ended = False
        self.since = time.monotonic()  # when it last said something, or was given something to do
        self.kept = 0.0  # seconds since then that the machine kept from it
        self.clock: OwnTime | None = None  # of the item in hand
        theirs_read, self.write = os.pipe()
        self.read, theirs_write = os.pipe()
        theirs_lifeline, self.lifeline = os.pipe()
        theirs = (theirs_read, theirs_write, theirs_lifeline)
        main_thread = threading.current_thread() is threading.main_thread()
        options = {
            "read": theirs_read, "write": theirs_write, "lifeline": theirs_lifeline,
            "parent": os.getpid() if main_thread else None,
            "path": grader.path, "arguments": dict(grader.arguments), "memory_mib": memory_mib,
        }  # fmt: skip
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {name: "1" for name in THREADS}
        environment |= {"TMPDIR": self.folder, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # what a failing import says
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "salt_jax.graders.worker", json.dumps(options)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors, cwd=self.folder,
                env=environment, pass_fds=theirs, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            self.close_pipes()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        os.set_blocking(self.write, False)
        os.set_blocking(self.read, False)

    def close_pipes(self) -> None:
        for descriptor in (self.read, self.write, self.lifeline):
            os.close(descriptor)
        self.errors.close()
        remove_folder(self.folder)

    def end(self) -> None:
        """Kills the process group and removes what it leaves; the leader is reaped last, so that its id stays its."""
        if self.ended:
            return
        self.ended = True
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone (macOS: PermissionError)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.close_pipes()

    def status(self) -> str:
        """How the process ended."""
        status = self.process.returncode
        if status is not None and status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with exit status {status}"

    def dead(self) -> bool:
        """Whether the process ended; where a child of it holds the pipe open, the pipe does not say so."""
        if not hasattr(os, "waitid"):
            return False  # macOS before Python 3.13: the deadline finds it
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    def last_words(self) -> str:
        """The last line of what it wrote before it was ready."""
        size = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, size - CHUNK))
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def send(self, item: int, completion: str, reference: str) -> None:
        request = {"id": item, "completion": completion, "reference": reference}
        if not self.items:
            self.since = time.monotonic()
        self.items.append(item)
        self.unsent += json.dumps(request).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Writes what the pipe takes; a closed pipe shows when its replies end."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self.unsent:
                del self.unsent[: os.write(self.write, self.unsent[:CHUNK])]

    def replies(self) -> tuple[list[Any], bool]:
        """What it said since the last call, and whether nothing more is to be heard."""
        ended, heard, chunks = False, 0, [self.received]
        with contextlib.suppress(BlockingIOError):
            while heard < HEARD and not ended:
                chunks.append(os.read(self.read, CHUNK))
                heard += len(chunks[-1])
                ended = not chunks[-1]
        *lines, self.received = b"".join(chunks).split(b"\n")
        replies: list[Any] = []
        try:
            for line in lines:
                replies.append(json.loads(line))
        except ValueError:
            ended = True  # a grader wrote into the pool's pipe
        return replies, ended or len(self.received) > REPLY


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        workers[-1].end()
        workers.pop()


class GraderPool:
    """Runs a ``Grader`` in worker processes, with a deadline for every item; a context manager.

    Workers start with the first items, live until ``close`` and are replaced when they die. What happens to an item:

    ==========================================  ==========================================================
    the grader                                  the item
    ==========================================  ==========================================================
    returns a reward                            has that reward
    raises, or returns no finite number         is missing: the exception's type and message
    takes longer than the deadline              is missing: 'TimeoutError: no verdict in 10 s'
    ends, crashes or closes its worker          is missing: 'ChildProcessError: the grader's process ended …'
    raises ``GraderError``                      ends ``grade`` with that error: no item could be graded
    ==========================================  ==========================================================

    A deadline runs from when a worker begins the item, and leaves out what a busy machine keeps from it (``clock``), so
    that no reward depends on the load; after eight times as many seconds by the wall it is over. Items that a dead
    worker had not begun go to another.

    Args:
      grader: what to run.
      workers: processes.
      deadline: seconds an item.
      memory_mib: address space of a worker, MiB (Linux).

    Attributes:
      restarts: workers lost to a deadline or a crash so far.

    Raises:
      ValueError: a setting outside its range.

    Example:
      >>> with GraderPool(Grader("salt_jax.graders.verdict:exact_match"), workers=1) as pool:
      ...     pool.grade(["46", "47"], ["46", "46"]).rewards.tolist()
      [1.0, 0.0]
    """

    def __init__(
        self, grader: Grader, *, workers: int = 2, deadline: float = 10.0, memory_mib: int = 2048
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers = {workers} is not allowed; allowed: integers >= 1")
        if not 0 < deadline < float("inf"):
            raise ValueError(f"deadline = {deadline} is not allowed; allowed: seconds > 0")
        if memory_mib < 64:
            raise ValueError(f"memory_mib = {memory_mib} is not allowed; allowed: integers >= 64")
        json.dumps(dict(grader.arguments))  # a TypeError here, not in every worker
        self.grader, self.num_workers = grader, workers
        self.deadline, self.memory_mib, self.restarts = deadline, memory_mib, 0
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _end_all, self._workers)

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; the pool grades no more."""
        with self._lock:
            self._closed = True
            _end_all(self._workers)

    def grade(self, completions: Sequence[str], references: Sequence[str]) -> Grades:
        """Grades every completion, see ``grade_all``; one call at a time, from any thread.

        Args:
          completions: N texts.
          references: N answers.

        Returns:
          ``Grades``, in the order of the items.

        Raises:
          ValueError: if the two lengths differ, or the pool is closed.
          GraderError: if the grader cannot work at all, or its workers cannot start.
        """
        if len(completions) != len(references):
            raise ValueError(f"{len(completions)} completions do not match {len(references)} references")
        with self._lock:
            if self._closed:
                raise ValueError("this GraderPool is closed")
            try:
                results = _Session(self, completions, references).run()
            except BaseException:  # also KeyboardInterrupt: no worker goes on with what nobody waits for
                _end_all(self._workers)
                raise
        return gather(results)


class _Session:
    """One call of ``grade``: which items wait, where the others are, and what came of them."""

    def __init__(self, pool: GraderPool, completions: Sequence[str], references: Sequence[str]) -> None:
        self.pool, self.workers = pool, pool._workers
        self.completions, self.references = completions, references
        self.waiting = deque(range(len(completions)))
        self.results: dict[int, Verdict | str] = {}
        self.futile = 0
        self.looked = 0.0
        self.selector = selectors.DefaultSelector()

    def run(self) -> list[Verdict | str]:
        with self.selector:
            for worker in self.workers:
                self.selector.register(worker.read, selectors.EVENT_READ, worker)
            while len(self.results) < len(self.completions):
                self.feed()
                self.wait()
        return [self.results[item] for item in range(len(self.completions))]

    def feed(self) -> None:
        """Starts what workers are missing and hands out items, fewer ahead as fewer are left."""
        while self.waiting and len(self.workers) < min(self.pool.num_workers, len(self.waiting)):
            worker = _Worker(self.pool.grader, self.pool.memory_mib)
            self.workers.append(worker)
            self.selector.register(worker.read, selectors.EVENT_READ, worker)
        for ahead in range(1, AHEAD + 1):
            for worker in self.workers:
                share = 1 if ahead == 1 else ahead * len(self.workers)
                if worker.ready and len(worker.items) < ahead and len(self.waiting) >= share:
                    item = self.waiting.popleft()
                    worker.send(item, self.completions[item], self.references[item])

    def wait(self) -> None:
        """Until something is said or late."""
        now = time.monotonic()
        for worker in self.workers:
            wanted = selectors.EVENT_WRITE if worker.unsent else 0
            watched = worker.write in self.selector.get_map()
            if wanted and not watched:
                self.selector.register(worker.write, wanted, worker)
            elif watched and not wanted:
                self.selector.unregister(worker.write)
        late = min((self.limit(worker) - now for worker in self.workers if self.busy(worker)), default=GLANCE)
        events = self.selector.select(max(0.0, min(late, GLANCE)))
        for key, _ in events:
            worker = key.data
            if worker not in self.workers:
                continue  # lost a moment ago
            if key.fd == worker.write:
                worker.flush()
            else:
                self.hear(worker)
        now = time.monotonic()
        look = now > self.looked + GLANCE
        self.looked = now if look else self.looked
        for worker in list(self.workers):
            if worker.clock is not None and (look or now > self.limit(worker)):
                worker.kept = max(0.0, time.monotonic() - worker.since - worker.clock.passed())
            if self.busy(worker) and now > self.limit(worker):
                self.hear(worker)  # it may have spoken meanwhile
                if worker in self.workers and time.monotonic() > self.limit(worker):
                    self.lose(worker, f"TimeoutError: no verdict in {self.pool.deadline:g} s")
            elif look and worker.dead():
                self.hear(worker)
                if worker in self.workers:
                    self.lose(worker)

    def busy(self, worker: _Worker) -> bool:
        return bool(worker.items) or not worker.ready

    def limit(self, worker: _Worker) -> float:
        """When a busy worker is late: with its import, its item, or with saying that it began one."""
        deadline = self.pool.deadline
        limit = min(deadline + worker.kept, PATIENCE * deadline) if worker.started is not None else START_LIMIT
        return worker.since + limit

    def hear(self, worker: _Worker) -> None:
        """Takes in what a worker said."""
        replies, ended = worker.replies()
        for reply in replies:
            if not self.understand(worker, reply):
                ended = True
                break
        if ended:
            self.lose(worker)

    def understand(self, worker: _Worker, reply: Any) -> bool:
        """One reply; false where it breaks the protocol, so that its worker is not to be trusted."""
        if not isinstance(reply, dict):
            return False
        worker.since, worker.kept, worker.clock = time.monotonic(), 0.0, None
        if "fatal" in reply:
            raise GraderError(str(reply["fatal"]))
        if "ready" in reply:
            worker.ready = True
            return True
        item = reply.get("start", reply.get("id"))
        if not worker.items or item != worker.items[0] or ("start" in reply) != (worker.started is None):
            return False
        self.futile = 0
        if "start" in reply:
            worker.started = item
            worker.clock = OwnTime(worker.process.pid, seen_with_children)
            return True
        worker.started = None
        worker.items.popleft()
        reward, answer, parts = reply.get("reward"), reply.get("answer"), reply.get("components")
        listed: list[Any] = parts if isinstance(parts, list) else []
        numbers = all(isinstance(x, int | float) for x in (reward, *listed)) and (parts is None or listed == parts)
        if isinstance(reward, int | float) and numbers and isinstance(answer, str | None):
            self.results[item] = Verdict(float(reward), answer, None if parts is None else tuple(map(float, listed)))
        else:
            self.results[item] = str(reply.get("error"))
        return True

    def lose(self, worker: _Worker, why: str | None = None) -> None:
        """Ends a worker: the item it had begun is missing, the others wait again."""
        self.selector.unregister(worker.read)
        if worker.write in self.selector.get_map():
            self.selector.unregister(worker.write)
        words = "" if worker.ready else worker.last_words()
        worker.end()
        self.workers.remove(worker)
        self.pool.restarts += 1
        grader = self.pool.grader.path
        if not worker.ready:
            what = f"did not start within {START_LIMIT:g} s" if why else f"{worker.status()} before it was ready"
            raise GraderError(f"a worker of grader {grader!r} {what}{words}")
        if worker.started is not None:
            worker.items.popleft()
            self.results[worker.started] = why or f"ChildProcessError: the grader's process {worker.status()}"
        elif worker.items:
            self.futile += 1
            if self.futile > FUTILE * self.pool.num_workers:
                raise GraderError(f"workers of grader {grader!r} die before they begin an item: {worker.status()}")
        self.waiting.extendleft(reversed(worker.items))
