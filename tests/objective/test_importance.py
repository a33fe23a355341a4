"""Truncated importance weights against loops, their masks, and golden numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import importance
from salt_jax.objective.importance import MODES
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.one_program import one_program

importance_weights = one_program(importance.importance_weights)

N, T = 3, 4


def loops(old, sampler, mask, mode, low, high, normalize):
    result, values = np.zeros(np.shape(old)), []
    for n in range(len(old)):
        row = [t for t in range(len(old[n])) if mask[n][t]]
        total = math.fsum(old[n][t] - sampler[n][t] for t in row)
        for t in row:
            log_ratio = total if mode.startswith("sequence") else old[n][t] - sampler[n][t]
            ratio = math.exp(max(-20.0, min(20.0, log_ratio)))
            if mode.endswith("mask"):
                result[n, t] = ratio if low <= ratio <= high else 0.0
            else:
                result[n, t] = max(low, min(high, ratio))
        values += [result[n, t] for t in row[:1]] if mode.startswith("sequence") else [result[n, t] for t in row]
    mean = math.fsum(values) / max(len(values), 1)
    return result / mean if normalize and mean else result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize", [False, True])
@given(
    old=hnp.arrays(np.float64, (N, T), elements=st.floats(-30, 0)),
    sampler=hnp.arrays(np.float64, (N, T), elements=st.floats(-30, 0)),
    mask=hnp.arrays(np.bool_, (N, T)),
)
def test_equals_loops(mode, normalize, old, sampler, mask):
    with jax.enable_x64(True):
        found = importance_weights(old, sampler, mask, mode=mode, low=0.3, high=4.0, normalize=normalize)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, loops(old, sampler, mask, mode, 0.3, 4.0, normalize), rtol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_padding_is_zero_whatever_it_holds(mode, garbage):
    rng = np.random.default_rng(0)
    old, sampler = rng.normal(size=(2, N, T))
    mask = np.arange(T)[None] < np.array([[4], [2], [0]])
    clean = importance_weights(old, sampler, mask, mode=mode, normalize=True)
    old[~mask] = garbage
    sampler[~mask] = garbage
    found = importance_weights(old, sampler, mask, mode=mode, normalize=True)
    np.testing.assert_array_equal(found, clean)
    np.testing.assert_array_equal(np.asarray(found)[~mask], 0)
    old[0, 0] = np.nan  # unmasked: not hidden
    assert np.isnan(importance_weights(old, sampler, mask, mode=mode)).any()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_normalise(mode):
    zeros = np.zeros((N, T), np.float32)
    np.testing.assert_array_equal(importance_weights(zeros, zeros, zeros, mode=mode, normalize=True), 0)
    if mode.endswith("mask"):  # every token dropped
        found = importance_weights(zeros, zeros, zeros == 0, mode=mode, low=1.5, high=2.0, normalize=True)
        np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("mode", MODES)
def test_they_are_constants(mode):
    log_probs = np.float32([[-1.0, -2.0]])
    total = lambda a, b: importance_weights(a, b, log_probs < 0, mode=mode, normalize=True).sum()
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(log_probs, log_probs - np.float32(0.1))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "row"}, "importance mode = 'row' is unknown; allowed: token, sequence"),
        ({"low": 3.0}, "importance low = 3.0, high = 2.0 is not allowed"),
        ({"low": -1.0}, "low = -1.0"),
        ({"high": float("nan")}, "high = nan"),
        ({"mask": np.ones((1, 3))}, r"one shape \(N, T\), got \(1, 2\), \(1, 2\), \(1, 3\)"),
    ],
)
def test_bad_calls_are_one_clear_line(options, message):
    arguments = {"old_log_probs": np.zeros((1, 2)), "sampler_log_probs": np.zeros((1, 2)), "mask": np.ones((1, 2))}
    with pytest.raises(ValueError, match=message) as error:
        importance_weights(**(arguments | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, precision):
    inputs, outputs = case(golden, "1.tis(C=2)")
    difference = np.array([inputs["old_train_minus_rollout_logp"]])
    calls = {
        "token": {"high": inputs["C"]},
        "sequence": {"mode": "sequence", "high": inputs["C"]},
        "token_batch_normalised": {"high": inputs["C"], "normalize": True},
        "openrlhf_clamp_0p5_5": {"low": 0.5, "high": 5.0},
        "masked_icepop_0p5_5": {"mode": "token_mask", "low": 0.5, "high": 5.0},
    }
    for name, options in calls.items():

        def weights(d, options=options):
            return importance_weights(d - 1, 0 * d - 1, jnp.ones(d.shape, bool), **options)

        found = evaluate(weights, difference, precision=precision)
        assert_close(found, np.broadcast_to(outputs[name], (1, 3)), precision)
