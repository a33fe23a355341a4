"""DGA: mixture weights of training domains that follow the alignment of their gradients with a target's."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from salt_jax.selection.arrays import check_number, wide

Array = jax.Array


class DomainWeights(NamedTuple):
    """weights (k,) after the mirror step, summing to 1 · average (k,) their running mean, to sample by."""

    weights: Array
    average: Array


def domain_step(
    weights: Array,
    alignments: Array,
    learning_rate: float | Array,
    *,
    decay: float | Array = 0.0,
    average: Array | None = None,
) -> DomainWeights:
    """One step of mirror ascent on the simplex, α'_k = α_k e^{η a_k} / Σ_j α_j e^{η a_j}     (DGA, arXiv 2410.02498)

    with a_k = ⟨∇ℓ(a batch of domain k), ∇ℓ(the target set)⟩ at the current parameters, every few steps. The
    optional running mean is average' = decay · average + (1 − decay) · α'. Form and sign are from abstract-level
    sources: unconfirmed.

    A domain of weight 0 keeps it; equal alignments change nothing; no overflow for any finite η a. Weights need not
    sum to 1 on the way in.

    Args:
      weights: (k,) >= 0, not all zero.
      alignments: (k,), in squared units of the gradients.
      learning_rate: η, in their inverse.
      decay: of the running mean, in [0, 1); 0 makes it α' itself.
      average: (k,) so far; None: ``weights``, divided by their sum.

    Returns: ``DomainWeights``.

    Raises:
      ValueError: shapes that do not fit, a decay outside [0, 1).

    >>> domain_step(jnp.array([0.5, 0.5]), jnp.array([jnp.log(3.0), 0.0]), 1.0).weights.round(4).tolist()
    [0.75, 0.25]
    """
    weights, alignments = wide(weights), wide(alignments)
    if weights.ndim != 1 or alignments.shape != weights.shape:
        raise ValueError(f"weights {weights.shape} and alignments {alignments.shape} must both be (k,)")
    check_number("decay", decay, lambda x: 0 <= x < 1, "numbers in [0, 1)")
    there = weights > 0
    logits = jnp.log(jnp.where(there, weights, 1.0)) + jnp.asarray(learning_rate, weights.dtype) * alignments
    new = jax.nn.softmax(jnp.where(there, logits, -jnp.inf))
    before = weights / jnp.sum(weights) if average is None else wide(average)
    if before.shape != weights.shape:
        raise ValueError(f"average must be {weights.shape}, got {before.shape}")
    decay = jnp.asarray(decay, weights.dtype)
    return DomainWeights(new, decay * before + (1.0 - decay) * new)
