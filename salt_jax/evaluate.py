"""Held-out evaluation: the share of problems that the policy solves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from salt_jax.policy.sampler import Samples
from salt_jax.tasks import Task


class Evaluation(NamedTuple):
    """Result over a set of problems.

    Attributes:
      accuracy: share of the graded problems with reward > 0.
      problems: problems attempted.
      missing: problems whose grader failed; they are not in ``accuracy``.
      truncated: share of the problems whose completion was cut off.
    """

    accuracy: float
    problems: int
    missing: int
    truncated: float


def decode_completions(task: Task, samples: Samples) -> list[str]:
    """Texts of N completions, for graders and people; token ids go to the host once."""
    tokens, lengths = jax.device_get((samples.tokens, samples.lengths))
    return [task.tokenizer.decode(row[:length].tolist()) for row, length in zip(tokens, lengths, strict=True)]


def evaluate(generate: Callable[[Any, Any], Samples], batches: Iterable[dict[str, Any]], task: Task) -> Evaluation:
    """Accuracy of one completion a problem (avg@1).

    Args:
      generate: (prompt_tokens (B, P), prompt_mask (B, P)) -> Samples of B rows.
      batches: from ``prompt_batches`` with repeat=False; filler rows are not counted.
      task: decodes and grades.

    Returns:
      The result over all problems.

    Raises:
      ValueError: if ``batches`` is empty.
    """
    correct = graded = problems = truncated = 0
    for batch in batches:
        samples = generate(batch["prompt_tokens"], batch["prompt_mask"])
        grades = task.grade(decode_completions(task, samples), batch["references"])
        counted = batch["valid"]
        rewarded = np.asarray(grades.rewarded) & counted
        problems += int(counted.sum())
        graded += int(rewarded.sum())
        correct += int((np.where(rewarded, grades.rewards, 0.0) > 0).sum())
        truncated += int((np.asarray(jax.device_get(samples.truncated)) & counted).sum())
    if not problems:
        raise ValueError("no problem to evaluate: batches is empty")
    return Evaluation(correct / max(graded, 1), problems, problems - graded, truncated / problems)
