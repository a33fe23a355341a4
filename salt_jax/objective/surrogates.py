"""The surrogates: per-token losses from log-probabilities, a ratio and advantages, each looking at its own row only.

With d = log p − log p_old, r = e^d, s_i = exp(mean over the row of d), A the advantage, sg = stop gradient:

============  =======================================================================  =====================
name          loss of a token                                                          source
============  =======================================================================  =====================
ppo_clip      −min(rA, clip(r, 1−lo, 1+hi)A), dual clip for A < 0 on request           arXiv 1707.06347 eq. 7
gspo          the same with s_i for every token of row i                               arXiv 2507.18071
gspo_token    the same with sg(s_i)·exp(log p − sg(log p))                             arXiv 2507.18071
cispo         −sg(clip(r, 1−lo, 1+hi))·A·log p                                         arXiv 2506.13585 (¹)
reinforce     −A·log p                                                                 Williams 1992
on_policy     −A·exp(log p − sg(log p)): value −A, gradient that of reinforce          arXiv 2509.04419 (²)
opmd          −A·log p / (1 + tau)                                                     Trinity-RFT
rec           −A·sg(w·M)·log p + regulariser, see ``rec``                              arXiv 2509.24203
clip_cov      ppo_clip; the chosen tokens carry neither loss nor gradient              arXiv 2505.22617
kl_cov        −A·r, plus kl_cov_coef·|d| on the chosen tokens; no clip                 arXiv 2505.22617
macro_sum     ppo_clip with ρ = exp(Σ over the token's segment of d)                   derived here
macro_mean    ppo_clip with ρ = exp(mean over the token's segment of d)                arXiv 2510.20150 (³)
lp_reg        see ``lp_reg``                                                           arXiv 2510.03222
============  =======================================================================  =====================

¹ lo ≥ 1 is no bound below, which is the paper's use; its formula is from secondary sources. ² The unified estimator's
form for data of the policy itself; GTPO's loss too. ³ Over list items; over fixed segments it is derived here.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from salt_jax.objective.kl import LOG_RATIO_LIMIT
from salt_jax.objective.macro_actions import macro_mean, macro_sum
from salt_jax.objective.rec import rec
from salt_jax.objective.surrogate_options import (
    SEQUENCE_LOG_RATIO_LIMIT,
    SurrogateOptions,
    SurrogateOutput,
    TokenInputs,
    clipped_surrogate,
    require,
    sequence_log_ratio,
    token_ratio,
)

__all__ = [
    "ONE_RATIO",
    "SURROGATES",
    "SurrogateOptions",
    "SurrogateOutput",
    "TokenInputs",
    "check_surrogate",
    "cispo",
    "clip_cov",
    "dual_clipped",
    "gspo",
    "gspo_token",
    "kl_cov",
    "lp_reg",
    "on_policy",
    "opmd",
    "ppo_clip",
    "reinforce",
]

Array = jax.Array
LP_REG_K3_LIMIT = 10.0  # nats; the release's


def ppo_clip(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """−min(r·A, clip(r, 1 − clip_low, 1 + clip_high)·A); with dual_clip = c at most −c·A where A < 0.

    Example:
      >>> one = jnp.ones((1, 1))
      >>> print(ppo_clip(TokenInputs(one, one - 1, one, one > 0), SurrogateOptions()).loss)
      [[-1.2]]
    """
    output = clipped_surrogate(token_ratio(tokens), tokens, options)
    if options.dual_clip is None:
        return output
    dual = dual_clipped(output.ratio, tokens.advantages, options.dual_clip)
    return output._replace(loss=jnp.where(dual, -options.dual_clip * tokens.advantages, output.loss))


def dual_clipped(ratio: Array, advantages: Array, dual_clip: float) -> Array:
    """Where the dual clip acts: A < 0 and r > c; bool, the shape of both.

    Example:
      >>> dual_clipped(jnp.array([4., 4., 3.]), jnp.array([-1., 1., -1.]), 3.0).tolist()
      [True, False, False]
    """
    return (advantages < 0) & (ratio > dual_clip)


def gspo(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """The clipped surrogate with s_i = exp(mean of d over row i), log s_i ≤ 10, for each token of the row.

    The row's loss stands at each of its tokens, so that 'seq_mean_token_mean' gives the paper's loss.

    Example:
      >>> tokens = TokenInputs(jnp.array([[.1, .3]]), jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2), bool))
      >>> print(gspo(tokens, SurrogateOptions(clip_high=9)).loss)
      [[-1.2214028 -1.2214028]]
    """
    ratio = jnp.broadcast_to(jnp.exp(sequence_log_ratio(tokens)), tokens.mask.shape)
    return clipped_surrogate(ratio, tokens, options)


def gspo_token(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """The clipped surrogate with sg(s_i)·exp(log p − sg(log p)): values of ``gspo``, one token's gradient each.

    For advantages that are constant along a row, value and gradient of the aggregated loss are those of ``gspo``.

    Example:
      >>> tokens = TokenInputs(jnp.array([[.1, .3]]), jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2), bool))
      >>> print(gspo_token(tokens, SurrogateOptions(clip_high=9)).loss)
      [[-1.2214028 -1.2214028]]
    """
    own = tokens.log_probs - jax.lax.stop_gradient(tokens.log_probs)  # 0, with the gradient of log p
    log_s = jax.lax.stop_gradient(sequence_log_ratio(tokens))  # at most the limit, at which no gradient flows
    ratio = jnp.exp(jnp.where(log_s < SEQUENCE_LOG_RATIO_LIMIT, own, 0) + log_s)
    return clipped_surrogate(ratio, tokens, options)


def cispo(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """−sg(clip(r, 1 − clip_low, 1 + clip_high))·A·log p: a clipped token keeps a gradient.

    clip_low ≥ 1 is no bound below. (TRL clips at clip_high itself, not at 1 + clip_high.)

    Example:
      >>> half = jnp.log(jnp.array([[0.5]]))
      >>> tokens = TokenInputs(half, half - 1, jnp.ones((1, 1)), half < 0)
      >>> print(cispo(tokens, SurrogateOptions(clip_low=1.0, clip_high=0.28)).loss)
      [[0.88722837]]
    """
    ratio = token_ratio(tokens)
    weight = jax.lax.stop_gradient(jnp.clip(ratio, 1 - options.clip_low, 1 + options.clip_high))
    loss = -weight * tokens.advantages * tokens.log_probs
    return SurrogateOutput(loss, ratio, ratio < 1 - options.clip_low, ratio > 1 + options.clip_high)


def reinforce(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """−A·log p; the ratio is reported, not used.

    Example:
      >>> print(reinforce(TokenInputs(-jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1)), None), None).loss)
      [[1.]]
    """
    return _unclipped(-tokens.advantages * tokens.log_probs, token_ratio(tokens))


def on_policy(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """−A·exp(log p − sg(log p)): value −A, gradient −A·∇log p; the old log-probabilities play no part.

    Example:
      >>> one = jnp.ones((1, 1))
      >>> print(on_policy(TokenInputs(-one, 0 * one, 2 * one, None), None).loss)
      [[-2.]]
    """
    ratio = jnp.exp(tokens.log_probs - jax.lax.stop_gradient(tokens.log_probs))
    return _unclipped(-tokens.advantages * ratio, ratio)


def opmd(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """−A·log p / (1 + tau), Trinity-RFT's native OPMD (its AsymRE: tau = 0); the ratio is reported, not used.

    Example:
      >>> one = jnp.ones((1, 1))
      >>> print(opmd(TokenInputs(-one, 0 * one, one, None), SurrogateOptions(tau=1.0)).loss)
      [[0.5]]
    """
    return _unclipped(-tokens.advantages * tokens.log_probs / (1 + options.tau), token_ratio(tokens))


def clip_cov(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """``ppo_clip`` whose chosen tokens have loss 0 and no gradient; ``covariance.clip_cov_tokens`` chooses them.

    Example:
      >>> one = jnp.ones((1, 2))
      >>> chosen = jnp.array([[True, False]])
      >>> print(clip_cov(TokenInputs(one, one, one, one > 0, chosen=chosen), SurrogateOptions()).loss)
      [[ 0. -1.]]
    """
    require("clip_cov", chosen=tokens.chosen)
    assert tokens.chosen is not None  # `require` has refused None
    output = ppo_clip(tokens, options)
    return output._replace(loss=jnp.where(tokens.chosen, 0, output.loss))


def kl_cov(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """−A·r, plus kl_cov_coef·|log p − log p_old| on the chosen tokens; ``covariance.kl_cov_tokens`` chooses them.

    There is no clip. At log p = log p_old the gradient of |·| is 0.

    Example:
      >>> one = jnp.ones((1, 2))
      >>> chosen = jnp.array([[True, False]])
      >>> print(kl_cov(TokenInputs(0 * one, 0.5 * one, 0 * one, one > 0, chosen=chosen), SurrogateOptions()).loss)
      [[0.5 0. ]]
    """
    require("kl_cov", chosen=tokens.chosen)
    assert tokens.chosen is not None  # `require` has refused None
    ratio = token_ratio(tokens)
    difference = tokens.log_probs - tokens.old_log_probs
    distance = difference * jax.lax.stop_gradient(jnp.sign(difference))  # the derivative of jnp.abs at 0 is 1
    penalty = options.kl_cov_coef * jnp.where(tokens.chosen, distance, 0)
    return _unclipped(-tokens.advantages * ratio + penalty, ratio)


def lp_reg(tokens: TokenInputs, options: SurrogateOptions) -> SurrogateOutput:
    """Lp-Reg's token losses (arXiv 2510.03222); which tokens are chosen is decided over the whole minibatch.

    With U = lp_reg_cap, beta = lp_reg_beta and x = log_proxy − log p::

        form 'release'  chosen:   −A·r + beta·min(e^x − x − 1, 10)        (one-sample k3, in place of the clip)
                        others:   max(−A·r, −A·clip(r, 0, U)): for A < 0 the cap does nothing
        form 'paper'    all:      −A·clip(r, 0, U); chosen also −beta·kept_log_mass, which is KL(proxy ‖ π) for a
                                  proxy that is π itself, renormalised over the kept tokens

    Args:
      tokens: with ``chosen`` and, by form, ``log_proxy`` (release) or ``kept_log_mass`` (paper).
      options: lp_reg_form, lp_reg_beta, lp_reg_cap.

    Returns:
      ``SurrogateOutput``; clipped_high is where the cap acts.

    Raises:
      ValueError: an array that the form needs is missing.

    Example:
      >>> log_p = jnp.log(jnp.array([[0.02]]))
      >>> tokens = TokenInputs(log_p, log_p, -jnp.ones((1, 1)), log_p < 0, log_p < 0, log_proxy=log_p - jnp.log(0.99))
      >>> print(f"{lp_reg(tokens, SurrogateOptions()).loss.item():.6f}")
      1.000051
    """
    ratio, cap = token_ratio(tokens), options.lp_reg_cap
    above = ratio > cap
    require("lp_reg", chosen=tokens.chosen)
    assert tokens.chosen is not None  # `require` has refused None
    if options.lp_reg_form == "paper":
        require("lp_reg", kept_log_mass=tokens.kept_log_mass)
        assert tokens.kept_log_mass is not None  # `require` has refused None
        divergence = jnp.where(tokens.chosen, -tokens.kept_log_mass, 0)
    else:
        require("lp_reg", log_proxy=tokens.log_proxy)
        assert tokens.log_proxy is not None  # `require` has refused None
        above = above & (tokens.advantages > 0) & ~tokens.chosen
        # Other tokens may have a proxy of zero: their −inf or −1e4 must not enter the arithmetic.
        x = jnp.where(tokens.chosen, tokens.log_proxy - tokens.log_probs, 0)
        x = jnp.minimum(x, LOG_RATIO_LIMIT)
        divergence = jnp.minimum(jnp.expm1(x) - x, LP_REG_K3_LIMIT)
    loss = -tokens.advantages * jnp.where(above, cap, ratio) + options.lp_reg_beta * divergence
    return SurrogateOutput(loss, ratio, jnp.zeros_like(above), above)


def _unclipped(loss: Array, ratio: Array) -> SurrogateOutput:
    nowhere = jnp.zeros(ratio.shape, bool)
    return SurrogateOutput(loss, ratio, nowhere, nowhere)


# One ratio for a whole rollout: an advantage a token would be multiplied with a ratio it has no part in.
ONE_RATIO = ("gspo",)

SURROGATES: dict[str, Callable[[TokenInputs, SurrogateOptions], SurrogateOutput]] = {
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "gspo_token": gspo_token,
    "cispo": cispo,
    "reinforce": reinforce,
    "on_policy": on_policy,
    "opmd": opmd,
    "rec": rec,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
    "macro_sum": macro_sum,
    "macro_mean": macro_mean,
    "lp_reg": lp_reg,
}


def check_surrogate(surrogate: str, options: SurrogateOptions) -> None:
    """Raises a one-line ValueError for an unknown surrogate, or a dual clip that it would ignore.

    Example:
      >>> check_surrogate("ppo_clip", SurrogateOptions(dual_clip=3.0))
      >>> check_surrogate("gspo", SurrogateOptions(dual_clip=3.0))
      Traceback (most recent call last):
      ValueError: dual_clip = 3.0 has no effect on surrogate = 'gspo'; it belongs to 'ppo_clip'
    """
    if surrogate not in SURROGATES:
        raise ValueError(f"surrogate = {surrogate!r} is unknown; allowed: {', '.join(SURROGATES)}")
    if options.dual_clip is not None and surrogate != "ppo_clip":
        given = f"dual_clip = {options.dual_clip!r}"
        raise ValueError(f"{given} has no effect on surrogate = {surrogate!r}; it belongs to 'ppo_clip'")
