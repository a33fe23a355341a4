"""How an exact Gram matrix is streamed: what is held at once, which route is cheaper, products of symmetric shape.

Shape letters: m rollouts, T tokens, H hidden size, V vocabulary, C columns of one chunk, N = m·T tokens.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from salt_jax.products import precision

BUDGETS = {"cpu": 16 * 2**20}
"""Bytes of working memory where the caller names none: on a CPU what its products can keep near its caches,
elsewhere `OTHER_BUDGET`, small beside a policy's own."""
OTHER_BUDGET = 2**30
PAIRS_BUDGET = 128 * 2**20  # products of token pairs need no cache to be fast

ROUTES = ("auto", "features", "pairs")
BLOCKS = 4  # row blocks of a symmetric product: (1 + 1/4) / 2 of the full product's work
WHOLE_ON = ("gpu",)  # never in blocks: cuBLAS gives a tall block few of the processors (docs/accelerators.md)
LEAST_ROWS = 128  # fewer rows are one block: small products waste more than symmetry saves
LANES = 128  # columns of a chunk come in multiples of this where there are as many


class Streaming(NamedTuple):
    """What is held at once: `chunk_size` vocabulary columns of the features, `block` rollouts of the residuals."""

    route: str  # 'features' or 'pairs'
    chunk_size: int
    block: int


def plan(
    m: int, t: int, h: int, v: int, *, itemsize: int = 4, route: str = "auto", chunk_size: int | None = None,
    memory_budget: int | None = None, platform: str = "cpu", total_rows: int | None = None,
) -> Streaming:
    """Chooses route, chunk and block for m rollouts of T tokens, from floating-point operations and a memory budget.

    Multiply-adds beyond the logits' m·T·V·H, with s the share of a symmetric product that is computed:

        features   m·T·V·H + s·m²·V·H          F_c[i] = Σ_t δ_it ⊗ h_it, K += F_c F_cᵀ
        pairs      s·(m·T)²·(V + H)            K_ij = Σ_tu ⟨δ_it, δ_ju⟩⟨h_it, h_ju⟩

    so pairs are cheaper for short completions. They need (m·T)² numbers at once, features m·C·H.

    Args:
      m, t, h, v: rollouts, tokens, width, vocabulary, on this device.
      itemsize: bytes of the dtype that products take (2 for bfloat16).
      route: 'features', 'pairs', or 'auto': pairs where they are cheaper and fit the budget.
      chunk_size: vocabulary columns held at once; None: as many as fit the budget.
      memory_budget: bytes; None: of `BUDGETS`, or as much as 128 columns need.
      platform: 'cpu', 'gpu', 'tpu'; for the default budget, and whether symmetric products are made in blocks.
      total_rows: rollouts on all devices; None: m. More than m excludes pairs, which would gather every token.

    Raises:
      ValueError: an unknown route, 'pairs' on a split batch, a budget that does not hold 8 columns, naming the
        bytes that are needed.

    >>> plan(512, 4, 96, 2000).route, plan(16, 64, 256, 8192).route
    ('pairs', 'features')
    """
    if route not in ROUTES:
        raise ValueError(f"route must be one of {', '.join(ROUTES)}, got {route!r}")
    n, split = m * t, total_rows is not None and total_rows != m
    if route == "pairs" and split:
        raise ValueError(f"route 'pairs' needs all {total_rows} rollouts on one device, this layout has {m} there")
    # Inner products of tokens, and as many again for a moment when they meet those of the hidden states.
    kept = _symmetric_share(n, platform) * 4 * n * n * 1.5
    if route == "auto":
        share = _symmetric_share(total_rows or m, platform)
        features = n * v * h + share * m * (total_rows or m) * v * h
        cheaper = _symmetric_share(n, platform) * n * n * (v + h) < features
        most = PAIRS_BUDGET if memory_budget is None else memory_budget / 2
        route = "pairs" if cheaper and not split and kept <= most else "features"
    # Residuals of a block are kept no larger than the features: long completions go in smaller blocks.
    block = m if route == "pairs" else _divisor(m, max(1, m * h // max(2 * t, 1)))
    residuals = block * t * (8 + itemsize)
    if route == "pairs":
        per_column, fixed = residuals, kept
    else:
        per_column, fixed = residuals + m * h * (4 + (itemsize if itemsize != 4 or split else 0)), 0.0
    if chunk_size is None:
        budget = memory_budget
        if budget is None:
            budget = max(BUDGETS.get(platform, OTHER_BUDGET), int(per_column) * min(LANES, v)) + int(fixed)
        chunk_size = int((budget - fixed) // per_column)
        if chunk_size < min(8, v):
            need = math.ceil(fixed + per_column * min(8, v))
            raise ValueError(
                f"memory_budget = {memory_budget} bytes is too small for m = {m}, T = {t}, H = {h}: "
                f"8 vocabulary columns need {need}"
            )
        if chunk_size > LANES:
            chunk_size -= chunk_size % LANES
        parts = math.ceil(v / chunk_size)
        even = math.ceil(v / parts)  # chunks of one size: no ragged last one that does most of a chunk again
        even += -even % (LANES if even > LANES else 1)
        chunk_size = min(even, chunk_size, v)
    return Streaming(route, min(chunk_size, v), block)


def _divisor(whole: int, most: int) -> int:
    return next(d for d in range(min(whole, most), 0, -1) if whole % d == 0)


def _symmetric_share(rows: int, platform: str) -> float:
    in_blocks = rows >= LEAST_ROWS and rows % BLOCKS == 0 and platform not in WHOLE_ON
    return (1 + 1 / BLOCKS) / 2 if in_blocks else 1.0


class Lower(NamedTuple):
    """A symmetric (n, n) matrix as blocks of rows, each up to its own diagonal block."""

    rows: tuple[jax.Array, ...]

    @classmethod
    def zeros(cls, n: int, dtype: Any = jnp.float32) -> Lower:
        """The zero matrix.

        >>> [row.shape for row in Lower.zeros(256).rows]
        [(64, 64), (64, 128), (64, 192), (64, 256)]
        """
        parts = BLOCKS if _symmetric_share(n, jax.default_backend()) < 1 else 1
        return cls(tuple(jnp.zeros((n // parts, (i + 1) * (n // parts)), dtype) for i in range(parts)))

    def add_product(self, x: jax.Array, precision: Any) -> Lower:
        """self + x xᵀ, x (n, D)."""
        return Lower(tuple(row + block for row, block in zip(self.rows, self._products(x, precision), strict=True)))

    def product_sums(self, x: jax.Array, t: int, precision: Any) -> Lower:
        """Entries self_ab (x xᵀ)_ab summed over blocks of t x t: n = m·t rows become m."""
        sums = []
        for row, block in zip(self.rows, self._products(x, precision), strict=True):
            tall, wide = row.shape
            sums.append((row * block).reshape(tall // t, t, wide // t, t).sum(axis=(1, 3)))
        return Lower(tuple(sums))

    def _products(self, x: jax.Array, precision: Any) -> list[jax.Array]:
        products, start = [], 0
        for row in self.rows:
            stop = start + row.shape[0]
            left, right = x[start:stop], x[:stop]
            products.append(jnp.dot(left, right.T, precision=precision, preferred_element_type=row.dtype))
            start = stop
        return products

    def full(self) -> jax.Array:
        """(n, n), each pair of mirrored entries equal to the last bit outside the diagonal blocks.

        >>> Lower.zeros(2).add_product(jnp.eye(2), None).full().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        if len(self.rows) == 1:
            return self.rows[0]
        n = self.rows[-1].shape[1]
        size = n // len(self.rows)
        padded = jnp.concatenate([jnp.pad(row, ((0, 0), (0, n - row.shape[1]))) for row in self.rows])
        blocks = jnp.arange(n) // size
        below = blocks[:, None] > blocks[None, :]
        return padded + jnp.where(below, padded, 0.0).T


def product_dtype(hidden: jax.Array, accumulation_dtype: Any) -> tuple[Any, Any]:
    """The dtype that products take, and their precision: bfloat16 states in bfloat16, others in full float32.

    >>> product_dtype(jnp.zeros(1, jnp.bfloat16), jnp.float32)[0] == jnp.bfloat16
    True
    """
    narrow = hidden.dtype == jnp.bfloat16 and accumulation_dtype == jnp.float32
    dtype = jnp.dtype(jnp.bfloat16) if narrow else accumulation_dtype
    return dtype, precision(dtype)


def check_accumulation(dtype: Any) -> Any:
    """The dtype that sums are kept in; ValueError unless float32, or float64 with jax_enable_x64."""
    dtype = jnp.dtype(dtype)
    if dtype == jnp.float32 or (dtype == jnp.float64 and jax.config.read("jax_enable_x64")):
        return dtype
    allowed = "float32, or float64 with jax_enable_x64: sums over a vocabulary lose their differences in less"
    raise ValueError(f"accumulation_dtype must be {allowed}; got {dtype.name}")
