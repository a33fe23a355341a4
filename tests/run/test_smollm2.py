"""GRPO + SALT on SmolLM2-135M, from its GGUF file to an exported folder: two steps."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from rich.console import Console

from configs import smollm2_chain_sum
from salt_jax.models.hf import export, open_checkpoint
from salt_jax.run import loop, workdir
from salt_jax.tasks.hf_tokenizer import load_tokenizer

pytestmark = pytest.mark.slow


def test_two_steps_end_to_end(tmp_path):
    config = smollm2_chain_sum.get_config("small")
    config.sampling.rollouts_per_prompt, config.sampling.max_new_tokens = 8, 12
    config.sampling.prompts_per_step = 4
    summary = loop.train(config, tmp_path / "run", Console(quiet=True))
    assert summary["steps"] == 2
    rows = workdir.read_records(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
        assert row["sampler_gap_max"] < 1e-3  # nats: a log-prob over 49,152 tokens, 30 layers deep, in float32
        assert row["missing_rewards"] == 0
        assert 1 <= row["salt/participation_ratio"] <= 8  # the unit is the group
    trained, start = open_checkpoint(tmp_path / "run"), open_checkpoint("smollm2")
    assert (trained.config, trained.stop_ids) == (start.config, start.stop_ids)
    after, before = trained.load(), start.load()
    if any(row["groups_with_signal"] > 0 for row in rows):
        assert any(jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), after, before)))
    export(after, trained.config, tmp_path / "exported", source=trained)
    exported = open_checkpoint(tmp_path / "exported")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), exported.load(), after)  # bfloat16
    ours, theirs = (load_tokenizer(of.tokenizer_source, vocab_size=49_152) for of in (exported, start))
    assert ours.encode_prompt("What is 12 + 345?") == theirs.encode_prompt("What is 12 + 345?")
