"""The battery of tests/graders/pairs: its shape, and what of its mathematics that is shown is graded otherwise."""

from __future__ import annotations

from collections import Counter

import pytest

from experiments.benchmarks import pairs
from salt_jax.graders import Grader, GraderPool, confine
from salt_jax.graders.code import parse_reference
from salt_jax.graders.mathematics import math_equal

PAIRS = pairs.read()
SHOWN = [pair for pair in PAIRS if not pair.aside and pair.kind not in pairs.GRADERS]
# (reference, how its completion ends): known to be graded otherwise than an examiner would.
KNOWN = {
    # right, and refused
    ("55", r"\boxed{1 + 2 + 3 + \cdots + 10}"),
    ("9+2i", r"\boxed{\overline{9-2i}}"),
    (r"\{2, 4, 6, \ldots, 50\}", r"\boxed{S = \{2, 4, 6, 8, \dots, 50\}}"),
    (r"\sqrt{18a^3}", r"\boxed{3a\sqrt{2a}}."),
    (r"\frac{\pi}{4} + k\pi, k \in \mathbb{Z}", r"\boxed{x = \pi n + \frac{\pi}{4},\ n \in \mathbb{Z}}"),
    # wrong, and accepted: nothing is boxed or called the answer, or it is taken back
    ("15", "in 15 minutes a lap."),
    ("40", "is at least 40, but I did not find it."),
    ("20", "Ответ: $20$ не подходит, верно $22$."),
}


def test_the_battery_is_large_enough():
    count = Counter((pair.kind, pair.verdict) for pair in PAIRS)
    aside = Counter((pair.kind, pair.verdict) for pair in PAIRS if pair.aside)
    assert len(PAIRS) >= 600
    for kind in {pair.kind for pair in PAIRS} - {"bad_tests"}:
        assert min(count[kind, "right"], count[kind, "wrong"]) >= 15, kind
        assert min(aside[kind, "right"], aside[kind, "wrong"]) >= 4, kind
    assert len({(pair.completion, pair.reference) for pair in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize("kind", sorted({pair.kind for pair in SHOWN}))
def test_mathematics_as_an_examiner_would(kind):
    shown = [pair for pair in SHOWN if pair.kind == kind]
    known = {pair for pair in shown if any(pair.reference == of and pair.completion.endswith(end) for of, end in KNOWN)}
    right = {pair for pair in shown if math_equal(pair.completion, pair.reference).reward > 0.5}
    assert {pair for pair in shown if (pair in right) != (pair.verdict == "right")} == known


def test_programs_as_an_examiner_would():
    shown = [pair for pair in PAIRS if not pair.aside and pair.kind in ("code", "bad_tests")]
    arguments = {"time_limit": 1, "wall_limit": 2, "sandbox": "limits" if confine.missing() else "full"}
    with GraderPool(Grader(pairs.GRADERS["code"], arguments), workers=2, deadline=60) as pool:
        grades = pool.grade([pair.completion for pair in shown], [pair.reference for pair in shown])
    words = {1.0: "right", 0.0: "wrong"}
    said = [words.get(float(reward), "missing") for reward in grades.rewards]
    assert [pair for pair, verdict in zip(shown, said, strict=True) if pair.verdict != verdict] == []
    for pair in shown:
        found = ""
        try:
            parse_reference(pair.reference)
        except ValueError as error:
            found = str(error)
        assert bool(found) == (pair.verdict == "missing"), found


def test_every_known_exception_is_a_pair():
    assert all(any(pair.reference == of and pair.completion.endswith(end) for pair in SHOWN) for of, end in KNOWN)
