"""Mixtures: proportions, coverage, resumption, independence of hosts, and each part graded by its own grader."""

import collections
import json

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.graders import exact_match
from salt_jax.tasks import SINGLE_TASKS, Example, Task, prompt_batches
from salt_jax.tasks.mixture import as_grader, make_mixture, mix

SUMS = {"task": "arithmetic", "digits": 1, "num_train": 60, "num_test": 5, "weight": 3}
PRODUCTS = {"task": "arithmetic", "digits": 1, "operators": "*", "num_train": 30, "num_test": 7}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return make_mixture(tmp_path_factory.mktemp("data"), parts={"sums": SUMS, "products": PRODUCTS})


parts = st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 20)), min_size=1, max_size=5)


@given(parts, st.integers(0, 3))
def test_an_epoch(parts, seed):
    sizes, weights = zip(*parts, strict=True)
    part, item = mix(sizes, weights, seed)
    counts = np.bincount(part, minlength=len(sizes))
    shares = np.array(weights) / sum(weights)
    assert np.all(np.abs(counts - len(part) * shares) <= len(sizes) + 1)  # in proportion to the weights ...
    for t in range(len(part)):
        assert np.all(
            np.abs(np.bincount(part[:t], minlength=len(sizes)) - t * counts / len(part)) <= len(sizes)
        )
    for p, n in enumerate(sizes):  # ... and nobody is left out or favoured
        seen = np.bincount(item[part == p], minlength=n)
        assert len(seen) == n
        assert seen.min() >= 1
        assert seen.max() - seen.min() <= 1
    # No shorter epoch would do: some part is gone through no more than it must be, but for rounding.
    assert min(counts[p] - sizes[p] for p in range(len(sizes))) <= 1


def test_the_order_is_the_seeds():
    first, again, other = (mix([50, 20], [1.0, 1.0], seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[1], other[1])
    np.testing.assert_array_equal(first[0], mix([50, 20], [7e-30, 7e-30], 0)[0])  # only ratios count


def test_absurd_weights_are_refused():
    with pytest.raises(
        ValueError, match=r"^parts: these weights make an epoch of 1e\+09 examples; allowed: 10,000,000"
    ):
        mix([1000, 10], [1e-6, 1.0], 0)
    with pytest.raises(ValueError, match="^parts: these weights make an epoch of inf"):
        mix([1, 1], [5e-324, 1e308], 0)


def test_rows_know_their_part(task):
    train = task.source("train")
    # 3:1 of 60 and 30 examples: products, all once, are a quarter.
    assert len(train) == 120
    examples = [train[i] for i in range(len(train))]
    assert collections.Counter(e.id.split("/")[0] for e in examples) == {"sums": 90, "products": 30}
    assert len({e.id for e in examples}) == 90
    for example in examples:
        name, answer = json.loads(example.reference)
        assert example.id.startswith(f"{name}/train/")
        assert answer == example.solution
        assert ("*" in example.prompt) == (name == "products")


def test_test_splits_follow_each_other(task):
    ids = [e.id for e in task.source("test")]
    assert ids == [f"products/test/{i}" for i in range(7)] + [f"sums/test/{i}" for i in range(5)]


def test_the_order_of_the_parts_in_a_config_is_irrelevant(task, tmp_path):
    other = make_mixture(tmp_path, parts={"products": PRODUCTS, "sums": SUMS})
    assert [e.id for e in other.source("train")] == [e.id for e in task.source("train")]


def test_grading(task):
    source = task.source("test")
    references = [e.reference for e in source]
    assert task.grade([e.solution for e in source], references).rewards.tolist() == [1.0] * 12
    assert task.grade(["x"] * 12, references).rewards.tolist() == [0.0] * 12


def batches(task, shard=(0, 1), seed=5):
    return prompt_batches(
        task.source("train"), task.tokenizer, batch_size=8, max_prompt_length=4, seed=seed, shard=shard
    )


def ids(iterator, count):
    return [next(iterator)["ids"] for _ in range(count)]


def test_shuffled_batches_have_the_proportions_on_average(task):
    names = [name.split("/")[0] for batch in ids(batches(task), 15) for name in batch]  # an epoch
    assert collections.Counter(names) == {"sums": 90, "products": 30}
    first_half = collections.Counter(names[:60])
    assert 7 <= first_half["products"] <= 23  # 15 ± 3.3 standard deviations of a shuffle


@pytest.mark.parametrize("consumed", [0, 4, 15, 22])
def test_resumption(task, consumed, tmp_path):
    """Weights, shuffle and repeat: a state saved after n batches goes on as if nothing had happened."""
    iterator = batches(task)
    ids(iterator, consumed)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(consumed, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        expected = ids(iterator, 20)
        manager.wait_until_finished()
    parts = {"sums": SUMS, "products": PRODUCTS}
    restored = batches(make_mixture(tmp_path, parts=parts))
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.restore(consumed, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored)))
    assert ids(restored, 20) == expected


@pytest.mark.parametrize("count", [2, 4])
def test_hosts(task, count):
    hosts = [batches(task, (i, count)) for i in range(count)]
    joined = [sum((next(host)["ids"] for host in hosts), []) for _ in range(20)]
    assert joined == ids(batches(task), 20)


def test_parts_without_a_split(write, tokenizer):
    math = write("math.jsonl", [{"problem": f"p{i}", "answer": i} for i in range(3)])
    aime = write("aime.jsonl", [{"problem": f"q{i}", "answer": i} for i in range(2)])
    task = make_mixture(
        "",
        parts={"math": {"task": "math", "train": math}, "aime": {"task": "aime", "test": aime}},
        tokenizer=tokenizer,
    )
    assert {e.id for e in task.source("train")} == {f"math/train/{i}" for i in range(3)}
    assert [e.id for e in task.source("test")] == ["aime/test/0", "aime/test/1"]
    assert set(task.verifier.arguments) == {"math", "aime"}
    assert task.tokenizer is tokenizer
    json.dumps(dict(task.verifier.arguments))  # a worker gets them so


def test_own_functions_become_graders():
    assert as_grader("parts.x", exact_match)("46", "46") == 1.0
    with pytest.raises(ValueError, match=r"^parts.x: a verifier of a mixture must be a function of a module"):
        as_grader("parts.x", lambda completion, reference: 1.0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "parts is empty; set parts.NAME.task"),
        (3, "parts = 3 is not allowed"),
        ({"a": 3}, "parts.a = 3 is not allowed"),
        ({"a/b": SUMS}, "parts has the name 'a/b'; allowed: names without '/'"),
        ({"a": {}}, "parts.a.task = None is unknown; allowed: arithmetic, gsm8k"),
        ({"a": {"task": "mixture"}}, "parts.a.task = 'mixture' is unknown"),
        ({"a": SUMS | {"weight": 0}}, "parts.a.weight = 0 is not allowed; allowed: numbers > 0"),
        ({"a": SUMS | {"weight": float("nan")}}, "parts.a.weight = nan is not allowed"),
        ({"a": SUMS | {"weight": "1"}}, "parts.a.weight = '1' is not allowed"),
        ({"a": SUMS | {"digit": 1}}, "parts.a.digit is not a key; allowed: task, weight, operands, digits"),
        ({"a": SUMS | {"digits": 0}}, "parts.a.digits = 0 is not allowed"),
        (
            {"a": {"task": "math", "train": "no.jsonl"}},
            "parts.a.name = 'math' needs a model's tokenizer; allowed with config.model.path set",
        ),
    ],
)
def test_parts_that_will_not_do(tmp_path, parts, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_mixture(tmp_path, parts=parts)


def test_a_parts_file_is_named(write, tmp_path, tokenizer):
    path = write("x.jsonl", [{"problem": "p"}])
    with pytest.raises(ValueError, match=r"^parts.a.train: .*x.jsonl line 1: 'solution' is missing"):
        make_mixture(tmp_path, parts={"a": {"task": "math", "train": path}}, tokenizer=tokenizer)


def test_parts_share_the_tokenizer(tmp_path, monkeypatch, tokenizer):
    example = Example("p", "r", "s", "train/0")
    other = lambda data_dir, tokenizer=None: Task("other", object(), {"train": [example]}, exact_match)
    monkeypatch.setitem(SINGLE_TASKS, "other", other)
    with pytest.raises(ValueError, match=r"^parts.b has another tokenizer than the first part"):
        make_mixture(tmp_path, parts={"a": SUMS, "b": {"task": "other"}})
