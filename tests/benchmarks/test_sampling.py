"""The sampler's benchmark on a tiny policy: bytes against the arrays themselves, and the JSON; nothing is timed."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from experiments.benchmarks import sampling
from salt_jax.learner.state import init_params
from salt_jax.policy.layers import TransformerConfig


@pytest.mark.parametrize("tied", [True, False])
def test_matrix_bytes_are_those_of_the_parameters(tied):
    policy = TransformerConfig(**sampling.POLICIES["tiny"], tied_embeddings=tied)
    params = jax.eval_shape(lambda: init_params(policy, jax.random.key(0)))
    layers = sum(x.size for x in jax.tree.leaves(params["layers"]) if x.ndim == 3)
    head = params["embedding" if tied else "head"].size
    assert sampling.matrix_bytes(policy) == 4 * (layers + head)


def test_it_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "sampling.json"
    sampling.main(["--policy=tiny", "--prompts=2", "--rollouts=2", "--prompt=3", "--new-tokens=4", "--read-mib=4",
                   "--repeats=1", "--product-size=8", f"--json={file}"])  # fmt: skip
    result = json.loads(file.read_text())
    assert result["tokens_per_second"]["whole"] > 0
    # 2 layers, 2 key/value heads of width 8, keys and values, float32: 2 prompts of 3 and 4 rollouts of 4 / 2 tokens
    assert result["memory"]["cache_bytes"] == 2 * 2 * 2 * 8 * 4 * (2 * 3 + 4 * 2)
    d, mlp, layers, vocabulary = 32, 64, 2, 512
    numbers = layers * (d * 8 * (2 * 4 + 2 * 2) + 3 * d * mlp) + d * vocabulary
    assert result["arithmetic"]["operations_a_step"] == 2 * 4 * numbers
    assert "limit by arithmetic" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--new-tokens=1"], ["--prompts=0"], ["--policy=absent"]])
def test_bad_options_exit_with_status_2(options: list[str]):
    with pytest.raises(SystemExit) as stopped:
        sampling.main(options)
    assert stopped.value.code == 2
