"""Which checkpoint of a run: the newest, the best by the run's own evaluations, or one by its step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from salt_jax.models import integrity

NEWEST, BEST = "newest", "best"
STEPS = Path("checkpoints") / "train"  # in a run's workdir
EVALUATIONS, CONFIG = "evaluations.jsonl", "config.json"


def parse_choice(text: str) -> str | int:
    """'newest', 'best' or a step.

    Example:
      >>> parse_choice("best"), parse_choice("12")
      ('best', 12)

    Raises:
      ValueError: for anything else.
    """
    if text in (NEWEST, BEST):
        return text
    if not text.isdecimal():
        raise ValueError(f"--checkpoint={text} is not allowed; allowed: {NEWEST}, {BEST} or a step")
    return int(text)


def evaluation_scores(folder: Path, metric: str) -> dict[int, float]:
    """A metric of a run's evaluations by step; evaluations without a finite value are left out.

    Raises:
      ValueError: naming a line that cannot be understood.
    """
    path = folder / EVALUATIONS
    if not path.exists():
        return {}
    found = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # a last line may be cut off
        try:
            record = json.loads(line)
            found[record["step"]] = record.get(metric)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{path}: line {number} is damaged") from None
    return {step: float(value) for step, value in found.items() if value is not None and math.isfinite(value)}


def best_of(scores: Mapping[int, float], steps: Iterable[int], mode: str) -> int | None:
    """The step with the best score, the first of several; None where no step has a score.

    Args:
      scores: by step.
      steps: those to choose among.
      mode: 'max' or 'min'.

    Example:
      >>> best_of({1: 0.5, 2: 0.7, 3: 0.7, 4: 0.9}, [1, 2, 3], "max")
      2
    """
    sign = {"max": 1, "min": -1}[mode]
    scored = sorted(step for step in steps if step in scores)
    return max(scored, key=lambda step: sign * scores[step], default=None)


def choose(folder: Path, choice: str | int, warn: Callable[[str], None]) -> int:
    """The step of a run's checkpoint whose parameters are as they were written; nothing is changed.

    Args:
      folder: a run's workdir.
      choice: 'newest' passes over what is damaged, with a warning; 'best' is by the run's own checkpoint.best_by and
        best_mode among the checkpoints that there are; or a step.
      warn: takes a line for people.

    Raises:
      ValueError: if there is no such checkpoint, naming the steps that there are, or if it is damaged.
    """
    directory = folder / STEPS
    there = integrity.steps(directory)
    if not there:
        raise ValueError(f"{directory} has no checkpoint")
    if choice == NEWEST:
        step, faults = integrity.newest_sound(directory, under="params")
        if step is None:
            raise ValueError(f"{directory} has no sound checkpoint: {listed(faults)}")
        for other, what in faults.items():
            warn(f"checkpoint {directory / str(other)} {what}; step {step} is used instead")
        return step
    step = _best(folder, there) if choice == BEST else int(choice)
    if step not in there:
        raise ValueError(f"{directory} has no step {step}; it has {', '.join(map(str, there))}")
    if what := integrity.fault(directory / str(step), step, under="params"):
        raise ValueError(f"checkpoint {directory / str(step)} {what}")
    return step


def _best(folder: Path, there: list[int]) -> int:
    saved = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).exists() else {}
    wanted = saved.get("checkpoint", {})
    metric = wanted.get("best_by")
    if not metric:
        raise ValueError(f"{folder} has no best checkpoint: its config.checkpoint.best_by is empty")
    best = best_of(evaluation_scores(folder, metric), there, wanted["best_mode"])
    if best is None:
        steps = ", ".join(map(str, there))
        raise ValueError(f"{folder} has no best checkpoint: no evaluation of its steps {steps} has {metric!r}")
    return best


def listed(faults: Mapping[int, str]) -> str:
    """Faults in one line.

    Example:
      >>> listed({4: "is damaged: x is missing", 2: "is not finished"})
      'step 4 is damaged: x is missing; step 2 is not finished'
    """
    return "; ".join(f"step {step} {what}" for step, what in faults.items())
