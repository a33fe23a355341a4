"""The Gram benchmark on tiny shapes: its rows agree, its table and JSON are whole. Nothing here is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import gram, release, report


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    file = tmp_path_factory.mktemp("bench") / "deep" / "gram.json"
    arguments = ["--cases", "--shape", "4", "3", "40", "8", "--repeats=1", f"--json={file}"]
    gram.main(arguments)
    return json.loads(file.read_text())


def test_every_row_is_there_and_exact_rows_agree(result: dict):
    (case,) = result["cases"].values()
    assert case["shapes"] == {"m": 4, "T": 3, "V": 40, "H": 8, "dense_feature_bytes": 4 * 4 * 40 * 8}
    assert set(case["rows"]) == {*gram.programs(), *gram.RELEASE.values()}
    for name in gram.programs():
        assert_measured(case, name)
    assert case["exact_difference"] < 1e-5


@pytest.mark.torch
def test_the_release_is_timed_beside_them(result: dict):
    (case,) = result["cases"].values()
    for name in gram.RELEASE.values():
        assert_measured(case, name)


def assert_measured(case: dict, name: str) -> None:
    row = case["rows"][name]
    assert row["skipped"] is None, name
    assert row["seconds"]["runs"] == 1
    assert row["bytes"] >= 0
    if name in gram.EXACT:
        assert row["difference"] < 1e-5, name


def test_the_result_says_what_it_was_measured_on(result: dict):
    assert {"date", "commit", "hardware", "versions", "settings", "memory"} <= set(result)
    for target in result["targets"]:
        assert set(target) == {"what", "value", "limit", "at_least", "reached"}


def test_targets_name_the_issues_limits():
    row = {"seconds": {"median": 0.1}, "bytes": 5}
    shapes = {"dense_feature_bytes": 100}
    rows = {name: row for name in (*gram.programs(), *gram.RELEASE.values())}
    slow = {name: row | {"seconds": {"median": 1.0}} for name in gram.RELEASE.values()}
    case = {"rows": rows | slow, "shapes": shapes, "exact_difference": 0.0}
    found = {target.what: target for target in gram.targets({"m16": case, "m64": case, "memory": case})}
    assert found["m16: release in torch, grad of logits / exact, features"].reached
    assert found["m64: release in torch, grad of weight / exact, features"].reached is False
    assert found["memory: extra memory of exact, auto / dense features"].value == 0.05


def test_without_torch_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert release.main(["inputs.npz", "gram.npy"]) == release.NO_TORCH_STATUS
    assert capsys.readouterr().err.strip() == release.NO_TORCH
    python = tmp_path / "python"  # an interpreter without torch
    python.write_text(f"#!/bin/sh\necho '{release.NO_TORCH[:20]}' >&2\nexit 3\n")
    python.chmod(0o755)
    arrays = {name: np.ones((2, 2), np.float32) for name in ("hidden", "lm_head", "targets", "mask")}
    row, child = gram.release_row(arrays, "logits", str(python), tmp_path)
    gram.take_turns({"release": row}, repeats=1, budget=9.0)
    child.communicate()
    assert row.skipped == release.NO_TORCH[:20]
    assert row.seconds == []


def test_a_row_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "available_bytes", lambda: 2**30)
    row = gram.Row()
    assert row.fits(2**29)
    assert not row.fits(2**31)
    assert row.skipped == "needs 2.0 GiB, 1.0 GiB are available"


@pytest.mark.parametrize("options", [["--repeats=0"], ["--shape", "0", "1", "1", "1"], ["--cases", "huge"]])
def test_bad_options_exit_with_status_2(options: list[str]):
    with pytest.raises(SystemExit) as stopped:
        gram.main(options)
    assert stopped.value.code == 2


def test_targets_are_reached_missed_or_not_measured(capsys: pytest.CaptureFixture):
    report.print_targets([report.Target("a", 2.0, 1.0), report.Target("b", 1.0, 1.0), report.Target("c", None, 1.0)])
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["MISSED", "reached", "measured"]
