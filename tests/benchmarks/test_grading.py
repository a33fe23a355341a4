"""The grading benchmark on a few items: its rows are whole and right. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.benchmarks import grading
from salt_jax.graders import confine


def test_rows_are_whole_and_right(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "deep" / "grading.json"
    grading.main(["--items=28", "--workers=1", "--repeats=1", f"--json={file}"])
    result = json.loads(file.read_text())
    assert {"date", "commit", "hardware", "versions", "settings", "workers"} <= set(result)
    assert set(result["rows"]) == set(grading.ROWS)
    for name, row in result["rows"].items():
        if name == "programs" and confine.missing():
            assert "\n" not in row["skipped"]
            continue
        assert row["skipped"] is None, name
        assert row["missing"] == 0, name
        assert row["right"] == grading.ROWS[name][3] / 4, name
    assert [target["limit"] for target in result["targets"]] == [500.0, 500.0]
    assert "target: mathematics, integers: answers a second ≥ 500" in capsys.readouterr().out


def test_references_differ():
    for items in (grading.integer_items, grading.mixed_items, grading.pair_items, grading.program_items):
        _, references = items(400)
        assert len(set(references)) == 400


def test_options_out_of_range(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        grading.main(["--items=0"])
    assert "--items must be at least 1" in capsys.readouterr().err
