"""Gradings a second in a ``GraderPool``: exact match, short mathematical answers, programs.

    python -m experiments.benchmarks.grading [--items=4000] [--workers=2] [--repeats=3] [--json=FILE]
    python -m experiments.benchmarks.grading --pairs [--show=seen]    # how well, not how fast: ``pairs``

References differ from item to item, so that no parsed reference is used twice: training, where a prompt's rollouts
share one, is faster. Pairs like (3,4) have a row of their own: Math-Verify's parser takes 20 times as long for them.
Workers are warm: their start and first imports, which happen once a run, are timed apart. A row whose extra or
protections are missing is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.arguments import local_path
from experiments.benchmarks import pairs, report
from salt_jax.graders import Grader, GraderError, GraderPool

AIM = 500.0  # mathematical answers a second, 2 workers on 2 cores
ANSWERS: tuple[Callable[[int], tuple[str, str]], ...] = (  # (as a policy writes it, reference), equal
    lambda i: (str(i), str(i)),
    lambda i: (f"{i}.50", f"{2 * i + 1}/2"),
    lambda i: (rf"\frac{{{i}}}{{{2 * i + 1}}}", rf"\frac{{{i}}}{{{2 * i + 1}}}"),
    lambda i: (f"{i:,}", str(i)),
    lambda i: (rf"{i}\sqrt{{3}}", rf"\sqrt{{{3 * i * i}}}"),
    lambda i: (f"x={i}", str(i)),
    lambda i: (rf"{i}\%", rf"{i}\%"),
)
PROSE = "First we write the equation, then we solve it step by step, and check what we found. "


def exact_items(count: int) -> tuple[list[str], list[str]]:
    """Completions and references, every second one right."""
    return [f" {i}\n" for i in range(count)], [str(i + i % 2) for i in range(count)]


def integer_items(count: int) -> tuple[list[str], list[str]]:
    """Boxed integers, as grade-school problems have them; every fourth one is wrong."""
    return (
        [PROSE * 4 + rf"So the answer is $\boxed{{{7919 * i + i % 4 // 3}}}$." for i in range(count)],
        [str(7919 * i) for i in range(count)],
    )


def mixed_items(count: int) -> tuple[list[str], list[str]]:
    """All kinds of ``ANSWERS`` in turn, boxed; of each, every fourth one is another's."""
    pairs = []
    for i in range(count):
        kind, step = ANSWERS[i % len(ANSWERS)], i // len(ANSWERS)
        pairs.append((kind(1001 + i + (step % 4 == 3))[0], kind(1001 + i)[1]))
    return [PROSE * 4 + rf"So the answer is $\boxed{{{answer}}}$." for answer, _ in pairs], [r for _, r in pairs]


def pair_items(count: int) -> tuple[list[str], list[str]]:
    """Boxed pairs of integers; every fourth one is wrong."""
    return [rf"\boxed{{({i},{i + 1 + i % 4 // 3})}}" for i in range(count)], [f"({i},{i + 1})" for i in range(count)]


def program_items(count: int) -> tuple[list[str], list[str]]:
    """Short programs with three tests each; every fourth one is wrong."""
    programs = [f"```python\ndef f(x):\n    return x + {i + i % 4 // 3}\n```" for i in range(count)]
    tests = [[f"assert f({x}) == {x + i}" for x in range(3)] for i in range(count)]
    return programs, [json.dumps({"tests": t}) for t in tests]


# Row: grader, its items, how many of --items it gets, how many in four are right.
ROWS: dict[str, tuple[str, Callable[[int], tuple[list[str], list[str]]], float, float]] = {
    "exact match": ("salt_jax.graders.verdict:exact_match", exact_items, 5.0, 2),
    "mathematics, integers": ("salt_jax.graders.mathematics:math_equal", integer_items, 1.0, 3),
    "mathematics, seven kinds": ("salt_jax.graders.mathematics:math_equal", mixed_items, 1.0, 3),
    "mathematics, pairs": ("salt_jax.graders.mathematics:math_equal", pair_items, 0.1, 3),
    "programs": ("salt_jax.graders.code:run_tests", program_items, 0.1, 3),
}


def measure(path: str, items: Callable[[int], Any], count: int, workers: int, repeats: int) -> dict[str, Any]:
    """Seconds of a warm pool for ``count`` items, and of its start."""
    with GraderPool(Grader(path), workers=workers, deadline=60) as pool:
        start = time.perf_counter()
        try:
            pool.grade(*items(8 * workers))
        except GraderError as error:
            return {"skipped": str(error)}
        begun = time.perf_counter() - start
        seconds = []
        completions, references = items(count * repeats)  # no item twice
        for i in range(repeats):
            part = slice(i * count, (i + 1) * count)
            start = time.perf_counter()
            grades = pool.grade(completions[part], references[part])
            seconds.append(time.perf_counter() - start)
    return {
        "skipped": None, "items": count, "start_seconds": begun, "seconds": report.spread(seconds),
        "per_second": count / float(np.median(seconds)), "right": float(np.nanmean(grades.rewards)),
        "missing": grades.errors.count,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--items", type=int, default=4000, help="mathematical answers a timed run")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each row")
    parser.add_argument("--json", type=local_path, help="file to write the result to")
    parser.add_argument("--pairs", action="store_true", help="grade the battery of tests/graders/pairs instead")
    parser.add_argument("--show", choices=("seen", "aside"), help="with --pairs: what is graded otherwise")
    options = parser.parse_args(arguments)
    for name in ("items", "workers", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.pairs:
        return pairs.main(options.workers, options.show, options.json)
    if options.show:
        parser.error("--show needs --pairs")
    rows = {
        name: measure(path, items, max(28, int(share * options.items) // 28 * 28), options.workers, options.repeats)
        for name, (path, items, share, _) in ROWS.items()
    }
    targets = [
        report.Target(f"{name}: answers a second", rows[name].get("per_second"), AIM, at_least=True)
        for name in ("mathematics, integers", "mathematics, seven kinds")
    ]
    result = report.surroundings() | {
        "workers": options.workers, "rows": rows, "targets": [target.record() for target in targets]
    }  # fmt: skip
    table = [
        [name, "", "", row["skipped"]]
        if row["skipped"]
        else [name, str(row["items"]), f"{row['per_second']:.0f}", f"{row['start_seconds']:.2f}"]
        for name, row in rows.items()
    ]
    report.print_table(f"{options.workers} workers", ("grader", "items", "a second", "seconds to start"), table)
    report.print_targets(targets)
    report.print_surroundings(result)
    if options.json:
        report.write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
