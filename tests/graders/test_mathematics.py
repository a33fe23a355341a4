"""Mathematical answers: what Math-Verify takes for equal, and what this project adds."""

from __future__ import annotations

import builtins
import logging
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.graders import GraderError, Verdict, mathematics, values

math_equal = mathematics.math_equal


@pytest.mark.parametrize(
    ("completion", "reference", "reward", "answer"),
    [
        (r"so $\boxed{\frac12}$", "0.5", 1, "1/2"),
        (r"\boxed{0.5}", r"\frac{1}{2}", 1, "1/2"),
        (r"\boxed{1/2}", r"$\frac12$", 1, "1/2"),
        (r"\boxed{1.50}", "3/2", 1, "3/2"),
        (r"\boxed{50\%}", "0.5", 1, "1/2"),
        (r"\boxed{42}", r"\boxed{42}", 1, "42"),
        (r"\boxed{41} no, \boxed{42}", "42", 1, "42"),  # the last box
        (r"\boxed{42} no, \boxed{41}", "42", 0, "41"),
        (r"\boxed{41}. The final answer is 42.", "42", 0, "41"),  # a box goes before all else
        ("The answer is 1,234.", "1234", 1, "1234"),
        ("The final answer is $2\\sqrt{3}$.", r"\sqrt{12}", 1, "2*sqrt(3)"),
        ("first 3, then 4", "4", 1, "4"),
        ("#### 72", "72", 1, "72"),
        (r"\boxed{\$18}", "18", 1, "18"),
        (r"\boxed{5\text{ cm}}", "5", 1, "5"),
        (r"\boxed{90^\circ}", "90", 1, "90"),
        (r"\boxed{5\text{ million}}", "5", 0, None),
        (r"\boxed{6\text{ squared}}", "6", 0, None),
        (r"\boxed{3\text{ fifths}}", "3", 0, None),
        (r"\boxed{10}", "a_{12}", 0, "10"),
        (r"\boxed{-3}", "3", 0, "-3"),
        (r"\boxed{3/4}", "1/4", 0, "3/4"),
        (r"\boxed{10!}", "3628800", 1, "factorial(10)"),
        (r"\boxed{2+2}", "4", 1, "4"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1, "(x + 1)**2"),
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}", 1, "{1, 2}"),
        (r"\boxed{[1,2)}", "[1,2)", 1, "[1, 2)"),
        (r"\boxed{[1,2]}", "[1,2)", 0, "[1, 2]"),
        (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", 1, None),
        (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", "3", 0, None),
        (r"\boxed{\text{(C)}}", r"\text{(C)}", 1, "C"),
        (r"\boxed{\infty}", "5", 0, "oo"),
        (r"\boxed{1/3}", "0.333333", 1, "1/3"),  # equal after rounding to 6 digits
        (r"\boxed{1/3}", "0.33", 0, "1/3"),
    ],
)
def test_answers(completion, reference, reward, answer):
    verdict = math_equal(completion, reference)
    assert verdict.reward == reward
    if answer is not None:
        assert verdict.answer == answer


@pytest.mark.parametrize("completion", ["", "I do not know.", r"\boxed{}", "\ud800\0", r"\boxed{"])
def test_no_answer_is_no_reward_and_no_vote(completion):
    assert math_equal(completion, "42") == Verdict(0.0, None)


@pytest.mark.parametrize("reference", ["", "  ", r"\begin{weird", "$$", "NaN", "null"])
def test_a_reference_without_mathematics_is_an_error(reference):
    with pytest.raises(ValueError, match="has no mathematical value"):
        math_equal("42", reference)


def test_the_references_form_decides():
    """A value answers an assignment and the other way round; an equation is not its right-hand side or solution."""
    assert math_equal(r"\boxed{3}", "x=3").reward == 1
    assert math_equal(r"\boxed{x=3}", "3").reward == 1
    assert math_equal(r"\boxed{2x=6}", "6").reward == 0
    assert math_equal(r"\boxed{6}", "2x=6").reward == 0  # an equation is asked for


def test_who_gives_up_has_no_answer_but_a_way_that_fails_is_no_giving_up():
    assert math_equal("I cannot solve this problem. See chapter 7.", "7") == Verdict(0.0, None)
    assert math_equal("We cannot find x at once. Add both lines. Then 2x = 24. So x = 12.", "12").reward == 1


def test_boxed_only():
    assert math_equal("The answer is 42.", "42", boxed_only=True) == Verdict(0.0, None)
    assert math_equal(r"41, so \boxed{42}", "42", boxed_only=True) == Verdict(1.0, "42")
    assert math_equal(r"\boxed{42", "42", boxed_only=True) == Verdict(0.0, None)


def test_last_number_takes_what_is_wrong():
    """Item 7 of the list of what the authors' release does: it is off, and wrong where it is on."""
    assert math_equal("1/4", "3/4").reward == 0
    assert math_equal("1/4", "3/4", last_number=True).reward == 1
    assert math_equal(r"\boxed{7} in 42", "42", last_number=True).reward == 1
    assert math_equal("1/5", "3/4", last_number=True).reward == 0
    assert math_equal("no number", "3/4", last_number=True).reward == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [("", None), ("x", None), ("1,234.50", Fraction(2469, 2)), ("3 -4", -4), ("5.", 5), (".5", Fraction(1, 2))],
)
def test_last_number(text, number):
    assert mathematics.last_number(text) == number


@given(st.integers(-(10**6), 10**6), st.integers(1, 999))
def test_equal_fractions_are_one_answer(numerator, denominator):
    """Against Python's own fractions."""
    value = Fraction(numerator, denominator)
    written = math_equal(rf"\boxed{{\frac{{{numerator}}}{{{denominator}}}}}", f"{value.numerator}/{value.denominator}")
    assert written == Verdict(1.0, str(value))
    other = value + Fraction(1, 7)
    assert math_equal(rf"\boxed{{{numerator}/{denominator}}}", f"{other.numerator}/{other.denominator}").reward == 0


def test_equal_decimals_are_one_answer():
    assert {math_equal(rf"\boxed{{{text}}}", "1").answer for text in ("2.5", "2.50", "5/2", r"2\frac12")} == {"5/2"}


# (what is written, what it is refused for): a part of another number, denied, hedged, or dressed as what it is not.
REFUSED = [
    *((text, "3") for text in (
        "minus three", "negative 3", "It is minus 3", "twice 3", "the cube of 3", "3 divided by 4", "2 to the power 3",
        "it is not equal to 3", "it cannot be 3", "it is never 3", "it is anything but 3", "far from 3",
        "3‰", "1→3", "3ish",
        "The answer is $3$ + 1", "The answer is $3$ / $4$", "The answer is $3$.5", "The answer is $3$%",
        "The answer is $3$ or maybe $4$", "The answer is $3$; or $4$", "The answer is $3$ and a half",
        "The answer is 3 (or four)", "The answer is 3; 4", "The answer is 3. Or 4.", "The answer is 3 but could be 4",
        r"\boxed{x=1=3}", r"\boxed{\neq = 3}", r"\boxed{3_2}", r"-\boxed{3}", r"\boxed{3}^2", r"\boxed{3}.5",
        r"\boxed 3.5",
        r"not \boxed{3}", r"\boxed{4} or \boxed{3}", r"<think>the answer is not \boxed{3}</think>", r"\boxed{5, 3",
        *(rf"\boxed{{3\text{{ {word}}}}}" for word in "not false negative root choose gross M million".split()),
    )),
    ("It is 3 or more.", "3"), ("It is 3 or maybe 4.", "4"),
    ("half of 4", "4"), ("5 & 4", "4"), ("it is —5", "5"), ("The opposite of it is red", "red"),
    (r"not \boxed{1} but \boxed{2}", "1,2"), (r"\boxed{2 3}", "5"), (r"\boxed{1,234}", "1.234"),
    (r"\boxed{0:0}", "1:2"),
    (r"\boxed{x=1 \text{ or } y=2}", r"x=1 \text{ or } x=2"), (r"\boxed{A(5,2)}", "B(5,2)"),
    (r"\boxed{f(a)=3}", "f(b)=3"),
    (r"\boxed{k x, k\in\mathbb{Z}}", r"x^2, x\in\mathbb{Z}"), (r"\boxed{5e - 5}", "5e-05"),
]  # fmt: skip
# (in the box, what it is not): a sign, a case, a condition or an order apart, or read only in part.
OTHER = [
    (r"-\infty", r"3"), (r"x=-\infty", r"x=3"), (r"(-\infty,2)", r"(1,2)"), (r"x\ne 3", r"x\ne 0"),
    (r"\gcd(a,b)", r"5"), (r"\gcd(4,6)", r"5"), (r"(-1)!", r"5"), (r"\text{(A) but not (B)}", r"A"),
    (r"(A) not", r"A"), (r"\textbf{(C)}\text{ false}", r"C"), (r"\pi \approx 17", r"\pi"), (r"1,2", r"1<x<2"),
    (r"\pm1", r"|x|<1"),
    (r"\begin{cases}1 & x>0\\0 & x\le 0\end{cases}", r"\begin{cases}0 & x>0\\1 & x\le 0\end{cases}"),
    (r"1,2", r"x=2,y=1"), (r"1,2,3", r"a=3,b=2,c=1"), (r"x<-1 \text{ or } y>1", r"x<-1 \text{ or } x>1"),
    (r"y'=2x", r"y=2x"), (r"y'+y=0", r"y''+y=0"), (r"A'", r"A"), (r"A^T", r"A"), (r"5^T", r"5"),
    (r"\frac{dy}{dx}=9x", r"\frac{dy}{dx}=2x"), (r"\frac{dy}{dx}=y", r"y=0"), (r"E", r"e"), (r"\delta", r"\Delta"),
    (r"I", r"i"), (r"\gamma", r"\Gamma"), (r"II", r"-1"), (r"-AB", r"AB"), (r"-\text{even}", r"even"),
    (r"x+1=(1,2)", r"(1,2)"), (r"0=(1,2)", r"(1,2)"), (r"(5,6)=(1,2)", r"(1,2)"), (r"(y,x)=(1,2)", r"(1,2)"),
    (r"-(x,y,z)=(1,2,3)", r"(1,2,3)"), (r"1/6", r"5:30"), (r"2/3", r"10:15"), (r"\{\{1\},\{2\}\}", r"\{1,2\}"),
    (r"\text{no solution}", r"\{\emptyset\}"), (r"5\text{ elevenths}", r"5"), (r"\text{the inverse is }5", r"5"),
    (r"\text{the square is }5", r"5"), (r"y\in 2x+3", r"y=2x+3"), (r"y\approx\frac12x", r"y=\frac12x"),
    (r"3\frac72", r"13/2"), (r"3x4", r"12x"), (r"\sqrt{x}+\sqrt{x+1}+\sqrt{x+2}>5", r"x>1"),
    (r"\sec^{42} x", r"\sec^2 x"), (r"2^{2004}", r"\binom{n}{k}"),
    (r"\begin{pmatrix}1&2&3\\4&5&6\end{pmatrix}^2", r"\begin{pmatrix}1&2\end{pmatrix}"), (r"\frac00\ln 0", r"x=3"),
    (r"\sin3\frac10", r"x=3"),
]  # fmt: skip
ALIKE = [
    (r"\text{negative }3", r"-3"), (r"\text{minus three}", r"-3"), (r"8", r"\textbf{(A)}\ 8"),
    (r"A", r"\textbf{(A)}\ 8"), (r"\textbf{(A)}\ 8", r"\textbf{(A)}\ 8"), (r"\binom52", r"10"),
    (r"12\text{ sq cm}", r"12\text{ cm}^2"), (r"\text{None}", r"\emptyset"), (r"\text{Yes, it is}", r"Yes"),
    (r"\$0.50", r"\$0.50"), (r"k\in\mathbb{Z}", r"k\in\mathbb{Z}"), (r"\frac{dy}{dx}=2x", r"\frac{dy}{dx}=2x"),

       (r"\begin{cases}1 & x>0\\0 & x\le 0\end{cases}",
     r"\begin{cases}0, & \text{if } x\le 0\\1, & \text{if } x> 0\end{cases}"),
    (r"x=1,y=2", r"1,2"), (r"A'", r"A'"), (r"A^T", r"A^T"), (r"\Delta", r"\Delta"), (r"2E", r"2E"),
    (r"(x,y)=(1,2)", r"(1,2)"), (r"A\cap B=\{1\}", r"\{1\}"), (r"3\frac12", r"7/2"), (r"2^{2004}", r"2^{2004}"),
    (r"y'=2x", r"y'=2x"), (r"\gcd(a,b)", r"\gcd(a,b)"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "reference"), REFUSED)
def test_a_part_of_another_answer_is_refused(completion, reference):
    assert math_equal(completion, reference).reward == 0


@pytest.mark.parametrize(("answer", "reference"), OTHER)
def test_what_differs_in_little_is_another_answer(answer, reference):
    assert math_equal(rf"\boxed{{{answer}}}", reference).reward == 0


@pytest.mark.parametrize(("answer", "reference"), ALIKE)
def test_what_is_written_otherwise_is_the_same_answer(answer, reference):
    assert math_equal(rf"\boxed{{{answer}}}", reference).reward == 1


def test_it_says_nothing_of_its_time_limits(caplog, monkeypatch):
    import math_verify.grader
    import math_verify.parser

    for module in (math_verify.grader, math_verify.parser):
        monkeypatch.setattr(module, "TIMEOUT_WARNING_SHOWN", False)
    with caplog.at_level(logging.WARNING):
        math_equal(r"\boxed{8}", "9")
    assert caplog.text == ""


def test_without_the_extra_one_line_says_so(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.partition(".")[0] == "math_verify":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    values.library.cache_clear()
    with pytest.raises(GraderError, match=r"^math_equal needs the extra 'math': pip install 'salt-jax\[math\]'$"):
        math_equal("1", "a reference that no test parsed before")
    monkeypatch.undo()
    values.library.cache_clear()
