"""From rewards to a loss: advantages, filters, surrogates, aggregation and KL. Arrays in, arrays out.

A configuration names one method a stage; each stage's methods stand in one visible dict.
"""

from salt_jax.objective.advantages import group_advantages
from salt_jax.objective.aggregation import AGGREGATIONS
from salt_jax.objective.config import ObjectiveConfig
from salt_jax.objective.estimators import ESTIMATORS
from salt_jax.objective.kl import KL_ESTIMATORS, LOSS_KL_ESTIMATORS, k1, k2, k3, k3_plus
from salt_jax.objective.losses import LossMetrics, finalize, merge, policy_loss
from salt_jax.objective.objective import loss
from salt_jax.objective.row_filters import FILTERS
from salt_jax.objective.signals import Signals, example_rollouts
from salt_jax.objective.stages import Estimate, choose_tokens, estimate, rollout_advantages
from salt_jax.objective.surrogates import SURROGATES, SurrogateOptions
from salt_jax.objective.token_choices import TOKENS, TokenChoices

__all__ = [
    "AGGREGATIONS",
    "ESTIMATORS",
    "FILTERS",
    "KL_ESTIMATORS",
    "LOSS_KL_ESTIMATORS",
    "SURROGATES",
    "TOKENS",
    "Estimate",
    "LossMetrics",
    "ObjectiveConfig",
    "Signals",
    "SurrogateOptions",
    "TokenChoices",
    "choose_tokens",
    "estimate",
    "example_rollouts",
    "finalize",
    "group_advantages",
    "k1",
    "k2",
    "k3",
    "k3_plus",
    "loss",
    "merge",
    "policy_loss",
    "rollout_advantages",
]
