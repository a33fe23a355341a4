"""Updates of a policy's shape in the overhead benchmark, on tiny shapes. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.benchmarks import salt_overhead


@pytest.mark.slow
def test_a_policys_update_and_its_utilisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "update.json"
    arguments = ["--policy=tiny", "--rollouts=4", "--group=2", "--tokens=10", "--prompt=4", "--steps=1"]
    monkeypatch.setitem(salt_overhead.POLICIES["tiny"], "num_layers", 1)
    arguments += ["--arms", "off", "exact", "--dtype=float32", "--mfu=measured", "--matmul=16", f"--json={file}"]
    salt_overhead.main(arguments)
    result = json.loads(file.read_text())
    assert result["shapes"]["completion_tokens"] == 6
    assert set(result["arms"]) == {"off", "exact"}
    assert all(arm["extra_bytes"] > 0 for arm in result["arms"].values())
    mfu = result["mfu"]
    assert mfu["off"] > 0
    assert [target["limit"] for target in result["targets"]] == [1.10, 0.40]
    # 1 layer, width 32, q 32, k and v 16 each, MLP 64: weights of a block, and the tied head once a completion token
    block, tokens = 32 * (64 + 32) + 3 * 32 * 64, 2 * 4 + 4 * 6
    attended = 2 * 10 + 4 * (6 * 4 + 21)
    assert mfu["model_flops"] == 6 * (block * tokens + 4 * 6 * 32 * 512 + 2 * 32 * attended)
