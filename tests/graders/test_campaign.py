"""Hundreds of items, a fifth of which hang, kill their worker or try to break out: every other verdict is right."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from salt_jax.graders import Grader, GraderPool, confine
from tests.graders.test_pool import alive, descriptors

DEADLINE, WORKERS = 1.0, 12
REFERENCE = json.dumps({"tests": ["assert f(1) == 2"]})
ESCAPES = (
    "open('OUTSIDE/new', 'w').write('x')",
    "import socket; socket.socket()",
    "import os, time\nif os.fork() == 0:\n    os.setsid(); open('OUTSIDE/forked', 'w'); time.sleep(1000)",
    "x = bytearray(8 << 30)",
    "import subprocess; subprocess.Popen(['touch', 'OUTSIDE/spawned'])",
)


@pytest.mark.skipif(bool(confine.missing()), reason=f"this machine lacks {confine.missing()}")
@pytest.mark.parametrize("items", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_so_many_items(items, tmp_path, monkeypatch):
    hang, kill, escape = items // 10, items // 20, items // 20
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    outside = tmp_path / "outside"
    outside.mkdir()
    kinds = ["hang"] * hang + ["kill"] * (kill // 2) + ["exit"] * (kill // 2) + ["escape"] * escape
    kinds += [("right", "wrong")[i % 3 == 0] for i in range(items - len(kinds))]
    order = np.random.default_rng(0).permutation(items)
    kinds = [kinds[i] for i in order]
    completions = []
    for i, kind in enumerate(kinds):
        text = {
            "right": "def f(x):\n    return x + 1",
            "wrong": "def f(x):\n    return x",
            "escape": ESCAPES[i % len(ESCAPES)].replace("OUTSIDE", str(outside)) + "\ndef f(x):\n    return x + 1",
        }
        completions.append(text.get(kind, kind))
    expected = np.array([{"right": 1.0, "wrong": 0.0, "escape": 0.0}.get(kind, np.nan) for kind in kinds], np.float32)

    before = descriptors()
    with GraderPool(Grader("tests.graders.misbehaving:program"), workers=WORKERS, deadline=DEADLINE) as pool:
        grades = pool.grade(completions, [REFERENCE] * items)
        pids = [worker.process.pid for worker in pool._workers]
    np.testing.assert_array_equal(grades.rewards, expected)
    np.testing.assert_array_equal(grades.rewarded, np.isfinite(expected))
    assert grades.errors.count == hang + kill
    assert pool.restarts == hang + kill, "one worker for each, and none for what is confined"
    assert os.listdir(outside) == []
    assert descriptors() == before
    assert not any(map(alive, pids))
    assert os.listdir(tmp_path / "tmp") == []
    assert _of_this_test() == []


def _of_this_test() -> list[str]:
    """Commands of living processes of a worker's kind whose parent is this one or init."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if parent in (1, os.getpid()) and "misbehaving:program" in command:
            found.append(command)
    return found
