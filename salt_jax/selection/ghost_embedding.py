"""Gram matrices of per-example gradients of an embedding table, alone and tied to the output head; see ``ghost``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.selection.arrays import checked_layer
from salt_jax.selection.ghost import linear_gram

Array = jax.Array


def embedding_gram(ids: Array, output_gradients: Array, *, token_weights: Array | None = None) -> Array:
    """K_ij = Σ_{t,s} [x_it = x_js] ⟨δ_it, δ_js⟩ of an embedding table.

    One example's row sums against all tokens at a time: memory N · T · T. Pad tokens need a weight (or δ) of zero.

    Args:
      ids: (N, T) int.
      output_gradients: (N, T, p), in the embedding's outputs.
      token_weights: (N, T) or None.

    Returns: (N, N).

    Raises:
      ValueError: shapes that do not fit.

    >>> embedding_gram(jnp.array([[0, 1], [1, 2]]), jnp.ones((2, 2, 1))).tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    """
    _, d = checked_layer(output_gradients, output_gradients, token_weights)
    if jnp.shape(ids) != d.shape[:2]:
        raise ValueError(f"ids {jnp.shape(ids)} must be (N, T) of output_gradients {d.shape}")
    ids = jnp.asarray(ids)

    def row(pair: tuple[Array, Array]) -> Array:
        own_ids, own = pair
        same = ids[:, None, :] == own_ids[None, :, None]  # (N, T of own, T)
        inner = jnp.einsum("tp,nsp->nts", own, d, precision=lax.Precision.HIGHEST)
        return jnp.sum(jnp.where(same, inner, 0.0), axis=(1, 2))

    return lax.map(row, (ids, d))


def tied_gram(
    ids: Array, embedding_gradients: Array, hidden: Array, logit_gradients: Array,
    *, token_weights: Array | None = None,
) -> Array:
    """K of one (V, d) tensor that is both embedding and output head: K_emb + K_head + X + Xᵀ.

        X_ij = ⟨G_emb,i, G_head,j⟩ = Σ_{t,s} ⟨ε_it, h_js⟩ δ_js[x_it]

    Adding K_emb and K_head alone leaves X out, as libraries do that treat the two uses as two tensors.

    Args:
      ids: (N, T) int input tokens.
      embedding_gradients: (N, T, d) ε, in the embedding's outputs.
      hidden: (N, S, d) the head's inputs; S may differ from T.
      logit_gradients: (N, S, V) δ. Of this size: for small vocabularies, or a head restricted to kept tokens.
      token_weights: (N, S), into δ; ε is of the loss that is already weighted.

    Returns: (N, N).

    Raises:
      ValueError: shapes that do not fit.

    >>> one = jnp.ones((1, 1, 1))
    >>> tied_gram(jnp.array([[0]]), one, one, one).tolist()                            # (1 + 1)², not 1 + 1
    [[4.0]]
    """
    h, delta = checked_layer(hidden, logit_gradients, token_weights)
    _, emb = checked_layer(embedding_gradients, embedding_gradients, None)
    if emb.shape[0] != h.shape[0] or emb.shape[2] != h.shape[2]:
        raise ValueError(f"embedding_gradients {emb.shape} must be (N, T, d) beside hidden {h.shape}")
    ids = jnp.asarray(ids)

    def row(pair: tuple[Array, Array]) -> Array:
        own_ids, own = pair
        inner = jnp.einsum("td,nsd->nst", own, h, precision=lax.Precision.HIGHEST)
        return jnp.sum(inner * jnp.take(delta, own_ids, axis=2, mode="clip"), axis=(1, 2))

    both = embedding_gram(ids, emb) + linear_gram(h, delta)
    cross = lax.map(row, (ids, emb))
    return both + cross + cross.T
