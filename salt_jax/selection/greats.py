"""GREATS: the examples of a batch that lower a validation loss most, picked one by one (NeurIPS 2024)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.geometry.numerics import safe_ratio
from salt_jax.selection.arrays import best, checked_count, checked_gram, wide

Array = jax.Array


class GreatsSelection(NamedTuple):
    """order (k,) int32, −1 from ``picked`` on · picked () int32 · scores (k,) each pick's expected decrease of the
    validation loss given the picks before · first_scores (n,) of all examples before any pick.
    """

    order: Array
    picked: Array
    scores: Array
    first_scores: Array


def greats(
    gram_train: Array,
    validation: Array,
    learning_rate: float | Array,
    k: int,
    *,
    valid: Array | None = None,
    validation_valid: Array | None = None,
) -> GreatsSelection:
    """Greedy picks by the decrease of the validation loss in one SGD step, the Hessian taken as the identity.

        s_i = η · mean_v ⟨g_i, g_v⟩;   pick argmax s;   s ← s − η² K[pick, :];   repeat

    (as released; the second term of the expansion is η² g_iᵀ H g_j.) Scores may turn negative: such picks are expected
    to raise the loss and are picked all the same, as released; look at ``scores`` to leave them out. With gradients of
    zero every score is 0 and the first k are picked; ties go to the lowest index.

    Args:
      gram_train: (n, n) inner products of the training examples' gradients.
      validation: (n, v) inner products of training with validation gradients, or (n,) with their mean.
      learning_rate: η of the step.
      k: examples to pick, static, 1 <= k <= n.
      valid: (n,) bool, training rows.
      validation_valid: (v,) bool, columns of ``validation``; what stands in others does not matter.

    Returns: ``GreatsSelection``.

    Raises:
      ValueError: shapes that do not fit, k outside 1..n.

    >>> gram, towards = jnp.array([[4.0, 3.9, 0.0], [3.9, 4.0, 0.0], [0.0, 0.0, 1.0]]), jnp.array([3.0, 2.9, 1.0])
    >>> greats(gram, towards, 0.1, 2).order.tolist(), greats(gram, towards, 1.0, 2).order.tolist()
    ([0, 1], [0, 2])
    """
    gram, present = checked_gram(gram_train, valid)
    n = gram.shape[0]
    k = checked_count(k, n)
    shape = jnp.shape(validation)
    if len(shape) not in (1, 2) or shape[0] != n:
        raise ValueError(f"validation must be ({n}, v) or ({n},) beside gram {gram.shape}, got {shape}")
    validation = jnp.reshape(wide(validation).astype(gram.dtype), (n, -1))
    columns = jnp.ones(validation.shape[1], bool) if validation_valid is None else jnp.asarray(validation_valid)
    if columns.shape != validation.shape[1:]:
        raise ValueError(f"validation_valid must be {validation.shape[1:]}, got {columns.shape}")
    columns = columns.astype(bool)
    towards = jnp.where(present[:, None] & columns[None, :], validation, 0.0)
    eta = jnp.asarray(learning_rate, gram.dtype)
    first_n = eta * safe_ratio(jnp.sum(towards, axis=1), jnp.sum(columns).astype(gram.dtype))

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        scores_n, free_n = carry
        at = best(scores_n, free_n)
        going = free_n[at]
        row = jnp.where(going, at, -1), jnp.where(going, scores_n[at], 0.0)
        return (scores_n - eta**2 * gram[at], free_n & (jnp.arange(n) != at)), row

    _, (order, scores) = lax.scan(step, (first_n, present), None, length=k)
    return GreatsSelection(order, jnp.sum(order >= 0), scores, first_n)
