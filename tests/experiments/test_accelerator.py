"""The driver of `experiments.accelerator` on stages that compute nothing; the whole command in its small form.

Imports no JAX: each stage's process imports this file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.accelerator import driver
from experiments.accelerator.driver import Stage
from experiments.accelerator.rows import Row, Setting


def good(setting: Setting) -> Iterator[Any]:
    yield Row("speed", 2.0, "m/s", aim=1.0)
    yield Row("seen", float(len(setting.known)))


def raising(setting: Setting) -> Iterator[Any]:
    yield Row("first", 1.0)
    raise RuntimeError("out of | memory\nhere")


def hanging(setting: Setting) -> Iterator[Any]:
    yield Row("first", 1.0)
    time.sleep(600)


def dying(setting: Setting) -> Iterator[Any]:
    yield Row("first", 1.0)
    os._exit(7)


def without_number(setting: Setting) -> Iterator[Any]:
    yield Row("speed", float("nan"))


def stages(**weights: float) -> dict[str, Stage]:
    return {name: Stage(globals()[name], weight) for name, weight in weights.items()}


def test_an_exception_a_hang_and_a_crash_are_rows_and_the_others_go_on(tmp_path: Path, capsys):
    # the hanging stage's share is about two of the sixty seconds
    injected = stages(raising=10, dying=10, hanging=1, without_number=10, good=10)
    assert driver.main([f"--out={tmp_path}", "--budget=60"], injected) == 1
    found = json.loads((tmp_path / "accelerator.json").read_text())["stages"]
    assert found["raising"]["error"] == "RuntimeError: out of / memory here"
    assert found["dying"]["error"] == "its process ended with exit status 7"
    assert found["hanging"]["error"].startswith("stopped after ")
    assert found["hanging"]["seconds"] < 30
    assert [found[name]["rows"][0]["what"] for name in ("raising", "dying", "hanging")] == ["first"] * 3
    assert found["good"]["error"] == ""
    assert found["good"]["rows"][1]["value"] == 3.0  # the numbers of the stages before it
    table = capsys.readouterr().out.rpartition("| stage |")[2]
    assert "| good | speed | 2 m/s | ≤ 1 | NO |" in table
    assert "| without_number | speed | no number |" in table
    assert table.count("no number") == 4


def test_resuming_does_what_is_missing(tmp_path: Path):
    file = tmp_path / "accelerator.json"
    assert driver.main([f"--out={tmp_path}", "--stages", "good"], stages(good=1, without_number=1)) == 0
    kept = json.loads(file.read_text())["stages"]["good"]
    # by the same name another stage, which cannot be whole: `good` is not measured again
    again = {"good": Stage(dying, 1), "without_number": Stage(good, 1)}
    assert driver.main([f"--out={tmp_path}", f"--resume={file}"], again) == 0
    found = json.loads(file.read_text())["stages"]
    assert found["good"] == kept
    assert found["without_number"]["rows"][1]["value"] == 2.0


@pytest.mark.parametrize("options", [["--budget=0"], ["--stages=other"], ["--resume=absent.json"]])
def test_bad_options_exit_with_status_2(tmp_path: Path, options: list[str]):
    with pytest.raises(SystemExit) as stopped:
        driver.main([f"--out={tmp_path}", *options], stages(good=1))
    assert stopped.value.code == 2


def test_nothing_is_started_without_time(tmp_path: Path):
    assert driver.main([f"--out={tmp_path}", "--budget=0.5"], stages(good=1)) == 1
    record = json.loads((tmp_path / "accelerator.json").read_text())["stages"]["good"]
    assert (record["error"], record["rows"]) == ("not run: nothing is left of the budget", [])


def test_a_rehearsal_gives_every_stage_numbers(tmp_path: Path, subprocess_env: dict[str, str]):
    command = [sys.executable, "-m", "experiments.accelerator", "--tiny", "--budget=300", f"--out={tmp_path}"]
    done = subprocess.run(command, env=subprocess_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "accelerator.json").read_text())["stages"]
    assert list(found) == list(driver.STAGES)
    numerics = [Row(**row) for row in found["numerics"]["rows"]]
    assert [row.what for row in numerics if row.verdict == "NO"] == []
