"""Arithmetic: "12+34=" is continued by "46"."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from salt_jax.graders import exact_match
from salt_jax.spec import one_line
from salt_jax.tasks.arithmetic_problems import OPERATORS, ArithmeticProblems
from salt_jax.tasks.task import Example, Task
from salt_jax.tasks.tokenizers import CharTokenizer, Tokenizer

# The same for every setting, so that a policy trained on sums can go on to products.
ALPHABET = "0123456789" + "".join(OPERATORS) + "="


@dataclasses.dataclass(frozen=True)
class _Records:
    """A TFDS data source, whose texts are bytes, read as examples."""

    split: str
    records: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        answer = record["answer"].decode()
        return Example(
            record["prompt"].decode(), reference=answer, solution=answer, id=f"{self.split}/{index}"
        )


def make_arithmetic(
    data_dir: str | os.PathLike[str],
    operands: int = 2,
    digits: int = 2,
    operators: str = "+",
    num_train: int = 8000,
    num_test: int = 2000,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Task:
    """The arithmetic task; writes its data set under ``data_dir`` unless it is there already.

    Args:
      data_dir: folder of data sets; one subfolder a setting. About half a second for 10,000 problems.
      operands: numbers in a problem, 2 to 60.
      digits: most digits of a number, 1 to 60.
      operators: distinct characters of '+-*'.
      num_train: problems in the train split.
      num_test: problems in the test split.
      seed: chooses the problems, ≥ 0.
      tokenizer: None for one id a character.

    Returns:
      A task with splits 'train' and 'test' and ``exact_match``.

    Raises:
      ValueError: a setting out of range, or more problems than there are; nothing is written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as data_dir:
      ...     task = make_arithmetic(data_dir, num_train=20, num_test=5)
      ...     example = task.source("train")[0]
      ...     task.grade([example.solution, "?"], [example.reference] * 2).rewards.tolist()
      [1.0, 0.0]
    """
    problems = ArithmeticProblems(operands, digits, operators, num_train, num_test, seed)
    # TFDS takes a third of a second to import: only a run that makes this task pays for it.
    from salt_jax.tasks.arithmetic_builder import open_splits

    try:
        sources = {split: _Records(split, records) for split, records in open_splits(data_dir, problems).items()}
    except OSError:  # of the disk
        raise
    except Exception as error:  # protobuf's, array_record's and TFDS's own, of which each has a class
        what = one_line(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        raise ValueError(f"data: {data_dir} cannot be read or made: {what}; delete it, and it is made anew") from None
    return Task("arithmetic", tokenizer or CharTokenizer(ALPHABET), sources, exact_match)
