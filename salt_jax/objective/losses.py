"""A surrogate over masked tokens, as a sum and a denominator that add up over microbatches."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.aggregation import AGGREGATIONS, check_aggregation
from salt_jax.objective.kl import KL_ESTIMATORS, check_loss_kl_estimator, k3
from salt_jax.objective.surrogates import (
    SURROGATES,
    SurrogateOptions,
    TokenInputs,
    check_surrogate,
    dual_clipped,
)

__all__ = ["AGGREGATIONS", "LossMetrics", "check_loss_options", "finalize", "merge", "policy_loss"]

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


def check_loss_options(
    clip_low: float,
    clip_high: float,
    aggregation: str,
    max_length: int | None,
    kl_estimator: str,
    kl_coef: float,
    entropy_coef: float,
    surrogate: str = "ppo_clip",
    options: SurrogateOptions | None = None,
    dual_clip: float | None = None,
) -> SurrogateOptions:
    """The options of the surrogate, or a one-line ValueError that names the option and what it allows.

    The clips are given either as keywords or in ``options``: where both are, they must agree.

    Example:
      >>> check_loss_options(0.2, 0.28, "token_mean", None, "k3", 0.0, 0.0).clip_high
      0.28
      >>> check_loss_options(0.2, 0.2, "dr_grpo", None, "k3", 0.0, 0.0)
      Traceback (most recent call last):
      ValueError: aggregation = 'dr_grpo' needs max_length, the completion limit in tokens (an integer >= 1)
    """
    given = SurrogateOptions(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    options = given if options is None else options
    default = SurrogateOptions()
    for name in ("clip_low", "clip_high", "dual_clip"):
        keyword, option = getattr(given, name), getattr(options, name)
        if keyword != option and keyword != getattr(default, name):
            raise ValueError(f"{name} = {keyword!r} contradicts options, where it is {option!r}; give it once")
    if not kl_coef >= 0:
        raise ValueError(f"kl_coef = {kl_coef!r} is not allowed; allowed: numbers >= 0")
    if not abs(entropy_coef) < float("inf"):
        raise ValueError(f"entropy_coef = {entropy_coef!r} is not allowed; allowed: finite numbers")
    check_aggregation(aggregation, max_length)
    check_loss_kl_estimator(kl_estimator)
    check_surrogate(surrogate, options)
    return options


def policy_loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    surrogate: str = "ppo_clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    options: SurrogateOptions | None = None,
    aggregation: str = "token_mean",
    max_length: int | None = None,
    ref_log_probs: ArrayLike | None = None,
    kl_estimator: str = "k3",
    kl_coef: float = 0.0,
    entropy: ArrayLike | None = None,
    entropy_coef: float = 0.0,
    valid: ArrayLike | None = None,
    token_weights: ArrayLike | None = None,
    chosen: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    log_proxy: ArrayLike | None = None,
    kept_log_mass: ArrayLike | None = None,
    demonstration: ArrayLike | None = None,
    demonstration_weight: ArrayLike | None = None,
) -> tuple[Array, Array, LossMetrics]:
    """Policy-gradient loss, to be minimised, as (sum, denominator, metrics).

    With r = exp(clip(log p − log p_old, −20, 20)) (the limit is verl's; beyond it the gradient is 0)::

        token    L = token_weight·surrogate + kl_coef·KL − entropy_coef·H
        ppo_clip surrogate = −min(r·A, clip(r, 1 − clip_low, 1 + clip_high)·A), the others: ``surrogates``
        sum      Σ w·L over the unmasked tokens, w and denominator: ``aggregation``
                 + demonstration_weight·Σ −log p over the tokens of demonstrations
        loss     sum / max(denominator, 1)

    Sums and denominators of microbatches add up to those of the whole batch (not so for 'token_sum_norm'), so
    divide once per optimizer step, by max(denominator, 1). PPO's surrogate is arXiv 1707.06347, eq. 7, with one
    bound a side (DAPO). Every surrogate looks at its own row only; what is decided over a whole minibatch
    (``token_weights``, ``chosen``, ``log_proxy``, ``demonstration_weight``) comes in as constants.

    ==========================================  ========================================================
    masked position                             takes no part, whatever it holds (NaN and inf included):
                                                value and gradient stay finite, its own gradient is 0
    everything masked                           sum 0, denominator 0 (rows × max_length for dr_grpo,
                                                max_length for token_sum_norm), zero gradients
    r on a bound                                counts as not clipped: the gradient flows
    NaN at an unmasked position                 a NaN sum: not hidden
    demonstration row                           no ratio, KL, entropy or token weight; neither its tokens
                                                nor its row are in the denominator or in other metrics
    ==========================================  ========================================================

    Gradients flow through ``log_probs``, ``entropy`` and ``kept_log_mass`` only.

    Args:
      log_probs: (N, T) log-probabilities of the sampled tokens under the policy, nats.
      old_log_probs: (N, T), under the policy that the ratio is taken to, nats.
      advantages: (N,), one a rollout, or (N, T), one a token.
      mask: (N, T) bool (or 0/1), true on completion tokens.
      surrogate: key of ``SURROGATES``.
      clip_low: how far r may fall below 1 before a negative advantage stops pushing.
      clip_high: how far r may rise above 1 before a positive advantage stops pushing.
      dual_clip: c > 1 bounds the surrogate of a negative advantage by −c·A ('ppo_clip'); None is off.
      options: the other options of the surrogate, and the clips if they are not given here.
      aggregation: key of ``AGGREGATIONS``.
      max_length: completion limit in tokens; needed by 'dr_grpo' and 'token_sum_norm', unused otherwise.
      ref_log_probs: (N, T), under the reference policy, nats; needed when kl_coef > 0.
      kl_estimator: 'k2', 'k3' or 'k3_plus'; 'k1' is refused because its expected gradient is zero.
      kl_coef: weight of the KL term, per nat.
      entropy: (N, T) entropy of the policy at each position, nats; needed when entropy_coef ≠ 0.
      entropy_coef: weight of the entropy bonus, per nat.
      valid: (N,) bool, false for rows that only pad the batch: they are masked and, for ``dr_grpo``, not
        counted as rows. None means all true.
      token_weights: (N, T), multiply the surrogate after clipping, before aggregation (TIS, GTPO); None: 1.
      chosen: (N, T) bool, for 'clip_cov', 'kl_cov', 'lp_reg'.
      segments: (N, T) int32 ids in [0, T), for 'macro_sum', 'macro_mean'.
      log_proxy: (N, T) nats, for 'lp_reg' in its release's form.
      kept_log_mass: (N, T) nats, for 'lp_reg' in its paper's form.
      demonstration: (N,) bool, rows written by data. None means none.
      demonstration_weight: scalar, weight of −log p of each of their tokens in the sum; needed with them.

    Returns:
      sum: scalar. denominator: scalar, without gradient. metrics: ``LossMetrics``, without gradient:
      sums ``surrogate`` (same weights and denominator as the loss) and, per unmasked token, ``ratio_mean``
      (of the surrogate's ratio), ``approx_kl`` (k3 of old against new), ``clip_fraction_low`` and
      ``clip_fraction_high`` ('ppo_clip': A < 0, r below; A > 0, r above), ``kl_ref`` and ``entropy`` where given,
      ``dual_clip_fraction`` with dual_clip, ``token_weight_mean`` with token_weights, ``chosen_fraction`` with
      chosen; ``demonstration_nll`` per token of a demonstration; maxima ``ratio_max``.

    Raises:
      ValueError: an option out of range or unknown, a missing array, or shapes that do not fit.

    Example:
      >>> old = jnp.log(jnp.array([[0.25, 0.5]]))
      >>> new = jnp.log(jnp.array([[0.5, 0.25]]))
      >>> total, denominator, metrics = policy_loss(new, old, jnp.array([1.0]), jnp.ones((1, 2), bool))
      >>> [round(float(x), 4) for x in (total, denominator, finalize(metrics)["clip_fraction_high"])]
      [-1.7, 2.0, 0.5]
    """
    options = check_loss_options(
        clip_low, clip_high, aggregation, max_length, kl_estimator, kl_coef, entropy_coef, surrogate, options, dual_clip
    )
    if kl_coef and ref_log_probs is None:
        raise ValueError(f"kl_coef = {kl_coef!r} needs ref_log_probs, got None")
    if entropy_coef and entropy is None:
        raise ValueError(f"entropy_coef = {entropy_coef!r} needs entropy, got None")
    if (demonstration is None) != (demonstration_weight is None):
        missing = "demonstration" if demonstration is None else "demonstration_weight"
        raise ValueError(f"demonstration and demonstration_weight go together, {missing} is None")
    per_token_arrays = {
        "old_log_probs": old_log_probs,
        "mask": mask,
        "ref_log_probs": ref_log_probs,
        "entropy": entropy,
        "token_weights": token_weights,
        "chosen": chosen,
        "segments": segments,
        "log_proxy": log_proxy,
        "kept_log_mass": kept_log_mass,
    }
    _check_shapes(log_probs, advantages, per_token_arrays, {"valid": valid, "demonstration": demonstration})

    dtype = jnp.promote_types(jnp.result_type(log_probs), jnp.float32)
    valid_N = jnp.ones(jnp.shape(log_probs)[0], bool) if valid is None else jnp.asarray(valid).astype(bool)
    shown_NxT = None
    mask_NxT = jnp.asarray(mask).astype(bool) & valid_N[:, None]
    if demonstration is not None:
        shown_N = jnp.asarray(demonstration).astype(bool)
        shown_NxT, mask_NxT = mask_NxT & shown_N[:, None], mask_NxT & ~shown_N[:, None]
        valid_N = valid_N & ~shown_N

    def keep(x: ArrayLike) -> Array:
        # Garbage is replaced before any arithmetic: a `where` after it would let NaN into the gradient.
        return jnp.where(mask_NxT, jnp.asarray(x).astype(dtype), 0)

    def constant(x: ArrayLike) -> Array:
        return jax.lax.stop_gradient(keep(x))

    advantages = jnp.asarray(advantages)
    tokens = TokenInputs(
        log_probs=keep(log_probs),
        old_log_probs=constant(old_log_probs),
        advantages=constant(advantages if advantages.ndim == 2 else advantages[:, None]),
        mask=mask_NxT,
        chosen=None if chosen is None else jnp.asarray(chosen).astype(bool) & mask_NxT,
        segments=None if segments is None else jnp.where(mask_NxT, jnp.asarray(segments).astype(jnp.int32), 0),
        log_proxy=None if log_proxy is None else constant(log_proxy),
        kept_log_mass=None if kept_log_mass is None else keep(kept_log_mass),
    )
    output = SURROGATES[surrogate](tokens, options)
    surrogate_NxT = output.loss
    per_token = {
        "ratio_mean": output.ratio,
        "approx_kl": k3(tokens.old_log_probs, tokens.log_probs),
        "clip_fraction_low": output.clipped_low,
        "clip_fraction_high": output.clipped_high,
    }
    if options.dual_clip is not None:
        per_token["dual_clip_fraction"] = dual_clipped(output.ratio, tokens.advantages, options.dual_clip)
    if tokens.chosen is not None:
        per_token["chosen_fraction"] = tokens.chosen
    if token_weights is not None:
        per_token["token_weight_mean"] = constant(token_weights)
        surrogate_NxT = surrogate_NxT * per_token["token_weight_mean"]
    # The surrogate of a masked token need not be 0 (a ratio of 1 times 0 is, a regulariser may not be).
    surrogate_NxT = jnp.where(mask_NxT, surrogate_NxT, 0)

    loss_NxT = surrogate_NxT
    if ref_log_probs is not None:
        per_token["kl_ref"] = KL_ESTIMATORS[kl_estimator](tokens.log_probs, constant(ref_log_probs))
        loss_NxT = loss_NxT + kl_coef * per_token["kl_ref"]
    if entropy is not None:
        per_token["entropy"] = keep(entropy)
        loss_NxT = loss_NxT - entropy_coef * per_token["entropy"]

    weights_NxT, denominator = AGGREGATIONS[aggregation](
        mask_NxT.astype(dtype), valid_N.astype(dtype), max_length
    )
    num_tokens = jnp.sum(mask_NxT, dtype=dtype)
    sums = {
        name: (jnp.sum(jnp.where(mask_NxT, x, 0), dtype=dtype), num_tokens) for name, x in per_token.items()
    }
    sums["surrogate"] = (jnp.sum(weights_NxT * surrogate_NxT), denominator)
    total = jnp.sum(weights_NxT * loss_NxT)
    if shown_NxT is not None and demonstration_weight is not None:
        nll = jnp.sum(jnp.where(shown_NxT, -jnp.asarray(log_probs).astype(dtype), 0))
        sums["demonstration_nll"] = (nll, jnp.sum(shown_NxT, dtype=dtype))
        total = total + jax.lax.stop_gradient(jnp.asarray(demonstration_weight).astype(dtype)) * nll
    maxima = {"ratio_max": jnp.max(output.ratio, initial=0, where=mask_NxT)}
    metrics = jax.lax.stop_gradient(LossMetrics(sums, maxima))
    return total, jax.lax.stop_gradient(denominator), metrics


def _check_shapes(
    log_probs: ArrayLike,
    advantages: ArrayLike,
    per_token: dict[str, ArrayLike | None],
    per_row: dict[str, ArrayLike | None],
) -> None:
    shape = jnp.shape(log_probs)
    if len(shape) != 2:
        raise ValueError(f"log_probs must have shape (N, T), got {shape}")
    for name, array in per_token.items():
        if array is not None and jnp.shape(array) != shape:
            raise ValueError(f"{name} must have the shape of log_probs {shape}, got {jnp.shape(array)}")
    if jnp.shape(advantages) not in (shape, shape[:1]):
        raise ValueError(f"advantages must have shape {shape[:1]} or {shape}, got {jnp.shape(advantages)}")
    for name, array in per_row.items():
        if array is not None and jnp.shape(array) != shape[:1]:
            raise ValueError(f"{name} must have shape {shape[:1]}, got {jnp.shape(array)}")
