"""GREATS against its loop, and against the quadratic whose decrease it expects."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax import selection
from tests.objective.golden_methods import PRECISIONS, evaluate
from tests.selection.golden_vectors import block, printed

# The file prints no gradients; these have its products with the validation gradient, (3, 0.5, 6).
GRADIENTS, VALIDATION = np.array([[1.5, 0.0], [0.0, 0.5], [3.0, 0.0]]), np.array([2.0, 1.0])
greats = jax.jit(selection.greats, static_argnums=3)


def loop_greats(gram, towards, rate, k):
    scores, picked, values = rate * towards.mean(axis=1), [], []
    for _ in range(k):
        at = max((i for i in range(len(gram)) if i not in picked), key=lambda i: (scores[i], -i))
        picked.append(at)
        values.append(scores[at])
        scores = scores - rate**2 * gram[at]
    return picked, values


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rate", "label"), [(0.1, "k=2, eta=.1"), (1.0, "k=2, eta=1")])
def test_golden(golden, precision, rate, label):
    gram, towards = GRADIENTS @ GRADIENTS.T, GRADIENTS @ VALIDATION
    found = evaluate(lambda *x: greats(*x, 2), gram, towards, rate, precision=precision)
    assert found.order.tolist() == printed(block(golden, 12), f"GREATS greedy {label} ->")


@given(st.integers(0, 10**6), st.sampled_from([1e-3, 0.3, 2.0]))
def test_equals_the_loop(seed, rate):
    rng = np.random.default_rng(seed)
    gradients, towards = rng.normal(size=(7, 3)), rng.normal(size=(4, 3))
    gram, products = gradients @ gradients.T, gradients @ towards.T
    picked, values = loop_greats(gram, products, rate, 4)
    with jax.enable_x64(True):
        found = greats(gram, products, rate, 4)
        assert found.order.tolist() == picked
        np.testing.assert_allclose(found.scores, values, rtol=1e-9, atol=1e-12)


def test_scores_are_the_decrease_of_a_quadratic():
    """ℓ(θ) = ‖θ‖²/2 has the Hessian that is assumed: scores add up to the decrease, but for the halved squares."""
    theta, rate = np.array([2.0, 1.0]), 0.3
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, greats(GRADIENTS @ GRADIENTS.T, (GRADIENTS @ theta)[:, None], rate, 2))
    picked = found.order
    after = theta - rate * GRADIENTS[picked].sum(axis=0)
    own = rate**2 / 2 * np.sum(GRADIENTS[picked] ** 2)
    assert (theta @ theta - after @ after) / 2 == pytest.approx(found.scores.sum() - own, rel=1e-9)


def test_padding_of_rows_and_columns():
    rng = np.random.default_rng(1)
    gradients, towards = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    alone = greats(gradients @ gradients.T, gradients @ towards.T, 0.5, 4)
    gram, products = np.full((6, 6), np.nan, np.float32), np.full((6, 3), np.nan, np.float32)
    rows = np.array([0, 2, 3, 5])
    gram[np.ix_(rows, rows)], products[np.ix_(rows, [0, 2])] = gradients @ gradients.T, gradients @ towards.T
    there, columns = np.isin(np.arange(6), rows), np.array([True, False, True])
    found = greats(gram, products, 0.5, 6, valid=there, validation_valid=columns)
    assert int(found.picked) == 4
    np.testing.assert_array_equal(found.order, [*rows[alone.order], -1, -1])
    np.testing.assert_allclose(found.scores[:4], alone.scores, rtol=1e-5)


def test_zeros_and_ties_take_the_lowest_index():
    found = greats(jnp.zeros((3, 3)), jnp.zeros((3, 2)), 1.0, 2)
    assert (found.order.tolist(), found.scores.tolist()) == ([0, 1], [0, 0])
    nothing = greats(jnp.eye(3), jnp.ones((3, 2)), 1.0, 1, validation_valid=jnp.zeros(2, bool))
    assert nothing.first_scores.tolist() == [0, 0, 0]


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"validation must be \(3, v\) or \(3,\)"):
        selection.greats(jnp.eye(3), jnp.ones((2, 3)), 1.0, 1)
    with pytest.raises(ValueError, match=r"validation_valid must be \(2,\)"):
        selection.greats(jnp.eye(3), jnp.ones((3, 2)), 1.0, 1, validation_valid=jnp.ones(3))
