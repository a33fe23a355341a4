"""Answers to puzzles of reasoning-gym (extra `gym`), by each generator's own scoring."""

from __future__ import annotations

import functools
import json
from types import ModuleType
from typing import Any

from salt_jax.graders.extract import EXTRACT
from salt_jax.graders.verdict import GraderError, Verdict

# Their scoring compares grids with tuples, which JSON made lists; every other generator of 0.1.25 takes both.
TUPLES = ("arc_agi", "rearc")


@functools.cache
def _library() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError:
        raise GraderError("score_answer needs the extra 'gym': pip install 'salt-jax[gym]'") from None
    return reasoning_gym


@functools.lru_cache(maxsize=256)
def _scorer(dataset: str, config: str) -> Any:
    """The generator, whose scoring may ask its configuration."""
    return _library().create_dataset(dataset, **json.loads(config))


@functools.lru_cache(maxsize=1 << 10)
def _parse(reference: str) -> tuple[Any, dict[str, Any]]:
    found = json.loads(reference)
    if not isinstance(found, dict) or not {"dataset", "entry"} <= set(found) <= {"dataset", "config", "entry"}:
        raise ValueError("the reference is no JSON object with 'dataset', 'entry' and perhaps 'config'")
    entry = found["entry"]
    if not isinstance(entry, dict) or not {"question", "answer", "metadata"} <= set(entry):
        raise ValueError("the reference's entry has not all of 'question', 'answer' and 'metadata'")
    if found["dataset"] in TUPLES:
        entry = entry | {"metadata": _tuples(entry["metadata"])}
    return _scorer(found["dataset"], json.dumps(found.get("config") or {}, sort_keys=True)), entry


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def score_answer(completion: str, reference: str, *, extract: str = "tag") -> Verdict:
    """The score that a reasoning-gym generator gives to a completion's answer, between 0 and 1.

    Scores between are the generators' own: many give 0.01 for a wrong answer, or part of a point for a text that
    contains the right one.

    Args:
      completion: what the policy wrote.
      reference: JSON object: "dataset" (the generator's name), "entry" (question, answer and metadata as it made
        them) and, where its scoring asks for it, "config".
      extract: which part of the completion is the answer: 'tag' the last ``<answer>…</answer>``, 'boxed' the last
        box, 'last_line', 'last_number', or 'text' all of it; see ``extract.EXTRACT``.

    Returns:
      ``Verdict`` with the extracted text as the answer; 0.0 and None where there is none.

    Raises:
      GraderError: an unknown `extract`, or without the extra `gym`.
      ValueError: a reference that is not one, or names no generator.
    """
    if extract not in EXTRACT:
        raise GraderError(f"extract = {extract!r} is unknown; allowed: {', '.join(EXTRACT)}")
    dataset, entry = _parse(reference)
    answer = EXTRACT[extract](completion)
    if not answer:
        return Verdict(0.0)
    return Verdict(float(dataset.score_answer(answer, entry)), answer)


def check_reference(reference: str, **_: str) -> None:
    """ValueError for a reference that is no entry of a generator."""
    _parse(reference)
