"""GPQA: options in an order of their own, and the letter that follows from it."""

import collections

import pytest

from salt_jax.graders import Grader
from salt_jax.tasks.gpqa import make_gpqa


def rows(count):
    return [
        {"Question": f"Question {i}?\n", "Correct Answer": "right\n", "Incorrect Answer 1": "w1",
         "Incorrect Answer 2": "w2", "Incorrect Answer 3": "w3", "Explanation": "because"}
        for i in range(count)
    ]  # fmt: skip


def test_the_letter_is_the_correct_options(write, tokenizer):
    task = make_gpqa("", test=write("gpqa_diamond.csv", rows(400)), tokenizer=tokenizer)
    letters = collections.Counter()
    for i, example in enumerate(task.source("test")):
        question, options, suffix = example.prompt.split("\n\n")
        assert question == f"Question {i}?"
        shown = dict(line.split(". ") for line in options.splitlines())
        assert sorted(shown) == list("ABCD")
        assert sorted(shown.values()) == ["right", "w1", "w2", "w3"]
        assert shown[example.reference] == "right"
        assert suffix.endswith("within \\boxed{}.")
        letters[example.reference] += 1
    assert all(70 <= letters[letter] <= 130 for letter in "ABCD")  # 100 ± 3.5 standard deviations
    assert task.verifier == Grader("salt_jax.graders.choice:multiple_choice", {"choices": "ABCD"})


def test_the_order_is_the_seeds_and_the_questions(write, tokenizer):
    def prompts(rows, **options):
        return {
            e.prompt
            for e in make_gpqa("", test=write("x.csv", rows), **options, tokenizer=tokenizer).source("test")
        }

    assert prompts(rows(50)) == prompts(rows(50)[::-1])
    assert prompts(rows(50)) >= prompts(rows(50)[7:20])
    assert len(prompts(rows(50)) & prompts(rows(50), seed=1)) < 15
    assert not any("boxed" in prompt for prompt in prompts(rows(2), suffix=""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Incorrect Answer 2": "right"}, "the correct answer 'right' is also among the incorrect ones"),
        ({"Incorrect Answer 3": ""}, "'Incorrect Answer 3' is empty"),
    ],
)
def test_rows_that_will_not_do(write, tokenizer, change, message):
    with pytest.raises(ValueError, match=f"^test: .*x.csv row 1: {message}"):
        make_gpqa("", test=write("x.csv", [rows(1)[0] | change]), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="^seed = -1"):
        make_gpqa("", test=write("x.csv", rows(1)), seed=-1, tokenizer=tokenizer)
