"""Water-filling against bisection, and whole numbers against what they must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.collect.allocation import integer_counts, water_fill

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-6, 1e6)), min_size=1, max_size=10)


def by_bisection(weights, total, low, high):
    """The level of the positive weights, by halving an interval."""
    down, up = 0.0, high / min(weights)
    for _ in range(200):
        middle = (down + up) / 2
        short = sum(min(max(middle * w, low), high) for w in weights) < total
        down, up = (middle, up) if short else (down, middle)
    return [min(max(up * w, low), high) for w in weights]


@given(weights=WEIGHTS, low=st.integers(0, 3), room=st.integers(0, 8), share=st.floats(0, 1))
def test_the_sum_and_the_bounds_hold(weights, low, room, share):
    n, high = len(weights), low + room
    total = n * low + share * n * room
    x = water_fill(weights, total, low, high)
    assert x.sum() == pytest.approx(total, rel=1e-9, abs=1e-9)
    assert (x >= low - 1e-9).all()
    assert (x <= high + 1e-9).all()
    order = np.argsort(weights, kind="stable")
    assert (np.diff(x[order]) >= -1e-6).all()  # more weight, not less
    whole = round(total)
    counts = integer_counts(water_fill(weights, whole, low, high), whole)
    assert counts.sum() == whole
    assert counts.min() >= low
    assert counts.max() <= high


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), low=st.integers(0, 3), room=st.integers(1, 8),
       share=st.floats(0.01, 0.99))
def test_the_level_is_the_one_that_bisection_finds(weights, low, room, share):
    total = len(weights) * (low + share * room)
    expected = by_bisection(weights, total, low, low + room)
    np.testing.assert_allclose(water_fill(weights, total, low, low + room), expected, rtol=1e-6, atol=1e-6)


def test_weights_of_zero_stay_below_until_all_others_are_full():
    assert water_fill([1, 0, 3], 9, 1, 8).tolist() == [2, 1, 6]
    assert water_fill([0, 1], 10, 1, 8).tolist() == [2, 8]
    assert water_fill([0, 0], 6, 1, 8).tolist() == [3, 3]
    assert water_fill([1e-300, 1.0], 4, 0, 3).tolist() == pytest.approx([1, 3])


@given(real=st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_no_count_moves_by_more_than_one(real):
    total = round(sum(real))
    scaled = [x * total / sum(real) for x in real] if sum(real) > 0 else real
    counts = integer_counts(scaled, total)
    assert counts.sum() == total
    assert np.abs(counts - scaled).max(initial=0) < 1 + 1e-6


def test_ties_go_to_the_lower_index_and_whole_numbers_stay():
    assert integer_counts([1.5, 1.5, 1.5, 1.5]).tolist() == [1, 1, 2, 2]  # rint: 2, 2, 2, 2, two too many
    assert integer_counts([0.25, 0.25, 0.25, 0.25]).tolist() == [1, 0, 0, 0]
    assert integer_counts([3.0, 0.0, 2.0]).tolist() == [3, 0, 2]
    assert integer_counts([2 - 1e-15, 0.5, 0.5], 3).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: water_fill([], 1, 0, 1), r"weights must have shape \(n,\) with n >= 1, got \(0,\)"),
        (lambda: water_fill([1, -1], 1, 0, 1), "weights must be finite numbers >= 0"),
        (lambda: water_fill([1, 1], 5, 0, 2), "total = 5 does not fit 2 counts of 0 to 2 each"),
        (lambda: water_fill([1, 1], 1, 1, 2), "total = 1 does not fit 2 counts of 1 to 2 each"),
        (lambda: integer_counts([1.0, 1.0], 3), "the counts add up to 2, not to 3"),
        (lambda: integer_counts([float("nan")]), "counts must be finite numbers >= 0"),
    ],
)
def test_wrong_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
