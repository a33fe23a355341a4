"""NumPy float64 SALT on explicit features: the subspace comes from an SVD of the features, not from a Gram."""

from __future__ import annotations

import numpy as np

from tests.reference import geometry


def projector(directions: np.ndarray) -> np.ndarray:
    """Σ_j v_j v_jᵀ over orthonormal rows (k, m) -> (m, m)."""
    m = directions.shape[1]
    p = np.zeros((m, m))
    for v in directions:
        for i in range(m):
            for j in range(m):
                p[i, j] += v[i] * v[j]
    return p


def soft_filter(values: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """Σ_j λ_j/(λ_j + λ) v_j v_jᵀ with λ found by scanning down until the trace is k (values of the kept rank)."""
    if k >= len(values):
        return projector(vectors)
    low, high = 0.0, values.sum()
    for _ in range(200):
        middle = (low + high) / 2
        trace = sum(value / (value + middle) for value in values)
        low, high = (middle, high) if trace > k else (low, middle)
    return sum(value / (value + high) * np.outer(v, v) for value, v in zip(values, vectors, strict=True))


def natural(k_matrix: np.ndarray, k: float, vector: np.ndarray) -> np.ndarray:
    """λ (K + λI)⁻¹ x by a linear solve, λ by scanning down until tr K(K + λI)⁻¹ is k; no eigenvectors."""
    m = len(vector)
    low, high = 0.0, m * np.trace(k_matrix)
    for _ in range(200):
        middle = (low + high) / 2
        trace = sum(np.linalg.solve(k_matrix + middle * np.eye(m), k_matrix[:, j])[j] for j in range(m))
        low, high = (middle, high) if trace > k else (low, middle)
    return high * np.linalg.solve(k_matrix + high * np.eye(m), vector)


def reweight(
    rows: np.ndarray,
    a: np.ndarray,
    *,
    variant: str = "salt",
    rho: float = 1.0,
    k_min: int = 1,
    k_max: int | None = None,
    alpha_min: float = 0.0,
    alpha_max: float = 1.0,
    rescale: bool = False,
    fixed_alpha: float = 0.5,
    success_rate: np.ndarray | None = None,
    entropy: tuple[float, float, float] | None = None,
) -> dict:
    """Every variant without random draws. rows (m, D) explicit features, a (m,) -> a', channels, α, k, PR, n_eff."""
    rows, a = rows.astype(float), a.astype(float)
    m = len(a)
    k_matrix = geometry.gram(rows)
    pr, n_eff = geometry.participation_ratio(k_matrix), geometry.effective_sample_size(k_matrix, a)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    values = singular**2
    rank = int(sum(value > max(m, 8) * np.finfo(np.float32).eps * values[0] for value in values))
    k = int(np.round(rho * pr))
    k = min(max(k, k_min), m if k_max is None else min(k_max, m), rank)
    vectors = left.T[:rank]
    p = projector(vectors[:k])
    if variant == "soft_filter":
        p = soft_filter(values[:rank], vectors, k)
    off = np.eye(m) - p
    plus = np.array([max(x, 0.0) for x in a])
    alpha = min(max(1 - n_eff, alpha_min), alpha_max)
    if variant == "fixed_alpha":
        alpha = fixed_alpha
    if variant == "pr_alpha":
        alpha = min(max(geometry.ratio(pr, m - 1), 0.0), 1.0)
    if variant == "entropy_alpha":
        now, low, high = entropy
        alpha = min(max(geometry.ratio(now - low, high - low), 0.0), 1.0)
    shared, residual = p @ a, off @ plus
    salt = shared + alpha * residual
    damped = min(k, max(rank - 1, 0.5))
    norm = lambda c: float(np.linalg.norm(geometry.update(rows, c)))
    new = {
        "shared_only": lambda: shared,
        "residual_only": lambda: alpha * residual,
        "signed": lambda: shared + alpha * (off @ a),
        "no_projection": lambda: a + alpha * plus,
        "scaled": lambda: a * alpha * (1 - success_rate),
        "positive_only": lambda: plus,
        "update_norm_matched": lambda: a * geometry.ratio(norm(salt), norm(a)),
        "amplify": lambda: a + alpha * residual,
        "complement": lambda: a - shared,
        "natural": lambda: natural(k_matrix, damped, a),
        "natural_positive": lambda: natural(k_matrix, damped, plus),
    }.get(variant, lambda: salt)()
    residual = {"signed": off @ a, "complement": off @ a, "no_projection": plus}.get(variant, residual)
    if variant in ("natural", "natural_positive"):
        residual = new
        shared = (a if variant == "natural" else plus) - new
    if rescale and np.std(a) > 0 and np.std(new) > 0:
        new = new * np.std(a, ddof=1) / np.std(new, ddof=1)
    return {
        "advantages": new,
        "shared": shared,
        "residual": residual,
        "alpha": alpha,
        "k": k,
        "participation_ratio": pr,
        "n_eff": n_eff,
        # ‖δP‖ ≲ ‖δK‖ / (λ_k − λ_{k+1}): what a relative error of K in the largest eigenvalue does to P
        "condition": values[0] / (values[k - 1] - (values[k] if k < rank else 0.0)),
        "gap": 1.0 if k == rank else (values[k - 1] - values[k]) / values[k - 1],
    }
