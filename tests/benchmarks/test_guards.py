"""The guards' benchmark on tiny shapes. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs import arithmetic
from experiments.benchmarks import guards


@pytest.mark.slow
def test_both_arms_do_the_same_and_are_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = arithmetic.get_config("small")
    config.warm_start.steps, config.policy.num_layers, config.learner.length_buckets = 0, 1, 1
    file = tmp_path / "deep" / "guards.json"
    guards.main(["--steps=2", "--warm-up=1", f"--json={file}"], config=config)
    result = json.loads(file.read_text())
    assert set(result["arms"]) == {"unguarded", "guarded"}
    assert result["arms"]["unguarded"]["over_unguarded"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    for arm in result["arms"].values():
        assert {times["runs"] for times in arm["seconds"].values()} == {2}
    free, guarded = (result["arms"][name]["extra_bytes"] for name in ("unguarded", "guarded"))
    assert guarded - free < 4 * result["shapes"]["parameters"] / 10  # no second copy of anything
    assert [target["limit"] for target in result["targets"]] == [1.02]
    assert "target: guarded over unguarded ≤ 1.02" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--steps=0"], ["--warm-up=0"]])
def test_bad_options_exit_with_status_2(options: list[str]):
    with pytest.raises(SystemExit) as stopped:
        guards.main(options)
    assert stopped.value.code == 2
