"""What the tasks on data sets share: checks of their settings, the wording of prompts, splits read from files."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import glob
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from salt_jax.graders import Grader
from salt_jax.graders.extract import last_boxed
from salt_jax.tasks.paths import expanded
from salt_jax.tasks.records import Row, read_rows
from salt_jax.tasks.task import Example
from salt_jax.tasks.tokenizers import Tokenizer

# What a mathematical problem is followed by, one space between: the setting `suffix` of the tasks.
STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."
LETTER = "Please reason step by step, and put the letter of your answer within \\boxed{}."

_BARE_BOX = re.compile(r"\\boxed\s+([^\s$.{}]+)")

Files = str | Sequence[str]  # a path, or several whose rows follow each other; '' for none
MakeExample = Callable[[Row, str], Example]


def need_tokenizer(task: str, tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer, which a task on real texts cannot do without.

    Example:
      >>> need_tokenizer("gsm8k", None)
      Traceback (most recent call last):
      ValueError: name = 'gsm8k' needs a model's tokenizer; allowed with config.model.path set
    """
    if tokenizer is None:
        raise ValueError(f"name = {task!r} needs a model's tokenizer; allowed with config.model.path set")
    return tokenizer


def check_text(**settings: Any) -> None:
    """ValueError for a setting that is no text.

    Example:
      >>> check_text(suffix=3)
      Traceback (most recent call last):
      ValueError: suffix = 3 is not allowed; allowed: texts
    """
    for name, value in settings.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} = {value!r} is not allowed; allowed: texts")


def check_flag(**settings: Any) -> None:
    """ValueError for a setting that is neither True nor False."""
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} = {value!r} is not allowed; allowed: True, False")


def check_integer(least: int, most: int | None = None, **settings: Any) -> None:
    """ValueError for a setting that is no integer of [least, most].

    Example:
      >>> check_integer(1, num_train=0)
      Traceback (most recent call last):
      ValueError: num_train = 0 is not allowed; allowed: integers >= 1
    """
    for name, value in settings.items():
        inside = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not inside or (most is not None and value > most):
            allowed = f">= {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"{name} = {value!r} is not allowed; allowed: integers {allowed}")


def check_choice(allowed: Collection[str], **settings: Any) -> None:
    """ValueError for a setting that is none of some texts."""
    for name, value in settings.items():
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{name} = {value!r} is not allowed; allowed: {', '.join(map(repr, allowed))}")


def plain(name: str, value: Any) -> dict[str, Any]:
    """A nested section of settings, as dictionaries.

    Example:
      >>> plain("settings", {"a": {"b": 1}})
      {'a': {'b': 1}}
    """
    value = value.to_dict() if hasattr(value, "to_dict") else value  # ConfigDict
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} = {value!r} is not allowed; allowed: a mapping of settings")
    return dict(value)


def with_suffix(problem: str, suffix: str) -> str:
    """A problem and what it is to be answered with, joined by a space.

    Example:
      >>> with_suffix("What is 1+1?\\n", "Be brief."), with_suffix("1+1=", "")
      ('What is 1+1? Be brief.', '1+1=')
    """
    return f"{problem.strip()} {suffix}" if suffix else problem.strip()


def math_grader(boxed_only: bool, last_number: bool = False) -> Grader:
    """Mathematical equality with a plain answer; settings that are the grader's own defaults are left out."""
    check_flag(boxed_only=boxed_only, last_number=last_number)
    given = {"boxed_only": boxed_only, "last_number": last_number}
    arguments = {name: value for name, value in given.items() if value}
    return Grader("salt_jax.graders.mathematics:math_equal", arguments)


def boxed_answer(solution: str) -> str | None:
    r"""What stands inside a solution's last box, or after its last ``\boxed``, without braces; None if nowhere.

    Example:
      >>> boxed_answer(r"so \boxed{1} or $\boxed{\frac{3}{4}}$."), boxed_answer(r"so $\boxed 5$.")
      ('\\frac{3}{4}', '5')
    """
    bare = _BARE_BOX.findall(solution)
    return last_boxed(solution) or (bare[-1] if bare else None)


def files_of(setting: str, value: Any) -> tuple[str, ...]:
    """The files of a setting: a path, several, or '' for none.

    Several are a list, or one text, as the command line has it: "a.jsonl,b.jsonl", "('a.jsonl', 'b.jsonl')". A
    pattern, "data/*.jsonl", stands for the files that match it, sorted. A file that there is under a name with a comma
    or a star in it is that file.

    Raises:
      ValueError: something else, a pattern that nothing matches, a file that is named twice.

    Example:
      >>> files_of("train", "a.jsonl"), files_of("train", ""), files_of("train", ("a.jsonl", "b.jsonl"))
      (('a.jsonl',), (), ('a.jsonl', 'b.jsonl'))
    """
    paths = _listed(value) if isinstance(value, str) else value
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"{setting} = {value!r} is not allowed; allowed: the path of a file, or several")
    found: list[str] = []
    for path in paths:
        try:
            path = expanded(path)
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from None
        pattern = glob.has_magic(path) and not os.path.exists(path)
        matches = sorted(filter(os.path.isfile, glob.iglob(path, recursive=True))) if pattern else [path]
        if not matches:
            raise ValueError(f"{setting}: {path} matches no file")
        found += matches
    where = [os.path.realpath(path) for path in found]
    twice = next((path for i, path in enumerate(found) if where[i] in where[:i]), None)
    if twice is not None:
        raise ValueError(f"{setting} names {twice} twice; name each file once")
    return tuple(found)


def _listed(text: str) -> Any:
    """The list that a text is: of Python, or with commas; the text alone where it names a file as it is."""
    if not text or os.path.exists(os.path.expanduser(text)):
        return [text] if text else []
    if text[0] in "([":
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return ast.literal_eval(text)
    return [part.strip() for part in text.split(",")]


def rows_of(setting: str, value: Any, hint: str) -> Iterator[Row]:
    """The rows of all files of a setting."""
    return itertools.chain.from_iterable(
        read_rows(path, setting=setting, hint=hint) for path in files_of(setting, value)
    )


def read_splits(hint: str, make_example: MakeExample, **splits: Any) -> dict[str, list[Example]]:
    """Split → examples, for the splits that a file is named for.

    Args:
      hint: which files are meant and where they can be got.
      make_example: called with a row and its id, 'train/17'.
      **splits: split → ``Files``.

    Raises:
      ValueError: no file at all; a file or row that will not do.
    """
    if not any(files_of(split, value) for split, value in splits.items()):
        raise ValueError(f"{' and '.join(splits)} {'are' if len(splits) > 1 else 'is'} not set; {hint}")
    return {
        split: [
            dataclasses.replace(make_example(row, f"{split}/{i}"), where=row.where)
            for i, row in enumerate(rows_of(split, value, hint))
        ]
        for split, value in splits.items()
        if files_of(split, value)
    }
