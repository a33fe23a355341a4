"""Reinforce-Ada (arXiv 2510.04996 v1 and v3; RLHFlow/Reinforce-Ada): more rollouts for prompts that need them.

The sequential form draws rounds of M rollouts until a prompt has what an exit rule asks for, keeps n of its pool and
takes the baseline from the whole pool. The estimated form ('Est', v3 Alg. 1) allocates counts beforehand from a
running estimate of each prompt's success rate.

A rollout is positive where it succeeded (``rollout.succeeded``): its reward is at least ``correct_from``, in a run
config.task.correct_from, 1 by default. The release has "reward > 0.7": the same for rewards of 0 and 1. Where graders
give what lies between, correct_from = 0.7 is the release's but for a reward of exactly 0.7, which is positive here.

The paper's constants of the estimated form (decay, Beta prior, ε, bounds) are not published in what this was written
from: the defaults here are ours.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from salt_jax.collect.allocation.rounding import checked, water_fill
from salt_jax.rollout import succeeded

MODES = ("balance", "positive")


def finished(
    rewards: ArrayLike, n: int, *, mode: str = "balance", k_positive: int = 1, correct_from: float = 1.0
) -> bool:
    """Whether a prompt's pool has what its exit rule asks for (v1 Alg. 1, v3 Alg. 2).

    'positive': #pos ≥ K_pos. 'balance': #pos ≥ ⌊n/2⌋ and #neg ≥ n − ⌊n/2⌋.

    Args:
      rewards: (S,) in the order they were drawn; NaN where the grader failed, which is neither.
      n: rollouts that will be kept.
      mode: exit rule.
      k_positive: K_pos.
      correct_from: the least reward of a positive.

    Raises:
      ValueError: an unknown mode, n or k_positive < 1.

    Example:
      >>> finished([0, 0, 1, 0], 4), finished([0, 0, 1, 0], 4, mode="positive")
      (False, True)
    """
    _check(n, mode, k_positive)
    positive, negative = _signs(rewards, correct_from)
    if mode == "positive":
        return len(positive) >= k_positive
    return len(positive) >= n // 2 and len(negative) >= n - n // 2


def downsample(
    rewards: ArrayLike,
    n: int,
    *,
    mode: str = "balance",
    k_positive: int = 1,
    correct_from: float = 1.0,
) -> np.ndarray:
    """Which n rollouts of a pool are kept: the first positives, then the first negatives; nothing is random.

    t⁺ = min(⌊n/2⌋, #pos), t⁻ = min(n − t⁺, #neg), and what is then missing comes from the remaining positives. A pool
    that 'positive' did not resolve has t⁺ = clip(⌈n · #pos / |S|⌉, 1, n − 1) in place of ⌊n/2⌋.

    =====================================  ======================================================
    pool                                   kept
    =====================================  ======================================================
    no positive, or no negative            the first n
    fewer than n rollouts                  all of them
    too few graded rollouts                all graded, then the first whose grader failed
    =====================================  ======================================================

    Args:
      rewards: (S,) in the order they were drawn; NaN where the grader failed.
      n: rollouts to keep.
      mode: exit rule the pool was drawn under.
      k_positive: K_pos.
      correct_from: the least reward of a positive.

    Returns:
      (min(n, S),) int64 indices into the pool, positives first.

    Raises:
      ValueError: an unknown mode, n or k_positive < 1.

    Example:
      >>> downsample([0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0], 4).tolist()
      [6, 9, 0, 1]
    """
    resolved = finished(rewards, n, mode=mode, k_positive=k_positive, correct_from=correct_from)
    positive, negative = _signs(rewards, correct_from)
    graded = len(positive) + len(negative)
    wanted = n // 2
    if mode == "positive" and not resolved and graded:
        wanted = max(min(-(-n * len(positive) // graded), min(n, graded) - 1), 1)
    t_positive = min(wanted, len(positive))
    t_negative = min(n - t_positive, len(negative))
    t_positive += min(n - t_positive - t_negative, len(positive) - t_positive)
    missing = np.flatnonzero(np.isnan(np.asarray(rewards, np.float64)))[: n - t_positive - t_negative]
    return np.concatenate([positive[:t_positive], negative[:t_negative], missing])


def pool_baseline(rewards: ArrayLike, correct_from: float = 1.0) -> float:
    """p̂ = #pos / |S| over a whole pool: the baseline of the rollouts kept of it, A = r − p̂.

    With rewards of 0 and 1 it is their mean. After an exit on positives it is biased upwards. Rollouts whose grader
    failed do not count; 0 where none is left.

    Example:
      >>> pool_baseline([0, 0, 1, 0])
      0.25
    """
    positive, negative = _signs(rewards, correct_from)
    return len(positive) / max(len(positive) + len(negative), 1)


def sequential_weights(p_hat: ArrayLike) -> np.ndarray:
    """1/p̂, v3's weight of the sequential form, ĝ = (1/p̂) · (1/n) Σ ∇log π (r − p̂); 1 where p̂ = 0.

    In the paper alone: the released code has no such weight.

    Example:
      >>> sequential_weights([0.25, 0.0]).tolist()
      [4.0, 1.0]
    """
    p = np.asarray(p_hat, np.float64)
    return np.where(p > 0, 1.0 / np.where(p > 0, p, 1.0), 1.0)


@dataclasses.dataclass(frozen=True)
class EmaCounts:
    """Decayed counts of each prompt: rollouts drawn and rollouts that were positive.

    Attributes:
      total: (n,) float64. positive: (n,) float64, at most ``total``.

    Example:
      >>> EmaCounts.start(2).total.tolist()
      [0.0, 0.0]
    """

    total: np.ndarray
    positive: np.ndarray

    @classmethod
    def start(cls, prompts: int) -> EmaCounts:
        """Nothing drawn yet."""
        return cls(np.zeros(prompts), np.zeros(prompts))


def update_counts(
    counts: EmaCounts, rows: ArrayLike, drawn: ArrayLike, positive: ArrayLike, *, decay: float = 0.9
) -> EmaCounts:
    """N ← λN + n and N⁺ ← λN⁺ + k for the prompts that were drawn from; the others stay.

    Args:
      counts: before.
      rows: (B,) indices of the prompts, each at most once.
      drawn: (B,) rollouts graded.
      positive: (B,) rollouts positive.
      decay: λ in [0, 1].

    Raises:
      ValueError: a prompt twice, more positives than rollouts, λ outside [0, 1].

    Example:
      >>> after = update_counts(EmaCounts(np.array([10.0]), np.array([4.0])), [0], [8], [0])
      >>> after.total.tolist(), after.positive.tolist(), estimate(after).round(6).tolist()
      ([17.0], [3.6], [0.242105])
    """
    rows, n, k = np.asarray(rows), np.asarray(drawn, np.float64), np.asarray(positive, np.float64)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay = {decay} is not allowed; allowed: numbers in [0, 1]")
    if len(np.unique(rows)) != rows.size:
        raise ValueError(f"rows = {rows.tolist()} names a prompt twice")
    if not rows.shape == n.shape == k.shape or rows.ndim != 1:
        raise ValueError(f"rows {rows.shape}, drawn {n.shape} and positive {k.shape} must have one shape (B,)")
    if rows.size and not (0 <= rows.min() and rows.max() < counts.total.size):
        raise ValueError(f"rows = {rows.tolist()} must be in [0, {counts.total.size})")
    if not ((k >= 0) & (k <= n)).all():  # also of NaN
        raise ValueError(f"positive = {k.tolist()} must be between 0 and drawn = {n.tolist()}")
    total, hits = counts.total.copy(), counts.positive.copy()
    total[rows] = decay * total[rows] + n
    hits[rows] = decay * hits[rows] + k
    return EmaCounts(total, hits)


def estimate(counts: EmaCounts, *, prior_positive: float = 1.0, prior_negative: float = 1.0) -> np.ndarray:
    """p̂ = (N⁺ + a) / (N + a + b), each prompt's success rate under a Beta(a, b) prior (v3 Alg. 1).

    Args:
      counts: of n prompts.
      prior_positive: a > 0.
      prior_negative: b > 0.

    Returns:
      (n,) float64 in (0, 1).

    Example:
      >>> estimate(EmaCounts.start(1)).tolist()
      [0.5]
    """
    for name, value in (("prior_positive", prior_positive), ("prior_negative", prior_negative)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} = {value} is not allowed; allowed: finite numbers > 0")
    return (counts.positive + prior_positive) / (counts.total + prior_positive + prior_negative)


def allocate(p: ArrayLike, total: float, n_min: float, n_max: float, eps: float = 0.0) -> np.ndarray:
    """N_x ∝ 1/√(p̂_x + ε) clipped to [N_min, N_max], with Σ N_x = N_total (v3 Alg. 1); ``integer_counts`` rounds.

    Args:
      p: (n,) success rates in [0, 1]; with ε = 0 all > 0.
      total: N_total.
      n_min: N_min. n_max: N_max.
      eps: ε ≥ 0.

    Returns:
      (n,) float64; the clipped counts' rest is shared among the others in the same proportion.

    Raises:
      ValueError: p + ε = 0, or a total that the bounds do not allow.

    Example:
      >>> allocate([0.04, 0.25, 0.64, 1.0], total=32, n_min=2, n_max=16).round(3).tolist()
      [16.0, 7.529, 4.706, 3.765]
    """
    shifted = checked("p", p) + eps
    if eps < 0 or (shifted <= 0).any():
        raise ValueError(f"eps = {eps} is not allowed; allowed: numbers >= 0, and > 0 where a success rate is 0")
    return water_fill(1.0 / np.sqrt(shifted), total, n_min, n_max)


def optimal_counts(p: ArrayLike, total: float) -> np.ndarray:
    """n ∝ √((1 − p)/p), the least variance under the log objective with a baseline (App. B).

    It makes the whole advantage (r − p)/√(p(1 − p)), GRPO's. Where every p is 1 nothing varies, and all get the same.

    Args:
      p: (n,) success rates in (0, 1].
      total: Σ n.

    Example:
      >>> optimal_counts([0.1, 0.5, 0.9], 32).round(4).tolist()
      [22.1538, 7.3846, 2.4615]
    """
    p = checked("p", p)
    if ((p <= 0) | (p > 1)).any():
        raise ValueError(f"p = {p.tolist()} is not allowed; allowed: numbers in (0, 1]")
    weights = np.sqrt((1 - p) / p)
    whole = weights.sum()
    return np.full(p.size, total / p.size) if whole == 0 else total * weights / whole


def est_weights(mean: ArrayLike, eps: float = 0.0) -> np.ndarray:
    """1/√(r̄ + ε), the gradient's half of the weight 1/p (v3's hybrid split); 0 where r̄ + ε ≤ 0.

    Example:
      >>> est_weights([0.25, 0.0]).tolist()
      [2.0, 0.0]
    """
    shifted = np.asarray(mean, np.float64) + eps
    return np.where(shifted > 0, 1.0 / np.sqrt(np.where(shifted > 0, shifted, 1.0)), 0.0)


def est_advantages(rewards: ArrayLike, eps: float = 0.0) -> np.ndarray:
    """A_i = (r_i − r̄)/√(r̄ + ε), r̄ the mean of the prompt's own rollouts (v3 Alg. 1); 0 where r̄ + ε ≤ 0.

    Args:
      rewards: (n,) of one prompt, ≥ 0.
      eps: ε ≥ 0.

    Example:
      >>> est_advantages([1, 0, 0, 0]).tolist()
      [1.5, -0.5, -0.5, -0.5]
    """
    r = np.asarray(rewards, np.float64)
    return (r - r.mean()) * est_weights(r.mean(), eps)


def _signs(rewards: ArrayLike, correct_from: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the positives and of the negatives; a missing reward is neither."""
    r = np.asarray(rewards, np.float32)
    graded = ~np.isnan(r)
    positive = succeeded(r, graded, correct_from)
    return np.flatnonzero(positive), np.flatnonzero(graded & ~positive)


def _check(n: int, mode: str, k_positive: int) -> None:
    if mode not in MODES:
        raise ValueError(f"mode = {mode!r} is unknown; allowed: {', '.join(MODES)}")
    for name, value in (("n", n), ("k_positive", k_positive)):
        if value < 1:
            raise ValueError(f"{name} = {value} is not allowed; allowed: integers >= 1")
