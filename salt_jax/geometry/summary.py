"""What the metrics report of one mini-batch: its geometry within groups, between groups and in total."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.geometry.numerics import (
    normalized,
    normalized_vector,
    presence,
    safe_ratio,
    sqrt_scaled,
    times_power_of_two,
)
from salt_jax.geometry.spectrum import (
    coefficient_distortion,
    count_of,
    effective_sample_size,
    participation_ratio,
    positive_alignment,
)
from salt_jax.products import matmul

NAMES = ("participation_ratio", "n_eff", "positive_alignment", "kish_count")


def geometry_summary(
    gram: jax.Array,
    coefficients: jax.Array,
    *,
    group_size: int,
    valid: jax.Array | None = None,
    reweighted: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Participation ratio, n_eff, positive alignment, Kish's count, each `_in`, `_out`, `_total`, and the update norm.

    Groups are contiguous: rollout i belongs to group i // group_size. A group *has signal* when
    Σ_{i in group} c_i² K_ii > 0; a unanimous or padded group has none and counts nowhere but in `_total`.

    - `_in`: the statistic of each group's own block of K (and c), averaged over the groups with signal.
    - `_out`: the statistic of the group-mean updates u_g = (1/G_g) Σ_{i in g} c_i s_i, over the groups with
      signal, with unit coefficients: n_eff_out = ‖Σ_g u_g‖² / Σ_g ‖u_g‖².
    - `_total`: the statistic of the whole mini-batch.

    `kish_count_groups`: (Σ_g D_g)² / Σ_g D_g² with D_g = Σ_{i in g} c_i² K_ii, how many groups carry the sum of n_eff's
    denominators. Far below their number `n_eff_in`, a mean of ratios, is mostly of groups that hardly move anything.

    With `reweighted`, what replaces the coefficients: also its `n_eff_after` (of the whole mini-batch), and how far
    it moved them and the update, `coefficient_distortion` and `update_deviation` (Eq. 59).

    (arXiv 2606.05800, Eq. 5–7, 58–60 and App. D; without any signal `_in` and `_out` are 0.)

    gram (m, m), coefficients (m,), valid (m,) or None, reweighted (m,) or None -> flat dict of scalars, float32.
    Raises ValueError on shapes or where group_size does not divide m.

    >>> summary = jax.jit(geometry_summary, static_argnames="group_size")(jnp.eye(4), jnp.ones(4), group_size=2)
    >>> float(summary["participation_ratio_in"]), float(summary["participation_ratio_out"])
    (2.0, 2.0)
    """
    m = gram.shape[0]
    if group_size < 1 or m % group_size:
        raise ValueError(f"group_size must be a positive divisor of the {m} rollouts, got {group_size}")
    groups = m // group_size
    gram_mxm, exponent = normalized(gram, valid)
    gram_mxm = lax.optimization_barrier(gram_mxm)  # else XLA repeats the transpose in it for each reader
    weights_m, shift = normalized_vector(coefficients, gram, valid)
    present_m = presence(gram, valid)
    count = present_m.sum()
    diagonal_m = jnp.diagonal(gram_mxm)
    square = jnp.maximum(matmul(weights_m, matmul(gram_mxm, weights_m)), 0.0)
    summary = {"update_norm": safe_ratio(times_power_of_two(sqrt_scaled(square, exponent), shift), count)}
    valid_BxG = present_m.reshape(groups, group_size)
    weights_BxG = weights_m.reshape(groups, group_size)
    blocks_BxGxBxG = gram_mxm.reshape(groups, group_size, groups, group_size)
    own_BxGxG = jnp.moveaxis(jnp.diagonal(blocks_BxGxBxG, axis1=0, axis2=2), -1, 0)
    energy_BxG = jnp.diagonal(own_BxGxG, axis1=1, axis2=2)
    shares_BxG = weights_BxG**2 * energy_BxG
    signal_B = jnp.sum(shares_BxG, axis=1) != 0  # a NaN counts as signal: never hidden

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
            average(count_of(shares_BxG)),
        ),
        "out": (
            participation_ratio(between_BxB, valid=signal_B),
            effective_sample_size(between_BxB, jnp.ones(groups), valid=signal_B),
            positive_alignment(between_BxB, valid=signal_B),
            count_of(jnp.where(signal_B, jnp.diagonal(between_BxB), 0.0)),
        ),
        "total": (
            safe_ratio(
                jnp.trace(gram_mxm) ** 2, jnp.vdot(gram_mxm, gram_mxm, precision=lax.Precision.HIGHEST)
            ),
            safe_ratio(square, jnp.sum(shares_BxG)),
            _alignment(gram_mxm, present_m),
            count_of(shares_BxG.reshape(m)),
        ),
    }
    summary["kish_count_groups"] = count_of(jnp.sum(shares_BxG, axis=1))
    for scope, statistics in scopes.items():
        for name, value in zip(NAMES, statistics, strict=True):
            summary[f"{name}_{scope}"] = value
    if reweighted is not None:
        new_m, new_shift = normalized_vector(reweighted, gram, valid)
        moved_m, moved_shift = normalized_vector(reweighted - coefficients, gram, valid)
        images_mx2 = matmul(gram_mxm, jnp.stack([new_m, moved_m], axis=1))
        new_square = jnp.maximum(matmul(new_m, images_mx2[:, 0]), 0.0)
        moved_square = jnp.maximum(matmul(moved_m, images_mx2[:, 1]), 0.0)
        deviation = safe_ratio(jnp.sqrt(moved_square), jnp.sqrt(square))
        summary |= {
            "n_eff_after": safe_ratio(new_square, jnp.sum(new_m**2 * diagonal_m)),
            "coefficient_distortion": coefficient_distortion(reweighted, coefficients, valid=valid),
            "update_deviation": times_power_of_two(deviation, moved_shift - shift),
        }
    return summary


def _alignment(gram_mxm: jax.Array, present_m: jax.Array) -> jax.Array:
    """`positive_alignment` of a normalized Gram matrix, in one pass over it."""
    inverse_m = safe_ratio(jnp.ones_like(present_m), jnp.sqrt(jnp.maximum(jnp.diagonal(gram_mxm), 0.0)))
    m = gram_mxm.shape[0]
    other_mxm = jnp.arange(m)[:, None] != jnp.arange(m)[None, :]
    cosines_mxm = jnp.clip((gram_mxm * inverse_m[:, None]) * inverse_m[None, :], 0.0, 1.0)
    count = present_m.sum()
    return safe_ratio(jnp.sum(jnp.where(other_mxm, cosines_mxm, 0.0)), count * (count - 1))
