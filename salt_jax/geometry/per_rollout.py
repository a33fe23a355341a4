"""Rollouts -> Gram matrix by one backward pass per rollout: any loss, any parameters."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from optax import microbatching


def per_rollout_gram(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    rollouts: Any,
    *,
    where: Callable[[str], bool] | None = None,
    microbatch: int | None = None,
) -> jax.Array:
    """Gram matrix of per-rollout gradients, K_ij = ⟨∇L_i, ∇L_j⟩ over a chosen subset of the parameters.

        s_i = ∂ loss_fn(params, rollout_i) / ∂ params[where]        (arXiv 2606.05800, §4 and Eq. 19)

    Args:
      loss_fn: (params, one rollout without its leading axis) -> scalar. It must be finite for a rollout with
        an empty mask: divide by max(|o_i|, 1).
      params: pytree; leaves that are not floating point are constants.
      rollouts: pytree whose leaves all have the leading axis m.
      where: predicate on a parameter's path, its keys joined by '/' ('layers/0/kernel'); None selects all.
        Gradients are taken of the selected leaves only, the others are constants.
      microbatch: rollouts whose backward passes live at once; divides m. None runs all m together.
        The (m, size of the subset) float32 features are held either way.

    Returns: (m, m) float32, constant in every argument.

    Raises:
      ValueError: `where` selects no floating-point parameter; leaves without a common leading axis;
        microbatch not a positive divisor of m.

    >>> loss = lambda params, x: params["w"] @ x + params["b"]
    >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(())}
    >>> rollouts = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> per_rollout_gram(loss, params, rollouts, where=lambda path: path == "w").tolist()
    [[5.0, 11.0], [11.0, 25.0]]
    """
    m = _leading_axis(rollouts)
    if microbatch is not None and (operator.index(microbatch) < 1 or m % microbatch):
        raise ValueError(f"microbatch must be a positive divisor of the {m} rollouts, got {microbatch}")
    params = lax.stop_gradient(params)
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths_and_leaves]
    leaves = [leaf for _, leaf in paths_and_leaves]
    chosen = [
        i
        for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True))
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and (where is None or where(path))
    ]
    if not chosen:
        raise ValueError(f"where selects no floating-point parameter; the paths are {paths}")

    def subset_loss(subset: list[jax.Array], rollout: Any) -> jax.Array:
        merged = list(leaves)
        for i, leaf in zip(chosen, subset, strict=True):
            merged[i] = leaf
        return loss_fn(jax.tree_util.tree_unflatten(treedef, merged), rollout)

    def feature(rollout: Any) -> jax.Array:
        grads = jax.grad(subset_loss)([leaves[i] for i in chosen], rollout)
        return jnp.concatenate([grad.astype(jnp.float32).reshape(-1) for grad in grads])

    features_mxD = microbatching.micro_vmap(feature, microbatch_size=microbatch)(rollouts)
    return lax.stop_gradient(jnp.dot(features_mxD, features_mxD.T, precision=lax.Precision.HIGHEST))


def _leading_axis(rollouts: Any) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(rollouts)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"rollouts must share one leading axis m, got {sorted(sizes)}")
    return sizes.pop()[0]
