"""Single-sample estimators of KL(policy ‖ reference) from log-probabilities of sampled tokens.

With d = log p − log q on a token sampled from the policy p (J. Schulman, "Approximating KL divergence", 2020):

====  ==============  ===================  ===========================================================
name  value           gradient factor¹     expected gradient when the token is sampled from p
====  ==============  ===================  ===========================================================
k1    d               1                    0: unbiased as a value, useless inside a loss
k2    d² / 2          d                    ∇ KL(p ‖ q), exact
k3    e^−d + d − 1    1 − e^−d             ∇ KL(q ‖ p), the other direction; equal to first order in d
====  ==============  ===================  ===========================================================

¹ multiplies ∇ log p. All values are in nats. ``k3_plus`` has the value of k3 and the gradient of k2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array

LOG_RATIO_LIMIT = 20.0  # nats; e^20 = 4.9e8 is still a comfortable float32


def k1(log_probs: Array, ref_log_probs: Array) -> Array:
    """k1 = log p − log q, elementwise; for the reward only (see the module's table).

    Args:
      log_probs: log p of the sampled tokens under the policy, nats, any shape.
      ref_log_probs: log q under the reference, same shape.

    Returns:
      Estimates of KL(p ‖ q) in nats, same shape; may be negative.

    Example:
      >>> float(k1(jnp.array(-1.0), jnp.array(-1.5)))
      0.5
    """
    return log_probs - ref_log_probs


def k2(log_probs: Array, ref_log_probs: Array) -> Array:
    """k2 = (log p − log q)² / 2, elementwise; its expected gradient is that of KL(p ‖ q).

    Args:
      log_probs: log p of the sampled tokens under the policy, nats, any shape.
      ref_log_probs: log q under the reference, same shape.

    Returns:
      Estimates of KL(p ‖ q), same shape, ≥ 0.

    Example:
      >>> float(k2(jnp.array(-1.0), jnp.array(-1.5)))
      0.125
    """
    return (log_probs - ref_log_probs) ** 2 / 2


def k3(log_probs: Array, ref_log_probs: Array) -> Array:
    """k3 = e^(log q − log p) − (log q − log p) − 1, elementwise; unbiased for KL(p ‖ q) and ≥ 0.

    log q − log p is limited to +20 nats so that the exponential stays finite; beyond it value and gradient
    are those of a constant. It is not limited from below, and k3 is not cut at 10 as in verl: there a token
    that the reference finds nearly impossible would lose its penalty just where it is wanted.

    Args:
      log_probs: log p of the sampled tokens under the policy, nats, any shape.
      ref_log_probs: log q under the reference, same shape.

    Returns:
      Estimates of KL(p ‖ q) in nats, same shape, ≥ 0.

    Example:
      >>> print(f"{float(k3(jnp.array(-1.0), jnp.array(-1.5))):.6f}")
      0.106531
    """
    minus_d = jnp.minimum(ref_log_probs - log_probs, LOG_RATIO_LIMIT)
    return jnp.expm1(minus_d) - minus_d  # expm1: e^x − 1 − x loses all digits near x = 0


def k3_plus(log_probs: Array, ref_log_probs: Array) -> Array:
    """Value of k3 (unbiased for KL(p ‖ q), ≥ 0) with the gradient of k2 (in expectation ∇ KL(p ‖ q)).

    A straight-through estimator, verl's 'k3+': k2 − sg(k2) + sg(k3).

    Args:
      log_probs: log p of the sampled tokens under the policy, nats, any shape.
      ref_log_probs: log q under the reference, same shape.

    Returns:
      Estimates of KL(p ‖ q) in nats, same shape, ≥ 0.

    Example:
      >>> value, gradient = jax.value_and_grad(k3_plus)(jnp.array(-1.0), jnp.array(-1.5))
      >>> print(f"{float(value):.6f} {float(gradient):.1f}")
      0.106531 0.5
    """
    square = k2(log_probs, ref_log_probs)
    return (square - jax.lax.stop_gradient(square)) + jax.lax.stop_gradient(k3(log_probs, ref_log_probs))


KL_ESTIMATORS: dict[str, Callable[[Array, Array], Array]] = {"k1": k1, "k2": k2, "k3": k3, "k3_plus": k3_plus}
LOSS_KL_ESTIMATORS = ("k2", "k3", "k3_plus")


def check_loss_kl_estimator(kl_estimator: str) -> None:
    """Refuses estimators that do not belong in a loss.

    Example:
      >>> check_loss_kl_estimator("k3")
      >>> check_loss_kl_estimator("k1")
      Traceback (most recent call last):
      ValueError: kl_estimator = 'k1' has zero expected gradient in a loss (use it in the reward); allowed: k2, ...
    """
    allowed = f"allowed: {', '.join(LOSS_KL_ESTIMATORS)}"
    if kl_estimator == "k1":
        raise ValueError(
            f"kl_estimator = 'k1' has zero expected gradient in a loss (use it in the reward); {allowed}"
        )
    if kl_estimator not in LOSS_KL_ESTIMATORS:
        raise ValueError(f"kl_estimator = {kl_estimator!r} is unknown; {allowed}")
