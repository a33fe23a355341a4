"""Choices: which letter a text settles on; and where answers stand in texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.graders import GraderError, Verdict
from salt_jax.graders.choice import exact_answer, find_choice, multiple_choice
from salt_jax.graders.extract import EXTRACT, last_boxed, last_line, last_tag


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        (r"\boxed{B}", "B"),
        (r"Answer: A, that is $\boxed{\text{B}}$.", "B"),  # a box decides alone
        (r"\boxed{(B)}", "B"),
        (r"\boxed{(B) 12}", "B"),
        (r"\boxed{B. 12}", "B"),
        (r"Answer: A, so \boxed{42}", None),
        (r"\boxed{A dog}", None),
        ("Answer: B", "B"),
        ("answer: B.", "B"),
        ("Answer: **B**", "B"),
        ("**Answer:** B", "B"),
        ("**Answer: B**", "B"),
        ("Answer: (B) because of C", "B"),
        ("the answer is B", "B"),
        ("the answer is (B).", "B"),
        ("The correct answer is: B", "B"),
        ("the answer is\nB", "B"),
        ("So it is **B**.", "B"),
        ("So it is **(B)**", "B"),
        ("B", "B"),
        ("(B).", "B"),
        ("Long thoughts on A and C.\n\nB\n", "B"),
        ("The correct option is B", "B"),
        ("Option A is wrong. The answer is B.", "B"),
        ("Answer: A\nNo, I mean\nAnswer: B", "B"),
        ("**A** is wrong. Answer: B", "B"),
        ("Answer: B. **C** would be wrong", "C"),  # the last counts: a fixed rule, no understanding
        ("The answer is A", "A"),
        ("The answer is A because it is", "A"),
        ("The answer is A dog.", None),
        ("The answer is a dog.", None),
        ("A dog is here", None),
        ("The option A child would take", None),
        ("answer: b", None),
        ("The answer is Bob", None),
        ("The answer is B's", None),
        ("The answer is B-flat", None),
        ("The answer is E", None),
        ("A is wrong, B is right", None),
        ("A and B", None),
        ("", None),
        ("B\nis what I first thought", None),
    ],
)
def test_the_choice_of_a_text(text, choice):
    assert find_choice(text) == choice


@given(st.text("ABCD abc()*:.\n{}\\", max_size=30))
def test_any_text_settles_on_one_of_the_choices_or_none(text):
    assert find_choice(text) in (*"ABCD", None)


def test_rewards_and_other_letters():
    assert multiple_choice("Answer: B", "B") == Verdict(1.0, "B")
    assert multiple_choice("Answer: B", "C") == Verdict(0.0, "B")
    assert multiple_choice("no", "C") == Verdict(0.0, None)
    assert multiple_choice("Answer: J", "J", choices="ABCDEFGHIJ") == Verdict(1.0, "J")
    with pytest.raises(ValueError, match="the reference 'E' is none of A, B, C, D"):
        multiple_choice("Answer: B", "E")
    for choices in ("", "abc", "AA", "A,B", "A]"):
        with pytest.raises(GraderError, match="are not allowed; allowed: distinct upper-case letters"):
            multiple_choice("Answer: B", "B", choices=choices)


def test_exact_answer_votes():
    assert exact_answer(" 46\n", "46 ") == Verdict(1.0, "46")
    assert exact_answer(" ", "46") == Verdict(0.0, None)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {1}", "1"),
        (r"\fbox{ 1 }", "1"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1\}", None),
        (r"} \boxed{1}", "1"),
        (r"{ \boxed{1}", "1"),
        (r"\boxed{}", ""),
        (r"\\boxed{1}", None),  # a line break, and text
        ("boxed{1}", None),
        ("\\boxed{" * 100_000, None),  # linear time
    ],
)
def test_the_last_box(text, box):
    assert last_boxed(text) == box


def test_other_places_of_an_answer():
    assert last_tag("<answer>1</answer><answer>\n2 </answer> <answer>3") == "2"
    assert last_tag("</answer> <answer>") is None
    assert last_tag("<answer></answer>") == ""
    assert last_line("a\n b \n\n") == "b"
    assert last_line(" \n") is None
    assert set(EXTRACT) == {"tag", "boxed", "last_line", "last_number", "text"}
