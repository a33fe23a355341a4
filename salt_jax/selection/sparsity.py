"""How much of a policy an update touched: sparsity, rank, and the overlap of two updates    (arXiv 2505.11711)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from salt_jax.geometry.numerics import safe_ratio
from salt_jax.selection.arrays import wide

Array = jax.Array


class UpdateSparsity(NamedTuple):
    """sparsity (): share of parameters with |Δ| <= tolerance · exact (): share with Δ = 0 · parameters: how many.

    ``by_path``: (sparsity, exact, size) of each leaf by its path.
    """

    sparsity: Array
    exact: Array
    parameters: int
    by_path: dict[str, tuple[Array, Array, int]]


class Overlap(NamedTuple):
    """Of two sets of changed parameters: |1∩2|/|1|, |1∩2|/|2|, |1∩2|/|1∪2|, and |2|/n, what chance would give
    the first. 0 where a denominator is 0.
    """

    of_first: Array
    of_second: Array
    jaccard: Array
    chance: Array


def update_sparsity(before: Any, after: Any, *, dtype: Any = jnp.bfloat16, tolerance: float = 1e-5) -> UpdateSparsity:
    """1 − ‖θ₁ − θ₀‖₀ / n over all parameters, each one counting once.

    Both are rounded to ``dtype`` first, and a parameter counts as unchanged where |Δ| <= ``tolerance``. The dtype
    dominates the number (an update below half of bfloat16's spacing vanishes), so name both beside it; so does the
    learning rate. Tied weights must stand in the tree once. Jit-able; non-floating leaves are left out.

    Args:
      before, after: pytrees of the same structure and shapes.
      dtype: jnp.bfloat16 as in the paper; jnp.float32 leaves float32 parameters as they are.
      tolerance: 1e-5 as released.

    Returns: ``UpdateSparsity``.

    Raises:
      ValueError: trees that differ in structure or shapes, no floating-point leaf, a negative tolerance.

    >>> change = update_sparsity({"w": jnp.ones(4)}, {"w": jnp.array([1.0, 1.001, 1.1, 2.0])})
    >>> float(change.sparsity), float(update_sparsity(jnp.ones(1), jnp.ones(1) + 1e-6, dtype=jnp.float32).exact)
    (0.5, 0.0)
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance = {tolerance} is not allowed; allowed: numbers >= 0")
    by_path, near, exact, total = {}, [], [], 0
    for path, delta in _deltas(before, after, dtype).items():
        # counts of one leaf as integers: float32 would lose them from 2^24 on
        counts = [jnp.sum(jnp.abs(delta) <= tolerance), jnp.sum(delta == 0)]
        shares = [safe_ratio(_real(count), _real(delta.size)) for count in counts]
        by_path[path] = (shares[0], shares[1], delta.size)
        near.append(shares[0] * delta.size)
        exact.append(shares[1] * delta.size)
        total += delta.size
    return UpdateSparsity(sum(near) / total, sum(exact) / total, total, by_path)  # type: ignore[arg-type]


def changed(before: Any, after: Any, *, dtype: Any = jnp.bfloat16, tolerance: float = 1e-5) -> dict[str, Array]:
    """Which parameters an update changed, |Δ| > tolerance after rounding to ``dtype``: path -> bool array.

    Raises:
      ValueError: as ``update_sparsity``.

    >>> changed({"w": jnp.ones(2)}, {"w": jnp.array([1.0, 2.0])})["w"].tolist()
    [False, True]
    """
    return {path: jnp.abs(delta) > tolerance for path, delta in _deltas(before, after, dtype).items()}


def update_overlap(first: Any, second: Any) -> Overlap:
    """How far two updates changed the same parameters: pytrees of bool arrays, as of ``changed`` -> ``Overlap``.

    Raises:
      ValueError: trees that differ in structure or shapes.

    >>> [round(float(x), 2) for x in update_overlap(jnp.array([1, 1, 0, 0]) > 0, jnp.array([1, 0, 0, 0]) > 0)]
    [0.5, 1.0, 0.5, 0.25]
    """
    _check_alike(first, second)
    pairs = list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))

    def count(of: Callable[[Array, Array], Array]) -> Array:
        return sum((_real(jnp.sum(of(a.astype(bool), b.astype(bool)))) for a, b in pairs), _real(0))

    both, ones, twos = count(lambda a, b: a & b), count(lambda a, b: a), count(lambda a, b: b)
    total = _real(sum(a.size for a, _ in pairs))
    union = ones + twos - both
    return Overlap(*(safe_ratio(x, y) for x, y in ((both, ones), (both, twos), (both, union), (twos, total))))


def is_matrix(path: str) -> bool:
    """What ``update_rank_ratio`` looks at by default: no norm's scale and no bias, whatever axes stacking adds.

    >>> is_matrix("layers/q"), is_matrix("layers/mlp_norm"), is_matrix("layers/q_bias")
    (True, False, False)
    """
    return "norm" not in path.lower() and "bias" not in path.lower()


def update_rank_ratio(before: Any, after: Any, *, where: Callable[[str], bool] = is_matrix) -> Array:
    """Mean over matrices of rank(Δ) / min(shape), in float32: near 1, a sparse update is no low-rank one.

    Leaves of more than two axes are stacks of matrices (this project's layers are stacked), each counting once.

    Args:
      before, after: pytrees of the same structure and shapes.
      where: predicate on a parameter's path; leaves of fewer than two axes are left out anyhow.

    Returns: scalar.

    Raises:
      ValueError: trees that differ, or no matrix among the chosen.

    >>> float(update_rank_ratio({"w": jnp.zeros((4, 4))}, {"w": jnp.eye(4)[::-1]}))
    1.0
    """
    ratios, matrices = [], 0
    for path, delta in _deltas(before, after, jnp.float32).items():
        if delta.ndim < 2 or not where(path) or delta.size == 0:
            continue
        ranks = _real(jnp.linalg.matrix_rank(delta)) / min(delta.shape[-2:])
        ratios.append(jnp.sum(ranks))
        matrices += ranks.size
    if not matrices:
        raise ValueError("no parameter of two axes or more was chosen")
    return sum(ratios, _real(0)) / matrices


def _deltas(before: Any, after: Any, dtype: Any) -> dict[str, Array]:
    """θ₁ − θ₀ by path, of values rounded to ``dtype``; the difference itself is not rounded again."""
    _check_alike(before, after)
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    deltas = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _rounded(new, dtype) - _rounded(old, dtype)
        for (path, old), new in pairs
        if jnp.issubdtype(jnp.result_type(old), jnp.floating)
    }
    if not any(delta.size for delta in deltas.values()):
        raise ValueError("the trees hold no floating-point parameter")
    return deltas


def _rounded(x: Any, dtype: Any) -> Array:
    # not a cast down and up again, which XLA may drop
    x = wide(x)
    own, asked = jnp.finfo(x.dtype), jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, min(own.nexp, asked.nexp), min(own.nmant, asked.nmant))


def _real(count: Any) -> Array:
    """A count in the default precision: float64 where that is enabled."""
    return jnp.asarray(count).astype(jnp.result_type(float))


def _check_alike(first: Any, second: Any) -> None:
    if not jax.tree.structure(first) == jax.tree.structure(second):  # type: ignore[operator]
        raise ValueError("the two trees differ in structure")
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True
    ):
        if jnp.shape(one) != jnp.shape(other):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"the two trees differ at {name!r}: {jnp.shape(one)} and {jnp.shape(other)}")
