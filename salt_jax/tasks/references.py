"""Every reference of a task is looked at when its files are read: one that its grader cannot use is found then."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from salt_jax.graders import Grader, GraderError
from salt_jax.spec import one_line
from salt_jax.tasks.records import LONGEST
from salt_jax.tasks.settings import check_choice
from salt_jax.tasks.task import Example, Source, Task

ON_BAD_REFERENCE = ("error", "skip")


def usable(task: Task, on_bad_reference: str) -> Task:
    """The task, once its grader has seen every reference: ``Grader.reference_check`` says which cannot be used.

    Each example is read, also where nothing is known of its reference. A grader that cannot work at all, as without an
    extra that it needs, says so when it is started, and nothing here.

    Args:
      task: as it was read.
      on_bad_reference: 'error', or 'skip' to leave such rows out; ``Task.left_out`` then has them.

    Raises:
      ValueError: another setting; a reference that cannot be used, its file and row named, where that is an error; a
        split of which none can be used.

    Example:
      >>> from salt_jax.tasks import CharTokenizer
      >>> examples = [Example("?", letter, "", f"train/{letter}") for letter in "ABC"]
      >>> grader = Grader("salt_jax.graders.choice:multiple_choice", {"choices": "AB"})
      >>> task = Task("letters", CharTokenizer("?ABC"), {"train": examples}, grader)
      >>> usable(task, "skip").said_of_left_out()[0].partition(";")[2]
      " the first is train/C: the reference 'C' is none of A, B"
      >>> usable(task, "error")
      Traceback (most recent call last):
      ValueError: train/C: the reference 'C' is none of A, B; on_bad_reference = 'skip' leaves such rows out
    """
    check_choice(ON_BAD_REFERENCE, on_bad_reference=on_bad_reference)
    check = _check(task)
    sources: dict[str, Source] = {}
    left_out: dict[str, list[str]] = {}
    for split, source in task.sources.items():
        kept: list[Example] = []
        for index in range(len(source)):
            example, reason = source[index], ""
            if check is not None:
                try:
                    reason = _reason(check, example)
                except GraderError:
                    check = None
            if reason and on_bad_reference == "error":
                raise ValueError(f"{reason}; on_bad_reference = 'skip' leaves such rows out")
            if reason:
                left_out.setdefault(split, []).append(reason)
            else:
                kept.append(example)
        if len(source) and not kept:
            raise ValueError(f"{left_out[split][0]}; no reference of {split} can be used")
        sources[split] = kept if split in left_out else source
    return dataclasses.replace(task, sources=sources, left_out=left_out)


def _check(task: Task) -> Callable[[str], None] | None:
    try:
        return task.verifier.reference_check() if isinstance(task.verifier, Grader) else None
    except GraderError:
        return None


def _reason(check: Callable[[str], None], example: Example) -> str:
    """The line about a reference that cannot be used; '' for one that can."""
    where = example.where or example.id
    try:
        check(example.reference)
    except GraderError:
        raise
    except ValueError as error:
        return f"{where}: {one_line(str(error), LONGEST)}"
    except Exception as error:  # of a user's own function: its mistake, not the row's
        reason = one_line(f"{type(error).__name__}: {error}", LONGEST)
        raise ValueError(f"{where}: check_reference of the reward fails: {reason}") from None
    return ""
