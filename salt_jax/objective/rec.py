"""REC, REP and RED: REINFORCE with masks, weights and regularisers on the ratio (arXiv 2509.24203).

The loss of a token is −A·w·M·log p (+ regulariser), w and M without gradient; tokens that M drops stay in the
denominator. With r the token's ratio to the old policy and s the sequence's, [lo, hi] = [1 − clip_low, 1 + clip_high]:

===============  ==============================================================================================
mask             M
===============  ==============================================================================================
none             1
one_side         A ≥ 0 and r ≤ hi, or A ≤ 0 and r ≥ lo                  (the tokens that PPO does not clip)
two_side         lo ≤ r ≤ hi
ring             two_side, or A ≥ 0 and r ≤ 1 − outer_low, or A ≤ 0 and r ≥ 1 + outer_high
gspo_one_side    one_side of s
===============  ==============================================================================================

===============  ==============================  ===============  ================================
weight           w                               regulariser      added to every unmasked token
===============  ==============================  ===============  ================================
none             1                               none             0
importance       r                               k2               +c·(log p − log p_old)² (OPMD)
gspo_importance  s                               forward_kl       −c·log p (AsymRE)
advantage        exp(A / temperature)            (c absorbs the ½ of k2)
===============  ==============================  ===============  ================================

Recipes of the release: REINFORCE = (none, none) · REC-OneSide-NoIS = (one_side, none) · REC-OneSide-IS = (one_side,
importance), whose gradient is PPO's · REC-TwoSide-IS · REC-Ring-NoIS (outer .6 and 2.0) · REC-GSPO (3e-4, 4e-4, with
``seq_mean_token_mean``) · OPMD = (none, none, k2, c = .1) · AsymRE = (none, none, forward_kl, c = .1) · RED-Weight =
weight 'advantage'. RED-Drop is a filter of rollouts, not a loss. Their advantage is reward − group mean.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from salt_jax.objective.kl import LOG_RATIO_LIMIT
from salt_jax.objective.surrogate_options import (
    REC_MASKS,
    REC_WEIGHTS,
    SurrogateOptions,
    SurrogateOutput,
    TokenInputs,
    sequence_log_ratio,
    token_ratio,
)

Array = jax.Array


def rec_mask(
    kind: str,
    ratio: Array,
    sequence_ratio: Array,
    advantages: Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    outer_low: float = 0.6,
    outer_high: float = 2.0,
) -> Array:
    """M of the module's table: which tokens carry a gradient.

    Args:
      kind: 'none', 'one_side', 'two_side', 'ring', 'gspo_one_side'.
      ratio: r, (N, T). sequence_ratio: s, (N, T), the same along a row. advantages: (N, T).
      clip_low: the band's distance below 1. clip_high: above 1.
      outer_low: the ring's distance below 1. outer_high: above 1.

    Returns:
      (N, T) bool; a ratio on an edge is kept.

    Raises:
      ValueError: an unknown kind.

    Example:
      >>> ratio, plus = jnp.array([[1.5, 1.0, 0.6, 0.3]]), jnp.ones((1, 4))
      >>> rec_mask("one_side", ratio, ratio, plus).astype(int).tolist()
      [[0, 1, 1, 1]]
      >>> rec_mask("ring", ratio, ratio, plus).astype(int).tolist()
      [[0, 1, 0, 1]]
    """
    if kind not in REC_MASKS:
        raise ValueError(f"rec_mask = {kind!r} is unknown; allowed: {', '.join(REC_MASKS)}")
    if kind == "none":
        return jnp.ones(ratio.shape, bool)
    if kind == "gspo_one_side":
        ratio = sequence_ratio
    not_above, not_below = ratio <= 1 + clip_high, ratio >= 1 - clip_low
    if kind == "two_side":
        return not_above & not_below
    if kind == "ring":
        outer = ((advantages >= 0) & (ratio <= 1 - outer_low)) | ((advantages <= 0) & (ratio >= 1 + outer_high))
        return (not_above & not_below) | outer
    return ((advantages >= 0) & not_above) | ((advantages <= 0) & not_below)


def rec_weight(
    kind: str, ratio: Array, sequence_ratio: Array, advantages: Array, *, temperature: float = 1.0
) -> Array:
    """w of the module's table: what the gradient of a token is multiplied by.

    Args:
      kind: 'none', 'importance', 'gspo_importance', 'advantage' (RED-Weight).
      ratio: r, (N, T). sequence_ratio: s, (N, T). advantages: (N, T).
      temperature: of RED-Weight, in units of the advantage. A / temperature is limited to 20.

    Returns:
      (N, T) floats > 0.

    Raises:
      ValueError: an unknown kind.

    Example:
      >>> one = jnp.ones((1, 1))
      >>> print(f"{rec_weight('advantage', one, one, one).item():.4f}")
      2.7183
    """
    if kind not in REC_WEIGHTS:
        raise ValueError(f"rec_weight = {kind!r} is unknown; allowed: {', '.join(REC_WEIGHTS)}")
    if kind == "importance":
        return ratio
    if kind == "gspo_importance":
        return sequence_ratio
    if kind == "advantage":
        return jnp.exp(jnp.minimum(advantages / temperature, LOG_RATIO_LIMIT))
    return jnp.ones_like(ratio)


def rec(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """−A·sg(w·M)·log p + regulariser, see the module's tables.

    Args:
      tokens: (N, T) arrays. options: clip_*, rec_*.

    Returns:
      ``SurrogateOutput``; clipped_low and clipped_high are the dropped tokens with a ratio below 1 and the others.

    Example:
      >>> log_p = jnp.log(jnp.array([[0.5]]))
      >>> tokens = TokenInputs(log_p, jnp.log(jnp.array([[0.25]])), jnp.ones((1, 1)), log_p < 0)
      >>> print(rec(tokens, SurrogateOptions()).loss, rec(tokens, SurrogateOptions(rec_mask="one_side")).loss)
      [[0.6931472]] [[0.]]
    """
    ratio = token_ratio(tokens)
    sequence_ratio = jnp.broadcast_to(jnp.exp(sequence_log_ratio(tokens)), ratio.shape)
    kept = rec_mask(
        options.rec_mask,
        ratio,
        sequence_ratio,
        tokens.advantages,
        clip_low=options.clip_low,
        clip_high=options.clip_high,
        outer_low=options.rec_outer_low,
        outer_high=options.rec_outer_high,
    )
    weight = rec_weight(
        options.rec_weight, ratio, sequence_ratio, tokens.advantages, temperature=options.rec_temperature
    )
    loss = -tokens.advantages * jax.lax.stop_gradient(jnp.where(kept, weight, 0)) * tokens.log_probs
    if options.rec_regularizer == "k2":
        loss = loss + options.rec_coef * (tokens.log_probs - tokens.old_log_probs) ** 2
    elif options.rec_regularizer == "forward_kl":
        loss = loss - options.rec_coef * tokens.log_probs
    used = sequence_ratio if "gspo" in options.rec_mask + options.rec_weight else ratio
    return SurrogateOutput(loss, used, ~kept & (used < 1), ~kept & (used >= 1))
