"""Attention of the training forward and of the prefill: four implementations of one function, chosen by configuration.

Every implementation takes (q, k, v, lengths, prompt_kv, *, mesh) and returns an array like q:

  q: (B, K, T, R, C) of rows or (B, K, G, T, R, C) of completions; rotated, and scaled by 1/sqrt(C) already.
  k, v: (B, K, T, C) or (B, K, G, T, C), of the same tokens.
  lengths: (B,) int32, real tokens of each row, or of each group's prompt; they come first, padding after them.
  prompt_kv: None for rows. For completions the keys and values (B, K, P, C) of each group's prompt.
  mesh: the mesh the step runs on, or None for one device; see ``splash``.

Token t sees the tokens of its own row up to and including itself, a completion also its prompt, none sees padding.
What comes out for a padding token is finite and has no meaning. Decoding has its own path, over its cache.

Those of ``WHOLE_ROWS`` know one causal mask, in which query i sees keys 0 to i. They are given rows alone: a completion
then lies behind its prompt without a gap, and the prompt is computed again for every rollout.

Shape letters: B groups, G rollouts a group, N = B·G rows, P prompt, T query, S key tokens, K key/value heads,
R query heads per key/value head, C head width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from salt_jax.products import einsum, precision

Array = jax.Array
MASKED = -1e30  # finite, so that a row without any key gives a uniform softmax instead of NaN
BATCH_AXES, HEAD_AXIS = ("data", "fsdp"), "tensor"  # of the mesh, as distributed/sharding.py names them
LANES, LARGEST_BLOCK = 128, 512  # tokens: what a block of the splash kernel is a multiple of, and at most


def attend(scores_and_values: list[tuple[Array, Array, str]], dtype: Any) -> Array:
    """One softmax over several key segments: list of (scores (..., keys), values, einsum) -> Σ softmax·values."""
    top = jnp.max(scores_and_values[0][0], axis=-1, keepdims=True)
    for scores, _, _ in scores_and_values[1:]:
        top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    total: Any = 0.0
    out: Any = 0.0
    for scores, values, equation in scores_and_values:
        weights = jnp.exp(scores - top)
        part_sum = jnp.sum(weights, axis=-1, keepdims=True)
        part = einsum(equation, weights.astype(dtype), values, jnp.float32)
        total, out = total + part_sum, out + part
    return (out / total).astype(dtype)


def prompt_segment(keys: str, values: str, q: Array, prompt_kv: Any, lengths: Array) -> tuple[Array, Array, str]:
    """The prompt as a segment for ``attend``; ``keys`` and ``values`` are the einsums of its two products."""
    scores = einsum(keys, q, prompt_kv[0], jnp.float32)
    shape = (lengths.shape[0],) + (1,) * (scores.ndim - 2) + (scores.shape[-1],)
    allowed = jnp.reshape(jnp.arange(scores.shape[-1])[None] < lengths[:, None], shape)
    return jnp.where(allowed, scores, MASKED), prompt_kv[1], values


def segments(q: Array, k: Array, v: Array, lengths: Array, prompt_kv: Any, *, mesh: Mesh | None = None) -> Array:
    """Two key segments under one softmax: a prompt's keys are read where they lie, once a group.

    Holds the scores, (B, K, G, T, R, P + T) float32; runs anywhere, in any dtype. XLA partitions it by itself.
    """
    length = q.shape[-3]
    causal = jnp.tril(jnp.ones((length, length), bool))
    if prompt_kv is None:  # what a real token may see is real
        scores = einsum("bktrc,bkuc->bktru", q, k, jnp.float32)
        return attend([(jnp.where(causal[None, None, :, None, :], scores, MASKED), v, "bktru,bkuc->bktrc")], q.dtype)
    own = einsum("bkgtrc,bkguc->bkgtru", q, k, jnp.float32)
    return attend(
        [
            prompt_segment("bkgtrc,bkpc->bkgtrp", "bkgtrp,bkpc->bkgtrc", q, prompt_kv, lengths),
            (jnp.where(causal[None, None, None, :, None, :], own, MASKED), v, "bkgtru,bkguc->bkgtrc"),
        ],
        q.dtype,
    )


def as_rows(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Every rollout a row: q (N, K·R, T, C), k and v (N, K, T, C)."""
    if k.ndim == 4:  # groups of one row
        q, k, v = (jnp.expand_dims(x, 2) for x in (q, k, v))
    batch, heads, group, length, per_head, c = q.shape
    rows = batch * group
    q = jnp.reshape(jnp.transpose(q, (0, 2, 1, 4, 3, 5)), (rows, heads * per_head, length, c))
    k, v = (jnp.reshape(jnp.moveaxis(x, 2, 1), (rows, heads, length, c)) for x in (k, v))
    return q, k, v


def from_rows(out: Array, like: Array) -> Array:
    """(N, K·R, T, C) -> the shape of ``like``, the q that ``as_rows`` was given."""
    heads, length, per_head, c = like.shape[1], *like.shape[-3:]
    out = jnp.reshape(out, (like.shape[0], -1, heads, per_head, length, c))  # (B, G, K, R, T, C)
    return jnp.reshape(jnp.transpose(out, (0, 2, 1, 4, 3, 5)), like.shape)


def dot_product(q: Array, k: Array, v: Array, lengths: Array, prompt_kv: Any, *, mesh: Mesh | None = None,
                implementation: Any) -> Array:
    """``jax.nn.dot_product_attention``; 'cudnn' is flash attention on NVIDIA GPUs, bfloat16 only.

    Whole rows alone, as this module's docstring says. An odd row gets one more token of padding: cuDNN's gradient, as
    JAX calls it, wants an even length. What comes out behind a row's length is 0. XLA partitions it.

    Raises:
      NotImplementedError: by JAX, while tracing, where cuDNN is missing or too old for the shapes.
    """
    if prompt_kv is not None:
        raise ValueError("jax.nn.dot_product_attention takes whole rows: a completion behind its prompt, without a gap")
    length = q.shape[-3]
    lengths = jnp.maximum(lengths, 1)  # a row of padding alone must not be empty
    rows = (jnp.swapaxes(x, 1, 2) for x in as_rows(q, k, v))  # (N, tokens, heads, C)
    rows = (jnp.pad(x, ((0, 0), (0, length % 2), (0, 0), (0, 0))) for x in rows)
    with jax.default_matmul_precision(precision(q.dtype).name.lower()):  # it has no argument for that
        out = jax.nn.dot_product_attention(
            *rows, scale=1.0, is_causal=True, implementation=implementation,
            query_seq_lengths=lengths, key_value_seq_lengths=lengths,
        )  # fmt: skip
    behind = jnp.arange(length)[None] >= lengths[:, None]
    out = jnp.where(behind[:, :, None, None], 0, out[:, :length])  # whatever the kernel left there
    return from_rows(jnp.swapaxes(out, 1, 2), q)


def splash(q: Array, k: Array, v: Array, lengths: Array, prompt_kv: Any, *, mesh: Mesh | None = None,
           interpret: bool = False) -> Array:
    """JAX's splash attention, a flash kernel for TPUs: blocks that the causal mask hides are not computed.

    Rows are padded to multiples of 128 tokens. The compiler cannot partition a kernel, so on a mesh it runs under
    ``jax.shard_map``: rows split over ``data`` and ``fsdp``, heads over ``tensor``, which divides K. Rows that the
    batch axes do not divide (a microbatch with fewer prompts than devices) are computed on all of those devices.

    Args:
      q, k, v, lengths, prompt_kv, mesh: as in the module's docstring.
      interpret: run the kernel as plain JAX operations, on any backend; for tests.
    """
    # imported here: it takes a while, and only TPUs need it
    from jax.experimental.pallas.ops.tpu import splash_attention

    asked = q
    q, k, v = as_rows(q, k, v)
    if prompt_kv is None:
        real = jnp.arange(q.shape[2])[None] < lengths[:, None]
    else:  # a row's keys are its prompt's, with its padding, and its own
        group, of_prompt = q.shape[0] // lengths.shape[0], jnp.arange(prompt_kv[0].shape[2])[None] < lengths[:, None]
        k, v = (jnp.concatenate([_spread(a, group), b], axis=2) for a, b in zip(prompt_kv, (k, v), strict=True))
        real = jnp.concatenate([_spread(of_prompt, group), jnp.ones(q.shape[::2], bool)], axis=1)
    (queries, block_q), (keys, block_kv) = (_blocks(x.shape[2]) for x in (q, k))
    sizes = splash_attention.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv,
        block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv,
        block_q_dq=block_q, block_kv_dq=block_kv,
    )  # fmt: skip
    causal = splash_attention.CausalMask((queries, keys), offset=k.shape[2] - q.shape[2])

    def on_one_device(q: Array, k: Array, v: Array, real: Array) -> Array:
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([causal] * q.shape[1]),
            block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret,
        )  # fmt: skip
        of_queries = jnp.ones(queries, jnp.int32)

        def row(q: Array, k: Array, v: Array, real: Array) -> Array:
            # a query attends to the keys of its own segment: all queries are in segment 1, padding keys in 0
            return kernel(q, k, v, segment_ids=splash_attention.SegmentIds(of_queries, real.astype(jnp.int32)))

        return jax.vmap(row)(q, k, v, real)

    def pad(x: Array, to: int, axis: int) -> Array:
        return jnp.pad(x, [(0, to - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    arguments = pad(q, queries, 2), pad(k, keys, 2), pad(v, keys, 2), pad(real, keys, 1)
    if mesh is None:
        out = on_one_device(*arguments)
    else:
        rows = axes_that_divide(q.shape[0], mesh)
        split = PartitionSpec(rows, HEAD_AXIS)
        specs = (split, split, split, PartitionSpec(rows))
        out = jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(*arguments)
    return from_rows(out[:, :, : asked.shape[-3]], asked)


def _spread(x: Array, group: int) -> Array:
    """(B, ...) -> (B·G, ...), each entry for all rows of its group."""
    return jnp.reshape(jnp.broadcast_to(x[:, None], (x.shape[0], group, *x.shape[1:])), (-1, *x.shape[1:]))


def _blocks(tokens: int) -> tuple[int, int]:
    """Padded length, the next multiple of 128, and the largest block that divides it."""
    padded = -(-tokens // LANES) * LANES
    return padded, math.gcd(padded, LARGEST_BLOCK)


def axes_that_divide(rows: int, mesh: Mesh) -> tuple[str, ...]:
    """The batch axes of the mesh, less the last ones where together they do not divide the rows."""
    axes: tuple[str, ...] = BATCH_AXES
    while rows % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes


ATTENTION: dict[str, Callable[..., Array]] = {
    "segments": segments,
    "xla": functools.partial(dot_product, implementation="xla"),
    "cudnn": functools.partial(dot_product, implementation="cudnn"),
    "splash": splash,
}
WHOLE_ROWS = {"xla", "cudnn"}
BACKENDS = {"cudnn": "gpu", "splash": "tpu"}  # where a kernel runs; the others run anywhere


def check_backend(attention: str, backend: str) -> None:
    """ValueError if ``attention`` has no kernel for ``backend``, as ``jax.default_backend()`` names it.

    Not asked by the model: compiling ahead of time for another machine must be able to choose any.

    Example:
      >>> check_backend("splash", "cpu")
      Traceback (most recent call last):
      ValueError: attention = 'splash' needs a tpu, this process computes on cpu; allowed: segments, xla
    """
    if BACKENDS.get(attention, backend) != backend:
        allowed = ", ".join(name for name in ATTENTION if BACKENDS.get(name, backend) == backend)
        needs = BACKENDS[attention]
        raise ValueError(
            f"attention = {attention!r} needs a {needs}, this process computes on {backend}; allowed: {allowed}"
        )
