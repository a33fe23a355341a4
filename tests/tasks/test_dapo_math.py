"""DAPO-Math-17k: the original and the processed form, the instruction around problems, repeats."""

import json
import logging

import pytest

from salt_jax.tasks.dapo_math import make_dapo_math

WRAPPER = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer:"
    " $Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


def original(problem, answer, index=0):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": problem, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"id-{index}"},
    }


def pairs(task, split="train"):
    return [(e.prompt, e.reference) for e in task.source(split)]


def test_the_original_is_unwrapped_and_deduplicated(write, tokenizer, caplog):
    rows = [
        original(WRAPPER.format(p), a, i) for i, (p, a) in enumerate([("A\n\nb?", "34"), ("C?", "-2")] * 3)
    ]
    rows.append(original(WRAPPER.format("C?"), "2"))
    with caplog.at_level(logging.INFO, "absl"):
        task = make_dapo_math("", train=write("dapo.parquet", rows), suffix="", tokenizer=tokenizer)
    assert pairs(task) == [("A\n\nb?", "34"), ("C?", "-2")]
    assert "dapo_math, train: 2 problems; 5 rows repeat one, 1 of them with another answer" in caplog.text
    with_steps = make_dapo_math("", train=write("dapo.parquet", rows), tokenizer=tokenizer)
    assert (
        pairs(with_steps)[1][0]
        == "C? Please reason step by step, and put your final answer within \\boxed{}."
    )


def test_the_processed_form(write, tokenizer):
    rows = [
        {"prompt": "A?", "solution": "34", "data_source": "math_dapo", "ability": "MATH"},
        {"prompt": "B", "answer": 5},
    ]
    assert pairs(make_dapo_math("", train=write("x.jsonl", rows), suffix="", tokenizer=tokenizer)) == [
        ("A?", "34"), ("B", "5"),
    ]  # fmt: skip


def test_a_table_has_its_messages_as_a_text(write, tokenizer):
    message = original(WRAPPER.format("A?"), "34")["prompt"]
    rows = [{"prompt": json.dumps(message), "solution": "34"}, {"prompt": str(message), "solution": "34"}]
    for wrapper, problem in (("strip", "A?"), ("keep", message[0]["content"])):
        path = write("x.csv", rows)
        task = make_dapo_math("", train=path, wrapper=wrapper, suffix="", tokenizer=tokenizer)
        assert pairs(task) == [(problem, "34")]


def test_keep(write, tokenizer):
    wrapped = WRAPPER.format("A?")
    path = write("x.jsonl", [original(wrapped, "1"), original("plain", "2")])
    task = make_dapo_math("", train=path, wrapper="keep", suffix="", tokenizer=tokenizer)
    assert pairs(task) == [(wrapped, "1"), ("plain", "2")]
    with pytest.raises(ValueError, match="^wrapper = 'drop' is not allowed; allowed: 'strip', 'keep'"):
        make_dapo_math("", train=path, wrapper="drop", tokenizer=tokenizer)


HALF = "is not a problem with DAPO's instruction before and after it: .*; wrapper = 'keep' takes prompts as they are"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (original("plain", "2"), f"'prompt' {HALF}"),
        (original(WRAPPER.format("A").rpartition("Remember")[0], "2"), f"'prompt' {HALF}"),
        (original(WRAPPER.format(" "), "2"), f"'prompt' {HALF}"),
        ({"prompt": WRAPPER.format("A").partition("\n")[2], "solution": "2"}, f"'prompt' {HALF}"),
        (original("x", "2") | {"prompt": []}, r"'prompt' must be text or a list of messages, got \[\]"),
        (
            original("x", "2") | {"prompt": [{"role": "user", "content": "x"}] * 2},
            "'prompt' must be text or a list with one message",
        ),
        (
            original("x", "2") | {"prompt": [{"role": "user"}]},
            r"'prompt\[0\]': 'content' is missing; columns there: role",
        ),
        (original(WRAPPER.format("A"), None), "'reward_model': 'ground_truth' is missing"),
        (
            original(WRAPPER.format("A"), "2") | {"reward_model": "2"},
            "'reward_model' must be an object .* got str",
        ),
        ({"prompt": "A"}, "'solution' or 'answer' is missing; columns there: prompt"),
    ],
)
def test_rows_that_will_not_do(write, tokenizer, row, message):
    with pytest.raises(ValueError, match=f"^train: .*x.jsonl line 1:? {message}"):
        make_dapo_math("", train=write("x.jsonl", [row]), tokenizer=tokenizer)


def test_without_files(tokenizer):
    with pytest.raises(ValueError, match="^train is not set; DAPO-Math-17k is on the Hugging Face hub"):
        make_dapo_math("", tokenizer=tokenizer)
