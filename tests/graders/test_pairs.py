"""The battery of tests/graders/pairs: its shape, and what of its mathematics and choices is graded otherwise."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from experiments.benchmarks import pairs
from salt_jax.graders import Grader, GraderPool, confine
from salt_jax.graders.choice import multiple_choice
from salt_jax.graders.code import parse_reference
from salt_jax.graders.mathematics import math_equal

PAIRS = pairs.read()
SHOWN = [pair for pair in PAIRS if not pair.aside and pair.kind not in pairs.GRADERS]
CHOICES = [pair for pair in PAIRS if not pair.aside and pair.kind == "multiple_choice"]
# (reference, how its completion ends): known to be graded otherwise than an examiner would.
KNOWN = {
    # right, and refused
    ("55", r"\boxed{1 + 2 + 3 + \cdots + 10}"),
    ("9+2i", r"\boxed{\overline{9-2i}}"),
    (r"\sqrt{18a^3}", r"\boxed{3a\sqrt{2a}}."),
    (r"f(x)=kx, k\in\mathbb{R}", r"\boxed{f(x) = cx \text{ for any real constant } c}."),
    (r"\frac{\pi^2}{6}", r"$\boxed{\zeta(2)}$"),
    (r"\overline{A\cup B}", r"\boxed{(A\cup B)^c}."),
    (r"A\subseteq B", r"\boxed{B \supseteq A}"),
    (r"AB\perp CD", "CD ⟂ AB."),
    (r"0.121212\ldots_3", r"$\boxed{0.\overline{12}_3}$."),
    (r"12:00 \text{ p.m.}", "they meet at 12 noon."),
    (r"f(x)=\begin{cases} x, & x\ge 0\\ -x, & x<0\end{cases}", r"\boxed{f(x)=|x|}$"),
    (r"\ln|\sec x|+C", r"\boxed{-\ln\left\lvert\cos x\right\rvert+C}$"),
    (r"x^{\frac{3}{4}}y^{-\frac12}", r"$\boxed{\frac{\sqrt[4]{x^3}}{\sqrt{y}}}$."),
    ("$[0,4)$", "i.e. 0 ≤ m < 4."),
    (r"\text{Wednesday}", r"$\boxed{\text{Mittwoch}}$."),
    (r"\text{Yes}", r"$\boxed{\text{sim}}$."),
    (r"\text{no real solutions}", r"$\boxed{\text{non esiste alcuna soluzione reale}}$."),
    (r"\text{the second player wins}", r"\boxed{\text{第二个玩家获胜}}"),
    (r"x=(-1)^k\frac{\pi}{6}+k\pi,\ k\in\mathbb{Z}", r"x=\frac{5\pi}{6}+2n\pi\quad(n\in\mathbb Z)}\)."),
    (r"\{x \mid x=2 k, k \in \mathbf{Z}\}", r"$\boxed{\text{all even integers}}$."),
    (r"\{(3,-1)\}", r"$\boxed{\{(x,y)\mid x=3,\ y=-1\}}$."),
    (r"\text{maximum } 9, \text{ minimum } -7", r"minimum: $\boxed{-7}$."),
    (r"\text{neither}", r"$\boxed{\text{neither even nor odd}}$."),
    (r"\text{right triangle}", r"$\boxed{\text{right-angled}}$."),
    # wrong, and accepted: nothing is boxed or called the answer, and e is said to be another number behind the box
    ("15", "in 15 minutes a lap."),
    ("0.03", r"\boxed{3e-2}$ (here $e = 2.718\ldots$)."),
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


def test_choices_as_an_examiner_would():
    right = {p for p in CHOICES if multiple_choice(p.completion, p.reference, **json.loads(p.arguments)).reward > 0.5}
    assert len(CHOICES) >= 50
    assert {pair for pair in CHOICES if (pair in right) != (pair.verdict == "right")} == set()


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
