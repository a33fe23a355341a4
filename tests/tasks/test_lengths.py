"""Prompts that fit and prompts that do not."""

import pytest

from salt_jax.tasks import CharTokenizer, Example, check_solution_lengths, fitting, prompt_batches

TOKENIZER = CharTokenizer("0123456789=")


def make_source(size):
    return [Example(f"{i}=", reference=str(i), solution=str(i), id=f"train/{i}") for i in range(size)]


def test_fitting_is_the_source_without_the_long_ones():
    source = make_source(120)[::-1]
    fits, skipped = fitting(source, TOKENIZER, 3)
    assert skipped == 20
    assert [fits[i] for i in range(len(fits))] == [example for example in source if len(example.prompt) <= 3]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_a_view_are_those_of_a_source_that_never_had_them(shuffle):
    fits, _ = fitting([make_source(120)[i] for i in (100, 3, 101, 5, 7, 119, 11)], TOKENIZER, 3)
    bare = [make_source(120)[i] for i in (3, 5, 7, 11)]
    options = {"batch_size": 3, "max_prompt_length": 3, "seed": 1, "shuffle": shuffle}
    ours, theirs = prompt_batches(fits, TOKENIZER, **options), prompt_batches(bare, TOKENIZER, **options)
    assert [next(ours)["ids"] for _ in range(5)] == [next(theirs)["ids"] for _ in range(5)]


def test_nothing_is_left_out_where_all_fit():
    source = make_source(120)
    assert fitting(source, TOKENIZER, 4) == (source, 0)
    assert fitting(source, TOKENIZER, 4, on_long="error") == (source, 0)


def test_prompts_are_encoded_once():
    class Counting(CharTokenizer):
        calls = 0

        def encode_prompt(self, prompt):
            self.calls += 1
            return super().encode_prompt(prompt)

    tokenizer = Counting("0123456789=")
    fitting(make_source(120), tokenizer, 3)
    assert tokenizer.calls == 120


@pytest.mark.parametrize(
    ("source", "limit", "options", "message"),
    [
        (make_source(120), 3, {"on_long": "error"}, "max_prompt_length = 3 but .* 'train/100' has 4 tokens"),
        (
            make_source(3),
            1,
            {},
            "max_prompt_length = 1 leaves none of the 3 prompts; the shortest has 2 tokens",
        ),
        (make_source(3), 1, {"on_long": "cut"}, "on_long = 'cut' is not allowed; allowed: 'error', 'skip'"),
        ([], 1, {}, "the source of examples is empty"),
        ([], 1, {"on_long": "error"}, "the source of examples is empty"),
        ([Example("", "", "", "e")], 1, {}, "the prompt of example 'e' has no tokens"),
    ],
)
def test_what_will_not_do(source, limit, options, message):
    with pytest.raises(ValueError, match=message):
        fitting(source, TOKENIZER, limit, **options)


def test_solutions_are_needed_for_a_warm_start():
    with pytest.raises(ValueError, match="example 'train/7' has no solution: warm_start.steps needs one"):
        check_solution_lengths([Example("1=", "1", "", "train/7")], TOKENIZER, 3)
    with pytest.raises(ValueError, match="the source of examples is empty"):
        check_solution_lengths([], TOKENIZER, 3)
