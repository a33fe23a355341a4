"""VADE against the golden vectors, its Beta integral, and the distribution of its choices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.collect import allocation as a
from tests.collect.allocation.vectors import block, numbers

COUNTS = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=12)


def state(pairs) -> a.VadeState:
    return a.VadeState(np.array([x for x, _ in pairs], np.float64), np.array([y for _, y in pairs], np.float64))


def test_golden(golden):
    lines = block(golden, 3)
    np.testing.assert_allclose(a.information_gain([0.13, 0.32, 0.9]), numbers(lines["InfoGain(.13,.32,.90)"]))
    grid = np.linspace(0, 1, 30001)
    assert grid[np.argmax(a.information_gain(grid))] == pytest.approx(1 / 3)
    np.testing.assert_allclose(a.information_gain(1 / 3), numbers(lines["max at p=1/3"])[0], rtol=1e-9)
    before = state([(0.1, 8.4), (2.7, 5.3), (9.0, 0.2)])
    after = a.update(before, [0, 1], [1, 4], 8)
    for i, name in enumerate(("selected (0.1,8.4), r=1", "selected (2.7,5.3), r=4", "unselected (9.0,0.2)*0.999")):
        np.testing.assert_allclose([after.alpha[i], after.beta[i]], numbers(lines[name]), rtol=1e-12)
    mean = (before.alpha[1] + 1) / (before.alpha[1] + before.beta[1] + 2)
    assert mean == pytest.approx(numbers(lines["posterior mean Beta(a+1,b+1)"])[0])
    gains = a.expected_gain(state([(2.7, 5.3), (0, 0)]))
    expected = [lines["E[InfoGain] Beta(3.7,6.3)"], lines["E[InfoGain] uniform prior"]]
    np.testing.assert_allclose(gains, [numbers(x)[0] for x in expected], rtol=1e-9)


@given(pairs=COUNTS)
def test_the_closed_form_is_the_integral(pairs):
    for alpha, beta in pairs:
        p = (np.arange(200_000) + 0.5) / 200_000
        log_density = alpha * np.log(p) + beta * np.log1p(-p)
        log_density += math.lgamma(alpha + beta + 2) - math.lgamma(alpha + 1) - math.lgamma(beta + 1)
        integral = np.mean(np.exp(log_density) * p * (1 - p) ** 2)
        assert a.expected_gain(state([(alpha, beta)]))[0] == pytest.approx(integral, rel=1e-4)


@given(pairs=COUNTS, batch=st.integers(1, 14), data=st.data())
def test_an_update_is_what_a_loop_makes(pairs, batch, data):
    before = state(pairs)
    chosen = a.select(before, np.random.default_rng(0), batch)
    assert len(set(chosen.tolist())) == len(chosen) == min(batch, len(pairs))
    right = data.draw(st.lists(st.integers(0, 8), min_size=len(chosen), max_size=len(chosen)))
    after = a.update(before, chosen, right, 8, decay_selected=0.3, decay_others=0.9)
    for i, (alpha, beta) in enumerate(pairs):
        if i in chosen.tolist():
            r = right[chosen.tolist().index(i)]
            expected = 0.3 * alpha + r, 0.3 * beta + 8 - r
        else:
            expected = 0.9 * alpha, 0.9 * beta
        assert (after.alpha[i], after.beta[i]) == pytest.approx(expected)


def test_prompts_that_are_hard_but_possible_are_chosen_most():
    known = state([(1000, 2000), (3000, 5), (5, 3000), (1500, 1500)])  # p near 1/3, 1, 0, 1/2
    picks = [int(a.select(known, np.random.default_rng(seed), 1)[0]) for seed in range(40)]
    assert picks == [0] * 40
    unknown = state([(9000, 1000), (0, 0)])  # p near 0.9, I = 0.009: a uniform draw is above in 89 of 100 cases
    picks = [int(a.select(unknown, np.random.default_rng(seed), 1)[0]) for seed in range(400)]
    assert np.mean(picks) == pytest.approx(0.89, abs=0.05)


def test_ties_go_to_the_lower_index_and_the_same_key_chooses_the_same():
    assert a.select(a.VadeState.start(5), None, 3).tolist() == [0, 1, 2]
    one, two = (a.select(a.VadeState.start(50), np.random.default_rng([3, 4]), 9).tolist() for _ in range(2))
    assert one == two
    assert one != a.select(a.VadeState.start(50), np.random.default_rng([3, 5]), 9).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: a.select(a.VadeState.start(2), None, 0), "batch = 0 is not allowed; allowed: integers >= 1"),
        (lambda: a.update(a.VadeState.start(2), [0, 0], [1, 1], 8), "names a prompt twice"),
        (lambda: a.update(a.VadeState.start(2), [0], [9], 8), "must be between 0 and rollouts"),
        (lambda: a.update(a.VadeState.start(2), [0], [1], 8, decay_others=2), "decay_others = 2 is not allowed"),
    ],
)
def test_wrong_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
