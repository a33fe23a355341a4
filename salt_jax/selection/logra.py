"""LoGra: per-example gradients of linear layers, projected on both sides without being made    (arXiv 2405.13954)"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax import vocab
from salt_jax.products import matmul
from salt_jax.selection.arrays import checked_layer, wide

Array = jax.Array


def logra_matrices(key: Array, inputs: int, outputs: int, rank_in: int, rank_out: int) -> tuple[Array, Array]:
    """P_i (k_i, d) and P_o (k_o, p) of independent ±1/√k entries, so that products of projections are unbiased.

    (An initialisation of variance 1/(3 fan) instead, as a linear layer's default, scales Grams by layer.)

    Raises:
      ValueError: a size that is not a positive integer.

    >>> [p.shape for p in logra_matrices(jax.random.key(0), 6, 4, 3, 2)]
    [(3, 6), (2, 4)]
    """
    sizes = [("inputs", inputs), ("outputs", outputs), ("rank_in", rank_in), ("rank_out", rank_out)]
    d, p, k_in, k_out = (vocab.check_positive(name, size) for name, size in sizes)
    keys = jax.random.split(key)
    draw = jax.random.rademacher
    return (
        draw(keys[0], (k_in, d), jnp.result_type(float)) / math.sqrt(k_in),
        draw(keys[1], (k_out, p), jnp.result_type(float)) / math.sqrt(k_out),
    )


def logra_project(
    activations: Array, output_gradients: Array, project_in: Array, project_out: Array,
    *, token_weights: Array | None = None,
) -> Array:
    """P_o G_i P_iᵀ = Σ_t (P_o δ_t)(P_i a_t)ᵀ, a Kronecker-structured projection of G_i

    Inner products are kept in expectation, with more variance than a dense projection of as many numbers.

    Args:
      activations, output_gradients, token_weights: as in ``linear_gram``.
      project_in: (k_i, d).  project_out: (k_o, p), as of ``logra_matrices``.

    Returns: (N, k_o, k_i).

    Raises:
      ValueError: shapes that do not fit.

    >>> A, D = jnp.array([[[1.0, 2.0]]]), jnp.array([[[3.0]]])
    >>> logra_project(A, D, jnp.array([[1.0, -1.0]]), jnp.array([[1.0]])).tolist()
    [[[-3.0]]]
    """
    a, d = checked_layer(activations, output_gradients, token_weights)
    for name, matrix, width in (("project_in", project_in, a.shape[2]), ("project_out", project_out, d.shape[2])):
        if jnp.ndim(matrix) != 2 or jnp.shape(matrix)[1] != width:
            raise ValueError(f"{name} must be (k, {width}), got {jnp.shape(matrix)}")
    small_a = matmul(a, wide(project_in).astype(a.dtype).T)
    small_d = matmul(d, wide(project_out).astype(d.dtype).T)
    return jnp.einsum("nto,nti->noi", small_d, small_a, precision=lax.Precision.HIGHEST)
