"""HumanEval: 164 Python functions to complete (Chen et al., 2021), and HumanEval+ with more tests."""

from __future__ import annotations

import json
import os
import re

from salt_jax.graders import Grader
from salt_jax.tasks.records import Row
from salt_jax.tasks.references import usable
from salt_jax.tasks.settings import Files, check_choice, check_text, need_tokenizer, read_splits
from salt_jax.tasks.task import Example, Task
from salt_jax.tasks.tokenizers import Tokenizer

HINT = (
    "HumanEval is on the Hugging Face hub as openai/openai_humaneval (164 problems) and in its authors' repository as"
    " HumanEval.jsonl.gz, HumanEval+ on the hub as evalplus/humanevalplus"
)
INSTRUCTION = "Complete this Python function. Answer with the whole function in one ```python block."


def make_humaneval(
    data_dir: str | os.PathLike[str],
    test: Files = "",
    train: Files = "",
    instruction: str = INSTRUCTION,
    time_limit: float = 6.0,
    memory_mib: int = 1024,
    sandbox: str = "full",
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    """The HumanEval task, from local files: reward 1 where a problem's tests pass.

    ===================  =======================================================
    column               meaning
    ===================  =======================================================
    task_id              'HumanEval/0', the example's id
    prompt               the function's head and docstring
    canonical_solution   the function's body
    test                 a program that defines check(candidate)
    entry_point          the function's name
    ===================  =======================================================

    Args:
      data_dir: unused: the files are named.
      test: path or paths of the test split; '' for none.
      train: the same of the train split.
      instruction: stands before the function, which is then in a code block. '' gives the function's head
        alone, for a model that continues text.
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
    tokenizer = need_tokenizer("humaneval", tokenizer)
    check_text(instruction=instruction)

    def make_example(row: Row, name: str) -> Example:
        head, body, entry_point = (
            row.text("prompt"),
            row.optional_text("canonical_solution"),
            row.text("entry_point"),
        )
        test = row.text("test")
        if not re.search(r"\bdef\s+check\b", test):
            raise row.error("'test' does not define check(candidate)")
        # The grader calls check(entry_point) itself.
        reference = {"setup": "", "tests": [test], "entry_point": entry_point, "prefix": head}
        if instruction:
            prompt, solution = (
                f"{instruction}\n\n```python\n{head.rstrip()}\n```",
                f"```python\n{head}{body}\n```",
            )
        else:
            prompt, solution = head, body
        split, _, _ = name.partition("/")
        return Example(
            prompt, json.dumps(reference), solution if body else "", f"{split}/{row.text('task_id')}"
        )

    sources = read_splits(HINT, make_example, train=train, test=test)
    grader = code_grader(time_limit, memory_mib, sandbox)
    return usable(Task("humaneval", tokenizer, sources, grader), on_bad_reference)


def code_grader(time_limit: float, memory_mib: int, sandbox: str) -> Grader:
    """Runs a completion's program and tests, within limits; where it only waits, for half as long again as that.

    Example:
      >>> code_grader(0, 1024, "full")
      Traceback (most recent call last):
      ValueError: time_limit = 0 is not allowed; allowed: seconds > 0
    """
    for name, value, unit in (("time_limit", time_limit, "seconds"), ("memory_mib", memory_mib, "MiB")):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{name} = {value!r} is not allowed; allowed: {unit} > 0")
    check_choice(("full", "limits"), sandbox=sandbox)
    arguments = {
        "time_limit": time_limit,
        "wall_limit": 1.5 * time_limit,
        "memory_mib": memory_mib,
        "sandbox": sandbox,
    }
    return Grader("salt_jax.graders.code:run_tests", arguments)
