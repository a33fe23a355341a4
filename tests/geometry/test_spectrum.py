"""Scalars of a Gram matrix against loops over explicit features; extremes; padding; closed forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax import geometry
from tests.one_program import one_program
from tests.reference import geometry as reference
from tests.reference import salt as salt_reference

M, D = 6, 9
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(M, D)) * np.linspace(0.3, 2.0, M)[:, None] + 0.5
    return rows, rng.normal(size=M)


@functools.cache
def everything(masked: bool):
    """All scalars of (K, c, c') in one compilation; k = 2 for the residual update."""

    def run(gram, c, new, valid=None):
        assert (valid is not None) == masked
        return {
            "participation_ratio": geometry.participation_ratio(gram, valid=valid),
            "n_eff": geometry.effective_sample_size(gram, c, valid=valid),
            "positive_alignment": geometry.positive_alignment(gram, valid=valid),
            "kish_count": geometry.kish_count(gram, c, valid=valid),
            "update_norm": geometry.update_norm(gram, c, valid=valid),
            "residual_energy": geometry.residual_energy(gram, valid=valid),
            "coefficient_distortion": geometry.coefficient_distortion(new, c, valid=valid),
            "update_deviation": geometry.update_deviation(gram, new, c, valid=valid),
            "residual_update": geometry.residual_update(gram, c, 2, valid=valid),
            "rank": geometry.numerical_rank(gram, valid=valid),
        }

    return jax.jit(run)


def expected(rows: np.ndarray, c: np.ndarray, new: np.ndarray) -> dict[str, float]:
    k = reference.gram(rows)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    off = np.eye(len(rows)) - salt_reference.projector(left.T[:2])
    norm = lambda x: np.linalg.norm(reference.update(rows, x))
    return {
        "participation_ratio": reference.participation_ratio(k),
        "n_eff": reference.effective_sample_size(k, c),
        "positive_alignment": reference.positive_alignment(k),
        "kish_count": reference.kish_count(k, c),
        "update_norm": norm(c),
        "residual_energy": reference.residual_energy(rows),
        "coefficient_distortion": np.linalg.norm(new - c) / np.linalg.norm(c),
        "update_deviation": norm(new - c) / norm(c),
        "residual_update": norm(off @ c),
        "rank": np.linalg.matrix_rank(rows),
    }


def assert_matches(got: dict, want: dict, **tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, **(tolerance or CLOSE), err_msg=name)


def as_inputs(rows, *vectors):
    return [jnp.asarray(x, jnp.float32) for x in (reference.gram(rows), *vectors)]


@pytest.mark.parametrize("seed", range(4))
def test_scalars_match_loops_over_explicit_features(seed):
    rows, c = example(seed)
    new = np.maximum(c, 0)
    assert_matches(everything(False)(*as_inputs(rows, c, new)), expected(rows, c, new))


def test_padding_equals_the_subset_and_may_hold_anything():
    rows, c = example(5)
    new = np.abs(c)
    valid = np.array([True, False, True, True, False, True])
    gram, c_all, new_all = as_inputs(rows, c, new)
    both = valid[:, None] & valid[None, :]
    gram = jnp.where(both, gram, jnp.nan)
    c_all, new_all = jnp.where(valid, c_all, jnp.inf), jnp.where(valid, new_all, jnp.nan)
    got = everything(True)(gram, c_all, new_all, jnp.asarray(valid))
    assert_matches(got, expected(rows[valid], c[valid], new[valid]))


SCALE_FREE = ("participation_ratio", "n_eff", "positive_alignment", "kish_count", "update_deviation", "rank")


@pytest.mark.parametrize("exponent", [-100, -31, 1, 30, 100])
def test_powers_of_two_change_no_bit(exponent):
    rows, c = example(1)
    gram, c, new = as_inputs(rows, c, np.maximum(c, 0))
    once = everything(False)(gram, c, new)
    scaled = everything(False)(jnp.ldexp(gram, exponent), c, new)
    for name in SCALE_FREE:
        np.testing.assert_array_equal(scaled[name], once[name], err_msg=name)
    np.testing.assert_array_equal(scaled["residual_energy"], jnp.ldexp(once["residual_energy"], exponent))


@given(st.integers(0, 10**6), st.integers(-30, 30), st.integers(-18, 18), st.integers(1, D))
def test_wild_sizes_and_ranks(seed, log_gram, log_c, rank):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(M, rank)) @ rng.normal(size=(rank, D))
    c = rng.normal(size=M)
    gram = jnp.asarray((reference.gram(rows) * 10.0**log_gram).astype(np.float32))
    got = everything(False)(gram, jnp.asarray(c * 10.0**log_c, jnp.float32), jnp.zeros(M))
    k = reference.gram(rows)
    np.testing.assert_allclose(got["participation_ratio"], reference.participation_ratio(k), rtol=1e-5)
    # n_eff subtracts: eps of its own numerator in absolute values.
    slack = 1e-6 * reference.effective_sample_size(np.abs(k), np.abs(c))
    np.testing.assert_allclose(got["n_eff"], reference.effective_sample_size(k, c), rtol=1e-5, atol=slack)
    assert all(np.isfinite(value) for value in got.values())


def test_silent_inputs_give_zero():
    zero, zeros = jnp.zeros((M, M)), jnp.zeros(M)
    for gram, c in ((zero, jnp.ones(M)), (zero, zeros)):
        assert all(value == 0 for name, value in everything(False)(gram, c, c).items())
    got = everything(False)(jnp.eye(M), zeros, zeros)
    assert {name for name, value in got.items() if value != 0} == {
        "participation_ratio",
        "residual_energy",
        "rank",
    }
    nobody = everything(True)(jnp.full((M, M), jnp.nan), zeros, zeros, jnp.zeros(M, bool))
    assert all(value == 0 for value in nobody.values())


def test_nan_is_never_hidden():
    rows, c = example()
    gram, c, new = as_inputs(rows, c, np.maximum(c, 0))
    got = everything(False)(gram.at[0, 1].set(jnp.nan), c, new)
    unaffected = {"coefficient_distortion", "kish_count", "rank"}  # these read no K_01
    assert {name for name, value in got.items() if not np.isnan(value)} == unaffected


def test_closed_forms():
    ones, eye = jnp.ones((M, M)), jnp.eye(M)
    assert geometry.participation_ratio(ones) == 1
    assert geometry.participation_ratio(eye) == M
    assert geometry.effective_sample_size(ones, jnp.ones(M)) == pytest.approx(M, rel=1e-6)
    assert geometry.effective_sample_size(eye, jnp.arange(1.0, M + 1)) == pytest.approx(1, rel=1e-6)
    assert geometry.effective_sample_size(ones, jnp.array([1.0, -1, 1, -1, 1, -1])) == 0
    assert geometry.positive_alignment(ones) == pytest.approx(1, rel=1e-6)
    assert geometry.positive_alignment(2 * eye - ones / M * 0.5) == 0
    assert geometry.residual_energy(ones) == pytest.approx(0, abs=1e-6)


def test_dominant_subspace():
    rows, c = example(2)
    gram, c32 = as_inputs(rows, c)
    basis = one_program(geometry.spectrum)(gram)
    projection, gap_below = one_program(geometry.dominant_projection), one_program(geometry.relative_eigengap)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    values = np.asarray(basis.values) * 2.0 ** int(basis.exponent)
    np.testing.assert_allclose(values, singular**2, rtol=1e-4, atol=1e-5)
    for k in range(M + 1):
        p = salt_reference.projector(left.T[:k]) if k else np.zeros((M, M))
        np.testing.assert_allclose(projection(basis, np.int32(k), c32), p @ c, atol=2e-5)
        gap = (
            0.0
            if k == 0
            else 1.0
            if k == M
            else (singular[k - 1] ** 2 - singular[k] ** 2) / singular[k - 1] ** 2
        )
        np.testing.assert_allclose(gap_below(basis, np.int32(k)), gap, atol=2e-5)
    np.testing.assert_array_equal(projection(basis, np.int32(M), c32), c32)  # exactly the identity


@pytest.mark.parametrize("seed", range(3))
def test_geometry_summary_matches_loops(seed):
    rng = np.random.default_rng(seed)
    rows, c = rng.normal(size=(8, 5)) + 0.4, rng.normal(size=8)
    c[2:4] = 0  # a unanimous group
    valid = np.ones(8, bool)
    if seed:
        valid[[1, 6, 7]] = False  # half a group and a whole one are padding
    gram = np.where(valid[:, None] & valid[None, :], reference.gram(rows), np.nan)
    got = summary(jnp.asarray(gram, jnp.float32), jnp.asarray(c, jnp.float32), jnp.asarray(valid))
    assert_matches(got, reference.summary(rows, c, 2, valid), rtol=1e-5, atol=2e-6)


def test_geometry_summary_without_signal_is_zero_but_for_the_total_geometry():
    got = summary(jnp.eye(8), jnp.zeros(8), jnp.ones(8, bool))
    assert {name: float(value) for name, value in got.items() if value != 0} == {
        "participation_ratio_total": 8.0
    }


summary = jax.jit(lambda k, c, v: geometry.geometry_summary(k, c, group_size=2, valid=v))


def test_errors_name_the_shapes():
    square, vector = jnp.eye(3), jnp.ones(3)
    for call, message in (
        (
            lambda: geometry.participation_ratio(jnp.ones((3, 2))),
            r"gram must be square \(m, m\), got \(3, 2\)",
        ),
        (lambda: geometry.effective_sample_size(square, jnp.ones(2)), r"coefficients \(2,\) must be \(m,\)"),
        (lambda: geometry.update_norm(square, vector, valid=jnp.ones(2)), r"valid \(2,\) must be \(m,\)"),
        (lambda: geometry.update_deviation(square, vector, jnp.ones(2)), r"new \(3,\) and old \(2,\)"),
        (
            lambda: geometry.geometry_summary(square, vector, group_size=2),
            "positive divisor of the 3 rollouts",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
