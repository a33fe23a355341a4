"""Reasoning Gym: determinism, splits that share nothing, references that a worker can grade with."""

import dataclasses
import fractions
import json
import warnings

import pytest

from salt_jax.tasks.gym import FORMS, make_reasoning_gym

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies, while they are imported
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS


def make(tokenizer, **settings):
    return make_reasoning_gym("", **{"num_train": 60, "num_test": 20} | settings, tokenizer=tokenizer)


def questions(task, split):
    source = task.source(split)
    return [source[i].prompt for i in range(len(source))]


@pytest.mark.parametrize("dataset", ["chain_sum", "gsm_symbolic"])
def test_splits(tokenizer, dataset):
    task, again, other = (make(tokenizer, dataset=dataset, seed=seed) for seed in (0, 0, 1))
    train, test = questions(task, "train"), questions(task, "test")
    assert (len(train), len(test)) == (60, 20)
    assert not set(train) & set(test)
    assert len(set(test)) == 20
    assert (train, test) == (questions(again, "train"), questions(again, "test"))
    assert len(set(train) & set(questions(other, "train"))) <= 3
    assert all(
        prompt.endswith("\n\nPut your final answer within <answer></answer> tags.") for prompt in train
    )


@pytest.mark.parametrize("extract", FORMS)
@pytest.mark.parametrize("dataset", ["chain_sum", "gsm_symbolic"])
def test_solutions_earn_the_full_reward(tokenizer, dataset, extract):
    task = make(tokenizer, dataset=dataset, extract=extract)
    source = task.source("train")
    examples = [source[i] for i in range(len(source))]
    assert json.loads(examples[0].reference)["dataset"] == dataset
    grades = task.grade([e.solution for e in examples], [e.reference for e in examples])
    assert grades.errors.first == ""
    assert grades.rewards.tolist() == [1.0] * len(examples)
    wrong = task.grade([e.solution for e in examples], [e.reference for e in examples[1:] + examples[:1]])
    assert wrong.rewards.mean() < 0.2


def test_settings_reach_the_generator(tokenizer):
    task = make(tokenizer, settings={"min_terms": 3, "max_terms": 3, "max_digits": 2})
    for split in ("train", "test"):
        for example in task.source(split):
            assert json.loads(example.reference)["entry"]["metadata"]["num_terms"] == 3


def test_test_questions_are_those_that_train_leaves(tokenizer):
    """One digit, two terms: 10 · 10 · 2 questions, most of which 150 draws for train have taken or not."""
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task = make(tokenizer, settings=small, num_train=150, num_test=30)
    train, test = questions(task, "train"), questions(task, "test")
    assert len(set(test)) == 30
    assert not set(train) & set(test)
    message = (
        r"^num_test = 40 is not reached: of 800 questions of chain_sum only \d+ are distinct and not in train"
    )
    with pytest.raises(ValueError, match=message):
        make(tokenizer, settings=small, num_train=2000, num_test=40)


def test_answers_of_several_lines_are_no_last_line(tokenizer):
    """A solution is offered in the forms in which it would be found."""
    tags = make(tokenizer, dataset="rotate_matrix", num_train=5, num_test=2).source("train")
    lines = make(tokenizer, dataset="rotate_matrix", num_train=5, num_test=2, extract="last_line").source(
        "train"
    )
    assert all("\n" in tags[i].solution for i in range(5))
    assert [lines[i].solution for i in range(5)] == [""] * 5


@pytest.mark.parametrize("value", [None, "random"])
def test_problems_that_depend_on_hashes(tokenizer, monkeypatch, value):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    make(tokenizer, dataset="ransom_note", num_train=3, num_test=2)
    monkeypatch.delenv("PYTHONHASHSEED") if value is None else monkeypatch.setenv("PYTHONHASHSEED", value)
    with pytest.raises(
        ValueError, match="^dataset = 'ransom_note' has other problems in every process unless"
    ):
        make(tokenizer, dataset="ransom_note", num_train=3, num_test=2)


def test_metadata_that_json_changes(tokenizer, monkeypatch):
    """Fractions become texts, tuples lists: where the scoring minds, the data set is refused."""

    @dataclasses.dataclass
    class Config:
        minds: bool = False
        seed: int | None = None
        size: int = 500

    class Generator(ProceduralDataset):
        def __init__(self, config):
            super().__init__(config, config.seed, config.size)

        def __getitem__(self, index):
            metadata = {"half": fractions.Fraction(1, 2), "pair": (1, 2)}
            return {"question": f"{self.seed + index}?", "answer": "1", "metadata": metadata}

        def score_answer(self, answer, entry):
            unchanged = entry["metadata"]["pair"] == (1, 2) or not self.config.minds
            return float(answer == entry["answer"] and unchanged)

    monkeypatch.setitem(DATASETS, "wild", (Generator, Config))
    task = make(tokenizer, dataset="wild")
    source = task.source("test")
    assert task.grade([source[0].solution], [source[0].reference]).rewards.tolist() == [1.0]
    with pytest.raises(
        ValueError, match="^dataset = 'wild' cannot be carried to the graders as JSON: its own answers"
    ):
        make(tokenizer, dataset="wild", settings={"minds": True})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "chain_sun"}, r"dataset = 'chain_sun' is unknown; nearest: chain_sum, .*, of \d+"),
        ({"dataset": 3}, "dataset = 3 is not allowed; allowed: texts"),
        ({"settings": {"min_terms": 9}}, "settings = .* are refused by chain_sum: AssertionError: max_terms"),
        ({"settings": {"terms": 9}}, "settings = .* are refused by chain_sum: TypeError: .*'terms'"),
        ({"settings": {"seed": 9}}, "settings.seed is not allowed; allowed: this task's own seed"),
        ({"settings": 9}, "settings = 9 is not allowed; allowed: a mapping of settings"),
        ({"num_train": 0}, "num_train = 0 is not allowed"),
        ({"num_test": 10**6}, "num_test = 1000000 is not allowed; allowed: integers from 1 to 104857"),
        ({"seed": 1024}, "seed = 1024 is not allowed; allowed: integers from 0 to 1023"),
        (
            {"extract": "word"},
            "extract = 'word' is not allowed; allowed: 'tag', 'boxed', 'last_number', 'last_line', 'text'",
        ),
    ],
)
def test_settings_that_will_not_do(tokenizer, settings, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        make(tokenizer, **settings)
    assert "\n" not in str(error.value)
