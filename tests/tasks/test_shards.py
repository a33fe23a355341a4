"""Many hosts: together they have the batches of one, and a state that is good for any number of them."""

import numpy as np
import pytest

from salt_jax.tasks import CharTokenizer, Example, prompt_batches, solution_batches

TOKENIZER = CharTokenizer("0123456789=")
SOURCE = [Example(f"{i}=", reference=str(i), solution=str(i), id=f"train/{i}") for i in range(11)]


def batches(shard=(0, 1), solutions=False, **options):
    options = {"batch_size": 4, "max_prompt_length": 4, "seed": 3, "shard": shard} | options
    if solutions:
        return solution_batches(SOURCE, TOKENIZER, max_completion_length=3, **options)
    return prompt_batches(SOURCE, TOKENIZER, **options)


def joined(parts):
    """The hosts' batches, row after row."""
    first = parts[0]
    return {
        name: sum((part[name] for part in parts), []) if isinstance(first[name], list)
        else np.concatenate([part[name] for part in parts])
        for name in first
    }  # fmt: skip


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


@pytest.mark.parametrize("solutions", [False, True])
@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_hosts_together_have_the_batches_of_one(count, repeat, solutions):
    whole = list(zip(range(9), batches(solutions=solutions, repeat=repeat), strict=False))
    assert len(whole) == (9 if repeat else 3)
    hosts = [batches((i, count), solutions, repeat=repeat) for i in range(count)]
    for _, batch in whole:
        parts = [next(host) for host in hosts]
        assert {part["prompt_tokens"].shape[0] for part in parts} == {4 // count}
        assert_same(joined(parts), batch)
    assert repeat or not whole[-1][1]["valid"].all()  # the last one was filled up


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
def test_a_state_is_good_for_any_number_of_hosts(before, after):
    host = batches((before - 1, before))
    for _ in range(5):
        next(host)
    state = host.get_state()
    whole = batches()
    for _ in range(5):
        next(whole)
    assert whole.get_state() == state
    hosts = [batches((i, after)) for i in range(after)]
    for each in hosts:
        each.set_state(state)
    for _ in range(4):
        assert_same(joined([next(each) for each in hosts]), next(whole))


def test_a_host_encodes_its_own_rows_only():
    class Counting(CharTokenizer):
        calls = 0

        def encode_prompt(self, prompt):
            self.calls += 1
            return super().encode_prompt(prompt)

    tokenizer = Counting("0123456789=")
    next(prompt_batches(SOURCE, tokenizer, batch_size=4, max_prompt_length=4, seed=0, shard=(1, 2)))
    assert tokenizer.calls == 2


@pytest.mark.parametrize("shard", [(0, 3), (2, 2), (-1, 2), (0, 0), (0, 8)])
def test_shards_that_will_not_do(shard):
    with pytest.raises(ValueError, match=r"^shard = .* a count that divides batch_size = 4"):
        batches(shard)
