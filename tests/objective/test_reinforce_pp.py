"""REINFORCE++ against float64 loops, at its edges, and against the golden numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import reinforce_pp
from salt_jax.objective.advantages import group_advantages
from salt_jax.objective.reinforce_pp import (
    VARIANCES,
    reinforce_pp_advantages,
    reinforce_pp_baseline,
    token_returns,
)
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.one_program import one_program
from tests.reference import advantages_family as reference

whiten = one_program(reinforce_pp.whiten)
returns_of = jax.jit(token_returns, static_argnames="gamma")
advantages = jax.jit(reinforce_pp_advantages, static_argnames=("gamma", "variance", "eps"))
GOLDEN = {"unbiased": "verl_unbiased_var", "biased": "openrlhf_biased_var"}


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, precision, variance):
    inputs, expected = case(golden, "1.reinforce++ (gamma=1, k=0)")
    rewards, mask = np.asarray(inputs["final_rewards"], np.float64), np.array(inputs["mask"], bool)
    np.testing.assert_array_equal(mask.sum(axis=1), inputs["lengths"])
    assert_close(evaluate(token_returns, rewards, mask, precision=precision), inputs["returns"], precision)
    result = evaluate(
        lambda r, m: reinforce_pp_advantages(r, m, variance=variance), rewards, mask, precision=precision
    )
    assert_close(result, expected[GOLDEN[variance]], precision)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_baseline(golden, precision, variance):
    inputs, expected = case(golden, "1.reinforce++_baseline")
    rewards = np.asarray(inputs["rewards"], np.float64)
    centred = one_program(group_advantages)(rewards, estimator="dr_grpo")
    np.testing.assert_array_equal(centred.reshape(-1), inputs["group_centered"])
    result = evaluate(
        lambda r, m: reinforce_pp_baseline(r, m, group_size=2, variance=variance),
        rewards.reshape(-1),
        np.ones((4, inputs["lengths"]), bool),
        precision=precision,
    )
    assert_close(np.asarray(result)[:, 0], expected[GOLDEN[variance]], precision)


@given(
    # eighths and halvings: sums are exact in float32 too, so that a tiny spread is no rounding blown up by eps
    rewards=hnp.arrays(np.float32, 4, elements=st.integers(-16, 16).map(lambda i: i / 8)),
    token_rewards=hnp.arrays(np.float32, (4, 5), elements=st.integers(-8, 8).map(lambda i: i / 8)),
    mask=hnp.arrays(np.bool_, (4, 5)),
    rewarded=hnp.arrays(np.bool_, 4),
    gamma=st.sampled_from([1.0, 0.5, 0.0]),
    variance=st.sampled_from(VARIANCES),
)
def test_equals_loops(rewards, token_rewards, mask, rewarded, gamma, variance):
    seen = mask & rewarded[:, None]
    returns = reference.token_returns(rewards, seen, token_rewards, gamma)
    expected = reference.whiten(returns, seen, variance)
    options = {"rewarded": rewarded, "gamma": gamma, "variance": variance}
    garbage = np.where(rewarded, rewards, np.nan), np.where(mask, token_rewards, np.nan)
    with jax.enable_x64(True):
        rewards64, tokens64 = (x.astype(np.float64) for x in garbage)
        result = advantages(rewards64, mask, token_rewards=tokens64, **options)
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)
    result = advantages(garbage[0], mask, token_rewards=garbage[1], **options)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(np.asarray(result)[~seen], 0)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variance", VARIANCES)
def test_baseline_equals_loops_under_jit(variance):
    rng = np.random.default_rng(0)
    rewards, mask = rng.normal(size=6).astype(np.float32), rng.random((6, 4)) < 0.7
    rewarded = np.array([True, True, False, True, False, False])
    centred = reference.group_advantages(
        rewards.reshape(2, 3), estimator="dr_grpo", rewarded=rewarded.reshape(2, 3)
    ).reshape(-1)
    seen = mask & rewarded[:, None]
    expected = reference.whiten(reference.token_returns(centred, seen), seen, variance)
    compute = jax.jit(lambda r, m, k: reinforce_pp_baseline(r, m, group_size=3, rewarded=k, variance=variance))
    result = compute(np.where(rewarded, rewards, np.nan), mask, rewarded)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_order_and_padding_change_nothing():
    rng = np.random.default_rng(1)
    rewards, mask = rng.normal(size=5).astype(np.float32), np.arange(6)[None, :] < rng.integers(1, 6, 5)[:, None]
    result = advantages(rewards, mask, gamma=0.9)
    order = rng.permutation(5)
    again = advantages(rewards[order], mask[order], gamma=0.9)
    np.testing.assert_allclose(again, np.asarray(result)[order], rtol=1e-5, atol=1e-6)
    wider = advantages(rewards, np.pad(mask, ((0, 2), (3, 1)))[:5], gamma=0.9)
    np.testing.assert_allclose(np.asarray(wider)[:, 3:-1], result, rtol=1e-5, atol=1e-6)


def test_gaps_neither_discount_nor_end_a_rollout():
    result = returns_of(np.float32([1.0]), np.array([[1, 0, 0, 1, 1]]), gamma=0.5)
    np.testing.assert_array_equal(result, [[0.25, 0, 0, 0.5, 1]])


def test_long_discounts():
    returns = returns_of(np.ones(1, np.float32), np.ones((1, 2000), bool), gamma=0.999)
    np.testing.assert_allclose(np.asarray(returns)[0], 0.999 ** np.arange(1999, -1, -1), rtol=1e-4)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("tokens", [0, 1, 6])
def test_no_spread_is_exactly_zero(variance, tokens):
    mask = np.arange(6).reshape(2, 3) < tokens
    np.testing.assert_array_equal(whiten(np.full((2, 3), 0.1, np.float32), mask, variance), np.zeros((2, 3)))
    assert np.isfinite(advantages(np.float32([1.0, 0.0]), mask, variance=variance)).all()


def test_no_gradient_flows():
    gradient = jax.grad(lambda k: jnp.sum(reinforce_pp_advantages(jnp.ones(2), jnp.ones((2, 2)), token_rewards=k)))
    np.testing.assert_array_equal(jax.jit(gradient)(jnp.array([[1.0, 2], [3, 4]])), np.zeros((2, 2)))


def test_nan_among_the_rewarded_is_not_hidden():
    assert np.isnan(advantages(np.float32([np.nan, 1.0]), np.ones((2, 2)))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_returns(jnp.ones(2), jnp.ones((2, 3)), gamma=1.5), "gamma = 1.5"),
        (lambda: token_returns(jnp.ones(2), jnp.ones(2)), r"mask must have shape \(N, T\)"),
        (lambda: token_returns(jnp.ones(3), jnp.ones((2, 3))), "final_rewards must have shape"),
        (lambda: token_returns(jnp.ones(2), jnp.ones((2, 3)), jnp.ones(2)), "token_rewards must have the shape"),
        (lambda: whiten(jnp.ones((2, 3)), jnp.ones((2, 2))), "values must have the shape"),
        (lambda: whiten(jnp.ones((2, 3)), jnp.ones((2, 3)), eps=0.0), "eps = 0.0"),
        (lambda: reinforce_pp_advantages(jnp.ones(2), jnp.ones((2, 3)), variance="x"), "variance = 'x' .*: unbiased"),
        (lambda: reinforce_pp_advantages(jnp.ones(2), jnp.ones((2, 3)), rewarded=jnp.ones(3)), "rewarded must have"),
        (lambda: reinforce_pp_baseline(jnp.ones(3), jnp.ones((3, 1)), group_size=2), "group_size = 2"),
        (
            lambda: reinforce_pp_baseline(jnp.ones(2), jnp.ones((2, 1)), group_size=2, rewarded=jnp.ones(3)),
            "rewarded must have the shape",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
