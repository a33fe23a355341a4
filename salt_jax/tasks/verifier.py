"""Verifiers: a completion and a reference answer become a reward, or a *missing* reward, never a silent 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

FLOAT32_MAX = float(np.finfo(np.float32).max)


class Verifier(Protocol):
    """Grades one completion; may raise, which makes the reward missing."""

    def __call__(self, completion: str, reference: str) -> float:
        """Reward of a completion, a finite number."""


@dataclasses.dataclass(frozen=True)
class ErrorReport:
    """What went wrong while grading.

    Attributes:
      count: number of completions whose grader failed.
      first: message of the first failure, '' if there was none.
    """

    count: int
    first: str


class Grades(NamedTuple):
    """Rewards of N completions.

    Attributes:
      rewards: (N,) float32; NaN where missing, so that nothing can take it for a reward.
      rewarded: (N,) bool, false where the grader failed.
      errors: count and first message of the failures.
    """

    rewards: np.ndarray
    rewarded: np.ndarray
    errors: ErrorReport


def exact_match(completion: str, reference: str) -> float:
    """1.0 if both texts are equal once white space around them is removed, else 0.0.

    =================  ==========  =======
    completion         reference   reward
    =================  ==========  =======
    ``' 46 '``         ``'46'``    1
    ``'046'``          ``'46'``    0
    ``'12+34=46'``     ``'46'``    0
    ``'4 6'``          ``'46'``    0
    =================  ==========  =======

    Args:
      completion: what the policy wrote.
      reference: the answer.

    Returns:
      0.0 or 1.0.

    Example:
      >>> exact_match(" 46\\n", "46"), exact_match("146", "46")
      (1.0, 0.0)
    """
    return float(completion.strip() == reference.strip())


def grade_all(verifier: Verifier, completions: Sequence[str], references: Sequence[str]) -> Grades:
    """Grades every completion; a grader that raises or returns no finite number gives a missing reward.

    Args:
      verifier: called as verifier(completion, reference), in order.
      completions: N texts.
      references: N answers.

    Returns:
      ``Grades``.

    Raises:
      ValueError: if the two lengths differ.

    Example:
      >>> grades = grade_all(lambda c, r: float(c) / float(r), ["2", "1", "x"], ["4", "0", "1"])
      >>> grades.rewards.tolist(), grades.rewarded.tolist()
      ([0.5, nan, nan], [True, False, False])
      >>> grades.errors
      ErrorReport(count=2, first='ZeroDivisionError: float division by zero')
    """
    if len(completions) != len(references):
        raise ValueError(f"{len(completions)} completions do not match {len(references)} references")
    rewards = np.full(len(completions), np.nan, np.float32)
    messages = []
    for i, (completion, reference) in enumerate(zip(completions, references, strict=True)):
        try:
            reward = float(verifier(completion, reference))
            if not abs(reward) <= FLOAT32_MAX:
                raise ValueError(f"the verifier returned {reward}, not a finite float32")
            rewards[i] = reward
        except Exception as error:  # whatever a grader throws: counted and reported, not hidden
            messages.append(f"{type(error).__name__}: {error}")
    return Grades(rewards, np.isfinite(rewards), ErrorReport(len(messages), messages[0] if messages else ""))
