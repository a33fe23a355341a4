"""Graders that misbehave as the completion says, for tests of the pool; its workers import nothing else of tests."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import time
from pathlib import Path

from salt_jax.graders.verdict import GraderError, Verdict


def act(completion: str, reference: str, **arguments: object) -> float | Verdict:
    """1.0 for 'right', 0.0 for what is none of the acts."""
    if completion == "hang":
        time.sleep(1000)
    elif completion == "slow":
        time.sleep(0.6)
        return 1.0
    elif completion == "hang without the lock":
        ctypes.PyDLL(None).sleep(1000)
    elif completion == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass
    elif completion == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif completion == "exit":
        os._exit(0)
    elif completion == "sys.exit":
        sys.exit(3)
    elif completion == "segfault":
        ctypes.string_at(0)
    elif completion == "print":
        print('{"id": 0, "reward": 1.0}\n' * 1000, flush=True)
        print("x" * 10_000_000, file=sys.stderr, flush=True)
        os.write(1, b"x" * 10_000_000)
    elif completion == "close":
        os.closerange(0, 100)
        time.sleep(1000)
    elif completion == "garbage":
        for descriptor in range(3, 256):
            try:
                os.write(descriptor, b"garbage\n")
            except OSError:
                continue
        time.sleep(1000)
    elif completion == "flood":
        while True:
            for descriptor in range(3, 256):
                try:
                    os.write(descriptor, b"x" * 100_000)
                except OSError:
                    continue
    elif completion == "child that stays":
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    elif completion == "memory":
        bytearray(8 << 30)
    elif completion == "raise":
        raise RuntimeError("two\nlines")
    elif completion == "nan":
        return float("nan")
    elif completion == "answer":
        return Verdict(0.5, reference)
    elif completion == "no text":
        return Verdict(0.5, 3)  # type: ignore[arg-type]
    elif completion == "components":
        return Verdict(0.5, reference, (1, 0.25))
    elif completion == "cannot":
        raise GraderError("size = 3 is not allowed; allowed: 1, 2")
    elif completion == "file":
        Path(reference).write_text("".join(f"{name}={value}\n" for name, value in os.environ.items()))
        Path("left behind").write_text("x")
    elif completion == "pid":
        return Verdict(1.0, f"{os.getpid()} {os.getcwd()}")
    elif completion == "modules":
        return Verdict(1.0, " ".join(sorted(name for name in sys.modules if "." not in name)))
    elif completion == "length":
        return float(len(reference))
    return float(completion == "right")


def nothing(completion: str, reference: str) -> float:
    """Takes no arguments."""
    return 1.0


NUMBER = 3


def program(completion: str, reference: str) -> float | Verdict:
    """``act`` for 'hang', 'kill' and 'exit'; a program for all else."""
    from salt_jax.graders.code import run_tests

    if completion in ("hang", "kill", "exit"):
        return act(completion, reference)
    return run_tests(completion, reference, wall_limit=60)


def kept_waiting(completion: str, reference: str, **arguments: float) -> float | Verdict:
    """``run_tests`` on a machine that never gives the program a processor, by what is seen of it."""
    from salt_jax.graders import clock, code

    code.OwnTime = functools.partial(clock.OwnTime, look=lambda pid: ("R", 0.0))
    return code.run_tests(completion, reference, **arguments)
