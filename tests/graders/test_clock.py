"""The time that a process goes its own way."""

from __future__ import annotations

import os
import subprocess

import pytest

from salt_jax.graders.clock import LATE, OwnTime, seen, seen_with_children


@pytest.mark.parametrize(
    ("looks", "own"),
    [
        # (seconds by the clock, states of the threads, processor seconds so far) of each look
        ([(1.0, "S", 0.0), (2.0, "S", 0.0)], 2.0),  # it waits for itself
        ([(1.0, "SSS", 0.0), (2.0, "SST", 0.0)], 2.0),  # so do all of its threads
        ([(1.0, "R", 1.0), (2.0, "R", 2.0)], 2.0),  # it computes
        ([(1.0, "R", 0.0), (2.0, "R", 0.1)], 0.1),  # it waits for a processor
        ([(1.0, "SR", 0.0), (2.0, "RS", 0.1)], 0.1),  # a thread of it does
        ([(1.0, "D", 0.0), (2.0, "SD", 0.0)], 0.0),  # for the disk
        ([(1.0, "R", 4.0), (2.0, "R", 8.0)], 2.0),  # it computes in many threads
        ([(1.0, "S", 0.2), (2.0, "R", 0.3), (3.0, "S", 0.3)], 2.1),
        ([(90.0, "S", 0.0)], LATE),  # nobody looked for long
        ([(1.0, None, 0.0), (2.0, None, 0.0)], 2.0),  # no /proc
    ],
)
def test_own_time(looks, own):
    times = iter([0.0, *(time for time, _, _ in looks)])
    found = iter([states if states is None else (states, seconds) for _, states, seconds in looks])
    clock = OwnTime(7, lambda pid: next(found), lambda: next(times))
    for _ in looks:
        passed = clock.passed()
    assert passed == pytest.approx(own)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="Linux says it in /proc")
def test_what_is_seen_of_a_process():
    states, seconds = seen(os.getpid())
    assert len(states) == len(os.listdir("/proc/self/task"))
    assert "R" in states  # this thread
    assert seconds == pytest.approx(sum(os.times()[:2]), abs=0.5)
    assert seen(2**22 + 1) is None
    assert seen_with_children(2**22 + 1) is None
    child = subprocess.Popen(["sleep", "60"])
    try:
        states, more = seen_with_children(os.getpid())
        assert len(states) > len(os.listdir("/proc/self/task"))
        assert more >= seconds
    finally:
        child.kill()
        child.wait()
