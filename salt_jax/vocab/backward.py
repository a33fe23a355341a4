"""From a gradient in the logits, made one chunk of the vocabulary at a time, to those of hidden states and lm_head.

Shape letters: N tokens, H hidden size, V vocabulary, C columns of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.distributed.layout import Layout
from salt_jax.products import matmul
from salt_jax.vocab.chunks import Chunk, fold_chunks, scaled_logits


def pull_back(
    logit_gradient: Callable[[jax.Array, Chunk], jax.Array],
    hidden: jax.Array,
    lm_head: jax.Array,
    temperature: jax.Array,
    chunk_size: int,
    layout: Layout | None,
) -> tuple[jax.Array, jax.Array]:
    """Gradients (N, H) and (H, V) of what has the gradient `logit_gradient` in z = (hidden @ lm_head) / temperature.

    With a layout: to be called inside shard_map, on this device's tokens and its part of lm_head; the second result
    is summed over the tokens of all.

    Args:
      logit_gradient: (logits (N, C), chunk) -> (N, C), zero in stale columns.
      hidden: (N, H). lm_head: (H, V), in the dtype of hidden. temperature: scalar.
      chunk_size: vocabulary columns held at once.
      layout: how tokens and lm_head lie on a mesh, or None.

    >>> h, W = jnp.ones((1, 2)), jnp.ones((2, 3))
    >>> by_hidden, by_head = pull_back(lambda z, chunk: jnp.ones_like(z), h, W, jnp.asarray(2.0), 4, None)
    >>> by_hidden.tolist(), by_head.shape
    ([[1.5, 1.5]], (2, 3))
    """
    if layout is not None:
        lm_head = layout.gather_width(lm_head)
    sums = jnp.promote_types(hidden.dtype, jnp.float32)

    def step(carry: tuple[jax.Array, jax.Array], chunk: Chunk) -> tuple[jax.Array, jax.Array]:
        g_hidden_NxH, g_head_HxV = carry
        weights_HxC = chunk.weights(lm_head)
        g_NxC = logit_gradient(scaled_logits(hidden, weights_HxC, temperature), chunk)
        g_NxC = (g_NxC / temperature.astype(sums)).astype(hidden.dtype)
        g_hidden_NxH += matmul(g_NxC, weights_HxC.T, sums)
        g_weights_HxC = matmul(hidden.T, g_NxC, sums)
        if chunk.size == lm_head.shape[1]:
            return g_hidden_NxH, g_weights_HxC
        g_weights_HxC += chunk.weights(g_head_HxV)  # a stale column adds its zero to what is there
        return g_hidden_NxH, lax.dynamic_update_slice_in_dim(g_head_HxV, g_weights_HxC, chunk.start, axis=1)

    start = (jnp.zeros(hidden.shape, sums), jnp.zeros(lm_head.shape, sums))
    g_hidden_NxH, g_head_HxV = fold_chunks(step, start, lm_head.shape[1], chunk_size)
    if layout is not None:
        g_hidden_NxH, g_head_HxV = layout.sum_vocab(g_hidden_NxH), layout.reduce_head(g_head_HxV)
    return g_hidden_NxH.astype(hidden.dtype), g_head_HxV
