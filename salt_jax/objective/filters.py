"""Which rollouts, or tokens, take part: masks for a fixed-shape batch. Nothing is removed, so everything jits.

A mask is true where the rollout or token is kept. Counts may be traced: they are compared with ranks. Where nothing
is kept the mask is all false, and losses and statistics over it are defined (0).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array

SCOPES = ("batch", "rollout")


def informative_groups(
    rewards: ArrayLike, *, rewarded: ArrayLike | None = None, keep_singletons: bool = False
) -> Array:
    """Groups whose rewards differ, max != min: the condition of DAPO's dynamic sampling (arXiv 2503.14476).

    Pass the raw correctness: a shaped reward hides groups without a signal.

    Args:
      rewards: (B, G).
      rewarded: (B, G) bool, false where the grader failed; None means all true.
      keep_singletons: keeps groups with one rewarded entry, as verl does.

    Returns:
      (B,) bool; false for groups with one rewarded entry (see above) or none.

    Raises:
      ValueError: rank other than 2, or shapes that differ.

    Example:
      >>> informative_groups(jnp.array([[1, 1], [1, 0], [0, 0]])).tolist()
      [False, True, False]
    """
    rewards, rewarded = _check(rewards, rewarded, "rewards", "rewarded")
    highest, lowest = _extremes(rewards, rewarded)
    count_B = jnp.sum(rewarded, axis=1)
    return (highest != lowest)[:, 0] & (count_B > 1) | (count_B == 1) & keep_singletons


def max_variance(values: ArrayLike, keep: ArrayLike, *, counted: ArrayLike | None = None) -> Array:
    """The subset of every row with the largest variance, of a given size: exact but for rounding, in G log G.

    An optimum consists of the k largest and the keep − k smallest for some k (PODS, arXiv 2504.13818, theorem 1); all
    k are tried. Ties: equal values in the order of their indices, equal variances to the largest k; so a row of equal
    values keeps its first entries.

    ==================================  ==================================================================
    keep >= number counted              all counted
    keep <= 0                           none
    keep = 1                            the largest (every variance is 0)
    not counted                         not kept; may be NaN
    ==================================  ==================================================================

    Args:
      values: (B, G), or (1, N) to choose from a whole batch at once.
      keep: scalar, or (B,), integers; may be traced.
      counted: (B, G) bool, what may be chosen; None means all.

    Returns:
      (B, G) bool.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> jax.jit(max_variance)(jnp.array([[1.5, 0.5, 0.2, -0.2, -2.0]]), 3).tolist()
      [[True, True, False, False, True]]
    """
    values, counted = _check(values, counted, "values", "counted")
    num_rows, size = values.shape
    if jnp.ndim(keep) > 1 or jnp.shape(keep) not in ((), (num_rows,)):
        raise ValueError(f"keep must be a scalar or have shape (B,) = ({num_rows},), got {jnp.shape(keep)}")
    if not jnp.issubdtype(jnp.result_type(keep), jnp.integer):
        raise ValueError(f"keep must be an integer, got {jnp.result_type(keep)}")
    count_Bx1 = jnp.sum(counted, axis=1, keepdims=True, dtype=jnp.int32)
    keep_Bx1 = jnp.clip(jnp.broadcast_to(jnp.asarray(keep, jnp.int32), (num_rows,))[:, None], 0, count_Bx1)
    values = jnp.where(counted, values, 0)
    mean_Bx1 = jnp.sum(values, axis=1, keepdims=True) / jnp.maximum(count_Bx1, 1)
    values = jnp.where(counted, values - mean_Bx1, 0)
    order = jnp.lexsort((-values, ~counted), axis=1)  # stable: the counted first, from the largest down
    descending = jnp.take_along_axis(values, order, axis=1)
    from_smallest = count_Bx1 - 1 - jnp.arange(size)[None, :]
    ascending = jnp.take_along_axis(descending, jnp.maximum(from_smallest, 0), axis=1)
    k = jnp.arange(size + 1)[None, :]
    rest_BxK = jnp.clip(keep_Bx1 - k, 0, size)

    def total(largest: Array, smallest: Array) -> Array:
        """(B, G + 1): of the k largest and the keep − k smallest, without differences of large sums."""
        from_top, from_bottom = (jnp.pad(jnp.cumsum(x, axis=1), ((0, 0), (1, 0))) for x in (largest, smallest))
        return from_top + jnp.take_along_axis(from_bottom, rest_BxK, axis=1)

    size_Bx1 = jnp.maximum(keep_Bx1, 1).astype(values.dtype)
    mean_square = total(descending**2, ascending**2) / size_Bx1
    variance = mean_square - (total(descending, ascending) / size_Bx1) ** 2
    variance = jnp.where(k <= keep_Bx1, variance, -jnp.inf)
    # A tie is a tie although the sums were rounded in different orders.
    slack = 16 * jnp.finfo(values.dtype).eps * mean_square
    best = jnp.max(variance, axis=1, keepdims=True)
    largest = jnp.max(jnp.where(variance >= best - slack, k, 0), axis=1, keepdims=True)
    rank = jnp.argsort(order, axis=1)
    smallest_from = count_Bx1 - keep_Bx1 + largest
    return counted & ((rank < largest) | (rank >= smallest_from))


def pods(rewards: ArrayLike, keep: ArrayLike, *, rewarded: ArrayLike | None = None) -> Array:
    """PODS: of every group the ``keep`` rollouts with the most varied rewards (arXiv 2504.13818).

    Advantages are then formed over the kept rollouts alone: pass the mask on as ``rewarded``.

    Args:
      rewards: (B, G).
      keep: rollouts kept of each prompt, at most those rewarded; may be traced.
      rewarded: (B, G) bool, false where the grader failed: not kept.

    Returns:
      (B, G) bool.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> jax.jit(pods)(jnp.array([[1.0, 0.0, 0.0, 0.0]]), 2).tolist()
      [[True, True, False, False]]
    """
    return max_variance(rewards, keep, counted=rewarded)


def d3s_rollouts(
    advantages: ArrayLike, n_intra: ArrayLike, n_batch: ArrayLike, *, counted: ArrayLike | None = None
) -> Array:
    """D3S, rollouts: the most varied ``n_intra`` of every group, and of those the most varied ``n_batch`` in all.

    Unconfirmed: from notes on arXiv 2509.22115, whose code is not public. Advantages are not normalised again.

    Args:
      advantages: (B, G), one a rollout.
      n_intra: rollouts kept of each prompt; may be traced.
      n_batch: rollouts kept of the batch; may be traced.
      counted: (B, G) bool, what may be chosen; None means all.

    Returns:
      (B, G) bool; the first n_batch of the first n_intra where all advantages are equal.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> jax.jit(d3s_rollouts)(jnp.array([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]), 2, 2).tolist()
      [[True, False, False, True], [False, False, False, False]]
    """
    kept = max_variance(advantages, n_intra, counted=counted)
    return max_variance(jnp.reshape(advantages, (1, -1)), n_batch, counted=kept.reshape(1, -1)).reshape(kept.shape)


def d3s_tokens(
    abs_advantages: ArrayLike, entropy: ArrayLike, mask: ArrayLike, fraction: ArrayLike, *, scope: str = "batch"
) -> Array:
    """D3S, tokens: the top share of the unmasked tokens by |A|·H; max(1, floor(fraction·tokens)) of them.

    Unconfirmed: from notes on arXiv 2509.22115; whether the share is of the batch or of each response is not clear
    from them, nor is rounding. Ties go to the first row, then to the first token.

    ==================================  ==================================================================
    everything masked                   nothing is kept
    fraction = 0                        one token is kept (of each response, with scope 'rollout')
    all A = 0                           the first tokens: mask uninformative rollouts out beforehand
    masked position                     not kept; may be NaN
    ==================================  ==================================================================

    Args:
      abs_advantages: (N, T), |A|.
      entropy: (N, T) entropy of the whole distribution at each position, nats.
      mask: (N, T) bool, tokens of the kept rollouts.
      fraction: scalar in [0, 1]; may be traced.
      scope: 'batch' ranks all tokens together, 'rollout' those of each response.

    Returns:
      (N, T) bool.

    Raises:
      ValueError: an unknown scope, or shapes that differ.

    Example:
      >>> h = jnp.array([[0.1, 0.8, 0.5, 0.3, 0.55]])
      >>> jax.jit(d3s_tokens)(jnp.array([[1.5, 1.5, 1.5, 2.0, 2.0]]), h, h > 0, 0.4).tolist()
      [[False, True, False, False, True]]
    """
    if scope not in SCOPES:
        raise ValueError(f"scope = {scope!r} is unknown; allowed: {', '.join(SCOPES)}")
    abs_advantages, entropy, mask = jnp.asarray(abs_advantages), jnp.asarray(entropy), jnp.asarray(mask).astype(bool)
    if mask.ndim != 2 or abs_advantages.shape != mask.shape or entropy.shape != mask.shape:
        raise ValueError(
            f"abs_advantages {abs_advantages.shape} and entropy {entropy.shape} must have the shape (N, T) of mask "
            f"{mask.shape}"
        )
    dtype = jnp.promote_types(jnp.result_type(abs_advantages, entropy), jnp.float32)
    keys = jnp.where(mask, abs_advantages, 0).astype(dtype) * jnp.where(mask, entropy, 0)
    rows = (1, -1) if scope == "batch" else mask.shape
    keys_RxL, mask_RxL = keys.reshape(rows), mask.reshape(rows)
    count_Rx1 = jnp.sum(mask_RxL, axis=1, keepdims=True)
    share = whole_part(jnp.asarray(fraction, dtype) * count_Rx1.astype(dtype))
    keep_Rx1 = jnp.minimum(jnp.maximum(share, 1), count_Rx1)
    rank = jnp.argsort(jnp.lexsort((-keys_RxL, ~mask_RxL), axis=1), axis=1)
    return (mask_RxL & (rank < keep_Rx1)).reshape(mask.shape)


def d3s_schedule(progress: ArrayLike, init: float, final: float) -> Array:
    """D3S's linear schedule of its counts and shares: (1 − p)·init + p·final.

    Unconfirmed: from notes on arXiv 2509.22115, which name no values.

    Args:
      progress: p, the share of training that is done; held within [0, 1].
      init: value at p = 0.
      final: value at p = 1.

    Returns:
      Scalar; the caller rounds counts.

    Example:
      >>> float(d3s_schedule(0.25, 4, 8))
      5.0
    """
    p = jnp.clip(jnp.asarray(progress, jnp.result_type(float)), 0, 1)
    return init + p * (final - init)


def whole_part(x: ArrayLike) -> Array:
    """floor(x) of a share of a count, x >= 0: 0.7 of 10 is 7, also where 0.7·10 is rounded to 6.9999995.

    Args:
      x: real, any shape.

    Returns:
      int32, the same shape.

    Example:
      >>> whole_part(jnp.array([6.9999995, 6.99])).tolist()
      [7, 6]
    """
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.floor(x * (1 + 4 * jnp.finfo(x.dtype).eps)).astype(jnp.int32)


def red_drop(rewards: ArrayLike, key: Array, *, rewarded: ArrayLike | None = None) -> Array:
    """RED-Drop: drops random surplus negatives, until as many are left as there are positives (arXiv 2509.24203).

    Positive is r >= the group's mean. A dropped rollout gets advantage 0, its tokens stay in the denominator, and the
    mean is taken anew over the kept: ``group_advantages(rewards, estimator='dr_grpo', rewarded=mask)``.

    ==================================  ==================================================================
    no surplus (n_neg <= n_pos)         all rewarded are kept
    a group of equal rewards            all are positive: all are kept
    a missing reward                    not kept, outside mean and counts
    ==================================  ==================================================================

    Args:
      rewards: (B, G).
      key: PRNG key of the draw.
      rewarded: (B, G) bool, false where the grader failed; None means all true.

    Returns:
      (B, G) bool.

    Raises:
      ValueError: rank other than 2, or shapes that differ.

    Example:
      >>> kept = jax.jit(red_drop)(jnp.array([[1.0, 0.0, 0.0, 0.0, 0.0]]), jax.random.key(0))
      >>> bool(kept[0, 0]), int(kept.sum())
      (True, 2)
    """
    rewards, rewarded = _check(rewards, rewarded, "rewards", "rewarded")
    rewards = jnp.where(rewarded, rewards, 0)
    mean_Bx1 = jnp.sum(rewards, axis=1, keepdims=True) / jnp.maximum(jnp.sum(rewarded, axis=1, keepdims=True), 1)
    highest, _ = _extremes(rewards, rewarded)
    # The highest is never negative, whatever rounding does to the mean of equal rewards.
    positive = rewarded & ((rewards >= mean_Bx1) | (rewards == highest))
    negative = rewarded & ~positive
    surplus_Bx1 = jnp.sum(negative, axis=1, keepdims=True) - jnp.sum(positive, axis=1, keepdims=True)
    draw = jax.random.uniform(key, rewards.shape)
    rank = jnp.argsort(jnp.lexsort((draw, ~negative), axis=1), axis=1)  # the negatives first, at random
    return rewarded & ~(negative & (rank < surplus_Bx1))


def positive_only(advantages: ArrayLike) -> Array:
    """Rollouts with A > 0 alone, as WAPO's release masks them (arXiv 2606.16154; read, not run).

    Args:
      advantages: any shape.

    Returns:
      bool of the same shape; all false where no advantage is positive.

    Example:
      >>> positive_only(jnp.array([0.5, 0.0, -0.5])).tolist()
      [True, False, False]
    """
    return jnp.asarray(advantages) > 0


def not_truncated(truncated: ArrayLike) -> Array:
    """Rollouts that ended by themselves: DAPO's overlong filtering (arXiv 2503.14476).

    Args:
      truncated: (N,) bool, true where the completion was cut off at its limit.

    Returns:
      (N,) bool; all false where every rollout was cut off.

    Example:
      >>> not_truncated(jnp.array([True, False])).tolist()
      [False, True]
    """
    return ~jnp.asarray(truncated).astype(bool)


def _extremes(rewards: Array, rewarded: Array) -> tuple[Array, Array]:
    """Highest and lowest rewarded entry of each group, (B, 1)."""
    highest = jnp.max(rewards, axis=1, keepdims=True, initial=-jnp.inf, where=rewarded)
    return highest, jnp.min(rewards, axis=1, keepdims=True, initial=jnp.inf, where=rewarded)


def _check(values: ArrayLike, counted: ArrayLike | None, name: str, counted_name: str) -> tuple[Array, Array]:
    values = jnp.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"{name} must have shape (B, G), got {values.shape}")
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    counted = jnp.ones(values.shape, bool) if counted is None else jnp.asarray(counted).astype(bool)
    if counted.shape != values.shape:
        raise ValueError(f"{counted_name} must have the shape of {name} {values.shape}, got {counted.shape}")
    return values, counted
