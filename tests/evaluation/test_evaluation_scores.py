"""Statistics of evaluations against enumeration: all k-subsets, all resamples, all patterns of signs."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.evaluation import scores as evaluate_scores
from salt_jax.evaluation.scores import (
    bootstrap_interval,
    correct_samples,
    majority_vote,
    paired_bootstrap,
    pass_at_k,
    sign_flip_p_value,
)

# --- pass@k ---


def share_of_subsets(n: int, c: int, k: int) -> Fraction:
    """Share of the k-subsets of n samples, c of them correct, that hold a correct one."""
    samples = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(samples, k))
    return Fraction(sum(map(any, subsets)), len(subsets))


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_k_subsets_with_a_correct_sample(n):
    for k in range(1, n + 1):
        expected = [float(share_of_subsets(n, c, k)) for c in range(n + 1)]
        np.testing.assert_allclose(pass_at_k(n, np.arange(n + 1), k), expected, rtol=1e-14, atol=1e-15)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_of_many_samples(case):
    n, c, k = case
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))  # integers: nothing overflows, nothing cancels
    np.testing.assert_allclose(float(pass_at_k(n, c, k)), float(exact), rtol=1e-9, atol=1e-12)


def test_pass_at_k_of_problems_with_different_numbers_of_samples():
    np.testing.assert_allclose(pass_at_k([2, 3, 4], [1, 1, 1], 2), [1.0, 2 / 3, 1 / 2], rtol=1e-15)


def test_pass_at_k_is_unbiased():
    """Its mean over binomial counts is 1 - (1 - p)^k, summed exactly."""
    n, k, p = 6, 3, 0.2
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert np.dot(weights, pass_at_k(n, np.arange(n + 1), k)) == pytest.approx(1 - (1 - p) ** k, rel=1e-13)


@pytest.mark.parametrize(
    ("n", "c", "k", "words"),
    [
        ([8, 4], [1, 1], 5, "k = 5 is not allowed with n = 4"),
        (4, 1, 0, "k = 0"),
        (4, 5, 2, "c = 5 correct of n = 4"),
        ([4, 4], [0, -1], 2, "c = -1"),
        (4.0, 1, 2, "n must be integers"),
        (4, 1, 2.0, "k must be integers"),
        (4, True, 2, "c must be integers"),
    ],
)
def test_pass_at_k_of_what_cannot_be(n, c, k, words):
    with pytest.raises(ValueError, match=words):
        pass_at_k(n, c, k)


def test_pass_at_k_over_no_problem():
    assert pass_at_k(np.zeros(0, int), np.zeros(0, int), 3).shape == (0,)


# --- votes ---


def vote_by_drawing(answers, correct, rewarded) -> float | None:
    """Every choice among the most frequent answers, then every sample that gave the chosen one."""
    votes = [(a, ok) for a, ok, used in zip(answers, correct, rewarded, strict=True) if used and a is not None]
    if not votes:
        return None
    names = sorted({a for a, _ in votes})
    most = max(sum(a == name for a, _ in votes) for name in names)
    winners = [name for name in names if sum(a == name for a, _ in votes) == most]
    shares = [Fraction(sum(ok for a, ok in votes if a == name), most) for name in winners]
    return float(sum(shares, Fraction(0)) / len(winners))


@pytest.mark.parametrize(
    ("answers", "rewards", "rewarded", "expected"),
    [
        (["7", "7", "8"], [1, 1, 0], [1, 1, 1], 1.0),
        (["8", "7", "8"], [0, 1, 0], [1, 1, 1], 0.0),
        (["7", "8"], [1, 0], [1, 1], 1 / 2),  # a tie: either
        (["7", "8", "9"], [1, 0, 0], [1, 1, 1], 1 / 3),
        (["7", "7", "8", "8", "9"], [1, 1, 0, 0, 0], [1] * 5, 1 / 2),  # 9 is not among the most frequent
        ([None, None, None, "7"], [0, 0, 0, 1], [1] * 4, 1.0),  # no answer is no vote, however frequent
        (["8", "8", "7"], [math.nan, math.nan, 1], [0, 0, 1], 1.0),  # nor is what could not be graded
        (["7", "7"], [1.0, 0.5], [1, 1], 1 / 2),  # the grader looked at more than the answer
        ([None, None], [0, 0], [1, 1], None),
        (["7"], [math.nan], [0], None),
        ([], [], [], None),
    ],
)
def test_majority_vote(answers, rewards, rewarded, expected):
    assert majority_vote(answers, rewards, rewarded) == expected


SAMPLES = st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.booleans(), st.booleans()), max_size=9)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_majority_vote_does_not_depend_on_the_order(samples: list, shuffler: random.Random):
    def vote(samples: list) -> float | None:
        answers, correct, rewarded = map(list, zip(*samples, strict=True)) if samples else ([], [], [])
        return majority_vote(answers, np.array(correct, np.float32), rewarded)

    shuffled = list(samples)
    shuffler.shuffle(shuffled)
    assert vote(shuffled) == vote(samples)
    columns = list(zip(*samples, strict=True)) or [(), (), ()]
    expected = vote_by_drawing(*columns)
    assert vote(samples) == (None if expected is None else pytest.approx(expected, rel=1e-14))


@pytest.mark.parametrize("kind", [float, np.float64])
def test_correct_samples_compares_in_float32(kind):
    rewards = np.array([0.9, 0.7, 1.0], np.float32)  # the first is below the float64 0.9
    assert correct_samples(rewards, [True] * 3, correct_from=kind(0.9)).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0], [True, True]), r"shape \(1,\) do not match"),
        (([math.nan], [True]), "reward 0 is NaN but is not marked as missing"),
    ],
)
def test_correct_samples_of_what_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        correct_samples(*arguments)


def test_a_vote_needs_an_answer_a_sample():
    with pytest.raises(ValueError, match="1 answers do not match 2 rewards"):
        majority_vote(["7"], [1, 1], [True, True])


# --- the bootstrap ---


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.25, 1.0], [3.0, 3.0, -1.0, 0.5], [0.0, 0.0, 0.5, 1.0, 1.0]])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_bootstrap_interval_against_all_resamples(values, level):
    """Between the quantiles, a little inside and outside the level, of the means of all n^n resamples."""
    means = sorted(np.mean(list(itertools.product(values, repeat=len(values))), axis=1))

    def quantile(share: float) -> float:
        return means[min(max(math.ceil(share * len(means)) - 1, 0), len(means) - 1)]

    slack = 4 * math.sqrt(0.25 / 10_000)  # four standard deviations of a simulated share
    tail = (1 - level) / 2
    low, high = bootstrap_interval(values, level=level)
    assert quantile(tail - slack) - 1e-12 <= low <= quantile(tail + slack) + 1e-12
    assert quantile(1 - tail - slack) - 1e-12 <= high <= quantile(1 - tail + slack) + 1e-12


def test_bootstrap_interval_of_many_problems_is_normal():
    values = np.repeat([0.0, 0.5, 1.0], [300, 200, 500])
    low, high = bootstrap_interval(values, resamples=100_000)
    width = 1.959964 * values.std() / math.sqrt(values.size)
    # the ends' own error: a quantile of R normal means has standard deviation 2.67 σ / sqrt(R) at 2.5 %
    slack = 5 * 2.67 * (width / 1.96) / math.sqrt(100_000) + 0.5 / 1000  # and the means are multiples of 1/2000
    assert low == pytest.approx(values.mean() - width, abs=slack)
    assert high == pytest.approx(values.mean() + width, abs=slack)


def test_bootstrap_interval_covers_the_truth():
    """Shares of 8 samples of problems whose difficulty is uniform: the true mean is 1/2."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(400):
        values = rng.binomial(8, rng.uniform(size=60)) / 8
        low, high = bootstrap_interval(values, resamples=1000, seed=seed)
        hits += low <= 0.5 <= high
    # 95 % less what 60 problems cost (about 1 %): within four standard deviations of a share of 400
    assert 0.94 - 4 * math.sqrt(0.05 * 0.95 / 400) <= hits / 400 <= 0.95 + 4 * math.sqrt(0.05 * 0.95 / 400)


VALUES = st.lists(st.sampled_from([0.0, 0.125, 1 / 3, 0.1, 1.0]) | st.floats(-1e6, 1e6), min_size=2, max_size=30)


@given(VALUES, st.randoms(use_true_random=False), st.integers(0, 5))
def test_bootstrap_interval_does_not_depend_on_the_order(values: list, shuffler: random.Random, seed: int):
    interval = bootstrap_interval(values, resamples=50, seed=seed)
    assert min(values) <= interval[0] <= interval[1] <= max(values)
    shuffled = list(values)
    shuffler.shuffle(shuffled)
    assert bootstrap_interval(shuffled, resamples=50, seed=seed) == interval


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_change_nothing(block, monkeypatch):
    values, differences = np.arange(10.0), np.arange(-3.0, 6.0)
    whole = bootstrap_interval(values, resamples=100, seed=3), sign_flip_p_value(differences, resamples=100, seed=3)
    monkeypatch.setattr(evaluate_scores, "BLOCK", block)
    assert bootstrap_interval(values, resamples=100, seed=3) == whole[0]
    assert sign_flip_p_value(differences, resamples=100, seed=3) == whole[1]


def test_a_block_is_bounded(monkeypatch):
    monkeypatch.setattr(evaluate_scores, "BLOCK", 8)
    assert list(evaluate_scores._blocks(7, 3)) == [2, 2, 2, 1]
    assert list(evaluate_scores._blocks(2, 9)) == [1, 1]  # one resample is the least


def test_bootstrap_interval_without_spread():
    assert bootstrap_interval([0.1] * 3) == (0.1, 0.1)  # exactly, though 3 * 0.1 / 3 is not 0.1
    assert all(map(math.isnan, bootstrap_interval([0.7])))


def test_the_seed_decides():
    values = np.linspace(0, 1, 40)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ([], {}, "at least one"),
        ([[0.0, 1.0]], {}, r"shape \(1, 2\)"),
        ([0.0, math.nan], {}, "number 1 is nan"),
        ([0.0, math.inf], {}, "number 1 is inf"),
        ([0.0, 1.0], {"level": 95}, "level = 95"),
        ([0.0, 1.0], {"resamples": 0}, "resamples = 0"),
    ],
)
def test_bootstrap_interval_of_what_cannot_be(values, settings, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(values, **settings)


# --- pairs ---


def p_of_all_signs(differences: list[float]) -> float:
    """Share of the 2^n patterns of signs whose sum is at least as far from 0."""
    exact = [Fraction(d) for d in differences]
    sums = [abs(sum(s * d for s, d in zip(signs, exact, strict=True)))
            for signs in itertools.product((-1, 1), repeat=len(exact))]  # fmt: skip
    return sums.count(abs(sum(exact))) / len(sums) + sum(x > abs(sum(exact)) for x in sums) / len(sums)


@pytest.mark.parametrize(
    "differences",
    [
        [1.0], [1.0, 1.0], [1.0] * 8, [1.0, -1.0], [0.5, 0.25, 0.25, -0.125, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0],
        [-0.75, -0.5, 0.25, -0.25, -1.0, -0.5, 0.125, 0.0, -0.5],
    ],
)  # fmt: skip
def test_sign_flip_p_value_against_all_signs(differences):
    expected = p_of_all_signs(differences)
    slack = 4 * math.sqrt(expected * (1 - expected) / 10_000) + 1 / 10_001
    assert sign_flip_p_value(differences) == pytest.approx(expected, abs=slack)


def test_a_p_value_counts_the_signs_that_were_observed():
    assert sign_flip_p_value([1.0] * 60, resamples=99) == 0.01  # no draw of 60 fair signs has them all alike


def test_equal_sums_count_as_equal_whatever_their_rounding():
    """0.1 + 0.2 - 0.3 is not 0 in floating point: the p-value of a zero sum is 1 all the same."""
    assert sign_flip_p_value([0.1, 0.2, -0.3]) == 1.0
    for tenths in ([-3, 3, -5], [4, 1, -1, 6], [-5, 7, 2, 6, -2]):  # rounded, some equal sums are less than observed
        expected = p_of_all_signs(tenths)
        slack = 4 * math.sqrt(expected * (1 - expected) / 10_000) + 1 / 10_001
        assert sign_flip_p_value(np.array(tenths) / 10) == pytest.approx(expected, abs=slack)


@pytest.mark.parametrize("ties", [False, True])
def test_sign_flip_p_value_holds_its_level(ties):
    """Under the null p is uniform where sums cannot tie; where they do, it is that or more."""
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(400):
        difficulty = rng.uniform(size=40)
        a, b = (rng.binomial(4, difficulty) / 4 for _ in "ab")  # two policies that do equally well
        differences = a - b if ties else rng.standard_cauchy(size=40)  # symmetric, far from normal
        p_values.append(sign_flip_p_value(differences, resamples=500, seed=seed))
    for level in (0.05, 0.2, 0.5):
        share, slack = np.mean(np.array(p_values) <= level), 4 * math.sqrt(level * (1 - level) / 400)
        assert share <= level + slack
        assert ties or share >= level - slack


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_sign_flip_p_value_is_two_sided(differences):
    p_value = sign_flip_p_value(differences, resamples=40)
    assert 1 / 41 <= p_value <= 1
    assert sign_flip_p_value([-d for d in differences], resamples=40) == p_value
    assert sign_flip_p_value(differences[::-1], resamples=40) == p_value


def test_paired_bootstrap_pairs_by_id():
    a = {"x": 1.0, "y": 0.5, "z": 0.25}
    result = paired_bootstrap(a, {"z": 0.25, "x": 0.0, "y": 1.0})
    assert result.difference == pytest.approx((1.0 - 0.5 + 0.0) / 3, rel=1e-15)
    assert (result.low, result.high) == bootstrap_interval([1.0, -0.5, 0.0])
    assert result.p_value == sign_flip_p_value([1.0, -0.5, 0.0])
    assert (result.problems, result.left_out) == (3, 0)


def test_pairing_tells_apart_what_separate_intervals_do_not():
    """Two policies that differ by one sample in eight on every other problem, over problems of all difficulties."""
    difficulty = np.linspace(0.1, 0.8, 100)
    a = {str(i): x + (0.125 if i % 2 else 0.0) for i, x in enumerate(difficulty)}
    b = {str(i): x for i, x in enumerate(difficulty)}
    assert bootstrap_interval(list(a.values()))[0] < bootstrap_interval(list(b.values()))[1]
    result = paired_bootstrap(a, b)
    assert result.low > 0.04
    assert result.p_value == 1 / 10_001  # no pattern of signs reaches fifty that agree: never 0 all the same


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(values: list, shuffler: random.Random):
    a, b = ({str(i): x for i, x in enumerate(side)} for side in (values, [x * x for x in values]))
    order = shuffler.sample(sorted(a), len(a))
    assert paired_bootstrap({i: a[i] for i in order}, b, resamples=20) == paired_bootstrap(a, b, resamples=20)


def test_problems_without_a_value_are_left_out_and_counted():
    a = {"x": 1.0, "y": math.nan, "z": 0.0, "w": 1.0}
    b = {"x": 0.0, "y": 1.0, "z": math.nan, "w": 1.0}
    result = paired_bootstrap(a, b)
    assert (result.difference, result.problems, result.left_out) == (0.5, 2, 2)


def test_one_pair_has_a_difference_and_no_interval():
    result = paired_bootstrap({"x": 1.0}, {"x": 0.0})
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert (result.difference, result.p_value) == (1.0, 1.0)


def test_a_policy_against_itself():
    a = {str(i): i / 10 for i in range(10)}
    assert paired_bootstrap(a, dict(reversed(a.items()))) == (0.0, 0.0, 0.0, 1.0, 10, 0)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ({"x": 1.0, "y": 1.0}, {"x": 1.0, "z": 1.0}, r"2 are in one of them only: 'y', 'z'$"),
        ({str(i): 1.0 for i in range(5)}, {}, r"5 are in one of them only: '0', '1', '2', …"),
        ({"x": math.nan}, {"x": 1.0}, "none of the 1 problems has a value in both"),
        ({}, {}, "none of the 0 problems"),
        ({"x": math.inf}, {"x": 1.0}, "finite"),
    ],
)
def test_paired_bootstrap_of_what_cannot_be(a, b, words):
    with pytest.raises(ValueError, match=words):
        paired_bootstrap(a, b)
