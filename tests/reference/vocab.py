"""NumPy float64 loops for salt_jax.vocab: one token, one vocabulary entry at a time."""

from __future__ import annotations

import math

import numpy as np


def probabilities(hidden: np.ndarray, lm_head: np.ndarray, temperature: float) -> np.ndarray:
    """softmax of (h W) / τ for one token: hidden (H,), lm_head (H, V) -> (V,)."""
    vocab = lm_head.shape[1]
    logits = [
        sum(float(hidden[d]) * float(lm_head[d, v]) for d in range(len(hidden))) / temperature
        for v in range(vocab)
    ]
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return np.array([w / sum(weights) for w in weights])


def token_statistics(
    hidden: np.ndarray, lm_head: np.ndarray, targets: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p(target), entropy, log-normalizer per token: hidden (N, H), targets (N,) -> three (N,)."""
    log_probs, entropies, normalizers = [], [], []
    for h, y in zip(hidden, targets, strict=True):
        p = probabilities(h, lm_head, temperature)
        z_y = float(np.dot(h.astype(float), lm_head[:, y].astype(float))) / temperature
        log_probs.append(math.log(p[y]))
        entropies.append(-sum(q * math.log(q) for q in p if q > 0))
        normalizers.append(z_y - math.log(p[y]))
    return np.array(log_probs), np.array(entropies), np.array(normalizers)


def weighted_sum(
    hidden: np.ndarray,
    lm_head: np.ndarray,
    targets: np.ndarray,
    temperature: float,
    on_log_prob: np.ndarray,
    on_entropy: np.ndarray,
) -> float:
    """Σ_n (u_n log p_n + v_n H_n): the scalar whose derivatives the tests take by finite differences."""
    log_probs, entropies, _ = token_statistics(hidden, lm_head, targets, temperature)
    return float(np.sum(on_log_prob * log_probs) + np.sum(on_entropy * entropies))


def finite_difference(function, array: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a scalar function, one entry at a time (error about step²)."""
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        above, below = array.astype(float).copy(), array.astype(float).copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient
