"""What a task is: a tokenizer, examples in named splits, and a verifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from salt_jax.graders import Grades, Verifier, grade_all
from salt_jax.tasks.tokenizers import Prompt, Tokenizer


@dataclasses.dataclass(frozen=True)
class Example:
    """One problem.

    Attributes:
      prompt: a text, or the messages of a conversation; ``Tokenizer.encode_prompt`` makes it ids.
      reference: what the verifier needs to grade a completion: the answer, or a task's own text (a program of
        tests, JSON).
      solution: a text that earns the full reward, for the supervised warm start; '' where none is known.
      id: unique within the task, for people: 'train/17'.
      where: the place it was read from, for errors: 'data/x.jsonl line 3'; '' where it was made.
    """

    prompt: Prompt
    reference: str
    solution: str
    id: str
    where: str = ""


class Source(Protocol):
    """A random-access sequence of examples, as ``grain.MapDataset.source`` takes it; a list will do."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int, /) -> Example:
        """The example at an index in [0, len)."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A verifiable task.

    Attributes:
      name: for logs.
      tokenizer: writes prompts and reads completions: the model's, or the task's own.
      sources: split name → examples.
      verifier: grades one completion; a ``Grader`` where it must run in workers (``salt_jax.graders``).
      left_out: split → a line for each row whose reference cannot be used, where the task was to do without them.

    Example:
      >>> from salt_jax.tasks import CharTokenizer, exact_match
      >>> examples = [Example(prompt="1+1=", reference="2", solution="2", id="train/0")]
      >>> task = Task("sums", CharTokenizer("12+="), {"train": examples}, exact_match)
      >>> len(task.source("train")), task.grade(["2", "1"], ["2", "2"]).rewards.tolist()
      (1, [1.0, 0.0])
    """

    name: str
    tokenizer: Tokenizer
    sources: Mapping[str, Source]
    verifier: Verifier
    left_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def said_of_left_out(self) -> list[str]:
        """A line a split that rows were left out of."""
        return [
            f"{len(lines)} references of {split} cannot be used, and their rows were left out; the first is {lines[0]}"
            for split, lines in self.left_out.items()
        ]

    def source(self, split: str) -> Source:
        """Examples of a split.

        Raises:
          ValueError: an unknown split, naming those there are.
        """
        if split not in self.sources:
            raise ValueError(f"split = {split!r} is unknown; allowed: {', '.join(self.sources)}")
        return self.sources[split]

    def grade(self, completions: Sequence[str], references: Sequence[str]) -> Grades:
        """Rewards of N completions, see ``grade_all``."""
        return grade_all(self.verifier, completions, references)
