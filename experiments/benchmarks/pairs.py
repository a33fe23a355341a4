"""Right answers accepted and wrong ones refused, by class: the battery of tests/graders/pairs.

    python -m experiments.benchmarks.grading --pairs [--show seen] [--json=FILE]

A line of the battery is a completion, a reference and the verdict of a careful examiner. It was written before the
graders were changed for it; every third line ("set": "aside") was kept from those who changed them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import report
from salt_jax.graders import Grader, GraderPool

FOLDER = Path(__file__).parents[2] / "tests" / "graders" / "pairs"
GRADERS = {
    "multiple_choice": "salt_jax.graders.choice:multiple_choice",
    "code": "salt_jax.graders.code:run_tests",
    "bad_tests": "salt_jax.graders.code:run_tests",
}  # every other class is mathematics
MATHEMATICS = "salt_jax.graders.mathematics:math_equal"
AIMS = {"right": 0.97, "wrong": 0.995}  # the share of right answers accepted, and of wrong ones refused
DEADLINE = 20.0  # seconds a pair


class Pair(NamedTuple):
    """A line: the verdict is 'right', 'wrong', or 'missing' where the reference itself is of no use."""

    kind: str
    completion: str
    reference: str
    verdict: str
    aside: bool
    arguments: str  # of the grader, as JSON


def read(folder: Path = FOLDER) -> list[Pair]:
    """The battery.

    Raises:
      ValueError: naming file and line, for a line that is not such a pair.
    """
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                verdict = "missing" if row.get("verdict") == "error" else ("wrong", "right")[row["right"]]
                arguments = json.dumps({"choices": row["choices"]} if "choices" in row else {})
                text = row["class"], row["completion"], row["reference"]
                found.append(Pair(*text, verdict, row.get("set") == "aside", arguments))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file.name}, line {number}: {type(error).__name__}: {error}") from error
    return found


def graded(pairs: list[Pair], workers: int) -> list[str]:
    """What the graders say of each: 'right', 'wrong' or 'missing'."""
    said = [""] * len(pairs)
    keys = [(GRADERS.get(pair.kind, MATHEMATICS), pair.arguments) for pair in pairs]
    for key in dict.fromkeys(keys):
        with GraderPool(Grader(key[0], json.loads(key[1])), workers=workers, deadline=DEADLINE) as pool:
            at = [i for i, of in enumerate(keys) if of == key]
            grades = pool.grade([pairs[i].completion for i in at], [pairs[i].reference for i in at])
        for i, reward, rewarded in zip(at, grades.rewards, grades.rewarded, strict=True):
            said[i] = ("right" if reward > 0.5 else "wrong") if rewarded else "missing"
    return said


def main(workers: int, show: str | None, file: Path | None) -> dict[str, Any]:
    """Grades the battery and prints it by class; ``show``: also each pair of that set that is graded otherwise."""
    pairs = read()
    said = graded(pairs, workers)
    total, good = Counter[tuple[str, bool, str]](), Counter[tuple[str, bool, str]]()
    for pair, verdict in zip(pairs, said, strict=True):
        key = (pair.kind, pair.aside, pair.verdict)
        total[key] += 1
        good[key] += verdict == pair.verdict
        if verdict != pair.verdict and show == ("aside" if pair.aside else "seen"):
            print(f"{pair.kind}: {pair.verdict} is graded {verdict}: {pair.completion!r} for {pair.reference!r}")
    table, kinds = [], list(dict.fromkeys(pair.kind for pair in pairs))
    share = lambda *key: f"{good[key]} of {total[key]}" if total[key] else ""
    for kind in kinds:
        columns = [(aside, verdict) for aside in (False, True) for verdict in ("right", "wrong", "missing")]
        table.append([kind, *(share(kind, *column) for column in columns)])
    titles = ("class", *(f"{v}, {a}" for a in ("seen", "aside") for v in ("accepted", "refused", "no reference")))
    report.print_table("pairs graded as an examiner would", titles, table)
    targets = []
    for verdict, aim in AIMS.items():
        for aside in (False, True):
            part = [sum(count[kind, aside, verdict] for kind in kinds) for count in (good, total)]
            what = f"{verdict}, {'set aside' if aside else 'seen'} ({part[0]} of {part[1]})"
            targets.append(report.Target(what, part[0] / part[1] if part[1] else None, aim, at_least=True))
    result = report.surroundings() | {
        "pairs": [[*key, good[key], count] for key, count in total.items()],
        "targets": [target.record() for target in targets],
    }  # fmt: skip
    report.print_targets(targets)
    report.print_surroundings(result)
    if file:
        report.write_json(file, result)
    return result
