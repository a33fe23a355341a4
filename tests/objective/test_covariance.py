"""Clip-Cov's and KL-Cov's selections: loops, counts, ties, randomness, masks."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import covariance as module
from tests.one_program import one_program

clip_cov_tokens, kl_cov_tokens = one_program(module.clip_cov_tokens), one_program(module.kl_cov_tokens)
token_covariance = one_program(module.token_covariance)

N, T = 4, 6


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(T)[None] < np.array([[6], [4], [0], [5]])
    return -rng.exponential(2, (N, T)), rng.normal(size=N), mask


def covariance_loops(log_probs, advantages, mask):
    tokens = [(n, t) for n in range(N) for t in range(T) if mask[n][t]]
    mean_a = sum(advantages[n][t] for n, t in tokens) / max(len(tokens), 1)
    mean_l = sum(log_probs[n][t] for n, t in tokens) / max(len(tokens), 1)
    result = np.zeros((N, T))
    for n, t in tokens:
        result[n, t] = (advantages[n][t] - mean_a) * (log_probs[n][t] - mean_l)
    return result


@pytest.mark.parametrize("per_token", [False, True])
def test_covariance_equals_loops(per_token):
    log_probs, advantages, mask = make_batch()
    spread = np.repeat(advantages[:, None], T, axis=1)
    if per_token:
        spread = advantages = spread + np.random.default_rng(1).normal(size=(N, T))
    with jax.enable_x64(True):
        found = token_covariance(log_probs, advantages, mask)
    np.testing.assert_allclose(found, covariance_loops(log_probs, spread, mask), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_masked_garbage_changes_nothing(garbage):
    log_probs, advantages, mask = make_batch()
    clean = token_covariance(log_probs, advantages, mask)
    log_probs[~mask] = garbage
    advantages[2] = garbage  # a row without tokens
    np.testing.assert_array_equal(token_covariance(log_probs, advantages, mask), clean)


def test_everything_masked():
    log_probs, advantages, mask = make_batch()
    covariance = token_covariance(log_probs * np.nan, advantages, np.zeros_like(mask))
    np.testing.assert_array_equal(covariance, 0)
    assert not kl_cov_tokens(covariance, np.zeros_like(mask)).any()
    assert not clip_cov_tokens(jax.random.key(0), covariance, np.zeros_like(mask), low=-1.0).any()


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        token_covariance(np.zeros((2, 3)), np.zeros(3), np.ones((2, 3)))


values = hnp.arrays(np.float64, (N, T), elements=st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0, 5.0]))


@given(covariance=values, mask=hnp.arrays(np.bool_, (N, T)), fraction=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_kl_cov_takes_the_largest(covariance, mask, fraction):
    found = np.asarray(kl_cov_tokens(covariance, mask, fraction=fraction))
    order = sorted(np.flatnonzero(mask), key=lambda i: (-covariance.flat[i], i))
    count = max(1, int(fraction * mask.sum()))
    assert np.flatnonzero(found).tolist() == sorted(order[:count])


@given(
    covariance=values, mask=hnp.arrays(np.bool_, (N, T)), fraction=st.sampled_from([0.0, 0.25, 1.0]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_clip_cov_takes_candidates_only_and_as_many_as_it_may(covariance, mask, fraction, seed):
    found = np.asarray(clip_cov_tokens(jax.random.key(seed), covariance, mask, fraction=fraction, low=0.0, high=5.0))
    candidates = mask & (covariance > 0) & (covariance < 5)  # the edges are open
    assert not (found & ~candidates).any()
    assert found.sum() == min(max(1, int(fraction * mask.sum())), candidates.sum())


def test_clip_cov_draws_uniformly():
    covariance, mask = np.float32([[2.0, 2.0, 9.0, 2.0]]), np.ones((1, 4), bool)
    keys = jax.random.split(jax.random.key(0), 600)
    draw = jax.jit(jax.vmap(lambda key: clip_cov_tokens(key, covariance, mask)))
    found = np.asarray(draw(keys)).sum(axis=0)[0]
    assert found[2] == 0
    np.testing.assert_allclose(found[np.array([0, 1, 3])], 200, atol=5 * np.sqrt(600 * 2 / 9))


@pytest.mark.parametrize(("fraction", "tokens"), [(2e-4, 5000), (2e-4, 10000), (0.1, 30), (0.7, 10), (1 / 3, 3)])
def test_counts_do_not_fall_short_by_rounding(fraction, tokens):
    """In float32 fraction × tokens may lie just below the whole number that is meant."""
    covariance = np.linspace(0, 1, tokens, dtype=np.float32)[None]
    found = np.asarray(kl_cov_tokens(covariance, covariance > -1, fraction=fraction))
    assert found.sum() == round(fraction * tokens)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: kl_cov_tokens(c, c > 0, fraction=1.5), "fraction = 1.5 is not allowed"),
        (lambda c: kl_cov_tokens(c, c > 0, fraction=float("nan")), "fraction = nan"),
        (lambda c: clip_cov_tokens(jax.random.key(0), c, c > 0, low=2.0, high=1.0), "low = 2.0 must be at most"),
    ],
)
def test_bad_options_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((1, 2), np.float32))
