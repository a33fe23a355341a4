"""Reinforce-Ada against the golden vectors, loops that draw one rollout after another, and its edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.collect import allocation as a
from tests.collect.allocation.vectors import block, numbers

# the streams of section 2 of the vectors: rounds of 4, at most 3, n = 4
STREAMS = {
    "balanced hard": "000000100100",
    "balanced mid": "1010",
    "balanced easy": "111111101111",
    "balanced dead": "000000000000",
    "pos-mode hard": "00000010",
}
REWARDS = st.lists(st.sampled_from([0.0, 1.0, 0.5, float("nan")]), min_size=1, max_size=24)


def draw(stream: str, mode: str) -> list[float]:
    """The pool of a prompt whose rollouts come out like the stream: rounds of 4 until it is resolved."""
    pool: list[float] = []
    while len(pool) < len(stream) and not (pool and a.finished(pool, 4, mode=mode)):
        pool += [float(c) for c in stream[len(pool) : len(pool) + 4]]
    return pool


@pytest.mark.parametrize("case", STREAMS)
def test_golden_sequential(case, golden):
    lines = block(golden, 2)
    mode = "balance" if case.startswith("balanced") else "positive"
    pool = draw(STREAMS[case], mode)
    resolved = a.finished(pool, 4, mode=mode)
    keep = a.downsample(pool, 4, mode=mode)
    kept, p_hat = np.array(pool)[keep], a.pool_baseline(pool)
    if mode == "positive":
        assert lines[case] == f"{resolved} {len(pool)} {keep.tolist()}"
        np.testing.assert_allclose(kept - p_hat, numbers(lines[f"{case}/A"]), rtol=1e-9)
        return
    positives = sum(r > 0.7 for r in pool)
    assert lines[case] == f"resolved={resolved} N_x={len(pool)} n_pos={positives} keep={keep.tolist()}"
    np.testing.assert_allclose(kept, numbers(lines[f"{case}/r"]))
    np.testing.assert_allclose(p_hat, numbers(lines[f"{case}/p_hat"])[0], rtol=1e-9)
    np.testing.assert_allclose(kept - p_hat, numbers(lines[f"{case}/A=r-p_hat"]), rtol=1e-9)
    weighted = f"{case}/v3 Seq weighted A/p_hat"
    if p_hat:
        np.testing.assert_allclose((kept - p_hat) * a.sequential_weights(p_hat), numbers(lines[weighted]), rtol=1e-9)
    else:
        assert weighted not in lines
        assert a.sequential_weights(p_hat) == 1


def test_golden_estimated(golden):
    lines = block(golden, 2)
    before = a.EmaCounts(np.array([10.0]), np.array([4.0]))
    counts = a.update_counts(before, [0], [8], [0], decay=0.9)
    found = [counts.total[0], counts.positive[0], a.estimate(counts)[0]]
    name = "EMA: (Ntot,Npos,p) after n=8,k=0 from (10,4), lam=.9, Beta(1,1)"
    np.testing.assert_allclose(found, numbers(lines[name]), rtol=1e-9)
    shares = a.allocate([0.04, 0.25, 0.64, 1.0], 32, 2, 16)
    np.testing.assert_allclose(shares, numbers(lines["Est alloc total=32,[2,16], w=1/sqrt(p)"]), rtol=1e-9)
    assert a.integer_counts(shares).tolist() == [16, 7, 5, 4]
    np.testing.assert_allclose(
        a.est_advantages([1, 0, 0, 0]), numbers(lines["Est advantage, group r=[1,0,0,0], eps=0: (r-rbar)/sqrt(rbar)"])
    )
    np.testing.assert_allclose(
        a.optimal_counts([0.1, 0.5, 0.9], 32), numbers(lines["App B optimum n ~ sqrt((1-p)/p) for p=[.1,.5,.9], N=32"]),
        rtol=1e-9,
    )


def picked_by_hand(pool: list[float], n: int, mode: str, k_positive: int) -> list[int]:
    """The same rule, one rollout at a time."""
    positive = [i for i, r in enumerate(pool) if r > 0.7]
    negative = [i for i, r in enumerate(pool) if r <= 0.7]
    missing = [i for i, r in enumerate(pool) if r != r]
    graded = len(positive) + len(negative)
    resolved = len(positive) >= k_positive if mode == "positive" else (
        len(positive) >= n // 2 and len(negative) >= n - n // 2
    )
    quota = n // 2
    if mode == "positive" and not resolved and graded:
        quota = 1
        while quota * graded < n * len(positive) and quota < min(n, graded) - 1:
            quota += 1
    first, second = [], []
    for i in positive:
        if len(first) < quota:
            first.append(i)
    for i in negative:
        if len(first) + len(second) < n:
            second.append(i)
    for i in positive[len(first) :]:
        if len(first) + len(second) < n:
            first.append(i)
    third = missing[: n - len(first) - len(second)]
    return first + second + third


@given(pool=REWARDS, n=st.integers(1, 9), mode=st.sampled_from(["balance", "positive"]), k=st.integers(1, 4))
def test_what_is_kept_is_what_a_loop_keeps(pool, n, mode, k):
    kept = a.downsample(pool, n, mode=mode, k_positive=k)
    assert kept.tolist() == picked_by_hand(pool, n, mode, k)
    assert len(set(kept.tolist())) == len(kept) == min(n, len(pool))


@given(pool=REWARDS)
def test_the_baseline_is_the_share_of_positives(pool):
    graded = [r for r in pool if r == r]
    assert a.pool_baseline(pool) == (sum(r > 0.7 for r in graded) / len(graded) if graded else 0.0)


def test_an_equal_pool_has_no_advantage():
    for pool in ([1.0] * 6, [0.0] * 6):
        assert (np.array(pool)[a.downsample(pool, 4)] - a.pool_baseline(pool) == 0).all()


def test_the_estimated_advantage_is_baseline_and_weight():
    rewards = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    parts = (rewards - rewards.mean()) * a.est_weights(rewards.mean(), 0.01)
    np.testing.assert_allclose(parts, a.est_advantages(rewards, 0.01), rtol=1e-12)
    assert a.est_advantages([0, 0]).tolist() == [0, 0]


def test_the_optimum_makes_the_whole_weight_that_of_grpo():
    p = np.array([0.1, 0.5, 0.9])
    n = a.optimal_counts(p, 1.0)
    np.testing.assert_allclose(n / n[1], np.sqrt((1 - p) / p), rtol=1e-12)
    assert a.optimal_counts([1.0, 1.0], 8).tolist() == [4, 4]


def test_counts_of_other_prompts_stay():
    before = a.EmaCounts(np.array([5.0, 7.0]), np.array([1.0, 2.0]))
    after = a.update_counts(before, [1], [4], [3], decay=0.5)
    assert after.total.tolist() == [5.0, 7.5]
    assert after.positive.tolist() == [1.0, 4.0]
    assert before.total.tolist() == [5.0, 7.0]  # not changed in place


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: a.finished([1], 4, mode="exact"), "mode = 'exact' is unknown; allowed: balance, positive"),
        (lambda: a.downsample([1], 0), "n = 0 is not allowed; allowed: integers >= 1"),
        (lambda: a.downsample([1], 1, k_positive=0), "k_positive = 0 is not allowed; allowed: integers >= 1"),
        (lambda: a.allocate([0.0, 1.0], 8, 1, 8), "eps = 0.0 is not allowed; .* where a success rate is 0"),
        (lambda: a.allocate([0.5, 1.0], 20, 1, 8), "total = 20 does not fit 2 counts of 1 to 8 each"),
        (lambda: a.optimal_counts([0.0], 8), r"p = \[0.0\] is not allowed"),
        (lambda: a.estimate(a.EmaCounts.start(1), prior_positive=0), "prior_positive = 0 is not allowed"),
        (lambda: a.update_counts(a.EmaCounts.start(2), [1, 1], [1, 1], [0, 0]), "names a prompt twice"),
        (lambda: a.update_counts(a.EmaCounts.start(2), [1], [1], [2]), "must be between 0 and drawn"),
        (lambda: a.update_counts(a.EmaCounts.start(2), [1], [1], [np.nan]), "must be between 0 and drawn"),
        (lambda: a.update_counts(a.EmaCounts.start(2), [0, 1], [4], [1]), "must have one shape"),
        (lambda: a.update_counts(a.EmaCounts.start(2), [5], [4], [1]), "must be in"),
        (lambda: a.update_counts(a.EmaCounts.start(2), [1], [1], [1], decay=1.5), "decay = 1.5 is not allowed"),
    ],
)
def test_wrong_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
