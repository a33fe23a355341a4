"""How long a process went its own way: what the machine kept from it, a processor or the disk, is not counted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

LOOK = 0.05  # seconds between looks
LATE = 1.0  # a look that comes later counts as much: the machine slept, or this process was stopped
KEPT = "RD"  # states of a thread that would go on: it runs or waits for a processor, or waits for the disk
_TICK = os.sysconf("SC_CLK_TCK")


def seen(pid: int) -> tuple[str, float] | None:
    """The states of a process's threads, a letter each, and its processor seconds; None where /proc does not say.

    Example:
      >>> states, seconds = seen(os.getpid()) or ("R", 0.0)
      >>> "R" in states, seconds >= 0
      (True, True)
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        states = []
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
                states.append(file.read().rpartition(b")")[2].split()[0].decode())
        return "".join(states), (int(fields[11]) + int(fields[12])) / _TICK
    except (OSError, ValueError, IndexError):
        return None


def seen_with_children(pid: int) -> tuple[str, float] | None:
    """``seen`` of a process and the ones that it started, those that ended included in its seconds."""
    found = seen(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            children = [seen(int(child)) for child in file.read().split()]
    except (OSError, ValueError, IndexError):
        return found
    every = [one for one in (found, *children) if one is not None]
    ended = (int(fields[13]) + int(fields[14])) / _TICK
    return "".join(states for states, _ in every), sum(seconds for _, seconds in every) + ended


class OwnTime:
    """Seconds that a process computed, or slept by its own will.

    Between two looks: all the time, where none of its threads is about to go on at the second; else its processor time.
    So a program that waits for itself uses up its time on the busiest machine, and one that is kept waiting does not.
    Where /proc does not say, all time counts.

    Args:
      pid: the process.
      look: ``seen``, or what stands in for it.
      now: a clock.
    """

    def __init__(
        self,
        pid: int,
        look: Callable[[int], tuple[str, float] | None] = seen,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pid, self._look, self._now = pid, look, now
        self._at, self._seconds, self._own = now(), 0.0, 0.0

    def passed(self) -> float:
        """The seconds so far, after another look."""
        now, found = self._now(), self._look(self._pid)
        gone, self._at = min(now - self._at, LATE), now
        if found is not None:
            states, seconds = found
            ran, self._seconds = max(0.0, seconds - self._seconds), seconds
            gone = min(gone, ran) if set(states) & set(KEPT) else gone
        self._own += gone
        return self._own
