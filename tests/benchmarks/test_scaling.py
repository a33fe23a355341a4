"""The scaling benchmark on tiny sizes: growth, a mesh in a process of its own, plot and JSON. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.benchmarks import scaling

TINY = ["--base-m=4", "--base-T=3", "--base-V=32", "--base-H=8", "--chunk=8", "--ranks", "8", "4", "--repeats=1"]
SIZES = ["--sizes-m", "2", "4", "--sizes-T", "3", "6", "--sizes-V", "32", "64"]


@pytest.mark.slow
def test_growth_has_slopes_a_plot_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, png = tmp_path / "deep" / "scaling.json", tmp_path / "docs" / "scaling.png"
    scaling.main([*TINY, *SIZES, "--devices", f"--json={file}", f"--plot={png}"])
    result = json.loads(file.read_text())
    assert result["shapes"] == {"m": 4, "T": 3, "V": 32, "H": 8}
    for axis in scaling.AXES:
        grown = result["growth"][axis]
        assert len(grown["sizes"]) == len(grown["exact"]) == len(grown["sketch"]) == 2
        for method in scaling.METHODS:
            assert all(cell["bytes"] > 0 for cell in grown[method])
            assert set(grown["slopes"][method]) == {"seconds", "bytes"}
    # A fixed chunk: what an exact Gram holds does not grow with the vocabulary.
    assert result["growth"]["V"]["slopes"]["exact"]["bytes"] < 0.1
    assert len(result["targets"]) == len(scaling.LIMITS)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "slope of time" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mesh_gives_what_one_device_gives():
    for split in scaling.SPLITS:
        found = scaling.forced(2, [*TINY, f"--split={split}"])
        assert {method: found[method]["difference"] < 1e-5 for method in found} == {"exact": True, "sketch": True}


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="2 devices: (?s:.*)divi"):
        scaling.forced(2, [*TINY, "--base-m=3", "--split=batch"])


@pytest.mark.parametrize("options", [["--repeats=0"], ["--sizes-m", "8"], ["--sizes-V", "0", "2"], ["--devices", "0"]])
def test_bad_options_exit_with_status_2(options: list[str]):
    with pytest.raises(SystemExit) as stopped:
        scaling.main(options)
    assert stopped.value.code == 2
