"""Gram matrices of per-example gradients from activations and output gradients, layer by layer, none materialised.

For a linear layer and example i with inputs A_i (T, d) and gradients of the **summed** loss in its outputs D_i (T, p)
(multiply by the batch size where the loss is a mean), the gradient of the kernel is G_i = D_iᵀ A_i (p, d), and

    ⟨G_i, G_j⟩ = Σ_{t,s} (A_i A_jᵀ)_ts (D_i D_jᵀ)_ts                                              ("ghost")

D and A come from one backward pass: add a zero perturbation to every layer's output and differentiate the sum of the
losses in it, with the layers' inputs as auxiliary output. Different tensors: their Grams add up. The **same** tensor
used twice (tied embedding and head): gradients must be summed before they are multiplied, ``tied_gram``.

Weights of examples factor out, K(w) = w wᵀ ∘ K (``weighted_gram``): one Gram of ∇ log π serves every advantage. Weights
of tokens, padding and clip masks do not: they belong into D (``token_weights``).

Shape letters: N examples, T tokens, d inputs, p outputs, V vocabulary. Sources: the recipe of Opacus, fastDP and
paxml for norms; the Gram's choice rule is derived here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax import vocab
from salt_jax.products import matmul
from salt_jax.selection.arrays import checked_layer, wide

Array = jax.Array
ROUTES = ("auto", "ghost", "features")


class GhostCosts(NamedTuple):
    """Floating-point operations and numbers held, for one linear layer.

    norm_* and gram_*: operations for all N norms, and for the N x N Gram · memory_*: numbers held for norms ·
    ghost_norms: whether 2T² <= dp, the memory rule for norms · gram_threshold: T below which the ghost Gram takes
    fewer operations for large N, √(dp / (d + p)).
    """

    norm_ghost: float
    norm_features: float
    gram_ghost: float
    gram_features: float
    memory_ghost: float
    memory_features: float
    ghost_norms: bool
    gram_threshold: float


def ghost_costs(examples: int, tokens: int, inputs: int, outputs: int) -> GhostCosts:
    """What the ghost product costs beside materialised gradients, to choose by.

        ghost: 2NT²(d+p+1) norms, 2N²T²(d+p+1) Gram;   features: 2NTdp + 2Ndp norms, 2NTdp + 2N²dp Gram

    At the lengths of reinforcement learning the ghost is for norms; for the Gram it wins up to tens of tokens.

    >>> costs = ghost_costs(64, 32, 4096, 4096)
    >>> costs.gram_ghost < costs.gram_features, round(costs.gram_threshold, 1)
    (True, 45.3)
    """
    n, t, d, p = (vocab.check_positive(name, value) for name, value in (
        ("examples", examples), ("tokens", tokens), ("inputs", inputs), ("outputs", outputs)))  # fmt: skip
    pairs, features = 2.0 * t * t * (d + p + 1), 2.0 * n * t * d * p
    return GhostCosts(
        n * pairs, features + 2.0 * n * d * p, n * n * pairs, features + 2.0 * n * n * d * p,
        2.0 * n * t * t, 1.0 * n * d * p, 2 * t * t <= d * p, math.sqrt(d * p / (d + p)),
    )  # fmt: skip


def linear_gram(
    activations: Array,
    output_gradients: Array,
    *,
    token_weights: Array | None = None,
    route: str = "auto",
    tile: int = 8,
) -> Array:
    """K_ij = ⟨D_iᵀA_i, D_jᵀA_j⟩ of a linear layer's kernel.

    Args:
      activations: (N, T, d) the layer's inputs.
      output_gradients: (N, T, p), of the summed loss; zero at padding.
      token_weights: (N, T), multiplied into D; where it is 0, what stands in A and D does not matter, NaN included.
      route: 'ghost', tiles of token pairs, or 'features', slices of the gradients by output columns;
        'auto': the one of fewer operations (``ghost_costs``).
      tile: examples (ghost; memory 2 · tile² · T²) or output columns (features; N · tile · d) held at once.

    Returns: (N, N).

    Raises:
      ValueError: shapes that do not fit, an unknown route, a tile that is not a positive integer.

    >>> A, D = jnp.array([[[1.0, 2.0], [0.0, 1.0]]]), jnp.array([[[0.5], [1.0]]])       # G = (0.5, 2)
    >>> [linear_gram(A, D, route=route).tolist() for route in ("ghost", "features")]
    [[[4.25]], [[4.25]]]
    """
    a, d = checked_layer(activations, output_gradients, token_weights)
    tile = vocab.check_positive("tile", tile)
    if route not in ROUTES:
        raise ValueError(f"route = {route!r} is not allowed; allowed: {', '.join(map(repr, ROUTES))}")
    if route == "auto":
        costs = ghost_costs(a.shape[0], a.shape[1], a.shape[2], d.shape[2])
        route = "ghost" if costs.gram_ghost < costs.gram_features else "features"
    return _by_tiles(a, d, tile) if route == "ghost" else _by_columns(a, d, tile)


def linear_norms(activations: Array, output_gradients: Array, *, token_weights: Array | None = None) -> Array:
    """‖D_iᵀA_i‖ of a linear layer's kernel, (N,): by token pairs where 2T² <= dp, else by the gradients themselves.

    Args and Raises: as ``linear_gram``.

    >>> linear_norms(jnp.array([[[3.0, 0.0]]]), jnp.array([[[0.0, 2.0, 0.0]]])).tolist()
    [6.0]
    """
    a, d = checked_layer(activations, output_gradients, token_weights)

    def squared(pair: tuple[Array, Array]) -> Array:
        a, d = pair  # of one example, so that one is in memory at a time
        if ghost_costs(1, a.shape[0], a.shape[1], d.shape[1]).ghost_norms:
            return jnp.sum(matmul(a, a.T) * matmul(d, d.T))
        return jnp.sum(matmul(d.T, a) ** 2)

    return jnp.sqrt(jnp.maximum(lax.map(squared, (a, d)), 0.0))


def bias_gram(output_gradients: Array, *, token_weights: Array | None = None) -> Array:
    """K_ij = ⟨Σ_t δ_it, Σ_t δ_jt⟩ of a bias. (N, T, p), token_weights (N, T) -> (N, N).

    Raises:
      ValueError: shapes that do not fit.

    >>> bias_gram(jnp.array([[[1.0], [1.0]], [[1.0], [-1.0]]])).tolist()
    [[4.0, 0.0], [0.0, 0.0]]
    """
    _, d = checked_layer(output_gradients, output_gradients, token_weights)
    sums = jnp.sum(d, axis=1)
    return matmul(sums, sums.T)


def norm_scale_gram(normalized: Array, output_gradients: Array, *, token_weights: Array | None = None) -> Array:
    """K_ij of the scale γ of an RMSNorm or LayerNorm, whose gradient Σ_t x̂_t ∘ δ_t has only d numbers.

    normalized: (N, T, d) x̂, the input divided by its norm, before γ. output_gradients (N, T, d) -> (N, N).

    Raises:
      ValueError: shapes that do not fit.

    >>> norm_scale_gram(jnp.array([[[1.0, 2.0]]]), jnp.array([[[1.0, 0.5]]])).tolist()
    [[2.0]]
    """
    x, d = checked_layer(normalized, output_gradients, token_weights)
    if x.shape != d.shape:
        raise ValueError(f"normalized {x.shape} and output_gradients {d.shape} must be alike")
    gradients = jnp.sum(x * d, axis=1)
    return matmul(gradients, gradients.T)


def weighted_gram(gram: Array, weights: Array) -> Array:
    """w wᵀ ∘ K, the Gram of w_i g_i. gram (n, n), weights (n,), as advantages -> (n, n).

    Raises:
      ValueError: shapes that do not fit.

    >>> weighted_gram(jnp.ones((2, 2)), jnp.array([2.0, -1.0])).tolist()
    [[4.0, -2.0], [-2.0, 1.0]]
    """
    gram, weights = wide(gram), wide(weights)
    if weights.ndim != 1 or gram.shape != weights.shape * 2:
        raise ValueError(f"gram {gram.shape} must be (n, n) beside weights {weights.shape}")
    return gram * weights[:, None] * weights[None, :]


def _by_tiles(a: Array, d: Array, tile: int) -> Array:
    n, t, _ = a.shape
    tile = min(tile, n)
    tiles = math.ceil(n / tile)
    padding = ((0, tiles * tile - n), (0, 0), (0, 0))
    a, d = (jnp.pad(x, padding).reshape(tiles, tile * t, x.shape[2]) for x in (a, d))

    def block(left: tuple[Array, Array], right: tuple[Array, Array]) -> Array:
        pairs = matmul(left[0], right[0].T) * matmul(left[1], right[1].T)
        return jnp.sum(pairs.reshape(tile, t, tile, t), axis=(1, 3))

    rows = lax.map(lambda left: lax.map(lambda right: block(left, right), (a, d)), (a, d))  # (I, J, tile, tile)
    return jnp.moveaxis(rows, 1, 2).reshape(tiles * tile, tiles * tile)[:n, :n]


def _by_columns(a: Array, d: Array, tile: int) -> Array:
    n, _, p = d.shape
    tile = min(tile, p)
    slices = math.ceil(p / tile)
    d = jnp.pad(d, ((0, 0), (0, 0), (0, slices * tile - p)))

    def add(i: Array, gram: Array) -> Array:
        part = lax.dynamic_slice_in_dim(d, i * tile, tile, axis=2)
        features = jnp.einsum("ntc,ntd->ncd", part, a, precision=lax.Precision.HIGHEST).reshape(n, -1)
        return gram + matmul(features, features.T)

    return lax.fori_loop(0, slices, add, jnp.zeros((n, n), a.dtype))
