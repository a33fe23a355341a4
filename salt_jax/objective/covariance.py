"""Which tokens drive the entropy down: Clip-Cov's and KL-Cov's selections (arXiv 2505.22617).

The covariance of a token is (A − mean A)·(log p − mean log p), the means over all tokens of the batch. The release
(PRIME-RL/Entropy-Mechanism-of-RL, also in verl) computes it per micro-batch from the current log-probabilities; here
the caller computes it once per minibatch from the old policy's, so that splitting the batch changes nothing. The
release also keeps tokens that PPO clips out of Clip-Cov's draw; with the old policy's no token is clipped yet.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array


def token_covariance(log_probs: ArrayLike, advantages: ArrayLike, mask: ArrayLike) -> Array:
    """(A − mean A)·(log p − mean log p) of every token, means over the unmasked tokens; without gradient.

    Args:
      log_probs: (N, T), nats. advantages: (N,) or (N, T). mask: (N, T) bool.

    Returns:
      (N, T) in float32 or wider, 0 where masked (and everywhere when all tokens are).

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> token_covariance(jnp.array([[-1., -3.], [-2., -2.]]), jnp.array([1., -1.]), jnp.ones((2, 2), bool)).tolist()
      [[1.0, -1.0], [-0.0, -0.0]]
    """
    mask = jnp.asarray(mask).astype(bool)
    advantages = jnp.asarray(advantages)
    if jnp.shape(log_probs) != mask.shape or advantages.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(
            f"log_probs {jnp.shape(log_probs)}, advantages {advantages.shape} and mask {mask.shape} do not fit:"
            " (N, T), (N,) or (N, T), (N, T)"
        )
    dtype = jnp.promote_types(jnp.result_type(log_probs), jnp.float32)
    count = jnp.maximum(jnp.sum(mask), 1).astype(dtype)

    def centered(x: Array) -> Array:
        x = jnp.where(mask, x.astype(dtype), 0)
        return jnp.where(mask, x - jnp.sum(x) / count, 0)

    advantages = advantages if advantages.ndim == 2 else advantages[:, None]
    return jax.lax.stop_gradient(centered(advantages) * centered(jnp.asarray(log_probs)))


def clip_cov_tokens(
    key: Array, covariance: Array, mask: ArrayLike, fraction: float = 2e-4, low: float = 1.0, high: float = 5.0
) -> Array:
    """Clip-Cov: tokens drawn at random among those with low < covariance < high.

    ==============================  ================================================================
    how many                        max(1, int(fraction × unmasked tokens)), or all candidates if fewer
    no candidate, all masked        none
    ==============================  ================================================================

    Args:
      key: PRNG key. covariance: (N, T), of ``token_covariance``. mask: (N, T) bool.
      fraction: of the unmasked tokens, in [0, 1]; a product within rounding of a whole number counts as it.
      low: open lower edge. high: open upper edge; both in units of advantage × nats.

    Returns:
      (N, T) bool, for ``policy_loss(surrogate='clip_cov', chosen=...)``.

    Raises:
      ValueError: a fraction outside [0, 1], or low > high.

    Example:
      >>> covariance = jnp.array([[0.5, 2.0, 9.0]])
      >>> clip_cov_tokens(jax.random.key(0), covariance, covariance > 0).tolist()
      [[False, True, False]]
    """
    if not low <= high:
        raise ValueError(f"low = {low!r} must be at most high = {high!r}")
    mask = jnp.asarray(mask).astype(bool)
    candidates = mask & (covariance > low) & (covariance < high)
    scores = jnp.where(candidates, jax.random.uniform(key, mask.shape, covariance.dtype), -1)
    return _largest(scores, _count(mask, fraction, covariance.dtype)) & candidates


def kl_cov_tokens(covariance: Array, mask: ArrayLike, fraction: float = 2e-4) -> Array:
    """KL-Cov: the tokens with the largest covariance, max(1, int(fraction × unmasked tokens)) of them.

    Ties go to the earlier token; where everything is masked none is chosen.

    Args:
      covariance: (N, T), of ``token_covariance``. mask: (N, T) bool.
      fraction: of the unmasked tokens, in [0, 1]; a product within rounding of a whole number counts as it.

    Returns:
      (N, T) bool, for ``policy_loss(surrogate='kl_cov', chosen=...)``.

    Raises:
      ValueError: a fraction outside [0, 1].

    Example:
      >>> covariance = jnp.array([[0.5, 2.0, 9.0, -1.0]])
      >>> kl_cov_tokens(covariance, covariance > -2, fraction=0.5).tolist()
      [[False, True, True, False]]
    """
    mask = jnp.asarray(mask).astype(bool)
    return _largest(jnp.where(mask, covariance, -jnp.inf), _count(mask, fraction, covariance.dtype)) & mask


def _count(mask: Array, fraction: float, dtype: jnp.dtype) -> Array:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction = {fraction!r} is not allowed; allowed: numbers in [0, 1]")
    # In float32 2e-4 × 5000 may fall short of 1: two roundings are forgiven before the floor.
    product = jnp.sum(mask).astype(dtype) * fraction * (1 + 4 * jnp.finfo(dtype).eps)
    return jnp.maximum(jnp.floor(product).astype(jnp.int32), 1)


def _largest(scores: Array, count: Array) -> Array:
    """True at the `count` (a traced number) largest scores, the earlier first among equals."""
    order = jnp.argsort(-scores.reshape(-1), stable=True)
    ranks = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.size, dtype=jnp.int32))
    return (ranks < count).reshape(scores.shape)
