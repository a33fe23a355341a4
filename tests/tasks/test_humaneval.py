"""HumanEval: the reference holds a program of tests; what the grader's contract says about it is run here."""

import json

import pytest

from salt_jax.tasks.humaneval import make_humaneval

ROW = {
    "task_id": "HumanEval/53",
    "prompt": 'def add(x: int, y: int):\n    """Add x and y."""\n',
    "canonical_solution": "    return x + y\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2, 3) == 5\n",
    "entry_point": "add",
}


def outcome(reference, program):
    """Runs a program and its tests as the reference says, and check(entry_point) as the grader does."""
    for test in reference["tests"]:
        try:
            exec(f"{reference['setup']}\n{program}\n{test}\ncheck({reference['entry_point']})", {})
        except AssertionError:
            return False
    return True


@pytest.mark.parametrize("name", ["HumanEval.jsonl.gz", "test-00000-of-00001.parquet"])
def test_prompt_reference_and_solution(write, tokenizer, name):
    task = make_humaneval("", test=write(name, [ROW]), tokenizer=tokenizer)
    (example,) = task.source("test")
    assert example.id == "test/HumanEval/53"
    assert example.prompt.endswith(
        'block.\n\n```python\ndef add(x: int, y: int):\n    """Add x and y."""\n```'
    )
    reference = json.loads(example.reference)
    assert (reference["entry_point"], reference["prefix"]) == ("add", ROW["prompt"])
    solution = example.solution.removeprefix("```python\n").removesuffix("```")
    assert outcome(reference, solution)
    assert not outcome(reference, solution.replace("+", "-"))


def test_a_model_that_continues_text(write, tokenizer):
    task = make_humaneval("", test=write("x.jsonl", [ROW]), instruction="", tokenizer=tokenizer)
    (example,) = task.source("test")
    assert (example.prompt, example.solution) == (ROW["prompt"], ROW["canonical_solution"])
    reference = json.loads(example.reference)
    assert outcome(reference, reference["prefix"] + example.solution)


def test_settings(write, tokenizer):
    path = write("x.jsonl", [ROW | {"canonical_solution": None}])
    task = make_humaneval("", test=path, time_limit=3, memory_mib=256, sandbox="limits", tokenizer=tokenizer)
    assert task.source("test")[0].solution == ""
    assert task.verifier.path == "salt_jax.graders.code:run_tests"
    assert dict(task.verifier.arguments) == {
        "time_limit": 3,
        "wall_limit": 4.5,
        "memory_mib": 256,
        "sandbox": "limits",
    }
    for setting in (
        {"time_limit": "6"},
        {"time_limit": 0},
        {"memory_mib": -1},
        {"sandbox": "none"},
        {"instruction": 2},
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(setting))} = .* is not allowed"):
            make_humaneval("", test=path, **setting, tokenizer=tokenizer)


@pytest.mark.parametrize("column", ["task_id", "prompt", "test", "entry_point"])
def test_rows_that_will_not_do(write, tokenizer, column):
    row = {name: value for name, value in ROW.items() if name != column}
    with pytest.raises(ValueError, match=f"^test: .*x.jsonl line 1: '{column}' is missing; columns there: "):
        make_humaneval("", test=write("x.jsonl", [row]), tokenizer=tokenizer)


def test_a_test_without_a_check(write, tokenizer):
    with pytest.raises(ValueError, match=r"line 1: 'test' does not define check\(candidate\)"):
        make_humaneval(
            "", test=write("x.jsonl", [ROW | {"test": "assert add(1, 2) == 3"}]), tokenizer=tokenizer
        )
