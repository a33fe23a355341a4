"""The same configuration and seed: the same bits. Microbatches split or ordered otherwise: the same, to rounding."""

from __future__ import annotations

import io
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

from configs import arithmetic
from salt_jax.run import loop, workdir
from tests import training_setup as setup

STEPS = 3
TIMINGS = {"seconds", "tokens_per_second", "grading_seconds"}
RECORDS = (workdir.METRICS, workdir.EVALUATIONS, workdir.WARM_START)


def run(folder: Path, **learner: int) -> Path:
    """The small configuration, tiny, from the first step to the last."""
    config = arithmetic.get_config("small")
    config.steps, config.warm_start.steps = STEPS, 4
    config.policy.d_model, config.policy.mlp_dim, config.policy.head_dim = 16, 32, 8
    config.policy.num_layers, config.seed = 1, 7  # with this seed a step has a group with signal
    config.evaluation.every, config.logging.tensorboard = 2, False
    config.learner.length_buckets = 1  # one program a run
    config.learner.update(learner)
    loop.train(config, folder, Console(file=io.StringIO()))
    return folder


def records(folder: Path) -> dict[str, list[dict]]:
    """All that was recorded but how long it took."""
    return {
        name: [{k: v for k, v in row.items() if k not in TIMINGS} for row in workdir.read_records(folder / name)]
        for name in RECORDS
    }


def final_state(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, by its path."""
    with ocp.CheckpointManager(folder / "checkpoints" / "train") as manager:
        items = {name: ocp.args.StandardRestore() for name in ("params", "state")}
        found = manager.restore(STEPS, args=ocp.args.Composite(**items))
    leaves = jax.tree_util.tree_leaves_with_path({name: found[name] for name in items})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return run(tmp_path_factory.mktemp("once") / "run")


def test_two_runs_have_the_same_bits(once, tmp_path):
    again = run(tmp_path / "run")
    assert records(again) == records(once)
    assert [len(rows) for rows in records(once).values()] == [STEPS, 3, 4]
    assert any(row["groups_with_signal"] for row in records(once)[workdir.METRICS])
    ours, theirs = final_state(once), final_state(again)
    assert any("params" in path for path in ours)
    assert any("opt_state" in path for path in ours)
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path].tobytes() != theirs[path].tobytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [2, 4])
def test_a_run_in_microbatches_is_the_same_run(microbatches, once, tmp_path):
    parts = run(tmp_path / "run", microbatches=microbatches)
    assert records(parts)[workdir.WARM_START] == records(once)[workdir.WARM_START]
    for ours, theirs in zip(records(parts)[workdir.METRICS], records(once)[workdir.METRICS], strict=True):
        assert ours.keys() == theirs.keys()
        # what was sampled is the same, token by token
        for name in ("reward", "accuracy", "completion_length", "truncated", "groups_with_signal"):
            assert ours[name] == theirs[name], name
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-4), name
    # Adam divides by the root of tiny second moments, so that rounding can show; one update is 1e-3
    whole, split = final_state(once), final_state(parts)
    for path in (path for path in whole if "params" in path):
        np.testing.assert_allclose(split[path], whole[path], atol=2e-5, rtol=1e-3, err_msg=path)


@pytest.mark.parametrize(
    ("salt", "microbatches"),
    [(False, 4), pytest.param(True, 2, marks=pytest.mark.slow), pytest.param(True, 4, marks=pytest.mark.slow)],
)
def test_microbatches_in_another_order_give_the_same_gradient(salt, microbatches):
    """The last group first: with four microbatches, each is a group, and they are added up from the other end."""
    settings = {"learner.microbatches": microbatches, "salt.enabled": salt}
    batch = setup.rollouts()
    backwards = np.arange(16).reshape(4, 4)[::-1].reshape(-1)
    state, metrics = setup.run_step(settings)
    turned, seen = setup.run_step(settings, batch=setup.take_rows(batch, backwards))
    whole = setup.run_step(settings | {"learner.microbatches": 1})[0]
    assert setup.largest_difference(state.params, setup.initial_state().params) > 1e-3
    assert setup.largest_difference(whole.params, state.params) <= 1e-5
    assert setup.largest_difference(turned.params, state.params) <= 1e-6
    for name, value in metrics.items():
        np.testing.assert_allclose(seen[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    assert setup.same_bits(setup.run_step(settings), (state, metrics))
