"""Rank-GRPO: rewards, advantages and ratios per place of a recommended list (arXiv 2510.20150).

A completion lists items, one a line; K is the length that is asked for. Reward, advantage, loss and length shaping
follow the release; the paper's objective (``form='paper'``) is from secondary sources. Its defaults: clip .06 and .08,
KL 1e-3, G = 8, K = 20, lr 1e-6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from salt_jax.objective.losses import LossMetrics, policy_loss
from salt_jax.objective.macro_actions import segment_lengths, to_tokens

Array = jax.Array
RANK_REWARDS = ("exp_inf", "dcg", "exp_gamma")


def relevance(
    recommended: Sequence[Hashable],
    ground_truth: Sequence[Hashable],
    num_ranks: int,
    *,
    catalog: Collection[Hashable],
    seen: Collection[Hashable] = (),
) -> np.ndarray:
    """rel_k ∈ {0, 1}: the k-th item is in the catalog, was not seen before, and matches an unused ground truth.

    Items are compared as they are: normalise titles (and years) before. The release also lets years differ by 2.

    Args:
      recommended: items in the order of the list; what is beyond ``num_ranks`` is ignored.
      ground_truth: items; one that stands there twice may match twice.
      num_ranks: K. catalog: items that exist. seen: items the user has seen.

    Returns:
      (K,) float64; missing places are 0, so an unparsable completion is an empty list.

    Raises:
      ValueError: num_ranks < 1.

    Example:
      >>> relevance(["a", "b", "a", "x"], ["a", "b"], 5, catalog={"a", "b", "c"}, seen={"b"}).tolist()
      [1.0, 0.0, 0.0, 0.0, 0.0]
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks = {num_ranks!r} is not allowed; allowed: an integer >= 1")
    left = Counter(ground_truth)
    result = np.zeros(num_ranks)
    for rank, item in enumerate(recommended[:num_ranks]):
        if item in catalog and item not in seen and left[item] > 0:
            left[item] -= 1
            result[rank] = 1
    return result


def rank_rewards(relevance: ArrayLike, kind: str = "exp_inf", gamma: float = 2.0) -> Array:
    """The reward of every place, from its relevance and that of the places after it (k, j from 1)::

        exp_inf     r_k = rel_k                                 (the release's default, and its best)
        dcg         r_k = Σ_{j ≥ k} rel_j / log2(j + 1)
        exp_gamma   r_k = Σ_{j ≥ k} rel_j / gamma^(j − k)

    Args:
      relevance: (N, K). kind: see above. gamma: ≥ 1, of 'exp_gamma'.

    Returns:
      (N, K) in float32 or wider.

    Raises:
      ValueError: an unknown kind, gamma < 1, or a rank other than 2.

    Example:
      >>> rank_rewards(jnp.array([[0., 1.]]), "exp_gamma").tolist()
      [[0.5, 1.0]]
    """
    if kind not in RANK_REWARDS:
        raise ValueError(f"rank reward = {kind!r} is unknown; allowed: {', '.join(RANK_REWARDS)}")
    if not gamma >= 1:
        raise ValueError(f"gamma = {gamma!r} is not allowed; allowed: numbers >= 1")
    relevance = jnp.asarray(relevance)
    if relevance.ndim != 2:
        raise ValueError(f"relevance must have shape (N, K), got {relevance.shape}")
    relevance = relevance.astype(jnp.promote_types(relevance.dtype, jnp.float32))
    if kind == "exp_inf":
        return relevance
    places = np.arange(1, relevance.shape[1] + 1)
    behind = places[None, :] - places[:, None]  # j − k
    factors = 1 / np.log2(places + 1)[None, :] if kind == "dcg" else gamma ** -np.maximum(behind, 0.0)
    weights_KxK = jnp.asarray(np.where(behind >= 0, factors, 0), relevance.dtype)
    return jnp.einsum("nj,kj->nk", relevance, weights_KxK, precision=jax.lax.Precision.HIGHEST)


def rank_advantages(
    rank_rewards: ArrayLike, rewarded: ArrayLike | None = None, ddof: int = 1, eps: float = 1e-4
) -> Array:
    """A_{i,k} = (r_{i,k} − mean_i r_{i,k}) / (std_i + eps), for every place over the G rollouts of a prompt.

    ==========================================  ==================================================
    a place without signal (max == min)         0, exactly
    fewer than two rewarded rollouts            0
    a rollout without reward                    0; it takes no part, its reward may be NaN
    a list that is shorter than K               reward 0 at the missing places, which count
    ==========================================  ==================================================

    Args:
      rank_rewards: (B, G, K). rewarded: (B, G) bool, false where the grader failed; None means all.
      ddof: 1 for the sample std (the release), 0 for the population std. eps: added to the std.

    Returns:
      (B, G, K) in float32 or wider.

    Raises:
      ValueError: shapes that do not fit, ddof or eps out of range.

    Example:
      >>> print(rank_advantages(jnp.array([[[1., 0.], [0., 0.]]]), eps=0))
      [[[ 0.70710677  0.        ]
        [-0.70710677  0.        ]]]
    """
    rewards = jnp.asarray(rank_rewards)
    if rewards.ndim != 3:
        raise ValueError(f"rank_rewards must have shape (B, G, K), got {rewards.shape}")
    if rewarded is not None and jnp.shape(rewarded) != rewards.shape[:2]:
        raise ValueError(f"rewarded must have shape {rewards.shape[:2]}, got {jnp.shape(rewarded)}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof = {ddof!r} is not allowed; allowed: 0 (population std), 1 (sample std)")
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps = {eps!r} is not allowed; allowed: finite numbers >= 0")
    counted = jnp.ones(rewards.shape[:2], bool) if rewarded is None else jnp.asarray(rewarded).astype(bool)
    counted = jnp.broadcast_to(counted[:, :, None], rewards.shape)
    rewards = jnp.where(counted, rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32)), 0)
    count = jnp.sum(counted, axis=1, keepdims=True)
    highest = jnp.max(rewards, axis=1, keepdims=True, initial=-jnp.inf, where=counted)
    lowest = jnp.min(rewards, axis=1, keepdims=True, initial=jnp.inf, where=counted)
    mean = jnp.sum(rewards, axis=1, keepdims=True) / jnp.maximum(count, 1)
    deviation = jnp.where(counted, rewards - mean, 0)
    variance = jnp.sum(deviation**2, axis=1, keepdims=True) / jnp.maximum(count - ddof, 1)
    scale = jnp.sqrt(variance) + eps
    return jnp.where(counted & (highest > lowest), deviation / jnp.where(scale > 0, scale, 1), 0)


def item_segments(newlines: ArrayLike, mask: ArrayLike, num_ranks: int) -> Array:
    """The item of every token: the number of newlines before it; a newline belongs to the item that it ends.

    Args:
      newlines: (N, T) newlines in the text of each token (bool, or a count: a token may hold two).
      mask: (N, T) bool. num_ranks: K; ids of K and more become K, one bin of overflow.

    Returns:
      (N, T) int32 in [0, K], −1 where masked. An EOS after a newline that ends the K-th item is overflow, as in the
      release.

    Raises:
      ValueError: num_ranks < 1, or shapes that differ.

    Example:
      >>> item_segments(jnp.array([[0, 1, 0, 1, 0, 0]]), jnp.array([[True] * 5 + [False]]), 2).tolist()
      [[0, 0, 1, 1, 2, -1]]
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks = {num_ranks!r} is not allowed; allowed: an integer >= 1")
    if jnp.shape(newlines) != jnp.shape(mask):
        raise ValueError(f"newlines {jnp.shape(newlines)} and mask {jnp.shape(mask)} must have one shape (N, T)")
    mask = jnp.asarray(mask).astype(bool)
    newlines = jnp.where(mask, jnp.asarray(newlines).astype(jnp.int32), 0)
    before = jnp.cumsum(newlines, axis=1) - newlines
    return jnp.where(mask, jnp.minimum(before, num_ranks), -1)


def token_advantages(rank_advantages: ArrayLike, segments: Array) -> Array:
    """The advantage of each token's item, 0 for overflow (id ≥ K) and where masked (id < 0).

    Args:
      rank_advantages: (N, K). segments: (N, T) int32, of ``item_segments``.

    Returns:
      (N, T).

    Example:
      >>> token_advantages(jnp.array([[1.0, -1.0]]), jnp.array([[0, 0, 1, 2, -1]])).tolist()
      [[1.0, 1.0, -1.0, 0.0, 0.0]]
    """
    rank_advantages = jnp.asarray(rank_advantages)
    num_ranks = rank_advantages.shape[1]
    spread = jnp.take_along_axis(rank_advantages, jnp.clip(segments, 0, num_ranks - 1), axis=1)
    return jnp.where((segments >= 0) & (segments < num_ranks), spread, 0)


def length_shaping(
    advantages: Array,
    segments: Array,
    eos: ArrayLike,
    num_ranks: int,
    *,
    exact: float = 0.1,
    overflow: float = -0.1,
    early: float = -0.1,
) -> Array:
    """Token advantages that ask for a list of exactly K items.

    The advantage at an EOS is replaced by 0; every overflow token gets ``overflow``; the EOS gets ``exact`` where the
    list has K items and nothing after them, ``early`` where it has fewer. A rollout cut off before its EOS gets
    neither of the last two.

    Args:
      advantages: (N, T), of ``token_advantages``. segments: (N, T) int32, of ``item_segments``.
      eos: (N, T) bool, true at the token that ends the completion. num_ranks: K.
      exact, overflow, early: added advantages.

    Returns:
      (N, T), 0 where masked.

    Example:
      >>> segments, eos = jnp.array([[0, 1, 1], [0, 0, -1]]), jnp.array([[0, 0, 1], [0, 1, 0]])
      >>> print(length_shaping(jnp.ones((2, 3)), segments, eos, 2))
      [[ 1.   1.   0.1]
       [ 1.  -0.1  0. ]]
    """
    mask = segments >= 0
    eos = jnp.asarray(eos).astype(bool) & mask
    beyond = segments >= num_ranks
    items = jnp.max(segments, axis=1, keepdims=True, initial=-1) + 1  # K + 1 where there is overflow
    shaped = jnp.where(mask & ~eos, advantages, 0) + jnp.where(beyond, overflow, 0)
    shaped = shaped + jnp.where(eos & (items == num_ranks), exact, 0)
    return (shaped + jnp.where(eos & (items < num_ranks), early, 0)).astype(advantages.dtype)


def rank_token_weights(
    segments: Array, mask: ArrayLike, num_ranks: int, valid: ArrayLike | None = None, dtype: DTypeLike = jnp.float32
) -> Array:
    """Token weights with which 'token_mean' is the paper's mean over rollouts and places: tokens / (rows·K) / |item|.

    Counts are of the whole array, so compute it over the minibatch, before it is split. Places without tokens add 0.

    Args:
      segments: (N, T) int32, of ``item_segments``. mask: (N, T) bool, the mask of the loss. num_ranks: K.
      valid: (N,) bool, rows that count; None means all. dtype: of the result.

    Returns:
      (N, T), 0 for overflow and where masked.

    Example:
      >>> rank_token_weights(jnp.array([[0, 0, 1, 2]]), jnp.ones((1, 4), bool), 2).tolist()
      [[1.0, 1.0, 2.0, 0.0]]
    """
    rows = jnp.ones(segments.shape[0], bool) if valid is None else jnp.asarray(valid).astype(bool)
    mask = jnp.asarray(mask).astype(bool) & rows[:, None]
    lengths = segment_lengths(segments, mask, dtype)
    scale = jnp.sum(mask) / (jnp.maximum(jnp.sum(rows), 1) * num_ranks)
    per_item = scale.astype(dtype) / jnp.maximum(lengths, 1)
    return jnp.where(segments < num_ranks, to_tokens(per_item, segments, mask), 0)


def rank_loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    rank_advantages: ArrayLike,
    segments: Array,
    mask: ArrayLike,
    *,
    form: str = "release",
    clip_low: float = 0.06,
    clip_high: float = 0.08,
) -> tuple[Array, Array, LossMetrics]:
    """Rank-GRPO's loss with w_{i,k} = exp(mean over the tokens of item k of log p − log p_old)::

        paper     L = −1/(N·K) Σ_i Σ_k min(w·A, clip(w)·A)          every place weighs the same; unconfirmed
        release   w and A at every token of item k, token mean       long items weigh more

    The same as ``policy_loss(surrogate='macro_mean')`` with ``token_advantages`` and, for the paper's form,
    ``rank_token_weights``; a trainer calls that, with length shaping, KL and microbatches.

    Args:
      log_probs: (N, T), nats. old_log_probs: (N, T), nats. rank_advantages: (N, K).
      segments: (N, T) int32, of ``item_segments``. mask: (N, T) bool.
      form: 'paper' or 'release'. clip_low: see ``policy_loss``. clip_high: see ``policy_loss``.

    Returns:
      (sum, denominator, metrics) of ``policy_loss``; the loss is sum / max(denominator, 1).

    Raises:
      ValueError: an unknown form, or shapes that do not fit.

    Example:
      >>> zeros, segments = jnp.zeros((1, 3)), jnp.array([[0, 0, 1]])
      >>> loss = jax.jit(rank_loss, static_argnames="form")
      >>> for form in ("release", "paper"):
      ...   total, denominator, _ = loss(zeros, zeros, jnp.array([[1., -1.]]), segments, zeros == 0, form=form)
      ...   print(round(float(total / denominator), 4))
      -0.3333
      0.0
    """
    if form not in ("paper", "release"):
        raise ValueError(f"form = {form!r} is unknown; allowed: paper, release")
    weights = None
    if form == "paper":
        dtype = jnp.promote_types(jnp.result_type(log_probs), jnp.float32)
        weights = rank_token_weights(segments, mask, jnp.shape(rank_advantages)[1], dtype=dtype)
    return policy_loss(
        log_probs,
        old_log_probs,
        token_advantages(rank_advantages, segments),
        mask,
        surrogate="macro_mean",
        segments=segments,
        token_weights=weights,
        clip_low=clip_low,
        clip_high=clip_high,
    )
