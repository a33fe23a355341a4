"""Group advantages against float64 loops, at their edges, and against the golden vectors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import ESTIMATORS, ObjectiveConfig, group_advantages
from salt_jax.objective.objective import advantages as flat_advantages
from tests.reference import objective as reference


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("jit", [False, True])
def test_equals_loops(estimator, ddof, jit):
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(5, 6)).astype(np.float32)
    rewarded = rng.random((5, 6)) < 0.7

    def compute(rewards, rewarded):
        return group_advantages(rewards, estimator=estimator, ddof=ddof, eps=1e-4, rewarded=rewarded)

    result = (jax.jit(compute) if jit else compute)(rewards, rewarded)
    expected = reference.group_advantages(
        rewards, estimator=estimator, ddof=ddof, eps=1e-4, rewarded=rewarded
    )
    assert result.shape == (5, 6)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [0.1, -0.7, 1e6])
@pytest.mark.parametrize("group_size", [1, 7, 10])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_equal_rewards_give_exactly_zero(estimator, value, group_size, eps):
    rewards = jnp.full((3, group_size), value, jnp.float32)
    result = group_advantages(rewards, estimator=estimator, eps=eps)
    np.testing.assert_array_equal(result, np.zeros((3, group_size)))


def test_float_residue_is_the_reason_for_the_gate():
    """In float32 the mean of ten 0.1 is not 0.1, so (r − mean) / (std + eps) alone is far from 0."""
    rewards = np.full(10, 0.1, np.float32)
    mean = np.cumsum(rewards, dtype=np.float32)[-1] / np.float32(10)
    residue = (rewards - mean) / (np.std(rewards - mean) + 1e-6)
    assert np.abs(residue).max() > 1e-3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_missing_rewards_equal_the_subset(estimator):
    rewards = np.array([[1.0, np.nan, 0.0, 0.25, np.inf, 1.0]], np.float32)
    rewarded = np.isfinite(rewards)
    result = group_advantages(rewards, estimator=estimator, rewarded=rewarded)
    subset = group_advantages(rewards[rewarded][None], estimator=estimator)
    np.testing.assert_array_equal(result[~rewarded], 0)
    np.testing.assert_allclose(result[rewarded], subset[0], rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_or_one_rewarded_gives_zero(estimator):
    rewards = jnp.array([[1.0, 2.0, 3.0], [jnp.nan, 5.0, jnp.nan]])
    rewarded = jnp.array([[False, False, False], [False, True, False]])
    np.testing.assert_array_equal(
        group_advantages(rewards, estimator=estimator, rewarded=rewarded), np.zeros((2, 3))
    )


def test_nan_that_counts_as_rewarded_is_not_hidden():
    result = group_advantages(jnp.array([[1.0, jnp.nan], [1.0, 0.0]]))
    assert np.isnan(result[0]).all()
    assert np.isfinite(result[1]).all()


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float16, jnp.bfloat16])
def test_any_real_dtype_is_computed_in_float32(dtype):
    rewards = np.array([[1, 0, 0, 1]]).astype(dtype)
    result = group_advantages(rewards, estimator="dr_grpo")
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, [[0.5, -0.5, -0.5, 0.5]])


@settings(max_examples=25, deadline=None)
@given(
    rewards=hnp.arrays(np.float32, (2, 4), elements=st.floats(-1e3, 1e3, width=32)),
    rewarded=hnp.arrays(np.bool_, (2, 4)),
    estimator=st.sampled_from(sorted(ESTIMATORS)),
)
def test_wild_rewards(rewards, rewarded, estimator):
    result = np.asarray(group_advantages(rewards, estimator=estimator, rewarded=rewarded))
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result[~rewarded], 0)
    np.testing.assert_allclose(result.sum(axis=1), 0, atol=3e-3 if estimator != "grpo" else 1e-2)
    for row in range(2):
        values = rewards[row][rewarded[row]]
        if len(values) < 2 or values.max() == values.min():
            np.testing.assert_array_equal(result[row], 0)


def test_permuting_a_group_permutes_its_advantages():
    rewards = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
    order = np.random.default_rng(2).permutation(8)
    np.testing.assert_allclose(
        group_advantages(rewards[:, order]), group_advantages(rewards)[:, order], rtol=1e-5, atol=1e-6
    )


def test_flat_batch_equals_groups():
    config = ObjectiveConfig(estimator="rloo")
    rewards = np.random.default_rng(3).normal(size=12).astype(np.float32)
    rewarded = np.arange(12) != 5
    result = flat_advantages(rewards, 4, config, rewarded)
    expected = reference.group_advantages(
        rewards.reshape(3, 4), estimator="rloo", rewarded=rewarded.reshape(3, 4)
    )
    np.testing.assert_allclose(result, expected.reshape(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: group_advantages(jnp.ones((2, 2)), estimator="ppo"),
            "estimator = 'ppo'.*grpo, dr_grpo, rloo",
        ),
        (lambda: group_advantages(jnp.ones(4)), r"rewards must have shape \(B, G\), got \(4,\)"),
        (lambda: group_advantages(jnp.ones((2, 2)), ddof=2), "ddof = 2"),
        (lambda: group_advantages(jnp.ones((2, 2)), eps=-1.0), "eps = -1.0"),
        (lambda: group_advantages(jnp.ones((2, 2)), eps=float("nan")), "eps = nan"),
        (lambda: group_advantages(jnp.ones((2, 2)), rewarded=jnp.ones(2)), "rewarded must have the shape"),
        (lambda: flat_advantages(jnp.ones(5), 2, ObjectiveConfig()), "5 rewards .* group_size = 2"),
        (lambda: flat_advantages(jnp.ones((2, 2)), 2, ObjectiveConfig()), r"shape \(N,\)"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_golden_vectors(golden):
    case = json.loads((golden / "methods_vectors.json").read_text())["1.adv.group[1,0,0,1]"]
    rewards = np.array([case["inputs"]["rewards"]])
    expected = case["outputs"]
    calls = {
        "grpo_sample_std_eps1e6": {},
        "grpo_sample_std_eps1e4_TRL": {"eps": 1e-4},
        "grpo_pop_std_eps1e6": {"ddof": 0},
        "dr_grpo": {"estimator": "dr_grpo"},
        "rloo": {"estimator": "rloo"},
    }
    for name, options in calls.items():
        np.testing.assert_allclose(group_advantages(rewards, **options)[0], expected[name], rtol=1e-5)
        with jax.enable_x64(True):
            np.testing.assert_allclose(group_advantages(rewards, **options)[0], expected[name], rtol=1e-12)
    np.testing.assert_array_equal(group_advantages(np.ones((1, 3)))[0], expected["zero_std_group_111"])
