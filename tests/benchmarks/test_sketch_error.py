"""The sketch-error benchmark and the harvest it reads, on tiny sizes: tables, JSON, plot. Nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs import arithmetic
from experiments.benchmarks import harvest, sketch_error


def tiny_config():
    c = arithmetic.get_config("small")
    c.warm_start.steps = 0
    c.policy.num_layers = 1
    return c


@pytest.mark.slow
def test_harvest_writes_what_the_geometry_sees(tmp_path: Path):
    harvest.main(["--out", str(tmp_path / "deep"), "--steps", "0"], config=tiny_config())
    observed = sketch_error.load(tmp_path / "deep" / "step_0.npz")
    (m, t, h), v = observed["hidden"].shape, observed["lm_head"].shape[1]
    assert (m, h) == (32, 32)
    assert observed["targets"].shape == observed["mask"].shape == (m, t)
    assert observed["advantages"].shape == (m,)
    assert np.all((observed["targets"] >= 0) & (observed["targets"] < v))
    assert observed["mask"].any(axis=1).all()


@pytest.mark.slow
def test_errors_of_every_pair_of_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, file, png = tmp_path / "small.npz", tmp_path / "deep" / "error.json", tmp_path / "docs" / "error.png"
    np.savez(data, **sketch_error.synthetic(8, 4, 12, 8, groups=2))
    arguments = ["--data", str(data), "--synthetic", "8", "4", "16", "8", "--ranks-vocab", "6", "16"]
    arguments += ["--ranks-hidden", "4", "8", "--keys=2", f"--json={file}", f"--plot={png}"]
    sketch_error.main(arguments)
    result = json.loads(file.read_text())
    assert list(result["cases"]) == ["small", "synthetic, 8 x 4"]
    for case in result["cases"].values():
        assert len(case["rows"]) == 2 * 2 * 2
        for row in case["rows"]:
            assert row["numbers"] == row["rank_vocab"] * row["rank_hidden"]
            everything = (row["rank_vocab"], row["rank_hidden"]) == (case["shapes"]["V"], case["shapes"]["H"])
            if everything:  # nothing is projected: the sketch is exact
                assert row["within"]
                assert row["worst"]["gram"] < 1e-5
            elif row["method"] == sketch_error.SIGNS:
                assert row["worst"]["gram"] > 1e-3
    assert {target["limit"] for target in result["targets"]} == {0.02, 0.995}
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "signs alone" in capsys.readouterr().out


def test_synthetic_scores_have_zero_mean_over_the_policy():
    """Tokens are drawn from the policy: what is taken has the probability that it says."""
    observed = sketch_error.synthetic(64, 16, 32, 8)
    logits = observed["hidden"] @ observed["lm_head"]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    frequency = np.bincount(observed["targets"].reshape(-1), minlength=32) / observed["targets"].size
    assert np.abs(frequency - p.mean((0, 1))).max() < 0.03
    assert observed["advantages"].shape == (64,)


@pytest.mark.parametrize("options", [["--keys=0"], ["--ranks-vocab", "0"], ["--synthetic", "0", "1", "1", "1"]])
def test_bad_options_exit_with_status_2(options: list[str]):
    with pytest.raises(SystemExit) as stopped:
        sketch_error.main(options)
    assert stopped.value.code == 2


def test_harvest_refuses_negative_steps(tmp_path: Path):
    with pytest.raises(SystemExit):
        harvest.main(["--out", str(tmp_path), "--steps", "-1"])
