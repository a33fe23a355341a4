"""AIME: the American Invitational Mathematics Examination, 30 problems a year, answers from 0 to 999."""

from __future__ import annotations

import os

from salt_jax.tasks.records import Row
from salt_jax.tasks.references import usable
from salt_jax.tasks.settings import (
    STEP_BY_STEP,
    Files,
    check_text,
    math_grader,
    need_tokenizer,
    read_splits,
    with_suffix,
)
from salt_jax.tasks.task import Example, Task
from salt_jax.tasks.tokenizers import Tokenizer

HINT = (
    "AIME problems are on the Hugging Face hub, 30 a year, as HuggingFaceH4/aime_2024, math-ai/aime25 and"
    " Maxwell-Jia/AIME_2024"
)


def make_aime(
    data_dir: str | os.PathLike[str],
    test: Files = "",
    train: Files = "",
    suffix: str = STEP_BY_STEP,
    boxed_only: bool = False,
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    """The AIME task, from local files: for evaluation, one file a year; earlier years may be trained on.

    ==============================  =============================================
    column                          meaning
    ==============================  =============================================
    problem, Problem or question    text
    answer or Answer                an integer from 0 to 999; '033' is 33
    solution or Solution            text, optional
    ==============================  =============================================

    Args:
      data_dir: unused: the files are named.
      test: path or paths of the test split; '' for none.
      train: the same of the train split.
      suffix: what a problem is followed by; '' for nothing.
      boxed_only: only an answer in a box counts.
      on_bad_reference: 'error', or 'skip' to leave out rows whose reference cannot be graded by (``references``).
      tokenizer: the model's.

    Returns:
      A task with the splits that files are named for.

    Raises:
      ValueError: a setting, file or row that will not do, named.
    """
    tokenizer = need_tokenizer("aime", tokenizer)
    check_text(suffix=suffix)

    def make_example(row: Row, name: str) -> Example:
        answer = row.text("answer", "Answer", numbers=True).strip()
        if not (answer.isascii() and answer.isdigit() and len(answer.lstrip("0")) <= 3):
            raise row.error(f"the answer {answer!r} is no integer from 0 to 999")
        problem = with_suffix(row.text("problem", "Problem", "question"), suffix)
        return Example(problem, answer.lstrip("0") or "0", row.optional_text("solution", "Solution"), name)

    sources = read_splits(HINT, make_example, train=train, test=test)
    return usable(Task("aime", tokenizer, sources, math_grader(boxed_only)), on_bad_reference)
