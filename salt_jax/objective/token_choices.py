"""What is decided token by token for a whole minibatch at once, as constants, before the loss is taken in parts.

Everything that ranks or averages over the tokens of a minibatch happens here, from the policy before the step: the
loss itself is then a sum over rows, and how a minibatch is split for memory changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from salt_jax.objective import covariance, filters, lp_reg
from salt_jax.objective.gtpo import conflict_counts, conflict_runs, conflict_weights
from salt_jax.objective.signals import Signals

Array = jax.Array


@struct.dataclass
class TokenChoices:
    """Constants of N rollouts of T tokens; None where the configuration has no use for them.

    Attributes:
      weights: (N, T), multiply the surrogate of a token after clipping, before aggregation.
      kept: (N, T) bool, tokens that stay in the loss and its denominator.
      chosen: (N, T) bool, tokens that the surrogate treats in its own way (Clip-Cov, KL-Cov, Lp-Reg).
      log_proxy: (N, T) nats, for Lp-Reg.
      demonstration_weight: (N,), what −log p of a demonstration's token is multiplied with; one number, repeated.
    """

    weights: Array | None = None
    kept: Array | None = None
    chosen: Array | None = None
    log_proxy: Array | None = None
    demonstration_weight: Array | None = None


class Choice(NamedTuple):
    """One way to choose or weigh tokens.

    Attributes:
      function: (Signals, advantages (N,) or (N, T), group size, **options) -> (N, T).
      options: fields of ``ObjectiveConfig`` that it reads.
      needs: optional ``Signals`` it reads.
      any_level: whether it works with one advantage a token.
    """

    function: Callable[..., Array]
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    any_level: bool = True


def spread(advantages: Array, mask: Array) -> Array:
    """(N,) or (N, T) advantages -> (N, T).

    Example:
      >>> spread(jnp.array([2.0]), jnp.ones((1, 2), bool)).tolist()
      [[2.0, 2.0]]
    """
    return jnp.broadcast_to(advantages if advantages.ndim == 2 else advantages[:, None], mask.shape)


def _conflict(
    signals: Signals, advantages: Array, size: int, *, gtpo_weight: float, gtpo_form: str
) -> Array:
    tokens, mask = signals.rollouts.completions, signals.rollouts.loss_mask
    signs = advantages if signals.signs is None else signals.signs  # the paper's: also of rows that entropy dropped
    weights = conflict_weights(tokens, mask, signs, group_size=size, weight=gtpo_weight)
    if gtpo_form == "paper":
        return weights
    # The release divides a row by its conflicts and sums over a group where the paper takes the mean.
    runs = conflict_runs(tokens, mask, signs, group_size=size)
    counts = conflict_counts(*runs, mask, form="release")
    return weights * (size / jnp.maximum(counts, 1))[:, None].astype(weights.dtype)


def _top_entropy(
    signals: Signals, advantages: Array, size: int, *, d3s_tokens_first: float, d3s_tokens_last: float
) -> Array:
    mask = signals.rollouts.loss_mask
    fraction = filters.d3s_schedule(signals.progress, d3s_tokens_first, d3s_tokens_last)
    entropy = signals.known("entropy", "tokens = 'd3s'")
    return filters.d3s_tokens(jnp.abs(spread(advantages, mask)), entropy, mask, fraction)


def _clip_cov(
    signals: Signals, advantages: Array, size: int, *, clip_cov_fraction: float, clip_cov_low: float,
    clip_cov_high: float,
) -> Array:
    mask, who = signals.rollouts.loss_mask, "surrogate = 'clip_cov'"
    values = covariance.token_covariance(signals.known("log_probs", who), spread(advantages, mask), mask)
    return covariance.clip_cov_tokens(
        signals.known("key", who), values, mask, fraction=clip_cov_fraction, low=clip_cov_low, high=clip_cov_high
    )


def _kl_cov(signals: Signals, advantages: Array, size: int, *, kl_cov_fraction: float) -> Array:
    mask = signals.rollouts.loss_mask
    log_probs = signals.known("log_probs", "surrogate = 'kl_cov'")
    values = covariance.token_covariance(log_probs, spread(advantages, mask), mask)
    return covariance.kl_cov_tokens(values, mask, fraction=kl_cov_fraction)


def _lp_reg(
    signals: Signals, advantages: Array, size: int, *, lp_reg_fraction: float, lp_reg_form: str
) -> Array:
    mask, who = signals.rollouts.loss_mask, "surrogate = 'lp_reg'"
    return lp_reg.lp_reg_tokens(
        signals.known("log_probs", who), spread(advantages, mask), mask, signals.known("log_proxy", who),
        fraction=lp_reg_fraction, form=lp_reg_form,
    )


# tokens = …: weights of the surrogate, or which tokens stay
TOKEN_WEIGHTS: dict[str, Choice] = {
    "conflict": Choice(_conflict, ("gtpo_form", "gtpo_weight"), any_level=False),
}
TOKEN_FILTERS: dict[str, Choice] = {
    "d3s": Choice(_top_entropy, ("d3s_tokens_first", "d3s_tokens_last"), needs=("entropy",)),
}
# surrogate = …: the tokens that it treats in its own way
CHOSEN: dict[str, Choice] = {
    "clip_cov": Choice(_clip_cov, ("clip_cov_fraction", "clip_cov_low", "clip_cov_high"), needs=("log_probs", "key")),
    "kl_cov": Choice(_kl_cov, ("kl_cov_fraction",), needs=("log_probs",)),
    "lp_reg": Choice(_lp_reg, ("lp_reg_fraction", "lp_reg_form"), needs=("log_probs", "log_proxy")),
}
TOKENS = ("all", *TOKEN_WEIGHTS, *TOKEN_FILTERS)
