"""LESS: training examples by the alignment of their Adam updates with validation gradients       (arXiv 2402.04333)

    Γ_i = m'/√(v' + ε),   m' = β₁ m + (1 − β₁) g_i,   v' = β₂ v + (1 − β₂) g_i²,   with Adam's m and v of a warm start
    influence_i = max over subtasks of mean over their validation examples of Σ_c η̄_c ⟨unit P Γ_ic, unit P g_vc⟩

over checkpoints c, η̄ their mean learning rates divided by their sum, P a random projection. Read in the release. Γ is
nonlinear in g: it cannot come from a Gram matrix or from projected gradients, but must be made coordinate by
coordinate, then projected.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax import vocab
from salt_jax.geometry.numerics import safe_ratio
from salt_jax.products import matmul
from salt_jax.selection.arrays import unit_rows, wide

Array = jax.Array
FORMS = ("release", "epsilon_outside", "bias_corrected")
KINDS = ("adam", "sgd", "sign")


class Influence(NamedTuple):
    """scores (n,), the greatest of by_subtask (n, s), the means over each subtask's validation examples."""

    scores: Array
    by_subtask: Array


def adam_features(
    gradient: Any,
    first_moment: Any,
    second_moment: Any,
    *,
    form: str = "release",
    step: int | Array | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
) -> Any:
    """The direction in which Adam would move for one example's gradient, Γ; not multiplied by the learning rate.

    ==================  ===========================================================================
    form                Γ
    ==================  ===========================================================================
    'release'           m' / √(v' + ε): ε inside the root, no bias correction
    'epsilon_outside'   m' / (√v' + ε), no bias correction
    'bias_corrected'    Adam's own: m'/(1 − β₁^t) / (√(v'/(1 − β₂^t)) + ε), t = ``step``
    ==================  ===========================================================================

    Args:
      gradient: pytree (or array) of one example's gradient; leading axes of many do no harm.
      first_moment, second_moment: Adam's m and v before this gradient, of the same structure.
      form: see the table.
      step: t >= 1, updates counted with this one; only for 'bias_corrected'.
      b1, b2, epsilon: Adam's.

    Returns: the pytree of Γ, float32 or wider.

    Raises:
      ValueError: an unknown form; a step that is missing, or given without need.

    >>> float(adam_features(jnp.array(2.0), jnp.array(0.0), jnp.array(0.0), form="bias_corrected", step=1).round(4))
    1.0
    """
    if form not in FORMS:
        raise ValueError(f"form = {form!r} is not allowed; allowed: {', '.join(map(repr, FORMS))}")
    if (step is None) == (form == "bias_corrected"):
        raise ValueError(f"form = {form!r} {'needs step' if step is None else 'takes no step'}")

    def feature(g: Array, m: Array, v: Array) -> Array:
        g, m, v = wide(g), wide(m), wide(v)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        if form == "release":
            return m / jnp.sqrt(v + epsilon)
        if form == "epsilon_outside":
            return m / (jnp.sqrt(v) + epsilon)
        t = jnp.asarray(step, g.dtype)
        return (m / (1 - b1**t)) / (jnp.sqrt(v / (1 - b2**t)) + epsilon)

    return jax.tree.map(feature, gradient, first_moment, second_moment)


def less_features(
    gradient: Any, kind: str = "adam", *, first_moment: Any = None, second_moment: Any = None, **options: Any
) -> Any:
    """One example's feature before projection: 'adam' (``adam_features``), 'sgd' (g itself) or 'sign' (of g).

    Validation gradients are always 'sgd'. ``options`` are those of ``adam_features``.

    Raises:
      ValueError: an unknown kind; moments that 'adam' lacks, or that another kind has no use for.

    >>> less_features({"w": jnp.array([0.5, -2.0])}, "sign")["w"].tolist()
    [1.0, -1.0]
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r} is not allowed; allowed: {', '.join(map(repr, KINDS))}")
    if kind == "adam":
        if first_moment is None or second_moment is None:
            raise ValueError("kind = 'adam' needs first_moment and second_moment, of a warm-started optimizer")
        return adam_features(gradient, first_moment, second_moment, **options)
    if first_moment is not None or second_moment is not None or options:
        raise ValueError(f"kind = {kind!r} takes no moments and no options of Adam's")
    return jax.tree.map(wide if kind == "sgd" else lambda g: jnp.sign(wide(g)), gradient)


def rademacher_project(tree: Any, key: Array, dim: int, *, block: int = 2048) -> Array:
    """P x / √dim with P a matrix of independent random signs, made block by block and never stored.

    Inner products are kept in expectation, E⟨Px, Py⟩ = ⟨x, y⟩, with variance at most 2 ‖x‖²‖y‖² / dim. (The
    releases of LESS and TRAK leave the division by √dim out, which the normalised rows of LESS do not see.) A column
    of P depends on the key, the leaf's place in the tree and the coordinate within the leaf alone: the same for
    every example, and whatever the block. For many examples use ``jax.vmap`` with in_axes=(0, None) over a
    function of the example and the key: the signs are then made once.

    Args:
      tree: pytree of floating-point arrays, or one array: one example's feature.
      key: PRNG key.
      dim: numbers that remain.
      block: coordinates at a time: memory is block · dim numbers.

    Returns: (dim,) float32 or wider.

    Raises:
      ValueError: dim or block not a positive integer, an empty tree.

    >>> x = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> both = [rademacher_project(x, jax.random.key(0), 5, block=size) for size in (2, 100)]
    >>> both[0].shape, bool(jnp.allclose(*both))
    ((5,), True)
    """
    dim, block = vocab.check_positive("dim", dim), vocab.check_positive("block", block)
    leaves = [wide(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        raise ValueError("tree has no leaf to project")
    total = jnp.zeros(dim, jnp.result_type(*leaves))
    for layer, flat in enumerate(leaves):
        signs_of = vocab.sign_key(jax.random.fold_in(key, layer))
        size = min(block, max(flat.size, 1))
        blocks = math.ceil(flat.size / size)
        padded = jnp.pad(flat, (0, blocks * size - flat.size)).reshape(blocks, size)

        def add(at: Array, total: Array, padded: Array = padded, signs_of: Array = signs_of, size: int = size) -> Array:
            rows = vocab.signs(signs_of, at * size + jnp.arange(size), dim).astype(total.dtype)
            return total + matmul(padded[at].astype(total.dtype), rows)

        total = lax.fori_loop(0, blocks, add, total)
    return total / math.sqrt(dim)


def influence(
    train_features: Array, validation_features: Array, learning_rates: Array, *, validation_mask: Array | None = None
) -> Influence:
    """Influence of n examples on s subtasks over c checkpoints, from (projected) features: see the module.

    Rows are normalised here; a row of zero has influence 0.

    Args:
      train_features: (c, n, d), Γ of 'adam' (or 'sgd', 'sign').
      validation_features: (c, s, u, d) plain gradients, u validation examples a subtask.
      learning_rates: (c,) mean of each checkpoint's epoch, >= 0; divided by their sum.
      validation_mask: (s, u) bool, where subtasks have fewer than u; a subtask without any counts for no example.

    Returns: ``Influence``.

    Raises:
      ValueError: shapes that do not fit.

    >>> train, tasks = jnp.array([[[2.0, 0.0], [1.0, 1.0]]]), jnp.array([[[[3.0, 0.0]], [[0.0, 1.0]]]])
    >>> influence(train, tasks, jnp.ones(1)).by_subtask.round(3).tolist()
    [[1.0, 0.0], [0.707..., 0.707...]]
    """
    train, validation = jnp.shape(train_features), jnp.shape(validation_features)
    if len(train) != 3 or len(validation) != 4 or (train[0], train[2]) != (validation[0], validation[3]):
        raise ValueError(f"train_features {train} must be (c, n, d), validation_features {validation} (c, s, u, d)")
    if validation_mask is not None and jnp.shape(validation_mask) == validation[1:3]:
        there = jnp.asarray(validation_mask).astype(bool)
        validation_features = jnp.where(there[None, :, :, None], validation_features, 0.0)
    cosines = jnp.einsum(
        "cnd,csud->cnsu", unit_rows(train_features), unit_rows(validation_features), precision=lax.Precision.HIGHEST
    )
    return influence_of_products(cosines, learning_rates, validation_mask=validation_mask)


def influence_of_products(
    products: Array, learning_rates: Array, *, validation_mask: Array | None = None
) -> Influence:
    """``influence`` from the inner products of normalised features, as a Gram matrix of 'sgd' features has them.

    products (c, n, s, u), learning_rates (c,), validation_mask (s, u) -> ``Influence``.

    Raises:
      ValueError: shapes that do not fit.

    >>> products = jnp.array([[[[0.1, 0.5], [0.2, 0.4]], [[0.0, 0.2], [0.5, 0.7]]]])
    >>> influence_of_products(products, jnp.ones(1)).scores.round(3).tolist()
    [0.30000001192092896, 0.60000002384185...]
    """
    products, rates = wide(products), wide(learning_rates)
    if products.ndim != 4 or rates.shape != products.shape[:1]:
        raise ValueError(f"products {products.shape} must be (c, n, s, u), learning_rates {rates.shape} (c,)")
    there = jnp.ones(products.shape[2:], bool) if validation_mask is None else jnp.asarray(validation_mask)
    if there.shape != products.shape[2:]:
        raise ValueError(f"validation_mask {there.shape} must be (s, u) = {products.shape[2:]}")
    there = there.astype(bool)
    weights_c = safe_ratio(rates, jnp.sum(rates)).astype(products.dtype)
    kept = jnp.where(there[None, None], products, 0.0)
    summed_nxsxu = jnp.tensordot(weights_c, kept, axes=1, precision=lax.Precision.HIGHEST)
    count_s = jnp.sum(there, axis=1)
    means_nxs = safe_ratio(jnp.sum(summed_nxsxu, axis=2), count_s.astype(products.dtype)[None, :])
    means_nxs = jnp.where(count_s[None, :] > 0, means_nxs, -jnp.inf)
    return Influence(jnp.max(means_nxs, axis=1), means_nxs)
