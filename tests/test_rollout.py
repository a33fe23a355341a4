"""The pytree of rollouts: its views, its mask, and bundles of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.rollout import RolloutBatch, bundle, unbundle

N, P, T = 4, 2, 3


def batch():
    return RolloutBatch(
        tokens=jnp.arange(N * (P + T)).reshape(N, P + T),
        prompt_mask=jnp.array([[True, True], [False, True]] * 2),
        completion_mask=jnp.arange(T)[None] < jnp.array([3, 1, 2, 0])[:, None],
        sampler_log_probs=jnp.zeros((N, T)),
        rewards=jnp.arange(4.0),
        rewarded=jnp.array([True, True, False, True]),
        valid=jnp.array([True, False, True, True]),
        truncated=jnp.zeros(N, bool),
    )


def test_views():
    rollouts = batch()
    assert (rollouts.num_rollouts, rollouts.prompt_length) == (N, P)
    assert rollouts.prompts.tolist() == [[5 * i, 5 * i + 1] for i in range(N)]
    assert rollouts.completions.tolist() == [[5 * i + 2, 5 * i + 3, 5 * i + 4] for i in range(N)]


def test_loss_mask_needs_a_real_token_a_valid_row_and_a_grade():
    assert batch().loss_mask.tolist() == [[True] * 3, [False] * 3, [False] * 3, [False] * 3]
    everything = batch().replace(rewarded=jnp.ones(N, bool), valid=jnp.ones(N, bool))
    assert everything.loss_mask.sum(axis=1).tolist() == [3, 1, 2, 0]


def test_it_passes_through_jit_and_keeps_its_fields():
    out = jax.jit(lambda rollouts: rollouts.replace(rewards=rollouts.rewards + 1))(batch())
    assert out.rewards.tolist() == [1, 2, 3, 4]
    assert len(jax.tree.leaves(out)) == 8


@given(count=st.integers(1, 4), size=st.integers(1, 4))
def test_bundles_hold_consecutive_rows(count, size):
    rows = np.arange(count * size * 2).reshape(count * size, 2)
    tree = {"a": jnp.asarray(rows), "b": jnp.asarray(rows[:, 0])}
    bundled = bundle(tree, size)
    for i in range(count):
        assert bundled["a"][i].tolist() == rows[i * size : (i + 1) * size].tolist()
        assert bundled["b"][i].tolist() == rows[i * size : (i + 1) * size, 0].tolist()
    back = unbundle(bundled)
    assert back["a"].tolist() == rows.tolist()
    assert back["b"].tolist() == rows[:, 0].tolist()


@pytest.mark.parametrize("size", [0, -2, 3, 8])
def test_sizes_that_do_not_divide_are_refused(size):
    with pytest.raises(ValueError, match=f"4 rows do not divide into bundles of {size}"):
        bundle(batch(), size)
