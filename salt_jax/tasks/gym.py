"""Reasoning Gym: problems that are generated, from more than a hundred generators (the extra 'gym')."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from salt_jax.graders import Grader
from salt_jax.graders.extract import EXTRACT
from salt_jax.tasks.references import usable
from salt_jax.tasks.settings import check_choice, check_integer, check_text, need_tokenizer, plain
from salt_jax.tasks.task import Example, Task
from salt_jax.tasks.tokenizers import Tokenizer

# The grader's `extract`, how it finds an answer → what the prompt says about it, and an answer in that form.
FORMS = {
    "tag": ("Put your final answer within <answer></answer> tags.", "<answer>{}</answer>"),
    "boxed": ("Put your final answer within \\boxed{}.", "\\boxed{{{}}}"),
    "last_number": ("Reply with the number.", "{}"),
    "last_line": ("Put your final answer alone on the last line.", "{}"),
    "text": ("Write the final answer and nothing else.", "{}"),
}
# Item i of a data set with seed s is drawn with seed s + i: neighbouring seeds would share all items but one.
_SPACING = 2**21
# These go through sets of texts (0.1.25): another order, and so other problems, in each process that hashes otherwise.
_HASHING = ("isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder")
_BLOCKS = 20  # of num_test items each, in search of test questions that are not in train


def make_reasoning_gym(
    data_dir: str | os.PathLike[str],
    dataset: str = "chain_sum",
    settings: Mapping[str, Any] | None = None,
    num_train: int = 8000,
    num_test: int = 500,
    seed: int = 0,
    extract: str = "tag",
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    """A Reasoning Gym task: problems of one generator, graded by that generator.

    All problems are generated when the task is made: 8,000 take half a second with chain_sum and gsm_symbolic, but
    some generators of puzzles take a hundred times as long. Train questions may repeat, as they are drawn;
    test questions are distinct, and none of them is a train question. Splits with different seeds share no
    item's seed.

    A completion earns what the generator's ``score_answer`` gives, from 0 to 1; some give a hundredth or more
    to any number.

    Args:
      data_dir: unused: nothing is written.
      dataset: a generator's name, as 'chain_sum' or 'gsm_symbolic'.
      settings: that generator's own settings, but not seed and size.
      num_train: problems in the train split.
      num_test: problems in the test split.
      seed: chooses the problems, 0 to 1023.
      extract: where the answer stands, which the prompt then says: 'tag' (<answer>46</answer>), 'boxed',
        'last_number' (lenient, for models too small for a format), 'last_line' or 'text' (nothing but the answer).
      on_bad_reference: 'error', or 'skip' to leave out rows whose reference cannot be graded by (``references``).
      tokenizer: the model's.

    Returns:
      A task with splits 'train' and 'test'. A solution is the generator's answer alone, '' where it has none
      that earns 1.

    Raises:
      ValueError: an absent extra, an unknown data set, settings it refuses, too few distinct test questions; a
        generator whose problems cannot be carried by JSON to the workers that grade them (arc_agi, rearc), or
        would be others after a resumption (isomorphic_strings, polynomial_multiplication, ransom_note and
        word_ladder, unless PYTHONHASHSEED is set).
    """
    tokenizer = need_tokenizer("reasoning_gym", tokenizer)
    check_text(dataset=dataset)
    check_choice(FORMS, extract=extract)
    check_integer(1, _SPACING, num_train=num_train)
    check_integer(1, _SPACING // _BLOCKS, num_test=num_test)
    check_integer(0, 1023, seed=seed)
    options = plain("settings", {} if settings is None else settings)
    for name in ("seed", "size"):
        if name in options:
            raise ValueError(
                f"settings.{name} is not allowed; allowed: this task's own seed, num_train and num_test"
            )
    if dataset in _HASHING and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise ValueError(
            f"dataset = {dataset!r} has other problems in every process unless the environment variable PYTHONHASHSEED"
            " is the same number for all, 0 say"
        )
    first = 2 * seed * _SPACING
    train = list(_items(dataset, options, first, num_train))
    seen = {item["question"] for item in train}
    test: list[dict[str, Any]] = []
    for block in range(_BLOCKS):
        for item in _items(dataset, options, first + _SPACING + block * num_test, num_test):
            if item["question"] not in seen and len(test) < num_test:
                seen.add(item["question"])
                test.append(item)
        if len(test) == num_test:
            break
    else:
        raise ValueError(
            f"num_test = {num_test} is not reached: of {_BLOCKS * num_test} questions of {dataset} only {len(test)} are"
            " distinct and not in train; lower num_train or num_test, or widen settings"
        )
    grader = Grader("salt_jax.graders.reasoning:score_answer", {"extract": extract})
    make = _example_maker(dataset, options, extract)
    sources = {
        split: [make(item, f"{split}/{i}") for i, item in enumerate(items)]
        for split, items in (("train", train), ("test", test))
    }
    return usable(Task("reasoning_gym", tokenizer, sources, grader), on_bad_reference)


def _generator(name: str, options: Mapping[str, Any], seed: int, size: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ValueError("task reasoning_gym needs the extra 'gym': pip install 'salt-jax[gym]'") from None
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4) or sorted(DATASETS)[:3]
        raise ValueError(f"dataset = {name!r} is unknown; nearest: {', '.join(near)}, of {len(DATASETS)}")
    try:
        return reasoning_gym.create_dataset(name, **options, seed=seed, size=size)
    except Exception as error:  # generators check their settings by whatever means: assert, TypeError
        raise ValueError(f"settings = {dict(options)!r} are refused by {name}: {_one_line(error)}") from None


def _items(name: str, options: Mapping[str, Any], seed: int, size: int) -> Iterator[dict[str, Any]]:
    generator = _generator(name, options, seed, size)
    for index in range(size):
        try:
            item = generator[index]
        except Exception as error:  # as above
            raise ValueError(f"dataset = {name!r} fails at item {index}: {_one_line(error)}") from None
        if not isinstance(item.get("question"), str) or not item["question"].strip():
            raise ValueError(f"dataset = {name!r} has no question as text at item {index}")
        yield item


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _example_maker(dataset: str, options: Mapping[str, Any], extract: str) -> Any:
    scorer = _generator(dataset, options, 0, 1)
    instruction, form = FORMS[extract]

    def make(item: dict[str, Any], name: str) -> Example:
        # The scoring of some generators asks for their settings.
        reference = {"dataset": dataset, "entry": item} | ({"config": dict(options)} if options else {})
        # Fractions and the like become texts; lists come out of tuples: it must make no difference to the scoring.
        text = json.dumps(reference, default=str)
        answer, solution = item.get("answer"), ""
        if isinstance(answer, str) and scorer.score_answer(answer, item) == 1.0:
            if scorer.score_answer(answer, json.loads(text)["entry"]) != 1.0:
                raise ValueError(
                    f"dataset = {dataset!r} cannot be carried to the graders as JSON: its own answers fail there"
                )
            solution = form.format(answer)
            found = EXTRACT[extract](solution)
            if found is None or scorer.score_answer(found, item) != 1.0:
                solution = ""  # an answer of several lines, with 'last_line'
        return Example(f"{item['question'].strip()}\n\n{instruction}", text, solution, name)

    return make
