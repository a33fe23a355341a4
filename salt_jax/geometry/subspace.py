"""The k dominant directions of a large Gram matrix without its whole eigendecomposition.

A mini-batch of m rollouts needs P x for the projector P on the k top eigenvectors, the numerical rank as a cap on
k, and the eigengap at k; `eigh` computes m eigenvectors for that. Above `FULL_UP_TO` rollouts a block of b
vectors, b ≪ m, is iterated instead: Chebyshev-filtered subspace iteration with a Rayleigh–Ritz step (Zhou, Saad,
Tiago and Chelikowsky, J. Comput. Phys. 219, 2006), orthonormalised by shifted Cholesky-QR (Fukaya, Kannan,
Nakatsukasa, Yamamoto and Yanagisawa, SIAM J. Sci. Comput. 42, 2020). All of it is products with K and
decompositions of b × b, which suits every accelerator.

The result is checked and never trusted: `dominant_part` takes the full `eigh` where the check refuses, and says so.
Deterministic: the start is a fixed pattern of signs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from salt_jax.geometry.numerics import presence, safe_ratio
from salt_jax.geometry.spectrum import (
    Spectrum,
    dominant_projection,
    project,
    rank_floor,
    relative_eigengap,
    spectrum,
)
from salt_jax.products import matmul

EIGEN = ("auto", "full", "iterative")
"""How the dominant subspace is found; 'auto' is 'full' up to FULL_UP_TO rollouts, 'iterative' above."""

FULL_UP_TO = 256
"""Rollouts up to which `eigh` is fast enough to be exact: 2.3 ms against 1.2 on 2 CPU cores; 11 against 3 at
m = 512, 100 against 11 at m = 1024."""

SMALLEST_BLOCK, ROLLOUTS_A_TILE, TILE = 64, 208, 16
"""Where k is the participation ratio (25 of 512, 30 of 1024 here), λ_b ≈ λ_k / 4: enough for one round."""

TOLERANCE = 2e-4
"""Largest accepted estimate of ‖P̃ − P‖; on the Grams of training P a is off by a tenth of that or less."""

GAP_FLOOR = 256
"""λ_k − λ_{k+1} in units of eps · λ_1 below which float32 does not define P: `eigh` decides as it always did."""

ROUNDS = 3
"""Each costs about a fifth of `eigh` at m = 512; one is enough for the Grams of training."""

DEGREES = (2, 2, 2)
"""Chebyshev degrees between orthonormalisations: higher ones overrun what float32 can orthonormalise."""

WIDEST = 200.0
"""‖K‖_F over the filter's cut at most, for the same reason."""

SHIFT = 3e-6
"""Of Cholesky-QR, in units of squared columns: above the rounding of their Gram."""


class Dominant(NamedTuple):
    """The dominant subspace, applied.

    projected (n, m): P x of each x.  k (): int32, at most the numerical rank.  eigengap (): (λ_k − λ_{k+1}) / λ_k.
    fallback (): bool, True where the iteration was chosen and the whole eigendecomposition was needed: k does not
      fit the block, or the check refused what was found.
    """

    projected: jax.Array
    k: jax.Array
    eigengap: jax.Array
    fallback: jax.Array


class Block(NamedTuple):
    """Rayleigh–Ritz pairs of a block: values (b,) descending, vectors (m, b), residuals (b,) ‖K v − θ v‖.

    k (): int32, the asked k capped at the numerical rank.  error (): estimate of ‖P̃ − P‖; inf where P is
    not defined in float32, NaN where the arithmetic broke down.
    """

    values: jax.Array
    vectors: jax.Array
    residuals: jax.Array
    k: jax.Array
    error: jax.Array


def method(eigen: str, m: int) -> str:
    """'full' or 'iterative': what `eigen` means for m rollouts.

    >>> method("auto", 64), method("auto", 1024), method("iterative", 64)
    ('full', 'iterative', 'iterative')
    """
    if eigen == "auto":
        return "full" if m <= FULL_UP_TO else "iterative"
    return eigen


def block_size(m: int) -> int:
    """b, the vectors iterated for m rollouts: a thirteenth of m, at least 64 and at most half; tiles of 16.

    >>> [block_size(m) for m in (1, 8, 512, 1024, 4096)]
    [1, 4, 64, 80, 320]
    """
    return max(1, min(m // 2, max(SMALLEST_BLOCK, TILE * math.ceil(m / ROLLOUTS_A_TILE))))


def largest_k(m: int) -> int:
    """The largest k that the block can decide: a guard of an eighth of it separates λ_{k+1} from what is missed.

    >>> [largest_k(m) for m in (8, 512, 1024)]
    [2, 55, 69]
    """
    return largest_within(block_size(m))


def largest_within(size: int) -> int:
    """`largest_k` for a block of the given size."""
    return size - max(1, size // 8) - 1


def dominant_part(
    gram: jax.Array, k: jax.Array, vectors: jax.Array, *, valid: jax.Array | None = None, eigen: str = "auto"
) -> Dominant:
    """P x = V_k V_kᵀ x of several x, with k capped at the numerical rank of K (arXiv 2606.05800, Eq. 12–14).

    | K, m > FULL_UP_TO | result |
    |---|---|
    | λ_k well above λ_b, a gap at k | iteration; ‖P̃ − P‖ ≤ 2e-4 by its own estimate |
    | k > largest_k(m) (flat spectra: K = I) | full, fallback |
    | no gap at k, slow decay, λ_k < 0.01 λ_1 | full, fallback |
    | rank K < b, duplicates, padding | as usual; min(k, rank) is exact because λ_1 … λ_{k+1} are |

    Under `jax.vmap` an iteration runs once per element: batched, a conditional would always pay for the fallback.

    Args:
      gram: (m, m) finite, symmetric, padding rows 0, entries near 1 (`numerics.normalized`).
      k: () int, >= 0, may be traced.
      vectors: (n, m), 0 at padding rows.
      valid: (m,) bool, or None for all.
      eigen: one of EIGEN, static.

    Raises:
      ValueError: gram is not square.

    >>> found = dominant_part(jnp.diag(jnp.array([1.0, 4.0])), jnp.array(1), jnp.array([[3.0, 5.0]]))
    >>> found.projected.tolist(), float(found.eigengap), bool(found.fallback)
    ([[0.0, 5.0]], 0.75, False)
    """
    if method(eigen, gram.shape[0]) == "full":
        return dominant_of(spectrum(gram, valid=valid), k, vectors)
    return lax.stop_gradient(_constant(gram, jnp.asarray(k, jnp.int32), vectors, presence(gram, valid)))


def dominant_of(basis: Spectrum, k: jax.Array, vectors: jax.Array) -> Dominant:
    """`dominant_part` from a whole spectrum: basis of `spectrum`, k () int, vectors (n, m)."""
    k = jnp.minimum(k, basis.rank)
    projected = jnp.stack([dominant_projection(basis, k, vector) for vector in vectors])
    return Dominant(projected, k, relative_eigengap(basis, k), jnp.array(False))


# No derivative, whatever the caller differentiates: a mapped function would be given one of the whole iteration.
@jax.custom_jvp
def _constant(gram: jax.Array, k: jax.Array, vectors: jax.Array, present: jax.Array) -> Dominant:
    return _checked(gram, k, vectors, present)


@_constant.defjvp
def _(primals: Any, tangents: Any) -> tuple[Dominant, Any]:
    found = _constant(*primals)
    return found, jax.tree.map(jax.custom_derivatives.zero_from_primal, found)


@sequential_vmap
def _checked(gram: jax.Array, k: jax.Array, vectors: jax.Array, present: jax.Array) -> Dominant:
    found = dominant_block(gram, k, present.sum())

    def accept() -> Dominant:
        gains_b = (jnp.arange(found.values.shape[0]) < found.k).astype(jnp.float32)
        basis_mxb = found.vectors * present[:, None]
        parts_nxm = jnp.stack([project(basis_mxb, gains_b, vector) for vector in vectors])
        # As dominant_projection does: with every direction kept P is the identity, exactly.
        projected = jnp.where(found.k >= present.sum(), vectors, parts_nxm)
        at, after = found.values[jnp.maximum(found.k, 1) - 1], found.values[found.k]
        return Dominant(projected, found.k, (at - after) / at, jnp.array(False))  # 1 <= k, or it is refused

    def refuse() -> Dominant:
        # Kᵀ = K: the column order that LAPACK wants is then K as it lies, and costs no copy where eigh is not run.
        whole = dominant_of(spectrum(gram.T, valid=present > 0), k, vectors)
        return whole._replace(fallback=jnp.array(True))

    return lax.cond(found.error <= TOLERANCE, accept, refuse)


def dominant_block(gram: jax.Array, k: jax.Array, count: jax.Array) -> Block:
    """At most `ROUNDS` rounds of iteration, until the error is within `TOLERANCE` or stops falling fast.

    gram (m, m) as for `dominant_part`, k () int, count () valid rollouts -> Block. No round at all, and error inf,
    where k is larger than `largest_k(m)`.
    """
    m = gram.shape[0]
    size = block_size(m)
    k = jnp.asarray(k, jnp.int32)
    norm = jnp.sqrt(jnp.sum(gram**2))
    # λ_b is at most tr/b and, for the spectra met in training (k ≈ b/3), about tr/(8 b).
    cut = jnp.maximum(jnp.trace(gram) / (8 * size), norm / WIDEST)

    def more(state: tuple[Block, jax.Array, jax.Array]) -> jax.Array:
        block, before, rounds = state
        # A NaN compares false: a breakdown ends the loop. So does an error that more of the same will not mend.
        return (block.error > TOLERANCE) & (block.error < before / 4) & (rounds < ROUNDS)

    def step(state: tuple[Block, jax.Array, jax.Array]) -> tuple[Block, jax.Array, jax.Array]:
        block, _, rounds = state
        better = jnp.where(rounds == 0, cut, jnp.maximum(block.values[-1], norm / WIDEST))
        basis_mxb = _filtered(gram, block.vectors, jnp.where(better > 0, better, 1.0))
        return _rayleigh_ritz(gram, basis_mxb, k, count), block.error, rounds + 1

    fits = k <= largest_k(m)
    zeros_b = jnp.zeros(size)
    # Finite, so that the first round is run, unless it cannot serve.
    start = Block(zeros_b, _start(m, size), zeros_b, k, jnp.where(fits, 1e30, jnp.inf))
    block, _, _ = lax.while_loop(more, step, (start, jnp.array(jnp.inf), jnp.array(0)))
    return block


def _start(m: int, size: int) -> jax.Array:
    """±1 (m, size), a fixed pattern: the last bit of a hash of the position (the finaliser of MurmurHash3)."""
    bits = jnp.arange(1, m * size + 1, dtype=jnp.uint32).reshape(m, size) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return jnp.where((bits ^ (bits >> 16)) & 1, 1.0, -1.0)


def _filtered(gram: jax.Array, block: jax.Array, cut: jax.Array) -> jax.Array:
    """An orthonormal basis of p(K) X, p a product of Chebyshev polynomials: |p| <= 1 on [0, cut], steep above."""

    def mapped(x: jax.Array) -> jax.Array:  # K with the interval [0, cut] mapped to [-1, 1]
        return (2 / cut) * matmul(gram, x) - x

    for degree in DEGREES:
        before, now = block, mapped(block)
        for _ in range(degree - 1):
            before, now = now, 2 * mapped(now) - before
        block = _orthonormal(now)
    return _orthonormal(block)  # what the shift left short or oblique


def _orthonormal(block: jax.Array) -> jax.Array:
    """X D L⁻ᵀ with D to unit columns and L Lᵀ = D XᵀX D + SHIFT · I.

    Rounding takes the small eigenvalues of a Gram of nearly parallel columns; the shift stands in for them.
    """
    eye_bxb = jnp.eye(block.shape[1])
    square_bxb = matmul(block.T, block)
    scale_b = safe_ratio(jnp.ones(block.shape[1]), jnp.sqrt(jnp.diagonal(square_bxb)))
    square_bxb = square_bxb * scale_b[:, None] * scale_b[None, :] + SHIFT * eye_bxb
    lower_bxb = jnp.linalg.cholesky(square_bxb, symmetrize_input=False)
    scale_bxb = eye_bxb * scale_b[None, :]
    inverse_bxb = lax.linalg.triangular_solve(lower_bxb, scale_bxb, left_side=True, lower=True)
    return matmul(block, inverse_bxb.T)


def _rayleigh_ritz(gram: jax.Array, basis: jax.Array, k: jax.Array, count: jax.Array) -> Block:
    product_mxb = matmul(gram, basis)
    small_bxb = matmul(basis.T, product_mxb)
    # A breakdown stays a NaN residual and is refused; no NaN reaches eigh.
    sound = jnp.isfinite(small_bxb).all()
    small_bxb = jnp.where(sound, (small_bxb + small_bxb.T) / 2, jnp.eye(basis.shape[1]))
    values_b, turn_bxb = jnp.linalg.eigh(small_bxb, symmetrize_input=False)
    values_b, turn_bxb = values_b[::-1], turn_bxb[:, ::-1]
    vectors_mxb = matmul(basis, turn_bxb)
    left_mxb = matmul(product_mxb, turn_bxb) - vectors_mxb * values_b[None, :]
    residuals_b = jnp.sqrt(jnp.sum(left_mxb**2, axis=0))
    values_b = jnp.where(values_b <= rank_floor(values_b[0], count), 0.0, values_b)  # as in `spectrum`
    k = jnp.minimum(k, jnp.sum(values_b > 0).astype(jnp.int32))
    lengths_b = jnp.sum(vectors_mxb**2, axis=0)
    return Block(values_b, vectors_mxb, residuals_b, k, _error(values_b, residuals_b, lengths_b, k))


def _error(values: jax.Array, residuals: jax.Array, lengths: jax.Array, k: jax.Array) -> jax.Array:
    """Estimate of ‖P̃ − P‖ for the k leading pairs and of the relative error of the gap at k, whichever is larger.

    A residual points out of the block, where no eigenvalue should be above the block's last ones, λ_out: a bound
    but for that, and but for rounding (eps λ_1 over the gap, which no float32 method escapes). Pair j
    is turned out of the block by r_j / (θ_j − λ_out); pairs k and k + 1 are mixed only through the outside, to
    second order: r_k r_{k+1} / ((θ_k − λ_out)(θ_k − θ_{k+1})); and θ_{k+1} is wrong by min(r, r²/(θ − λ_out)).
    """
    size = values.shape[0]
    last = jnp.maximum(values[largest_within(size) + 1], 0.0)
    kept_b = jnp.arange(size) < k
    distance_b = jnp.maximum(values - last, 0.0)
    at, after = jnp.maximum(k, 1) - 1, jnp.minimum(k, size - 1)
    gap = values[at] - values[after]
    turned = jnp.max(jnp.where(kept_b, residuals / distance_b, 0.0))
    largest = jnp.max(jnp.where(kept_b, residuals, 0.0))
    mixed = largest * residuals[after] / (distance_b[at] * gap)
    shifted = jnp.minimum(residuals[after], residuals[after] ** 2 / distance_b[after]) / gap
    # Columns are orthonormal but where the shift had to stand in for a direction; a short one has too small a value.
    missing_b = jnp.abs(lengths - 1)
    missing_b = jnp.where(missing_b < 2 * SHIFT, 0.0, missing_b)  # a rounded unit vector, or NaN
    short = jnp.max(jnp.where(kept_b, missing_b, 0.0))
    error = jnp.max(jnp.stack([turned, mixed, shifted, short, missing_b[after] * values[after] / gap]))
    defined = (k > 0) & (gap > GAP_FLOOR * jnp.finfo(jnp.float32).eps * values[0])
    # NaN is kept, and refused by every comparison.
    return jnp.where(defined | jnp.isnan(error), error, jnp.inf)
