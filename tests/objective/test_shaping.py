"""Reward shaping against loops, at its edges, and against the golden numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import shaping
from salt_jax.objective.shaping import CLUSTER_FORMS
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.one_program import one_program
from tests.reference import advantages_family as reference

cluster_rewards, diversity = one_program(shaping.cluster_rewards), one_program(shaping.diversity)
kl_in_reward, overlong_penalty = one_program(shaping.kl_in_reward), one_program(shaping.overlong_penalty)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_overlong(golden, precision):
    inputs, expected = case(golden, "1.dapo.overlong")
    result = evaluate(
        lambda n: overlong_penalty(n, inputs["L_max"], inputs["L_cache"]), inputs["lengths"], precision=precision
    )
    assert_close(result, expected["penalty"], precision)


@pytest.mark.parametrize("floor", [True, False])
@pytest.mark.parametrize(("max_length", "buffer"), [(10, 4), (10, 10), (10, 1)])
def test_overlong_equals_the_formula(max_length, buffer, floor):
    lengths = np.arange(25).reshape(5, 5)
    result = np.asarray(overlong_penalty(lengths, max_length, buffer, floor=floor))
    for n, penalty in zip(lengths.reshape(-1), result.reshape(-1), strict=True):
        if n <= max_length - buffer:
            expected = 0.0
        elif n <= max_length or not floor:
            expected = (max_length - buffer - n) / buffer
        else:
            expected = -1.0
        np.testing.assert_allclose(penalty, expected, rtol=1e-6)


@pytest.mark.parametrize("floor", [True, False])
def test_without_a_buffer_there_is_a_step(floor):
    assert overlong_penalty(np.array([9, 10, 11, 99]), 10, 0, floor=floor).tolist() == [0, 0, -1, -1]


def test_long_limits_lose_no_token():
    """Beyond 2^24 float32 has no odd numbers."""
    result = overlong_penalty(np.array([2**25 - 3]), 2**25, 4)
    np.testing.assert_array_equal(result, [-0.25])


@given(
    log_probs=hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-8, 0, width=32)),
    mask=hnp.arrays(np.bool_, (3, 4)),
    rewards=hnp.arrays(np.float32, 3, elements=st.floats(-20, 20, width=32)),
    clip=st.sampled_from([None, 10.0]),
)
def test_kl_in_reward_equals_loops(log_probs, mask, rewards, clip):
    expected = []
    for n, reward in enumerate(rewards):
        kl = sum(float(log_probs[0, n, t]) - float(log_probs[1, n, t]) for t in range(4) if mask[n, t])
        limit = np.inf if clip is None else clip
        expected.append(max(-limit, min(limit, float(reward))) - 0.5 * kl)
    policy, ref = np.where(mask, log_probs, np.nan)
    result = kl_in_reward(rewards, policy, ref, mask, 0.5, clip=clip)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_kl_in_reward_has_no_gradient_and_leaves_empty_rows_alone():
    def total(log_probs):
        return jnp.sum(kl_in_reward(jnp.array([1.0, 2.0]), log_probs, log_probs - 1, jnp.array([[1, 1], [0, 0]]), 0.1))

    value, gradient = jax.jit(jax.value_and_grad(total))(np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(value, 1.0 - 0.2 + 2.0, rtol=1e-6)
    np.testing.assert_array_equal(gradient, np.zeros((2, 2)))


@given(
    clusters=hnp.arrays(np.int32, (3, 4), elements=st.integers(-1, 2)),
    counted=hnp.arrays(np.bool_, (3, 4)),
    rewards=hnp.arrays(np.float32, (3, 4), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0])),
    options=st.fixed_dictionaries(
        {
            "floor": st.sampled_from([0.0, 0.1]),
            "form": st.sampled_from(CLUSTER_FORMS),
            "add_bias": st.booleans(),
            "correct": st.none() | hnp.arrays(np.bool_, (3, 4)),
        }
    ),
)
def test_cluster_rewards_equal_loops(clusters, counted, rewards, options):
    options = options | {"lambda_reward": 0.5, "lambda_diversity": 3.0}
    apart = diversity(clusters, counted)
    np.testing.assert_allclose(apart, reference.diversity(clusters, counted), rtol=1e-6)
    result = cluster_rewards(np.where(counted, rewards, np.nan), clusters, counted, **options)
    expected = reference.cluster_rewards(rewards, clusters, counted, **options)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(result)[~counted], 0)


def test_golden_darling_rewards(golden):
    text = (golden / "selection_vectors.txt").read_text().split("== 5 DARLING")[1]
    rewards, clusters = np.float32([[1.0, 0.0, 1.0, 1.0]]), np.array([[0, 0, 1, 2]])
    assert "Div = [0.6666666667, 0.6666666667, 1, 1]" in text
    np.testing.assert_allclose(np.asarray(diversity(clusters))[0], [0.6666666667, 0.6666666667, 1, 1], rtol=1e-6)
    assert "r_darling = [0.6666666667, 0, 1, 1]" in text
    for floor in (0.0, 0.1):
        shaped = cluster_rewards(rewards, clusters, floor=floor)
        np.testing.assert_allclose(np.asarray(shaped)[0], [0.6666666667, 0, 1, 1], rtol=1e-6)
    assert "all one cluster, floor .1: r_darling = [0.1, 0.1, 0.1, 0.1]" in text
    np.testing.assert_allclose(
        cluster_rewards(np.ones((1, 4), np.float32), np.zeros((1, 4), int), floor=0.1), [[0.1] * 4], rtol=1e-6
    )
    assert "add_bias: r-min(r) = [0, 1.5, 3, 1]" in text
    unlike = np.arange(4)[None, :]
    shifted = cluster_rewards(np.float32([[-1.0, 0.5, 2.0, 0.0]]), unlike, add_bias=True)
    np.testing.assert_array_equal(shifted, [[0, 1.5, 3, 1]])


def test_names_of_clusters_mean_nothing():
    clusters = np.array([[0, 0, 1, 2], [5, 7, 7, 7]])
    np.testing.assert_array_equal(diversity(clusters), diversity(-clusters * 3 + 11))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: overlong_penalty(x, 0, 0), "max_length = 0"),
        (lambda x: overlong_penalty(x, 4, 5), "buffer = 5 .* max_length = 4"),
        (lambda x: overlong_penalty(x, 4, -1), "buffer = -1"),
        (lambda x: kl_in_reward(x[0], x, x, x, -0.1), "coef = -0.1"),
        (lambda x: kl_in_reward(x[0], x, x, x, 0.1, clip=-1.0), "clip = -1.0"),
        (lambda x: kl_in_reward(x[0, :1], x, x, x, 0.1), r"rewards must have shape \(N,\)"),
        (lambda x: kl_in_reward(x[0], x, x[:, :1], x, 0.1), "must have the shape"),
        (lambda x: diversity(x[0]), r"clusters must have shape \(B, G\)"),
        (lambda x: diversity(x, x[:1]), "counted must have the shape"),
        (lambda x: cluster_rewards(x, x[:1]), "clusters must have the shape"),
        (lambda x: cluster_rewards(x, x, form="times"), "form = 'times' is unknown; allowed: multiply, add"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(np.ones((2, 2), np.float32))
    assert "\n" not in str(error.value)
