"""The clipped surrogate over masked tokens, as a sum and a denominator that add up over microbatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.kl import KL_ESTIMATORS, LOG_RATIO_LIMIT, check_loss_kl_estimator, k3

Array = jax.Array


class LossMetrics(NamedTuple):
    """Diagnostics of a loss that accumulate exactly over microbatches; zeros are the identity of ``merge``.

    Attributes:
      sums: name → (sum, denominator), scalars; both add up, and the metric is their quotient.
      maxima: name → scalar ≥ 0, accumulated by maximum; 0 where there is no token.
    """

    sums: dict[str, tuple[Array, Array]]
    maxima: dict[str, Array]


def merge(a: LossMetrics, b: LossMetrics) -> LossMetrics:
    """Metrics of two microbatches together: sums add, maxima take the larger.

    Args:
      a: metrics of one microbatch, or zeros.
      b: metrics of another, with the same names.

    Returns:
      Metrics of the union.

    Example:
      >>> one, two = jnp.array(1.), jnp.array(2.)
      >>> both = merge(LossMetrics({"x": (one, one)}, {"y": two}), LossMetrics({"x": (two, two)}, {"y": one}))
      >>> {name: float(value) for name, value in finalize(both).items()}
      {'x': 1.0, 'y': 2.0}
    """
    return LossMetrics(
        sums=jax.tree.map(jnp.add, a.sums, b.sums), maxima=jax.tree.map(jnp.maximum, a.maxima, b.maxima)
    )


def finalize(metrics: LossMetrics) -> dict[str, Array]:
    """One scalar a metric, once per optimizer step: sum / max(denominator, 1), and the maxima as they are.

    Args:
      metrics: merged over the microbatches of a step.

    Returns:
      name → scalar; 0 for a metric without any token.

    Example:
      >>> finalize(LossMetrics({"x": (jnp.array(3.), jnp.array(2.))}, {}))["x"].item()
      1.5
    """
    means = {name: total / jnp.maximum(count, 1) for name, (total, count) in metrics.sums.items()}
    return means | metrics.maxima


def _token_mean(mask_NxT: Array, valid_N: Array, max_length: int | None) -> tuple[Array, Array]:
    return mask_NxT, jnp.sum(mask_NxT)


def _seq_mean_token_mean(mask_NxT: Array, valid_N: Array, max_length: int | None) -> tuple[Array, Array]:
    lengths_Nx1 = jnp.sum(mask_NxT, axis=1, keepdims=True)
    return mask_NxT / jnp.maximum(lengths_Nx1, 1), _num_nonempty(mask_NxT)


def _seq_mean_token_sum(mask_NxT: Array, valid_N: Array, max_length: int | None) -> tuple[Array, Array]:
    return mask_NxT, _num_nonempty(mask_NxT)


def _dr_grpo(mask_NxT: Array, valid_N: Array, max_length: int | None) -> tuple[Array, Array]:
    assert max_length is not None  # check_loss_options has refused None
    return mask_NxT, jnp.sum(valid_N) * max_length


def _num_nonempty(mask_NxT: Array) -> Array:
    return jnp.sum(jnp.any(mask_NxT > 0, axis=1), dtype=mask_NxT.dtype)


# Each takes the mask (N, T) and valid (N,) as floats and max_length, and returns the weight of every token
# in the sum (N, T) and the denominator.
AGGREGATIONS: dict[str, Callable[[Array, Array, int | None], tuple[Array, Array]]] = {
    "token_mean": _token_mean,
    "seq_mean_token_mean": _seq_mean_token_mean,
    "seq_mean_token_sum": _seq_mean_token_sum,
    "dr_grpo": _dr_grpo,
}


def check_loss_options(
    clip_low: float,
    clip_high: float,
    aggregation: str,
    max_length: int | None,
    kl_estimator: str,
    kl_coef: float,
    entropy_coef: float,
) -> None:
    """Raises a one-line ValueError that names the option and what it allows.

    Example:
      >>> check_loss_options(0.2, 0.2, "dr_grpo", None, "k3", 0.0, 0.0)
      Traceback (most recent call last):
      ValueError: aggregation = 'dr_grpo' needs max_length, the completion limit in tokens (an integer >= 1)
    """
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high), ("kl_coef", kl_coef)):
        if not value >= 0:
            raise ValueError(f"{name} = {value!r} is not allowed; allowed: numbers >= 0")
    if not abs(entropy_coef) < float("inf"):
        raise ValueError(f"entropy_coef = {entropy_coef!r} is not allowed; allowed: finite numbers")
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation = {aggregation!r} is unknown; allowed: {', '.join(AGGREGATIONS)}")
    if max_length is not None and not max_length >= 1:
        raise ValueError(f"max_length = {max_length!r} is not allowed; allowed: None or an integer >= 1")
    if aggregation == "dr_grpo" and max_length is None:
        raise ValueError(
            "aggregation = 'dr_grpo' needs max_length, the completion limit in tokens (an integer >= 1)"
        )
    check_loss_kl_estimator(kl_estimator)


def policy_loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: str = "token_mean",
    max_length: int | None = None,
    ref_log_probs: ArrayLike | None = None,
    kl_estimator: str = "k3",
    kl_coef: float = 0.0,
    entropy: ArrayLike | None = None,
    entropy_coef: float = 0.0,
    valid: ArrayLike | None = None,
) -> tuple[Array, Array, LossMetrics]:
    """Clipped policy-gradient loss, to be minimised, as (sum, denominator, metrics).

    With r = exp(clip(log p − log p_old, −20, 20)) (the limit is verl's; beyond it the gradient is 0)::

        token    L = −min(r·A, clip(r, 1 − clip_low, 1 + clip_high)·A) + kl_coef·KL − entropy_coef·H
        sum      Σ w·L over the unmasked tokens                       loss = sum / max(denominator, 1)

        aggregation             w           denominator
        token_mean              1           Σ mask                              DAPO, arXiv 2503.14476
        seq_mean_token_mean     1/|o_i|     rows with a non-empty mask          GRPO, arXiv 2402.03300, eq. 3
        seq_mean_token_sum      1           rows with a non-empty mask
        dr_grpo                 1           rows × max_length                   arXiv 2503.20783

    Sums and denominators of microbatches add up to those of the whole batch, so divide once per optimizer
    step, by max(denominator, 1). PPO's surrogate is arXiv 1707.06347, eq. 7, with one bound a side (DAPO).

    ==========================================  ========================================================
    masked position                             takes no part, whatever it holds (NaN and inf included):
                                                value and gradient stay finite, its own gradient is 0
    everything masked                           sum 0, denominator 0 (rows × max_length for dr_grpo),
                                                zero gradients
    r on a bound                                counts as not clipped: the gradient flows
    NaN at an unmasked position                 a NaN sum: not hidden
    ==========================================  ========================================================

    Gradients flow through ``log_probs`` and ``entropy`` only.

    Args:
      log_probs: (N, T) log-probabilities of the sampled tokens under the policy, nats.
      old_log_probs: (N, T), under the policy that the ratio is taken to, nats.
      advantages: (N,), one a rollout, or (N, T), one a token.
      mask: (N, T) bool (or 0/1), true on completion tokens.
      clip_low: how far r may fall below 1 before a negative advantage stops pushing.
      clip_high: how far r may rise above 1 before a positive advantage stops pushing.
      aggregation: key of ``AGGREGATIONS``.
      max_length: completion limit in tokens; needed by ``dr_grpo``, unused otherwise.
      ref_log_probs: (N, T), under the reference policy, nats; needed when kl_coef > 0.
      kl_estimator: 'k2' or 'k3'; 'k1' is refused because its expected gradient is zero.
      kl_coef: weight of the KL term, per nat.
      entropy: (N, T) entropy of the policy at each position, nats; needed when entropy_coef ≠ 0.
      entropy_coef: weight of the entropy bonus, per nat.
      valid: (N,) bool, false for rows that only pad the batch: they are masked and, for ``dr_grpo``, not
        counted as rows. None means all true.

    Returns:
      sum: scalar. denominator: scalar, without gradient. metrics: ``LossMetrics``, without gradient:
      sums ``surrogate`` (same weights and denominator as the loss) and, per unmasked token, ``ratio_mean``,
      ``approx_kl`` (k3 of old against new), ``clip_fraction_low`` (A < 0, r below), ``clip_fraction_high``
      (A > 0, r above), ``kl_ref`` and ``entropy`` where given; maxima ``ratio_max``.

    Raises:
      ValueError: an option out of range or unknown, a missing array, or shapes that do not fit.

    Example:
      >>> old = jnp.log(jnp.array([[0.25, 0.5]]))
      >>> new = jnp.log(jnp.array([[0.5, 0.25]]))
      >>> total, denominator, metrics = policy_loss(new, old, jnp.array([1.0]), jnp.ones((1, 2), bool))
      >>> [round(float(x), 4) for x in (total, denominator, finalize(metrics)["clip_fraction_high"])]
      [-1.7, 2.0, 0.5]
    """
    check_loss_options(clip_low, clip_high, aggregation, max_length, kl_estimator, kl_coef, entropy_coef)
    if kl_coef and ref_log_probs is None:
        raise ValueError(f"kl_coef = {kl_coef!r} needs ref_log_probs, got None")
    if entropy_coef and entropy is None:
        raise ValueError(f"entropy_coef = {entropy_coef!r} needs entropy, got None")
    _check_shapes(log_probs, old_log_probs, advantages, mask, ref_log_probs, entropy, valid)

    dtype = jnp.promote_types(jnp.result_type(log_probs), jnp.float32)
    valid_N = jnp.ones(jnp.shape(log_probs)[0], bool) if valid is None else jnp.asarray(valid).astype(bool)
    mask_NxT = jnp.asarray(mask).astype(bool) & valid_N[:, None]

    def keep(x: ArrayLike) -> Array:
        # Garbage is replaced before any arithmetic: a `where` after it would let NaN into the gradient.
        return jnp.where(mask_NxT, jnp.asarray(x).astype(dtype), 0)

    advantages = jnp.asarray(advantages)
    advantages_NxT = jax.lax.stop_gradient(keep(advantages if advantages.ndim == 2 else advantages[:, None]))
    new_NxT, old_NxT = keep(log_probs), jax.lax.stop_gradient(keep(old_log_probs))
    ratio_NxT = jnp.exp(jnp.clip(new_NxT - old_NxT, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    above_NxT = (advantages_NxT > 0) & (ratio_NxT > 1 + clip_high)
    below_NxT = (advantages_NxT < 0) & (ratio_NxT < 1 - clip_low)
    # The same as −min(rA, clip(r)A), written so that the gradient on a tie is not left to `minimum`.
    bounded_NxT = jnp.where(above_NxT, 1 + clip_high, jnp.where(below_NxT, 1 - clip_low, ratio_NxT))
    surrogate_NxT = -advantages_NxT * bounded_NxT

    weights_NxT, denominator = AGGREGATIONS[aggregation](
        mask_NxT.astype(dtype), valid_N.astype(dtype), max_length
    )
    per_token = {
        "ratio_mean": ratio_NxT,
        "approx_kl": k3(old_NxT, new_NxT),
        "clip_fraction_low": below_NxT,
        "clip_fraction_high": above_NxT,
    }
    loss_NxT = surrogate_NxT
    if ref_log_probs is not None:
        per_token["kl_ref"] = KL_ESTIMATORS[kl_estimator](new_NxT, jax.lax.stop_gradient(keep(ref_log_probs)))
        loss_NxT = loss_NxT + kl_coef * per_token["kl_ref"]
    if entropy is not None:
        per_token["entropy"] = keep(entropy)
        loss_NxT = loss_NxT - entropy_coef * per_token["entropy"]

    num_tokens = jnp.sum(mask_NxT, dtype=dtype)
    sums = {
        name: (jnp.sum(jnp.where(mask_NxT, x, 0), dtype=dtype), num_tokens) for name, x in per_token.items()
    }
    sums["surrogate"] = (jnp.sum(weights_NxT * surrogate_NxT), denominator)
    maxima = {"ratio_max": jnp.max(ratio_NxT, initial=0, where=mask_NxT)}
    metrics = jax.lax.stop_gradient(LossMetrics(sums, maxima))
    return jnp.sum(weights_NxT * loss_NxT), jax.lax.stop_gradient(denominator), metrics


def _check_shapes(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    ref_log_probs: ArrayLike | None,
    entropy: ArrayLike | None,
    valid: ArrayLike | None,
) -> None:
    shape = jnp.shape(log_probs)
    if len(shape) != 2:
        raise ValueError(f"log_probs must have shape (N, T), got {shape}")
    others = {
        "old_log_probs": old_log_probs,
        "mask": mask,
        "ref_log_probs": ref_log_probs,
        "entropy": entropy,
    }
    for name, array in others.items():
        if array is not None and jnp.shape(array) != shape:
            raise ValueError(f"{name} must have the shape of log_probs {shape}, got {jnp.shape(array)}")
    if jnp.shape(advantages) not in (shape, shape[:1]):
        raise ValueError(f"advantages must have shape {shape[:1]} or {shape}, got {jnp.shape(advantages)}")
    if valid is not None and jnp.shape(valid) != shape[:1]:
        raise ValueError(f"valid must have shape {shape[:1]}, got {jnp.shape(valid)}")
