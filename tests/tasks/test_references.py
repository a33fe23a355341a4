"""References that their graders cannot use: found when the file is read, by every task, with file, row and reason."""

from __future__ import annotations

import json

import pytest

from salt_jax.graders import Grader
from salt_jax.graders.mathematics import math_equal
from salt_jax.tasks import TASKS, Example, Task
from salt_jax.tasks.references import usable

ELEMENTS = ", ".join(map(str, range(201)))  # more than a list is compared for
HUMANEVAL = {"task_id": "HumanEval/0", "prompt": 'def f(x):\n    """."""\n', "entry_point": "f"}
MBPP = {"text": "Double.", "code": "def f(x):\n    return 2 * x"}
# Task and settings, a row that will do, one that will not, and the reason.
CASES = {
    "math": ({}, {"problem": "?", "answer": "42", "solution": "s"}, {"answer": "$$"}, "has no mathematical value"),
    "math, a long list": ({}, {"problem": "?", "answer": "42"}, {"answer": ELEMENTS}, "is not equal to itself"),
    "dapo_math": ({}, {"prompt": "?", "solution": "42"}, {"prompt": "??", "solution": "()"}, "no mathematical value"),
    "humaneval": (
        {}, HUMANEVAL | {"test": "def check (candidate) :\n    assert candidate(1) == 2\n"},
        {"test": "def check(candidate):\n    candidate(1) == 2\n"}, "the tests check nothing: no assertion",
    ),
    "mbpp": (
        {}, MBPP | {"task_id": 11, "test_list": ["assert f(1) == 2"]},
        {"task_id": 12, "test_list": ["assert f(1) == 2", "f(1"]}, "the tests cannot be read as Python",
    ),
    "jsonl, math": ({}, {"prompt": "?", "reference": "1/2"}, {"reference": "?!"}, "has no mathematical value"),
    "jsonl, multiple_choice": (
        {"reward": "multiple_choice"}, {"prompt": "?", "reference": "D"}, {"reference": "E"},
        "the reference 'E' is none of A, B, C, D",
    ),
    "jsonl, code": (
        {"reward": "code"}, {"prompt": "?", "reference": {"tests": ["assert f(1) == 2"]}},
        {"reference": {"tests": ["def test_f():\n    assert f(1) == 2"]}}, "check nothing: nobody calls test_f",
    ),
    "jsonl, own": (
        {"reward": "my_checked_reward:reward", "reward_arguments": {"most": 3}},
        {"prompt": "?", "size": 3}, {"size": 4}, "size = 4 is over 3",
    ),
}  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_checked_reward.py").write_text(
        "def reward(completion, row, most):\n    return 1.0\n\n\n"
        "def check_reference(row, most):\n    if row['size'] > most:\n"
        "        raise ValueError(f\"size = {row['size']} is over {most}\")\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("case", CASES)
def test_a_row_is_named_or_left_out(case, write, tokenizer):
    name = case.partition(",")[0]
    settings, good, bad, reason = CASES[case]
    last = {"prompt": "???", "problem": "???"} | ({"task_id": 13} if name == "mbpp" else {})
    rows = [good, good | bad, good | last]
    settings = settings | {"train": write("x.jsonl", rows), "tokenizer": tokenizer}
    with pytest.raises(ValueError, match=rf"^train: .*x.jsonl line 2: .*{reason}") as caught:
        TASKS[name]("", **settings)
    assert str(caught.value).endswith("; on_bad_reference = 'skip' leaves such rows out")
    assert "\n" not in str(caught.value)
    task = TASKS[name]("", **settings, on_bad_reference="skip")
    assert [example.where.rpartition(" ")[2] for example in task.source("train")] == ["1", "3"]
    (line,) = task.left_out["train"]
    assert line == str(caught.value).partition("; on_bad_reference")[0]
    (said,) = task.said_of_left_out()
    assert said == f"1 references of train cannot be used, and their rows were left out; the first is {line}"
    with pytest.raises(ValueError, match=rf"line 1: .*{reason}.*; no reference of train can be used"):
        TASKS[name]("", **settings | {"train": write("y.jsonl", [good | bad])}, on_bad_reference="skip")
    with pytest.raises(ValueError, match="^on_bad_reference = 'drop' is not allowed; allowed: 'error', 'skip'"):
        TASKS[name]("", **settings, on_bad_reference="drop")
    clean = TASKS[name]("", **settings | {"train": write("z.jsonl", [good])})
    assert (len(clean.source("train")), clean.left_out) == (1, {})


def test_of_a_file_of_all_problems(write, tokenizer):
    rows = [MBPP | {"task_id": i, "test_list": [f"assert f({i})" if i != 700 else "f(700)"]} for i in (11, 601, 700)]
    path = write("mbpp.jsonl", rows)
    with pytest.raises(ValueError, match=r"^path: .*mbpp.jsonl line 3: the tests check nothing"):
        TASKS["mbpp"]("", path=path, tokenizer=tokenizer)
    task = TASKS["mbpp"]("", path=path, tokenizer=tokenizer, on_bad_reference="skip")
    assert {split: len(source) for split, source in task.sources.items()} == {"train": 1, "test": 1}
    assert list(task.left_out) == ["train"]


def test_a_part_of_a_mixture(write, tokenizer):
    rows = [{"prompt": "?", "reference": answer} for answer in ("1", "?", "2")]
    sound = {"task": "jsonl", "train": write("b.jsonl", rows[:1])}
    parts = {"a": {"task": "jsonl", "train": write("a.jsonl", rows)}, "b": sound}
    with pytest.raises(ValueError, match=r"^parts.a.train: .*a.jsonl line 2: the reference '\?' has no mathemat"):
        TASKS["mixture"]("", parts=parts, tokenizer=tokenizer)
    task = TASKS["mixture"]("", parts=parts, on_bad_reference="skip", tokenizer=tokenizer)
    assert {example.where.rpartition(" ")[2] for example in task.source("train")} == {"1", "3"}
    assert len(task.left_out["train"]) == 1
    part = parts["a"] | {"on_bad_reference": "error"}
    with pytest.raises(ValueError, match=r"^parts\.a\.train: "):
        TASKS["mixture"]("", parts=parts | {"a": part}, on_bad_reference="skip", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="^on_bad_reference = 1 is not allowed"):
        TASKS["mixture"]("", parts=parts, on_bad_reference=1, tokenizer=tokenizer)


def test_every_task_on_files_can_be_told():
    """And the one that makes its own problems has no bad ones."""
    lacking = [name for name, make in TASKS.items() if "on_bad_reference" not in make.__code__.co_varnames]
    assert lacking == ["arithmetic"]


@pytest.mark.parametrize(
    ("grader", "reference", "reason"),
    [
        ({"path": "salt_jax.graders.reasoning:score_answer"}, "{}", "no JSON object with 'dataset'"),
        ({"path": "salt_jax.graders.reasoning:score_answer"}, '{"dataset": "x", "entry": {}}', "has not all of"),
        ({"path": "salt_jax.graders.choice:exact_answer"}, "?", ""),  # any text will do
        ({"path": "salt_jax.graders.choice:multiple_choice", "arguments": {"choices": "AB"}}, "A B", "is none of A, B"),
        ({"path": "salt_jax.graders.choice:multiple_choice", "arguments": {"choices": "ab"}}, "x", ""),  # said later
        ({"path": "no_such_module:f"}, "x", ""),  # the same
        ({"path": "salt_jax.graders.verdict:exact_match"}, "", ""),
    ],
)
def test_graders(grader, reference, reason, tokenizer):
    task = Task("x", tokenizer, {"test": [Example("?", reference, "", "test/7")]}, Grader(**grader))
    if not reason:
        assert usable(task, "error").source("test")[0].reference == reference
        return
    with pytest.raises(ValueError, match=f"^test/7: .*{reason}"):
        usable(task, "error")


def test_a_mistake_in_a_check_of_ones_own_is_no_bad_row(write, tokenizer, own):
    path = write("a.jsonl", [{"prompt": "?"}])
    settings = {"train": path, "reward": "my_checked_reward:reward", "reward_arguments": {"most": 3}}
    with pytest.raises(ValueError, match="line 1: check_reference of the reward fails: KeyError: 'size'"):
        TASKS["jsonl"]("", **settings, on_bad_reference="skip", tokenizer=tokenizer)


@pytest.mark.parametrize(
    "reference",
    ["9^9^9^9", "9^{9^{9^9}}", "x^{9^{9^9}}=1", "9" * 100_000, r"\frac{" * 5_000, "(1,2)" * 9, r"10^{10^{10}}!",
     r"\int_0^1 e^{x^9^9^9} dx", r"\sum_{n=1}^{9^9^9} n!", r"\left[0, 9^{9^9}\right)"],
)  # fmt: skip
def test_reading_ends_whatever_a_reference_holds(reference, tokenizer):
    task = Task("x", tokenizer, {"test": [Example("?", reference, "", "test/7")]}, Grader(MATH))
    usable(task, "skip" if "frac" not in reference else "error")


MATH = "salt_jax.graders.mathematics:math_equal"


def test_mathematics_is_equal_to_itself_where_the_grader_finds_it_so(tokenizer):
    for reference in ("42", r"\$18.90", r"0.\overline{1}", "a, b, c", r"p \land q", r"\frac{\pi}{4} + k", "5.", "是"):
        task = Task("x", tokenizer, {"test": [Example("?", reference, "", "test/7")]}, Grader(MATH))
        usable(task, "error")
        assert math_equal(rf"\boxed{{{reference}}}", reference).reward == 1.0


def test_what_is_left_out_does_not_reach_grading(write, tokenizer):
    """A reference of JSON is not what a skipped row leaves behind: the others are as they were."""
    row = {"prompt": "?", "reference": {"tests": ["assert f(1) == 2"]}}
    settings = {"reward": "code", "tokenizer": tokenizer, "on_bad_reference": "skip"}
    task = TASKS["jsonl"]("", train=write("a.jsonl", [{**row, "reference": "{}"}, row]), **settings)
    (example,) = task.source("train")
    assert json.loads(example.reference) == row["reference"]
    assert example.id == "train/1"
