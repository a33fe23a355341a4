"""MATH: the two published schemas, answers out of boxes, prompts with their suffix."""

import pytest

from salt_jax.tasks import TASKS
from salt_jax.tasks.math import make_math

STEPS = "Please reason step by step, and put your final answer within \\boxed{}."
# hendrycks_math has problem, level, type, solution; MATH-500 has answer and unique_id besides.
TRAIN = [
    {"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": r"$1+1=\boxed{2}$."},
    {
        "problem": "Half?",
        "level": "Level 5",
        "type": "Algebra",
        "solution": r"\boxed{9} no, \boxed{\frac{1}{2}}",
    },
]
TEST = [
    {"problem": "P", "solution": r"so $\boxed{\text{(3,4)}}$", "answer": "(3,4)", "subject": "Precalculus", "level": 2,
     "unique_id": "test/precalculus/807.json"}
]  # fmt: skip


def test_both_schemas(write, tokenizer):
    task = make_math(
        "", train=write("train.parquet", TRAIN), test=write("test.jsonl", TEST), tokenizer=tokenizer
    )
    first, second = (task.source("train")[i] for i in range(2))
    assert first.prompt == f"What is $1+1$? {STEPS}"
    assert (first.reference, first.solution, first.id) == ("2", r"$1+1=\boxed{2}$.", "train/0")
    assert second.reference == r"\frac{1}{2}"
    assert task.source("test")[0].reference == "(3,4)"  # the column goes before the box
    assert (task.verifier.path, dict(task.verifier.arguments)) == (
        "salt_jax.graders.mathematics:math_equal",
        {},
    )
    assert task.tokenizer is tokenizer


def test_settings(write, tokenizer):
    path = write("a.jsonl", TRAIN)
    task = make_math("", train=(path, write("b.jsonl", TRAIN)), suffix="", boxed_only=True, tokenizer=tokenizer)
    assert [task.source("train")[i].id for i in range(4)] == [f"train/{i}" for i in range(4)]
    assert task.source("train")[0].prompt == "What is $1+1$?"
    assert dict(task.verifier.arguments) == {"boxed_only": True}
    with pytest.raises(ValueError, match="split = 'test' is unknown; allowed: train"):
        task.source("test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"solution": r"\boxed{1}"}, "'problem' or 'question' is missing; columns there: solution"),
        ({"problem": "p", "solution": "so 2"}, r"no \\boxed{...} in 'solution', and no 'answer'"),
        ({"problem": "p", "solution": r"\boxed{}"}, r"no \\boxed{...} in 'solution', and no 'answer'"),
        ({"problem": "p"}, "'solution' is missing; columns there: problem"),
        ({"problem": "p", "answer": [1]}, "'answer' must be text or a number, got list"),
        ({"problem": ["p"], "answer": 1}, "'problem' must be text, got list"),
        ({"problem": " ", "answer": 1}, "'problem' is empty"),
    ],
)
def test_rows_that_will_not_do(write, tokenizer, row, message):
    with pytest.raises(ValueError, match=f"^train: .*x.jsonl line 3: {message}"):
        make_math("", train=write("x.jsonl", [*TRAIN, row]), tokenizer=tokenizer)


def test_settings_that_will_not_do(write, tokenizer):
    path = write("x.jsonl", TRAIN)
    with pytest.raises(ValueError, match="^train and test are not set; MATH is on the Hugging Face hub"):
        make_math("", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="^test: .*no.jsonl does not exist; MATH is on the Hugging Face hub"):
        make_math("", train=path, test=path.replace("x.jsonl", "no.jsonl"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="^suffix = 3 is not allowed; allowed: texts"):
        make_math("", train=path, suffix=3, tokenizer=tokenizer)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("arithmetic", "mixture")])
def test_real_texts_need_a_models_tokenizer(name):
    with pytest.raises(ValueError, match=f"^name = '{name}' needs a model's tokenizer; allowed with config.model.path"):
        TASKS[name]("somewhere")
