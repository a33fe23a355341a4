"""Sketches of LM-head gradient features: m x r numbers whose inner products estimate the Gram matrix.

    A_i = (1/|o_i|) Σ_t M_it (S_vᵀ (p_it − onehot(y_it))) ⊗ (S_hᵀ h_it)                  E ⟨A_i, A_j⟩ = K_ij

Both projections keep what is heavy and take random signs for the rest, so that they are unbiased and their error
is that of the rest alone:

    S_v   the entries of `heavy` tokens as they are; of all others, random ±1/√s combinations
    S_h   the coordinates in an orthonormal `basis`; of what is orthogonal to it, random ±1/√s combinations

Products with S_h are taken in float32, also of bfloat16 hidden states: rounded columns are not orthonormal, and the
mean over the key would be off by as much.

Signs of the vocabulary are made anew for each chunk from the key (never V x s at once) and applied in the pass that
computes log-probabilities, so that a train step needs no second product with the output projection: beside that
pass's m·T·V·H multiply-adds the features cost m·T·(V·s + e·H). Signs alone, without heavy tokens and a basis, do not
get the participation ratio to within 2 % at any useful size: hidden states have a few dominant directions, and
the residuals of one policy a few dominant tokens (experiments/benchmarks/sketch_error.py).

Shape letters: m rollouts, T tokens, H hidden size, V vocabulary, e kept and s random columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax import vocab
from salt_jax.distributed.layout import Layout
from salt_jax.geometry.features import check_inputs
from salt_jax.geometry.streaming import Lower, product_dtype

DEFAULT_RANK_VOCAB, DEFAULT_RANK_HIDDEN = 1024, 64  # chosen by experiments/benchmarks/sketch_error.py
RANDOM_SHARE = 8  # one column of so many is random: kept ones cost less and say more
BASIS_ROUNDS = 3  # of subspace iteration, where no basis is given


class Sketch(NamedTuple):
    """What a forward pass needs to sketch its rollouts on the way.

    key: PRNG key of the random parts.  heavy (e,): from `heavy_tokens`.  basis (H, e) or None: orthonormal columns,
    None where the hidden states are not projected.  The rest: as in `lm_head_sketch`.
    """

    key: jax.Array
    heavy: jax.Array
    basis: jax.Array | None
    rank_vocab: int = DEFAULT_RANK_VOCAB
    rank_hidden: int = DEFAULT_RANK_HIDDEN
    length_normalize: bool = True


def lm_head_sketch(
    hidden: jax.Array,
    lm_head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    rank_vocab: int = DEFAULT_RANK_VOCAB,
    rank_hidden: int = DEFAULT_RANK_HIDDEN,
    temperature: vocab.Scalar = 1.0,
    chunk_size: int = vocab.DEFAULT_CHUNK,
    length_normalize: bool = True,
    heavy: jax.Array | None = None,
    basis: jax.Array | None = None,
    layout: Layout | None = None,
) -> jax.Array:
    """Features of `lm_head_gram` projected to r numbers each; hidden[t] is the state that predicts targets[t].

    Two-sided, with E[A Aᵀ] = K over the key:

        A_i = (1/|o_i|) Σ_t M_it (S_vᵀ (p_it − onehot(y_it))) ⊗ (S_hᵀ h_it)

    (features: arXiv 2606.05800, Eq. 19; the projection is this project's, see the module). A rank at or above its
    dimension is the identity on that side: nothing is lost there. Constant in every argument.

    Args:
      hidden, lm_head, targets, mask, temperature, length_normalize, layout: as in `lm_head_gram`.
      key: PRNG key; the same key gives the same projection, whatever the chunk size or layout.
      rank_vocab: r_v, columns on the vocabulary's side; seven eighths are kept tokens, the rest random.
      rank_hidden: r_h, columns on the hidden states' side; seven eighths are kept directions, the rest random.
      chunk_size: vocabulary columns of logits held at once; changes memory, not the result.
      heavy: (e,) distinct token ids to keep; None: those taken most often (`heavy_tokens`).
      basis: (H, e) orthonormal directions to keep; None: the principal ones of these hidden states.

    Returns: A (m, min(r_v, V) · min(r_h, H)) float32.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0, a rank or chunk_size that is not a positive integer, a
        mesh that does not divide m, V or H.

    >>> h, W, y = jnp.ones((2, 1, 1)), jnp.zeros((1, 2)), jnp.array([[0], [1]])
    >>> A = jax.jit(lm_head_sketch)(h, W, y, jnp.ones((2, 1)), jax.random.key(0))  # ranks above V and H: exact
    >>> sketch_gram(A).tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    check_inputs(hidden, lm_head, targets, mask, layout)
    rank_vocab, rank_hidden = (
        vocab.check_positive(name, rank) for name, rank in (("rank_vocab", rank_vocab), ("rank_hidden", rank_hidden))
    )
    keep_mxT = mask.astype(bool)
    hidden, lm_head = lax.stop_gradient((jnp.where(keep_mxT[:, :, None], hidden, 0), lm_head))
    h, v = lm_head.shape
    if heavy is None:
        heavy = heavy_tokens(targets, mask, v, rank_vocab, length_normalize=length_normalize)
    if basis is None and rank_hidden < h:
        basis = start_basis(h, rank_hidden)
        for _ in range(BASIS_ROUNDS):
            basis = orthonormal(hidden_moment(hidden, mask, basis, length_normalize=length_normalize))
    sketch = Sketch(key, heavy, basis, rank_vocab, rank_hidden, length_normalize)
    _, projected = vocab.projected_log_probs(
        hidden, lm_head, targets, key, heavy, num_signs=num_signs(rank_vocab, v),
        temperature=temperature, chunk_size=chunk_size, layout=layout,
    )
    return rollout_sketches(hidden, projected, mask, sketch)


def kept_columns(rank: int, dimension: int) -> int:
    """e: seven eighths of the rank and not all; the whole dimension where the rank covers it.

    >>> kept_columns(64, 96), kept_columns(64, 17), kept_columns(1, 5)
    (56, 17, 0)
    """
    return dimension if rank >= dimension else rank - num_signs(rank, dimension)


def num_signs(rank: int, dimension: int) -> int:
    """s: the random columns beside `kept_columns`.

    >>> num_signs(64, 96), num_signs(64, 17)
    (8, 0)
    """
    return 0 if rank >= dimension else max(1, rank // RANDOM_SHARE)


def heavy_tokens(
    targets: jax.Array, mask: jax.Array, vocab_size: int, rank_vocab: int, *, length_normalize: bool = True
) -> jax.Array:
    """The tokens whose rows of the features are likely largest: those taken most often, in units of w_i² = 1/|o_i|².

    A taken token has a residual of size 1 − p, and on policy it is taken as often as it is probable.

    targets, mask (m, T) -> (e,) int32 distinct ids, e = `kept_columns`; all of them where the rank covers them.

    >>> heavy_tokens(jnp.array([[5, 2, 5]]), jnp.ones((1, 3)), 100, 2).tolist()
    [5]
    """
    count = kept_columns(vocab.check_positive("rank_vocab", rank_vocab), vocab_size)
    if count == vocab_size:
        return jnp.arange(vocab_size, dtype=jnp.int32)
    energy_mxT = _weights(mask, length_normalize) ** 2
    total_V = jnp.zeros(vocab_size).at[targets.reshape(-1)].add(energy_mxT.reshape(-1), mode="drop")
    return lax.top_k(total_V, count)[1].astype(jnp.int32)


def start_basis(width: int, rank_hidden: int) -> jax.Array:
    """(H, e) orthonormal columns that know nothing of the data: where subspace iteration starts.

    >>> start_basis(8, 4).shape
    (8, 3)
    """
    columns = kept_columns(rank_hidden, width)
    # orthonormal, and no coordinate is left out, as it would be with unit vectors
    grid = (jnp.arange(width)[:, None] + 0.5) * (jnp.arange(columns)[None, :] + 0.5)
    return orthonormal(jnp.cos(math.pi / width * grid))


def hidden_moment(
    hidden: jax.Array, mask: jax.Array, basis: jax.Array, *, length_normalize: bool = True
) -> jax.Array:
    """Σ_it w_it² h_it (h_itᵀ U), w_it = M_it/|o_i|: one product of the second moment of the hidden states with U.

    Sums over rollouts: parts of a batch add up. hidden (m, T, H), mask (m, T), basis U (H, e) -> (H, e) float32.

    >>> hidden_moment(jnp.ones((1, 2, 1)), jnp.ones((1, 2)), jnp.ones((1, 1))).tolist()
    [[0.5]]
    """
    keep_mxT = mask.astype(bool)
    compute, precision = product_dtype(hidden, jnp.float32)
    scaled = jnp.where(keep_mxT[:, :, None], hidden, 0) * _weights(mask, length_normalize)[:, :, None]
    flat_NxH = lax.stop_gradient(scaled).reshape(-1, hidden.shape[-1]).astype(compute)
    inner_Nxe = jnp.dot(flat_NxH, basis.astype(compute), precision=precision, preferred_element_type=jnp.float32)
    return jnp.dot(flat_NxH.T, inner_Nxe.astype(compute), precision=precision, preferred_element_type=jnp.float32)


def orthonormal(moment: jax.Array) -> jax.Array:
    """Orthonormal columns of the same span, (H, e) -> (H, e).

    >>> orthonormal(jnp.array([[0.0], [2.0]])).round(3).tolist()
    [[0.0], [-1.0]]
    """
    if moment.shape[1] == 0:
        return moment
    scale = jnp.max(jnp.abs(moment))
    return jnp.linalg.qr(moment / jnp.where(scale > 0, scale, 1.0))[0]


def rollout_sketches(hidden: jax.Array, projected: jax.Array, mask: jax.Array, sketch: Sketch) -> jax.Array:
    """The second half of `lm_head_sketch`, for a step that has `projected` from its own log-prob pass.

    Args:
      hidden: (m, T, H).
      projected: (m, T, R) from `vocab.projected_log_probs` with the sketch's key and heavy tokens.
      mask: (m, T).
      sketch: the rest.

    Returns: (m, R · min(r_h, H)) float32, a constant.

    Raises:
      ValueError: shapes that do not fit, a basis of another width than rank_hidden asks for.

    >>> sketch = Sketch(jax.random.key(0), jnp.arange(2), None)
    >>> h, q = jnp.ones((1, 2, 1)), jnp.array([[[0.5, -0.5], [0.5, 0.5]]])
    >>> rollout_sketches(h, q, jnp.array([[1, 1]]), sketch).tolist()
    [[0.5, 0.0]]
    """
    if projected.shape[:-1] != hidden.shape[:-1] or mask.shape != hidden.shape[:-1]:
        raise ValueError(f"hidden {hidden.shape}, projected {projected.shape} and mask {mask.shape} must be (m, T, …)")
    m, t, h = hidden.shape
    rank = min(vocab.check_positive("rank_hidden", sketch.rank_hidden), h)
    keep_mxT = mask.astype(bool)
    weights_mxT = _weights(mask, sketch.length_normalize)
    projected = jnp.where(keep_mxT[:, :, None], projected, 0.0).astype(jnp.float32) * weights_mxT[:, :, None]
    hidden = lax.stop_gradient(jnp.where(keep_mxT[:, :, None], hidden, 0))
    hidden = hidden.astype(jnp.float32)
    if rank < h:
        columns_Hxr = _hidden_projection(sketch, h)
        hidden = jnp.dot(hidden.reshape(-1, h), columns_Hxr, precision=lax.Precision.HIGHEST).reshape(m, t, rank)
    features = jnp.einsum("mtv,mth->mvh", projected, hidden, precision=lax.Precision.HIGHEST)
    return lax.stop_gradient(features.reshape(m, projected.shape[-1] * rank))


def _hidden_projection(sketch: Sketch, width: int) -> jax.Array:
    """S_h = [U, (I − U Uᵀ) Ω / √s], (H, r_h): E[S_h S_hᵀ] = I."""
    kept, random = kept_columns(sketch.rank_hidden, width), num_signs(sketch.rank_hidden, width)
    if sketch.basis is None or sketch.basis.shape != (width, kept):
        found = None if sketch.basis is None else sketch.basis.shape
        raise ValueError(f"rank_hidden = {sketch.rank_hidden} of {width} needs a basis {(width, kept)}, got {found}")
    basis = lax.stop_gradient(sketch.basis)
    # another stream of the key than the vocabulary's signs
    signs_Hxs = vocab.signs(vocab.sign_key(jax.random.fold_in(sketch.key, 1)), jnp.arange(width), random)
    inner = jnp.dot(basis.T, signs_Hxs, precision=lax.Precision.HIGHEST)
    rest_Hxs = signs_Hxs - jnp.dot(basis, inner, precision=lax.Precision.HIGHEST)
    return jnp.concatenate([basis, rest_Hxs / math.sqrt(random)], axis=1)


def sketch_gram(features: jax.Array, *, layout: Layout | None = None) -> jax.Array:
    """A Aᵀ, the estimate of the Gram matrix: features (m, r) -> (m, m) float32.

    With a layout the m x r numbers are gathered on every device, and nothing else is.

    Raises:
      ValueError: features that are not (m, r).

    >>> sketch_gram(jnp.array([[1.0, 1.0], [0.0, 2.0]])).tolist()
    [[2.0, 2.0], [2.0, 4.0]]
    """
    if features.ndim != 2:
        raise ValueError(f"features must be (m, r), got {features.shape}")
    features = lax.stop_gradient(features)
    if layout is not None:
        features = layout.replicate(features)
    return Lower.zeros(features.shape[0]).add_product(features, lax.Precision.HIGHEST).full()


def _weights(mask: jax.Array, length_normalize: bool) -> jax.Array:
    """M_it / |o_i| (or M_it), float32."""
    keep_mxT = mask.astype(bool)
    weight_mxT = keep_mxT.astype(jnp.float32)
    return weight_mxT / jnp.maximum(keep_mxT.sum(axis=1, keepdims=True), 1) if length_normalize else weight_mxT
