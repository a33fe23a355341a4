"""Graded groups of rollouts on the host, where they are put together anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

from salt_jax.graders import Grades
from salt_jax.policy.sampler import Samples


class Flat(NamedTuple):
    """Groups as N = B·g rows.

    Attributes:
      samples: N completions. rewards: (N,) float32. rewarded: (N,) bool. valid: (N,) bool. texts: N texts.
      answers: N answers or None. components: (N, K), K = 0 where graders give none.
    """

    samples: Samples
    rewards: np.ndarray
    rewarded: np.ndarray
    valid: np.ndarray
    texts: list[str]
    answers: list[str | None]
    components: np.ndarray


@struct.dataclass
class Groups:
    """B groups of g rollouts, all NumPy arrays.

    Attributes:
      prompts: (B, P) int32. prompt_mask: (B, P) bool. ids: (B,) texts.
      tokens: (B, g, T) int32. log_probs: (B, g, T) float32. lengths: (B, g) int32. truncated: (B, g) bool.
      rewards: (B, g) float32, NaN where missing. rewarded: (B, g) bool. valid: (B, g) bool.
      texts: (B, g) texts. answers: (B, g) texts or None. components: (B, g, K) float32.
    """

    prompts: np.ndarray
    prompt_mask: np.ndarray
    ids: np.ndarray
    tokens: np.ndarray
    log_probs: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    rewards: np.ndarray
    rewarded: np.ndarray
    valid: np.ndarray
    texts: np.ndarray
    answers: np.ndarray
    components: np.ndarray

    def __len__(self) -> int:
        """B."""
        return len(self.ids)

    @property
    def size(self) -> int:
        """g."""
        return self.rewards.shape[1]

    def take(self, which: Any) -> Groups:
        """Some of the groups, by indices or a mask."""
        return jax.tree.map(lambda x: x[which], self)

    def pick(self, rows: np.ndarray) -> Groups:
        """(B, n) rollouts of each group, in that order."""
        at = np.arange(len(self))[:, None]
        return self._of_rollouts(lambda x: x[at, rows])

    def put(self, where: np.ndarray, other: Groups, but: Sequence[str] = ()) -> Groups:
        """Another's rollouts, ``but`` some of their fields, where ``where`` (B, g) is true; same shape and prompts."""
        mine, theirs = _same_width([self, other])

        def choose(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.where(np.reshape(where, where.shape + (1,) * (x.ndim - 2)), y, x)

        return dataclasses.replace(
            mine,
            **{name: choose(getattr(mine, name), getattr(theirs, name)) for name in OF_ROLLOUTS if name not in but},
        )

    def flat(self) -> Flat:
        """As rows, groups contiguous."""
        def rows(x: np.ndarray) -> np.ndarray:
            return np.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))

        completions: dict[str, Any] = {
            name: rows(getattr(self, name)) for name in ("tokens", "lengths", "log_probs", "truncated")
        }
        return Flat(
            Samples(**completions), rows(self.rewards), rows(self.rewarded), rows(self.valid),
            rows(self.texts).tolist(), rows(self.answers).tolist(), rows(self.components),
        )

    def with_signal(self) -> np.ndarray:
        """(B,) bool: at least two different rewards among the graded."""
        known = np.where(self.rewarded, self.rewards, -np.inf)
        least = np.where(self.rewarded, self.rewards, np.inf)
        return known.max(axis=1) > least.min(axis=1)

    def _of_rollouts(self, change: Any) -> Groups:
        return dataclasses.replace(self, **{name: change(getattr(self, name)) for name in OF_ROLLOUTS})


OF_ROLLOUTS = (
    "tokens", "log_probs", "lengths", "truncated", "rewards", "rewarded", "valid", "texts", "answers", "components",
)  # fmt: skip


def of_batch(
    batch: Mapping[str, Any], samples: Samples, grades: Grades, texts: Sequence[str], only: int
) -> Groups:
    """The first ``only`` prompts of a batch with their graded completions, N = only · g rows on the host."""
    def grouped(x: Any, dtype: Any = None) -> np.ndarray:
        x = np.asarray(x, dtype)
        return np.reshape(x, (only, len(texts) // only, *x.shape[1:]))

    parts = np.zeros((len(texts), 0), np.float32) if grades.components is None else grades.components
    return Groups(
        prompts=batch["prompt_tokens"][:only], prompt_mask=batch["prompt_mask"][:only],
        ids=np.asarray(batch["ids"][:only], object), tokens=grouped(samples.tokens),
        log_probs=grouped(samples.log_probs), lengths=grouped(samples.lengths), truncated=grouped(samples.truncated),
        rewards=grouped(grades.rewards), rewarded=grouped(grades.rewarded), valid=grouped(np.ones(len(texts), bool)),
        texts=grouped(texts, object), answers=grouped(grades.answers or [None] * len(texts), object),
        components=grouped(parts),
    )


def join(parts: Sequence[Groups]) -> Groups:
    """Groups of all parts, one after another."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), *_same_width(parts))


def pool(parts: Sequence[Groups]) -> Groups:
    """The rollouts of the same groups out of several rounds, one round after another."""
    parts = _same_width(parts)
    joined = {name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in OF_ROLLOUTS}
    return dataclasses.replace(parts[0], **joined)


def _same_width(parts: Sequence[Groups]) -> list[Groups]:
    """Components of all parts with the same K: a part whose graders all failed has none."""
    width = max(part.components.shape[2] for part in parts)

    def widened(part: Groups) -> Groups:
        held = part.components.shape[2]
        if held == width:
            return part
        filler = np.full((*part.components.shape[:2], width - held), np.nan, np.float32)
        return dataclasses.replace(part, components=np.concatenate([part.components, filler], axis=2))

    return [widened(part) for part in parts]
