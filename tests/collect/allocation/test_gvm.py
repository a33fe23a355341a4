"""GVM-RAFT against the golden vectors, and against every other allocation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.collect import allocation as a
from tests.collect.allocation.vectors import block, numbers

NORMS, RATES = [1, 2, 4, 3, 0], [0.5, 0.25, 0.125, 0.03125, 0]
PROMPTS = st.lists(st.tuples(st.floats(0, 10), st.sampled_from([0.0, 0.125, 0.5, 1.0])), min_size=1, max_size=8)


def test_golden(golden):
    lines = block(golden, 4)
    np.testing.assert_allclose(a.gvm_weights(NORMS, RATES), numbers(lines["weights"]), rtol=1e-9)
    real = a.gvm_counts(NORMS, RATES, 32)
    np.testing.assert_allclose(real, numbers(lines["n real"]), rtol=1e-9)
    counts = a.integer_counts(real, 32)
    assert lines["n int"] == f"{counts.tolist()} sum {counts.sum()}"
    name = "regulariser (1+alpha/p^beta)^-1 at p=1/32"
    np.testing.assert_allclose(a.regularizer(1 / 32), numbers(lines[name])[0], rtol=1e-9)
    bounds = [
        a.variance_bound(NORMS[:3], RATES[:3], counts, alpha=0.0)
        for counts in ([10, 10, 10], a.gvm_counts(NORMS[:3], RATES[:3], 30, alpha=0.0))
    ]
    expected = numbers(lines["variance bound uniform vs optimal (alpha=0,N=30)"])
    np.testing.assert_allclose(bounds, expected, rtol=1e-9)


def test_no_whole_allocation_has_a_lower_bound_than_the_real_one():
    g, p, total = [1.0, 2.0, 0.5], [0.5, 0.125, 1.0], 12
    best = a.variance_bound(g, p, a.gvm_counts(g, p, total))
    others = [
        a.variance_bound(g, p, (x, y, total - x - y))
        for x, y in itertools.product(range(1, total), repeat=2) if x + y < total
    ]
    assert best <= min(others)
    assert min(others) < a.variance_bound(g, p, [4, 4, 4])
    assert a.variance_bound(g, p, [0, 6, 6]) == float("inf")


@given(prompts=PROMPTS, alpha=st.sampled_from([0.0, 1e-3, 0.1]), beta=st.sampled_from([1.0, 2.0, 3.0]))
def test_weights_are_what_a_loop_makes(prompts, alpha, beta):
    raw = [g / (p + alpha / p ** (beta - 1)) ** 0.5 if g > 0 and p > 0 else 0.0 for g, p in prompts]
    found = a.gvm_weights(*zip(*prompts, strict=True), alpha=alpha, beta=beta)
    assert found.sum() == pytest.approx(1)
    expected = [w / sum(raw) for w in raw] if sum(raw) else [1 / len(raw)] * len(raw)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_filters_leave_out_and_share_again():
    all_of_it = a.gvm_counts([1, 1, 1], [1.0, 0.5, 0.25], 12, alpha=0.0)
    easy_out = a.gvm_counts([1, 1, 1], [1.0, 0.5, 0.25], 12, alpha=0.0, filter_threshold=0.9)
    assert easy_out[0] == 0
    assert easy_out.sum() == pytest.approx(12)
    assert easy_out[2] / easy_out[1] == pytest.approx(all_of_it[2] / all_of_it[1])
    few_out = a.gvm_counts([1, 1, 1], [1.0, 0.5, 0.25], 12, alpha=0.0, filter_insufficient=1.5)
    assert (few_out > 0).tolist() == (np.array([1.0, 0.5, 0.25]) * all_of_it >= 1.5).tolist()
    none_left = a.gvm_counts([1, 1, 1], [1.0, 0.5, 0.25], 12, alpha=0.0, filter_insufficient=100)
    np.testing.assert_allclose(none_left, all_of_it)


def test_nothing_accepted_is_shared_evenly():
    assert a.gvm_counts([0, 0], [0, 0], 8).tolist() == [4, 4]
    assert a.row_weights([4, 4], [0.0, 0.0]).tolist() == [1, 1]


def test_the_norm_is_the_mean_over_accepted_pilots():
    norms = np.array([[1.0, 5.0, 3.0], [2.0, np.nan, 4.0]])
    accepted = np.array([[True, False, True], [True, False, False]])
    assert a.mean_norms(norms, accepted).tolist() == [2.0, 2.0]


def test_row_weights_make_the_mean_over_rows_that_over_prompts():
    counts, rates = np.array([2, 6, 8, 0]), np.array([0.5, 0.25, 1.0, 0.5])
    w = a.row_weights(counts, rates)
    # Σ_rows w·1[accepted]/N with n·p accepted rows each: every prompt with rollouts counts the same
    each = [w[i] * counts[i] * rates[i] / counts.sum() for i in range(4)]
    np.testing.assert_allclose(each, [1 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: a.gvm_weights([1], [0.5, 0.5]), "1 grad_norms do not match 2 acceptance rates"),
        (lambda: a.gvm_weights([-1], [0.5]), "grad_norms must be finite numbers >= 0"),
        (lambda: a.gvm_weights([float("nan")], [0.5]), "grad_norms must be finite numbers >= 0"),
        (lambda: a.gvm_weights([1], [1.5]), r"acceptance = \[1.5\] is not allowed; allowed: numbers in \[0, 1\]"),
        (lambda: a.gvm_weights([1], [1], alpha=-1), "alpha = -1, beta = 2.0 is not allowed"),
        (lambda: a.regularizer([1], beta=0.5), "beta = 0.5 is not allowed; allowed: alpha >= 0, beta >= 1"),
    ],
)
def test_wrong_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
