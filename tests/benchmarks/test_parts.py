"""The benchmark of SALT's parts on a tiny configuration. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs import arithmetic
from experiments.benchmarks import parts


@pytest.mark.slow
def test_every_part_has_a_row(tmp_path: Path, capsys):
    config = arithmetic.get_config("small")
    config.warm_start.steps = 0
    config.policy.num_layers = 1
    file = tmp_path / "parts.json"
    parts.main(["--repeats=2", f"--json={file}"], config=config)
    result = json.loads(file.read_text())
    assert result["shapes"]["rollouts"] == 32
    assert len(result["seconds"]) == 6
    printed = capsys.readouterr().out
    for name, spread in result["seconds"].items():
        assert spread["runs"] == 2
        assert name in printed
