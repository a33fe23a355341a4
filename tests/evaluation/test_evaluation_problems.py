"""What an evaluation keeps of each problem, and its file: nothing is lost, nothing wrong is taken."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.evaluation.problems import ProblemResult, read_problems, write_problems

RESULT = ProblemResult("a", "7", ("7",), (1.0,), (True,), (False,), (2,), (None,))


def test_a_problem_has_equal_columns():
    with pytest.raises(ValueError, match=r"problem 'a': columns of \[1, 1, 1, 1, 2, 1\]"):
        dataclasses.replace(RESULT, lengths=(3, 3))
    with pytest.raises(ValueError, match="at least one"):
        ProblemResult("a", "7", (), (), (), (), (), ())


def test_accuracy_is_of_the_graded_samples():
    result = ProblemResult(
        "a", "7", ("",) * 4, (1.0, 0.5, math.nan, 0.0), (True, True, False, True), (False,) * 4, (1,) * 4, (None,) * 4
    )
    assert (result.graded, result.correct(), result.correct(0.5)) == (3, 1, 2)
    assert (result.accuracy(), result.accuracy(0.5)) == (1 / 3, 2 / 3)
    missing = dataclasses.replace(result, rewards=(math.nan,) * 4, rewarded=(False,) * 4)
    assert math.isnan(missing.accuracy())


TEXT = st.text(st.characters(exclude_categories=[]), max_size=8)  # also line separators and lone surrogates
SAMPLE = st.tuples(TEXT, st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False), st.booleans(),
                   st.integers(0, 9), st.none() | TEXT)  # fmt: skip


@given(st.lists(st.tuples(TEXT, TEXT, st.lists(SAMPLE, min_size=1, max_size=3)), min_size=1, max_size=3))
def test_problems_survive_their_file(tmp_path_factory, drawn):
    results = []
    for i, (prompt, reference, samples) in enumerate(drawn):
        texts, rewards, truncated, lengths, answers = zip(*samples, strict=True)
        rewarded = tuple(reward is not None for reward in rewards)
        given = tuple(math.nan if reward is None else reward for reward in rewards)
        name = f"test/{i}"
        results.append(ProblemResult(name, reference, texts, given, rewarded, truncated, lengths, answers, prompt))
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    write_problems(path, results)
    assert read_problems(path) == results
    assert len(path.read_bytes().split(b"\n")) == len(results) + 1
    assert [p.name for p in path.parent.iterdir()] == ["problems.jsonl"]


def test_a_line_for_people(tmp_path):
    result = ProblemResult(
        "test/1", "2", ("2", "?"), (1.0, math.nan), (True, False), (False, True), (2, 4), ("2", None), "1+1="
    )
    write_problems(tmp_path / "problems.jsonl", [result])
    assert json.loads((tmp_path / "problems.jsonl").read_text()) == {
        "id": "test/1", "prompt": "1+1=", "reference": "2",
        "samples": [
            {"text": "2", "reward": 1.0, "truncated": False, "length": 2, "answer": "2"},
            {"text": "?", "reward": None, "truncated": True, "length": 4, "answer": None},
        ],
    }  # fmt: skip


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    write_problems(path, [RESULT])
    wrong = dataclasses.replace(RESULT, id="z", rewards=(math.inf,))
    with pytest.raises(ValueError, match="JSON compliant"):
        write_problems(path, [wrong, RESULT])
    assert read_problems(path) == [RESULT]


GOOD = {"id": "b", "prompt": "", "reference": "7",
        "samples": [{"text": "", "reward": 1, "truncated": False, "length": 2, "answer": None}]}  # fmt: skip


def altered(**values) -> str:
    return json.dumps(GOOD | {"samples": [GOOD["samples"][0] | values]})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: Expecting"),
        ("[]", "line 2: not an object with the texts id, prompt and reference"),
        (json.dumps(GOOD | {"id": 3}), "line 2: not an object"),
        (json.dumps(GOOD | {"samples": []}), "line 2: samples is not a list of at least one"),
        (json.dumps(GOOD | {"samples": [3]}), "line 2: a sample without a proper 'text'"),
        (json.dumps(GOOD | {"samples": [{"text": ""}]}), "line 2: a sample without a proper 'reward'"),
        (altered(reward="1"), "line 2: a sample without a proper 'reward'"),
        (altered(reward=True), "line 2: a sample without a proper 'reward'"),
        (altered(reward=math.nan), "line 2: NaN is no JSON"),
        (altered(reward=1).replace(": 1,", ": 1e999,"), "line 2: reward = inf is not finite; a missing reward is null"),
        (altered(reward=10**400), "line 2: int too large"),
        (altered(truncated=0), "line 2: a sample without a proper 'truncated'"),
        (altered(length=True), "line 2: a sample without a proper 'length'"),
        (altered(answer=7), "line 2: a sample without a proper 'answer'"),
        (json.dumps(GOOD | {"id": "a"}), "line 2: problem 'a' comes twice"),
        ("\udcff", "line 2: 'utf-8' codec"),
    ],
)
def test_a_bad_line_names_file_and_line(line, words, tmp_path):
    path = tmp_path / "problems.jsonl"
    write_problems(path, [RESULT])
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="problems.jsonl") as caught:
        read_problems(path)
    assert f"{path}, {words}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file(tmp_path):
    (tmp_path / "problems.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no problem"):
        read_problems(tmp_path / "problems.jsonl")
