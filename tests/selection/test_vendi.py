"""Vendi scores against closed forms and NumPy eigenvalues."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax import selection
from tests.objective.golden_methods import PRECISIONS, evaluate
from tests.selection.golden_vectors import assert_printed, block, printed

ORDERS = (0.5, 1.0, 2.0, math.inf)
# compiled as a whole: one by one, their operations would take longer to compile than to test
vendi_score, gvendi_score = (jax.jit(f, static_argnames="q") for f in (selection.vendi_score, selection.gvendi_score))
normalize_kernel, vendi_greedy = jax.jit(selection.normalize_kernel), jax.jit(selection.vendi_greedy, static_argnums=1)


def loop_score(values, q):
    values = [value for value in values if value > 1e-12]
    if q == 1:
        return math.exp(-sum(value * math.log(value) for value in values))
    if q == math.inf:
        return 1 / max(values)
    return sum(value**q for value in values) ** (1 / (1 - q))


def scores(kernel):
    return jnp.stack([vendi_score(kernel, q) for q in ORDERS])


every_order = jax.jit(lambda features: jnp.stack([selection.gvendi_score(features, q).score for q in ORDERS]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, precision):
    text = block(golden, 8)
    assert_printed(
        evaluate(scores, [[1.0, 0.5], [0.5, 1.0]], precision=precision),
        printed(text, "K=[[1,.5],[.5,1]] q=.5,1,2,inf"), precision,
    )  # fmt: skip
    for kernel, label in ((np.eye(3), "I_3"), (np.ones((3, 3)), "ones 3x3")):
        expected = [printed(text, label)] * len(ORDERS)
        assert_printed(evaluate(scores, kernel, precision=precision), expected, precision)
    weighted = evaluate(lambda k, w: vendi_score(k, weights=w), np.eye(2), [0.9, 0.1], precision=precision)
    assert_printed(weighted, printed(text, "weighted p=(.9,.1) I_2"), precision)
    gradients = np.array([[3.0, 0, 0, 0], [2, 0, 0, 0], [1, 1, 0, 0], [0, 0, -5, 0]])
    # four and five examples of width four and three: by the n x n and by the d x d matrix
    primal = evaluate(gvendi_score, gradients, precision=precision)
    dual = evaluate(gvendi_score, gradients[:, :3], precision=precision)
    assert_printed(primal.score, printed(text, "G-Vendi primal"), precision)
    assert_printed(dual.score, printed(text, "G-Vendi dual (d x d)"), precision)
    pairs = np.array([[[1.0, 2.0], [-1.0, -2.0]], [[1.0, 2.0], [1.0, 2.0]]])
    signs = [evaluate(gvendi_score, pair, precision=precision).score for pair in pairs]
    assert_printed(signs, printed(text, "sign invariance: g,-g vs g,g"), precision)


@given(st.integers(0, 10**6), st.sampled_from([(6, 4), (4, 6)]))
def test_gradients_of_both_shapes_equal_the_loop(seed, shape):
    features = np.random.default_rng(seed).normal(size=shape)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(units @ units.T / len(units))
    with jax.enable_x64(True):
        found = np.asarray(every_order(features))
    np.testing.assert_allclose(found, [loop_score(values, q) for q in ORDERS], rtol=1e-8)
    assert 1 - 1e-9 <= found.min() <= found.max() <= min(shape) + 1e-9


def test_orders_fall_and_rank_is_the_first():
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    kernel, there = normalize_kernel(jnp.asarray(features @ features.T))
    found = [float(vendi_score(kernel, q, valid=there)) for q in (0.0, *ORDERS)]
    assert found[0] == pytest.approx(3, rel=1e-6)  # rounding leaves no fourth direction
    assert sorted(found, reverse=True) == found


def test_weights_are_repetitions():
    kernel = np.array([[1.0, 0.3], [0.3, 1.0]])
    rows = [0, 0, 0, 1]
    with jax.enable_x64(True):
        weighted = vendi_score(jnp.asarray(kernel), weights=jnp.array([3.0, 1.0]))
        repeated = vendi_score(jnp.asarray(kernel[np.ix_(rows, rows)]))
    assert float(weighted) == pytest.approx(float(repeated), rel=1e-9)


def test_zero_gradients_are_dropped_and_counted():
    features = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    features[[1, 4]] = 0
    alone = gvendi_score(jnp.asarray(features[[0, 2, 3]]))
    valid = jnp.array([True, True, True, True, False])
    found = gvendi_score(jnp.asarray(features).at[4].set(jnp.nan), valid=valid)
    assert (int(found.examples), int(found.dropped)) == (3, 1)
    assert float(found.score) == pytest.approx(float(alone.score), rel=1e-5)
    nothing = gvendi_score(jnp.zeros((2, 3)))
    assert (float(nothing.score), int(nothing.examples), int(nothing.dropped)) == (0, 0, 2)


def test_kernel_of_a_gram_is_the_score_of_its_features():
    features = np.random.default_rng(2).normal(size=(5, 7)).astype(np.float32) * np.array([[1e-12], [1], [3], [0], [5]])
    kernel, there = normalize_kernel(jnp.asarray(features @ features.T))
    assert there.tolist() == [True, True, True, False, True]
    np.testing.assert_array_equal(np.diagonal(kernel), [1, 1, 1, 0, 1])
    expected = gvendi_score(jnp.asarray(features)).score
    assert float(vendi_score(kernel, valid=there)) == pytest.approx(float(expected), rel=1e-4)


def test_a_kernel_without_ones_on_its_diagonal_has_no_score():
    kernel = jnp.diag(jnp.array([1.0, 2.0]))
    assert math.isnan(float(vendi_score(kernel)))
    assert float(vendi_score(kernel, valid=jnp.array([True, False]))) == pytest.approx(1)
    assert math.isnan(float(vendi_score(jnp.eye(2), weights=jnp.zeros(2))))
    assert float(vendi_score(jnp.eye(2), valid=jnp.zeros(2, bool))) == 0


def test_permutation_and_duplicates():
    features = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    first = float(gvendi_score(jnp.asarray(features)).score)
    assert float(gvendi_score(jnp.asarray(features[::-1])).score) == pytest.approx(first, rel=1e-5)
    assert float(gvendi_score(jnp.asarray(np.repeat(features, 2, 0))).score) == pytest.approx(first, rel=1e-5)


# --- greedy ---


def test_greedy_equals_its_loop():
    features = np.random.default_rng(4).normal(size=(8, 3))
    features[5] = features[2]
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    kernel = units @ units.T

    def order_two(rows):
        return loop_score(np.linalg.eigvalsh(kernel[np.ix_(rows, rows)] / len(rows)), 2)

    chosen, values = [int(np.argmin((kernel**2).sum(axis=1)))], [1.0]
    while len(chosen) < 8:
        left = [x for x in range(8) if x not in chosen]
        found = [order_two([*chosen, x]) for x in left]
        chosen.append(left[int(np.argmax(np.round(found, 9)))])  # of two alike the first
        values.append(max(found))
    with jax.enable_x64(True):
        selection = vendi_greedy(jnp.asarray(kernel), 8)
    assert selection.order.tolist() == chosen
    np.testing.assert_allclose(selection.scores, values, rtol=1e-9)


def test_greedy_leaves_padding_out():
    kernel = jnp.eye(4).at[0].set(jnp.nan)
    found = vendi_greedy(kernel, 4, valid=jnp.array([False, True, True, False]))
    assert (found.order.tolist(), int(found.picked)) == ([1, 2, -1, -1], 2)
    assert found.scores.tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize("q", [-0.1, math.nan, "1", None])
def test_wrong_orders_are_named(q):
    for function in (selection.vendi_score, selection.gvendi_score):
        with pytest.raises(ValueError, match="q = .* numbers >= 0"):
            function(jnp.eye(2), q)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"weights must be \(2,\)"):
        vendi_score(jnp.eye(2), weights=jnp.ones(3))
    with pytest.raises(ValueError, match=r"features must be \(n, d\)"):
        gvendi_score(jnp.ones(3))
    with pytest.raises(ValueError, match="k = 3"):
        vendi_greedy(jnp.eye(2), 3)
