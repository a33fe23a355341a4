"""MBPP: the standard split by task_id, the full and the sanitized schema, the tests in the prompt."""

import json

import pytest

from salt_jax.tasks.mbpp import make_mbpp

FULL = {
    "task_id": 602, "text": "Write a function to double.", "code": "def f(x):\r\n  return 2 * x",
    "test_list": ["assert f(1) == 2", "assert f(0) == ZERO"], "test_setup_code": "ZERO = 0",
    "challenge_test_list": [],
}  # fmt: skip
SANITIZED = {
    "source_file": "x.ipynb", "task_id": 11, "prompt": "Write a square root.", "code": "import math\nf = math.sqrt",
    "test_imports": ["import math", "import os"], "test_list": ["assert f(4) == math.sqrt(4)"],
}  # fmt: skip


def test_the_standard_split(write, tokenizer):
    path = write("mbpp.jsonl", [FULL | {"task_id": i} for i in range(1, 975)])
    task = make_mbpp("", path=path, tokenizer=tokenizer)
    ids = {
        split: [int(e.id.removeprefix(f"{split}/")) for e in source] for split, source in task.sources.items()
    }
    assert ids == {"train": list(range(601, 975)), "test": list(range(11, 511))}


def test_both_schemas(write, tokenizer):
    task = make_mbpp(
        "", train=write("t.parquet", [FULL]), test=write("s.json", [SANITIZED]), tokenizer=tokenizer
    )
    (full,), (sanitized,) = task.source("train"), task.source("test")
    assert full.prompt == (
        "Write a function to double.\n\nYour code should pass these tests:\n\nassert f(1) == 2\nassert f(0) == ZERO\n\n"
        "Answer with the whole program in one ```python block."
    )
    assert json.loads(full.reference) == {
        "setup": "ZERO = 0", "tests": FULL["test_list"], "entry_point": None, "prefix": "",
    }  # fmt: skip
    assert full.solution.startswith("```python\ndef f(x):")
    assert sanitized.prompt.startswith("Write a square root.\n")
    assert json.loads(sanitized.reference)["setup"] == "import math\nimport os"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (FULL | {"test_list": []}, "'test_list' is empty"),
        (FULL | {"test_list": "assert f"}, "'test_list' must be a list of texts, got str"),
        (FULL | {"task_id": 975}, "'task_id' must be an integer from 1 to 974, got '975'"),
        (FULL | {"task_id": "x"}, "'task_id' must be an integer from 1 to 974, got 'x'"),
        (FULL | {"text": None}, "'text' or 'prompt' is missing"),
    ],
)
def test_rows_that_will_not_do(write, tokenizer, row, message):
    with pytest.raises(ValueError, match=f"^train: .*x.jsonl line 1: {message}"):
        make_mbpp("", train=write("x.jsonl", [row]), tokenizer=tokenizer)


def test_files_that_will_not_do(write, tokenizer):
    path = write("x.jsonl", [FULL])
    with pytest.raises(ValueError, match=r"^path: .*x.jsonl has no task_id from 11 to 510, the test split"):
        make_mbpp("", path=path, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="^path has all problems: set either path, or train and test"):
        make_mbpp("", path=path, train=path, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="^train and test are not set; MBPP is in its authors' repository"):
        make_mbpp("", tokenizer=tokenizer)
    assert (
        make_mbpp("", train=path, instruction="", tokenizer=tokenizer)
        .source("train")[0]
        .prompt.endswith("ZERO")
    )
