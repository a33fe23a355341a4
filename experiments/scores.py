"""An evaluation's folder and tables: problems.jsonl, evaluation.json, and comparison.json against a baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from salt_jax.evaluation.evaluate import (
    Comparison,
    Estimate,
    Evaluation,
    ProblemResult,
    by_part,
    compare,
    read_problems,
    summarize,
    write_problems,
)
from salt_jax.evaluation.scores import powers_of_two
from salt_jax.run import workdir
from salt_jax.run.identity import Identity, differences
from salt_jax.spec import ConfigError

PROBLEMS = "problems.jsonl"  # one JSON object a problem, with every completion
EVALUATION = "evaluation.json"  # the numbers of the table, and the configuration; written last
COMPARISON = "comparison.json"  # with --baseline


def check_folder(folder: Path) -> None:
    """ConfigError unless an evaluation may be written to ``folder``: it is new, empty, or an evaluation was cut off."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--workdir={folder} is a file; name a folder")
    if (folder / EVALUATION).exists():
        raise ConfigError(f"--workdir={folder} holds an evaluation already; name another folder")
    there = [path.name for path in folder.iterdir()] if folder.exists() else []
    others = [name for name in there if name != PROBLEMS and not name.startswith(".writing-")]
    if others:
        raise ConfigError(f"--workdir={folder} holds {min(others)}; name another folder")


def check_run(folder: Path) -> None:
    """ConfigError unless ``folder`` is a run's workdir."""
    if not (folder / workdir.CONFIG).is_file():
        raise ConfigError(f"--run={folder} is not a run: it has no {workdir.CONFIG}")


def load_problems(folder: Path) -> list[ProblemResult]:
    """The problems of an evaluation's folder.

    Raises:
      ConfigError: one line: no such file, or the file and line that cannot be read.
    """
    if not (folder / PROBLEMS).is_file():
        raise ConfigError(f"--baseline={folder} is not an evaluation: it has no {PROBLEMS}")
    try:
        return read_problems(folder / PROBLEMS)
    except (ValueError, OSError) as error:
        raise ConfigError(" ".join(str(error).split())) from None


def check_pair(baseline: Path, made: Identity) -> list[str]:
    """That an evaluation can be paired with an earlier one: the same test data, the same grader.

    Args:
      baseline: the earlier one's folder.
      made: what the new one is made from.

    Returns:
      Lines that a person should read: another tokenizer or chat template, or that nothing is known.

    Raises:
      ConfigError: one line that names what differs.
    """
    try:
        record = json.loads((baseline / EVALUATION).read_text())
        if not isinstance(record["fingerprints"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        unknown = "whether its test data and grader are the same is unknown"
        return [f"--baseline={baseline} is from before fingerprints: {unknown}"]
    found = differences(record, made, "the baseline")
    judging = [name for name in found if name.startswith(("task.", "grader")) and not name.endswith(".train")]
    if judging := [found[name] for name in judging if name in made.fingerprints]:
        raise ConfigError(f"--baseline={baseline} cannot be paired with this evaluation: {'; '.join(judging)}")
    return [text for name, text in found.items() if name.startswith(("tokenizer", "template"))]


def save(
    folder: Path,
    results: Sequence[ProblemResult],
    *,
    correct_from: float,
    about: Mapping[str, Any],
    parts: Mapping[str, Evaluation] | None = None,
) -> Evaluation:
    """Writes the problems, then the numbers, and returns these.

    Args:
      folder: made if absent.
      results: one a problem.
      correct_from: the least reward of a correct completion.
      about: what else evaluation.json says: where the policy is from, seconds, the configuration.
      parts: of a mixture, from ``of_parts``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_problems(folder / PROBLEMS, results)
    samples = max(len(result.texts) for result in results)
    evaluation = summarize(results, ks=powers_of_two(samples), correct_from=correct_from)
    record = evaluation.to_record() | dict(about)
    if parts:
        record["parts"] = {name: part.to_record() for name, part in parts.items()}
    workdir.write_atomically(folder / EVALUATION, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return evaluation


def of_parts(results: Sequence[ProblemResult], correct_from: float) -> dict[str, Evaluation]:
    """avg@n of each part of a mixture."""
    return {name: summarize(part, correct_from=correct_from) for name, part in by_part(results).items()}


def print_evaluation(
    evaluation: Evaluation, tokens_per_second: float, console: Console, parts: Mapping[str, Evaluation] | None = None
) -> None:
    """Prints avg@n, pass@k and maj@n with their intervals, each part of a mixture, and what they rest on."""
    n = -(-evaluation.samples // evaluation.problems)
    rows = {f"avg@{n}": evaluation.average} | {f"pass@{k}": value for k, value in evaluation.pass_at.items() if k > 1}
    if evaluation.majority is not None:
        rows[f"maj@{n}"] = evaluation.majority
    if parts:
        rows |= {f"avg@{n} of {name}": part.average for name, part in parts.items()}
        means = [part.accuracy for part in parts.values()]
        rows[f"avg@{n}, mean of parts"] = Estimate(sum(means) / len(means), math.nan, math.nan, evaluation.problems)
    plain = not console.is_terminal
    table = Table(box=None if plain else box.ROUNDED, pad_edge=not plain)
    table.add_column("score")
    for header in ("mean", "95 % interval", "problems"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, estimate in rows.items():
        table.add_row(name, _number(estimate.value), _interval(estimate), f"{estimate.problems:,}")
    console.print(table)
    facts = [
        f"{evaluation.problems:,} problems, {evaluation.samples:,} samples of {evaluation.length:,.1f} tokens",
        f"{evaluation.truncated:.1%} truncated",
        f"{evaluation.missing:,} without a reward",
        f"mean reward {_number(evaluation.reward)}",
        f"{tokens_per_second:,.0f} tokens/s, loading, compilation and grading included",
    ]
    console.print("; ".join(facts), highlight=False, soft_wrap=plain)


def compare_with(
    baseline: Path, results: Sequence[ProblemResult], theirs: Sequence[ProblemResult], *, correct_from: float
) -> tuple[Comparison, str]:
    """The paired difference of accuracy, and a line that says it.

    Raises:
      ConfigError: if the two evaluations are of different problems, naming some.
    """
    try:
        result = compare(results, theirs, correct_from=correct_from)
    except ValueError as error:
        raise ConfigError(f"--baseline={baseline}: {error}") from None
    left_out = f"; {result.left_out:,} without a reward left out" if result.left_out else ""
    interval = "" if math.isnan(result.low) else f" (95 % interval {result.low:+.3f} to {result.high:+.3f})"
    line = (
        f"accuracy less that of {baseline}: {result.difference:+.3f}{interval}, p = {result.p_value:.2g} "
        f"by flipping signs, on {result.problems:,} problems{left_out}"
    )
    return result, line


def save_comparison(folder: Path, baseline: Path, result: Comparison) -> None:
    """Writes comparison.json: the fields of ``Comparison``, null where undefined, and the baseline's folder."""
    values = {name: None if math.isnan(value) else value for name, value in result._asdict().items()}
    record = json.dumps({"baseline": str(baseline)} | values, indent=2)
    workdir.write_atomically(folder / COMPARISON, record + "\n")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return "–" if math.isnan(estimate.low) else f"{estimate.low:.3f} – {estimate.high:.3f}"
