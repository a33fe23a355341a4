"""Gradient geometry of rollouts: Gram matrices of gradient features, and what to read from them.

Usable alone, from any JAX trainer: arrays in, arrays out.
"""

from salt_jax.geometry.features import lm_head_gram, taken_token_gram
from salt_jax.geometry.per_rollout import per_rollout_gram
from salt_jax.geometry.sketch import (
    Sketch,
    heavy_tokens,
    hidden_moment,
    kept_columns,
    lm_head_sketch,
    num_signs,
    orthonormal,
    rollout_sketches,
    sketch_gram,
    start_basis,
)
from salt_jax.geometry.spectrum import (
    Spectrum,
    coefficient_distortion,
    dominant_projection,
    effective_sample_size,
    kish_count,
    numerical_rank,
    participation_ratio,
    positive_alignment,
    relative_eigengap,
    residual_energy,
    residual_update,
    spectrum,
    update_deviation,
    update_norm,
)
from salt_jax.geometry.summary import geometry_summary

__all__ = [
    "Sketch",
    "Spectrum",
    "coefficient_distortion",
    "dominant_projection",
    "effective_sample_size",
    "geometry_summary",
    "heavy_tokens",
    "hidden_moment",
    "kept_columns",
    "kish_count",
    "lm_head_gram",
    "lm_head_sketch",
    "num_signs",
    "numerical_rank",
    "orthonormal",
    "participation_ratio",
    "per_rollout_gram",
    "positive_alignment",
    "relative_eigengap",
    "residual_energy",
    "residual_update",
    "rollout_sketches",
    "sketch_gram",
    "spectrum",
    "start_basis",
    "taken_token_gram",
    "update_deviation",
    "update_norm",
]
