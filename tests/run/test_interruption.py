"""A run asked to stop at any of its polls saves its last finished step and goes on to the same bits."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from pathlib import Path

import pytest
from rich.console import Console

from experiments.fault_runs import differences, lost, sealed, steps
from salt_jax.run import loop
from salt_jax.run.preemption import Interrupted, Watch
from tests.run.test_loop import tiny


class Counting(Watch):
    """Is asked to stop at its n-th check."""

    def __init__(self, stop_at: int) -> None:
        super().__init__()
        self.stop_at, self.checks = stop_at, 0

    def check(self) -> None:
        self.checks += 1
        if self.checks == self.stop_at:
            self.request(signal.SIGTERM)
        super().check()


def config():
    c = tiny(checkpoint__every=3, warm_start__steps=2, evaluation__problems=8, evaluation__batch_size=4)
    c.collection.method, c.collection.max_batches, c.collection.on_exhausted = "dynamic", 2, "train"  # several rounds
    return c


def run(folder: Path, monkeypatch, stop_at: int = 0) -> tuple[Counting, str]:
    watch, text = Counting(stop_at), io.StringIO()
    monkeypatch.setattr(loop, "watching", lambda agree: contextlib.nullcontext(watch))
    try:
        loop.train(config(), folder, Console(file=text, width=200))
    except Interrupted:
        assert stop_at
    return watch, text.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        watch, _ = run(folder, patch)
    return folder, watch.checks


def stopped_and_resumed(at: int, whole: Path, folder: Path, monkeypatch) -> None:
    watch, _ = run(folder, monkeypatch, stop_at=at)
    assert watch.checks == at
    assert lost(folder) == 0  # what has been recorded is saved
    recorded = max(steps(folder / "metrics.jsonl"), default=0)
    assert (sealed(folder / "checkpoints" / "train") or 0) == recorded
    assert not (folder / "summary.json").exists()
    run(folder, monkeypatch)
    assert differences(whole, folder) == []
    assert json.loads((folder / "summary.json").read_text())["after"]["step"] == 3


def test_polls_are_in_every_part_of_a_run(whole):
    # warm start: 2 steps; evaluations after 0, 2 and 3 steps: 2 batches each; 3 steps: before, and 1 or 2 rounds
    assert 2 + 3 * 2 + 3 * 2 <= whole[1] <= 2 + 3 * 2 + 3 * 3


# in the first evaluation, between two rounds of a step
@pytest.mark.parametrize("at", [pytest.param(4, marks=pytest.mark.slow), 7])
def test_stopped_at_a_poll(at, whole, tmp_path, monkeypatch):
    stopped_and_resumed(at, whole[0], tmp_path / "run", monkeypatch)


@pytest.mark.slow
def test_stopped_at_every_poll(whole, tmp_path, monkeypatch):
    for at in range(1, whole[1] + 1):
        stopped_and_resumed(at, whole[0], tmp_path / f"run{at}", monkeypatch)


@pytest.mark.slow
def test_stopped_again_and_again(whole, tmp_path, monkeypatch):
    folder, stops = tmp_path / "run", 0
    while not (folder / "summary.json").exists():
        run(folder, monkeypatch, stop_at=5)
        stops += 1
        assert stops < 40, "no progress"
    assert stops > 3
    assert differences(whole[0], folder) == []
