"""AEPO, later SCOPE-RL (arXiv 2510.08141): rows from a second sampling at another temperature steer the entropy.

After the release: the first quarter of the prompts is sampled again, hot where the entropy of the step before was at or
below its target, else cold; successes with a positive group advantage replace rows of the batch, and their advantage
becomes 1. Three things differ. The release asks for the advantage alone: the same with two rewards, but of failures
that are graded 0 and 0.01 it would take the latter. The release puts them into the first rows of the batch, whatever
their prompt; here they take the first rows of their own prompt's group, for all rows of a group have one prompt. And
the entropy of the step before is estimated from its sampler's log-probs.

A row that is injected keeps the reward of the row it replaces, where that one was graded: the group's statistics stay
those of the policy's own rollouts, from which the release takes advantages before it replaces anything. A penalty for
length, KL in the reward or an entropy is still that of the injected completion.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from salt_jax.collect.ada import rows_of
from salt_jax.collect.groups import Groups, join
from salt_jax.collect.turn import Engine, Memory, Turn
from salt_jax.objective.advantages import group_advantages
from salt_jax.objective.aepo import entropy_estimate, injection
from salt_jax.rollout import RolloutBatch


def start(engine: Engine) -> Memory:
    """The release's entropy before the first step: 0, so that it samples hot."""
    return {"entropy": np.zeros(())}


def collect(turn: Turn, data: Any, memory: Memory) -> tuple[RolloutBatch, Memory]:
    """Extra: 'injected'."""
    settings, shards = turn.settings, turn.engine.shards
    batch = next(data)
    groups = turn.groups(batch, draw=0)
    entropy = float(memory["entropy"])
    hot = entropy <= settings.entropy_target  # as objective.aepo.temperature_for; a static number, for the sampler
    temperature = settings.temperature_high if hot else settings.temperature_low
    again = -(-max(len(groups) // 4, 1) // shards) * shards
    extra_groups = turn.groups(rows_of(batch, list(range(again))), draw=1, temperature=temperature, new=False)
    injected, chosen = placed(extra_groups, turn.succeeded(extra_groups), entropy, settings)
    own, other = groups.take(slice(0, again)), extra_groups.pick(chosen)
    taken = own.put(injected & own.rewarded, other, but=("rewards", "components"))
    taken = taken.put(injected & ~own.rewarded, other)  # nothing to keep there
    whole = join([taken, groups.take(slice(again, None))])
    mask = np.arange(groups.tokens.shape[2]) < groups.lengths[..., None]
    now = float(jax.device_get(entropy_estimate(
        jnp.asarray(groups.log_probs.reshape(-1, mask.shape[2])), jnp.asarray(mask.reshape(-1, mask.shape[2]))
    )))
    turn.note(entropy=now, injected=int(injected.sum()), temperature=temperature)
    rest = np.zeros((len(groups) - again, groups.size), bool)
    return turn.finish(whole, {"injected": np.concatenate([injected, rest])}), {"entropy": np.asarray(now)}


def placed(pool: Groups, right: np.ndarray, entropy: float, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of the pool's groups are replaced, (b, G) bool, and by which rollout of the pool, (b, G) int.

    ``right``, (b, G) bool, says which rollouts of the pool succeeded.
    """
    advantages = group_advantages(
        jnp.asarray(np.where(pool.rewarded, pool.rewards, 0.0)), estimator="grpo", rewarded=jnp.asarray(pool.rewarded)
    )
    order, count = jax.device_get(injection(
        jnp.where(right, advantages, -jnp.inf).reshape(-1), entropy, settings.entropy_target, settings.max_injected,
        settings.inject_above,
    ))
    injected = np.zeros(pool.rewards.shape, bool)
    chosen = np.zeros(pool.rewards.shape, np.int64)
    for row in order[: int(count)].tolist():
        group, rollout = divmod(row, pool.size)
        place = int(injected[group].sum())
        injected[group, place], chosen[group, place] = True, rollout
    return injected, chosen
