"""What every surrogate takes and returns: the tokens of some rows, the options, and per-token losses."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from salt_jax.objective.kl import LOG_RATIO_LIMIT

Array = jax.Array

REC_MASKS = ("none", "one_side", "two_side", "ring", "gspo_one_side")
REC_WEIGHTS = ("none", "importance", "gspo_importance", "advantage")
REC_REGULARIZERS = ("none", "k2", "forward_kl")
LP_REG_FORMS = ("release", "paper")
SEQUENCE_LOG_RATIO_LIMIT = 10.0  # nats; verl's for GSPO


class TokenInputs(NamedTuple):
    """The tokens of some rows. Masked places hold 0 (False) in every array: ``policy_loss`` has put it there.

    Attributes:
      log_probs: (N, T) of the sampled tokens under the policy, nats; gradients flow through it.
      old_log_probs: (N, T) under the policy that the ratio is taken to, nats; a constant.
      advantages: (N, T); a constant.
      mask: (N, T) bool, true on completion tokens.
      chosen: (N, T) bool, the tokens that a selection over the whole minibatch picked ('clip_cov', 'kl_cov',
        'lp_reg'), or None.
      segments: (N, T) int32, the macro action or list item of every token, in [0, T) where unmasked, or None.
      log_proxy: (N, T) log-probabilities under Lp-Reg's proxy, nats; a constant, or None.
      kept_log_mass: (N, T) log Σ of the policy's probabilities over the tokens that the proxy keeps, nats;
        gradients flow through it; or None.
    """

    log_probs: Array
    old_log_probs: Array
    advantages: Array
    mask: Array
    chosen: Array | None = None
    segments: Array | None = None
    log_proxy: Array | None = None
    kept_log_mass: Array | None = None


class SurrogateOutput(NamedTuple):
    """Per-token results of a surrogate, all (N, T).

    Attributes:
      loss: to be minimised; gradients flow through ``log_probs`` (and ``kept_log_mass``).
      ratio: the ratio that the loss is built on (of the token, the segment or the sequence).
      clipped_low: bool, where the bound below (or a mask) acts; not reduced by ``mask``.
      clipped_high: bool, where the bound above (or a mask) acts.
    """

    loss: Array
    ratio: Array
    clipped_low: Array
    clipped_high: Array


@dataclasses.dataclass(frozen=True)
class SurrogateOptions:
    """Every option of every surrogate; hashable, so it may be a static argument of jit.

    Attributes:
      clip_low: how far the ratio may fall below 1. Defaults of the papers: PPO, GRPO .2; GSPO 3e-4; CISPO 1
        (no bound below); Rank-GRPO .06.
      clip_high: how far it may rise above 1. PPO, GRPO .2; DAPO, CISPO .28; GSPO 4e-4; Rank-GRPO .08.
      dual_clip: c > 1 bounds the loss of a negative advantage by −c·A (arXiv 1912.09729; verl's default is 3,
        the scripts of DAPO, BNPO and Lp-Reg set 10); None is off ('ppo_clip').
      rec_mask: 'none', 'one_side', 'two_side', 'ring', 'gspo_one_side' ('rec').
      rec_weight: 'none', 'importance', 'gspo_importance', 'advantage' = RED-Weight ('rec').
      rec_outer_low: ring: the inner edge of the ring below, as a distance from 1.
      rec_outer_high: ring: the inner edge of the ring above, as a distance from 1.
      rec_temperature: of RED-Weight's exp(A / temperature), in units of the advantage, > 0.
      rec_regularizer: 'none', 'k2' (OPMD), 'forward_kl' (AsymRE).
      rec_coef: weight of the regularizer.
      tau: OPMD's temperature; its loss is divided by 1 + tau ('opmd').
      kl_cov_coef: weight of |log p − log p_old| on the chosen tokens ('kl_cov').
      macro_length: tokens of a fixed macro action ('macro_*'), for calls without segments; None: they are given.
      lp_reg_beta: weight of Lp-Reg's KL term, per nat ('lp_reg').
      lp_reg_cap: upper bound of the ratio, > 0; the paper's U ('lp_reg').
      lp_reg_form: 'release' (one-sample k3 instead of the loss of the chosen) or 'paper' (full KL besides it).

    Raises:
      ValueError: one line, naming the field and its allowed values.

    Example:
      >>> SurrogateOptions(clip_high=0.28).dual_clip is None
      True
      >>> SurrogateOptions(dual_clip=0.5)
      Traceback (most recent call last):
      ValueError: dual_clip = 0.5 is not allowed; allowed: None or finite numbers > 1
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    rec_mask: str = "none"
    rec_weight: str = "none"
    rec_outer_low: float = 0.6
    rec_outer_high: float = 2.0
    rec_temperature: float = 1.0
    rec_regularizer: str = "none"
    rec_coef: float = 0.1
    tau: float = 1.0
    kl_cov_coef: float = 1.0
    macro_length: int | None = None
    lp_reg_beta: float = 1.0
    lp_reg_cap: float = 10.0
    lp_reg_form: str = "release"

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)!r} is not allowed; allowed: numbers >= 0")
        if self.dual_clip is not None and not 1 < self.dual_clip < math.inf:
            raise ValueError(f"dual_clip = {self.dual_clip!r} is not allowed; allowed: None or finite numbers > 1")
        for name in ("rec_outer_low", "rec_outer_high", "rec_coef", "tau", "kl_cov_coef", "lp_reg_beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)!r} is not allowed; allowed: finite numbers >= 0")
        for name in ("rec_temperature", "lp_reg_cap"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)!r} is not allowed; allowed: finite numbers > 0")
        names = {
            "rec_mask": REC_MASKS,
            "rec_weight": REC_WEIGHTS,
            "rec_regularizer": REC_REGULARIZERS,
            "lp_reg_form": LP_REG_FORMS,
        }
        for name, allowed in names.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = {getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}")
        length = self.macro_length
        if length is not None and not (isinstance(length, int) and length >= 1):
            raise ValueError(f"macro_length = {length!r} is not allowed; allowed: None or an integer >= 1")
        # The ring lies outside the band; an overlap would count a token in both and mean neither.
        if self.rec_mask == "ring" and not (
            self.rec_outer_low >= self.clip_low and self.rec_outer_high >= self.clip_high
        ):
            raise ValueError(
                f"rec_outer_low = {self.rec_outer_low!r}, rec_outer_high = {self.rec_outer_high!r} must be at least"
                f" clip_low = {self.clip_low!r} and clip_high = {self.clip_high!r}"
            )


def token_ratio(tokens: TokenInputs) -> Array:
    """r = exp(clip(log p − log p_old, −20, 20)) (the limit is verl's); (N, T), 1 where masked.

    Example:
      >>> token_ratio(TokenInputs(jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]])), None, None)).tolist()
      [[2.0]]
    """
    return jnp.exp(jnp.clip(tokens.log_probs - tokens.old_log_probs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def sequence_log_ratio(tokens: TokenInputs) -> Array:
    """Mean of log p − log p_old over the tokens of each row, (N, 1), at most 10 (verl's limit); 0 for empty rows.

    Example:
      >>> ones = jnp.ones((1, 2))
      >>> sequence_log_ratio(TokenInputs(ones, jnp.array([[0., 1.]]), ones, ones > 0)).tolist()
      [[0.5]]
    """
    lengths_Nx1 = jnp.sum(tokens.mask, axis=1, keepdims=True, dtype=tokens.log_probs.dtype)
    total_Nx1 = jnp.sum(tokens.log_probs - tokens.old_log_probs, axis=1, keepdims=True)
    return jnp.minimum(total_Nx1 / jnp.maximum(lengths_Nx1, 1), SEQUENCE_LOG_RATIO_LIMIT)


def clipped_surrogate(ratio: Array, tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """−min(r·A, clip(r, 1 − clip_low, 1 + clip_high)·A) of every token.

    Args:
      ratio: (N, T), of the token, the segment or the sequence.
      tokens: the advantages are used.
      options: clip_low and clip_high are used.

    Returns:
      ``SurrogateOutput``; a ratio on a bound counts as not clipped: the gradient flows.

    Example:
      >>> tokens = TokenInputs(None, None, jnp.array([[1.0, -1.0, -1.0]]), None)
      >>> print(clipped_surrogate(jnp.array([[1.5, 0.5, 4.0]]), tokens, SurrogateOptions()).loss)
      [[-1.2  0.8  4. ]]
    """
    above = (tokens.advantages > 0) & (ratio > 1 + options.clip_high)
    below = (tokens.advantages < 0) & (ratio < 1 - options.clip_low)
    # The same as −min(rA, clip(r)A), written so that the gradient on a tie is not left to `minimum`.
    bounded = jnp.where(above, 1 + options.clip_high, jnp.where(below, 1 - options.clip_low, ratio))
    return SurrogateOutput(-tokens.advantages * bounded, ratio, below, above)


def require(surrogate: str, **arrays: Array | None) -> None:
    """Raises a one-line ValueError naming what a surrogate needs and did not get.

    Example:
      >>> require("clip_cov", chosen=None)
      Traceback (most recent call last):
      ValueError: surrogate = 'clip_cov' needs chosen (N, T), got None
    """
    for name, array in arrays.items():
        if array is None:
            raise ValueError(f"surrogate = {surrogate!r} needs {name} (N, T), got None")
