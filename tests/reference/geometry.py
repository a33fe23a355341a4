"""NumPy float64 loops for salt_jax.geometry: explicit features, explicit pairs."""

from __future__ import annotations

import math

import numpy as np

from tests.reference import vocab


def features(
    hidden, lm_head, targets, mask, *, temperature=1.0, length_normalize=True, softmax=True
) -> np.ndarray:
    """s_i as dense (m, V, H) arrays, token by token."""
    m, t, h = hidden.shape
    out = np.zeros((m, lm_head.shape[1], h))
    for i in range(m):
        kept = [u for u in range(t) if mask[i, u]]
        for u in kept:
            delta = np.zeros(lm_head.shape[1])
            if softmax:
                delta += vocab.probabilities(hidden[i, u], lm_head, temperature)
            delta[targets[i, u]] -= 1.0
            for v in range(len(delta)):
                out[i, v] += delta[v] * hidden[i, u].astype(float)
        if length_normalize and kept:
            out[i] /= len(kept)
    return out


def gram(rows: np.ndarray) -> np.ndarray:
    m = len(rows)
    return np.array([[float(np.sum(rows[i] * rows[j])) for j in range(m)] for i in range(m)]).reshape(m, m)


def ratio(a: float, b: float) -> float:
    return a / b if b != 0 else 0.0


def participation_ratio(k: np.ndarray) -> float:
    m = len(k)
    trace = sum(k[i, i] for i in range(m))
    return ratio(trace**2, sum(k[i, j] ** 2 for i in range(m) for j in range(m)))


def effective_sample_size(k: np.ndarray, c: np.ndarray) -> float:
    m = len(k)
    total = sum(c[i] * k[i, j] * c[j] for i in range(m) for j in range(m))
    return ratio(max(total, 0.0), sum(c[i] ** 2 * k[i, i] for i in range(m)))


def kish_count(k: np.ndarray, c: np.ndarray) -> float:
    shares = [c[i] * k[i, i] * c[i] for i in range(len(k))]
    return ratio(sum(shares) ** 2, sum(d**2 for d in shares))


def positive_alignment(k: np.ndarray) -> float:
    cosines = []
    for i in range(len(k)):
        for j in range(i + 1, len(k)):
            cosines.append(max(0.0, ratio(k[i, j], math.sqrt(k[i, i] * k[j, j]))))
    return ratio(sum(cosines), len(cosines))


def update(rows: np.ndarray, c: np.ndarray) -> np.ndarray:
    """ĝ(c) = (1/m) Σ c_i s_i from explicit features (m, D)."""
    total = np.zeros(rows.shape[1])
    for i in range(len(rows)):
        total += c[i] * rows[i]
    return total / max(len(rows), 1)


def residual_energy(rows: np.ndarray) -> float:
    """Σ ‖s_i − s̄‖² from explicit features."""
    mean = sum(rows) / len(rows)
    return float(sum(np.sum((row - mean) ** 2) for row in rows))


def summary(rows: np.ndarray, c: np.ndarray, group_size: int, valid: np.ndarray) -> dict[str, float]:
    """In, out, total from explicit features and subsets of them."""
    means, energies = [], []
    inside = {"participation_ratio": [], "n_eff": [], "positive_alignment": [], "kish_count": []}
    for start in range(0, len(rows), group_size):
        members = [i for i in range(start, start + group_size) if valid[i]]
        if sum(c[i] ** 2 * np.sum(rows[i] ** 2) for i in members) == 0:
            continue
        block = gram(rows[members])
        inside["participation_ratio"].append(participation_ratio(block))
        inside["n_eff"].append(effective_sample_size(block, c[members]))
        inside["positive_alignment"].append(positive_alignment(block))
        inside["kish_count"].append(kish_count(block, c[members]))
        energies.append(sum(block[j, j] * c[i] ** 2 for j, i in enumerate(members)))
        means.append(update(rows[members], c[members]))
    out = {f"{name}_in": ratio(sum(values), len(values)) for name, values in inside.items()}
    between = gram(np.array(means)) if means else np.zeros((0, 0))
    everyone = [i for i in range(len(rows)) if valid[i]]
    for scope, k, weights in (
        ("out", between, np.ones(len(means))),
        ("total", gram(rows[everyone]), c[everyone]),
    ):
        out[f"participation_ratio_{scope}"] = participation_ratio(k)
        out[f"n_eff_{scope}"] = effective_sample_size(k, weights)
        out[f"positive_alignment_{scope}"] = positive_alignment(k)
        out[f"kish_count_{scope}"] = kish_count(k, weights)
    out["kish_count_groups"] = ratio(sum(energies) ** 2, sum(energy**2 for energy in energies))
    out["update_norm"] = float(np.linalg.norm(update(rows[everyone], c[everyone])))
    return out
