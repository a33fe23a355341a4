"""What one training example did to a loss: in-run data Shapley of an SGD step, and TRAK over several models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.geometry.numerics import safe_ratio
from salt_jax.products import matmul
from salt_jax.selection.arrays import checked_features, wide

Array = jax.Array


def in_run_shapley(alignments: Array, learning_rate: float | Array, *, curvatures: Array | None = None) -> Array:
    """Shapley value of each example of a batch in one SGD step's change of a validation loss    (arXiv 2406.11011)

        first order   φ_i = −η ⟨g_val, g_i⟩                     negative: the example lowers the validation loss
        second order  φ_i = −η ⟨g_val, g_i⟩ + (η²/2) g_iᵀ H_val Σ_j g_j

    The second order is the exact Shapley value where the loss is quadratic along the step. For a step θ − η Σ_j g_j:
    divide η by the batch size where the step averages. Adam's steps are not covered.

    Args:
      alignments: (n,) ⟨g_val, g_i⟩.
      learning_rate: η.
      curvatures: (n,) g_iᵀ H_val Σ_j g_j; None: first order. ``shapley_of_step`` computes both.

    Returns: (n,), in units of the loss.

    Raises:
      ValueError: shapes that do not fit.

    >>> in_run_shapley(jnp.array([3.0, 0.5]), 0.5, curvatures=jnp.array([4.0, 0.0])).tolist()
    [-1.0, -0.25]
    """
    alignments = wide(alignments)
    eta = jnp.asarray(learning_rate, alignments.dtype)
    if alignments.ndim != 1 or (curvatures is not None and jnp.shape(curvatures) != alignments.shape):
        raise ValueError(f"alignments {alignments.shape} and curvatures must both be (n,)")
    first = -eta * alignments
    return first if curvatures is None else first + eta**2 / 2 * wide(curvatures).astype(first.dtype)


def shapley_of_step(
    validation_loss: Callable[[Any], Array],
    params: Any,
    gradients: Any,
    learning_rate: float | Array,
    *,
    order: int = 2,
    valid: Array | None = None,
) -> Array:
    """``in_run_shapley`` with the validation gradient and the Hessian product taken here: one backward pass, and for
    order 2 one forward over it.

    Args:
      validation_loss: params -> scalar.
      params: pytree of floating-point arrays.
      gradients: pytree like params with a leading axis n: the examples' gradients at ``params``.
      learning_rate: η.
      order: 1 or 2.
      valid: (n,) bool; padding rows take no part and have value 0.

    Returns: (n,).

    Raises:
      ValueError: another order, trees that do not fit.

    >>> loss = lambda w: 0.5 * jnp.sum(w**2)
    >>> shapley_of_step(loss, jnp.array([2.0]), jnp.array([[1.0], [0.0]]), 0.5).tolist()       # 0.5·1.5² − 0.5·2²
    [-0.875, 0.0]
    """
    if order not in (1, 2):
        raise ValueError(f"order = {order!r} is not allowed; allowed: 1, 2")
    shapes = [(jnp.shape(p), jnp.shape(g)) for p, g in _pairs(params, gradients)]
    counts = {g[:1] for _, g in shapes}
    if len(counts) != 1 or counts == {()} or any(g[1:] != p for p, g in shapes):
        raise ValueError("gradients must be a tree like params, with one more leading axis n that all leaves share")
    (n,) = counts.pop()
    flat = jnp.concatenate([wide(g).reshape(n, -1) for g in jax.tree.leaves(gradients)], axis=1)
    flat, _ = checked_features(flat, valid)
    parts = [jnp.size(p) for p in jax.tree.leaves(params)]

    def flatten(tree: Any) -> Array:
        return jnp.concatenate([wide(x).reshape(-1) for x in jax.tree.leaves(tree)])

    def unflatten(vector: Array) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        ends = [sum(parts[: i + 1]) for i in range(len(parts))]
        return jax.tree.unflatten(
            treedef,
            [vector[end - part : end].reshape(jnp.shape(p)).astype(jnp.result_type(p))
             for p, part, end in zip(leaves, parts, ends, strict=True)],
        )  # fmt: skip

    gradient = jax.grad(validation_loss)
    if order == 1:
        return in_run_shapley(matmul(flat, flatten(gradient(params))), learning_rate)
    towards, curved = jax.jvp(gradient, (params,), (unflatten(jnp.sum(flat, axis=0)),))
    return in_run_shapley(
        matmul(flat, flatten(towards)), learning_rate, curvatures=matmul(flat, flatten(curved))
    )


def _pairs(first: Any, second: Any) -> list[tuple[Any, Any]]:
    if not jax.tree.structure(first) == jax.tree.structure(second):  # type: ignore[operator]
        raise ValueError("gradients must be a tree like params, with one more leading axis n that all leaves share")
    return list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def trak_scores(
    train_features: Array,
    test_features: Array,
    one_minus_p: Array,
    *,
    damping: float | Array = 0.0,
    valid: Array | None = None,
) -> Array:
    """TRAK: influence of n training on t test examples over c models                            (arXiv 2303.14186)

        τ = [mean_c φ_test (ΦᵀΦ + λI)⁻¹ Φᵀ] ∘ [mean_c (1 − p_i)],   φ = P ∇ log(p / (1 − p)), projected

    (The release also divides the inverse by its mean absolute value: a constant per model, left out here.)

    Args:
      train_features: (c, n, d) or (n, d), Φ.
      test_features: (c, t, d) or (t, d).
      one_minus_p: (c, n) or (n,), 1 − p of the training examples' own correct label.
      damping: λ >= 0. With 0 and ΦᵀΦ singular (n < d, or a coordinate that is never used) the result is inf or NaN.
      valid: (n,) bool; padding rows have no part and score 0.

    Returns: (t, n).

    Raises:
      ValueError: shapes that do not fit.

    >>> trak_scores(jnp.eye(2), jnp.array([[2.0, 3.0]]), jnp.array([0.5, 1.0])).tolist()
    [[1.0, 3.0]]
    """
    train, test, rest = wide(train_features), wide(test_features), wide(one_minus_p)
    if train.ndim == 2 and test.ndim == 2 and rest.ndim == 1:
        train, test, rest = train[None], test[None], rest[None]
    fits = train.ndim == test.ndim == 3 and rest.shape == train.shape[:2]
    if not fits or (train.shape[0], train.shape[2]) != (test.shape[0], test.shape[2]):
        raise ValueError(
            f"train_features {train.shape}, test_features {test.shape} and one_minus_p {rest.shape} must be (c, n, d),"
            " (c, t, d) and (c, n), or all without c"
        )
    if valid is not None:
        if jnp.shape(valid) != train.shape[1:2]:
            raise ValueError(f"valid must be {train.shape[1:2]}, got {jnp.shape(valid)}")
        there = jnp.asarray(valid).astype(bool)
        train, rest = jnp.where(there[None, :, None], train, 0.0), jnp.where(there[None, :], rest, 0.0)
    eye = jnp.eye(train.shape[2], dtype=train.dtype)
    highest = lax.Precision.HIGHEST

    def scores(train: Array, test: Array) -> Array:
        second = matmul(train.T, train) + jnp.asarray(damping, train.dtype) * eye
        return jnp.dot(test, jnp.linalg.solve(second, train.T), precision=highest)

    models = jnp.asarray(float(train.shape[0]), train.dtype)
    summed = jnp.sum(jax.vmap(scores)(train, test), axis=0)
    return safe_ratio(summed, models) * jnp.mean(rest, axis=0)[None, :]
