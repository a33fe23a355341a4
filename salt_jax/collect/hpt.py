"""HPT (arXiv 2509.04419): a prompt that the policy fails learns from its demonstration, the others from their rollouts.

P = share of a prompt's graded rollouts that succeeded. P ≤ gate: its G rows become one row with the problem's own
solution and G − 1 rows that are not valid; else they stay. A prompt of which nothing was graded stays: nothing is
known of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from salt_jax.collect.groups import Groups
from salt_jax.collect.turn import Memory, Turn
from salt_jax.objective.hpt import hpt_gate, success_rate
from salt_jax.rollout import RolloutBatch


def collect(turn: Turn, data: Any, memory: Memory) -> tuple[RolloutBatch, Memory]:
    """Extra: 'demonstration'; such a row has reward 1 and no sampler's log-probs."""
    batch = next(data)
    groups = turn.groups(batch, draw=0)
    rates = success_rate(groups.rewards, groups.rewarded, turn.run.correct_from)
    success = np.asarray(rates)  # NaN where nothing was graded
    fails = np.asarray(hpt_gate(success, turn.settings.hpt_gate)[1])
    known = success[~np.isnan(success)]
    turn.note(demonstrations=float(fails.mean()), success=float(known.mean()) if known.size else 0.0)
    demonstration = np.zeros(groups.rewards.shape, bool)
    demonstration[fails, 0] = True
    texts = np.array([turn.engine.task.tokenizer.decode(row[mask].tolist()) for row, mask in zip(
        batch["completion_tokens"], batch["completion_mask"], strict=True
    )], object)
    replaced = demonstrated(groups, fails, batch["completion_tokens"], batch["completion_mask"], texts)
    return turn.finish(replaced, {"demonstration": demonstration}), memory


def demonstrated(
    groups: Groups, fails: np.ndarray, tokens: np.ndarray, mask: np.ndarray, texts: np.ndarray
) -> Groups:
    """Groups with a demonstration in the first row of those that fail, their other rows not valid.

    Args:
      groups: B groups.
      fails: (B,) bool.
      tokens: (B, T) int32, solutions with their end token. mask: (B, T) bool. texts: (B,) the solutions.
    """
    first = np.zeros(groups.rewards.shape, bool)
    first[:, 0] = True
    here = fails[:, None] & first

    def at(x: np.ndarray, value: Any) -> np.ndarray:
        where = here[..., None] if x.ndim == 3 else here
        return np.where(where, value, x)

    return dataclasses.replace(
        groups,
        tokens=at(groups.tokens, tokens[:, None]).astype(groups.tokens.dtype),
        lengths=at(groups.lengths, mask.sum(axis=1)[:, None]).astype(groups.lengths.dtype),
        log_probs=at(groups.log_probs, np.float32(0)),
        truncated=at(groups.truncated, False),
        rewards=at(groups.rewards, np.float32(1)),
        rewarded=at(groups.rewarded, True),
        valid=groups.valid & (~fails[:, None] | first),
        texts=at(groups.texts, texts[:, None]),
        answers=at(groups.answers, None),
    )
