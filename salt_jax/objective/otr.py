"""One-Token Rollout: supervised fine-tuning as policy gradient over one token at every position (arXiv 2509.26313).

At a position whose true token is y, K tokens a ~ π'_κ = softmax(logits / κ) are drawn and rewarded:

    R(a) = 1 if a = y else β           L = −(1/T) Σ_t (1/K) Σ_j R(a_j) log π(a_j)

with log π not tempered, and draws and rewards constants. In expectation over the draws this is

    −(1/T) Σ_t Σ_a π'_κ(a) R(a) log π(a) = −(1/T) Σ_t [β Σ_a π'_κ(a) log π(a) + (1 − β) π'_κ(y) log π(y)]

and at κ = 1 its gradient is −(1 − β) π(y) ∇ log π(y): (1 − β) times that of DFT (SFT weighted by the token's own
probability). The formula and K = 256 are known to us from reviews of the paper, no official code was found;
**β = −0.1 and κ = 1.3 are unconfirmed**: remembered, not read in any source.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.distributed.layout import Layout
from salt_jax.vocab import DEFAULT_CHUNK, Scalar, open_uniforms
from salt_jax.vocab.tempered import tempered_statistics

Array = jax.Array


def otr_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike,
    key: Array,
    *,
    samples: int = 256,
    temperature: float = 1.3,
    beta: float = -0.1,
) -> Array:
    """One-Token Rollout with drawn tokens: the mean over sequences of (1/T) Σ_t −(1/K) Σ_j R(a_j) log π(a_j).

    The dense form, for a look at a small vocabulary; ``streamed_otr`` holds no (T, V) array and draws the same tokens
    from the same key. With no true token among the draws only penalties are left.

    ======================================  ====================================================
    everything masked                       0, zero gradient
    a sequence with an empty mask           outside the mean
    masked places                           may hold anything, NaN included
    ======================================  ====================================================

    Args:
      logits: (..., T, V); the leading axes are sequences.
      targets: (..., T) int, the true tokens.
      mask: (..., T) bool, true where there is one.
      key: PRNG key of the draws.
      samples: K, tokens drawn at each position.
      temperature: κ > 0 of the draws; unconfirmed.
      beta: β < 1, reward of a wrong token; unconfirmed.

    Returns:
      Scalar, to be minimised.

    Raises:
      ValueError: shapes that do not fit, samples < 1, temperature not finite and > 0, beta not finite and < 1.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
      >>> bool(jax.jit(otr_loss)(logits, jnp.array([0]), jnp.array([True]), jax.random.key(0)) > 0)
      True
    """
    logits, targets, mask = _checked(logits, targets, mask, temperature, beta)
    uniforms = draw_uniforms(key, targets.shape, samples)
    running = jnp.cumsum(jax.nn.softmax(jax.lax.stop_gradient(logits) / temperature), axis=-1)
    aims = uniforms.astype(logits.dtype) * running[..., -1:]
    find = lambda edges, aims: jnp.searchsorted(edges, aims, side="right")
    draws = jax.vmap(find)(running.reshape(-1, running.shape[-1]), aims.reshape(-1, samples))
    return otr_loss_of_draws(logits, targets, mask, draws.reshape(aims.shape), beta=beta)


def otr_loss_of_draws(
    logits: ArrayLike, targets: ArrayLike, mask: ArrayLike, draws: ArrayLike, *, beta: float = -0.1
) -> Array:
    """``otr_loss`` of tokens that were drawn before.

    Args:
      logits: (..., T, V). targets: (..., T) int. mask: (..., T) bool.
      draws: (..., T, K) int, K tokens a position.
      beta: β < 1, reward of a wrong token; unconfirmed.

    Returns:
      Scalar, to be minimised.

    Raises:
      ValueError: shapes that do not fit, beta not finite and < 1.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
      >>> loss = otr_loss_of_draws(logits, jnp.array([0]), jnp.array([True]), jnp.array([[0, 0, 1, 2]]))
      >>> print(f"{float(loss):.6f}")
      0.276238
    """
    logits, targets, mask = _checked(logits, targets, mask, 1.0, beta)
    draws = jnp.asarray(draws)
    if draws.shape[:-1] != targets.shape:
        raise ValueError(f"draws must be targets {targets.shape} with an axis of draws, got {draws.shape}")
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), draws, axis=-1)
    rewards = jnp.where(draws == targets[..., None], 1, beta).astype(logits.dtype)
    return _sequence_mean(-jnp.mean(rewards * log_p, axis=-1), mask)


def otr_exact_loss(
    logits: ArrayLike, targets: ArrayLike, mask: ArrayLike, *, temperature: float = 1.3, beta: float = -0.1
) -> Array:
    """The expectation of ``otr_loss`` over its draws: the mean over sequences of (1/T) Σ_t −Σ_a π'_κ(a) R(a) log π(a).

    π'_κ is a constant. The dense form; ``streamed_otr`` without samples is the same over vocabulary chunks.
    Edge cases are those of ``otr_loss``.

    Args:
      logits: (..., T, V). targets: (..., T) int. mask: (..., T) bool.
      temperature: κ > 0; unconfirmed. beta: β < 1; unconfirmed.

    Returns:
      Scalar, to be minimised.

    Raises:
      ValueError: shapes that do not fit, temperature not finite and > 0, beta not finite and < 1.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
      >>> print(f"{float(jax.jit(otr_exact_loss)(logits, jnp.array([0]), jnp.array([True]))):.6f}")
      0.245400
    """
    logits, targets, mask = _checked(logits, targets, mask, temperature, beta)
    tempered = jax.lax.stop_gradient(jax.nn.softmax(logits / temperature))
    hit = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
    rewards = jnp.where(hit, 1, beta).astype(logits.dtype)
    return _sequence_mean(-jnp.sum(tempered * rewards * jax.nn.log_softmax(logits), axis=-1), mask)


def streamed_otr(
    hidden: Array,
    lm_head: Array,
    targets: Array,
    mask: Array,
    *,
    key: Array | None = None,
    samples: int | None = None,
    temperature: float = 1.3,
    beta: float = -0.1,
    chunk_size: int = DEFAULT_CHUNK,
    policy_temperature: Scalar = 1.0,
    layout: Layout | None = None,
) -> tuple[Array, Array]:
    """(loss, mean of −log π(y)) of logits (hidden @ lm_head), streamed over vocabulary chunks.

    Without samples the expectation (``otr_exact_loss``), in one pass over the vocabulary; with K samples
    ``otr_loss``, in two: draws invert the running sum of π'_κ, K numbers a token at any vocabulary size.

    Args:
      hidden: (N, T, H). lm_head: (H, V). targets: (N, T) int. mask: (N, T) bool.
      key: PRNG key of the draws; needed with samples.
      samples: K, or None.
      temperature: κ > 0; unconfirmed. beta: β < 1; unconfirmed.
      chunk_size: vocabulary columns held at once.
      policy_temperature: divides the logits of π itself.
      layout: where rows and lm_head lie on a mesh; None leaves it to jit.

    Returns:
      loss: scalar, to be minimised. nll: scalar, mean of −log π(y) over all tokens, nats, without gradient.

    Raises:
      ValueError: as ``otr_loss`` and ``vocab_tempered.tempered_statistics``; samples without a key.

    Example:
      >>> hidden, lm_head = jnp.ones((1, 1, 1)), jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
      >>> loss, nll = jax.jit(streamed_otr)(hidden, lm_head, jnp.array([[0]]), jnp.array([[True]]))
      >>> print(f"{float(loss):.6f} {float(nll):.6f}")
      0.245400 0.693147
    """
    _check_options(temperature, beta)
    if mask.shape != targets.shape:
        raise ValueError(f"mask must have the shape of targets {targets.shape}, got {mask.shape}")
    uniforms = None
    if samples is not None:
        if key is None:
            raise ValueError(f"samples = {samples!r} needs a key, got None")
        uniforms = draw_uniforms(key, targets.shape, samples)
    mask = mask.astype(bool)
    found = tempered_statistics(
        hidden, lm_head, jnp.where(mask, targets, 0), tempering=temperature, uniforms=uniforms,
        temperature=policy_temperature, chunk_size=chunk_size, layout=layout,
    )
    loss = -beta * found.mean - (1 - beta) * found.weight * found.log_probs
    nll = -jnp.sum(jnp.where(mask, found.log_probs, 0)) / jnp.maximum(jnp.sum(mask), 1)
    return _sequence_mean(loss, mask), jax.lax.stop_gradient(nll)


def draw_uniforms(key: Array, shape: tuple[int, ...], samples: int) -> Array:
    """The (..., K) uniform numbers from which ``otr_loss`` and ``streamed_otr`` draw K tokens a position.

    Raises:
      ValueError: samples < 1.

    Example:
      >>> draw_uniforms(jax.random.key(0), (2, 3), 4).shape
      (2, 3, 4)
    """
    if samples < 1:
        raise ValueError(f"samples = {samples!r} is not allowed; allowed: integers >= 1")
    return open_uniforms(key, (*shape, samples))


def _sequence_mean(loss: Array, mask: Array) -> Array:
    """Mean over sequences of the mean over their tokens: (..., T) -> scalar."""
    lengths = jnp.sum(mask, axis=-1)
    means = jnp.sum(jnp.where(mask, loss, 0), axis=-1) / jnp.maximum(lengths, 1)
    return jnp.sum(means) / jnp.maximum(jnp.sum(lengths > 0), 1)


def _checked(
    logits: ArrayLike, targets: ArrayLike, mask: ArrayLike, temperature: float, beta: float
) -> tuple[Array, Array, Array]:
    _check_options(temperature, beta)
    logits, targets, mask = jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(mask).astype(bool)
    if logits.ndim < 2 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"logits {logits.shape} must be (..., T, V) with targets (..., T), got {targets.shape}")
    if mask.shape != targets.shape:
        raise ValueError(f"mask must have the shape of targets {targets.shape}, got {mask.shape}")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # Garbage is replaced before any arithmetic: a `where` after it would let NaN into the gradient.
    return jnp.where(mask[..., None], logits, 0), jnp.where(mask, targets, 0), mask


def _check_options(temperature: float, beta: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature = {temperature!r} is not allowed; allowed: finite numbers > 0")
    if not -float("inf") < beta < 1:
        raise ValueError(f"beta = {beta!r} is not allowed; allowed: finite numbers < 1")
