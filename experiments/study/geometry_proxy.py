"""Is the LM head's feature a proxy of a larger one? The comparison of the paper's Table 5, with two nulls.

Two Gram matrices of the same m rollouts are compared: K of the LM head (score, token mean) and K of a reference, the
last block or all parameters. The nulls say what each number is worth where there is nothing to find:

- permuted  the reference's rollouts in a random order: the same spectrum, diagonal values and k
- noise     Gaussian features with the reference's spectrum in expectation, scaled to its diagonal exactly
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from experiments.study.geometry_statistics import participation_ratios, ratio, salt_of

Array = np.ndarray
NULLS = ("measured", "permuted", "noise")
NAMES = ("spearman", "sign", "pr_error", "overlap", "k_match", "k_proxy", "k_reference", "cosine")


def spearman(x: Array, y: Array) -> float:
    """Correlation of the ranks, 0 where one side is constant.

    Example:
      >>> round(spearman(np.array([1.0, 2.0, 9.0]), np.array([0.0, 5.0, 6.0])), 6)
      1.0
    """
    x, y = (r - r.mean() for r in (stats.rankdata(x), stats.rankdata(y)))
    return float(ratio(np.array(x @ y), np.array(np.linalg.norm(x) * np.linalg.norm(y))))


def off_diagonal_cosines(gram: Array) -> Array:
    """cos_ij of the pairs i < j; 0 where a feature is 0."""
    norms = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    return ratio(gram, np.outer(norms, norms))[np.triu_indices(len(gram), 1)]


def dominant(gram: Array, k: int) -> Array:
    """Eigenvectors of the k largest eigenvalues, (m, k)."""
    return np.linalg.eigh(gram)[1][:, ::-1][:, :k]


def compare(proxy: Array, reference: Array, a: Array) -> dict[str, float | None]:
    """What Table 5 compares, of two Gram matrices (m, m) and the advantages (m,) of the same rollouts.

    Returns:
      Spearman and sign agreement of the cosines off the diagonal · |PR of the proxy / PR of the reference − 1| ·
      tr(P₁P₂)/k at the proxy's k · whether the two k are equal, and both · cosine of the two a′ of SALT, None where an
      a′ is 0.

    Example:
      >>> gram = np.diag([4.0, 1.0, 1.0])
      >>> found = compare(gram, 2 * gram, np.array([1.0, 0.0, -1.0]))
      >>> found["overlap"], found["k_match"], found["pr_error"], round(found["cosine"], 6)
      (1.0, 1.0, 0.0, 1.0)
    """
    x, y = off_diagonal_cosines(proxy), off_diagonal_cosines(reference)
    pr = participation_ratios(np.stack([proxy, reference]))
    both = [salt_of(gram[None], a[None]) for gram in (proxy, reference)]
    k = [int(found["k"][0]) for found in both]
    overlap = np.sum((dominant(proxy, k[0]).T @ dominant(reference, k[0])) ** 2) / max(k[0], 1)
    new = [found["advantages"][0] for found in both]
    norm = float(np.linalg.norm(new[0]) * np.linalg.norm(new[1]))
    return {
        "spearman": spearman(x, y), "sign": float(np.mean(np.sign(x) == np.sign(y))),
        "pr_error": float(abs(ratio(pr[0], pr[1]) - 1)), "overlap": float(overlap), "k_match": float(k[0] == k[1]),
        "k_proxy": float(k[0]), "k_reference": float(k[1]),
        "cosine": float(new[0] @ new[1]) / norm if norm > 0 else None,
    }  # fmt: skip


def noise_like(gram: Array, rng: np.random.Generator) -> Array:
    """Gram of m Gaussian features whose covariance has the spectrum of ``gram``, each scaled to the norm it has there.

    Example:
      >>> gram = np.diag([4.0, 1.0, 1.0])
      >>> np.allclose(np.diagonal(noise_like(gram, np.random.default_rng(0))), [4.0, 1.0, 1.0])
      True
    """
    spectrum = np.maximum(np.linalg.eigvalsh(gram), 0.0)
    features = rng.standard_normal(gram.shape) * np.sqrt(spectrum)
    own = np.linalg.norm(features, axis=1)
    features *= ratio(np.sqrt(np.maximum(np.diagonal(gram), 0.0)), own)[:, None]
    return features @ features.T


def against(proxy: list[Array], reference: list[Array], a: list[Array], seed: int) -> dict[str, dict[str, Any]]:
    """Means of ``compare`` over mini-batches, measured and under each null (one draw a mini-batch).

    Args:
      proxy, reference: Gram matrices (m, m), one a mini-batch. a: advantages (m,) of each.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, list[dict[str, float | None]]] = {name: [] for name in NULLS}
    for first, second, one in zip(proxy, reference, a, strict=True):
        order = rng.permutation(len(one))
        others = (second, second[np.ix_(order, order)], noise_like(second, rng))
        for name, other in zip(NULLS, others, strict=True):
            rows[name].append(compare(first, other, one))
    return {name: {what: _mean([row[what] for row in found]) for what in NAMES} for name, found in rows.items()}


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
