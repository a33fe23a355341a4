"""Macro actions: segments of consecutive tokens that share one ratio (after MA-RLHF, arXiv 2410.02743).

MA-RLHF's released PPO keeps the ratios of the tokens and gives every token the advantage of its segment; that is
``ppo_clip`` with token advantages. Without a critic and with one reward at the end every segment has the rollout's
advantage, so only the granularity of the ratio, a discount per segment, or dense rewards make a difference. The
ratios of segments are derived here, they are not in the paper: ρ_τ = exp(Σ_{t∈τ} d_t) ('macro_sum') or exp(mean
d_t) ('macro_mean': one token a segment is PPO, one segment a row is GSPO; over list items it is Rank-GRPO's),
with d = log p − log p_old.

Segments are (N, T) int32 ids in [0, T), 0 at the first unmasked token of a row and never falling; masked tokens
have −1.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from salt_jax.objective.kl import LOG_RATIO_LIMIT
from salt_jax.objective.surrogate_options import (
    SurrogateOptions,
    SurrogateOutput,
    TokenInputs,
    clipped_surrogate,
    require,
)

Array = jax.Array
MACRO_REWARDS = ("sum", "mean", "unit", "position")


def fixed_segments(mask: ArrayLike, n: int) -> Array:
    """Segments of n tokens, the last of a row shorter; MA-RLHF's n-gram termination (its release: n = 1).

    Args:
      mask: (N, T) bool, true on completion tokens.
      n: tokens of a segment, ≥ 1.

    Returns:
      (N, T) int32, −1 where masked.

    Raises:
      ValueError: n < 1.

    Example:
      >>> fixed_segments(jnp.array([[True, True, True, True, False]]), 3).tolist()
      [[0, 0, 0, 1, -1]]
    """
    if not n >= 1:
        raise ValueError(f"macro_length = {n!r} is not allowed; allowed: an integer >= 1")
    mask = jnp.asarray(mask).astype(bool)
    return jnp.where(mask, _position(mask) // n, -1)


def random_segments(key: Array, mask: ArrayLike, lengths: Sequence[int] = (1, 2, 3, 5, 10)) -> Array:
    """Segments whose lengths are drawn, each anew and uniformly, from ``lengths`` (MA-RLHF's random termination).

    Args:
      key: PRNG key. mask: (N, T) bool. lengths: tokens, each ≥ 1.

    Returns:
      (N, T) int32, −1 where masked.

    Raises:
      ValueError: no lengths, or one below 1.

    Example:
      >>> random_segments(jax.random.key(0), jnp.ones((1, 5), bool), lengths=(2,)).tolist()
      [[0, 0, 1, 1, 2]]
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths = {tuple(lengths)!r} is not allowed; allowed: one or more integers >= 1")
    mask = jnp.asarray(mask).astype(bool)
    drawn = jax.random.choice(key, jnp.asarray(lengths, jnp.int32), mask.shape)
    ends = jnp.cumsum(drawn, axis=1)  # in tokens of the row; T segments are always enough
    ids = jax.vmap(lambda e, p: jnp.searchsorted(e, p, side="right"))(ends, _position(mask))
    return jnp.where(mask, ids.astype(jnp.int32), -1)


def perplexity_segments(log_probs: ArrayLike, mask: ArrayLike) -> Array:
    """A new segment starts where a token is more surprising than the token before it (−log p rises).

    Args:
      log_probs: (N, T), nats, of the policy that sampled: a constant. mask: (N, T) bool.

    Returns:
      (N, T) int32, −1 where masked.

    Example:
      >>> perplexity_segments(jnp.array([[-3., -2., -2., -4., -1.]]), jnp.ones((1, 5), bool)).tolist()
      [[0, 0, 0, 1, 1]]
    """
    mask = jnp.asarray(mask).astype(bool)
    log_probs = jnp.where(mask, jax.lax.stop_gradient(jnp.asarray(log_probs)), 0)
    rises = (log_probs[:, 1:] < log_probs[:, :-1]) & mask[:, 1:] & mask[:, :-1]
    ids = jnp.cumsum(jnp.pad(rises, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)
    return jnp.where(mask, ids, -1)


def _position(mask: Array) -> Array:
    return jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1


def segment_sum(x: Array, segments: Array, mask: Array) -> Array:
    """Σ of x over the unmasked tokens of each segment, (N, T): column k is segment k, 0 for segments without tokens.

    Example:
      >>> segment_sum(jnp.array([[1., 2., 4.]]), jnp.array([[0, 0, 1]]), jnp.ones((1, 3), bool)).tolist()
      [[3.0, 4.0, 0.0]]
    """
    ids = _columns(segments, mask)
    return jax.vmap(lambda row, i: jnp.zeros_like(row).at[i].add(row))(jnp.where(mask, x, 0), ids)


def to_tokens(per_segment: Array, segments: Array, mask: Array) -> Array:
    """The value of each token's segment, (N, T), 0 where masked.

    Example:
      >>> to_tokens(jnp.array([[3., 4.]]), jnp.array([[0, 0, 1, -1]]), jnp.array([[True, True, True, False]])).tolist()
      [[3.0, 3.0, 4.0, 0.0]]
    """
    return jnp.where(mask, jnp.take_along_axis(per_segment, _columns(segments, mask), axis=1), 0)


def _columns(segments: Array, mask: Array) -> Array:
    # An id of −1 would count from the end. Ids of T and more are possible only where tokens hold several newlines
    # each (Rank-GRPO's items); they share the last column, for reading past it would give NaN.
    return jnp.clip(jnp.where(mask, segments, 0), 0, segments.shape[1] - 1)


def segment_lengths(segments: Array, mask: Array, dtype: DTypeLike) -> Array:
    """Tokens of each segment, (N, T), as floats.

    Example:
      >>> segment_lengths(jnp.array([[0, 0, 1]]), jnp.ones((1, 3), bool), jnp.float32).tolist()
      [[2.0, 1.0, 0.0]]
    """
    return segment_sum(jnp.ones(segments.shape, dtype), segments, mask)


def macro_sum(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """The clipped surrogate with ρ_τ = exp(Σ_{t∈τ} d_t) for every token of segment τ (derived here).

    Args:
      tokens: (N, T) arrays; segments, or options.macro_length for fixed ones. options: clip_*, macro_length.

    Returns:
      ``SurrogateOutput``; the loss of a segment stands at each of its tokens, see ``macro_loss``.

    Example:
      >>> tokens = TokenInputs(jnp.array([[.1, .1]]), jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2), bool))
      >>> print(macro_sum(tokens, SurrogateOptions(macro_length=2, clip_high=9)).ratio)
      [[1.2214028 1.2214028]]
    """
    return _macro("macro_sum", tokens, options, mean=False)


def macro_mean(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """The clipped surrogate with ρ_τ = exp(mean_{t∈τ} d_t) for every token of segment τ.

    Over list items it is Rank-GRPO's (arXiv 2510.20150); over fixed segments it is derived here.

    Args:
      tokens: (N, T) arrays; segments, or options.macro_length for fixed ones. options: clip_*, macro_length.

    Returns:
      ``SurrogateOutput``; the loss of a segment stands at each of its tokens, see ``macro_loss``.

    Example:
      >>> tokens = TokenInputs(jnp.array([[.1, .3]]), jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2), bool))
      >>> print(macro_mean(tokens, SurrogateOptions(macro_length=2, clip_high=9)).ratio)
      [[1.2214028 1.2214028]]
    """
    return _macro("macro_mean", tokens, options, mean=True)


def _macro(name: str, tokens: TokenInputs, options: SurrogateOptions, mean: bool) -> SurrogateOutput:
    segments, mask = tokens.segments, tokens.mask
    if segments is None and options.macro_length is not None:
        segments = fixed_segments(mask, options.macro_length)
    require(name, segments=segments)
    assert segments is not None  # `require` has refused None
    total = segment_sum(tokens.log_probs - tokens.old_log_probs, segments, mask)
    if mean:
        total = total / jnp.maximum(segment_lengths(segments, mask, total.dtype), 1)
    ratio = to_tokens(jnp.exp(jnp.clip(total, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)), segments, mask)
    return clipped_surrogate(jnp.where(mask, ratio, 1), tokens, options)


def macro_token_weights(segments: Array, mask: ArrayLike, dtype: DTypeLike = jnp.float32) -> Array:
    """Token weights with which 'token_mean' is the mean over segments: (tokens / segments) / |τ|, constants.

    Both counts are of the whole array, so compute it over the minibatch, before it is split.

    Args:
      segments: (N, T) int32. mask: (N, T) bool, the mask of the loss. dtype: of the result.

    Returns:
      (N, T), 0 where masked; the sum over the unmasked tokens is their number.

    Example:
      >>> macro_token_weights(jnp.array([[0, 0, 1, -1]]), jnp.array([[True, True, True, False]])).tolist()
      [[0.75, 0.75, 1.5, 0.0]]
    """
    mask = jnp.asarray(mask).astype(bool)
    lengths = segment_lengths(segments, mask, dtype)
    scale = jnp.sum(lengths) / jnp.maximum(jnp.sum(lengths > 0), 1)
    return to_tokens(scale / jnp.maximum(lengths, 1), segments, mask)


def macro_loss(loss: Array, segments: Array, mask: ArrayLike, by: str = "token") -> tuple[Array, Array]:
    """Per-token losses aggregated over tokens or over segments; sum and denominator add up over microbatches.

    Args:
      loss: (N, T), for example of ``macro_sum``. segments: (N, T) int32. mask: (N, T) bool.
      by: 'token': Σ L / tokens, so long segments weigh more; 'segment': Σ_τ (mean of L over τ) / segments.

    Returns:
      sum and denominator, scalars.

    Raises:
      ValueError: an unknown ``by``.

    Example:
      >>> segments, mask = jnp.array([[0, 0, 1]]), jnp.ones((1, 3), bool)
      >>> [[float(x) for x in macro_loss(jnp.array([[1., 1., 4.]]), segments, mask, by)] for by in ("token", "segment")]
      [[6.0, 3.0], [5.0, 2.0]]
    """
    if by not in ("token", "segment"):
        raise ValueError(f"by = {by!r} is unknown; allowed: token, segment")
    mask = jnp.asarray(mask).astype(bool)
    loss = jnp.where(mask, loss, 0)
    if by == "token":
        return jnp.sum(loss), jnp.sum(mask, dtype=loss.dtype)
    lengths = segment_lengths(segments, mask, loss.dtype)
    means = segment_sum(loss, segments, mask) / jnp.maximum(lengths, 1)
    return jnp.sum(means), jnp.sum(lengths > 0, dtype=loss.dtype)


def macro_rewards(rewards: Array, segments: Array, mask: ArrayLike, kind: str = "sum") -> Array:
    """Rewards of tokens as rewards of segments: Σ_{t∈τ} σ_t r_t.

    Args:
      rewards: (N, T) per token. segments: (N, T) int32. mask: (N, T) bool.
      kind: σ: 'sum' 1; 'mean' 1/|τ| (the release's "equal"); 'unit' 1 on the last token of τ; 'position' ∝ 1/k for
        the k-th token of τ, normalised to sum 1 (unconfirmed: the release says ∝ 1/k, not over what).

    Returns:
      (N, T): column k is segment k, 0 for segments without tokens. The release forces the last segment to length 1
      under 'mean', so that a reward at the end survives; here a reward at the end is averaged with its segment.

    Raises:
      ValueError: an unknown kind.

    Example:
      >>> segments, mask = jnp.array([[0, 0, 1]]), jnp.ones((1, 3), bool)
      >>> macro_rewards(jnp.array([[1., 3., 5.]]), segments, mask, "unit").tolist()
      [[3.0, 5.0, 0.0]]
    """
    if kind not in MACRO_REWARDS:
        raise ValueError(f"kind = {kind!r} is unknown; allowed: {', '.join(MACRO_REWARDS)}")
    mask = jnp.asarray(mask).astype(bool)
    rewards = jnp.where(mask, rewards, 0)
    lengths = segment_lengths(segments, mask, rewards.dtype)
    if kind == "sum":
        return segment_sum(rewards, segments, mask)
    if kind == "mean":
        return segment_sum(rewards, segments, mask) / jnp.maximum(lengths, 1)
    starts = jnp.cumsum(lengths, axis=1) - lengths  # tokens of the row before each segment
    rank = _position(mask).astype(rewards.dtype) - to_tokens(starts, segments, mask) + 1  # k, from 1
    if kind == "unit":
        last = mask & (rank == to_tokens(lengths, segments, mask))
        return segment_sum(jnp.where(last, rewards, 0), segments, mask)
    weights = jnp.where(mask, 1 / jnp.where(mask, rank, 1), 0)
    total = segment_sum(weights, segments, mask)
    return segment_sum(weights * rewards, segments, mask) / jnp.where(total > 0, total, 1)


def macro_discounted(advantages: ArrayLike, segments: Array, mask: ArrayLike, gamma: float) -> Array:
    """One advantage a rollout, discounted per segment: A_τ = γ^(K−1−k)·A for the k-th of K segments (derived here).

    Args:
      advantages: (N,). segments: (N, T) int32. mask: (N, T) bool. gamma: in [0, 1]; 1 leaves A as it is.

    Returns:
      (N, T) token advantages, 0 where masked.

    Raises:
      ValueError: gamma outside [0, 1].

    Example:
      >>> macro_discounted(jnp.ones(1), jnp.array([[0, 0, 1]]), jnp.ones((1, 3), bool), 0.5).tolist()
      [[0.5, 0.5, 1.0]]
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma = {gamma!r} is not allowed; allowed: numbers in [0, 1]")
    mask = jnp.asarray(mask).astype(bool)
    advantages = jnp.asarray(advantages)
    advantages = advantages.astype(jnp.promote_types(advantages.dtype, jnp.float32))[:, None]
    advantages = jnp.where(jnp.any(mask, axis=1, keepdims=True), advantages, 0)  # a missing reward may be NaN
    left = jnp.max(jnp.where(mask, segments, 0), axis=1, keepdims=True) - segments
    power = jnp.asarray(gamma, advantages.dtype) ** jnp.where(mask, left, 0).astype(advantages.dtype)
    return jnp.where(mask, power * advantages, 0)
