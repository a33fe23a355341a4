"""Graders that hand on: a user's function of a row, the parts of a mixture."""

import json

import pytest

from salt_jax.graders import Grader, Verdict, exact_match
from salt_jax.graders.custom import by_name, call_user

HERE = {"sums": {"path": "salt_jax.graders.verdict:exact_match", "arguments": {}},
        "letters": {"path": "salt_jax.graders.choice:multiple_choice", "arguments": {"choices": "AB"}},
        "completion": {"path": "salt_jax.graders.verdict:exact_match", "arguments": {}}}  # fmt: skip


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def length(completion, row, scale=1.0):\n    return scale * (len(completion) == row['length'])\n"
        "def verdict(completion, row):\n    from salt_jax.graders import Verdict\n    return Verdict(0.5, completion)\n"
        "def broken(completion, row):\n    return row['absent']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_a_users_function(module):
    row = json.dumps({"length": 2, "prompt": "p"})
    assert call_user("ab", row, path="my_rewards:length") == 1.0
    assert call_user("abc", row, path="my_rewards:length") == 0.0
    assert call_user("ab", row, path="my_rewards:length", arguments={"scale": 0.25}) == 0.25
    assert call_user("ab", row, path="my_rewards:verdict") == Verdict(0.5, "ab")
    with pytest.raises(KeyError, match="absent"):
        call_user("ab", row, path="my_rewards:broken")


@pytest.mark.parametrize("part", ["sums", "completion"])
def test_a_part_of_a_mixture_is_graded_by_its_grader(part):
    grader = Grader("salt_jax.graders.custom:by_name", HERE)
    for completion, reference in (("46", "46"), ("47", "46"), ('"', "[]"), (" é ", "é")):
        assert grader(completion, json.dumps([part, reference])) == exact_match(completion, reference)


def test_arguments_and_verdicts_pass_through():
    assert by_name("The answer is B.", '["letters", "B"]', **HERE) == Verdict(1.0, "B")
    with pytest.raises(ValueError, match="part 'other' has no grader; there are sums, letters, completion"):
        by_name("46", '["other", "46"]', **HERE)
    with pytest.raises(ValueError, match="none of"):
        by_name("C", '["letters", "C"]', **HERE)
