"""AIME: answers as integers or texts, several years, both spellings of the columns."""

import pytest

from salt_jax.tasks.aime import make_aime


def test_years_and_spellings(write, tokenizer):
    years = [
        write("2024.parquet", [{"ID": "2024-I-1", "Problem": "p", "Solution": "s", "Answer": 33}]),
        write("2025.jsonl", [{"problem": "q", "answer": "033"}, {"problem": "r", "answer": 0.0}]),
    ]
    task = make_aime("", test=years, tokenizer=tokenizer)
    examples = [task.source("test")[i] for i in range(3)]
    assert [e.reference for e in examples] == ["33", "33", "0"]
    assert [e.prompt[0] for e in examples] == ["p", "q", "r"]
    assert [e.solution for e in examples] == ["s", "", ""]
    assert list(task.sources) == ["test"]


@pytest.mark.parametrize("answer", ["1000", "-1", "3.5", "x", "²", 1000, 0.5])
def test_other_answers_are_refused(write, tokenizer, answer):
    with pytest.raises(
        ValueError, match=r"^test: .*x.jsonl line 1: the answer .* is no integer from 0 to 999"
    ):
        make_aime("", test=write("x.jsonl", [{"problem": "p", "answer": answer}]), tokenizer=tokenizer)
