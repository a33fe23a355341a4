"""Runs of `experiments.train` as processes that can be broken: started fast, watched through their files, compared.

Processes are forked from a server that has imported everything and started nothing of JAX: each begins after a
fraction of a second, and is otherwise what the command line gives.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from salt_jax.models.integrity import newest_sound

TIMINGS = {"seconds", "tokens_per_second", "grading_seconds"}  # of a record; the only part that may differ
TRACEBACK = "Traceback (most recent call last)"
RESUMED = re.compile(r"^(warm start|train): resumed at step (\d+) of", re.MULTILINE)


def _train(arguments: list[str], log: str) -> None:
    """In the new process: everything it prints goes to ``log``, and it ends as the command does."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from experiments import cli, train

    sys.exit(cli.run(train.main, ["experiments.train", *arguments]))


def fork_server() -> Any:
    """Starts processes; one server serves all that this process asks for."""
    context = multiprocessing.get_context("forkserver")
    late = ["tensorboardX.event_file_writer", "salt_jax.tasks.arithmetic_builder"]  # a run imports them in use
    context.set_forkserver_preload(["experiments.train", "experiments.fault_runs", *late])
    return context


@dataclasses.dataclass
class Ended:
    """How a process ended: its exit status (-9: killed), what it printed, and where it had resumed, by phase."""

    status: int
    text: str

    @property
    def resumed(self) -> Mapping[str, int]:
        """Steps by phase."""
        return {phase: int(step) for phase, step in RESUMED.findall(self.text)}

    @property
    def tracebacks(self) -> int:
        """Unhandled exceptions printed."""
        return self.text.count(TRACEBACK)


class Started:
    """A run under way in a process of its own.

    Args:
      context: of ``fork_server``.
      arguments: of the command, without --workdir.
      folder: the workdir.
      log: file that gets everything the process prints.
    """

    def __init__(self, context: Any, arguments: list[str], folder: Path, log: Path) -> None:
        self.log = log
        self.began = time.monotonic()
        self.from_byte = log.stat().st_size if log.exists() else 0
        self.process = context.Process(target=_train, args=([*arguments, f"--workdir={folder}"], str(log)))
        self.process.start()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.is_alive()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began

    @property
    def printed(self) -> bool:
        """Whether it has said anything: a step's line, or where it resumes."""
        return self.log.exists() and self.log.stat().st_size > self.from_byte

    def signal(self, signum: int) -> None:
        """Sends a signal; nothing where it has ended."""
        if self.alive:
            os.kill(self.process.pid, signum)

    def until(self, ready: Callable[[], bool], limit: float) -> bool:
        """Waits; whether ``ready()`` came true while it ran. TimeoutError past ``limit`` seconds: it hangs."""
        while self.alive:
            if ready():
                return True
            if self.seconds > limit:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"the run of {self.log} hangs: no end after {limit:.0f} s")
            time.sleep(0.002)
        return False

    def end(self, limit: float = 600.0) -> Ended:
        """Waits for its end."""
        self.process.join(limit)
        if self.alive:
            self.signal(signal.SIGKILL)
            raise TimeoutError(f"the run of {self.log} hangs: no end after {limit:.0f} s")
        text = self.log.read_bytes()[self.from_byte :].decode(errors="replace")
        return Ended(self.process.exitcode, text)


def steps(path: Path) -> list[int]:
    """Steps of the whole lines of a record file."""
    if not path.exists():
        return []
    return [json.loads(line)["step"] for line in path.read_bytes().split(b"\n")[:-1]]


def sealed(folder: Path) -> int | None:
    """The newest step among a phase's checkpoints that is sound."""
    return newest_sound(folder)[0]


def lost(folder: Path) -> int:
    """Steps that a run stopped now has recorded and must do again."""
    phases = {"train": "metrics.jsonl", "warm_start": "warm_start.jsonl"}
    total = 0
    for phase, name in phases.items():
        done = max(steps(folder / name), default=0)
        total += max(done - (sealed(folder / "checkpoints" / phase) or 0), 0)
        if sealed(folder / "checkpoints" / phase) is not None:
            break  # the warm start lies behind it
    return total


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a record file, without timings."""
    lines = (folder / name).read_text().splitlines() if (folder / name).exists() else []
    rows = [json.loads(line) for line in lines]
    return [{key: repr(value) for key, value in row.items() if key not in TIMINGS} for row in rows]


def final_arrays(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every array of the newest checkpoint by its path: dtype, shape, bytes."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    phase = folder / "checkpoints" / "train"
    with ocp.CheckpointManager(phase.absolute()) as manager:
        items = ocp.args.Composite(params=ocp.args.StandardRestore(), state=ocp.args.StandardRestore())
        restored = manager.restore(sealed(phase), args=items)
    flat, _ = jax.tree_util.tree_flatten_with_path({"params": restored["params"], "state": restored["state"]})
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}
    return {path: (str(x.dtype), x.shape, x.tobytes()) for path, x in arrays.items()}


def differences(one: Path, other: Path) -> list[str]:
    """Where two finished runs differ: record files and arrays by name; empty where they are the same bit for bit."""
    names = ("warm_start.jsonl", "metrics.jsonl", "evaluations.jsonl")
    found = [name for name in names if records(one, name) != records(other, name)]
    first, second = final_arrays(one), final_arrays(other)
    return found + [path for path in sorted(first.keys() | second.keys()) if first.get(path) != second.get(path)]
