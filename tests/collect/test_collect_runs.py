"""Whole runs with each way to collect: they train, and an interrupted one ends with the same bits."""

from __future__ import annotations

import io
import math

import jax
import numpy as np
import pytest
from rich.console import Console

from configs import arithmetic
from salt_jax.collect import COLLECTORS, Collection, CollectionError
from salt_jax.run import loop, workdir
from salt_jax.spec import ConfigError
from tests.run.test_loop import final_params

STEPS = 4
TIMINGS = {"seconds", "tokens_per_second", "grading_seconds"}
SETTINGS = {
    "dynamic": {"collection.max_batches": 3, "collection.on_exhausted": "train"},
    "reinforce_ada": {"objective.estimator": "given_baseline", "collection.max_rounds": 2},
    "reinforce_ada_est": {"objective.estimator": "given_baseline"},
    "gvm": {"objective.estimator": "raft", "collection.pilots": 4},
    "hpt": {"collection.hpt_gate": 0.25},
}


def configured(method, **sections):
    c = arithmetic.get_config("small")
    c.steps, c.warm_start.steps, c.checkpoint.every = STEPS, 0, 2
    c.policy.d_model, c.policy.mlp_dim, c.policy.head_dim, c.policy.num_layers = 16, 32, 8, 1
    c.sampling.prompts_per_step = 4
    c.salt.enabled, c.salt.measure_every = False, 0
    c.evaluation.every, c.logging.tensorboard = 0, False
    c.evaluation.problems = c.evaluation.batch_size = 8
    c.learner.length_buckets = 1  # one compiled step a run
    c.collection.method = method
    for key, value in (SETTINGS.get(method, {}) | sections).items():
        section, _, name = key.rpartition(".")
        (c[section] if section else c)[name] = value
    return c


def train(config, folder):
    return loop.train(config, folder, Console(file=io.StringIO(), width=200))


def records(folder):
    rows = workdir.read_records(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A policy that gets some sums right, from which all runs here start."""
    folder = tmp_path_factory.mktemp("started") / "run"
    config = configured("plain", steps=0)
    config.warm_start.steps = 30
    train(config, folder)
    return str(folder)


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=pytest.mark.slow) for name in COLLECTORS],  # test_interruption has one of them
)
def test_an_interrupted_run_ends_with_the_same_bits(method, started, tmp_path, monkeypatch):
    config = configured(method, init_from=started)
    train(config, tmp_path / "one")
    rows = records(tmp_path / "one")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(("collection/rollouts_sampled" in row) == (method != "plain") for row in rows)

    collect = Collection.__call__

    def until_the_last(self, state, step):
        if step == STEPS:
            raise KeyboardInterrupt
        return collect(self, state, step)

    with monkeypatch.context() as patched:
        patched.setattr(Collection, "__call__", until_the_last)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "two")
    assert len(records(tmp_path / "two")) < STEPS
    train(config, tmp_path / "two")
    assert records(tmp_path / "two") == rows
    one, two = final_params(tmp_path / "one"), final_params(tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_run_without_signal_names_the_setting(started, tmp_path):
    settings = {"collection.on_exhausted": "error", "collection.max_batches": 1}
    config = configured("dynamic", init_from=started, **settings)
    config.sampling.temperature = 1e-3  # all completions of a prompt are the same
    with pytest.raises(CollectionError, match="step 1: 1 generation batches gave 0 of 4 groups with signal; raise"):
        train(config, tmp_path / "run")


def test_solutions_and_problems_are_looked_at_before_anything_is_written(started, tmp_path):
    config = configured("hpt", init_from=started, **{"sampling.max_new_tokens": 1})
    with pytest.raises(ConfigError, match="'hpt', config.sampling.max_new_tokens = 1: the solution of example"):
        train(config, tmp_path / "run")
    config = configured("vade", init_from=started, **{"task.num_train": 3})
    with pytest.raises(ConfigError, match="prompts_per_step = 4 is too many: there are 3 problems"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
