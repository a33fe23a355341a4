"""A workdir is one process's; a killed one's lock is gone with it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from salt_jax.run.lock import locked
from salt_jax.run.workdir import check_workdir
from salt_jax.spec import ConfigError
from tests.house import REPOSITORY

HOLD = """
import sys
from pathlib import Path
from salt_jax.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_the_first_is_killed(tmp_path, subprocess_env):
    folder = tmp_path / "a" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], cwd=REPOSITORY, env=subprocess_env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError) as caught, locked(folder):
            raise AssertionError("held twice")
        host = socket.gethostname()
        assert str(caught.value) == f"--workdir={folder} is in use by process {holder.pid} on {host}"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(folder):
        assert (folder / ".lock").read_text() == f"{os.getpid()} on {host}\n"
    assert not check_workdir(folder, {"steps": 3})  # what stays behind is in no one's way


def test_the_lock_is_given_back_also_by_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path), pytest.raises(ConfigError, match="is in use by process"), locked(tmp_path):
        raise AssertionError("held twice")


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    said = []
    with locked(tmp_path, said.append):
        pass
    assert said == [f"--workdir={tmp_path} cannot be locked (No locks available): see to it that no second run uses it"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/run cannot be written to: Not a directory"), locked(
        tmp_path / "file" / "run"
    ):
        raise AssertionError("made")
