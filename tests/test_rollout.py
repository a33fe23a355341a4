"""The pytree of rollouts: its views, its mask, and bundles of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.rollout import RolloutBatch, bucket_length, bundle, unbundle

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


def test_trimming_keeps_the_last_prompt_and_the_first_completion_columns():
    rollouts = batch()
    trimmed = rollouts.trimmed(1, 2)
    assert trimmed.prompts.tolist() == rollouts.prompts[:, 1:].tolist()
    assert trimmed.completions.tolist() == rollouts.completions[:, :2].tolist()
    assert trimmed.prompt_mask.tolist() == rollouts.prompt_mask[:, 1:].tolist()
    assert trimmed.completion_mask.tolist() == rollouts.completion_mask[:, :2].tolist()
    assert trimmed.sampler_log_probs.shape == (N, 2)
    jax.tree.map(np.testing.assert_array_equal, rollouts.trimmed(P, T), rollouts)


@pytest.mark.parametrize(
    ("lengths", "name"), [((0, 1), "prompt"), ((3, 1), "prompt"), ((1, 0), "comp"), ((1, 4), "comp")]
)
def test_columns_that_are_not_there_cannot_be_kept(lengths, name):
    with pytest.raises(ValueError, match=f"{name}.*allowed: 1 to"):
        batch().trimmed(*lengths)


@given(limit=st.integers(1, 300), buckets=st.integers(1, 20), data=st.data())
def test_buckets_hold_what_they_are_for_and_are_few(limit, buckets, data):
    longest = data.draw(st.integers(1, limit))
    found = bucket_length(longest, limit, buckets)
    lengths = {-(-limit * i // buckets) for i in range(1, buckets + 1)}
    assert found == min(length for length in lengths if length >= longest)
    assert len(lengths) <= buckets
    assert max(lengths) == limit


@pytest.mark.parametrize("arguments", [(0, 4, 1), (5, 4, 1), (1, 4, 0)])
def test_there_is_no_bucket_for_the_impossible(arguments):
    with pytest.raises(ValueError, match="no bucket"):
        bucket_length(*arguments)


def test_loss_mask_needs_a_real_token_a_valid_row_and_a_grade():
    assert batch().loss_mask.tolist() == [[True] * 3, [False] * 3, [False] * 3, [False] * 3]
    everything = batch().replace(rewarded=jnp.ones(N, bool), valid=jnp.ones(N, bool))
    assert everything.loss_mask.sum(axis=1).tolist() == [3, 1, 2, 0]


def test_it_passes_through_jit_and_keeps_its_fields():
    out = jax.jit(lambda rollouts: rollouts.replace(rewards=rollouts.rewards + 1))(batch())
    assert out.rewards.tolist() == [1, 2, 3, 4]
    assert len(jax.tree.leaves(out)) == 8


@functools.partial(jax.jit, static_argnums=1)
def there_and_back(tree, size):
    bundled = bundle(tree, size)
    return bundled, unbundle(bundled)


@given(count=st.integers(1, 4), size=st.integers(1, 4))
def test_bundles_hold_consecutive_rows(count, size):
    rows = np.arange(count * size * 2).reshape(count * size, 2)
    tree = {"a": jnp.asarray(rows), "b": jnp.asarray(rows[:, 0])}
    bundled, back = there_and_back(tree, size)
    for i in range(count):
        assert np.asarray(bundled["a"])[i].tolist() == rows[i * size : (i + 1) * size].tolist()
        assert np.asarray(bundled["b"])[i].tolist() == rows[i * size : (i + 1) * size, 0].tolist()
    assert back["a"].tolist() == rows.tolist()
    assert back["b"].tolist() == rows[:, 0].tolist()


@pytest.mark.parametrize("size", [0, -2, 3, 8])
def test_sizes_that_do_not_divide_are_refused(size):
    with pytest.raises(ValueError, match=f"4 rows do not divide into bundles of {size}"):
        bundle(batch(), size)
