"""Tests and intervals of the study's report: paired differences, one a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval; the ends are NaN for fewer than two values."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean, n − 1 degrees of freedom.

    >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    found = np.asarray(values, np.float64)
    mean = float(found.mean()) if found.size else float("nan")
    if found.size < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, found.size - 1) * found.std(ddof=1) / np.sqrt(found.size))
    return Interval(mean, mean - half, mean + half)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean under flips of the signs, all 2^n of them: the arms of a pair could be exchanged.

    >>> sign_flip_p([1.0, 2.0, 3.0])
    0.25
    """
    test = stats.permutation_test(
        (np.asarray(differences, np.float64),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    return float(test.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (Scand. J. Statist. 6, 1979): the i-th smallest times n − i + 1, never falling.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, largest = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
        adjusted[name] = largest
    return adjusted
