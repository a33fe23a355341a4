"""The pieces of the decoder: its configuration, rematerialisation, RMSNorm, rotary embeddings, a block.

Shape letters: B groups, G rollouts a group, P prompt, T completion tokens, D model width, K key/value heads,
R query heads per key/value head, C head width, M flattened tokens. Matrix products are taken over flattened
tokens: (batch, time, d) products have a markedly slower backward pass on CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from salt_jax.policy.attention import ATTENTION
from salt_jax.policy.rope import RopeScaling
from salt_jax.products import matmul

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and options of the decoder.

    Attributes:
      vocab_size: V.
      d_model: D, width of the residual stream.
      num_layers: number of blocks.
      num_heads: query heads.
      num_kv_heads: key/value heads; divides ``num_heads``.
      head_dim: width of a head; even. ``num_heads * head_dim`` need not equal ``d_model`` (Qwen3).
      mlp_dim: width of the SwiGLU hidden layer.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they are changed to reach past the trained length; None for not at all.
      rms_norm_eps: added to the mean square in RMSNorm.
      qkv_bias: biases on q, k, v (Qwen2).
      qk_norm: RMSNorm over each head of q and k (Qwen3).
      tied_embeddings: the output head is the transposed embedding (SmolLM2, small Qwen2.5).
      compute_dtype: 'float32' or 'bfloat16'; parameters stay float32, reductions are float32.
      scan_layers: True scans over layers (one compilation for any depth); False unrolls them, which is
        faster on CPU for shallow models.
      attention: a key of ``ATTENTION``: 'segments' anywhere, 'xla' to check the next against, 'cudnn' (flash attention
        on NVIDIA GPUs, bfloat16), 'splash' (flash attention on TPUs).
      remat: what the backward pass finds stored of a block, a key of ``REMAT``.

    Raises:
      ValueError: for shapes that cannot be built, naming the field.

    Example:
      >>> TransformerConfig(vocab_size=16, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
      ...                   mlp_dim=16).num_heads
      4
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = True
    compute_dtype: str = "float32"
    scan_layers: bool = True
    attention: str = "segments"
    remat: str = "none"
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        sizes = "vocab_size d_model num_layers num_heads num_kv_heads head_dim mlp_dim"
        for name in sizes.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        if not 0 < self.rope_theta < float("inf"):
            raise ValueError(f"rope_theta must be finite and > 0, got {self.rope_theta}")
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise ValueError(f"rope_scaling must be a RopeScaling or None, got {self.rope_scaling!r}")
        if not 0 <= self.rms_norm_eps < float("inf"):
            raise ValueError(f"rms_norm_eps must be finite and >= 0, got {self.rms_norm_eps}")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"compute_dtype must be 'float32' or 'bfloat16', got {self.compute_dtype!r}")
        if self.attention not in ATTENTION:
            raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {self.attention!r}")
        if self.attention == "cudnn" and self.compute_dtype != "bfloat16":
            raise ValueError(f"attention = 'cudnn' needs compute_dtype = 'bfloat16', got {self.compute_dtype!r}")
        if self.attention == "cudnn" and (self.head_dim % 8 or self.head_dim > 256):
            raise ValueError(f"attention = 'cudnn' needs a head_dim divisible by 8 and <= 256, got {self.head_dim}")
        if self.remat not in REMAT:
            raise ValueError(f"remat must be one of {', '.join(REMAT)}, got {self.remat!r}")


# What is stored of a block for its backward pass; all else is computed again. Memory falls and time rises downwards.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,  # everything is stored
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the products with weights, not attention
    "full": jax.checkpoint_policies.nothing_saveable,  # the block's input only
}


def rematerialised(block: Callable[..., Any], how: str, *, prevent_cse: bool) -> Callable[..., Any]:
    """``block`` with its backward pass as ``REMAT[how]`` says; values and gradients are the same for all.

    Args:
      block: a pure function.
      how: a key of ``REMAT``.
      prevent_cse: False where ``block`` is the body of a scan, which keeps XLA from undoing it anyway.

    Example:
      >>> wave = rematerialised(lambda x: jnp.sin(jnp.sin(x)), "full", prevent_cse=True)
      >>> bool(jax.grad(wave)(0.5) == jax.grad(lambda x: jnp.sin(jnp.sin(x)))(0.5))
      True
    """
    policy = REMAT[how]
    return block if policy is None else jax.checkpoint(block, policy=policy, prevent_cse=prevent_cse)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Root-mean-square normalisation over the last axis, reduced in float32.

    y = x / sqrt(mean(x²) + eps) · scale (Zhang & Sennrich 2019, Eq. 4).

    Example:
      >>> import jax.numpy as jnp
      >>> rms_norm(jnp.array([[4.0, -4.0]]), jnp.ones(2), 0.0).tolist()
      [[1.0, -1.0]]
    """
    x32 = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    scale = jnp.reshape(scale, (1,) * (x.ndim - 1) + scale.shape)
    return (x32 * inverse_rms * scale.astype(jnp.float32)).astype(x.dtype)


def apply_rope(x: Array, table: tuple[Array, Array], scale: float = 1.0) -> Array:
    """Rotates x (M, heads, C) by the angles of its M tokens, half-split layout (Hugging Face's), and scales it.

    In float32, rounded once to the dtype of x.

    Example:
      >>> quarter = jnp.zeros((1, 1)), jnp.ones((1, 1))  # cosine and sine
      >>> apply_rope(jnp.array([[[3.0, 4.0]]]), quarter, 0.5).tolist()
      [[[-2.0, 1.5]]]
    """
    cos, sin = (jnp.expand_dims(t, 1).astype(jnp.float32) for t in table)  # (M, 1, C/2)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return (jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1) * scale).astype(x.dtype)


class Block(nnx.Module):
    """One pre-norm layer: x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x))."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        d, c = config.d_model, config.head_dim
        q_width, kv_width = config.num_heads * c, config.num_kv_heads * c

        def kernel(fan_in: int, fan_out: int, scale: float = 1.0) -> nnx.Param:
            # GPT-2's depth scaling on the two projections that write to the residual stream
            return nnx.Param(jax.random.normal(rngs.params(), (fan_in, fan_out)) * (scale * fan_in**-0.5))

        to_residual = (2 * config.num_layers) ** -0.5
        self.attention_norm = nnx.Param(jnp.ones(d))
        self.q, self.k, self.v = kernel(d, q_width), kernel(d, kv_width), kernel(d, kv_width)
        self.o = kernel(q_width, d, to_residual)
        if config.qkv_bias:
            self.q_bias, self.k_bias, self.v_bias = (nnx.Param(jnp.zeros(w)) for w in (q_width, kv_width, kv_width))
        if config.qk_norm:
            self.q_norm, self.k_norm = nnx.Param(jnp.ones(c)), nnx.Param(jnp.ones(c))
        self.mlp_norm = nnx.Param(jnp.ones(d))
        self.gate, self.up = kernel(d, config.mlp_dim), kernel(d, config.mlp_dim)
        self.down = kernel(config.mlp_dim, d, to_residual)
        self.config = config

    def qkv(self, x_MxD: Array, table: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Rotated q (M, heads, C), k and v (M, K, C); q carries the 1/sqrt(C) of attention."""
        cfg, dtype = self.config, x_MxD.dtype
        h = rms_norm(x_MxD, self.attention_norm[...], cfg.rms_norm_eps)
        q, k, v = (matmul(h, w[...].astype(dtype)) for w in (self.q, self.k, self.v))
        if cfg.qkv_bias:
            q, k, v = (
                y + b[...].astype(dtype)[None] for y, b in ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias))
            )
        q, k, v = (jnp.reshape(y, (y.shape[0], -1, cfg.head_dim)) for y in (q, k, v))
        if cfg.qk_norm:
            q = rms_norm(q, self.q_norm[...], cfg.rms_norm_eps)
            k = rms_norm(k, self.k_norm[...], cfg.rms_norm_eps)
        return apply_rope(q, table, cfg.head_dim**-0.5), apply_rope(k, table), v

    def finish(self, x_MxD: Array, attended_MxQ: Array) -> Array:
        """Adds the attention output and the feed-forward layer to the residual stream."""
        dtype = x_MxD.dtype
        x = x_MxD + matmul(attended_MxQ, self.o[...].astype(dtype))
        h = rms_norm(x, self.mlp_norm[...], self.config.rms_norm_eps)
        h = jax.nn.silu(matmul(h, self.gate[...].astype(dtype))) * matmul(h, self.up[...].astype(dtype))
        return x + matmul(h, self.down[...].astype(dtype))


def split_heads(x: Array, lead: tuple[int, ...], num_kv_heads: int, *, query: bool) -> Array:
    """(M, heads, C) -> queries (B, K, ..., R, C) or keys and values (B, K, ..., C), with M = B * ... = lead."""
    heads, c = x.shape[1:]
    if query:
        return jnp.moveaxis(jnp.reshape(x, (*lead, num_kv_heads, heads // num_kv_heads, c)), -3, 1)
    return jnp.moveaxis(jnp.reshape(x, (*lead, heads, c)), -2, 1)


def merge_heads(x: Array) -> Array:
    """Inverse of ``split_heads`` for queries: (B, K, ..., R, C) -> (M, K*R*C)."""
    x = jnp.moveaxis(x, 1, -3)
    return jnp.reshape(x, (-1, x.shape[-3] * x.shape[-2] * x.shape[-1]))
