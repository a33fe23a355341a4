"""Batches: shapes, padding, epochs, and a state that survives a checkpoint."""

import collections

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from salt_jax.tasks import (
    CharTokenizer,
    Example,
    check_prompt_lengths,
    check_solution_lengths,
    prompt_batches,
    solution_batches,
)

TOKENIZER = CharTokenizer("0123456789=")
P, T = 4, 3


def make_source(size):
    return [Example(f"{i}=", reference=str(i), solution=str(i), id=f"train/{i}") for i in range(size)]


def batches(size, **options):
    return prompt_batches(
        make_source(size), TOKENIZER, **{"batch_size": 4, "max_prompt_length": P, "seed": 0} | options
    )


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_say_what_the_examples_say(shuffle):
    batch = next(batches(12, shuffle=shuffle, batch_size=5))
    assert batch["prompt_tokens"].shape == batch["prompt_mask"].shape == (5, P)
    assert batch["prompt_tokens"].dtype == np.int32
    assert batch["prompt_mask"].dtype == bool
    assert batch["valid"].all()
    for row in range(5):
        number = batch["references"][row]
        assert batch["ids"][row] == f"train/{number}"
        length = len(number) + 1
        mask = batch["prompt_mask"][row]
        np.testing.assert_array_equal(mask, [False] * (P - length) + [True] * length)
        assert TOKENIZER.decode(batch["prompt_tokens"][row][mask]) == f"{number}="
        np.testing.assert_array_equal(batch["prompt_tokens"][row][~mask], TOKENIZER.pad_id)


def test_epochs_are_complete_different_and_without_seam():
    size, epochs = 10, 4
    iterator = batches(size)
    ids = [i for _ in range(size * epochs // 4) for i in next(iterator)["ids"]]
    orders = [tuple(ids[e * size : (e + 1) * size]) for e in range(epochs)]
    assert all(len(set(order)) == size for order in orders)
    assert len(set(orders)) == epochs


def test_order_is_a_function_of_the_seed():
    def order(**options):
        iterator = batches(50, **options)
        return [i for _ in range(12) for i in next(iterator)["ids"]]

    assert order(seed=3) == order(seed=3)
    assert order(seed=3) != order(seed=4)
    assert order(shuffle=False) == order(shuffle=False, seed=9)
    assert order(shuffle=False)[:3] == ["train/0", "train/1", "train/2"]


@pytest.mark.parametrize("size", [1, 3, 8, 10])
@pytest.mark.parametrize("shuffle", [False, True])
def test_one_epoch_ends_with_a_filled_batch(size, shuffle):
    seen = collections.Counter()
    rows = 0
    for batch in batches(size, repeat=False, shuffle=shuffle):
        assert batch["prompt_tokens"].shape == (4, P)
        rows += int(batch["valid"].sum())
        seen.update(i for i, valid in zip(batch["ids"], batch["valid"], strict=True) if valid)
        filler = ~batch["valid"]
        assert (
            batch["prompt_mask"][filler].any(axis=1).all()
        )  # a filler row is a real prompt: it can be sampled
    assert rows == size
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_tiny_sources(size, batch_size):
    iterator = batches(size, batch_size=batch_size)
    ids = [i for _ in range(6) for i in next(iterator)["ids"]]
    counts = collections.Counter(ids)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("consumed", [0, 1, 3, 7])
def test_state_round_trip(consumed):
    iterator = batches(10)
    for _ in range(consumed):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(5)]
    restored = batches(10)
    next(restored)
    restored.set_state(state)
    for batch in expected:
        assert_same(next(restored), batch)


def test_checkpoint_round_trip(tmp_path):
    iterator = batches(10, seed=5)
    for _ in range(4):
        next(iterator)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(
            4,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({"step": np.array(4)}),
                data=grain.checkpoint.CheckpointSave(iterator),
            ),
        )
        expected = [next(iterator) for _ in range(5)]
        manager.wait_until_finished()
    restored = batches(10, seed=5)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        result = manager.restore(
            manager.latest_step(),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore({"step": np.array(0)}),
                data=grain.checkpoint.CheckpointRestore(restored),
            ),
        )
    assert int(result["state"]["step"]) == 4
    for batch in expected:
        assert_same(next(restored), batch)


def test_solutions_end_with_the_end_token():
    iterator = solution_batches(
        make_source(12),
        TOKENIZER,
        batch_size=5,
        max_prompt_length=P,
        max_completion_length=T,
        seed=0,
        shuffle=False,
        repeat=False,
    )
    for batch in iterator:
        prompts = {
            name: batch[name] for name in ("prompt_tokens", "prompt_mask", "references", "ids", "valid")
        }
        assert prompts["prompt_tokens"].shape == (5, P)
        tokens, mask = batch["completion_tokens"], batch["completion_mask"]
        assert tokens.shape == mask.shape == (5, T)
        assert tokens.dtype == np.int32
        for row in range(5):
            length = len(batch["references"][row]) + 1 if batch["valid"][row] else 0
            np.testing.assert_array_equal(mask[row], np.arange(T) < length)
            if length:
                assert tokens[row][length - 1] == TOKENIZER.eos_id
                assert TOKENIZER.decode(tokens[row]) == batch["references"][row]
            np.testing.assert_array_equal(tokens[row][length:], TOKENIZER.pad_id)


def test_lengths_are_checked_up_front():
    source = make_source(120)
    assert check_prompt_lengths(source, TOKENIZER, 4) == 4
    assert check_solution_lengths(source, TOKENIZER, 4) == 4
    with pytest.raises(
        ValueError, match="max_prompt_length = 3 but the prompt of example 'train/100' has 4 tokens"
    ):
        check_prompt_lengths(source, TOKENIZER, 3)
    with pytest.raises(ValueError, match="max_completion_length = 3 .* example 'train/100' has 4 tokens"):
        check_solution_lengths(source, TOKENIZER, 3)
    with pytest.raises(ValueError, match="example 'e' has no tokens"):
        check_prompt_lengths([Example("", "1", "1", "e")], TOKENIZER, 3)


def test_lengths_are_checked_while_iterating():
    iterator = batches(120, max_prompt_length=3, shuffle=False, batch_size=100)
    next(iterator)
    with pytest.raises(
        ValueError, match="max_prompt_length = 3 but the prompt of example 'train/100' has 4 tokens"
    ):
        next(iterator)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (3, {"batch_size": 0}, "batch_size = 0 is not allowed"),
        (3, {"seed": -1}, "seed = -1 is not allowed"),
        (3, {"max_prompt_length": 0}, "max_prompt_length = 0 is not allowed"),
        (0, {}, "source of examples is empty"),
    ],
)
def test_bad_settings(size, options, message):
    with pytest.raises(ValueError, match=message):
        batches(size, **options)
