"""Held-out evaluation: filler rows and failed graders are not counted, rounds fill up to n samples, nothing is lost."""

from __future__ import annotations

import json
import math
import random

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.evaluation.evaluate import (
    Estimate,
    ProblemResult,
    collect,
    compare,
    decode_completions,
    evaluate,
    summarize,
)
from salt_jax.graders import Verdict, grade_all
from salt_jax.policy.sampler import Samples
from salt_jax.tasks import CharTokenizer, Example, Task, exact_match, prompt_batches

TOKENIZER = CharTokenizer("0123456789+=x")
EXAMPLES = [Example(f"{i}+1=", str(i + 1), str(i + 1), f"test/{i}") for i in range(5)]


def answer(texts: list[str], length: int = 4) -> Samples:
    """What a sampler would return for these completions; a text without room for the end token is truncated."""
    tokens, lengths = np.zeros((len(texts), length), np.int32), []
    for row, text in enumerate(texts):
        ids = [*TOKENIZER.encode(text), TOKENIZER.eos_id][:length]
        tokens[row, : len(ids)] = ids
        lengths.append(len(ids))
    truncated = jnp.array([len(text) >= length for text in texts])
    return Samples(jnp.array(tokens), jnp.array(lengths), jnp.zeros((len(texts), length)), truncated)


def task(verifier=exact_match) -> Task:
    return Task("sums", TOKENIZER, {"test": EXAMPLES}, verifier)


def batches(size: int):
    return prompt_batches(
        EXAMPLES, TOKENIZER, batch_size=size, max_prompt_length=4, seed=0, shuffle=False, repeat=False
    )


def texts_of(prompts, mask) -> list[str]:
    return [TOKENIZER.decode(row[m].tolist()) for row, m in zip(prompts, mask, strict=True)]


def replies(per_problem: dict[str, str]):
    return lambda prompts, mask: answer([per_problem[text] for text in texts_of(prompts, mask)])


def decode(samples: Samples) -> list[str]:
    return decode_completions(task(), samples)


# --- one sample a problem ---


def test_decoding_uses_lengths_not_the_pad_id():
    assert decode(answer(["12", ""])) == ["12", ""]
    assert decode(answer(["1234"]).replace(lengths=jnp.array([2]))) == ["12"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_accuracy_does_not_depend_on_the_batch_size(size):
    per_problem = {"0+1=": "1", "1+1=": "2", "2+1=": "9", "3+1=": "4444", "4+1=": "5"}
    result = evaluate(replies(per_problem), batches(size), task())
    assert (result.accuracy, result.problems, result.missing, result.truncated) == (3 / 5, 5, 0, 1 / 5)
    assert (result.samples, result.length, result.reward) == (5, (4 * 2 + 4) / 5, 3 / 5)
    assert result == evaluate(replies(per_problem), batches(5), task())


def failing_at_x(completion: str, reference: str) -> float:
    if completion == "x":
        raise RuntimeError("unreadable")
    return exact_match(completion, reference)


def test_a_failed_grader_is_missing_not_wrong():
    per_problem = {"0+1=": "1", "1+1=": "x", "2+1=": "9", "3+1=": "4", "4+1=": "x"}
    result = evaluate(replies(per_problem), batches(2), task(failing_at_x))
    assert (result.accuracy, result.problems, result.missing, result.truncated) == (2 / 3, 5, 2, 0.0)
    assert result.average.problems == 3


def test_partial_credit_is_reward_and_not_accuracy():
    half = task(lambda completion, reference: 0.5 + exact_match(completion, reference) / 2)
    per_problem = {"0+1=": "1", "1+1=": "9", "2+1=": "9", "3+1=": "9", "4+1=": "9"}
    result = evaluate(replies(per_problem), batches(5), half)
    assert (result.accuracy, result.reward) == (1 / 5, pytest.approx((1 + 4 * 0.5) / 5, rel=1e-7))
    assert evaluate(replies(per_problem), batches(5), half, correct_from=0.5).accuracy == 1.0


def test_when_every_grader_fails_nothing_is_claimed():
    unreadable = replies({example.prompt: "x" for example in EXAMPLES})
    result = evaluate(unreadable, batches(5), task(failing_at_x))
    assert math.isnan(result.accuracy)
    assert math.isnan(result.reward)
    assert (result.problems, result.samples, result.missing) == (5, 5, 5)
    record = json.loads(json.dumps(result.to_record(), allow_nan=False))
    assert (record["accuracy"], record["reward"], record["pass@1"], record["majority"]) == (None,) * 4
    assert (record["missing"], record["accuracy_problems"]) == (5, 0)


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match="empty"):
        evaluate(replies({}), [], task())
    with pytest.raises(ValueError, match="empty"):
        summarize([])


# --- several ---


class Policy:
    """g completions a prompt and call, 'first digit of the problem, then two of the row's call': all distinct."""

    def __init__(self, group: int) -> None:
        self.group, self.rounds = group, []

    def __call__(self, prompts, mask, number: int) -> Samples:
        self.rounds.append(number)
        return answer([f"{text[0]}{number}{j}" for text in texts_of(prompts, mask) for j in range(self.group)])


def graded(completions, references):
    return grade_all(lambda c, r: Verdict(float(c[-1] == "0"), c[0]), completions, references)


@pytest.mark.parametrize(
    ("group", "samples", "calls"), [(1, 1, 1), (1, 3, 3), (2, 4, 2), (2, 5, 3), (3, 2, 1), (4, 4, 1)]
)
@pytest.mark.parametrize("size", [2, 5])
def test_rounds_fill_up_to_n_samples(group, samples, calls, size):
    policy = Policy(group)
    results = collect(policy, batches(size), decode, graded, samples=samples)
    per_batch = math.ceil(5 / size)
    assert policy.rounds == list(range(calls * per_batch))  # a number of its own for each call, over all batches
    assert [result.id for result in results] == [example.id for example in EXAMPLES]
    for i, result in enumerate(results):
        first = i // size * calls
        expected = [f"{i}{first + s // group}{s % group}" for s in range(samples)]
        assert list(result.texts) == expected
        assert result.reference == EXAMPLES[i].reference
        assert list(result.rewards) == [float(text[-1] == "0") for text in expected]
        assert result.answers == (str(i),) * samples
        assert (result.lengths, result.truncated) == ((4,) * samples, (False,) * samples)


def test_filler_rows_and_surplus_are_not_graded():
    seen = []

    def grade(completions, references):
        seen.extend(zip(completions, references, strict=True))
        return graded(completions, references)

    collect(Policy(2), batches(4), decode, grade, samples=3)
    assert len(seen) == 5 * 3
    assert all(int(text[0]) + 1 == int(reference) for text, reference in seen)


def test_a_call_is_graded_while_the_next_is_generated():
    events = []

    def generate(prompts, mask, number):
        events.append(f"generate {number}")
        return Policy(1)(prompts, mask, number)

    def grade(completions, references):
        events.append(f"grade {completions[0][1]}")
        return graded(completions, references)

    collect(generate, batches(5), decode, grade, samples=3)
    assert events == ["generate 0", "generate 1", "grade 0", "generate 2", "grade 1", "grade 2"]


def test_prompts_are_kept_for_people():
    prompts = {example.id: f"What is {example.prompt}?" for example in EXAMPLES}
    results = collect(Policy(1), batches(2), decode, graded, prompts=prompts)
    assert [result.prompt for result in results] == list(prompts.values())
    with pytest.raises(ValueError, match="no text for 1 of 5 problems: 'test/3'"):
        collect(Policy(1), batches(2), decode, graded, prompts={k: v for k, v in prompts.items() if k != "test/3"})


def short(function):
    return lambda *arguments: function(*arguments)[:-1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"generate": lambda prompts, mask, number: answer(["1"] * 3)}, "generate returned 3 rows for 2 prompts"),
        ({"generate": lambda prompts, mask, number: answer(["1"])}, "generate returned 1 rows for 2 prompts"),
        ({"decode": short(decode)}, "decode returned 1 rows for 2"),
        ({"grade": lambda completions, references: graded(["10"], ["1"])}, "grade returned 1 rows for 2"),
        ({"batches": [*batches(2), *batches(2)]}, "problem 'test/0' comes twice"),
    ],
)
def test_what_collect_refuses(changed, words):
    usual = {"generate": Policy(1), "batches": batches(2), "decode": decode, "grade": graded}
    with pytest.raises(ValueError, match=words):
        collect(**(usual | changed))


# --- summing up ---


def problem(name: str, rewards: list[float | None], answers: list[str | None] | None = None, **changed):
    """A problem by its rewards; None is missing."""
    n = len(rewards)
    given = [math.nan if reward is None else reward for reward in rewards]
    values = {
        "id": name, "reference": "7", "texts": ("",) * n, "rewards": tuple(given),
        "rewarded": tuple(reward is not None for reward in rewards), "truncated": (False,) * n, "lengths": (3,) * n,
        "answers": tuple(answers or [None] * n),
    }  # fmt: skip
    return ProblemResult(**(values | changed))


RESULTS = [
    problem("a", [1, 1, 0, 0], ["7", "7", "8", None]),
    problem("b", [0, None, 1, None], ["8", None, "7", None]),
    problem("c", [None] * 4),
    problem("d", [0, 0, 0, 0.5], [None] * 4, truncated=(True, True, False, False), lengths=(9, 9, 5, 5)),
]


def test_scores_by_hand():
    result = summarize(RESULTS, ks=(1, 2, 4))
    assert result.accuracy == pytest.approx((2 / 4 + 1 / 2 + 0) / 3)
    assert result.average.problems == 3
    assert result.pass_at[1].value == pytest.approx(result.accuracy)
    assert result.pass_at[2].value == pytest.approx((5 / 6 + 1 + 0) / 3)  # of six pairs of a, one has no correct one
    assert result.pass_at[2].problems == 3
    assert result.pass_at[4] == Estimate(0.5, 0.0, 1.0, 2)  # a and d; b has two graded samples
    assert result.majority.value == pytest.approx((1 + 1 / 2 + 0) / 3)  # d has no answer: wrong
    assert result.majority.problems == 3
    assert result.reward == pytest.approx((2 / 4 + 1 / 2 + 0.5 / 4) / 3)
    assert (result.problems, result.samples, result.missing) == (4, 16, 6)
    assert (result.truncated, result.length) == (2 / 16, (12 * 3 + 28) / 16)


def test_the_threshold_moves_all_scores():
    result = summarize(RESULTS, ks=(4,), correct_from=0.5)
    assert result.accuracy == pytest.approx((2 / 4 + 1 / 2 + 1 / 4) / 3)
    assert result.pass_at[4].value == 1.0
    assert result.reward == summarize(RESULTS).reward
    half = [problem("a", [0.5, 0.5, 0], ["7", "7", "8"])]
    assert [summarize(half, correct_from=x).majority.value for x in (0.5, 1.0)] == [1.0, 0.0]


def test_without_answers_there_is_no_majority():
    result = summarize([problem("a", [1, 0]), problem("b", [0, 0])])
    assert result.majority is None
    assert {result.to_record()[f"majority{end}"] for end in ("", "_low", "_high")} == {None}


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match=f"pass@{k} is not possible with 4 samples"):
        summarize(RESULTS, ks=(k,))


def test_the_record_is_flat_and_has_every_number():
    result = summarize(RESULTS, ks=(1, 4))
    record = result.to_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    names = [f"{name}{end}" for name in ("accuracy", "pass@1", "pass@4", "majority") for end in
             ("", "_low", "_high", "_problems")]  # fmt: skip
    assert list(record) == [*names, "reward", "problems", "samples", "missing", "truncated", "length"]
    assert (record["accuracy"], record["pass@4_low"]) == (result.accuracy, 0.0)
    assert record["majority"] == result.majority.value


REWARD = st.sampled_from([None, 0.0, 0.25, 1.0])
COLUMNS = st.lists(st.tuples(REWARD, st.sampled_from([None, "7", "8"])), min_size=1, max_size=6)
PROBLEMS = st.lists(COLUMNS, min_size=1, max_size=8)


@given(PROBLEMS, st.randoms(use_true_random=False))
def test_neither_order_matters(problems: list, shuffler: random.Random):
    def shuffled(items: list) -> list:
        return shuffler.sample(items, len(items))

    def results(problems: list[tuple[str, list]]) -> list[ProblemResult]:
        return [problem(name, [r for r, _ in drawn], [a for _, a in drawn]) for name, drawn in problems]

    named = [(str(i), drawn) for i, drawn in enumerate(problems)]
    k = min(2, max(map(len, problems)))
    one = summarize(results(named), ks=(1, k)).to_record()
    other = summarize(results(shuffled([(name, shuffled(drawn)) for name, drawn in named])), ks=(1, k)).to_record()
    for name, value in one.items():
        assert other[name] == (None if value is None else pytest.approx(value, rel=1e-12)), name


@given(PROBLEMS)
def test_a_missing_reward_is_as_if_never_drawn(problems: list):
    """All but the counts are those of the graded samples alone."""
    graded_only = [[pair for pair in drawn if pair[0] is not None] for drawn in problems]
    hypothesis.assume(any(graded_only))
    full, kept = (
        [problem(str(i), [r for r, _ in drawn], [a for _, a in drawn]) for i, drawn in enumerate(side) if drawn]
        for side in (problems, graded_only)
    )
    one, other = summarize(full), summarize(kept)
    for field in ("average", "pass_at", "majority", "reward"):
        np.testing.assert_equal(getattr(one, field), getattr(other, field))
    assert one.missing == sum(r is None for drawn in problems for r, _ in drawn)


# --- against a baseline ---


def test_compare_is_of_accuracies_on_the_same_problems():
    baseline = [problem("d", [1, 0]), problem("c", [1, 1]), problem("b", [0, 1, 0, 0]), problem("a", [0])]
    result = compare(RESULTS, baseline)
    assert result.difference == pytest.approx(((2 / 4 - 0) + (1 / 2 - 1 / 4) + (0 - 1 / 2)) / 3)
    assert (result.problems, result.left_out) == (3, 1)  # c has no graded sample in RESULTS
    assert compare(RESULTS, baseline, correct_from=0.5).difference > result.difference
    with pytest.raises(ValueError, match="'d'"):
        compare(RESULTS, baseline[1:])
