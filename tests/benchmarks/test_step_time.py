"""The step-time benchmark on tiny shapes: it runs, prints its table and writes JSON. Nothing here is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmarks import arms, report, step_time
from salt_jax.learner.state import init_params
from salt_jax.policy.layers import TransformerConfig
from salt_jax.run import config as training_config


def tiny_config():
    c = step_time.peers_config()
    c.policy.update(d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8)
    c.sampling.update(prompts_per_step=2, rollouts_per_prompt=2, max_prompt_length=4, max_new_tokens=3)
    return c


def test_the_peers_shape_has_their_number_of_parameters():
    run = training_config.parse(step_time.peers_config())
    shape = TransformerConfig(**(vars(run.policy) | {"vocab_size": step_time.VOCABULARY}))
    params = jax.eval_shape(lambda key: init_params(shape, key), jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == step_time.PARAMETERS


@pytest.mark.slow
def test_runs_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    peer = tmp_path / "peer.py"
    peer.write_text("import sys; print('peer: steady 0.125 s/step; total', sys.argv[1])\n")
    other = tmp_path / "other.py"
    other.write_text("import os; assert os.environ['BETA'] == '0'; print('steady 2.5 s/step')\n")
    file = tmp_path / "deep" / "step_time.json"
    arguments = ["--steps=2", "--rounds=2", f"--json={file}", "--peer", "one", sys.executable, str(peer)]
    arguments += ["--peer", "other", sys.executable, str(other)]
    step_time.main(arguments, config=tiny_config())

    printed = capsys.readouterr().out
    for word in (*arms.PARTS, "off median", "on min", "GLIBC_TUNABLES", "peer.py", "SALT on, over other", "target:"):
        assert word in printed
    result = json.loads(file.read_text())
    for name in ("off", "on"):
        arm = result["salt"][name]
        assert set(arm["seconds"]) == set(arms.PARTS)
        for times in arm["seconds"].values():
            assert times["runs"] == 2
            assert 0 < times["min"] <= times["median"]
        assert arm["mean_length"] <= 3
    assert result["peers"]["one"]["medians"] == [0.125, 0.125]
    assert result["peers"]["other"]["medians"] == [2.5, 2.5]
    assert [target["limit"] for target in result["targets"]] == [0.5, 0.65, 0.5, 0.65]
    assert result["shapes"]["prompts"] == 2
    assert result["hardware"]["cores"] >= 1
    assert result["versions"]["jax"] == jax.__version__
    assert {"date", "commit", "settings"} <= set(result)


def test_a_peer_that_prints_no_time_is_an_error(tmp_path: Path):
    peer = tmp_path / "peer.py"
    peer.write_text("raise SystemExit('no such module')\n")
    with pytest.raises(RuntimeError, match="no such module"):
        step_time.peer_seconds(step_time.Peer("it", sys.executable, str(peer)), steps=1)


def test_prompts_are_left_padded_letters():
    prompts, mask = step_time.random_prompts(np.random.default_rng(0), batch=3, length=5)
    assert prompts.shape == mask.shape == (3, 5)
    assert not mask[:, 0].any()
    assert mask[:, 1:].all()
    assert {chr(t - step_time.FIRST_CHARACTER) for t in prompts[mask]} <= set("abcdefghijklmnopqrstuvwxyz")


def test_reward_is_the_share_of_low_characters_and_ignores_what_is_no_character():
    low, high = step_time.FIRST_CHARACTER + 127, step_time.FIRST_CHARACTER + 128
    tokens = np.array([[low, high, high, low], [low, step_time.STOP, high, high], [step_time.STOP, low, low, low]])
    np.testing.assert_array_equal(step_time.reward(tokens, np.array([4, 2, 1])), [0.5, 1.0, 0.0])


@pytest.mark.parametrize("options", [["--steps=0"], ["--rounds=0"], ["--peer", "a", "b", "c", "--peer", "a", "d", "e"]])
def test_bad_options_exit_with_status_2(options: list[str]):
    with pytest.raises(SystemExit) as stopped:
        step_time.main(options, config=tiny_config())
    assert stopped.value.code == 2


def test_spread_and_surroundings():
    assert report.spread([2.0, 4.0, 3.0]) == {"median": 3.0, "min": 2.0, "runs": 3}
    assert json.loads(json.dumps(report.surroundings()))["hardware"]["cpu"]
