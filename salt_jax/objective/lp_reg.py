"""Lp-Reg: low-probability tokens that are no noise are not pushed down (arXiv 2510.03222).

Where a rare token has a negative advantage and still is among the tokens that min-p keeps, its place is taken by (the
release), or its loss gains (the paper), a divergence to the proxy: the policy restricted to what is kept, renormalised,
constant. Which tokens those are is decided once a minibatch, from the policy before the update.

The losses of the tokens are ``surrogates.lp_reg``; the streamed proxy, with no (N, T, V) array, is
``salt_jax.vocab.kept``.
"""

from __future__ import annotations

import fractions

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.surrogate_options import LP_REG_FORMS
from salt_jax.vocab.kept import DROPPED, KeptRule

Array = jax.Array



def proxy(probs: ArrayLike, kappa: float = 0.02, *, form: str = "min_p") -> Array:
    """The distribution restricted to the tokens that a threshold keeps, renormalised: a constant.

        kept = {v : p_v >= κ · max p}  ('min_p')   or   {v : p_v >= κ}  ('fixed')        proxy = p · 1[kept] / Σ kept p

    arXiv 2510.03222. The dense form, for a look at a small vocabulary. Nothing kept ('fixed'): all 0.

    Args:
      probs: (..., V) probabilities.
      kappa: κ, or τ of 'fixed'; in (0, 1). The scripts of the release and the paper use 0.02 for both.
      form: 'min_p' or 'fixed'.

    Returns:
      (..., V) probabilities, without gradient.

    Raises:
      ValueError: a form that is not known, kappa outside (0, 1).

    Example:
      >>> proxy(jnp.array([0.5, 0.3, 0.2, 0.0]), 0.5).round(4).tolist()
      [0.625, 0.375, 0.0, 0.0]
    """
    rule = KeptRule(form, kappa)
    probs = jnp.asarray(probs)
    probs = probs.astype(jnp.promote_types(probs.dtype, jnp.float32))
    edge = rule.value * jnp.max(probs, axis=-1, keepdims=True) if rule.form == "min_p" else rule.value
    kept = jnp.where(probs >= edge, probs, 0)
    mass = jnp.sum(kept, axis=-1, keepdims=True)
    return jax.lax.stop_gradient(kept / jnp.where(mass > 0, mass, 1))


def lp_reg_tokens(
    log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    log_proxy: ArrayLike,
    *,
    fraction: float = 0.01,
    form: str = "release",
) -> Array:
    """Which tokens of a minibatch are regularised, once a minibatch, from the policy before the update::

        release   n = tokens with A < 0, k = max(1, ⌊fraction · n⌋): the k lowest log-probs among those n tokens,
                  if k > 1, and of these the ones with log p < log proxy
        paper     n = all tokens, δ = the ⌊fraction · n⌋-th lowest log-prob (from 0): tokens below δ with A < 0 and
                  proxy > 0                                                                       arXiv 2510.03222

    A token that the proxy drops has log proxy = −1e4, so that it is in neither. Below: where nothing is chosen.

    ==========================================  =======================================================
    no token with A < 0 (no signal, G = 1)      none
    everything masked                           none
    k = 1 ('release')                           none: the release is then off
    equal log-probs at the edge                 'release': the earlier token first; 'paper': none of them
    missing rewards                             their advantage is 0: no token of theirs
    ==========================================  =======================================================

    ⌊fraction · n⌋ is exact: the fraction is read as the nearest one with a denominator up to 10,000.

    Args:
      log_probs: (N, T) log-probabilities of the sampled tokens under the policy before the update, nats.
      advantages: (N,) or (N, T).
      mask: (N, T) bool, true on completion tokens.
      log_proxy: (N, T) nats, of the tokens under the proxy; −1e4 where dropped (``vocab_kept.log_proxy``).
      fraction: ρ in [0, 1]; 0.005 (Qwen2.5-32B) or 0.01 (Qwen3-14B) in the paper; the release's configuration file
        says 0, its scripts the paper's values.
      form: 'release' or 'paper'.

    Returns:
      (N, T) bool.

    Raises:
      ValueError: a form that is not known, fraction outside [0, 1], or shapes that do not fit.

    Example:
      >>> log_probs = jnp.log(jnp.array([[0.5, 0.02, 0.01, 0.9]]))
      >>> lp_reg_tokens(log_probs, jnp.array([-1.0]), log_probs < 0, log_probs + 0.1, fraction=0.5).tolist()
      [[False, True, True, False]]
    """
    if form not in LP_REG_FORMS:
        raise ValueError(f"form = {form!r} is unknown; allowed: {', '.join(LP_REG_FORMS)}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction = {fraction!r} is not allowed; allowed: numbers in [0, 1]")
    log_probs_NxT, advantages_NxT, mask_NxT, log_proxy_NxT = _checked(log_probs, advantages, mask, log_proxy)
    negative = mask_NxT & (advantages_NxT < 0)
    candidates = negative if form == "release" else mask_NxT
    # Whatever stands at other places must neither be ranked among the candidates nor be compared.
    ranked = jnp.where(candidates, log_probs_NxT, jnp.inf).reshape(-1)
    share = fractions.Fraction(fraction).limit_denominator(10_000)
    n = jnp.sum(candidates, dtype=jnp.int32)
    count = n // share.denominator * share.numerator + n % share.denominator * share.numerator // share.denominator
    if form == "paper":
        edge = jnp.sort(ranked)[jnp.minimum(count, ranked.size - 1)]
        below = jnp.where(count < n, log_probs_NxT < edge, count > 0)
        return negative & below & (log_proxy_NxT > DROPPED)
    count = jnp.where(count > 1, count, 0)  # max(1, count), off at 1
    rank = jnp.argsort(jnp.argsort(ranked, stable=True)).reshape(negative.shape)
    return negative & (rank < count) & (log_probs_NxT < log_proxy_NxT)


def _checked(log_probs: ArrayLike, advantages: ArrayLike, mask: ArrayLike, log_proxy: ArrayLike) -> tuple[Array, ...]:
    """All as arrays (N, T), log-probs in float32 or wider."""
    log_probs_NxT = jnp.asarray(log_probs)
    log_probs_NxT = log_probs_NxT.astype(jnp.promote_types(log_probs_NxT.dtype, jnp.float32))
    shape = log_probs_NxT.shape
    if len(shape) != 2:
        raise ValueError(f"log_probs must have shape (N, T), got {shape}")
    for name, array in (("mask", mask), ("log_proxy", log_proxy)):
        if jnp.shape(array) != shape:
            raise ValueError(f"{name} must have the shape of log_probs {shape}, got {jnp.shape(array)}")
    if jnp.shape(advantages) not in (shape, shape[:1]):
        raise ValueError(f"advantages must have shape {shape[:1]} or {shape}, got {jnp.shape(advantages)}")
    advantages = jnp.asarray(advantages)
    advantages_NxT = jnp.broadcast_to(advantages if advantages.ndim == 2 else advantages[:, None], shape)
    return log_probs_NxT, advantages_NxT, jnp.asarray(mask).astype(bool), jnp.asarray(log_proxy)
