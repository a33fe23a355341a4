"""The iterated dominant subspace against float64 eigh: what it accepts is right, the rest is eigh's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.geometry import subspace
from salt_jax.geometry.numerics import normalized
from tests.one_program import one_program

M = 96
"""Block of 48 vectors, k up to 41. One shape and one compilation for almost every test."""

CLOSE = {"rtol": 0, "atol": 2e-5}
"""For vectors of length ~1; subspace.TOLERANCE bounds the error from above, by a factor of ten or more here."""


def matrix(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A Gram with the given eigenvalues and random eigenvectors."""
    left, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(M, M)))
    return (left * values) @ left.T


def vectors(seed: int = 1) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=M)
    return np.stack([x, np.maximum(x, 0)]) / np.linalg.norm(x)


def rank_of(size: int) -> np.ndarray:
    return np.where(np.arange(M) < size, 0.9 ** np.arange(M), 0.0)


def duplicates() -> np.ndarray:
    rows = np.random.default_rng(2).normal(size=(6, 30)) * np.linspace(2, 1, 6)[:, None]
    rows = rows[np.arange(M) % 6]
    return rows @ rows.T


def features(seed: int, decay: float) -> np.ndarray:
    """Noise on a decaying covariance, as mini-batches have: λ_1 … λ_m without structure of their own."""
    rows = np.random.default_rng(seed).normal(size=(M, 200)) * np.arange(1, 201.0) ** -decay
    return rows @ rows.T


J = np.arange(M)
ACCEPTED = {
    "decaying": (matrix(0.85**J), 8),
    "decaying from a pair of equals": (matrix(0.85 ** np.maximum(J - 1, 0)), 8),
    "power law": (matrix(1.0 / (1 + J) ** 2), 4),
    "a cluster above k": (matrix(np.where(J < 12, 1 - 1e-6 * J, 0.05 * 0.97**J)), 12),
    "a cluster below k": (matrix(np.where(J < 12, 0.9**J, 0.02)), 12),
    "a small gap": (matrix(np.where(J < 12, 0.8 - 1e-3 * J, 0.05 * 0.97**J)), 6),
    "mini-batch": (features(3, 1.0), 9),
    "one direction": (matrix(rank_of(1)), 1),
    "rank 5": (matrix(rank_of(5)), 3),
    "k at the rank": (matrix(rank_of(5)), 5),
    "k above the rank": (matrix(rank_of(5)), 30),
    "rank just below the block": (matrix(rank_of(47)), 9),
    "duplicates": (duplicates(), 4),
    "duplicates, k above the rank": (duplicates(), 40),
}
REFUSED = {
    "identity": (np.eye(M), 5),
    "identity, k = m": (np.eye(M), M),
    "k beyond the block": (matrix(0.85**J), 42),
    "equal eigenvalues at k": (matrix(np.where(J < 12, 1.0, 0.01)), 6),
    "nearly equal at k": (matrix(np.where(J < 6, 1.0, np.where(J < 12, 1 - 1e-6, 0.01))), 6),
    "slow decay": (matrix(1 - J / (2 * M)), 30),
    "lambda_k far below lambda_1": (matrix(np.where(J < 1, 1.0, 1e-4 * 0.9**J)), 10),
}


@functools.cache
def part(eigen: str):
    """dominant_part of a Gram that is first brought to size, as salt.reweight does."""

    def run(gram, k, x, valid):
        return subspace.dominant_part(normalized(gram, valid)[0], k, x, valid=valid, eigen=eigen)

    return run, jax.jit(run)


def arrays(gram, k, x=None, valid=None):
    x = vectors() if x is None else x
    valid = np.ones(M, bool) if valid is None else valid
    return jnp.asarray(gram, jnp.float32), jnp.asarray(k), jnp.asarray(x, jnp.float32), jnp.asarray(valid)


def call(gram, k, x=None, valid=None, eigen: str = "iterative") -> subspace.Dominant:
    return part(eigen)[1](*arrays(gram, k, x, valid))


def exact(gram: np.ndarray, k: int, x: np.ndarray) -> tuple[np.ndarray, int, float]:
    """Float64: P x, k capped at the rank, relative gap."""
    values, basis = np.linalg.eigh(np.asarray(gram, np.float32).astype(float))
    values, basis = values[::-1], basis[:, ::-1]
    k = min(k, int(np.sum(values > max(8, len(gram)) * np.finfo(np.float32).eps * values[0])))
    after = values[k] if k < len(values) else 0.0
    return x @ basis[:, :k] @ basis[:, :k].T, k, (values[k - 1] - after) / values[k - 1]


def assert_exact(got: subspace.Dominant, gram, k, x, keep=slice(None)) -> None:
    projected, k, gap = exact(gram, k, x)
    assert int(got.k) == k
    np.testing.assert_allclose(np.asarray(got.projected)[:, keep], projected, **CLOSE)
    np.testing.assert_allclose(got.eigengap, gap, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_is_the_dominant_subspace(name):
    gram, k = ACCEPTED[name]
    got = call(gram, k)
    assert not got.fallback
    assert_exact(got, gram, k, vectors())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_flagged_and_is_the_whole_eigendecompositions(name):
    gram, k = REFUSED[name]
    got, whole = call(gram, k), call(gram, k, eigen="full")
    assert bool(got.fallback)
    assert not whole.fallback
    for field, expected in zip(got[:3], whole[:3], strict=True):
        np.testing.assert_array_equal(field, expected)


@pytest.mark.parametrize(
    "real", [70, 30]
)  # 30 is less than the block: some of its vectors have nothing to find
@pytest.mark.parametrize("k", [7, 40])
def test_padding_equals_the_subset_and_may_hold_anything(real, k):
    valid = np.random.default_rng(4).permutation(M) < real
    small = features(5, 0.5)[:real, :real].copy()
    small[25:], small[:, 25:] = 0, 0  # rank 25
    gram = np.full((M, M), np.nan)
    gram[np.ix_(valid, valid)] = small
    x = vectors() * valid
    got = call(gram, k, x, valid)
    assert not got.fallback
    assert_exact(got, small, k, x[:, valid], valid)
    np.testing.assert_array_equal(np.asarray(got.projected)[:, ~valid], 0.0)


def test_with_every_direction_kept_the_projection_is_the_identity():
    valid = np.arange(M) < 20
    got = call(np.diag(np.where(valid, 0.9**J, 0.0)), 30, vectors() * valid, valid)
    assert (int(got.k), float(got.eigengap), bool(got.fallback)) == (20, 1.0, False)
    np.testing.assert_array_equal(got.projected, np.float32(vectors() * valid))


@pytest.mark.parametrize("seed", range(3))
def test_permuting_the_rollouts_permutes_the_result(seed):
    gram, k = ACCEPTED["mini-batch"]
    order = np.random.default_rng(seed).permutation(M)
    got, moved = call(gram, k), call(gram[np.ix_(order, order)], k, vectors()[:, order])
    assert not moved.fallback
    np.testing.assert_allclose(moved.projected, np.asarray(got.projected)[:, order], **CLOSE)
    assert moved.k == got.k


@pytest.mark.parametrize("name", ["mini-batch", "rank 5"])
def test_the_size_of_the_gram_does_not_matter(name):
    gram, k = ACCEPTED[name]
    gram, got = np.float32(gram), call(gram, k)
    for exponent in (-100, -1, 30, 95):  # a power of two: the same bits
        for field, first in zip(call(np.ldexp(gram, exponent), k), got, strict=True):
            np.testing.assert_array_equal(field, first)
    for size in (3e-30, 7e29):
        scaled = call(gram * np.float32(size), k)
        np.testing.assert_allclose(scaled.projected, got.projected, **CLOSE)
        assert not scaled.fallback


def test_the_same_input_gives_the_same_bits():
    for gram, k in (ACCEPTED["mini-batch"], REFUSED["identity"]):
        for field, first in zip(call(gram, k), call(gram, k), strict=True):
            np.testing.assert_array_equal(field, first)


def test_vmap_equals_one_at_a_time_with_both_branches_in_one_batch():
    cases = [ACCEPTED["mini-batch"], REFUSED["equal eigenvalues at k"], REFUSED["k beyond the block"]]
    batch = [jnp.stack(column) for column in zip(*(arrays(gram, k) for gram, k in cases), strict=True)]
    together = jax.jit(jax.vmap(part("iterative")[0]))(*batch)
    assert together.fallback.tolist() == [False, True, True]
    for i, (gram, k) in enumerate(cases):
        for field, expected in zip(together, call(gram, k), strict=True):
            np.testing.assert_allclose(field[i], expected, rtol=1e-6, atol=1e-6)


def test_vmap_keeps_the_conditional():
    """A batched condition would be a select, and every element would pay for eigh."""
    batch = [jnp.stack([x, x]) for x in arrays(*ACCEPTED["mini-batch"])]
    text = str(jax.make_jaxpr(jax.vmap(part("iterative")[0]))(*batch))
    assert "cond[" in text
    assert f"f32[2,{M},{M}] = eigh" not in text.replace("\n", " ")
    assert text.count("eigh[") == 2  # the block's and the fallback's, each of one element
    assert f"f32[2,{M},{M}]" in text  # the batch itself, so that the shape above is spelt right


@functools.cache
def block():
    return jax.jit(lambda gram, k: subspace.dominant_block(gram, k, jnp.asarray(float(M))))


def turned(found: subspace.Block, gram: np.ndarray) -> float:
    """‖P̃ − P‖ in the spectral norm."""
    k = int(found.k)
    basis = np.linalg.eigh(np.asarray(gram, np.float32).astype(float))[1][:, ::-1][:, :k]
    mine = np.asarray(found.vectors, float)[:, :k]
    return np.linalg.norm(mine @ mine.T - basis @ basis.T, 2)


def scaled(gram: np.ndarray) -> jax.Array:
    return one_program(normalized)(np.asarray(gram, np.float32), None)[0]


@pytest.mark.parametrize("name", [name for name in ACCEPTED if "duplicates" not in name])
def test_the_bound_holds(name):
    gram, k = ACCEPTED[name]
    gram = np.asarray(scaled(gram))
    found = block()(jnp.asarray(gram), jnp.asarray(k))
    assert found.error <= subspace.TOLERANCE
    values = np.linalg.eigvalsh(gram.astype(float))[::-1]
    rounding = np.finfo(np.float32).eps * values[0] / (values[int(found.k) - 1] - values[int(found.k)])
    assert turned(found, gram) <= float(found.error) + 2 * rounding + 3e-5


def test_an_iteration_cut_short_is_refused_and_its_bound_holds(monkeypatch):
    gram, k = ACCEPTED["mini-batch"]
    gram = scaled(gram)
    monkeypatch.setattr(subspace, "ROUNDS", 1)
    for degrees in ((), (1,)):
        monkeypatch.setattr(subspace, "DEGREES", degrees)
        found = jax.jit(lambda g, k: subspace.dominant_block(g, k, jnp.asarray(float(M))))(
            gram, jnp.asarray(k)
        )
        assert found.error > subspace.TOLERANCE
        assert subspace.TOLERANCE / 30 < turned(found, gram) <= 2 * found.error
    # Another shape than elsewhere: JAX may remember how the unchanged function was traced.
    gram, x = gram[:-1, :-1], vectors()[:, :-1]
    got = one_program(subspace.dominant_part)(gram, jnp.asarray(k), x.astype(np.float32), eigen="iterative")
    assert bool(got.fallback)
    assert_exact(got, gram, k, x)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_breakdown_is_refused(bad):
    gram = np.float32(ACCEPTED["mini-batch"][0])
    gram[3, 5] = gram[5, 3] = bad
    assert not block()(jnp.asarray(gram), jnp.asarray(5)).error <= subspace.TOLERANCE
    assert not block()(jnp.zeros((M, M)), jnp.asarray(1)).error <= subspace.TOLERANCE


@pytest.mark.parametrize("m", [1, 2, 3])
def test_tiny_grams_fall_back(m):
    gram, x = np.diag(np.arange(1, m + 1, dtype=np.float32)), np.ones((2, m), np.float32)
    got = one_program(subspace.dominant_part)(gram, jnp.asarray(1), x, eigen="iterative")
    assert (int(got.k), bool(got.fallback)) == (1, True)
    np.testing.assert_array_equal(got.projected, np.ones((2, m)) * (np.arange(m) == m - 1))


def test_the_block_leaves_room_above_k():
    for m in (*range(1, 300), 512, 1000, 4096, 10_000):
        size = subspace.block_size(m)
        assert 1 <= size <= max(1, m // 2)
        assert subspace.largest_k(m) + 1 < size or m < 4
    assert subspace.method("auto", subspace.FULL_UP_TO) == "full"
    assert subspace.method("auto", subspace.FULL_UP_TO + 1) == "iterative"
    assert subspace.method("full", 10_000) == "full"
