"""Update sparsity against NumPy counts in the rounded dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.selection import changed, update_overlap, update_rank_ratio, update_sparsity
from tests.objective.golden_methods import PRECISIONS, evaluate
from tests.selection.golden_vectors import assert_printed, block, printed

BEFORE = np.array([1, 0.5, 0.01, -2, 0, 3e-6])
AFTER = BEFORE + np.array([1e-3, 1e-2, 1e-4, 0, 9e-6, 0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, precision):
    text = block(golden, 10)

    def measured(before, after):
        full = update_sparsity(before, after, dtype=jnp.float32)
        half = update_sparsity(before, after)
        return full.exact, half.exact, half.sparsity

    found = evaluate(measured, BEFORE, AFTER, precision=precision)
    labels = ("fp32 exact sparsity", "bf16 exact sparsity", "bf16 |d|<=1e-5 sparsity")
    assert_printed(found, [printed(text, label) for label in labels], precision)
    # which tolerances the printed bfloat16 differences lie between
    deltas = np.abs(printed(text, "bf16 deltas"))
    for tolerance in (0.0, 5e-6, 5e-5, 1e-4, 0.1):
        found = evaluate(lambda a, b, t=tolerance: changed(a, b, tolerance=t), BEFORE, AFTER, precision=precision)
        np.testing.assert_array_equal(found[""], deltas > tolerance)

    matrices = np.zeros((4, 4)), np.eye(4)[[1, 2, 3, 0]]
    ratio = evaluate(lambda a, b: update_rank_ratio(a, b), *matrices, precision=precision)
    density = evaluate(lambda a, b: 1 - update_sparsity(a, b).sparsity, *matrices, precision=precision)
    assert_printed([density, ratio], [printed(text, "density"), printed(text, "rank/min")], precision)

    first, second = np.isin(np.arange(10), [0, 1, 2, 3]), np.isin(np.arange(10), [2, 3, 9])
    expected = [float(x) for x in text.partition("chance |I2|/n:")[2].split()[:4]]
    assert_printed(list(evaluate(update_overlap, first, second, precision=precision)), expected, precision)


def test_parameters_count_once_each_and_by_path():
    before = {"a": jnp.ones((3, 3)), "ids": jnp.arange(4), "b": {"c": jnp.zeros(1)}}
    after = {"a": before["a"].at[0].set(2.0), "ids": before["ids"] + 1, "b": {"c": jnp.ones(1)}}
    report = jax.jit(update_sparsity)(before, after)
    assert float(report.sparsity) == pytest.approx(6 / 10)
    assert int(report.parameters) == 10
    assert sorted(report.by_path) == ["a", "b/c"]
    assert (float(report.by_path["a"][0]), float(report.by_path["b/c"][0])) == (pytest.approx(2 / 3), 0)


def test_bfloat16_hides_what_float32_shows():
    before = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    after = before * np.float32(1 + 1e-4)
    rounded = [np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32)) for x in (before, after)]
    measure = jax.jit(lambda a, b: update_sparsity(a, b).exact)
    assert float(measure(before, after)) == pytest.approx(np.mean(rounded[0] == rounded[1]), rel=1e-6)
    assert float(update_sparsity(before, after, dtype=jnp.float32).exact) == 0


def test_rank_of_stacks_without_norms_and_biases():
    rng = np.random.default_rng(1)
    low = (rng.normal(size=(2, 4, 1)) @ rng.normal(size=(2, 1, 3))).astype(np.float32)
    delta = {"layers": {"q": low, "mlp_norm": np.ones((2, 4), np.float32), "q_bias": np.ones((2, 3), np.float32)}}
    delta["head"] = np.eye(3, dtype=np.float32)
    before = jax.tree.map(np.zeros_like, delta)
    assert float(update_rank_ratio(before, delta)) == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert float(update_rank_ratio(before, delta, where=lambda path: path == "head")) == 1
    with pytest.raises(ValueError, match="no parameter of two axes"):
        update_rank_ratio(before, delta, where=lambda path: False)


def test_overlap_of_nothing_is_zero():
    none = {"a": jnp.zeros(3, bool), "b": jnp.zeros((2, 2), bool)}
    assert [float(x) for x in update_overlap(none, none)] == [0, 0, 0, 0]


def test_wrong_trees_are_named():
    with pytest.raises(ValueError, match="differ in structure"):
        update_sparsity({"a": jnp.ones(1)}, {"b": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"differ at 'a': \(1,\) and \(2,\)"):
        update_sparsity({"a": jnp.ones(1)}, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="no floating-point"):
        update_sparsity({"a": jnp.arange(2)}, {"a": jnp.arange(2)})
    with pytest.raises(ValueError, match="tolerance = -1"):
        update_sparsity(jnp.ones(1), jnp.ones(1), tolerance=-1)
    with pytest.raises(ValueError, match="differ in structure"):
        update_overlap([jnp.ones(1)], (jnp.ones(1),))
