"""What an evaluation keeps of each problem, and its file: one JSON object a line, with the texts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from salt_jax.evaluation.scores import correct_samples

# Of one sample in a line of a problems file, what is allowed for each key.
_SAMPLE = {"text": (str,), "reward": (int, float, type(None)), "truncated": (bool,), "length": (int,),
           "answer": (str, type(None))}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProblemResult:
    """All samples of one problem, in the order they were drawn.

    Attributes:
      id: the example's.
      reference: what the grader was given.
      texts: n completions.
      rewards: n; NaN where missing.
      rewarded: n, false where the grader failed.
      truncated: n, true where the completion was cut off.
      lengths: n, in tokens, the end token included.
      answers: n found by the grader in a normal form, None where there is none.
      prompt: for people; '' where it was not given.

    Raises:
      ValueError: no sample, or columns of different lengths.
    """

    id: str
    reference: str
    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    rewarded: tuple[bool, ...]
    truncated: tuple[bool, ...]
    lengths: tuple[int, ...]
    answers: tuple[str | None, ...]
    prompt: str = ""

    def __post_init__(self) -> None:
        columns = (self.texts, self.rewards, self.rewarded, self.truncated, self.lengths, self.answers)
        sizes = [len(column) for column in columns]
        if not sizes[0] or len(set(sizes)) > 1:
            raise ValueError(f"problem {self.id!r}: columns of {sizes} samples; allowed: as many each, at least one")

    @property
    def graded(self) -> int:
        """Samples whose reward is not missing."""
        return sum(self.rewarded)

    def correct(self, correct_from: float = 1.0) -> int:
        """Graded samples with a reward of at least ``correct_from``."""
        return int(correct_samples(self.rewards, self.rewarded, correct_from).sum())

    def accuracy(self, correct_from: float = 1.0) -> float:
        """Share of the graded samples that are correct; NaN where none is graded."""
        return self.correct(correct_from) / self.graded if self.graded else math.nan


def write_problems(path: Path, results: Iterable[ProblemResult]) -> None:
    """Writes one JSON object a problem and line, whole or not at all.

    {"id", "prompt", "reference", "samples": [{"text", "reward", "truncated", "length", "answer"}, …]}: the reward is
    null where it is missing, the answer where there is none.

    Args:
      path: the file, in a folder that exists; replaced if it is there.
      results: one a problem.

    Raises:
      ValueError: a given reward that is not finite; ``path`` is as it was.
    """
    temporary = path.with_name(".writing-" + path.name)
    with temporary.open("w", encoding="utf-8") as file:  # line by line: the texts may be hundreds of megabytes
        for result in results:
            columns = result.texts, result.rewards, result.truncated, result.lengths, result.answers
            drawn = [dict(zip(_SAMPLE, values, strict=True)) for values in zip(*columns, strict=True)]
            for sample, ok in zip(drawn, result.rewarded, strict=True):
                sample["reward"] = sample["reward"] if ok else None
            line = {"id": result.id, "prompt": result.prompt, "reference": result.reference, "samples": drawn}
            file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_problems(path: Path) -> list[ProblemResult]:
    """Reads what ``write_problems`` wrote.

    Raises:
      ValueError: a line that is no such object, or an id that comes twice, naming file and line; an empty file.
      OSError: a file that cannot be read.
    """
    results: dict[str, ProblemResult] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                result = _parse_problem(line)
                if result.id in results:
                    raise ValueError(f"problem {result.id!r} comes twice")
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            results[result.id] = result
    if not results:
        raise ValueError(f"{path} holds no problem")
    return list(results.values())


def _parse_problem(line: bytes) -> ProblemResult:
    values = json.loads(line, parse_constant=_refuse_constant)
    if not isinstance(values, dict) or not all(isinstance(values.get(k), str) for k in ("id", "prompt", "reference")):
        raise ValueError("not an object with the texts id, prompt and reference")
    drawn = values.get("samples")
    if not isinstance(drawn, list) or not drawn:
        raise ValueError("samples is not a list of at least one")
    for sample in drawn:
        for name, allowed in _SAMPLE.items():
            value = sample.get(name, ...) if isinstance(sample, dict) else ...
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise ValueError(f"a sample without a proper {name!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} = {value} is not finite; a missing reward is null")
    rewarded = tuple(sample["reward"] is not None for sample in drawn)
    rewards = tuple(math.nan if sample["reward"] is None else float(sample["reward"]) for sample in drawn)
    texts, _, truncated, lengths, answers = zip(*([s[name] for name in _SAMPLE] for s in drawn), strict=True)
    return ProblemResult(
        values["id"], values["reference"], texts, rewards, rewarded, truncated, lengths, answers, values["prompt"]
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
