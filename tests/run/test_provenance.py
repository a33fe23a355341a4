"""What a run was started with, and what has changed since."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess

import jax
import pytest

import salt_jax
from salt_jax.run import provenance

git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def run_git(folder, *arguments):
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", folder, *names, *arguments], env=os.environ | own, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1\n")
    run_git(package.parent, "init", "-q")
    run_git(package.parent, "add", ".")
    run_git(package.parent, "commit", "-q", "-m", "first")
    return package


def test_a_stamp_is_json_and_says_where_it_is_made():
    stamp = provenance.stamp()
    assert json.loads(json.dumps(stamp)) == stamp
    assert stamp["salt-jax"] == salt_jax.__version__
    assert stamp["python"] == platform.python_version()
    assert stamp["jax"] == jax.__version__
    assert {"jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "commit", "modified"} <= stamp.keys()
    assert (stamp["platform"], stamp["devices"], stamp["processes"]) == (jax.default_backend(), jax.device_count(), 1)


@git
def test_the_commit_of_a_checkout(checkout):
    head = run_git(checkout, "rev-parse", "HEAD")
    assert provenance.checkout(checkout) == (head, False)
    (checkout / "new.py").write_text("2\n")  # untracked: nothing that was committed differs
    assert provenance.checkout(checkout) == (head, False)
    (checkout / "a.py").write_text("3\n")
    assert provenance.checkout(checkout) == (head, True)


@git
def test_no_commit_for_what_git_does_not_track(checkout, tmp_path):
    installed = checkout.parent / "venv" / "package"  # in somebody's repository, but not of it
    installed.mkdir(parents=True)
    (installed / "a.py").write_text("1\n")
    (tmp_path / "alone").mkdir()
    for folder in (installed, tmp_path / "alone"):
        assert provenance.checkout(folder) == (None, None)


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.checkout(tmp_path) == (None, None)


def test_git_that_does_not_answer(tmp_path, monkeypatch):
    def hangs(*arguments, timeout, **options):
        raise subprocess.TimeoutExpired(arguments[0], timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert provenance.checkout(tmp_path) == (None, None)


def test_differences():
    before = {"time": "1", "jax": "0.10.2", "commit": None, "modified": False, "gone": 1, "devices": 8}
    now = {"time": "2", "jax": "0.12.0", "commit": "abc", "modified": True, "devices": 8, "new": "x"}
    assert provenance.differences(before, now) == [
        "jax 0.10.2 -> 0.12.0", "commit unknown -> abc", "modified False -> True", "new unknown -> x",
        "gone 1 -> unknown",
    ]  # fmt: skip
    assert provenance.differences(now, now | {"time": "3"}) == []


def test_starts_are_noted_and_compared_with_the_last(tmp_path):
    said = []
    for devices in (8, 8, 4, 4):
        provenance.note_start(tmp_path, {"jax": "1", "devices": devices}, said.append)
    rows = [json.loads(line) for line in (tmp_path / "provenance.jsonl").read_text().splitlines()]
    assert [row["devices"] for row in rows] == [8, 8, 4, 4]
    assert all(row["time"].endswith("+00:00") for row in rows)
    (line,) = said
    assert "devices 8 -> 4;" in line
    assert "not promised" in line


def test_a_line_that_was_cut_off_is_passed_over(tmp_path):
    said = []
    provenance.note_start(tmp_path, {"jax": "1"}, said.append)
    with (tmp_path / "provenance.jsonl").open("ab") as file:
        file.write(b'7\n\xff{"jax": "3\n')
    provenance.note_start(tmp_path, {"jax": "2"}, said.append)
    assert [line for line in said if "jax 1 -> 2;" in line] == said != []
