"""DAPO-Math-17k: 17,398 problems with integer answers (Yu et al., 2025), to train on."""

from __future__ import annotations

import os
import re

from absl import logging

from salt_jax.tasks.records import Row
from salt_jax.tasks.references import usable
from salt_jax.tasks.settings import (
    STEP_BY_STEP,
    Files,
    check_choice,
    check_text,
    files_of,
    math_grader,
    need_tokenizer,
    rows_of,
    with_suffix,
)
from salt_jax.tasks.task import Example, Task
from salt_jax.tasks.tokenizers import Tokenizer

HINT = (
    "DAPO-Math-17k is on the Hugging Face hub as BytedTsinghua-SIA/DAPO-Math-17k (dapo-math-17k.parquet) and,"
    " processed, as open-r1/DAPO-Math-17k-Processed (config all)"
)
# The instruction that the original puts around each problem; it asks for another form than our graders'.
_BEFORE = re.compile(r"\s*Solve the following math problem step by step\.[^\n]*\n\s*")
_AFTER = re.compile(r'Remember to put your answer on its own line after "Answer:"\.?\s*\Z')


def make_dapo_math(
    data_dir: str | os.PathLike[str],
    train: Files = "",
    test: Files = "",
    wrapper: str = "strip",
    suffix: str = STEP_BY_STEP,
    boxed_only: bool = False,
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    """The DAPO-Math-17k task, from local files in either of its two forms.

    ==============  =====================================================  =========================
    form            the problem                                            the answer
    ==============  =====================================================  =========================
    original        prompt: a list with one message, {role, content}       reward_model.ground_truth
    processed       prompt: text                                           solution, or answer
    ==============  =====================================================  =========================

    The original holds each problem about a hundred times; a problem is kept where it first occurs. How many
    rows were left out, and how many of those had another answer, is logged.

    Args:
      data_dir: unused: the files are named.
      train: path or paths of the train split; '' for none.
      test: the same of a test split, should you have one.
      wrapper: 'strip' takes away the original's instruction around a problem, the text that begins with
        "Solve the following math problem step by step." and ends with 'on its own line after "Answer:".';
        a message that lacks it, or a text with only half of it, is an error. 'keep' takes prompts as they are.
      suffix: what a problem is followed by; '' for nothing.
      boxed_only: only an answer in a box counts.
      on_bad_reference: 'error', or 'skip' to leave out rows whose reference cannot be graded by (``references``).
      tokenizer: the model's.

    Returns:
      A task with the splits that files are named for. There are no solutions to warm up on.

    Raises:
      ValueError: a setting, file or row that will not do, named.
    """
    tokenizer = need_tokenizer("dapo_math", tokenizer)
    check_choice(("strip", "keep"), wrapper=wrapper)
    check_text(suffix=suffix)
    splits = {name: files for name, files in (("train", train), ("test", test)) if files_of(name, files)}
    if not splits:
        raise ValueError(f"train is not set; {HINT}")
    sources = {name: _unique(name, files, wrapper == "strip", suffix) for name, files in splits.items()}
    return usable(Task("dapo_math", tokenizer, sources, math_grader(boxed_only)), on_bad_reference)


def _unique(split: str, files: Files, strip: bool, suffix: str) -> list[Example]:
    answers: dict[str, tuple[str, str]] = {}  # and where they stand
    rows = contradicted = 0
    for row in rows_of(split, files, HINT):
        rows += 1
        problem, answer = _problem(row, strip).strip(), _answer(row).strip()
        contradicted += answers.setdefault(problem, (answer, row.where))[0] != answer
    logging.info(
        "dapo_math, %s: %d problems; %d rows repeat one, %d of them with another answer",
        split, len(answers), rows - len(answers), contradicted,
    )  # fmt: skip
    return [
        Example(with_suffix(problem, suffix), answer, "", f"{split}/{i}", where)
        for i, (problem, (answer, where)) in enumerate(answers.items())
    ]


def _problem(row: Row, strip: bool) -> str:
    prompt = row.prompt("prompt", "problem")
    if isinstance(prompt, str):
        return _unwrapped(row, prompt, False) if strip else prompt
    if len(prompt) != 1:
        raise row.error("'prompt' must be text or a list with one message, {role, content}")
    text = prompt[0]["content"]
    return _unwrapped(row, text, True) if strip else text


def _unwrapped(row: Row, text: str, expected: bool) -> str:
    before, after = _BEFORE.match(text), _AFTER.search(text)
    if before and after and before.end() < after.start():
        return text[before.end() : after.start()]
    if before or after or expected:
        raise row.error(
            f"'prompt' is not a problem with DAPO's instruction before and after it: {text[:60]!r}...;"
            " wrapper = 'keep' takes prompts as they are"
        )
    return text


def _answer(row: Row) -> str:
    if row.column("reward_model") is None:
        return row.text("solution", "answer", numbers=True)
    model = row.value("reward_model")
    if not isinstance(model, dict):
        raise row.error(f"'reward_model' must be an object with 'ground_truth', got {type(model).__name__}")
    return Row(f"{row.where} 'reward_model'", model).text("ground_truth", numbers=True)
