"""SPICE from determinants of the information matrix, in float64."""

from __future__ import annotations

import numpy as np


def loop_spice(gradients, k, alpha, penalty, omega=None, eta=1e-8):
    """Orders, gains, conflicts and scores of greedy picks; every determinant is recomputed from nothing."""

    def information(chosen):
        fisher = sum((np.outer(gradients[i], gradients[i]) for i in chosen), np.zeros((gradients.shape[1],) * 2))
        return np.linalg.slogdet(np.eye(len(fisher)) + alpha * fisher)[1]

    chosen, rows = [], []
    for _ in range(k):
        found = None
        for x in range(len(gradients)):
            if x in chosen:
                continue
            gain = information([*chosen, x]) - information(chosen)
            mean = np.mean(gradients[chosen], axis=0) if chosen else np.zeros(gradients.shape[1])
            lengths = np.linalg.norm(gradients[x]) * np.linalg.norm(mean)
            conflict = max(0.0, -gradients[x] @ mean / (lengths + eta))
            row = (x, gain, conflict, gain - penalty * conflict)
            found = row if found is None or row[3] > found[3] + 1e-12 else found
        if omega is not None and found[1] <= omega * (rows[0][1] if rows else found[1]):
            break
        chosen.append(found[0])
        rows.append(found)
    return [np.array(column) for column in zip(*rows, strict=True)]
