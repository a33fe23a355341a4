"""Nothing that a policy writes keeps the grader of mathematics busy, or is an error of it."""

from __future__ import annotations

import numpy as np

from salt_jax.graders import Grader, GraderPool

ATOMS = (
    r"1 9 x \frac{1}{2} { } ( ) [ ] \sqrt{ ^ _ \left \right + - , ; = \cup \in \{ \} \pm % \$ ! | < \le \ldots "
    r"1,000 \pi k e \infty \begin{pmatrix} \end{pmatrix} \\ & \boxed{ \text{ March \overline{3} 0. 10^{ 9^ \sin \log "
    r"\binom{ \int \sum_{n=1}^{ ' : ~ ** $ \( \) <think> </think> <answer> #### é ½ −"
).split() + ["and ", "or ", "3 hours ", "5 ft ", "half ", "two ", "answer is ", "\u3000", " "]
BRACKETS = tuple(
    r"( ) [ ] { } \{ \} \frac{1}{ } \sqrt{ } \boxed{ } \text{ } x^{ } \sin( ) | | e^{ }".split()[i : i + 2]
    for i in range(0, 24, 2)
)
LARGE = (
    "9^{9^{9^{9}}}", "10^{10^{10}}", "2^{2^{100}}", "3^{1000000000}", "1000000!", "(10^6)!", r"\binom{10^9}{5}",
    r"\binom{1000000}{500000}", "100!!", "9" * 100000, "0." + "3" * 100000, "1e999999999", "1e5000", "1e-999999999",
    "10^{99999999}", r"(1+\sqrt2)^{1000}", "(x+1)^{10000}", "(x+y+z)^{200}", r"\sum_{n=1}^{10^{9}} n",
    r"\int_0^1 e^{x^2}dx", r"\prod_{n=1}^{10^6} n", "2^{2004}", r"\sec^{42} x", "(x+1)^{1000}=0", "5" + " ;" * 3000,
    "+".join(rf"\sqrt{{{i}}}" for i in range(2, 200)), "*".join(f"(x-{i})" for i in range(300)),
    ",".join(map(str, range(20000))), ",".join(f"x_{i}={i}" for i in range(2000)), "|x-1|+|x-2|+|x-3|+|x-4|>1",
    "x^{100}-x^{99}+1>0", r"\sin x > 0", r"\sqrt{x}+\sqrt{x+1}+\sqrt{x+2}>5", r"x<1 \text{ or } " * 500,
    r"1, 2, \ldots, 1000000000", r"k\pi/1000000007, k \in \mathbb{Z}", r"n \equiv 1 \pmod{1000000007}",
    r"\cos(10^{100})",
    r"6k+1, 1000003k+2, k \in \mathbb{Z}", "2^{-10^{9}}", "1/0", r"\infty-\infty", r"\log 0", r"\tan 90^\circ",
    "(-1)^{1/1000003}", "(-1)!", r"\gcd(4,6)", r"x\ne 3", "1=" * 1000 + "1", "1+2+" * 2000 + "1", "a " * 20000,
    "1 h " * 5000, "twenty " * 3000 + "one",
)  # fmt: skip
REFERENCES = (
    "42", r"\frac{1}{2}", "x^2+1", "(1,2)", r"\{1,2\}", "[0,1)", "x>3", r"3 \text{ hours}", r"k\pi, k\in\mathbb{Z}",
    "Tuesday", r"\binom{n}{k}", r"x \ne 0", "x=1",
)  # fmt: skip


def texts():
    """A thousand: each piece again and again, pieces at random, brackets within brackets, and what is large."""
    rng = np.random.default_rng(0)
    found = [atom * count for atom in ATOMS for count in (30, 3000)]
    for first, last in BRACKETS:
        found += [first * depth + "1" + last * depth for depth in (5, 12, 50, 5000)]
    found += LARGE
    while len(found) < 1000:
        pieces = rng.choice(ATOMS, size=rng.choice((2, 20, 100, 1000)))
        found.append("".join(pieces) * (500 if len(pieces) == 2 else 1))
    return [rf"\boxed{{{text}}}" if i % 3 else text for i, text in enumerate(found)]


def test_all_get_a_verdict_within_the_deadline():
    every = texts()
    with GraderPool(Grader("salt_jax.graders.mathematics:math_equal"), workers=2, deadline=5) as pool:
        grades = pool.grade(every, [REFERENCES[i % len(REFERENCES)] for i in range(len(every))])
        assert pool.restarts == 0
    assert grades.errors.count == 0
    assert grades.rewarded.all()
