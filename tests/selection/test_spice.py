"""SPICE against log determinants that are recomputed from nothing at every step, and against exhaustive search."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax import selection
from tests.objective.golden_methods import PRECISIONS, evaluate
from tests.reference.selection import loop_spice
from tests.selection.golden_vectors import assert_printed, block, printed

GRADIENTS = np.array([[2.0, 0.0], [-1.5, 0.5], [0.6, 1.0], [0.5, -0.4]])  # of methods.md, part 2, section 1
# compiled as a whole: one by one, their operations would take longer to compile than to test
spice = jax.jit(selection.spice, static_argnames="k")
spice_diagonal = jax.jit(selection.spice_diagonal, static_argnames=("k", "exponent"))
spice_curvature, greedy_bound = jax.jit(selection.spice_curvature), jax.jit(selection.greedy_bound)
interaction_terms = jax.jit(selection.interaction_terms)


def assert_same(selection, expected, tolerance=1e-9):
    order, *rest = expected
    n = len(order)
    assert int(selection.picked) == n
    np.testing.assert_array_equal(selection.order[:n], order)
    np.testing.assert_array_equal(selection.order[n:], -1)
    for found, wanted in zip((selection.gains, selection.conflicts, selection.scores), rest, strict=True):
        np.testing.assert_allclose(found[:n], wanted, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(found[n:], 0)


# --- the printed numbers ---


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, precision):
    text, gram = block(golden, 1), GRADIENTS @ GRADIENTS.T
    penalised = lambda gram, penalty: selection.spice(gram, 4, penalty=penalty)
    for penalty in (0.0, 0.1, 1.0):
        found = evaluate(penalised, gram, penalty, precision=precision)
        at = f"lambda={penalty}:"
        assert found.order.tolist() == printed(text, at, "order")
        for name in ("gains", "conflicts", "scores"):
            assert_printed(getattr(found, name), printed(text, at, name), precision)
        assert_printed(found.base_gains, printed(text, "base log(1+a||g||^2)"), precision)
        assert_printed(found.gains - found.base_gains[found.order], printed(text, at, "eps=gain-base"), precision)
        assert_printed(found.log_det, printed(text, "logdet ="), precision)
        assert_printed(found.log_det, printed(text, "sum gains == logdet(I+F)"), precision)
    stopped = lambda gram, omega: selection.spice(gram, 4, omega=omega)
    for omega in ("0.5", "0.4"):
        found = evaluate(stopped, gram, float(omega), precision=precision)
        expected = printed(text, f"omega={omega} ->")
        assert found.order[: found.picked].tolist() == expected


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_of_the_released_diagonal_variant(golden, precision):
    text = block(golden, 1)
    found = evaluate(lambda features: spice_diagonal(features, 4), GRADIENTS, precision=precision)
    assert found.order.tolist() == printed(text, "released diag variant order")
    assert_printed(found.gains, printed(text, "released diag gains"), precision)


# --- against loops ---


@given(st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 30.0]), st.sampled_from([0.0, 0.1, 2.0]))
def test_equals_the_loop(seed, alpha, penalty):
    gradients = np.random.default_rng(seed).normal(size=(7, 4)) * 10.0 ** np.random.default_rng(seed).integers(-1, 2)
    with jax.enable_x64(True):
        found = spice(gradients @ gradients.T, 5, alpha=alpha, penalty=penalty)
        assert_same(found, loop_spice(gradients, 5, alpha, penalty), 1e-7)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.9]))
def test_early_stop_equals_the_loop(seed, omega):
    gradients = np.random.default_rng(seed).normal(size=(7, 3))
    with jax.enable_x64(True):
        found = spice(gradients @ gradients.T, 7, omega=omega)
        assert_same(found, loop_spice(gradients, 7, 1.0, 0.1, omega), 1e-7)


def test_the_diagonal_variant_equals_its_loop():
    gradients = np.random.default_rng(0).normal(size=(8, 3))
    for exponent in (2, 4):
        with jax.enable_x64(True):
            found = spice_diagonal(jnp.asarray(gradients), 6, alpha=0.7, penalty=0.0, exponent=exponent)
        chosen, den = [], np.ones(3)
        for gain in found.gains:
            gains = [math.log(1 + 0.7 * sum(g**2 / den)) if i not in chosen else -1 for i, g in enumerate(gradients)]
            chosen.append(int(np.argmax(gains)))
            assert gain == pytest.approx(max(gains), rel=1e-12)
            den = den + 0.7 * np.abs(gradients[chosen[-1]]) ** exponent
        assert found.order.tolist() == chosen


@given(st.integers(0, 10**6))
def test_greedy_reaches_its_bound(seed):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(7, 3)) * rng.choice([0.2, 1.0, 5.0])
    gram = gradients @ gradients.T
    with jax.enable_x64(True):
        found = float(spice(gram, 3, penalty=0.0).log_det)
        share = float(greedy_bound(spice_curvature(jnp.asarray(gram))))

    def value(chosen):
        return np.linalg.slogdet(np.eye(len(chosen)) + gram[np.ix_(chosen, chosen)])[1]

    optimum = max(value(chosen) for chosen in itertools.combinations(range(7), 3))
    assert 1 - 1 / math.e <= share <= 1
    assert share * optimum - 1e-9 <= found <= optimum + 1e-9


# --- invariances and edges ---


def test_a_permutation_permutes_the_picks():
    gradients = np.random.default_rng(3).normal(size=(7, 4))
    gram, turn = gradients @ gradients.T, np.random.default_rng(4).permutation(7)
    first, second = (spice(k, 5) for k in (gram, gram[np.ix_(turn, turn)]))
    np.testing.assert_array_equal(turn[second.order], first.order)
    np.testing.assert_allclose(second.gains, first.gains, rtol=1e-4)


@pytest.mark.parametrize("function", ["spice", "spice_diagonal"])
def test_padding_changes_nothing_and_is_never_picked(function):
    gradients = np.random.default_rng(5).normal(size=(7, 4)).astype(np.float32)
    rows = np.array([0, 2, 3, 6])
    valid = np.isin(np.arange(7), rows)
    if function == "spice":
        small, padded = gradients[rows] @ gradients[rows].T, gradients @ gradients.T
        padded[~valid], padded[:, ~valid] = np.nan, np.inf
    else:
        small, padded = gradients[rows], np.where(valid[:, None], gradients, np.nan)
    pick = spice if function == "spice" else spice_diagonal
    alone, among = pick(small, 4), pick(padded, 6, valid=valid)
    assert int(among.picked) == 4
    np.testing.assert_array_equal(rows[alone.order], among.order[:4])
    np.testing.assert_array_equal(among.order[4:], -1)
    np.testing.assert_allclose(among.gains[:4], alone.gains, rtol=1e-5)
    assert np.isfinite(np.asarray(among.base_gains)).all()


def test_zero_gradients_gain_nothing():
    zero = jnp.zeros((4, 4))
    found = spice(zero, 3)
    assert (found.order.tolist(), found.gains.tolist(), float(found.log_det)) == ([0, 1, 2], [0.0] * 3, 0.0)
    assert int(spice(zero, 3, omega=0.0).picked) == 0
    some = jnp.diag(jnp.array([0.0, 2.0, 0.0, 1.0]))
    assert spice(some, 4).order.tolist() == [1, 3, 0, 2]
    assert spice(some, 4, omega=0.0).order.tolist() == [1, 3, -1, -1]


def test_duplicates_and_opposites():
    g = np.array([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    gram = jnp.asarray(g @ g.T)
    plain = spice(gram, 3, penalty=0.0)
    assert plain.order.tolist() == [0, 1, 2]  # all alike: the lowest index
    np.testing.assert_allclose(plain.gains, [math.log(3), math.log(5 / 3), math.log(7 / 5)], rtol=1e-6)
    wary = spice(jnp.asarray(g[[0, 2, 1]] @ g[[0, 2, 1]].T), 3, penalty=0.1)
    assert wary.order.tolist() == [0, 2, 1]  # −g fights g, and comes last
    np.testing.assert_allclose(wary.conflicts, [0, 0, 1], atol=1e-6)
    cancelled = spice(jnp.asarray(g[[0, 2, 1]] @ g[[0, 2, 1]].T), 3, penalty=0.0)
    assert cancelled.order.tolist() == [0, 1, 2]
    assert float(cancelled.conflicts[2]) == 0  # the mean of g and −g has no direction


def test_large_gains_stay_finite():
    found = spice(jnp.full((3, 3), 1e12), 3)
    assert np.isfinite(np.asarray(found.gains)).all()
    assert (np.asarray(found.gains) >= 0).all()


def test_nan_of_a_valid_row_is_seen():
    gram = jnp.eye(3).at[1, 1].set(jnp.nan)
    assert math.isnan(float(spice(gram, 2).log_det))


def test_curvature_and_terms():
    gradients = np.random.default_rng(7).normal(size=(5, 3))
    gram = gradients @ gradients.T

    def value(rows):
        return np.linalg.slogdet(np.eye(len(rows)) + 2.0 * gram[np.ix_(rows, rows)])[1]

    every = list(range(5))
    ratios = [(value(every) - value([i for i in every if i != x])) / math.log(1 + 2 * gram[x, x]) for x in every]
    with jax.enable_x64(True):
        assert float(spice_curvature(jnp.asarray(gram), alpha=2.0)) == pytest.approx(1 - min(ratios), rel=1e-9)
        found = spice(jnp.asarray(gram), 4, alpha=2.0)
        epsilon, term = interaction_terms(jnp.asarray(gram), found, alpha=2.0)
    for t, x in enumerate(found.order.tolist()):
        before = found.order.tolist()[:t]
        expected = 4 * sum(gram[x, y] ** 2 for y in before) / (1 + 2 * gram[x, x])
        assert float(term[t]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert float(epsilon[t]) == pytest.approx(float(found.gains[t]) - math.log(1 + 2 * gram[x, x]), abs=1e-12)
    assert float(spice_curvature(jnp.zeros((2, 2)))) == 0
    assert float(greedy_bound(jnp.array(0.0))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k"), ({"k": 4}, "k = 4 .* 1 to the number of examples, 3"), ({"alpha": 0}, "alpha = 0"),
        ({"penalty": -1.0}, "penalty"), ({"omega": 1.0}, "omega = 1.0 .* None, or"), ({"eta": float("nan")}, "eta"),
        ({"gram": np.ones((2, 3))}, "square"), ({"valid": np.ones(2)}, r"valid must be \(3,\)"),
    ],
)  # fmt: skip
def test_wrong_input_is_named(options, words):
    settings = {"gram": np.eye(3), "k": 2} | options
    with pytest.raises(ValueError, match=words):
        selection.spice(settings.pop("gram"), settings.pop("k"), **settings)


def test_wrong_exponent_is_named():
    with pytest.raises(ValueError, match="exponent = 3"):
        selection.spice_diagonal(np.eye(3), 2, exponent=3)
