"""The Vendi score, an effective number of different examples, and its form on gradients, G-Vendi."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.geometry.numerics import safe_ratio
from salt_jax.products import matmul
from salt_jax.selection.arrays import (
    best,
    checked_count,
    checked_features,
    checked_gram,
    unit_rows,
    wide,
)

Array = jax.Array


class GradientDiversity(NamedTuple):
    """score () · examples () int32, how many it is of · dropped () int32, valid examples whose gradient is zero."""

    score: Array
    examples: Array
    dropped: Array


class DiverseSelection(NamedTuple):
    """order (k,) int32, −1 from ``picked`` on · picked () int32 · scores (k,) VS_2 after each pick."""

    order: Array
    picked: Array
    scores: Array


def vendi_score(
    kernel: Array, q: float = 1.0, *, weights: Array | None = None, valid: Array | None = None
) -> Array:
    """Vendi score of order q, the exponential of the Rényi entropy of the eigenvalues λ of K ∘ √p √pᵀ.

        VS_q = (Σ λ^q)^{1/(1−q)},   VS_1 = exp(−Σ λ ln λ),   VS_∞ = 1/max λ        (arXiv 2210.02410; q: 2310.12952)

    Between 1, all alike, and n, all different. Eigenvalues below max(8, n) · eps · λ_1 count as 0: the smaller q, the
    more rounding would weigh. q = 0 is the rank. Sign matters: for kernels of gradients see ``gvendi_score``.

    =======================  ====================================================================
    case                     value
    =======================  ====================================================================
    K = I                    n, for every q
    K of ones                1, for every q
    no valid example         0
    a diagonal that is not 1  NaN: the score has no meaning; see ``normalize_kernel``
    =======================  ====================================================================

    Args:
      kernel: (n, n) positive semi-definite similarities with K_ii = 1.
      q: order >= 0, or math.inf; static.
      weights: (n,) >= 0, divided by their sum; None weighs all alike. NaN where they sum to 0.
      valid: (n,) bool; other rows are left out.

    Returns: scalar.

    Raises:
      ValueError: shapes that do not fit, q < 0 or NaN.

    >>> [round(float(vendi_score(jnp.array([[1.0, 0.5], [0.5, 1.0]]), q)), 4) for q in (0.5, 1, 2, math.inf)]
    [1.866, 1.7548, 1.6, 1.3333]
    """
    kernel, present = checked_gram(kernel, valid)
    n = kernel.shape[0]
    check_order(q)
    weights_n = jnp.ones(n, kernel.dtype) if weights is None else wide(weights).astype(kernel.dtype)
    if weights_n.shape != (n,):
        raise ValueError(f"weights must be ({n},), got {weights_n.shape}")
    weights_n = jnp.where(present, weights_n, 0.0)
    root_n = jnp.sqrt(weights_n / jnp.where(jnp.any(present), jnp.sum(weights_n), 1.0))
    wrong = jnp.any(present & ~(jnp.abs(jnp.diagonal(kernel) - 1.0) <= 1e-3))
    values = jnp.linalg.eigvalsh(kernel * root_n[:, None] * root_n[None, :], symmetrize_input=False)
    return jnp.where(wrong, jnp.nan, _score(values, q, jnp.sum(present)))


def gvendi_score(features: Array, q: float = 1.0, *, valid: Array | None = None) -> GradientDiversity:
    """G-Vendi: the Vendi score of examples' normalised gradients, λ = eig(U Uᵀ / n)         (arXiv 2505.20161)

    In the paper q = 1 and the features are gradients of the completion's mean cross-entropy under a small proxy,
    projected to 1,024 random signs. Of the n x n and the d x d matrix the smaller one is decomposed: both have the same
    eigenvalues. A gradient of zero has no direction: it is left out, and counted. Blind to sign: {g, −g} scores 1.

    Args:
      features: (n, d).
      q: as in ``vendi_score``.
      valid: (n,) bool.

    Returns: ``GradientDiversity``; score 0 where nothing is left.

    Raises:
      ValueError: shapes that do not fit, q < 0 or NaN.

    >>> found = gvendi_score(jnp.array([[2.0, 0.0], [0.0, -5.0], [0.0, 0.0]]))
    >>> round(float(found.score), 4), int(found.examples), int(found.dropped)
    (2.0, 2, 1)
    """
    features, present = checked_features(features, valid)
    check_order(q)
    units = unit_rows(features)
    nonzero_n = present & jnp.any(features != 0, axis=1)
    count = jnp.sum(nonzero_n)
    n, d = units.shape
    small = matmul(units, units.T) if n <= d else matmul(units.T, units)
    values = jnp.linalg.eigvalsh(small / jnp.maximum(count, 1), symmetrize_input=False)
    return GradientDiversity(_score(values, q, count), count, jnp.sum(present) - count)


def normalize_kernel(gram: Array, *, valid: Array | None = None) -> tuple[Array, Array]:
    """Cosines K_ij / √(K_ii K_jj) with ones on the diagonal, and which rows have a direction.

    A row of zero (or of padding) becomes zero, its diagonal too, and is false in the second result, which is what
    ``vendi_score`` takes as ``valid``. gram (n, n), valid (n,) -> (n, n), (n,) bool.

    Raises:
      ValueError: shapes that do not fit.

    >>> kernel, there = normalize_kernel(jnp.array([[4.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> round(float(vendi_score(kernel, valid=there)), 4)
    1.7548
    """
    gram, present = checked_gram(gram, valid)
    norms_n = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0))
    cosines = jnp.clip(safe_ratio(safe_ratio(gram, norms_n[:, None]), norms_n[None, :]), -1.0, 1.0)
    there = present & ~(norms_n <= 0)
    eye = jnp.eye(gram.shape[0], dtype=bool)
    # rounding would leave 1 − 1e-7; NaN must stay
    return jnp.where(eye & there[:, None] & ~jnp.isnan(cosines), 1.0, cosines), there


def vendi_greedy(kernel: Array, k: int, *, valid: Array | None = None) -> DiverseSelection:
    """k examples that are picked one by one for the greatest Vendi score of order 2 (derived here).

        VS_2(S) = |S|² / Σ_{i,j∈S} K_ij²:   the next is the x whose Σ_{j∈S} K_xj² is least, O(n) a pick

    The first is the one most unlike all others, by the same sum over all valid examples; ties go to the lowest index.

    Args:
      kernel: (n, n) with K_ii = 1, as of ``normalize_kernel``.
      k: examples to pick, static, 1 <= k <= n.
      valid: (n,) bool; others are never picked.

    Returns: ``DiverseSelection``; all valid ones where there are fewer than k.

    Raises:
      ValueError: shapes that do not fit, k outside 1..n.

    >>> vendi_greedy(jnp.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]), 2).order.tolist()
    [2, 0]
    """
    kernel, present = checked_gram(kernel, valid)
    n = kernel.shape[0]
    k = checked_count(k, n)
    squares = kernel**2

    def step(carry: tuple[Array, Array, Array], t: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        free_n, sums_n, total = carry
        at = best(-jnp.where(t == 0, jnp.sum(squares, axis=1), sums_n), free_n)
        going = free_n[at]
        total = total + jnp.where(going, squares[at, at] + 2 * sums_n[at], 0.0)
        carry = free_n & (jnp.arange(n) != at), sums_n + squares[at], total
        score = safe_ratio((t + 1.0).astype(total.dtype) ** 2, total)
        return carry, (jnp.where(going, at, -1), jnp.where(going, score, 0.0))

    zeros = jnp.zeros(n, kernel.dtype)
    _, (order, scores) = lax.scan(step, (present, zeros, zeros[0]), jnp.arange(k))
    return DiverseSelection(order, jnp.sum(order >= 0), scores)


def check_order(q: float) -> None:
    """ValueError unless q is a number >= 0; infinity is one.

    >>> check_order(math.inf)
    """
    if not isinstance(q, int | float) or not q >= 0:
        raise ValueError(f"q = {q!r} is not allowed; allowed: numbers >= 0, math.inf")


def _score(values: Array, q: float, count: Array) -> Array:
    """exp of the Rényi entropy of order q of eigenvalues that sum to 1; 0 for none."""
    largest = jnp.max(values, initial=0.0)
    floor = jnp.maximum(count, 8) * jnp.finfo(values.dtype).eps * largest
    kept = values > floor
    safe = jnp.where(kept, values, 1.0)  # NaN of a broken kernel: no comparison is true, see below
    if q == 1:
        score = jnp.exp(-jnp.sum(jnp.where(kept, safe * jnp.log(safe), 0.0)))
    elif q == math.inf:
        score = safe_ratio(jnp.ones((), values.dtype), largest)
    else:
        power = jnp.sum(jnp.where(kept, safe**q, 0.0))
        score = jnp.where(power > 0, power, 1.0) ** (1.0 / (1.0 - q))
    score = jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, score)
    return jnp.where(count > 0, score, 0.0)


