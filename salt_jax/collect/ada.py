"""Reinforce-Ada, the sequential form (arXiv 2510.04996): rounds of rollouts until a prompt has what it needs.

The prompts that are still active are sampled together, in batches of B, B/2, B/4 … so that few programs are compiled;
what fills such a batch up is thrown away ungraded. Of each pool G rollouts stay (``allocation.downsample``), and the
baseline of all of them is the success rate of the whole pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from salt_jax.collect import allocation
from salt_jax.collect.groups import Groups, join, pool
from salt_jax.collect.turn import Memory, Turn
from salt_jax.rollout import RolloutBatch


def collect(turn: Turn, data: Any, memory: Memory) -> tuple[RolloutBatch, Memory]:
    """Extra: 'baseline', each pool's success rate; 'weight', 1 or with ``pool_weight`` = 'inverse_rate' its inverse."""
    settings, n = turn.settings, turn.group_size
    correct_from = turn.run.correct_from
    rule: dict[str, Any] = {
        "mode": settings.exit_rule, "k_positive": settings.positives, "correct_from": correct_from,
    }
    batch = next(data)
    whole = len(batch["ids"])
    sizes = buckets(whole, turn.engine.shards)
    pools: list[list[Groups]] = [[] for _ in range(whole)]
    active, rounds = list(range(whole)), 0
    while active and rounds < settings.max_rounds:
        size = min(size for size in sizes if size >= len(active))
        part = rows_of(batch, active + [active[0]] * (size - len(active)))
        drawn = turn.groups(
            part, draw=rounds, rollouts=settings.round_rollouts or n, only=len(active), new=rounds == 0
        )
        for i, prompt in enumerate(active):
            pools[prompt].append(drawn.take([i]))
        rounds += 1
        active = [i for i in active if not allocation.finished(known_rewards(pool(pools[i])), n, **rule)]
    whole_pools = [pool(parts) for parts in pools]
    rewards = [known_rewards(groups) for groups in whole_pools]
    rows = [allocation.downsample(r, n, **rule) for r in rewards]
    rates = np.array([allocation.pool_baseline(r, correct_from) for r in rewards])
    weights = allocation.sequential_weights(rates) if settings.pool_weight == "inverse_rate" else np.ones(whole)
    turn.note(
        rounds=rounds, unresolved=len(active) / whole, pool_success=float(rates.mean()),
        pool_size=turn.rollouts / whole,
    )
    groups = join([groups.pick(row[None]) for groups, row in zip(whole_pools, rows, strict=True)])
    return turn.finish(groups, {"baseline": rates, "weight": weights}), memory


def buckets(prompts: int, shards: int) -> list[int]:
    """Batch sizes that a round may have: B, its half, … that the devices divide.

    Example:
      >>> buckets(12, 1), buckets(8, 4)
      ([12, 6, 3, 2, 1], [8, 4])
    """
    sizes = [prompts]
    while sizes[-1] > shards:
        half = -(-sizes[-1] // 2)
        sizes.append(-(-half // shards) * shards)
    return sizes


def rows_of(batch: Mapping[str, Any], which: list[int]) -> dict[str, Any]:
    """Some prompts of a batch, one more than once where it is named more than once."""
    arrays = {name: batch[name][which] for name in ("prompt_tokens", "prompt_mask")}
    return arrays | {name: [batch[name][i] for i in which] for name in ("references", "ids")}


def known_rewards(groups: Groups) -> np.ndarray:
    """(g,) rewards of one group, NaN where missing."""
    return np.where(groups.rewarded[0], groups.rewards[0], np.nan)
