"""One's own files: prompts as texts and messages, every reward, every defect of a row."""

import json

import pytest

from salt_jax.graders import Grader
from salt_jax.graders.code import parse_reference
from salt_jax.tasks.jsonl import REWARDS, make_jsonl

ROWS = [
    {"prompt": "1+1?", "reference": "2"},
    {"prompt": "2+2?", "reference": 4, "solution": "4", "id": "four"},
]
CODE = {"tests": ["assert f(1) == 2"], "setup": "import math"}


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_task_rewards.py").write_text(
        "def length(completion, row, most=5):\n    return float(len(completion) <= min(most, row['limit']))\n"
        "def other(completion):\n    return 1.0\n"
        "NUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_columns(write, tokenizer):
    task = make_jsonl(
        "", train=write("a.jsonl", ROWS), test=write("b.parquet", ROWS[:1]), tokenizer=tokenizer
    )
    first, second = task.source("train")
    assert (first.prompt, first.reference, first.solution, first.id) == ("1+1?", "2", "", "train/0")
    assert (second.reference, second.solution, second.id) == ("4", "4", "train/four")
    assert task.source("test")[0].id == "test/0"
    assert task.verifier == Grader(REWARDS["math"][0], {})


def test_messages(write, tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1? "}]
    path = write("a.parquet", [{"prompt": messages, "reference": "2"}])
    (example,) = make_jsonl("", train=path, tokenizer=tokenizer).source("train")
    assert example.prompt == tuple(messages)
    (example,) = make_jsonl("", train=path, suffix="Now.", tokenizer=tokenizer).source("train")
    assert example.prompt == (messages[0], {"role": "user", "content": "1+1? Now."})


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_messages_as_a_text(write, tokenizer, suffix):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = write(f"a.{suffix}", [{"prompt": json.dumps(messages), "reference": "2"}])
    (example,) = make_jsonl("", train=path, tokenizer=tokenizer).source("train")
    assert example.prompt == tuple(messages)


def test_several_files(write, tokenizer):
    write("a.jsonl", ROWS)
    path = write("b.jsonl", [{"prompt": "3+3?", "reference": "6"}])
    task = make_jsonl("", train=path.replace("b.jsonl", "[ab].jsonl"), tokenizer=tokenizer)
    assert [e.prompt for e in task.source("train")] == ["1+1?", "2+2?", "3+3?"]
    with pytest.raises(ValueError, match="^train names .*b.jsonl twice; name each file once"):
        make_jsonl("", train=f"{path},{path}", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("roles", "at"), [("sua", 1), ("us", 0), ("uau", 2), ("uaua", 2), ("ut", 0), ("sa", None), ("a", None)]
)
def test_a_suffix_stands_behind_the_last_words_of_the_user(roles, at, write, tokenizer):
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    messages = [{"role": names[role], "content": f"{role}{i}"} for i, role in enumerate(roles)]
    path = write("a.jsonl", [{"prompt": messages, "reference": "2"}])
    if at is None:
        with pytest.raises(ValueError, match=r"a.jsonl line 1: 'prompt' has no message of the user for suffix"):
            make_jsonl("", train=path, suffix="Now.", tokenizer=tokenizer)
        (example,) = make_jsonl("", train=path, tokenizer=tokenizer).source("train")
    else:
        (example,) = make_jsonl("", train=path, suffix="Now.", tokenizer=tokenizer).source("train")
        messages[at]["content"] += " Now."
    assert example.prompt == tuple(messages)


def test_a_suffix(write, tokenizer):
    task = make_jsonl("", train=write("a.jsonl", ROWS), suffix="Now.", tokenizer=tokenizer)
    assert [e.prompt for e in task.source("train")] == ["1+1? Now.", "2+2? Now."]


@pytest.mark.parametrize("reference", [CODE, json.dumps(CODE)])
def test_code(write, tokenizer, reference):
    path = write("a.jsonl", [{"prompt": "f?", "reference": reference}])
    task = make_jsonl(
        "", train=path, reward="code", reward_arguments={"time_limit": 2.0}, tokenizer=tokenizer
    )
    reference = parse_reference(task.source("train")[0].reference)
    assert reference == CODE | {"entry_point": None, "prefix": ""}
    assert (task.verifier.path, dict(task.verifier.arguments)) == (REWARDS["code"][0], {"time_limit": 2.0})


def test_other_rewards(write, tokenizer):
    path = write("a.jsonl", [{"prompt": "?", "reference": "E"}])
    options = {"reward": "multiple_choice", "reward_arguments": {"choices": "ABCDE"}}
    task = make_jsonl("", train=path, **options, tokenizer=tokenizer)
    assert task.grade(["The answer is E."], ["E"]).rewards.tolist() == [1.0]
    task = make_jsonl("", train=path, reward="exact_match", tokenizer=tokenizer)
    assert task.grade([" E", "F"], ["E", "E"]).rewards.tolist() == [1.0, 0.0]


def test_a_function_of_ones_own(write, tokenizer, module):
    rows = [{"prompt": "?", "limit": 3, "extra": {"a": [1, None]}}]
    options = {"train": write("a.jsonl", rows), "reward": "my_task_rewards:length", "tokenizer": tokenizer}
    task = make_jsonl("", **options)
    (example,) = task.source("train")
    assert json.loads(example.reference) == rows[0]
    assert task.grade(["abc", "abcd"], [example.reference] * 2).rewards.tolist() == [1.0, 0.0]
    task = make_jsonl("", **options, reward_arguments={"most": 2})
    assert task.grade(["abc", "ab"], [example.reference] * 2).rewards.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"reward": "length"},
            "reward = 'length' is unknown; allowed: 'math', .*, or your own 'package.module:function'",
        ),
        (
            {"reward": "my_task_rewards:absent"},
            "reward = 'my_task_rewards:absent': grader .* cannot be imported",
        ),
        (
            {"reward": "no_such_module:f"},
            "reward = 'no_such_module:f': grader .* cannot be imported: No module named",
        ),
        ({"reward": "a:b:c"}, "reward = 'a:b:c': grader 'a:b:c' is not of the form"),
        ({"reward": "my_task_rewards:NUMBER"}, "reward = .*is not a function"),
        (
            {"reward": "my_task_rewards:other"},
            "reward_arguments = {} do not fit my_task_rewards:other: too many",
        ),
        (
            {"reward_arguments": {"x": 1}},
            "reward_arguments = {'x': 1} do not fit salt_jax.graders.mathematics",
        ),
        (
            {"reward_arguments": {"boxed_only": "no"}},
            "reward_arguments: boxed_only = 'no' is not allowed; allowed: True, False",
        ),
        (
            {"reward": "code", "reward_arguments": {"time_limit": -1}},
            "reward_arguments: time_limit = -1 is not allowed; allowed: numbers above 0",
        ),
        (
            {"reward": "multiple_choice", "reward_arguments": {"choices": 5}},
            "reward_arguments: choices = 5 is not allowed; allowed: texts",
        ),
        ({"reward_arguments": 3}, "reward_arguments = 3 is not allowed; allowed: a mapping of settings"),
        ({"reward": None}, "reward = None is not allowed; allowed: texts"),
        ({"train": ""}, "train and test are not set; set train and test to your files"),
    ],
)
def test_settings_that_will_not_do(write, tokenizer, module, settings, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        make_jsonl("", **{"train": write("a.jsonl", ROWS), "tokenizer": tokenizer} | settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reward", "row", "message"),
    [
        ("math", {"reference": "2"}, "'prompt' is missing; columns there: reference"),
        ("math", {"prompt": 3, "reference": "2"}, "'prompt' must be text or a list of messages, got 3"),
        ("math", {"prompt": [], "reference": "2"}, r"'prompt' must be text or a list of messages, got \[\]"),
        ("math", {"prompt": " ", "reference": "2"}, "'prompt' is empty"),
        (
            "math",
            {"prompt": ["a"], "reference": "2"},
            r"'prompt\[0\]' must be a message, {role, content}, got str",
        ),
        ("math", {"prompt": [{"role": "user"}], "reference": "2"}, r"'prompt\[0\]': 'content' is missing"),
        (
            "math",
            {"prompt": [{"role": "user", "content": 1}], "reference": "2"},
            ".*'content' must be text, got int",
        ),
        ("math", {"prompt": "p"}, "'reference' or 'answer' is missing; columns there: prompt"),
        ("math", {"prompt": "p", "reference": ["2"]}, "'reference' must be text or a number, got list"),
        ("math", {"prompt": "p", "reference": "2", "solution": 3}, "'solution' must be text, got int"),
        (
            "math",
            {"prompt": "p", "reference": "2", "id": "four"},
            "the id of 'train/four' is also that of .* line 2",
        ),
        (
            "multiple_choice",
            {"prompt": "p", "reference": "E"},
            "the reference 'E' is none of A, B, C, D; on_bad_reference = 'skip' leaves such rows out",
        ),
        ("multiple_choice", {"prompt": "p", "reference": "AB"}, "the reference 'AB' is none of A, B, C, D"),
        ("code", {"prompt": "p", "reference": {"tests": []}}, "the reference has no tests: any program would pass"),
        ("code", {"prompt": "p", "reference": "x"}, "the reference is no JSON: Expecting value"),
        (
            "code",
            {"prompt": "p", "reference": {"test": ["x"]}},
            "the reference is no JSON object with keys among",
        ),
    ],
)
def test_rows_that_will_not_do(write, tokenizer, reward, row, message):
    good = {"math": ROWS, "multiple_choice": [{"prompt": "p", "reference": "A"}] * 2,
            "code": [{"prompt": "p", "reference": CODE}] * 2}  # fmt: skip
    with pytest.raises(ValueError, match=f"^train: .*a.jsonl line 3:? {message}") as error:
        make_jsonl("", train=write("a.jsonl", [*good[reward], row]), reward=reward, tokenizer=tokenizer)
    assert "\n" not in str(error.value)
