"""MBPP: 974 short Python programs with three tests each (Austin et al., 2021), and its sanitized form."""

from __future__ import annotations

import json
import os

from salt_jax.tasks.humaneval import code_grader
from salt_jax.tasks.records import Row
from salt_jax.tasks.references import usable
from salt_jax.tasks.settings import Files, check_text, files_of, need_tokenizer, read_splits, rows_of
from salt_jax.tasks.task import Example, Task
from salt_jax.tasks.tokenizers import Tokenizer

HINT = (
    "MBPP is in its authors' repository as mbpp.jsonl (974 problems: set path) and on the Hugging Face hub as"
    " google-research-datasets/mbpp (configs full and sanitized, a file a split: set train, test)"
)
INSTRUCTION = "Answer with the whole program in one ```python block."
# Task ids of the standard split, ends included; 1 to 10 are for few-shot prompts, 511 to 600 for validation.
STANDARD_SPLIT = {"train": (601, 974), "test": (11, 510)}
KNOWN_IDS = (1, 974)


def make_mbpp(
    data_dir: str | os.PathLike[str],
    path: str = "",
    train: Files = "",
    test: Files = "",
    instruction: str = INSTRUCTION,
    time_limit: float = 6.0,
    memory_mib: int = 1024,
    sandbox: str = "full",
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    """The MBPP task, from local files: reward 1 where all of a problem's tests pass; the prompt shows them.

    ==================================  ======================================================
    column                              meaning
    ==================================  ======================================================
    task_id                             1 to 974, the example's id
    text, or prompt (sanitized)         what the program shall do
    code                                a program that does
    test_list                           assertions
    test_setup_code, or test_imports    what the assertions need: a text, or a list of lines
    ==================================  ======================================================

    Args:
      data_dir: unused: the files are named.
      path: a file with all problems, split by task_id in the standard way: 601 to 974 train (374), 11 to 510
        test (500); 1 to 10 and 511 to 600 are left out.
      train: instead, path or paths of the train split, as they are; '' for none.
      test: the same of the test split.
      instruction: what a problem is followed by; '' for nothing.
      time_limit: processor seconds that a completion and its tests may take.
      memory_mib: memory they may take, in MiB.
      sandbox: 'full' or 'limits', see ``salt_jax.graders.code``.
      on_bad_reference: 'error', or 'skip' to leave out rows whose reference cannot be graded by (``references``).
      tokenizer: the model's.

    Returns:
      A task with the splits that files are named for.

    Raises:
      ValueError: a setting, file or row that will not do, named.
    """
    tokenizer = need_tokenizer("mbpp", tokenizer)
    check_text(instruction=instruction, path=path)
    grader = code_grader(time_limit, memory_mib, sandbox)

    def make_example(row: Row, name: str) -> Example:
        return _example(row, name.partition("/")[0], instruction)

    if path and (files_of("train", train) or files_of("test", test)):
        raise ValueError("path has all problems: set either path, or train and test")
    if not path:
        given = read_splits(HINT, make_example, train=train, test=test)
        return usable(Task("mbpp", tokenizer, given, grader), on_bad_reference)
    rows = [(_task_id(row), row) for row in rows_of("path", path, HINT)]
    sources = {
        split: [_example(row, split, instruction) for i, row in rows if first <= i <= last]
        for split, (first, last) in STANDARD_SPLIT.items()
    }
    for split, (first, last) in STANDARD_SPLIT.items():
        if not sources[split]:
            raise ValueError(f"path: {path} has no task_id from {first} to {last}, the {split} split")
    return usable(Task("mbpp", tokenizer, sources, grader), on_bad_reference)


def _task_id(row: Row) -> int:
    text = row.text("task_id", numbers=True)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and KNOWN_IDS[0] <= int(text) <= KNOWN_IDS[1]):
        raise row.error(f"'task_id' must be an integer from 1 to 974, got {text!r}")
    return int(text)


def _example(row: Row, split: str, instruction: str) -> Example:
    tests = row.texts("test_list")
    if not tests:
        raise row.error("'test_list' is empty")
    if isinstance(row.columns.get("test_imports"), list):
        setup = "\n".join(row.texts("test_imports"))
    else:
        setup = row.optional_text("test_setup_code", "test_imports")
    reference = {"setup": setup, "tests": tests, "entry_point": None, "prefix": ""}
    prompt = f"{row.text('text', 'prompt').strip()}\n\nYour code should pass these tests:\n\n" + "\n".join(
        tests
    )
    prompt = f"{prompt}\n\n{instruction}" if instruction else prompt
    code = row.optional_text("code").strip()
    solution = f"```python\n{code}\n```" if code else ""
    return Example(prompt, json.dumps(reference), solution, f"{split}/{_task_id(row)}", row.where)
