"""Verifiers: exact match, and failures that are missing rewards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.graders import GraderError, Verdict
from salt_jax.graders.verdict import gather
from salt_jax.tasks import CharTokenizer, ErrorReport, Task, exact_match, grade_all


@pytest.mark.parametrize(
    ("completion", "reference", "reward"),
    [
        ("46", "46", 1.0),
        ("  46\n", "46", 1.0),
        ("46", " 46 ", 1.0),
        ("", "", 1.0),
        ("046", "46", 0.0),
        ("46.0", "46", 0.0),
        ("12+34=46", "46", 0.0),  # not "the last number is equal"
        ("4 6", "46", 0.0),
        ("-46", "46", 0.0),
        ("4", "46", 0.0),
        ("", "46", 0.0),
    ],
)
def test_exact_match(completion, reference, reward):
    assert exact_match(completion, reference) == reward


@given(st.text(), st.text())
def test_exact_match_is_equality_of_stripped_texts(a, b):
    assert exact_match(a, a) == 1.0
    assert exact_match(a, b) == exact_match(b, a) == float(a.strip() == b.strip())


def test_failures_are_missing_and_reported():
    def verifier(completion, reference):
        if completion == "boom":
            raise RuntimeError("no answer box")
        return {"nan": float("nan"), "text": "good", "none": None, "int": 2}.get(completion, 0.5)

    grades = grade_all(verifier, ["a", "boom", "nan", "text", "none", "int"], ["r"] * 6)
    assert grades.rewards.dtype == np.float32
    assert grades.rewarded.dtype == bool
    np.testing.assert_array_equal(grades.rewarded, [True, False, False, False, False, True])
    np.testing.assert_array_equal(
        grades.rewards, np.array([0.5, np.nan, np.nan, np.nan, np.nan, 2.0], np.float32)
    )
    assert grades.errors.count == 4
    assert grades.errors.first == "RuntimeError: no answer box"


def test_a_reward_too_large_for_float32_is_missing():
    grades = grade_all(lambda c, r: 1e39, ["a"], ["b"])
    assert not grades.rewarded[0]
    assert grades.errors == ErrorReport(1, "ValueError: the verifier returned 1e+39, not a finite float32")


def test_keyboard_interrupt_is_not_swallowed():
    def verifier(completion, reference):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade_all(verifier, ["a"], ["b"])


def test_no_failures_no_completions_and_lengths():
    grades = grade_all(exact_match, ["1", "2"], ["1", "3"])
    assert grades.errors == ErrorReport(0, "")
    np.testing.assert_array_equal(grades.rewards, [1, 0])
    assert grade_all(exact_match, [], []).rewards.shape == (0,)
    with pytest.raises(ValueError, match="1 completions do not match 2 references"):
        grade_all(exact_match, ["1"], ["1", "2"])


def test_task_names_its_splits():
    task = Task("t", CharTokenizer("1"), {"train": [], "test": []}, exact_match)
    with pytest.raises(ValueError, match="split = 'dev' is unknown; allowed: train, test"):
        task.source("dev")
    np.testing.assert_array_equal(task.grade(["1", "1"], ["1", "11"]).rewards, [1, 0])


def test_components_go_with_the_reward():
    def verifier(completion, reference):
        if completion == "boom":
            raise RuntimeError
        return Verdict(1.0, None, (1, 0.5) if completion != "nan" else (float("nan"), 1))

    grades = grade_all(verifier, ["a", "nan", "boom"], ["r"] * 3)
    np.testing.assert_array_equal(grades.components, np.array([[1, 0.5], [np.nan] * 2, [np.nan] * 2], np.float32))
    assert grades.components.dtype == np.float32
    np.testing.assert_array_equal(grades.rewarded, [True, False, False])
    assert grades.errors.first == "ValueError: the verifier returned nan, not a finite float32"
    assert grade_all(exact_match, ["1"], ["1"]).components is None
    assert gather(["lost"]).components is None


def test_every_verdict_has_as_many_components():
    with pytest.raises(GraderError, match="the verifier returned 1 and 2 components"):
        gather([Verdict(1.0, None, (1.0,)), Verdict(1.0, None, (1.0, 2.0))])
    with pytest.raises(GraderError, match="the verifier returned 0 and 2 components"):
        gather([Verdict(1.0), "lost", Verdict(1.0, None, (1.0, 2.0))])
