"""What a grader returns, and grading in this process."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np  # a worker, started anew after every hang, needs none of it: 0.1 s

FLOAT32_MAX = (2 - 2**-23) * 2.0**127


class GraderError(ValueError):
    """The grader itself cannot work, whatever it is given: a wrong setting, a missing package or protection.

    A failure to grade one completion is a missing reward; this one stops the run.
    """


class Verdict(NamedTuple):
    """What a grader found.

    Attributes:
      reward: a finite number.
      answer: the answer that was found in the completion, in a normal form, so that equal answers are equal
        texts: what a majority vote counts. None where there is none.
      components: K finite numbers beside the reward, as many for every completion: its parts, or the relevance of
        each rank of a list. None where there are none.
    """

    reward: float
    answer: str | None = None
    components: tuple[float, ...] | None = None


class Verifier(Protocol):
    """Grades one completion; may raise, which makes the reward missing."""

    def __call__(self, completion: str, reference: str) -> float | Verdict:
        """Reward of a completion, a finite number, or a ``Verdict``."""


@dataclasses.dataclass(frozen=True)
class Grader:
    """A verifier by import path: what can hang, crash or must be confined, and so runs in workers (``pool``).

    Calling it grades in this process, without a deadline: for tests and notebooks.

    Attributes:
      path: 'package.module:function'; the function is called as function(completion, reference, **arguments).
      arguments: what JSON can carry.

    Raises:
      ValueError: a path without exactly one ':'.
      GraderError: on use, a path that leads nowhere.

    Example:
      >>> Grader("salt_jax.graders.verdict:exact_match")("46", "46")
      1.0
    """

    path: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=lambda: types.MappingProxyType({}))

    def __post_init__(self) -> None:
        module, colon, function = self.path.partition(":")
        if not (module and colon and function) or ":" in function:
            raise ValueError(f"grader {self.path!r} is not of the form 'package.module:function'")

    def function(self) -> Callable[..., float | Verdict]:
        """The function behind the path.

        Raises:
          GraderError: if it cannot be imported, naming the path and the reason.
        """
        module, _, name = self.path.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise GraderError(f"grader {self.path!r} cannot be imported: {error}") from None
        if not callable(found):
            raise GraderError(f"grader {self.path!r} is not a function")
        return found

    def load(self) -> Callable[..., float | Verdict]:
        """``function()``, and those of graders that the arguments name by 'path': none is then imported while grading.

        Raises:
          GraderError: as ``function``.
        """
        for named in (self.arguments, *self.arguments.values()):
            if isinstance(named, Mapping) and isinstance(named.get("path"), str):
                Grader(named["path"], named.get("arguments", {})).load()
        return self.function()

    def reference_check(self) -> Callable[[str], None] | None:
        """What says of a reference, when its file is read, whether this grader can use it; None where nothing does.

        It is the function ``check_reference`` of the grader's module, where there is one: called for every reference as
        check_reference(reference, **arguments), it raises ValueError with the reason for one that no completion could
        be graded by. It should be quick, and it must end.

        Raises:
          GraderError: as ``function``.

        Example:
          >>> check = Grader("salt_jax.graders.choice:multiple_choice", {"choices": "AB"}).reference_check()
          >>> check("C")
          Traceback (most recent call last):
          ValueError: the reference 'C' is none of A, B
        """
        self.function()
        found = getattr(importlib.import_module(self.path.partition(":")[0]), "check_reference", None)
        return functools.partial(found, **self.arguments) if callable(found) else None

    def __call__(self, completion: str, reference: str) -> float | Verdict:
        """Grades in this process."""
        return self.function()(completion, reference, **self.arguments)


@dataclasses.dataclass(frozen=True)
class ErrorReport:
    """What went wrong while grading.

    Attributes:
      count: number of completions whose grader failed.
      first: message of the first failure, '' if there was none.
    """

    count: int
    first: str


class Grades(NamedTuple):
    """Rewards of N completions.

    Attributes:
      rewards: (N,) float32; NaN where missing, so that nothing can take it for a reward.
      rewarded: (N,) bool, false where the grader failed.
      errors: count and first message of the failures.
      answers: N answers found, for majority votes; None where there is none.
      components: (N, K) float32, NaN where missing; None where the grader gives none.
    """

    rewards: np.ndarray
    rewarded: np.ndarray
    errors: ErrorReport
    answers: tuple[str | None, ...] = ()
    components: np.ndarray | None = None


def checked(result: float | Verdict) -> Verdict:
    """A verifier's result as a ``Verdict``.

    Raises:
      ValueError: a reward, or a component, that is no finite float32.

    Example:
      >>> checked(1)
      Verdict(reward=1.0, answer=None, components=None)
    """
    verdict = result if isinstance(result, Verdict) else Verdict(result)
    parts = None if verdict.components is None else tuple(float(x) for x in verdict.components)
    reward = float(verdict.reward)
    for number in (reward, *(parts or ())):
        if not abs(number) <= FLOAT32_MAX:
            raise ValueError(f"the verifier returned {number}, not a finite float32")
    return Verdict(reward, verdict.answer, parts)


def exact_match(completion: str, reference: str) -> float:
    """1.0 if both texts are equal once white space around them is removed, else 0.0.

    =================  ==========  =======
    completion         reference   reward
    =================  ==========  =======
    ``' 46 '``         ``'46'``    1
    ``'046'``          ``'46'``    0
    ``'12+34=46'``     ``'46'``    0
    ``'4 6'``          ``'46'``    0
    =================  ==========  =======

    Args:
      completion: what the policy wrote.
      reference: the answer.

    Returns:
      0.0 or 1.0.

    Example:
      >>> exact_match(" 46\\n", "46"), exact_match("146", "46")
      (1.0, 0.0)
    """
    return float(completion.strip() == reference.strip())


def grade_all(verifier: Verifier, completions: Sequence[str], references: Sequence[str]) -> Grades:
    """Grades every completion; a grader that raises or returns no finite number gives a missing reward.

    Args:
      verifier: called as verifier(completion, reference), in order.
      completions: N texts.
      references: N answers.

    Returns:
      ``Grades``.

    Raises:
      ValueError: if the two lengths differ.
      GraderError: if the grader cannot work at all.

    Example:
      >>> grades = grade_all(lambda c, r: float(c) / float(r), ["2", "1", "x"], ["4", "0", "1"])
      >>> grades.rewards.tolist(), grades.rewarded.tolist()
      ([0.5, nan, nan], [True, False, False])
      >>> grades.errors
      ErrorReport(count=2, first='ZeroDivisionError: float division by zero')
    """
    if len(completions) != len(references):
        raise ValueError(f"{len(completions)} completions do not match {len(references)} references")
    results: list[Verdict | str] = []
    for completion, reference in zip(completions, references, strict=True):
        try:
            results.append(checked(verifier(completion, reference)))
        except GraderError:
            raise
        except Exception as error:  # whatever a grader throws: counted and reported, not hidden
            results.append(f"{type(error).__name__}: {error}")
    return gather(results)


def gather(results: Sequence[Verdict | str]) -> Grades:
    """``Grades`` of N verdicts, or messages of what went wrong.

    Raises:
      GraderError: verdicts with different numbers of components.

    Example:
      >>> gather([Verdict(1.0, "46"), "TimeoutError: no answer in 10 s"]).rewarded.tolist()
      [True, False]
    """
    import numpy as np

    rewards = np.array([r.reward if isinstance(r, Verdict) else np.nan for r in results], np.float32)
    answers = tuple(r.answer if isinstance(r, Verdict) else None for r in results)
    messages = [r for r in results if isinstance(r, str)]
    report = ErrorReport(len(messages), messages[0] if messages else "")
    found = [r.components if isinstance(r, Verdict) else None for r in results]
    sizes = {len(parts or ()) for parts, r in zip(found, results, strict=True) if isinstance(r, Verdict)}
    if len(sizes) > 1:
        raise GraderError(f"the verifier returned {' and '.join(map(str, sorted(sizes)))} components")
    width = max(sizes, default=0)
    components = None
    if width:
        components = np.array([[np.nan] * width if parts is None else parts for parts in found], np.float32)
    return Grades(rewards, np.isfinite(rewards), report, answers, components)
