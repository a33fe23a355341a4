"""MATH: competition problems (Hendrycks et al., 2021); trained on its train split, tested on MATH-500."""

from __future__ import annotations

import os

from salt_jax.tasks.records import Row
from salt_jax.tasks.references import usable
from salt_jax.tasks.settings import (
    STEP_BY_STEP,
    Files,
    boxed_answer,
    check_text,
    math_grader,
    need_tokenizer,
    read_splits,
    with_suffix,
)
from salt_jax.tasks.task import Example, Task
from salt_jax.tasks.tokenizers import Tokenizer

HINT = (
    "MATH is on the Hugging Face hub as EleutherAI/hendrycks_math (7,500 training problems, a file a subject),"
    " MATH-500 as HuggingFaceH4/MATH-500 (test.jsonl, 500 problems)"
)


def make_math(
    data_dir: str | os.PathLike[str],
    train: Files = "",
    test: Files = "",
    suffix: str = STEP_BY_STEP,
    boxed_only: bool = False,
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    r"""The MATH task, from local files.

    ============================  ===========================================================
    column                        meaning
    ============================  ===========================================================
    problem, or question          LaTeX text
    solution                      LaTeX text; its last ``\boxed{…}`` is the answer
    answer (optional)             the answer; it goes before the solution's box
    ============================  ===========================================================

    Args:
      data_dir: unused: the files are named.
      train: path or paths of the train split; '' for none.
      test: the same of the test split.
      suffix: what a problem is followed by; '' for nothing.
      boxed_only: only an answer in a box counts.
      on_bad_reference: 'error', or 'skip' to leave out rows whose reference cannot be graded by (``references``).
      tokenizer: the model's.

    Returns:
      A task with the splits that files are named for.

    Raises:
      ValueError: a setting, file or row that will not do, named.
    """
    tokenizer = need_tokenizer("math", tokenizer)
    check_text(suffix=suffix)

    def make_example(row: Row, name: str) -> Example:
        solution = row.optional_text("solution")
        if row.column("answer") is None:
            answer = boxed_answer(row.text("solution"))
            if not answer:
                raise row.error("no \\boxed{...} in 'solution', and no 'answer'")
        else:
            answer = row.text("answer", numbers=True)
        return Example(with_suffix(row.text("problem", "question"), suffix), answer, solution, name)

    sources = read_splits(HINT, make_example, train=train, test=test)
    return usable(Task("math", tokenizer, sources, math_grader(boxed_only)), on_bad_reference)
