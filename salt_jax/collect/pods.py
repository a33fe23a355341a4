"""PODS (arXiv 2504.13818): more rollouts are sampled than the update takes; those with the most varied rewards stay.

Sampling is cheap where updating is not. Advantages come from the rollouts that stay, as the filter of the same name
has it, which drops rows after they have been paid for. A prompt with fewer graded rollouts than stay is filled up with
rollouts that are not graded.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from salt_jax.collect.turn import Memory, Turn
from salt_jax.objective.filters import max_variance
from salt_jax.rollout import RolloutBatch


def collect(turn: Turn, data: Any, memory: Memory) -> tuple[RolloutBatch, Memory]:
    """``sampled_rollouts`` of each prompt, of which G stay."""
    group = turn.group_size
    groups = turn.groups(next(data), draw=0, rollouts=turn.settings.sampled_rollouts or 4 * group)
    rewards = np.where(groups.rewarded, groups.rewards, 0.0)
    kept = np.asarray(jax.device_get(
        max_variance(jnp.asarray(rewards), group, counted=jnp.asarray(groups.rewarded))
    ))  # fmt: skip
    first = np.argsort(~kept, axis=1, kind="stable")[:, :group]  # what is kept, then whatever comes first
    turn.note(dropped=1 - group / groups.size)
    return turn.finish(groups.pick(np.sort(first, axis=1))), memory
