"""In-run Shapley against the Shapley value by enumeration; TRAK against NumPy."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.selection import in_run_shapley, shapley_of_step, trak_scores
from tests.objective.golden_methods import PRECISIONS, evaluate
from tests.selection.golden_vectors import assert_printed, block, printed

# The file prints results without their inputs. These have them: products (3, 0.5, 6) with the validation gradient and
# (4.5, 0.5, 9) through the Hessian, at η = 0.1.
GRADIENTS, HESSIAN, THETA = np.array([[1.5, 0.0], [0.0, 0.5], [3.0, 0.0]]), np.diag([2 / 3, 2.0]), np.array([3.0, 0.5])
RATE = 0.1


def exact_shapley(value, n):
    """Mean marginal contribution over all orders."""
    total = np.zeros(n)
    for order in itertools.permutations(range(n)):
        for t, i in enumerate(order):
            total[i] += value([*order[:t], i]) - value(list(order[:t]))
    return total / math.factorial(n)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_shapley(golden, precision):
    text = block(golden, 12)
    towards = HESSIAN @ THETA

    def loss(theta):
        return theta @ HESSIAN @ theta / 2

    def value(chosen):
        return loss(THETA - RATE * GRADIENTS[chosen].sum(axis=0)) - loss(THETA)

    np.testing.assert_allclose(exact_shapley(value, 3), printed(text, "exact Shapley of quadratic (must equal total)"))

    def both(gradients, towards, curved):
        first = in_run_shapley(gradients @ towards, RATE)
        total = in_run_shapley(gradients @ towards, RATE, curvatures=gradients @ curved)
        return first, total - first, total

    curved = HESSIAN @ GRADIENTS.sum(axis=0)
    first, second, total = evaluate(both, GRADIENTS, towards, curved, precision=precision)
    assert_printed(first, printed(text, "in-run Shapley 1st order  -eta<g,gval>"), precision)
    assert_printed(second, printed(text, "2nd order add eta^2/2 g'H sum g"), precision)
    assert_printed(total, printed(text, "\n  total"), precision)

    def of_step(gradients, theta, hessian):
        return shapley_of_step(lambda p: p @ hessian @ p / 2, theta, gradients, RATE)

    found = evaluate(of_step, GRADIENTS, THETA, HESSIAN, precision=precision)
    assert_printed(found, printed(text, "\n  total"), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_trak(golden, precision):
    train, test, rest = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[2.0, 3.0]], [0.1, 0.25, 0.36]
    expected = printed(block(golden, 12), "TRAK score (M=1, lambda=0) phi_t (Phi'Phi)^-1 Phi' * (1-p)")
    assert_printed(evaluate(trak_scores, train, test, rest, precision=precision)[0], expected, precision)


def test_shapley_of_a_tree_is_exact_on_a_quadratic():
    rng = np.random.default_rng(0)
    hessian = rng.normal(size=(4, 4))
    hessian = hessian @ hessian.T
    params = {"a": rng.normal(size=(1, 3)), "b": rng.normal()}
    gradients = {"a": rng.normal(size=(4, 1, 3)), "b": rng.normal(size=4)}
    flat = np.concatenate([gradients["a"].reshape(4, 3), gradients["b"][:, None]], axis=1)
    theta = np.concatenate([params["a"].reshape(-1), [params["b"]]])

    def loss(params):
        vector = jnp.concatenate([params["a"].reshape(-1), params["b"][None]])
        return vector @ jnp.asarray(hessian) @ vector / 2 + vector.sum()

    def value(chosen):
        after = theta - 0.2 * flat[[i for i in chosen if i != 2]].sum(axis=0)
        return after @ hessian @ after / 2 + after.sum()

    gradients["b"][2] = np.nan  # padding
    with jax.enable_x64(True):
        params, gradients = jax.tree.map(jnp.asarray, (params, gradients))
        found = jax.jit(lambda p, g: shapley_of_step(loss, p, g, 0.2, valid=jnp.arange(4) != 2))(params, gradients)
        np.testing.assert_allclose(found, exact_shapley(value, 4), rtol=1e-9, atol=1e-9)
        first = shapley_of_step(loss, params, gradients, 0.2, order=1, valid=jnp.arange(4) != 2)
        np.testing.assert_allclose(
            first[jnp.array([0, 1, 3])], -0.2 * flat[[0, 1, 3]] @ (hessian @ theta + 1), rtol=1e-9
        )


def test_trak_of_several_models_and_padding():
    rng = np.random.default_rng(1)
    train, test, rest = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 4, 3)), rng.uniform(size=(2, 5))
    scores = [test[c] @ np.linalg.inv(train[c].T @ train[c] + 0.3 * np.eye(3)) @ train[c].T for c in range(2)]
    expected = np.mean(scores, axis=0) * rest.mean(axis=0)
    with jax.enable_x64(True):
        score = jax.jit(lambda *x: trak_scores(*x, damping=0.3, valid=jnp.arange(x[0].shape[1]) < 5))
        padded = np.pad(train, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)
        more = np.pad(rest, ((0, 0), (0, 1)), constant_values=np.nan)
        found = score(padded, test, more)
    np.testing.assert_allclose(found[:, :5], expected, rtol=1e-9)
    assert (np.asarray(found[:, 5]) == 0).all()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"must both be \(n,\)"):
        in_run_shapley(jnp.ones(2), 1.0, curvatures=jnp.ones(3))
    with pytest.raises(ValueError, match="order = 3"):
        shapley_of_step(jnp.sum, jnp.ones(2), jnp.ones((3, 2)), 1.0, order=3)
    for gradients in (jnp.ones((3, 3)), {"a": jnp.ones((3, 2))}, jnp.array(1.0)):
        with pytest.raises(ValueError, match="leading axis n"):
            shapley_of_step(jnp.sum, jnp.ones(2), gradients, 1.0)
    with pytest.raises(ValueError, match=r"\(c, n, d\)"):
        trak_scores(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones(2))
    with pytest.raises(ValueError, match=r"valid must be \(2,\)"):
        trak_scores(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(2), valid=jnp.ones(3))
