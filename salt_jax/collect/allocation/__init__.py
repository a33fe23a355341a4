"""How many rollouts which prompt gets: pure functions of NumPy arrays, for the host side of a trainer.

===============  ==============================================================================================
file             method
===============  ==============================================================================================
rounding         real-valued counts between bounds, and whole numbers with the same sum
reinforce_ada    Reinforce-Ada: rounds until a prompt has what it needs, or counts from estimated success rates
vade             VADE: prompts chosen by the information that their Beta posteriors promise
gvm              GVM-RAFT: counts that minimise the variance of the gradient
===============  ==============================================================================================

All arithmetic is float64 on the host: these are a few thousand numbers a step, and whether a prompt gets a rollout
more must not depend on the device.
"""

from salt_jax.collect.allocation.gvm import (
    gvm_counts,
    gvm_weights,
    mean_norms,
    regularizer,
    row_weights,
    variance_bound,
)
from salt_jax.collect.allocation.reinforce_ada import (
    EmaCounts,
    allocate,
    downsample,
    est_advantages,
    est_weights,
    estimate,
    finished,
    optimal_counts,
    pool_baseline,
    sequential_weights,
    update_counts,
)
from salt_jax.collect.allocation.rounding import integer_counts, water_fill
from salt_jax.collect.allocation.vade import VadeState, expected_gain, information_gain, select, update

__all__ = [
    "EmaCounts",
    "VadeState",
    "allocate",
    "downsample",
    "est_advantages",
    "est_weights",
    "estimate",
    "expected_gain",
    "finished",
    "gvm_counts",
    "gvm_weights",
    "information_gain",
    "integer_counts",
    "mean_norms",
    "optimal_counts",
    "pool_baseline",
    "regularizer",
    "row_weights",
    "select",
    "sequential_weights",
    "update",
    "update_counts",
    "variance_bound",
    "water_fill",
]
