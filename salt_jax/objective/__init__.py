"""From rewards to a loss: advantages, clipped surrogate, aggregation and KL. Arrays in, arrays out."""

from salt_jax.objective.advantages import ESTIMATORS, group_advantages
from salt_jax.objective.kl import KL_ESTIMATORS, LOSS_KL_ESTIMATORS, k1, k2, k3
from salt_jax.objective.losses import AGGREGATIONS, LossMetrics, finalize, merge, policy_loss
from salt_jax.objective.objective import ObjectiveConfig, loss

__all__ = [
    "AGGREGATIONS",
    "ESTIMATORS",
    "KL_ESTIMATORS",
    "LOSS_KL_ESTIMATORS",
    "LossMetrics",
    "ObjectiveConfig",
    "finalize",
    "group_advantages",
    "k1",
    "k2",
    "k3",
    "loss",
    "merge",
    "policy_loss",
]
