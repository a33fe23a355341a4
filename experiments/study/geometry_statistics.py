"""What a Gram matrix and advantages say, unit by unit: NumPy, float64, from K alone.

A unit is a set of rollouts whose geometry is taken together: K (U, s, s) are U units of s rollouts, a (U, s) their
advantages. N = aᵀKa, D = Σ a_i² K_ii, n_eff = N / D. A unit has signal where D > 0; a mean over units is over those
with signal, and None where there is none.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from salt_jax import salt

Array = np.ndarray


def blocks_of(gram: Array, size: int) -> Array:
    """(m, m) -> (m / size, size, size): the Gram matrices of consecutive units.

    Example:
      >>> blocks_of(np.arange(16.0).reshape(4, 4), 2)[1].tolist()
      [[10.0, 11.0], [14.0, 15.0]]
    """
    units = len(gram) // size
    here = np.arange(units)
    return gram.reshape(units, size, units, size)[here, :, here]


def parts(gram: Array, a: Array) -> tuple[Array, Array]:
    """N and D of each unit, (U,).

    Example:
      >>> [x.tolist() for x in parts(np.ones((1, 2, 2)), np.array([[1.0, -1.0]]))]
      [[0.0], [2.0]]
    """
    total = np.maximum(np.einsum("ui,uij,uj->u", a, gram, a, optimize=True), 0.0)
    return total, np.sum(weights(gram, a), axis=1)


def weights(gram: Array, a: Array) -> Array:
    """d_i = a_i² K_ii, (U, s)."""
    return a**2 * np.diagonal(gram, axis1=1, axis2=2)


def kish(gram: Array, a: Array) -> Array:
    """(Σ d)² / Σ d² with d_i = a_i² K_ii, (U,): how many rollouts D rests on, 1 to s; 0 without signal.

    Example:
      >>> kish(np.eye(4)[None], np.array([[1.0, -1.0, 0.0, 0.0]])).tolist()
      [2.0]
    """
    d = weights(gram, a)
    return ratio(np.sum(d, axis=1) ** 2, np.sum(d**2, axis=1))


def participation_ratios(gram: Array) -> Array:
    """tr(K)² / ‖K‖² of each unit, (U,); 0 for K = 0."""
    return ratio(np.trace(gram, axis1=1, axis2=2) ** 2, np.sum(gram**2, axis=(1, 2)))


def residual_shares(gram: Array) -> Array:
    """(tr K − 1ᵀK1 / s) / tr K of each unit, (U,): the share of Σ‖s_i‖² that is not in the mean; 0 for K = 0.

    Example:
      >>> residual_shares(np.stack([np.eye(4), np.ones((4, 4))])).tolist()
      [0.75, 0.0]
    """
    trace = np.trace(gram, axis1=1, axis2=2)
    return ratio(np.maximum(trace - gram.sum(axis=(1, 2)) / gram.shape[1], 0.0), trace)


def ratio(top: Array, bottom: Array) -> Array:
    """top / bottom, 0 where the bottom is 0."""
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom != 0)


def jackknife(top: Array, bottom: Array, clusters: Array) -> tuple[float | None, float | None]:
    """Σ top / Σ bottom, and its standard error when whole clusters are left out in turn.

    Args:
      top: (U,). bottom: (U,). clusters: (U,) integers; units of one cluster are left out together.

    Returns:
      The ratio, None where Σ bottom is 0; the error, None with fewer than two clusters that have a bottom.

    Example:
      >>> jackknife(np.array([1.0, 3.0]), np.ones(2), np.arange(2))
      (2.0, 1.0)
    """
    _, which = np.unique(clusters, return_inverse=True)
    tops, bottoms = (np.bincount(which, weights=x) for x in (top, bottom))
    kept = bottoms > 0
    tops, bottoms, n = tops[kept], bottoms[kept], int(kept.sum())
    if n == 0:
        return None, None
    value = float(tops.sum() / bottoms.sum())
    if n == 1:
        return value, None
    without = (tops.sum() - tops) / (bottoms.sum() - bottoms)
    return value, float(np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2)))


def common_mean(gram: Array, clusters: Array) -> tuple[float | None, float | None]:
    """mean_{i≠j} K_ij / mean K_ii within groups, and its jackknife error: an estimate of ‖μ‖² / E‖s‖², μ = E[s | q].

    Args:
      gram: (U, G, G) of U groups of G >= 2.
      clusters: (U,) the group's prompt: groups of one prompt are not independent.

    Example:
      >>> common_mean(np.array([[[1.0, 0.5], [0.5, 1.0]]]), np.zeros(1))
      (0.5, None)
    """
    size = gram.shape[1]
    trace = np.trace(gram, axis1=1, axis2=2)
    return jackknife((gram.sum(axis=(1, 2)) - trace) / (size * (size - 1)), trace / size, clusters)


def permuted(a: Array, group: int, draws: int, seed: int) -> Array:
    """(U, s, draws): the advantages of each group, permuted within it. G: the groups are consecutive in the flat a.

    Where a unit is made of whole groups n_eff is then, as a ratio of means, 1 − mean_{i≠j} K_ij / mean K_ii of the
    groups with signal, exactly in expectation: Σ a = 0 gives E[a_i a_j] = −Σa²/(G(G−1)). With G = 2 it stays as it is.
    """
    flat = np.broadcast_to(a.reshape(-1, group), (draws, a.size // group, group))
    return np.random.default_rng(seed).permuted(flat, axis=2).reshape(draws, *a.shape).transpose(1, 2, 0)


def under(gram: Array, drawn: Array) -> tuple[float | None, float | None]:
    """n_eff with other advantages: its ratio of means, and mean of ratios, over draws and units with signal.

    Args:
      gram: (U, s, s). drawn: (U, s, draws).

    Example:
      >>> under(np.eye(2)[None], np.ones((1, 2, 3)))
      (1.0, 1.0)
    """
    total = np.maximum(np.sum(drawn * np.matmul(gram, drawn), axis=1), 0.0)
    bottom = np.einsum("usb,us->ub", drawn**2, np.diagonal(gram, axis1=1, axis2=2), optimize=True)
    signal = bottom > 0
    if not signal.any():
        return None, None
    return float(total.sum() / bottom.sum()), float(np.mean(total[signal] / bottom[signal]))


def between(gram: Array, a: Array, group: int) -> tuple[float, float]:
    """n_eff and participation ratio of the updates of a mini-batch's groups, Σ_i a_i s_i; 0 without signal ('out').

    Args:
      gram: (m, m). a: (m,).
    """
    groups = len(a) // group
    sums = (a[:, None] * gram * a[None, :]).reshape(groups, group, groups, group).sum(axis=(1, 3))
    trace = np.trace(sums)
    found = ratio(np.array([max(sums.sum(), 0.0), trace**2]), np.array([trace, np.sum(sums**2)]))
    return float(found[0]), float(found[1])


@jax.jit
def _salt(gram: jax.Array, a: jax.Array) -> salt.SaltOutput:
    return jax.vmap(lambda k, x: salt.reweight(k, x, salt.SaltConfig(eigen="full")))(gram, a)


def salt_of(gram: Array, a: Array) -> dict[str, Array]:
    """SALT as the paper defines it, unit by unit: its 'advantages' (U, s), and alpha, k, eigengap, cosine(a′, a), (U,).

    K and a are scaled to float32 first; the eigenvectors are those of a whole ``eigh``. The cosine is 0 where a′ is 0.
    """
    peak = np.maximum(np.max(np.abs(gram), axis=(1, 2), initial=0.0), np.finfo(np.float64).tiny)
    out = jax.device_get(_salt(jnp.asarray(gram / peak[:, None, None], jnp.float32), jnp.asarray(a, jnp.float32)))
    new = np.asarray(out.advantages, np.float64)
    cosine = ratio(np.sum(new * a, axis=1), np.linalg.norm(new, axis=1) * np.linalg.norm(a, axis=1))
    return {"advantages": new, "alpha": out.alpha, "k": out.k, "eigengap": out.eigengap, "cosine": cosine}


def cell(gram: Array, a: Array, clusters: Array, nulls: dict[str, Array]) -> dict[str, Any]:
    """All statistics of the units of one scope.

    Args:
      gram: (U, s, s). a: (U, s). clusters: (U,) for the standard error.
      nulls: name → advantages (U, s, draws) under it.

    Returns:
      units, signal (share of units) · ratio, ratio_se: ΣN / ΣD · mean, mean_se, median: of N / D · NAME_ratio and
      NAME_mean: the same under each null · kish · pr · residual (share of the trace) · alpha, k, eigengap, cosine.
    """
    total, bottom = parts(gram, a)
    signal = bottom > 0
    n_eff, one = ratio(total, bottom), signal.astype(float)
    summed, summed_se = jackknife(total, bottom, clusters)
    mean, mean_se = jackknife(n_eff, one, clusters)
    found: dict[str, Any] = {
        "units": len(a), "signal": float(one.mean()), "ratio": summed, "ratio_se": summed_se, "mean": mean,
        "mean_se": mean_se, "median": float(np.median(n_eff[signal])) if signal.any() else None,
    }  # fmt: skip
    for name, drawn in nulls.items():
        found[f"{name}_ratio"], found[f"{name}_mean"] = under(gram, drawn)
    reweighted = salt_of(gram, a)
    columns = {"kish": kish(gram, a), "pr": participation_ratios(gram), "residual": residual_shares(gram)}
    columns |= {name: reweighted[name] for name in ("alpha", "k", "eigengap", "cosine")}
    for name, values in columns.items():
        found[name] = float(np.mean(np.asarray(values, np.float64)[signal])) if signal.any() else None
    return found
