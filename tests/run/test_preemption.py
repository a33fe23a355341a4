"""Signals: remembered, polled, handed back; a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from salt_jax.run.preemption import SIGNALS, Interrupted, Watch, watching
from tests.house import REPOSITORY


def wait_for(watch: Watch) -> Interrupted:
    """The interruption that a signal sent to this process causes."""
    for _ in range(500):
        try:
            watch.check()
        except Interrupted as interrupted:
            return interrupted
        time.sleep(0.01)
    raise AssertionError("the signal was not heard")


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_heard_and_handlers_come_back(signum):
    own = signal.signal(signum, lambda *_: None)
    try:
        before = [signal.getsignal(s) for s in SIGNALS]
        with watching() as watch:
            watch.check()
            os.kill(os.getpid(), signum)
            heard = wait_for(watch)
            assert (heard.signum, heard.status, str(heard)) == (signum, 128 + signum, signal.Signals(signum).name)
        assert [signal.getsignal(s) for s in SIGNALS] == before
        assert not [thread for thread in threading.enumerate() if thread.name == "signals"]
    finally:
        signal.signal(signum, own)


def test_an_ignored_signal_stays_ignored():
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's '&' leave it
    try:
        with watching() as watch:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            watch.check()
    finally:
        signal.signal(signal.SIGINT, own)


def test_another_thread_watches_nothing():
    seen = []
    thread = threading.Thread(target=lambda: [seen.append(watch.check()) for watch in [watching().__enter__()]])
    thread.start()
    thread.join()
    assert seen == [None]


def test_all_processes_stop_for_one():
    votes = []

    def agree(signum: int) -> int:
        votes.append(signum)
        return signal.SIGTERM if len(votes) == 3 else 0  # another process was asked to stop

    watch = Watch(agree)
    watch.check()
    watch.check()
    with pytest.raises(Interrupted, match="SIGTERM"):
        watch.check()
    assert votes == [0, 0, 0]


PROGRAM = """
import ctypes, signal
from salt_jax.run.preemption import SIGNALS, watching
for signum in SIGNALS:
    signal.signal(signum, signal.SIG_DFL)  # `nohup make test` and `make test &` hand some on as ignored
with watching() as watch:
    print("ready", flush=True)
    for _ in range(2):
        ctypes.CDLL(None).sleep(60)  # the first signal wakes it up, and no bytecode runs that could hear the second
"""


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_second_signal_ends_a_process_whose_main_thread_waits_in_c(signum, subprocess_env):
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=subprocess_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert "a second signal ends it at once" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signum)
        assert process.wait(timeout=30) == 128 + signum
        assert process.stderr.read() == ""
