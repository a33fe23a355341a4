"""Reinforce-Ada, the estimated form (arXiv 2510.04996 v3, Alg. 1): counts from each prompt's running success rate.

D prompts share the B slots of a step, a slot being G rollouts: N_x ∝ 1/√(p̂_x + ε) slots between ``min_slots`` and
``max_slots``, in whole numbers. The paper allocates rollouts one by one; slots keep the batch's shape, in which the
rows of a group have one prompt. Its λ, Beta prior, ε and bounds are not published in what this was written from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from salt_jax.collect import allocation
from salt_jax.collect.ada import rows_of
from salt_jax.collect.turn import Engine, Memory, Turn
from salt_jax.rollout import RolloutBatch


def start(engine: Engine) -> Memory:
    """Nothing drawn from any problem yet."""
    counts = allocation.EmaCounts.start(len(rows_by_id(engine)))
    return {"total": counts.total, "positive": counts.positive}


def rows_by_id(engine: Engine) -> dict[str, int]:
    """A number for each problem; one that a mixture repeats has one number."""

    def make() -> dict[str, int]:
        found: dict[str, int] = {}
        for i in range(len(engine.source)):
            found.setdefault(engine.source[i].id, len(found))
        return found

    return engine.made("rows_by_id", make)


def collect(turn: Turn, data: Any, memory: Memory) -> tuple[RolloutBatch, Memory]:
    """Extra: 'baseline', the mean r̄ of a prompt's rollouts; 'weight', 1/√(r̄ + ε)."""
    settings, slots = turn.settings, turn.run.rollouts.prompts_per_step
    batch = next(data)
    known = rows_by_id(turn.engine)
    numbers = np.array([known[name] for name in batch["ids"]])
    counts = allocation.EmaCounts(memory["total"], memory["positive"])
    prior = {name: getattr(settings, name) for name in ("prior_positive", "prior_negative")}
    rates = allocation.estimate(counts, **prior)[numbers]
    shares = allocation.allocate(rates, slots, settings.min_slots, settings.max_slots, settings.rate_eps)
    given = allocation.integer_counts(shares, slots)
    which = np.repeat(np.arange(len(numbers)), given)
    groups = turn.groups(rows_of(batch, which.tolist()), draw=0)
    turn.prompts = len(numbers)

    graded = np.bincount(which, groups.rewarded.sum(axis=1), len(numbers))
    rewards = np.where(groups.rewarded, groups.rewards, 0.0).astype(np.float64)
    means = np.bincount(which, rewards.sum(axis=1), len(numbers)) / np.maximum(graded, 1)
    hits = np.bincount(which, turn.succeeded(groups).sum(axis=1), len(numbers))
    seen = hits / np.maximum(graded, 1)
    # the same problem twice in a batch, where an epoch ends in it: its counts are one visit's
    visited, place = np.unique(numbers, return_inverse=True)
    counts = allocation.update_counts(
        counts, visited, np.bincount(place, graded), np.bincount(place, hits), decay=settings.count_decay
    )
    turn.note(
        largest_share=float(given.max()), estimated_success=float(rates.mean()), success=float(seen.mean()),
        estimate_error=float(np.abs(rates - seen).mean()),
    )
    extra = {"baseline": means[which], "weight": allocation.est_weights(means, settings.rate_eps)[which]}
    return turn.finish(groups, extra), {"total": counts.total, "positive": counts.positive}
