"""The overhead benchmark on tiny shapes: whole steps. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs import arithmetic
from experiments.benchmarks import salt_overhead


@pytest.mark.slow
def test_whole_steps_print_a_table_and_write_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = arithmetic.get_config("small")
    config.warm_start.steps = 0
    config.policy.num_layers = 1
    config.learner.length_buckets = 1
    file = tmp_path / "deep" / "overhead.json"
    salt_overhead.main(["--steps=2", "--warm-up=1", f"--json={file}"], config=config)
    result = json.loads(file.read_text())
    assert set(result["arms"]) == {"off", "exact", "sketch"}
    for arm in result["arms"].values():
        assert {part: times["runs"] for part, times in arm["seconds"].items()} == {
            "sample": 2, "reward": 2, "update": 2, "step": 2
        }  # fmt: skip
        assert arm["over_off"]["low"] <= arm["over_off"]["ratio"] <= arm["over_off"]["high"]
    assert result["arms"]["off"]["over_off"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    assert [target["limit"] for target in result["targets"]] == [1.10, 1.03]
    assert result["shapes"]["rollouts"] == 32
    printed = capsys.readouterr().out
    for word in ("exact", "sketch", "over off", "target: exact over off ≤ 1.1", "GLIBC_TUNABLES"):
        assert word in printed


def test_the_interval_is_over_rounds():
    """A slow spell that hits both arms in the same round leaves their ratio alone."""
    machine = np.array([1.0, 1.0, 5.0, 1.0, 9.0])
    assert salt_overhead.ratio(1.5 * machine, machine) == {"ratio": 1.5, "low": 1.5, "high": 1.5}


BAD = [["--steps=0"], ["--arms", "exact"], ["--mfu=measured"], ["--policy=tiny", "--tokens=4", "--prompt=4"]]


@pytest.mark.parametrize("options", BAD)
def test_bad_options_exit_with_status_2(options: list[str]):
    with pytest.raises(SystemExit) as stopped:
        salt_overhead.main(options)
    assert stopped.value.code == 2
