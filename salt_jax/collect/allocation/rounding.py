"""Counts in proportion to weights, between bounds; and whole numbers with the same sum."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

Floats = np.ndarray


def water_fill(weights: ArrayLike, total: float, low: float, high: float) -> Floats:
    """x_i = clip(c · w_i, low, high), with the one level c at which Σ x = total.

    Exact: Σ clip(c · w, low, high) is piecewise linear in c, and c is found on the piece that holds the total.

    Args:
      weights: (n,) finite, ≥ 0. A weight of 0 stays at ``low``, unless all others are at ``high``: then the weights
        of 0 share what is left evenly.
      total: Σ x.
      low: least of each, ≥ 0.
      high: most of each.

    Returns:
      (n,) float64.

    Raises:
      ValueError: no weight, a weight that is negative or not finite, or a total outside [n · low, n · high].

    Example:
      >>> water_fill([5.0, 2.0, 1.25, 1.0], total=32, low=2, high=16).round(3).tolist()
      [16.0, 7.529, 4.706, 3.765]
    """
    w = checked("weights", weights)
    n = w.size
    if not 0 <= low <= high or not n * low <= total <= n * high:
        raise ValueError(f"total = {total:g} does not fit {n} counts of {low:g} to {high:g} each")
    positive = w > 0
    x = np.full(n, float(low))
    if not positive.any():
        return np.full(n, total / n)
    room = high * positive.sum() + low * (n - positive.sum())
    if total >= room:
        x[positive] = high
        if not positive.all():
            x[~positive] = (total - high * positive.sum()) / (n - positive.sum())
        return x
    scaled = np.maximum(w[positive] / w.max(), 1e-100)  # no level of 0 or infinity, whatever the unit of the weights
    rest = total - low * (n - positive.sum())
    knots = np.unique(np.concatenate([low / scaled, high / scaled]))
    sums = np.array([np.clip(c * scaled, low, high).sum() for c in knots])
    right = int(np.clip(np.searchsorted(sums, rest), 1, len(knots) - 1))
    left = right - 1
    rise = sums[right] - sums[left]
    share = (rest - sums[left]) / rise if rise > 0 else 0.0
    level = knots[left] + share * (knots[right] - knots[left])
    x[positive] = np.clip(level * scaled, low, high)
    return x


def integer_counts(real: ArrayLike, total: int | None = None) -> np.ndarray:
    """Whole numbers near real counts, with their sum: n = rint(x), then ±1 where |x − n| asks for it most.

    What rounding leaves over goes, one each, to the largest (x − n) of the sign that is needed (RLHFlow/GVM; rint
    rounds halves to even numbers). Ties go to the lower index. A whole number stays as it is, so that whole bounds
    that hold for x hold for n, and 0 stays 0.

    Args:
      real: (n,) finite counts ≥ 0.
      total: what they add up to, where x only does so up to rounding; None: rint(Σ x).

    Returns:
      (n,) int64 with Σ n = total.

    Raises:
      ValueError: counts that are negative or not finite, or whose sum is not the total to within 1e-6 of it.

    Example:
      >>> integer_counts([1.597244, 4.490929, 12.412441, 13.499386, 0.0]).tolist()
      [2, 4, 12, 14, 0]
    """
    x = checked("counts", real)
    total = int(np.rint(x.sum())) if total is None else int(total)
    if abs(x.sum() - total) > 1e-6 * max(total, 1):
        raise ValueError(f"the counts add up to {x.sum():g}, not to {total}")
    nearest = np.rint(x)
    x = np.where(np.abs(x - nearest) < 1e-9 * np.maximum(nearest, 1), nearest, x)  # 2 - 1e-16 is a whole number
    n = nearest.astype(np.int64)
    missing = total - int(n.sum())
    sign = 1 if missing > 0 else -1
    most = np.argsort(-sign * (x - n), kind="stable")[: abs(missing)]
    n[most] += sign
    return n


def checked(name: str, values: ArrayLike) -> Floats:
    """(n,) float64, finite and ≥ 0.

    Raises:
      ValueError: naming what is wrong.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} must have shape (n,) with n >= 1, got {x.shape}")
    if not (np.isfinite(x).all() and (x >= 0).all()):
        raise ValueError(f"{name} must be finite numbers >= 0, got {x.tolist()}")
    return x
