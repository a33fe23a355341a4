"""A data set of one's own: rows with a prompt, and a reward that is named or one's own function."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from salt_jax.graders import Grader
from salt_jax.tasks.records import Row
from salt_jax.tasks.references import usable
from salt_jax.tasks.settings import Files, check_text, need_tokenizer, plain, read_splits, with_suffix
from salt_jax.tasks.task import Example, Task
from salt_jax.tasks.tokenizers import Prompt, Tokenizer

HINT = "set train and test to your files: an object a row with prompt and what the reward needs"


def _text_reference(row: Row) -> str:
    return row.text("reference", "answer", numbers=True)


def _letter_reference(row: Row) -> str:
    return row.text("reference", "answer").strip()


def _code_reference(row: Row) -> str:
    value = row.value("reference")
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError) as error:
        raise row.error(f"'reference': {error}") from None


def _row_reference(row: Row) -> str:
    try:
        return json.dumps(row.columns)
    except (TypeError, ValueError) as error:
        raise row.error(f"cannot be handed to your reward as JSON: {error}") from None


# The setting `reward` → its grader and how a row's reference is read for it.
REWARDS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "math": ("salt_jax.graders.mathematics:math_equal", _text_reference),
    "multiple_choice": ("salt_jax.graders.choice:multiple_choice", _letter_reference),
    "exact_match": ("salt_jax.graders.verdict:exact_match", _text_reference),
    "code": ("salt_jax.graders.code:run_tests", _code_reference),
}


def make_jsonl(
    data_dir: str | os.PathLike[str],
    train: Files = "",
    test: Files = "",
    reward: str = "math",
    reward_arguments: Mapping[str, Any] | None = None,
    suffix: str = "",
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    """A task on files of your own, .jsonl, .jsonl.gz, .json, .csv or .parquet.

    =========================  ==========================================================================
    column                     meaning
    =========================  ==========================================================================
    prompt                     a text, or messages: a list of {role, content}, or its JSON as a text; words of
                               the assistant at their end are gone on with
    reference, or answer       the answer; for multiple_choice a letter; for code an object, {setup, tests,
                               entry_point, prefix}, of which tests, a list of programs, is required
    solution (optional)        a text that earns the full reward, for a warm start
    id (optional)              for logs; unique within the split
    =========================  ==========================================================================

    Args:
      data_dir: unused: the files are named.
      train: path or paths of the train split; '' for none.
      test: the same of the test split.
      reward: 'math', 'multiple_choice', 'exact_match' or 'code'; or 'package.module:function' of your own,
        called as function(completion: str, row: dict, **reward_arguments) -> float in a worker process that
        must be able to import it; it may return a ``salt_jax.graders.Verdict``, and may need no reference.
      reward_arguments: keywords for the reward, as time_limit of 'code'.
      suffix: what a prompt, or the user's last message in it, is followed by; '' for nothing.
      on_bad_reference: 'error', or 'skip' to leave out rows whose reference cannot be graded by (``references``).
      tokenizer: the model's.

    Returns:
      A task with the splits that files are named for.

    Raises:
      ValueError: a setting, file or row that will not do, named; a reward that cannot be imported.
    """
    tokenizer = need_tokenizer("jsonl", tokenizer)
    check_text(suffix=suffix, reward=reward)
    arguments = plain("reward_arguments", {} if reward_arguments is None else reward_arguments)
    grader, make_reference = _reward(reward, arguments)
    first: dict[str, str] = {}

    def make_example(row: Row, name: str) -> Example:
        if row.column("id") is not None:
            name = f"{name.partition('/')[0]}/{row.text('id', numbers=True)}"
        if name in first:
            raise row.error(f"the id of {name!r} is also that of {first[name]}")
        first[name] = row.where
        reference = make_reference(row)
        return Example(_prompt(row, suffix), reference, row.optional_text("solution"), name)

    sources = read_splits(HINT, make_example, train=train, test=test)
    return usable(Task("jsonl", tokenizer, sources, grader), on_bad_reference)


def _reward(reward: str, arguments: dict[str, Any]) -> tuple[Grader, Callable[[Row], str]]:
    if reward not in REWARDS and ":" not in reward:
        names = ", ".join(map(repr, REWARDS))
        raise ValueError(
            f"reward = {reward!r} is unknown; allowed: {names}, or your own 'package.module:function'"
        )
    path, make_reference = REWARDS.get(reward, (reward, _row_reference))
    try:
        parameters = inspect.signature(Grader(path).function())
        parameters.bind("", "", **arguments)
    except TypeError as error:
        raise ValueError(f"reward_arguments = {arguments!r} do not fit {path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"reward = {reward!r}: {error}") from None
    _check_types(parameters, arguments)
    if reward == "multiple_choice":
        arguments = {"choices": "ABCD"} | arguments  # by which references are checked
    if reward in REWARDS:
        return Grader(path, arguments), make_reference
    own = {"path": path} | ({"arguments": arguments} if arguments else {})
    return Grader("salt_jax.graders.custom:call_user", own), make_reference


def _check_types(signature: inspect.Signature, arguments: dict[str, Any]) -> None:
    """ValueError for a keyword of another type than its default: the text 'no' would count as True."""
    for name, value in arguments.items():
        default = signature.parameters[name].default if name in signature.parameters else None
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if isinstance(default, bool):
            fits, allowed = isinstance(value, bool), "True, False"
        elif number:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
            allowed = "numbers above 0"
        else:
            fits, allowed = not isinstance(default, str) or isinstance(value, str), "texts"
        if not fits:
            raise ValueError(f"reward_arguments: {name} = {value!r} is not allowed; allowed: {allowed}")


def _prompt(row: Row, suffix: str) -> Prompt:
    prompt = row.prompt("prompt")
    if not suffix:
        return prompt
    if isinstance(prompt, str):
        return with_suffix(prompt, suffix)
    asked = next((message for message in reversed(prompt) if message["role"] == "user"), None)
    if asked is None:
        raise row.error("'prompt' has no message of the user for suffix to stand behind")
    asked["content"] = with_suffix(asked["content"], suffix)
    return prompt
