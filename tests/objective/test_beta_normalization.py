"""BNPO against float64 loops, its closed forms, its edges, and the golden numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import advantages
from salt_jax.objective.beta_normalization import (
    beta_parameters,
    beta_weights,
    bnpo_advantages,
    bnpo_components,
)
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.one_program import one_program
from tests.reference import advantages_family as reference

group_advantages = one_program(advantages.group_advantages)
parameters_of = jax.jit(beta_parameters)
bnpo = jax.jit(bnpo_advantages, static_argnames=("lowest", "highest", "singleton"))
components = jax.jit(bnpo_components)
weights_of = jax.jit(beta_weights)
CASES = ("2.bnpo.alpha=beta=1.5", "2.bnpo.asymmetric+degenerate", "2.bnpo.single_prompt")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, name, precision):
    inputs, expected = case(golden, name)
    rewards = np.asarray(inputs["groups"], np.float64)

    def compute(rewards):
        p = jnp.mean(rewards, axis=1)
        parameters = beta_parameters(p)
        return p, parameters, beta_weights(p, parameters.alpha, parameters.beta), bnpo_advantages(rewards)

    p, parameters, weights, made = evaluate(compute, rewards, precision=precision)
    assert_close(p, expected.get("p", rewards.mean(axis=1)), precision)
    for field in ("a", "b", "alpha", "beta"):
        assert_close(getattr(parameters, field), expected[field], precision)
    assert_close(weights, expected["weight"], precision)
    assert_close(made, expected["adv"], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_components(golden, precision):
    inputs, expected = case(golden, "2.bnpo.decomposition")
    components = np.stack([np.asarray(inputs[name], np.float64) for name in ("acc", "fmt")])
    assert_close(evaluate(bnpo_components, components, precision=precision), expected["adv"], precision)


def test_three_halves_is_grpo_with_the_population_std():
    """alpha = beta = 3/2 is the density (8/pi)·sqrt(p(1 − p)), so A = pi/8·(r − p)/std."""
    rewards = np.float32([[1.0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    grpo = group_advantages(rewards, ddof=0, eps=0.0)
    np.testing.assert_allclose(bnpo(rewards), math.pi / 8 * np.asarray(grpo), rtol=1e-5)


@given(
    rewards=hnp.arrays(np.float32, (4, 3), elements=st.sampled_from([0.0, 0.25, 1.0])),
    rewarded=hnp.arrays(np.bool_, (4, 3)),
    singleton=st.sampled_from(["zero", "reward"]),
)
def test_equals_loops(rewards, rewarded, singleton):
    garbage = np.where(rewarded, rewards, np.nan).astype(np.float64)
    expected = reference.bnpo(rewards, rewarded, singleton)
    with jax.enable_x64(True):
        result = bnpo(garbage, rewarded, singleton=singleton)
        np.testing.assert_allclose(result, expected, rtol=1e-8, atol=1e-12)
    result = bnpo(garbage.astype(np.float32), rewarded, singleton=singleton)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "rewards",
    [
        [[1, 0, 0], [0, 1, 0]],  # all prompts equally hard: var = 0
        [[1, 0, 0]],  # one prompt
        [[1, 1, 1], [0, 0, 0], [1, 0, 0]],  # var > mu(1 − mu): k < 0
    ],
)
def test_a_flat_density_is_the_deviation_exactly(rewards):
    rewards = np.array(rewards, np.float32)
    np.testing.assert_array_equal(
        bnpo(rewards), group_advantages(rewards, estimator="dr_grpo")
    )


def test_pass_rates_that_differ_by_rounding_count_as_equal():
    p = np.float32(0.3) + np.array([0, 3e-8, 0], np.float32)
    assert p.max() > p.min()
    assert [float(x) for x in parameters_of(p)] == [0, 0, 1, 1]


def test_missing_groups_are_outside_the_density():
    rewards = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], np.float32)
    more = np.concatenate([rewards, np.full((2, 4), np.nan, np.float32)])
    rewarded = np.isfinite(more)
    more[4, 1], rewarded[4, 1] = 1.0, True  # one rewarded rollout is no pass rate
    result = bnpo(more, rewarded)
    np.testing.assert_allclose(result[:3], bnpo(rewards), rtol=1e-6)
    np.testing.assert_array_equal(result[3:], np.zeros((2, 4)))


def test_a_group_of_one():
    """The release's p = 0: with a flat density A = r."""
    rewards = np.float32([[1.0], [0.5]])
    np.testing.assert_array_equal(bnpo(rewards), [[0], [0]])
    np.testing.assert_array_equal(bnpo(rewards, singleton="reward"), rewards)


def test_everything_missing():
    rewards, none = np.full((2, 3), np.nan, np.float32), np.zeros((2, 3), bool)
    np.testing.assert_array_equal(bnpo(rewards, none), np.zeros((2, 3)))
    np.testing.assert_array_equal(components(rewards[None], none), np.zeros((2, 3)))


def test_weights_at_the_ends():
    assert weights_of(jnp.array([0.0, 1.0]), 2.0, 3.0).tolist() == [1e6, 1e6]
    assert weights_of(jnp.array([0.0, 1.0]), 1.0, 1.0).tolist() == [1, 1]
    np.testing.assert_allclose(weights_of(jnp.array([0.0, 1.0]), 1.0, 2.0), [0.5, 1e6], rtol=1e-6)
    assert np.isnan(weights_of(np.float32([-0.1, 1.1]), 1.0, 1.0)).all()


def test_other_scales_of_reward():
    rewards = np.float32([[1.0, -1, -1], [1, 1, -1]])
    shifted = bnpo(rewards, lowest=-1.0, highest=1.0)
    np.testing.assert_allclose(shifted, bnpo((rewards + 1) / 2), rtol=1e-6)
    assert np.isnan(np.asarray(bnpo(rewards))[0]).all()  # a pass rate of −1/3 is not hidden


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bnpo_advantages(jnp.ones(3)), r"rewards must have shape \(B, G\)"),
        (lambda: bnpo_advantages(jnp.ones((1, 2)), jnp.ones(2)), "rewarded must have the shape"),
        (lambda: bnpo_advantages(jnp.ones((1, 2)), singleton="p"), "singleton = 'p' is unknown"),
        (lambda: bnpo_advantages(jnp.ones((1, 2)), lowest=1.0), "lowest = 1.0"),
        (lambda: bnpo_components(jnp.ones((1, 2))), r"shape \(K, B, G\)"),
        (lambda: beta_parameters(jnp.ones((1, 2))), r"p must have shape \(B,\)"),
        (lambda: beta_parameters(jnp.ones(2), jnp.ones(3)), "counted must have the shape"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scores", [[[1.0, -1.0], [1.0, 0.0]], [[1.0, 1.5], [1.0, 0.0]], [[-1.0, -1.0], [1.0, 0.0]]])
def test_scores_outside_the_unit_interval_are_not_hidden(scores):
    advantages = np.asarray(bnpo(np.float32(scores)))
    assert np.isnan(advantages[0]).all()
