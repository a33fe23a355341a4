"""GVM-RAFT (arXiv 2505.02391, Alg. 2; RLHFlow/GVM): rollouts where they reduce the gradient's variance most.

    minimise Σ_i G_i² / (p_i n_i) · 1 / (1 + α / p_i^β)   subject to Σ n_i = N
    ⇒ n_i = N w_i / Σ w,  w_i = G_i / √(p_i + α / p_i^(β−1))

with p_i the acceptance rate over N′ pilots of prompt i, and G_i the mean norm of ∇ ln P over its accepted pilots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from salt_jax.collect.allocation.rounding import checked


def mean_norms(norms: ArrayLike, accepted: ArrayLike) -> np.ndarray:
    """G_i, the mean gradient norm of a prompt's accepted pilots; 0 where none was accepted.

    Args:
      norms: (B, N′) ‖∇ ln P‖₂ of each pilot; what stands at pilots not accepted does not matter.
      accepted: (B, N′) bool.

    Example:
      >>> mean_norms([[3.0, 1.0], [2.0, 2.0]], [[True, False], [False, False]]).tolist()
      [3.0, 0.0]
    """
    accepted = np.asarray(accepted, bool)
    norms = np.where(accepted, np.asarray(norms, np.float64), 0.0)
    return norms.sum(axis=1) / np.maximum(accepted.sum(axis=1), 1)


def gvm_weights(
    grad_norms: ArrayLike, acceptance: ArrayLike, *, alpha: float = 1e-3, beta: float = 2.0
) -> np.ndarray:
    """w_i = G_i / √(p_i + α / p_i^(β−1)) over Σ w: the share of the rollouts that each prompt gets.

    ==========================  =====================================================
    p_i = 0 or G_i = 0          0: nothing was accepted, or nothing to learn
    all of them 0               the same for all (the released code divides by 0)
    α = 0                       w ∝ G / √p
    ==========================  =====================================================

    Args:
      grad_norms: (B,) G ≥ 0.
      acceptance: (B,) p in [0, 1].
      alpha: α ≥ 0, how strongly prompts that are hardly ever solved are held back.
      beta: β ≥ 1 (the paper: ≥ 2).

    Returns:
      (B,) float64, their sum 1.

    Raises:
      ValueError: shapes that differ, numbers outside their range.

    Example:
      >>> (32 * gvm_weights([1, 2, 4, 3, 0], [0.5, 0.25, 0.125, 0.03125, 0])).round(4).tolist()
      [1.5972, 4.4909, 12.4124, 13.4994, 0.0]
    """
    g, p = _checked(grad_norms, acceptance)
    _check_exponents(alpha, beta)
    live = (g > 0) & (p > 0)
    safe = np.where(live, p, 1.0)
    w = np.where(live, g / np.sqrt(safe + alpha / safe ** (beta - 1)), 0.0)
    whole = w.sum()
    return np.full(w.size, 1.0 / w.size) if whole == 0 else w / whole


def gvm_counts(
    grad_norms: ArrayLike,
    acceptance: ArrayLike,
    total: float,
    *,
    alpha: float = 1e-3,
    beta: float = 2.0,
    filter_threshold: float = 1.0,
    filter_insufficient: float = 0.0,
) -> np.ndarray:
    """n_i = N w_i / Σ w, without the prompts that the release's filters leave out; real numbers.

    Prompts stay where p ≤ ``filter_threshold`` and p · n ≥ ``filter_insufficient``; their weights are then normalised
    again. Where that leaves none, nothing is filtered.

    Example:
      >>> gvm_counts([1, 1, 1], [1.0, 0.5, 0.5], 8, alpha=0.0, filter_threshold=0.9).tolist()
      [0.0, 4.0, 4.0]
    """
    g, p = _checked(grad_norms, acceptance)
    w = gvm_weights(g, p, alpha=alpha, beta=beta)
    kept = (w > 0) & (p <= filter_threshold) & (p * total * w >= filter_insufficient)
    if not kept.any():
        return total * w
    w = np.where(kept, w, 0.0)
    return total * w / w.sum()


def regularizer(acceptance: ArrayLike, *, alpha: float = 1e-3, beta: float = 2.0) -> np.ndarray:
    """1 / (1 + α / p^β), in [0, 1]; 0 at p = 0 (α > 0).

    Example:
      >>> regularizer([0.03125]).round(6).tolist()
      [0.494071]
    """
    p = np.asarray(acceptance, np.float64)
    _check_exponents(alpha, beta)
    if alpha == 0:
        return np.ones_like(p)
    return p**beta / (p**beta + alpha)


def variance_bound(
    grad_norms: ArrayLike, acceptance: ArrayLike, counts: ArrayLike, *, alpha: float = 1e-3, beta: float = 2.0
) -> float:
    """Σ_i G_i² / (p_i n_i) · 1 / (1 + α / p_i^β), what the counts minimise; over prompts with G, p > 0.

    Infinite where such a prompt has no rollout.

    Example:
      >>> round(variance_bound([1, 2, 4], [0.5, 0.25, 0.125], [10, 10, 10], alpha=0.0), 4)
      14.6
    """
    g, p = _checked(grad_norms, acceptance)
    n = np.asarray(counts, np.float64)
    live = (g > 0) & (p > 0)
    if (n[live] <= 0).any():
        return float("inf")
    return float((g[live] ** 2 / (p[live] * n[live]) * regularizer(p[live], alpha=alpha, beta=beta)).sum())


def row_weights(counts: ArrayLike, acceptance: ArrayLike) -> np.ndarray:
    """N / (D n_i p_i): the weight of a rollout of prompt i that makes a mean over N rows unbiased over D prompts.

    The estimator −Σ_i (1/(n_i p_i)) Σ_accepted ∇ ln P (Alg. 2), scaled so that as many rollouts for each of D prompts,
    all solved, have weight 1. D counts the prompts with rollouts. Where no pilot was accepted p is taken for 1.

    Args:
      counts: (B,) n, whole numbers.
      acceptance: (B,) p.

    Returns:
      (B,) float64, 0 where n is 0.

    Example:
      >>> row_weights([4, 4, 0], [1.0, 0.5, 0.5]).tolist()
      [1.0, 2.0, 0.0]
    """
    n, p = np.asarray(counts, np.float64), np.asarray(acceptance, np.float64)
    there = n > 0
    share = n.sum() / max(int(there.sum()), 1)
    return np.where(there, share / (np.where(there, n, 1.0) * np.where(p > 0, p, 1.0)), 0.0)


def _checked(grad_norms: ArrayLike, acceptance: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    g, p = checked("grad_norms", grad_norms), checked("acceptance", acceptance)
    if g.shape != p.shape:
        raise ValueError(f"{g.size} grad_norms do not match {p.size} acceptance rates")
    if (p > 1).any():
        raise ValueError(f"acceptance = {p.tolist()} is not allowed; allowed: numbers in [0, 1]")
    return g, p


def _check_exponents(alpha: float, beta: float) -> None:
    if not (0 <= alpha < np.inf and 1 <= beta < np.inf):
        raise ValueError(f"alpha = {alpha}, beta = {beta} is not allowed; allowed: alpha >= 0, beta >= 1")
