"""A decoder-only transformer that Llama, Qwen2/2.5, Qwen3 and SmolLM2 checkpoints fit without change.

Layer parameters are stacked on a leading axis, and layers are scanned (or unrolled, which is faster on CPU).

Rollouts of one prompt share it, so the model works on two streams: prompts (B, P) and completions (B, G, T),
whose tokens attend to their group's prompt and to their own past. A prompt is then processed once per group: in
the sampler, in the training forward and in its backward. The kernels of ``attention.WHOLE_ROWS`` cannot do that in
the training forward: each rollout is one row there, its completion right behind its prompt.

Token ids are moved to the left before they are embedded (``left_aligned``), so that attention needs lengths only.

Shape letters as in ``layers.py``, and V for the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from salt_jax.policy.attention import ATTENTION, MASKED, WHOLE_ROWS, attend, axes_that_divide, prompt_segment
from salt_jax.policy.layers import (
    Block,
    TransformerConfig,
    merge_heads,
    rematerialised,
    rms_norm,
    split_heads,
)
from salt_jax.policy.rope import rope_table
from salt_jax.products import einsum

Array = jax.Array


def left_aligned(tokens: Array, mask: Array) -> tuple[Array, Array]:
    """Left-padded tokens (B, S) with their real ones, where mask (B, S) is true, first; and how many, (B,) int32.

    Example:
      >>> left_aligned(jnp.array([[0, 7, 8]]), jnp.array([[False, True, True]]))[0].tolist()
      [[7, 8, 0]]
    """
    lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
    return _turned(tokens, mask.shape[1] - lengths), lengths


def _turned(rows: Array, by: Array) -> Array:
    """Rows (B, S, ...), each turned to the left by so many places of its S, by (B,)."""
    index = (jnp.arange(rows.shape[1])[None] + by[:, None]) % rows.shape[1]
    return jnp.take_along_axis(rows, jnp.reshape(index, index.shape + (1,) * (rows.ndim - 2)), axis=1)


def states_at(hidden: Array, positions: Array) -> Array:
    """States (B, T, D) at positions (B, T) of rows of states (B, S, D); -1, of a row without tokens, is taken for 0."""
    return jnp.take_along_axis(hidden, jnp.maximum(positions, 0)[:, :, None], axis=1)


class Decoder(nnx.Module):
    """The policy network. See the module's docstring for its two streams.

    Args:
      config: shapes and options.
      rngs: NNX random streams; ``params`` is used.
      mesh: what batches are split over and the kernels of ``config.attention`` run on; None for one device.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> config = TransformerConfig(vocab_size=11, d_model=8, num_layers=2, num_heads=2, num_kv_heads=1,
      ...                            head_dim=4, mlp_dim=16)
      >>> Decoder(config, rngs=nnx.Rngs(0))(jnp.zeros((3, 5), jnp.int32)).shape
      (3, 5, 11)
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, mesh: Mesh | None = None) -> None:
        self.config, self.mesh = config, mesh
        scale = config.d_model**-0.5
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, config.d_model)) * scale)
        keys = jax.random.split(rngs.params(), config.num_layers)
        self.layers = nnx.vmap(lambda key: Block(config, rngs=nnx.Rngs(params=key)))(keys)
        self.final_norm = nnx.Param(jnp.ones(config.d_model))
        if not config.tied_embeddings:
            self.head = nnx.Param(
                jax.random.normal(rngs.params(), (config.d_model, config.vocab_size)) * scale
            )

    @property
    def lm_head(self) -> Array:
        """(D, V) output projection; the transposed embedding where they are tied."""
        return self.embedding[...].T if self.config.tied_embeddings else self.head[...]

    def embed(self, tokens: Array) -> Array:
        """tokens (...) -> (M, D) in the compute dtype, M tokens in all."""
        x = jnp.take(self.embedding[...], jnp.reshape(tokens, (-1,)), axis=0)
        return self._by_rows(x.astype(jnp.dtype(self.config.compute_dtype)), tokens.shape[0])

    def _by_rows(self, x: Array, rows: int) -> Array:
        """x (M, D) of so many rows of tokens, its rows split over the mesh's batch axes and D not at all.

        Without it XLA takes the split of D from the parameters, and every device holds the whole batch.
        """
        if self.mesh is None or self.mesh.size == 1:
            return x
        spec = PartitionSpec(axes_that_divide(rows, self.mesh))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def _norm(self, x_MxD: Array) -> Array:
        return rms_norm(x_MxD, self.final_norm[...], self.config.rms_norm_eps)

    def _over_layers(self, layer: Callable[[Block, Any, Any], tuple[Any, Any]], carry: Any, extra: Any) -> Any:
        """Runs ``layer(block, carry, extra_l) -> (carry, out_l)`` over the stack, scanned or unrolled.

        Per-layer trees have a leading axis when scanned and are lists when unrolled: an unrolled loop then
        never slices a stacked array at run time.
        """
        cfg = self.config
        graphdef, stacked = nnx.split(self.layers)

        def body(carry: Any, xs: Any) -> tuple[Any, Any]:
            params, extra_l = xs
            return layer(nnx.merge(graphdef, params), carry, extra_l)

        body = rematerialised(body, cfg.remat, prevent_cse=not cfg.scan_layers)
        if cfg.scan_layers:
            return jax.lax.scan(body, carry, (stacked, extra))
        outs = []
        for i in range(cfg.num_layers):
            carry, out = body(carry, (self._layer(stacked, i), None if extra is None else extra[i]))
            outs.append(out)
        return carry, outs

    @staticmethod
    def _layer(stacked: Any, i: int) -> Any:
        return jax.tree.map(lambda x: x[i], stacked)

    def blocks(self) -> list[Block] | None:
        """The layers one by one, to hand to ``decode``; None where they are scanned.

        Taken once before the loop over tokens: XLA would copy them out of the stack at every token.
        """
        if self.config.scan_layers:
            return None
        graphdef, stacked = nnx.split(self.layers)
        return [nnx.merge(graphdef, self._layer(stacked, i)) for i in range(self.config.num_layers)]

    def _layer_over(self, block: Block, x: Array, table: Any, lead: tuple[int, ...], lengths: Array,
                    prompt_kv: Any = None) -> tuple[Array, tuple[Array, Array]]:
        """One block over tokens x (M, D), M = B * ... = lead -> x, and this layer's keys and values.

        Rows (B, S) attend to their own past, completions (B, G, T) to their group's prompt too; lengths (B,) are of
        the rows, or of the prompts.
        """
        q, k, v = block.qkv(x, table)
        heads = self.config.num_kv_heads
        q = split_heads(q, lead, heads, query=True)
        k, v = (split_heads(y, lead, heads, query=False) for y in (k, v))
        out = merge_heads(ATTENTION[self.config.attention](q, k, v, lengths, prompt_kv, mesh=self.mesh))
        return self._by_rows(block.finish(x, out), lead[0]), (k, v)

    def _table(self, positions: Array) -> tuple[Array, Array]:
        """Rotary table (M, C/2) of M positions of any shape."""
        cfg = self.config
        return rope_table(jnp.reshape(positions, (-1,)), cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)

    def prefill(self, rows: Array, lengths: Array) -> tuple[Array, Any]:
        """Left-aligned rows (B, S) and their lengths (B,), such as prompts, through all layers.

        Returns:
          Hidden states after the final norm (B, S, D), and each layer's keys and values (B, K, S, C).
        """
        table = self._table(jnp.broadcast_to(jnp.arange(rows.shape[1])[None], rows.shape))
        x, kv = self._over_layers(
            lambda block, x, _: self._layer_over(block, x, table, rows.shape, lengths), self.embed(rows), None
        )
        return jnp.reshape(self._norm(x), (*rows.shape, -1)), kv

    def __call__(self, tokens: Array, mask: Array | None = None) -> Array:
        """Plain logits (B, S, V), float32, of left-padded sequences (B, S). For tests and small inputs.

        ``mask`` (B, S) is true on real tokens; all are real when it is None.
        """
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        rows, lengths = left_aligned(tokens, mask)
        hidden = _turned(self.prefill(rows, lengths)[0], lengths)  # behind their padding again
        return einsum("bsd,dv->bsv", hidden, self.lm_head.astype(hidden.dtype), jnp.float32)

    def completion_hidden(self, prompts: Array, prompt_mask: Array, completions: Array) -> Array:
        """Hidden states that predict each completion token; the prompt is processed once per group.

        With a kernel of ``WHOLE_ROWS`` it is processed once per rollout.

        Args:
          prompts: (B, P) int32, left-padded.
          prompt_mask: (B, P) bool.
          completions: (B, G, T) int32, right-padded; what follows a completion's end changes nothing before it.

        Returns:
          (B, G, T, D) in the compute dtype, after the final norm: position t predicts completion token t.
        """
        if self.config.attention in WHOLE_ROWS:
            return self._whole_rows(prompts, prompt_mask, completions)
        batch, group, length = completions.shape
        prompts, lengths = left_aligned(prompts, prompt_mask)
        inputs = completions[:, :, :-1]  # the last token predicts nothing
        shape = (batch, group, length - 1)
        table_p = self._table(jnp.broadcast_to(jnp.arange(prompts.shape[1])[None], prompts.shape))
        table_c = self._table(jnp.broadcast_to(lengths[:, None, None] + jnp.arange(length - 1)[None, None], shape))

        def layer(block: Block, carry: Any, _: Any) -> tuple[Any, None]:
            x_p, x_c = carry
            x_p_next, prompt_kv = self._layer_over(block, x_p, table_p, prompts.shape, lengths)
            if length > 1:
                x_c, _ = self._layer_over(block, x_c, table_c, shape, lengths, prompt_kv)
            return (x_p_next, x_c), None

        (x_p, x_c), _ = self._over_layers(layer, (self.embed(prompts), self.embed(inputs)), None)
        d = self.config.d_model
        last = states_at(jnp.reshape(x_p, (batch, -1, d)), lengths[:, None] - 1)
        hidden = jnp.concatenate(
            [jnp.broadcast_to(last[:, None], (batch, group, 1, d)), jnp.reshape(x_c, (*shape, d))], axis=2
        )
        return self._norm(hidden)

    def _whole_rows(self, prompts: Array, prompt_mask: Array, completions: Array) -> Array:
        """``completion_hidden`` from B·G rows, each a prompt and right behind it its completion but for one token."""
        batch, group, length = completions.shape
        lead = (batch, group, prompts.shape[1])
        prompts, mask = (jnp.broadcast_to(x[:, None], lead) for x in (prompts, prompt_mask))
        inputs = completions[:, :, :-1]
        rows = jnp.concatenate([prompts, inputs], axis=2)
        mask = jnp.concatenate([mask, jnp.ones(inputs.shape, bool)], axis=2)
        rows, lengths = left_aligned(*(jnp.reshape(x, (batch * group, -1)) for x in (rows, mask)))
        hidden, _ = self.prefill(rows, lengths)
        first = lengths - length  # the position of the prompt's last token
        hidden = states_at(hidden, first[:, None] + jnp.arange(length)[None])
        return jnp.reshape(hidden, (batch, group, length, -1))

    def in_compute_dtype(self) -> Decoder:
        """The model with its matrices in the compute dtype: a decoding loop then does not read them at twice the width.

        Norms and biases stay float32. Values are the same: every product casts its matrix to the compute dtype anyway.
        """
        graphdef, params = nnx.split(self)
        dtype = jnp.dtype(self.config.compute_dtype)
        stacked = {"layers": 1}

        def cast(path: Any, x: Array) -> Array:
            matrix = x.ndim - stacked.get(getattr(path[0], "key", ""), 0) == 2
            return x.astype(dtype) if matrix else x

        return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(cast, params))

    def empty_cache(self, batch: int, group: int, length: int, dtype: Any = None) -> Any:
        """Keys (B, K, G, C, T) and values (B, K, G, T, C) of every layer, zero; stacked where layers are scanned.

        Keys are kept transposed, so that both products of decoding are row-major: cheaper on CPU. ``dtype`` is the
        compute dtype unless it is given.
        """
        cfg = self.config
        lead, c, dtype = (batch, cfg.num_kv_heads, group), cfg.head_dim, jnp.dtype(dtype or cfg.compute_dtype)
        shapes = ((*lead, c, length), (*lead, length, c))
        if cfg.scan_layers:
            return tuple(jnp.zeros((cfg.num_layers, *shape), dtype) for shape in shapes)
        return [tuple(jnp.zeros(shape, dtype) for shape in shapes) for _ in range(cfg.num_layers)]

    def decode(self, tokens: Array, step: Array, prompt_lengths: Array, prompt_kv: Any, cache: Any,
               blocks: list[Block] | None = None) -> tuple[Array, Any]:
        """One generation step: completion tokens number ``step`` (N,) -> hidden states (N, D) and the cache.

        Args:
          tokens: (N,) int32 tokens at completion position ``step``, N = B*G.
          step: scalar int32, 0-based position within the completion.
          prompt_lengths: (B,) int32, tokens of each prompt.
          prompt_kv: what ``prefill`` returned.
          cache: what ``empty_cache`` or the previous call returned.
          blocks: what ``blocks`` returned; saves time in a loop.
        """
        cfg, batch = self.config, prompt_lengths.shape[0]
        group = tokens.shape[0] // batch
        table = self._table(jnp.repeat(prompt_lengths, group, total_repeat_length=tokens.shape[0]) + step)

        def run(block: Block, x: Array, prompt_kv: Any, write: Callable[[int, Array, Any], Array]) -> Array:
            q, k, v = block.qkv(x, table)
            stored = prompt_kv[0].dtype  # of the cache, which may be narrower than the compute dtype
            q = split_heads(q, (batch, group), cfg.num_kv_heads, query=True).astype(stored)  # (B, K, G, R, C)
            k, v = (split_heads(y, (batch, group), cfg.num_kv_heads, query=False).astype(stored) for y in (k, v))
            keys, values = write(0, k[..., None], (0, step)), write(1, v[:, :, :, None], (step, 0))
            own = einsum("bkgrc,bkgcu->bkgru", q, keys, jnp.float32)
            seen = (jnp.arange(keys.shape[4]) <= step)[None, None, None, None]
            prompt = prompt_segment("bkgrc,bkpc->bkgrp", "bkgrp,bkpc->bkgrc", q, prompt_kv, prompt_lengths)
            out = attend([prompt, (jnp.where(seen, own, MASKED), values, "bkgru,bkguc->bkgrc")], stored)
            return self._by_rows(block.finish(x, merge_heads(out).astype(x.dtype)), batch)

        def scanned(block: Block, carry: Any, extra: Any) -> tuple[Any, None]:
            x, caches = carry
            layer_kv, index = extra
            caches = list(caches)

            def write(i: int, y: Array, at: Any) -> Array:
                caches[i] = jax.lax.dynamic_update_slice(caches[i], y[None], (index, 0, 0, 0, *at))
                return jax.lax.dynamic_index_in_dim(caches[i], index, keepdims=False)

            x = run(block, x, layer_kv, write)
            return (x, tuple(caches)), None

        def unrolled(block: Block, x: Array, layer_kv: Any, layer_cache: Any) -> tuple[Array, Any]:
            layer_cache = list(layer_cache)

            def write(i: int, y: Array, at: Any) -> Array:
                layer_cache[i] = jax.lax.dynamic_update_slice(layer_cache[i], y, (0, 0, 0, *at))
                return layer_cache[i]

            x = run(block, x, layer_kv, write)
            return x, tuple(layer_cache)

        x = self.embed(tokens)
        if cfg.scan_layers:  # the cache is a carry, not a scanned output, so that it is updated in place
            extra = (prompt_kv, jnp.arange(cfg.num_layers))
            (x, cache), _ = self._over_layers(scanned, (x, cache), extra)
            return self._norm(x), cache
        caches: list[Any] = []
        for block, layer_kv, layer_cache in zip(blocks or self.blocks() or [], prompt_kv, cache, strict=True):
            x, layer_cache = unrolled(block, x, layer_kv, layer_cache)
            caches.append(layer_cache)
        return self._norm(x), caches
