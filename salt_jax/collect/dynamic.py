"""DAPO's dynamic sampling (arXiv 2503.14476): groups whose rewards are all equal are dropped, and others sampled.

Every generation has the same shape, B prompts and G rollouts each; groups beyond the B that are needed are thrown
away, as verl does. What decides is the reward that graders give, before any shaping: a wrong answer with 0.01 beside
one with 0 is a signal, as it is to the estimators. A group without one is told apart by config.task.correct_from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from salt_jax.collect.groups import Groups, join
from salt_jax.collect.turn import CollectionError, Memory, Turn
from salt_jax.rollout import RolloutBatch


def collect(turn: Turn, data: Any, memory: Memory) -> tuple[RolloutBatch, Memory]:
    """Generation batches until B groups have signal, at most ``max_batches``.

    ``on_exhausted`` = 'error' ends the run then, as DAPO does; 'train' fills the batch up with groups that are not
    valid, so that the update sees the others alone.
    """
    wanted, settings = turn.run.rollouts.prompts_per_step, turn.settings
    kept: list[Groups] = []
    right = wrong = rounds = found = 0
    dropped: list[Groups] = []
    while found < wanted and rounds < settings.max_batches:
        groups = turn.groups(next(data), draw=rounds)
        signal = groups.with_signal()
        right_or_lost = turn.succeeded(groups) | ~groups.rewarded
        solved = right_or_lost.all(axis=1) & groups.rewarded.any(axis=1) & ~signal
        right, wrong = right + int(solved.sum()), wrong + int((~signal & ~solved).sum())
        kept.append(groups.take(signal))
        dropped.append(groups.take(~signal))
        rounds, found = rounds + 1, found + int(signal.sum())
    if found < wanted:
        if settings.on_exhausted == "error":
            raise CollectionError(
                f"step {turn.step}: {rounds} generation batches gave {found} of {wanted} groups with signal; raise"
                " config.collection.max_batches, or set config.collection.on_exhausted = 'train'"
            )
        filler = join(dropped).take(np.arange(wanted - found))
        kept.append(dataclasses.replace(filler, valid=np.zeros_like(filler.valid)))
    turn.note(
        generation_batches=rounds, share_with_signal=found / turn.prompts, all_right=right / turn.prompts,
        all_wrong=wrong / turn.prompts, groups_discarded=max(found - wanted, 0),
    )
    return turn.finish(join(kept).take(np.arange(wanted))), memory
