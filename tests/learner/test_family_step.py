"""The step with methods that decide token by token: how a minibatch is split changes nothing, and what they report."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from salt_jax.learner.weighing import Batch, signals_of
from salt_jax.objective.signals import example_rollouts
from tests.training_setup import edited, initial_state, largest_difference, rollouts, run_step, tiny_run

FAMILIES = {
    "gtpo, conflicts, importance, kl_cov": {
        "objective.estimator": "gtpo", "objective.gtpo_threshold": float("inf"), "objective.tokens": "conflict",
        "objective.importance": "sequence", "objective.importance_normalize": True,
        "objective.surrogate": "kl_cov", "objective.kl_cov_fraction": 0.3,
    },
    "reinforce_pp, kl in the reward, d3s tokens, lp_reg": {
        "objective.estimator": "reinforce_pp", "objective.kl_in": "reward", "objective.kl_estimator": "k1",
        "objective.kl_coef": 0.1, "objective.tokens": "d3s", "objective.surrogate": "lp_reg",
        "objective.lp_reg_form": "paper", "objective.lp_reg_fraction": 0.9, "objective.lp_reg_kappa": 0.1,
    },
    "copg, truncated rows dropped, clip_cov": {
        "objective.estimator": "copg", "objective.filters": "not_truncated",
        "objective.surrogate": "clip_cov", "objective.clip_cov_fraction": 0.5, "objective.clip_cov_low": 0.0,
        "salt.enabled": False,
    },
    "demonstrations, pods, macro-actions": {
        "objective.filters": "pods", "objective.pods_keep": 2, "objective.surrogate": "macro_mean",
        "objective.macro_length": 2, "objective.aggregation": "seq_mean_token_mean",
        "objective.demonstration_coef": 0.3, "collection.method": "hpt",
    },
}  # fmt: skip


def graded(demonstrations: bool = False):
    """The usual rollouts; the first rows of the unanimous group are a demonstration and padding."""
    batch = rollouts()
    if not demonstrations:
        return batch
    shown = np.arange(16) == 8
    valid = edited(batch.valid, slice(9, 12), False)
    return dataclasses.replace(batch, valid=valid, extra={"demonstration": shown})


SILENCED = {"objective.filters": "winners", "objective.aggregation": "dr_grpo"}
QUICK = ("demonstrations, pods, macro-actions",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_microbatches_change_nothing(name):
    batch = graded("demonstrations" in name)
    whole, seen = run_step(FAMILIES[name], batch=batch)
    parts, of_parts = run_step(FAMILIES[name] | {"learner.microbatches": 4}, batch=batch)
    start = initial_state().params
    assert largest_difference(whole.params, start) > 1e-3
    assert largest_difference(whole.params, parts.params) < 1e-5
    for metric in ("loss", "chosen_fraction", "token_weight_mean", "demonstration_nll", "filtered", "kl_ref"):
        assert (metric in seen) == (metric in of_parts)
        if metric in seen:
            np.testing.assert_allclose(seen[metric], of_parts[metric], rtol=1e-4, atol=1e-6, err_msg=metric)
    if "cov" in name or "lp_reg" in name:
        assert 0 < float(seen["chosen_fraction"]) < 1


def test_salt_does_not_see_demonstrations_nor_rows_that_a_filter_silenced():
    """Other tokens in the rows it must not see: not one number of the geometry changes."""
    batch = graded(demonstrations=True)
    other = np.where((np.arange(16) == 8)[:, None], (np.asarray(batch.tokens) + 1) % 12, batch.tokens)
    names = ("salt/alpha", "salt/participation_ratio", "salt/n_eff", "salt/cosine")
    settings = FAMILIES["demonstrations, pods, macro-actions"]
    one = run_step(settings, batch=batch)[1]
    two = run_step(settings, batch=dataclasses.replace(batch, tokens=other))[1]
    assert one["demonstration_nll"] != two["demonstration_nll"]
    for name in names:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, err_msg=name)

    losers = np.asarray(batch.rewards) < 0.5
    tokens = np.asarray(rollouts().tokens)
    changed = np.where(losers[:, None], (tokens + 1) % 12, tokens)
    changed[:, :3] = tokens[:, :3]  # prompts stay: they are shared
    one, two = (run_step(SILENCED, batch=rollouts().replace(tokens=x)) for x in (tokens, changed))
    for name in names:
        np.testing.assert_allclose(one[1][name], two[1][name], rtol=1e-4, err_msg=name)
    assert largest_difference(one[0].params, two[0].params) < 1e-5


def test_a_batch_of_which_a_filter_leaves_nothing_moves_nothing():
    batch = dataclasses.replace(graded(), rewards=np.zeros(16, np.float32))
    new, seen = run_step(SILENCED, batch=batch)
    assert largest_difference(new.params, initial_state().params) == 0
    assert float(seen["filtered"]) == 1
    assert np.isfinite(list(map(float, seen.values()))).all()


def test_schedules_begin_with_the_first_step_and_end_with_the_last():
    run, batch = tiny_run({"steps": 5}), Batch(example_rollouts([1.0]))
    states = (initial_state().replace(step=step) for step in range(5))
    found = [signals_of(run, state, batch, None, jax.random.key(0)).progress for state in states]
    assert found == [0, 0.25, 0.5, 0.75, 1]
