"""SPICE: examples that carry much information together and whose gradients do not fight each other.

    F(S) = log det(I + α Σ_{i∈S} g_i g_iᵀ) = log det(I + α K_SS)                                    (arXiv 2601.23155)
    Δ_x(S) = F(S ∪ x) − F(S) = log(1 + α (K_xx − α K_xS (I + α K_SS)⁻¹ K_Sx))
    conflict(x|S) = max(0, −⟨g_x, ḡ_S⟩ / (‖g_x‖‖ḡ_S‖ + η)),   ḡ_S the mean of the selected, 0 for none
    score(x|S) = Δ_x(S) − λ conflict(x|S)

Only the Gram matrix K of the examples' gradients is needed (that form is derived here): one pivoted Cholesky row a
pick, O(n k) each. Formulas were read in two independent notes on the paper and, for score and conflict, in the release;
defaults α = 1, λ = 0.1 and η = 1e-8 are the release's, ω = 0.5 of the early stop is unconfirmed. The release's own
default selects by ‖g‖² alone, and its Fisher matrix is diagonal (``spice_diagonal``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.geometry.numerics import safe_ratio
from salt_jax.products import matmul
from salt_jax.selection.arrays import (
    best,
    check_number,
    checked_count,
    checked_features,
    checked_gram,
)

Array = jax.Array


class SpiceSelection(NamedTuple):
    """What was picked, in order; entries from ``picked`` on are −1 and 0.

    order (k,) int32 · picked () int32 · gains (k,) Δ of each pick, nats · conflicts (k,) in [0, 1] · scores (k,) ·
    base_gains (n,) Δ_x(∅) = log(1 + α‖g_x‖²) of all examples · log_det () the sum of the gains, F of the selection.
    """

    order: Array
    picked: Array
    gains: Array
    conflicts: Array
    scores: Array
    base_gains: Array
    log_det: Array


def spice(
    gram: Array,
    k: int,
    *,
    alpha: float | Array = 1.0,
    penalty: float | Array = 0.1,
    omega: float | Array | None = None,
    eta: float | Array = 1e-8,
    valid: Array | None = None,
) -> SpiceSelection:
    """Greedy selection by information gain less conflict; see the module for the formulas.

    =============================  ==================================================================
    case                           what happens
    =============================  ==================================================================
    a gradient of zero             gain 0, conflict 0; with ``omega`` it is never picked
    all gradients zero             the first k in order; with ``omega`` nothing
    g and −g                       the same gain: only the conflict knows the sign
    a duplicate of a pick, d=α‖g‖²  gain log(1 + d/(1 + d)) < log 2
    equal scores                   the lowest index
    fewer valid examples than k    all of them, then it ends
    ḡ of zero                      conflict 0
    NaN in a valid row             propagates to gains and log_det
    =============================  ==================================================================

    A Gram in float32 knows gains only to about 1e-7 α max K: scale gradients (or α) so that α K is not far above 1e4.

    Args:
      gram: (n, n) inner products of the examples' gradients.
      k: examples to pick, static, 1 <= k <= n.
      alpha: α > 0, what turns squared gradient length into information; scale-dependent.
      penalty: λ >= 0, nats per unit of conflict; 0 is plain greedy, for which the bound of ``greedy_bound`` holds.
      omega: early stop (SPICE+): ends before the first pick whose gain is at most ω times the first pick's; in [0, 1).
        None never stops.
      eta: η in the denominator of the conflict, in squared units of the gradients.
      valid: (n,) bool; padding rows are never picked, and what stands in them does not matter.

    Returns: ``SpiceSelection``.

    Raises:
      ValueError: shapes that do not fit, k outside 1..n, alpha <= 0, penalty or eta < 0, omega outside [0, 1).

    >>> picked = spice(jnp.diag(jnp.array([1.0, 3.0, 0.0])), 2)
    >>> picked.order.tolist(), [round(float(gain), 4) for gain in picked.gains]     # log 4, log 2
    ([1, 0], [1.3863, 0.6931])
    """
    gram, present = checked_gram(gram, valid)
    n, k = gram.shape[0], checked_count(k, gram.shape[0])
    _check_numbers(alpha, penalty, omega, eta)
    squared_n = jnp.maximum(jnp.diagonal(gram), 0.0)
    alpha = jnp.asarray(alpha, gram.dtype)

    def gains(state: tuple[Array, Array]) -> Array:
        return jnp.log1p(jnp.maximum(state[1], 0.0))

    def add(state: tuple[Array, Array], at: Array, t: Array) -> tuple[Array, Array]:
        # Row t of L⁻¹ α K_Sx, L the Cholesky factor of I + α K_SS: what it explains leaves the quadratic form.
        rows_kxn, left_n = state
        row_n = alpha * gram[at] - matmul(rows_kxn[:, at], rows_kxn)
        row_n = row_n / jnp.sqrt(1.0 + jnp.maximum(left_n[at], 0.0))
        return rows_kxn.at[t].set(row_n), left_n - row_n**2

    start = jnp.zeros((k, n), gram.dtype), alpha * squared_n
    return _greedy(gains, add, start, lambda at: gram[at], squared_n, present, k, penalty, omega, eta)


def spice_diagonal(
    features: Array,
    k: int,
    *,
    alpha: float | Array = 1.0,
    penalty: float | Array = 0.1,
    omega: float | Array | None = None,
    eta: float | Array = 1e-8,
    exponent: int = 4,
    valid: Array | None = None,
) -> SpiceSelection:
    """SPICE with a diagonal Fisher matrix as the authors' release computes it, in O(n d) a pick.

        Δ_x(S) = log(1 + α Σ_j g_xj² / D_j),    D_j = 1 + α Σ_{i∈S} |g_ij|^exponent

    The release accumulates **fourth** powers (it squares |g|·g), which no Fisher matrix has: exponent = 2 is the
    diagonal one. Kept to compare with; ``spice`` is the method. ``log_det`` is the sum of gains and no determinant.

    Args:
      features: (n, d) gradients of the examples.
      exponent: 4 as released, or 2.
      k, alpha, penalty, omega, eta, valid: as in ``spice``.

    Returns: ``SpiceSelection``.

    Raises:
      ValueError: as ``spice``; an exponent that is neither 2 nor 4.

    >>> spice_diagonal(jnp.array([[2.0, 0.0], [1.5, 0.5], [0.6, 1.0]]), 2).order.tolist()
    [0, 2]
    """
    features, present = checked_features(features, valid)
    k = checked_count(k, features.shape[0])
    _check_numbers(alpha, penalty, omega, eta)
    if exponent not in (2, 4):
        raise ValueError(f"exponent = {exponent!r} is not allowed; allowed: 4 (as released), 2")
    alpha = jnp.asarray(alpha, features.dtype)

    def gains(diagonal_d: Array) -> Array:
        return jnp.log1p(alpha * jnp.sum(features**2 / diagonal_d[None, :], axis=1))

    def add(diagonal_d: Array, at: Array, t: Array) -> Array:
        return diagonal_d + alpha * features[at] ** exponent

    squared_n = jnp.sum(features**2, axis=1)
    start = jnp.ones(features.shape[1], features.dtype)
    return _greedy(
        gains, add, start, lambda at: matmul(features, features[at]), squared_n, present, k, penalty, omega, eta
    )


def spice_curvature(gram: Array, *, alpha: float | Array = 1.0, valid: Array | None = None) -> Array:
    """c = 1 − min_x Δ_x(D∖x) / Δ_x(∅), in [0, 1]: how much an example's gain can shrink (arXiv 2601.23155).

    Δ_x(D∖x) = −log [(I + αK)⁻¹]_xx. Over the valid examples whose gradient is not zero; 0 where there is none.
    0 for orthogonal gradients, towards 1 for many alike. gram (n, n), valid (n,) -> scalar.

    Raises:
      ValueError: shapes that do not fit, alpha <= 0.

    >>> float(spice_curvature(jnp.eye(3)))
    0.0
    """
    gram, present = checked_gram(gram, valid)
    _check_numbers(alpha, 0.0, None, 0.0)
    scaled = jnp.asarray(alpha, gram.dtype) * gram
    squared_n = jnp.maximum(jnp.diagonal(scaled), 0.0)
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
    factor = jnp.linalg.cholesky(eye + scaled, symmetrize_input=False)
    inverse = lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
    last_n = -jnp.log(jnp.sum(inverse**2, axis=0))
    ratio_n = safe_ratio(last_n, jnp.log1p(squared_n))
    counted_n = present & (squared_n > 0)
    return jnp.clip(1.0 - jnp.min(jnp.where(counted_n, ratio_n, jnp.inf), initial=1.0), 0.0, 1.0)


def greedy_bound(curvature: Array) -> Array:
    """(1 − e^{−c}) / c, the share of the best F that k greedy picks reach at least: 1 at c = 0, 1 − 1/e at c = 1.

    Holds for the plain gain (penalty = 0, no early stop), not for the penalised score. curvature () in [0, 1] -> ().

    >>> round(float(greedy_bound(jnp.array(1.0))), 4), float(greedy_bound(jnp.array(0.0)))
    (0.6321, 1.0)
    """
    c = jnp.asarray(curvature)
    return jnp.where(c > 0, safe_ratio(-jnp.expm1(-c), c), 1.0)


def interaction_terms(
    gram: Array, selection: SpiceSelection, *, alpha: float | Array = 1.0
) -> tuple[Array, Array]:
    """ε_x(S) = Δ_x(S) − Δ_x(∅) <= 0 of each pick, and what the paper bounds |ε| by, up to a constant C.

        |ε_x(S)| <= C · α² Σ_{y∈S} K_xy² / (1 + α K_xx),   S what was picked before x

    (reported to hold in about 90 % of steps: unconfirmed). gram (n, n) as given to ``spice`` -> ε (k,), term (k,);
    0 beyond the selection's end.

    Raises:
      ValueError: a gram that is not square.

    >>> gram = jnp.array([[2.0, 1.0], [1.0, 1.0]])
    >>> [x.round(3).tolist() for x in interaction_terms(gram, spice(gram, 2))]
    [[0.0, -0.182...], [0.0, 0.5]]
    """
    gram, _ = checked_gram(gram, None)
    picked_k = selection.order >= 0
    at_k = jnp.maximum(selection.order, 0)
    epsilon_k = jnp.where(picked_k, selection.gains - selection.base_gains[at_k], 0.0)
    both_kxk = jnp.where(picked_k[:, None] & picked_k[None, :], gram[at_k][:, at_k], 0.0)
    alpha = jnp.asarray(alpha, gram.dtype)
    before_k = jnp.sum(jnp.tril(both_kxk, k=-1) ** 2, axis=1)
    return epsilon_k, alpha**2 * before_k / (1.0 + alpha * jnp.maximum(jnp.diagonal(both_kxk), 0.0))


def _greedy(
    gains: Callable[[Any], Array],
    add: Callable[[Any, Array, Array], Any],
    start: Any,
    products: Callable[[Array], Array],
    squared_n: Array,
    present: Array,
    k: int,
    penalty: float | Array,
    omega: float | Array | None,
    eta: float | Array,
) -> SpiceSelection:
    """Greedy picks: gains(state) -> (n,), add(state, pick, t) -> state, products(pick) -> ⟨g_pick, ·⟩ (n,)."""
    dtype, n = squared_n.dtype, squared_n.shape[0]
    penalty, eta = jnp.asarray(penalty, dtype), jnp.asarray(eta, dtype)
    norms_n = jnp.sqrt(squared_n)
    base_n = gains(start)

    def step(carry: Any, t: Array) -> tuple[Any, tuple[Array, ...]]:
        state, free_n, going, sums_n, square, threshold = carry
        count = jnp.maximum(t, 1).astype(dtype)
        length = jnp.sqrt(jnp.maximum(square, 0.0)) / count
        # η keeps the ratio finite but for η = 0; Cauchy and Schwarz allow no more than 1, rounding would
        cosine_n = safe_ratio(sums_n / count, norms_n * length + eta)
        conflict_n = jnp.clip(-cosine_n, 0.0, 1.0)
        gain_n = gains(state)
        score_n = gain_n - penalty * conflict_n
        at = best(score_n, free_n)
        gain = gain_n[at]
        threshold = jnp.where(t == 0, gain, threshold)
        going = going & free_n[at]
        if omega is not None:
            going = going & ~(gain <= jnp.asarray(omega, dtype) * threshold)  # NaN goes on, and is seen
        chosen = jax.tree.map(lambda new, old: jnp.where(going, new, old), add(state, at, t), state)
        added_n = jnp.where(going, products(at), 0.0)
        square = square + jnp.where(going, 2 * sums_n[at] + squared_n[at], 0.0)
        free_n = free_n & ~((jnp.arange(n) == at) & going)
        row = (jnp.where(going, at, -1), *(jnp.where(going, x, 0.0) for x in (gain, conflict_n[at], score_n[at])))
        return (chosen, free_n, going, sums_n + added_n, square, threshold), row

    zero = jnp.zeros((), dtype)
    first = (start, present, jnp.array(True), jnp.zeros(n, dtype), zero, zero)
    _, (order, gain, conflict, score) = lax.scan(step, first, jnp.arange(k))
    return SpiceSelection(order, jnp.sum(order >= 0), gain, conflict, score, base_n, jnp.sum(gain))


def _check_numbers(alpha: object, penalty: object, omega: object, eta: object) -> None:
    check_number("alpha", alpha, lambda x: 0 < x < math.inf, "finite numbers > 0")
    check_number("penalty", penalty, lambda x: 0 <= x < math.inf, "finite numbers >= 0")
    check_number("eta", eta, lambda x: 0 <= x < math.inf, "finite numbers >= 0")
    check_number("omega", omega, lambda x: 0 <= x < 1, "None, or numbers in [0, 1)")
