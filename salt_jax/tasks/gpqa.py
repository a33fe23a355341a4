"""GPQA: graduate-level questions with four options (Rein et al., 2023); the diamond subset has 198."""

from __future__ import annotations

import os
import random

from salt_jax.graders import Grader
from salt_jax.tasks.records import Row
from salt_jax.tasks.references import usable
from salt_jax.tasks.settings import (
    LETTER,
    Files,
    check_integer,
    check_text,
    need_tokenizer,
    read_splits,
)
from salt_jax.tasks.task import Example, Task
from salt_jax.tasks.tokenizers import Tokenizer

HINT = "GPQA is on the Hugging Face hub as Idavidrein/gpqa (gpqa_diamond.csv, 198 questions)"
LETTERS = "ABCD"


def make_gpqa(
    data_dir: str | os.PathLike[str],
    test: Files = "",
    train: Files = "",
    suffix: str = LETTER,
    seed: int = 0,
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    """The GPQA task, from local files: the reference is the letter of the correct option.

    Columns: Question, Correct Answer, Incorrect Answer 1, 2 and 3, all texts, and Explanation, which is not
    read; each may also be written in small letters with underscores. The options of a question stand in an
    order that depends on the seed and the question's text alone, not on its place in the file.

    Args:
      data_dir: unused: the files are named.
      test: path or paths of the test split; '' for none.
      train: the same of the train split.
      suffix: what a question is followed by; '' for nothing.
      seed: of the options' orders, ≥ 0.
      on_bad_reference: 'error', or 'skip' to leave out rows whose reference cannot be graded by (``references``).
      tokenizer: the model's.

    Returns:
      A task with the splits that files are named for. There are no solutions to warm up on.

    Raises:
      ValueError: a setting, file or row that will not do, named.
    """
    tokenizer = need_tokenizer("gpqa", tokenizer)
    check_text(suffix=suffix)
    check_integer(0, seed=seed)

    def make_example(row: Row, name: str) -> Example:
        question = _text(row, "Question")
        correct = _text(row, "Correct Answer")
        options = [correct, *(_text(row, f"Incorrect Answer {i}") for i in (1, 2, 3))]
        if correct in options[1:]:
            raise row.error(f"the correct answer {correct!r} is also among the incorrect ones")
        random.Random(f"{seed} {question}").shuffle(options)  # a text seeds the same on every machine
        lines = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
        prompt = f"{question}\n\n{lines}"
        prompt = f"{prompt}\n\n{suffix}" if suffix else prompt
        return Example(prompt, LETTERS[options.index(correct)], "", name)

    sources = read_splits(HINT, make_example, train=train, test=test)
    grader = Grader("salt_jax.graders.choice:multiple_choice", {"choices": LETTERS})
    return usable(Task("gpqa", tokenizer, sources, grader), on_bad_reference)


def _text(row: Row, name: str) -> str:
    return row.text(name, name.lower().replace(" ", "_"), numbers=True).strip()
