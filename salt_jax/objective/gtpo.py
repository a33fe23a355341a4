"""GTPO (arXiv 2508.03772): tokens that good and bad rollouts share are protected, uncertain rollouts pay for it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.advantages import group_advantages

Array = jax.Array

OVERLAPS = ("multiply", "once")
FORMS = ("paper", "release")


def conflict_runs(
    tokens: ArrayLike, mask: ArrayLike, advantages: ArrayLike, *, group_size: int
) -> tuple[Array, Array]:
    """Lengths of the runs of conflict tokens at the start and at the end of every completion.

    A token is in conflict where the same token stands at the same offset of a rollout of the group with A > 0 and of
    one with A < 0, its own among them. Only the unbroken run of them from the first token on counts, and, with
    offsets from the last token, that from the last one back. Offsets count unmasked tokens.

    The comparisons are B·G²·T, within groups.

    ==================================  ==================================================================
    no A > 0, or no A < 0, in a group   no conflicts
    A = 0 (equal or missing rewards)    no conflicts, neither its own nor for others
    an empty completion                 0
    ==================================  ==================================================================

    Args:
      tokens: (N, T) integers, N = B·group_size, groups contiguous. mask: (N, T) bool.
      advantages: (N,), of which the sign counts: r − mean, before the entropy term.
      group_size: G, rollouts of a prompt.

    Returns:
      prefix (N,), suffix (N,): int32, both up to the length of the completion; they may overlap.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> tokens = jnp.array([[5, 6, 7, 9], [5, 6, 8, 9]])
      >>> prefix, suffix = conflict_runs(tokens, tokens > 0, jnp.array([0.5, -0.5]), group_size=2)
      >>> prefix.tolist(), suffix.tolist()
      ([2, 2], [1, 1])
    """
    tokens, mask, advantages = _check(tokens, mask, advantages, group_size)
    num_rows, num_columns = tokens.shape
    # Unmasked tokens to the left, in their order; and to the right.
    left = jnp.take_along_axis(tokens, jnp.argsort(~mask, axis=1, stable=True), axis=1)
    right = jnp.take_along_axis(tokens, jnp.argsort(mask, axis=1, stable=True), axis=1)[:, ::-1]
    there = jnp.arange(num_columns)[None, :] < jnp.sum(mask, axis=1, keepdims=True)

    def groups(x: Array) -> Array:
        return x.reshape(num_rows // group_size, group_size, *x.shape[1:])

    sign, there_BxGxT = groups(jnp.sign(advantages)), groups(there)
    opposed_BxGxG = sign[:, :, None] * sign[:, None, :] < 0

    def run(aligned: Array) -> Array:
        aligned = groups(aligned)
        same = aligned[:, :, None, :] == aligned[:, None, :, :]
        conflict = jnp.any(same & opposed_BxGxG[..., None] & there_BxGxT[:, None, :, :], axis=2) & there_BxGxT
        return jnp.sum(jnp.cumprod(conflict.astype(jnp.int32), axis=2), axis=2, dtype=jnp.int32).reshape(-1)

    return run(left), run(right)


def conflict_counts(prefix: ArrayLike, suffix: ArrayLike, mask: ArrayLike, form: str = "paper") -> Array:
    """Conflict tokens of every row.

    Args:
      prefix: (N,). suffix: (N,). mask: (N, T) bool.
      form: 'paper' counts the tokens of both runs, each once; 'release' takes the longer run (the released code
        leaves the suffix in mirrored coordinates, which looks like a slip).

    Returns:
      (N,) integers.

    Raises:
      ValueError: an unknown form.

    Example:
      >>> runs = jnp.array([2]), jnp.array([1]), jnp.ones((1, 4), bool)
      >>> int(conflict_counts(*runs)[0]), int(conflict_counts(*runs, form="release")[0])
      (3, 2)
    """
    _check_form(form)
    prefix, suffix = jnp.asarray(prefix), jnp.asarray(suffix)
    if form == "release":
        return jnp.maximum(prefix, suffix)
    return jnp.minimum(prefix + suffix, jnp.sum(jnp.asarray(mask).astype(bool), axis=1))


def conflict_weights(
    tokens: ArrayLike,
    mask: ArrayLike,
    advantages: ArrayLike,
    *,
    group_size: int,
    weight: float = 2.0,
    overlap: str = "multiply",
) -> Array:
    """GTPO's lambda: ``weight`` on the conflict runs of rollouts with A > 0, 0 on those with A < 0, 1 elsewhere.

    Args:
      tokens: (N, T) integers, N = B·group_size, groups contiguous. mask: (N, T) bool.
      advantages: (N,), of which the sign counts: r − mean, before the entropy term.
      group_size: G, rollouts of a prompt.
      weight: of conflict tokens of rollouts with A > 0; 2 in the release.
      overlap: a token in both runs gets weight² with 'multiply' (release), weight with 'once'.

    Returns:
      (N, T) weights, without gradient; 0 at masked places, 1 on rows without conflict.

    Raises:
      ValueError: an option that is not allowed, or shapes that do not fit.

    Example:
      >>> tokens = jnp.array([[5, 6, 7, 9], [5, 6, 8, 9]])
      >>> conflict_weights(tokens, tokens > 0, jnp.array([0.5, -0.5]), group_size=2).tolist()
      [[2.0, 2.0, 1.0, 2.0], [0.0, 0.0, 1.0, 0.0]]
    """
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap = {overlap!r} is unknown; allowed: {', '.join(OVERLAPS)}")
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight = {weight!r} is not allowed; allowed: finite numbers >= 0")
    tokens, mask, advantages = _check(tokens, mask, advantages, group_size)
    prefix_N, suffix_N = conflict_runs(tokens, mask, advantages, group_size=group_size)
    offset = jnp.cumsum(mask, axis=1) - 1
    from_end = jnp.sum(mask, axis=1, keepdims=True) - 1 - offset
    first, last = offset < prefix_N[:, None], from_end < suffix_N[:, None]
    factor_Nx1 = jnp.where(advantages > 0, weight, 0).astype(advantages.dtype)[:, None]
    if overlap == "once":
        weights = jnp.where(first | last, factor_Nx1, 1)
    else:
        weights = jnp.where(first, factor_Nx1, 1) * jnp.where(last, factor_Nx1, 1)
    return jax.lax.stop_gradient(jnp.where(mask, weights, 0))


def gtpo_advantages(
    rewards: ArrayLike,
    mean_entropy: ArrayLike,
    *,
    rewarded: ArrayLike | None = None,
    gamma: float = 0.1,
    threshold: float = math.log(2),
    penalize_degenerate: bool = True,
) -> Array:
    """A'_i = delta_i·(r_i − mean − gamma·H_i), delta_i = 0 where H_i > threshold (arXiv 2508.03772, README and code).

    The paper filters (threshold ln 2) only where the entropy of the *initial* policy is below ln 2: pass inf
    otherwise. The released code always filters, at 0.7. A filtered rollout still defines conflicts: those come from
    r − mean (``group_advantages`` with 'dr_grpo').

    ==========================================  ==========================================================
    a group of equal rewards, or of one         −gamma·H, a pressure towards certainty without any reward;
                                                exactly 0 with penalize_degenerate = False
    a missing reward                            exactly 0; its reward and entropy may be NaN
    everything filtered                         all exactly 0
    ==========================================  ==========================================================

    Args:
      rewards: (B, G).
      mean_entropy: (B, G) mean entropy over a completion's tokens of the whole distribution, nats; a constant.
      rewarded: (B, G) bool, false where the grader failed; None means all true.
      gamma: reward taken off per nat.
      threshold: nats; inf filters nothing.
      penalize_degenerate: whether groups without a difference in reward pay for their entropy.

    Returns:
      (B, G) advantages A', in units of reward, without gradient.

    Raises:
      ValueError: an option that is not allowed, or shapes that do not fit.

    Example:
      >>> a = gtpo_advantages(jnp.array([[1., 1., 0.]]), jnp.array([[0.2, 0.75, 0.3]]))
      >>> [round(x, 4) for x in a[0].tolist()]
      [0.3133, 0.0, -0.6967]
    """
    if not math.isfinite(gamma):
        raise ValueError(f"gamma = {gamma!r} is not allowed; allowed: finite numbers")
    if not threshold > 0:
        raise ValueError(f"threshold = {threshold!r} is not allowed; allowed: numbers > 0, inf filters nothing")
    raw = group_advantages(rewards, estimator="dr_grpo", rewarded=rewarded)
    entropy = jnp.asarray(mean_entropy)
    if entropy.shape != raw.shape:
        raise ValueError(f"mean_entropy must have the shape of rewards {raw.shape}, got {entropy.shape}")
    known = jnp.ones(raw.shape, bool) if rewarded is None else jnp.asarray(rewarded).astype(bool)
    entropy = jnp.where(known, entropy, 0).astype(raw.dtype)
    kept = known & ~(entropy > threshold)  # a NaN entropy is kept, and seen
    if not penalize_degenerate:
        kept &= jnp.any(raw != 0, axis=1, keepdims=True)
    return jax.lax.stop_gradient(jnp.where(kept, raw - gamma * entropy, 0))


def gtpo_loss(
    log_probs: ArrayLike,
    advantages: ArrayLike,
    weights: ArrayLike,
    mask: ArrayLike,
    *,
    num_conflicts: ArrayLike | None = None,
    form: str = "paper",
) -> Array:
    """GTPO's loss to be minimised, over N rollouts, with ratio = exp(log p − its own constant value) = 1::

        paper      L = −1/N Σ_i A'_i/|o_i| Σ_t ratio·lambda
        release    L = −Σ_i A'_i/(|o_i|·max(n_i, 1)) Σ_t ratio·lambda,   n_i = max(prefix, suffix)

    The paper's form is the surrogate 'ratio of value 1' times lambda, with aggregation seq_mean_token_mean over
    the rollouts that are not empty; the release's divides lambda by max(n_i, 1) and sums where that averages. No KL.

    ==================================  ==================================================================
    everything masked or filtered       0, with zero gradient
    an empty completion                 0, and outside N
    masked position                     takes no part, whatever it holds
    ==================================  ==================================================================

    Args:
      log_probs: (N, T) nats.
      advantages: (N,), A' of ``gtpo_advantages``.
      weights: (N, T), lambda of ``conflict_weights``.
      mask: (N, T) bool.
      num_conflicts: (N,), ``conflict_counts`` in the form 'release'; needed by that form.
      form: 'paper' or 'release'.

    Returns:
      Scalar.

    Raises:
      ValueError: an unknown form, counts that are missing or unused, or shapes that do not fit.

    Example:
      >>> ones = jnp.ones((2, 3))
      >>> float(gtpo_loss(-ones, jnp.array([0.5, -0.25]), ones, ones > 0))
      -0.125
    """
    _check_form(form)
    if (form == "release") != (num_conflicts is not None):
        raise ValueError(f"num_conflicts must be given with form = 'release' and only there, form is {form!r}")
    log_probs, mask = jnp.asarray(log_probs), jnp.asarray(mask).astype(bool)
    if mask.ndim != 2 or log_probs.shape != mask.shape or jnp.shape(weights) != mask.shape:
        raise ValueError(
            f"log_probs {log_probs.shape} and weights {jnp.shape(weights)} must have the shape (N, T) of mask "
            f"{mask.shape}"
        )
    if jnp.shape(advantages) != mask.shape[:1]:
        raise ValueError(f"advantages must have shape (N,) = {mask.shape[:1]}, got {jnp.shape(advantages)}")
    dtype = jnp.promote_types(log_probs.dtype, jnp.float32)
    log_probs = jnp.where(mask, log_probs, 0).astype(dtype)
    ratio = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))
    lengths_N = jnp.sum(mask, axis=1)
    weights = jnp.where(mask, jnp.asarray(weights), 0).astype(dtype)
    inner_N = jnp.sum(ratio * weights, axis=1) / jnp.maximum(lengths_N, 1)
    per_row = inner_N * jnp.where(lengths_N > 0, jnp.asarray(advantages), 0).astype(dtype)
    if num_conflicts is not None:
        return -jnp.sum(per_row / jnp.maximum(jnp.asarray(num_conflicts), 1))
    return -jnp.sum(per_row) / jnp.maximum(jnp.sum(lengths_N > 0), 1)


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form = {form!r} is unknown; allowed: {', '.join(FORMS)}")


def _check(
    tokens: ArrayLike, mask: ArrayLike, advantages: ArrayLike, group_size: int
) -> tuple[Array, Array, Array]:
    tokens, mask, advantages = jnp.asarray(tokens), jnp.asarray(mask).astype(bool), jnp.asarray(advantages)
    if tokens.ndim != 2 or mask.shape != tokens.shape:
        raise ValueError(f"mask must have the shape (N, T) of tokens {tokens.shape}, got {mask.shape}")
    if advantages.shape != tokens.shape[:1]:
        raise ValueError(f"advantages must have shape (N,) = {tokens.shape[:1]}, got {advantages.shape}")
    if group_size < 1 or tokens.shape[0] % group_size:
        raise ValueError(f"{tokens.shape[0]} rows do not divide into groups of group_size = {group_size}")
    return tokens, mask, advantages.astype(jnp.promote_types(advantages.dtype, jnp.float32))
