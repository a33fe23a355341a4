"""What the metrics report of one mini-batch: its geometry within groups, between groups and in total."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from salt_jax.geometry.numerics import matmul, normalized, normalized_vector, presence, safe_ratio
from salt_jax.geometry.spectrum import (
    effective_sample_size,
    participation_ratio,
    positive_alignment,
    update_norm,
)

NAMES = ("participation_ratio", "n_eff", "positive_alignment")


def geometry_summary(
    gram: jax.Array, coefficients: jax.Array, *, group_size: int, valid: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Participation ratio, n_eff, positive alignment, each `_in`, `_out` and `_total`, and the update norm.

    Groups are contiguous: rollout i belongs to group i // group_size. A group *has signal* when
    Σ_{i in group} c_i² K_ii > 0; a unanimous or padded group has none and counts nowhere but in `_total`.

    - `_in`: the statistic of each group's own block of K (and c), averaged over the groups with signal.
    - `_out`: the statistic of the group-mean updates u_g = (1/G_g) Σ_{i in g} c_i s_i, over the groups with
      signal, with unit coefficients: n_eff_out = ‖Σ_g u_g‖² / Σ_g ‖u_g‖².
    - `_total`: the statistic of the whole mini-batch.

    (arXiv 2606.05800, Eq. 5–7, 58, 60 and App. D; without any signal `_in` and `_out` are 0.)

    gram (m, m), coefficients (m,), valid (m,) or None -> flat dict of scalars, float32.
    Raises ValueError on shapes or where group_size does not divide m.

    >>> summary = geometry_summary(jnp.eye(4), jnp.ones(4), group_size=2)
    >>> float(summary["participation_ratio_in"]), float(summary["participation_ratio_out"])
    (2.0, 2.0)
    """
    m = gram.shape[0]
    if group_size < 1 or m % group_size:
        raise ValueError(f"group_size must be a positive divisor of the {m} rollouts, got {group_size}")
    groups = m // group_size
    summary = {"update_norm": update_norm(gram, coefficients, valid=valid)}
    gram_mxm, _ = normalized(gram, valid)
    weights_m, _ = normalized_vector(coefficients, gram, valid)
    valid_BxG = presence(gram, valid).reshape(groups, group_size)
    weights_BxG = weights_m.reshape(groups, group_size)
    blocks_BxGxBxG = gram_mxm.reshape(groups, group_size, groups, group_size)
    own_BxGxG = jnp.moveaxis(jnp.diagonal(blocks_BxGxBxG, axis1=0, axis2=2), -1, 0)
    energy_BxG = jnp.diagonal(own_BxGxG, axis1=1, axis2=2)
    signal_B = jnp.sum(weights_BxG**2 * energy_BxG, axis=1) != 0  # a NaN counts as signal: never hidden

    def average(values_B: jax.Array) -> jax.Array:
        return safe_ratio(jnp.sum(jnp.where(signal_B, values_B, 0.0)), jnp.sum(signal_B.astype(jnp.float32)))

    counts_B = jnp.maximum(valid_BxG.sum(axis=1), 1.0)
    mean_Bxm = (jnp.eye(groups)[:, :, None] * (weights_BxG / counts_B[:, None])[None]).reshape(groups, m)
    between_BxB = matmul(matmul(mean_Bxm, gram_mxm), mean_Bxm.T)
    present_BxG = valid_BxG > 0
    scopes = {
        "in": (
            average(jax.vmap(lambda k, v: participation_ratio(k, valid=v))(own_BxGxG, present_BxG)),
            average(
                jax.vmap(lambda k, c, v: effective_sample_size(k, c, valid=v))(
                    own_BxGxG, weights_BxG, present_BxG
                )
            ),
            average(jax.vmap(lambda k, v: positive_alignment(k, valid=v))(own_BxGxG, present_BxG)),
        ),
        "out": (
            participation_ratio(between_BxB, valid=signal_B),
            effective_sample_size(between_BxB, jnp.ones(groups), valid=signal_B),
            positive_alignment(between_BxB, valid=signal_B),
        ),
        "total": (
            participation_ratio(gram, valid=valid),
            effective_sample_size(gram, coefficients, valid=valid),
            positive_alignment(gram, valid=valid),
        ),
    }
    for scope, statistics in scopes.items():
        for name, value in zip(NAMES, statistics, strict=True):
            summary[f"{name}_{scope}"] = value
    return summary
