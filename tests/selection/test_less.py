"""LESS: features by the formulas, projections that keep inner products, influence against loops."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from salt_jax.selection import (
    adam_features,
    influence,
    influence_of_products,
    less_features,
    rademacher_project,
)
from tests.objective.golden_methods import PRECISIONS, evaluate
from tests.selection.golden_vectors import assert_printed, block, printed

G, M, V = np.array([0.1, -0.2, 0.05]), np.array([0.02, 0.01, -0.03]), np.array([1e-4, 4e-4, 1e-6])
VALIDATION = np.array([0.3, -0.1, 0.2])  # its cosine is the printed one to eleven digits
README_RATES = np.array([1.6877e-05, 1.2859e-05, 7.7030e-06, 2.5616e-06])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, precision):
    text = block(golden, 9)
    for form, label, step in (
        ("epsilon_outside", "eps outside", None), ("release", "sqrt(v+eps)", None),
        ("bias_corrected", "bias-corrected t=10", 10),
    ):  # fmt: skip
        found = evaluate(lambda g, m, v, f=form, t=step: adam_features(g, m, v, form=f, step=t), G, M, V,
                         precision=precision)  # fmt: skip
        assert_printed(found, printed(text, label), precision)

    def cosine(g, m, v, validation):
        train = adam_features(g, m, v)[None, None]
        return influence(train, validation[None, None, None], jnp.ones(1, g.dtype)).scores[0]

    found = evaluate(cosine, G, M, V, VALIDATION, precision=precision)
    assert_printed(found, printed(text, "cos(val, Gamma_code)"), precision)
    # one example that is aligned with one checkpoint alone has that checkpoint's weight for its influence
    weights = evaluate(
        lambda rates: influence_of_products(jnp.eye(4, dtype=rates.dtype)[:, :, None, None], rates).scores,
        README_RATES, precision=precision,
    )  # fmt: skip
    assert_printed(weights, printed(text, "ckpt weights normalised"), precision)
    two_by_two = np.array([[[[0.2, 0.4], [0.1, 0.1]], [[0.0, 0.3], [0.5, 0.7]]]])  # (c, n, s, u)
    found = evaluate(lambda x: influence_of_products(x, jnp.ones(1, x.dtype)).scores, two_by_two, precision=precision)
    assert_printed(found, printed(text, "mean within (2x2), max over subtasks"), precision)


def test_bias_corrected_is_optax_adam():
    optimizer, params = optax.adam(1.0, eps=1e-8), jnp.zeros(3)
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    for _ in range(3):
        _, state = optimizer.update(jnp.asarray(rng.normal(size=3), jnp.float32), state, params)
    g = jnp.asarray(rng.normal(size=3), jnp.float32)
    mean, variance = state[0].mu, state[0].nu
    update, _ = optimizer.update(g, state, params)
    np.testing.assert_allclose(-adam_features(g, mean, variance, form="bias_corrected", step=4), update, rtol=1e-5)


def test_trees_and_kinds():
    g = {"a": jnp.array([0.5, 0.0], jnp.bfloat16), "b": jnp.array(-2.0)}
    moments = jax.tree.map(lambda x: jnp.abs(x.astype(jnp.float32)) + 1, g)
    adam = less_features(g, first_moment=moments, second_moment=moments)
    for name in g:
        expected = adam_features(g[name], moments[name], moments[name])
        np.testing.assert_array_equal(adam[name], expected)
        assert adam[name].dtype == jnp.float32
    assert less_features(g, "sgd")["a"].tolist() == [0.5, 0.0]
    assert less_features(g, "sign")["a"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "adamw"}, "kind = 'adamw'"), ({"kind": "adam"}, "needs first_moment"),
        ({"kind": "sgd", "first_moment": 0.0, "second_moment": 0.0}, "takes no moments"),
        ({"kind": "sign", "b1": 0.5}, "takes no moments and no options"),
        ({"first_moment": 0.0, "second_moment": 0.0, "form": "paper"}, "form = 'paper'"),
        ({"first_moment": 0.0, "second_moment": 0.0, "step": 1}, "takes no step"),
        ({"first_moment": 0.0, "second_moment": 0.0, "form": "bias_corrected"}, "needs step"),
    ],
)  # fmt: skip
def test_wrong_kinds_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        less_features(jnp.array(1.0), **arguments)


# --- projection ---

TREE = {"a": np.arange(1.0, 7.0).reshape(2, 3), "b": np.array([-2.0, 0.5])}


def test_projection_is_linear_and_independent_of_blocks():
    key = jax.random.key(3)
    project = {b: jax.jit(lambda tree, b=b: rademacher_project(tree, key, 40, block=b)) for b in (4, 2048)}
    whole = project[2048](TREE)
    assert whole.shape == (40,)
    np.testing.assert_allclose(project[4](TREE), whole, rtol=1e-5, atol=1e-6)
    # the columns, one by one, are signs
    columns = []
    for name, leaf in TREE.items():
        for i in range(leaf.size):
            one = {k: np.zeros_like(v) for k, v in TREE.items()}
            one[name].flat[i] = 1.0
            columns.append(np.asarray(project[2048](one)) * math.sqrt(40))
    np.testing.assert_allclose(np.abs(columns), 1, rtol=1e-6)
    assert len({tuple(np.sign(column)) for column in columns}) == len(columns)  # also across leaves
    values = np.concatenate([leaf.reshape(-1) for leaf in TREE.values()])
    np.testing.assert_allclose(values @ np.array(columns) / math.sqrt(40), whole, rtol=1e-5, atol=1e-5)


def test_projection_of_many_is_that_of_each():
    key, many = jax.random.key(0), jnp.asarray(np.random.default_rng(0).normal(size=(3, 9)), jnp.float32)
    together = jax.jit(jax.vmap(lambda x: rademacher_project(x, key, 33, block=4)))(many)
    alone = jax.jit(lambda x: rademacher_project(x, key, 33, block=4))
    for row, x in zip(together, many, strict=True):
        np.testing.assert_allclose(row, alone(x), rtol=1e-5, atol=1e-6)


def test_projection_keeps_products_on_average():
    x, y = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 1.0, 3.0])

    def both(key):
        return rademacher_project(x, key, 8) @ rademacher_project(y, key, 8)

    found = np.asarray(jax.jit(jax.vmap(both))(jax.random.split(jax.random.key(1), 4000)))
    # Var = (‖x‖²‖y‖² + ⟨x,y⟩² − 2 Σ x²y²) / dim
    variance = (float(x @ x) * float(y @ y) + float(x @ y) ** 2 - 2 * float(jnp.sum(x**2 * y**2))) / 8
    assert found.mean() == pytest.approx(float(x @ y), abs=4 * math.sqrt(variance / 4000))
    assert found.var() == pytest.approx(variance, rel=0.15)


def test_wrong_projections_are_named():
    for arguments in ({"dim": 0}, {"dim": 2, "block": 0}):
        with pytest.raises(ValueError, match="must be a positive integer"):
            rademacher_project(jnp.ones(2), jax.random.key(0), **arguments)
    with pytest.raises(ValueError, match="no leaf"):
        rademacher_project({}, jax.random.key(0), 2)


# --- influence ---


def test_influence_equals_the_loop_with_ragged_subtasks():
    rng = np.random.default_rng(5)
    train, tasks, rates = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 3, 2, 3)), np.array([3.0, 1.0])
    train[:, 2] = 0
    sizes = (2, 1, 0)
    mask = np.arange(2)[None] < np.array(sizes)[:, None]
    padded = np.where(mask[None, :, :, None], tasks, np.nan)
    with jax.enable_x64(True):
        found = jax.jit(influence)(train, padded, rates, validation_mask=mask)

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if np.any(a) else 0.0

    for i in range(4):
        weighted = [
            [sum(w * cosine(train[c, i], tasks[c, s, u]) for c, w in enumerate((0.75, 0.25))) for u in range(size)]
            for s, size in enumerate(sizes[:2])
        ]
        means = [np.mean(row) for row in weighted]
        np.testing.assert_allclose(found.by_subtask[i, :2], means, rtol=1e-9, atol=1e-12)
        assert float(found.scores[i]) == pytest.approx(max(means), rel=1e-9)
    assert float(found.scores[2]) == 0
    assert np.isneginf(np.asarray(found.by_subtask[:, 2])).all()  # an empty subtask counts for nobody


def test_wrong_shapes_of_influence_are_named():
    with pytest.raises(ValueError, match=r"must be \(c, n, d\)"):
        influence(np.ones((1, 2, 3)), np.ones((1, 1, 1, 4)), np.ones(1))
    with pytest.raises(ValueError, match="learning_rates"):
        influence(np.ones((1, 2, 3)), np.ones((1, 1, 1, 3)), np.ones(2))
    with pytest.raises(ValueError, match=r"validation_mask .* must be \(s, u\)"):
        influence(np.ones((1, 2, 3)), np.ones((1, 1, 1, 3)), np.ones(1), validation_mask=np.ones((2, 1)))
