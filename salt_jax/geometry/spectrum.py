"""Geometry of m rollouts from their Gram matrix K (m, m) and coefficients c (m,): scalars, dominant subspace.

Conventions, everywhere in this file:
- 0/0 := 0 (also x/0 := 0): an empty or silent batch has participation ratio, n_eff and alignment 0.
- `valid` (m,) bool leaves padding rows out; what stands in their rows and columns of K, NaN included,
  is ignored.
- K is first symmetrised and divided by a power of two near its largest entry, so that Grams of size 1e-30 or
  1e+30 work in float32 and scaling K by a power of two changes no bit of a scale-free result.
- NaN or inf among valid entries propagates: these functions never hide it.

Equation numbers: arXiv 2606.05800.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from salt_jax.geometry.numerics import (
    normalized,
    normalized_vector,
    power_of_two_scaled,
    presence,
    quadratic_form,
    safe_ratio,
    same_shape,
    sqrt_scaled,
    times_power_of_two,
)
from salt_jax.products import matmul


def participation_ratio(gram: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
    """PR(K) = tr(K)² / ‖K‖_F², the effective number of directions, in [1, rank K] (Eq. 5); 0 for K = 0.

    gram (m, m), valid (m,) or None -> scalar float32. Raises ValueError unless gram is square.

    >>> float(participation_ratio(jnp.eye(3)))
    3.0
    """
    gram, _ = normalized(gram, valid)
    return safe_ratio(jnp.trace(gram) ** 2, jnp.sum(gram**2))


def effective_sample_size(
    gram: jax.Array, coefficients: jax.Array, *, valid: jax.Array | None = None
) -> jax.Array:
    """n_eff(K, c) = cᵀKc / Σ_i c_i² K_ii, in [0, m] (Eq. 6 and 60): 1 for orthogonal features, below 1 when
    the weighted gradients cancel, m when all agree. 0 for c = 0.

    gram (m, m), coefficients (m,), valid (m,) or None -> scalar float32. Raises ValueError on shapes.

    >>> round(float(effective_sample_size(jnp.ones((4, 4)), jnp.ones(4))), 5)
    4.0
    """
    gram, _ = normalized(gram, valid)
    coefficients, _ = normalized_vector(coefficients, gram, valid)
    return safe_ratio(quadratic_form(gram, coefficients), jnp.sum(coefficients**2 * jnp.diagonal(gram)))


def kish_count(gram: jax.Array, coefficients: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
    """(Σ d_i)² / Σ d_i² of d_i = c_i² K_ii, how many rollouts carry the denominator of n_eff, in [1, m]; 0 for c = 0.

    Kish's count of unequally weighted samples. Where it is small n_eff says little about cancellation: most rollouts
    hardly move anything (docs/theory.md). Reads the diagonal of K alone. (A metric of this project, not of the paper.)

    gram (m, m), coefficients (m,), valid (m,) or None -> scalar float32. Raises ValueError on shapes.

    >>> float(kish_count(jnp.eye(4), jnp.array([1.0, -1.0, 0.0, 0.0])))
    2.0
    """
    gram, _ = normalized(gram, valid)
    coefficients, _ = normalized_vector(coefficients, gram, valid)
    return count_of(coefficients**2 * jnp.diagonal(gram))


def count_of(shares: jax.Array) -> jax.Array:
    """(Σ d)² / Σ d² along the last axis, 0 where all are 0: shares (..., n) >= 0 -> (...).

    >>> count_of(jnp.array([[1e-30, 1e-30], [0.0, 5.0]])).tolist()
    [2.0, 1.0]
    """
    shares = safe_ratio(shares, jnp.max(shares, axis=-1, keepdims=True))  # squares of tiny ones would be 0
    return safe_ratio(jnp.sum(shares, axis=-1) ** 2, jnp.sum(shares**2, axis=-1))


def positive_alignment(gram: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
    """Mean of max(0, cos_ij) over the pairs i < j of valid rollouts, in [0, 1] (Eq. 7).

    cos_ij = K_ij / √(K_ii K_jj), 0 where a feature is 0; no pair at all gives 0.
    gram (m, m), valid (m,) or None -> scalar float32. Raises ValueError unless gram is square.

    >>> round(float(positive_alignment(jnp.array([[1.0, 1.0], [1.0, 4.0]]))), 4)
    0.5
    """
    gram, _ = normalized(gram, valid)
    norms_m = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0))
    cosines_mxm = safe_ratio(safe_ratio(gram, norms_m[:, None]), norms_m[None, :])
    present_m = presence(gram, valid)
    pairs_mxm = jnp.triu(present_m[:, None] * present_m[None, :], k=1)
    return safe_ratio(
        jnp.sum(jnp.where(pairs_mxm > 0, jnp.clip(cosines_mxm, 0.0, 1.0), 0.0)), jnp.sum(pairs_mxm)
    )


def update_norm(gram: jax.Array, coefficients: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
    """‖ĝ(c)‖ = √(cᵀKc) / m, the length of the mean update (1/m) Σ c_i s_i (Eq. 58); m counts valid rollouts.

    gram (m, m), coefficients (m,), valid (m,) or None -> scalar float32, in units of the features.
    Raises ValueError on shapes.

    >>> float(update_norm(4 * jnp.eye(4), jnp.ones(4)))
    1.0
    """
    return safe_ratio(_sum_norm(gram, coefficients, valid), presence(gram, valid).sum())


def residual_energy(gram: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
    """tr(K) − 1ᵀK1/G = Σ_i ‖s_i − s̄‖² of the G valid rollouts of one group (App. B); 0 for an empty group.

    gram (G, G), valid (G,) or None -> scalar float32, in squared units of the features.
    Raises ValueError unless gram is square.

    >>> float(residual_energy(jnp.eye(4))), float(residual_energy(jnp.ones((4, 4))))
    (3.0, 0.0)
    """
    gram, exponent = normalized(gram, valid)
    energy = jnp.trace(gram) - safe_ratio(jnp.sum(gram), presence(gram, valid).sum())
    return times_power_of_two(jnp.maximum(energy, 0.0), exponent)


def coefficient_distortion(new: jax.Array, old: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
    """‖new − old‖ / ‖old‖, how far reweighting moved the coefficients (Eq. 59).

    new, old (m,), valid (m,) or None -> scalar float32. Raises ValueError where the shapes differ.

    >>> float(coefficient_distortion(jnp.array([4.0, 3.0]), jnp.array([4.0, 0.0])))
    0.75
    """
    new, old = same_shape(new, old, valid)
    (new, old), _ = power_of_two_scaled((new, old))
    return safe_ratio(jnp.sqrt(jnp.sum((new - old) ** 2)), jnp.sqrt(jnp.sum(old**2)))


def update_deviation(
    gram: jax.Array, new: jax.Array, old: jax.Array, *, valid: jax.Array | None = None
) -> jax.Array:
    """‖ĝ(new) − ĝ(old)‖ / ‖ĝ(old)‖, how far reweighting moved the update (Eq. 59).

    gram (m, m), new, old (m,), valid (m,) or None -> scalar float32. Raises ValueError on shapes.

    >>> float(update_deviation(jnp.eye(2), jnp.array([4.0, 3.0]), jnp.array([4.0, 0.0])))
    0.75
    """
    new, old = same_shape(new, old, valid)
    return safe_ratio(_sum_norm(gram, new - old, valid), _sum_norm(gram, old, valid))


class Spectrum(NamedTuple):
    """Eigendecomposition of a Gram matrix, largest eigenvalue first.

    values (m,): eigenvalues divided by a power of two (only ratios matter), 0 beyond the numerical rank.
    vectors (m, m): eigenvector j in column j, 0 at padding rows.
    rank (): int32, eigenvalues above max(8, m) · 1.2e-7 · λ_1.  n_valid (): int32, valid rollouts.
    exponent (): int32, values · 2^exponent are the eigenvalues of the given matrix.
    """

    values: jax.Array
    vectors: jax.Array
    rank: jax.Array
    n_valid: jax.Array
    exponent: jax.Array


def spectrum(gram: jax.Array, *, valid: jax.Array | None = None) -> Spectrum:
    """Eigenvalues (descending), eigenvectors and numerical rank of K; full, deterministic `eigh` (Eq. 12).

    gram (m, m), valid (m,) or None -> Spectrum. The matrix must be finite. Raises ValueError unless square.

    >>> s = spectrum(jnp.diag(jnp.array([1.0, 4.0, 0.0])))
    >>> int(s.rank), (s.values * 2.0 ** s.exponent).tolist()
    (2, [4.0, 1.0, 0.0])
    """
    gram, exponent = normalized(gram, valid)
    present_m = presence(gram, valid)
    values_m, vectors_mxm = jnp.linalg.eigh(gram, symmetrize_input=False)
    values_m, vectors_mxm = values_m[::-1], vectors_mxm[:, ::-1]
    count = present_m.sum()
    # The rank counts valid rollouts, not rows: padding must not move the threshold.
    values_m = jnp.where(values_m <= rank_floor(values_m[0], count), 0.0, values_m)  # NaN stays
    rank = jnp.sum(values_m > 0).astype(jnp.int32)
    return Spectrum(values_m, vectors_mxm * present_m[:, None], rank, count.astype(jnp.int32), exponent)


def rank_floor(largest: jax.Array, count: jax.Array) -> jax.Array:
    """max(8, m) · eps · λ_1, the largest eigenvalue that counts as rounding; m = count valid rollouts.

    >>> float(rank_floor(jnp.array(1.0), jnp.array(4))) == 8 * 2.0**-23
    True
    """
    return jnp.maximum(count, 8.0) * jnp.finfo(jnp.float32).eps * largest


def numerical_rank(gram: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
    """Number of eigenvalues above max(8, m) · eps · λ_1 with eps = 1.2e-7 (float32); 0 for K = 0.

    gram (m, m), valid (m,) or None -> scalar int32. Raises ValueError unless gram is square.

    >>> int(numerical_rank(jnp.ones((3, 3))))
    1
    """
    return spectrum(gram, valid=valid).rank


def dominant_projection(basis: Spectrum, k: jax.Array | int, vector: jax.Array) -> jax.Array:
    """P x = V_k V_kᵀ x, the part of x in the k dominant directions (Eq. 13–14); k may be traced.

    k is not larger than the rank. With k = number of valid rollouts P is the identity, exactly.
    basis: of `spectrum`; vector (m,), 0 at padding rows -> (m,).

    >>> dominant_projection(spectrum(jnp.diag(jnp.array([1.0, 4.0]))), 1, jnp.array([3.0, 5.0])).tolist()
    [0.0, 5.0]
    """
    kept_m = jnp.arange(vector.shape[0]) < k
    return jnp.where(k >= basis.n_valid, vector, project(basis.vectors, kept_m.astype(jnp.float32), vector))


def project(vectors: jax.Array, gains: jax.Array, vector: jax.Array) -> jax.Array:
    """V diag(gains) Vᵀ x: vectors (m, m) with orthonormal columns, gains (m,), vector (m,) -> (m,).

    >>> project(jnp.eye(2), jnp.array([1.0, 0.5]), jnp.array([2.0, 2.0])).tolist()
    [2.0, 1.0]
    """
    return matmul(vectors, gains * matmul(vectors.T, vector))


def relative_eigengap(basis: Spectrum, k: jax.Array | int) -> jax.Array:
    """(λ_k − λ_{k+1}) / λ_k in [0, 1], how well defined the dominant subspace is.

    1 where k is the numerical rank, 0 for k = 0. (A metric of this project, not of the paper.)

    basis: of `spectrum`; k int, may be traced -> scalar float32.

    >>> float(relative_eigengap(spectrum(jnp.diag(jnp.array([4.0, 3.0]))), 1))
    0.25
    """
    values = jnp.concatenate([basis.values, jnp.zeros(1)])
    at, after = values[jnp.maximum(jnp.asarray(k), 1) - 1], values[jnp.asarray(k)]
    return jnp.where(jnp.asarray(k) > 0, safe_ratio(at - after, at), 0.0)


def residual_update(
    gram: jax.Array, coefficients: jax.Array, k: jax.Array | int, *, valid: jax.Array | None = None
) -> jax.Array:
    """‖S P⊥ c‖ / m = √(Σ_{j>k} λ_j ⟨v_j, c⟩²) / m, what the update owes to the residual channel (Eq. 61).

    gram (m, m), coefficients (m,), k int (may be traced), valid (m,) or None -> scalar float32;
    m counts valid rollouts. Raises ValueError on shapes.

    >>> float(residual_update(jnp.diag(jnp.array([4.0, 1.0])), jnp.array([1.0, 2.0]), 1))
    1.0
    """
    basis = spectrum(gram, valid=valid)
    coefficients, exponent = normalized_vector(coefficients, gram, valid)
    tail_m = jnp.where(jnp.arange(gram.shape[0]) >= k, basis.values, 0.0)
    norm = sqrt_scaled(jnp.sum(tail_m * matmul(basis.vectors.T, coefficients) ** 2), basis.exponent)
    return times_power_of_two(safe_ratio(norm, basis.n_valid.astype(jnp.float32)), exponent)


def _sum_norm(gram: jax.Array, coefficients: jax.Array, valid: jax.Array | None) -> jax.Array:
    """‖Σ_i c_i s_i‖ = √(cᵀKc)."""
    gram, exponent = normalized(gram, valid)
    coefficients, shift = normalized_vector(coefficients, gram, valid)
    return times_power_of_two(sqrt_scaled(quadratic_form(gram, coefficients), exponent), shift)
