"""Scalars that describe a step: rewards and lengths of its rollouts, entropy, and their mean over minibatches."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from salt_jax.objective.filters import informative_groups
from salt_jax.rollout import RolloutBatch, bundle, succeeded

Array = jax.Array
GUARDED = "guards/skipped"  # optimizer updates of a step that were not finite and changed nothing


def reward_metrics(rollouts: RolloutBatch, group_size: int, correct_from: float) -> dict[str, Array]:
    """Rewards, the share of correct ones, lengths, truncation and missing grades of the policy's own rollouts."""
    valid = rollouts.valid
    if "demonstration" in rollouts.extra:
        valid = valid & ~rollouts.extra["demonstration"]
    graded = valid & rollouts.rewarded
    count, rows = jnp.maximum(jnp.sum(graded), 1), jnp.maximum(jnp.sum(valid), 1)
    signal = informative_groups(bundle(rollouts.rewards, group_size), rewarded=bundle(graded, group_size))
    lengths = jnp.sum(rollouts.completion_mask, axis=1)
    return {
        "reward": jnp.sum(jnp.where(graded, rollouts.rewards, 0.0)) / count,
        "accuracy": jnp.sum(succeeded(rollouts.rewards, graded, correct_from)) / count,
        "groups_with_signal": jnp.sum(signal) / jnp.maximum(jnp.sum(jnp.any(bundle(valid, group_size), axis=1)), 1),
        "completion_length": jnp.sum(jnp.where(valid, lengths, 0)) / rows,
        "truncated": jnp.sum(valid & rollouts.truncated) / rows,
        "missing_rewards": jnp.sum(valid & ~rollouts.rewarded),
    }


def track_entropy(entropy: Array, rollouts: RolloutBatch, seen: Array) -> tuple[Array, Array]:
    """Mean token entropy of the batch, nats, and the running (least, greatest) with it included."""
    mask = rollouts.loss_mask
    if "demonstration" in rollouts.extra:
        mask = mask & ~rollouts.extra["demonstration"][:, None]
    now = jnp.sum(jnp.where(mask, entropy, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
    return now, jnp.stack([jnp.minimum(seen[0], now), jnp.maximum(seen[1], now)])


def average(stacked: dict[str, Array]) -> dict[str, Array]:
    """One scalar a metric over the minibatches and epochs of a step: the mean, the maximum for ``*_max``, a count."""
    reduce = {name: jnp.max if name.endswith("_max") else jnp.mean for name in stacked} | {GUARDED: jnp.sum}
    return {name: reduce[name](x.astype(jnp.float32)) for name, x in stacked.items()}
