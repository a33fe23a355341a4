"""A run that is asked to stop while it samples: data, memory and random keys are those before the step again."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from salt_jax.collect.generation import jit_sampler
from salt_jax.policy.waves import Waves
from salt_jax.run.judging import make_judge
from tests.collect.collect_setup import collection, engine, state_at

METHODS: dict[str, dict[str, Any]] = {  # prompts in order; rounds and a memory; a memory and no iterator
    "plain": {},
    "aepo": {},
    "vade": {},
}


class Stop(KeyboardInterrupt):
    """What a poll raises: not an Exception, as a signal is none."""


class Countdown:
    """A poll that raises at the call of a number, counted from 1; 0 never."""

    def __init__(self) -> None:
        self.calls, self.at = 0, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise Stop


def arrays(collected: Any) -> list[np.ndarray]:
    return jax.tree.leaves(jax.device_get(collected.rollouts))


@pytest.mark.parametrize(
    "method", [name if name == "plain" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_stop_in_a_collection_leaves_it_where_it_was(method: str) -> None:
    poll = Countdown()
    shared = dataclasses.replace(engine({"collection.method": method} | METHODS[method]), poll=poll)
    ours, other, resumed = (collection(shared) for _ in range(3))
    first, same = ours(state_at(), 1), other(state_at(), 1)
    for a, b in zip(arrays(first), arrays(same), strict=True):
        np.testing.assert_array_equal(a, b)
    position, poll.calls = ours.get_state(), 0
    undisturbed, rounds = other(state_at(1), 2), poll.calls
    assert rounds == {"plain": 1, "aepo": 2, "vade": 1}[method]
    for number in range(1, rounds + 1):  # in each round of the second step
        poll.calls, poll.at = 0, number
        with pytest.raises(Stop):
            ours(state_at(1), 2)
        assert poll.calls == number
        assert ours.get_state() == position
    poll.at = 0
    resumed.set_state(position)  # as a run that goes on from the checkpoint has it
    for collected in (ours(state_at(1), 2), resumed(state_at(1), 2)):
        for a, b in zip(arrays(undisturbed), arrays(collected), strict=True):
            np.testing.assert_array_equal(a, b)
    assert ours.get_state() == other.get_state() == resumed.get_state() != position


def test_another_error_puts_the_data_back_too() -> None:
    def lost(texts: Any, references: Any) -> Any:
        raise OSError("the graders are gone")

    made = collection(dataclasses.replace(engine(), grade=lost))
    position = made.get_state()
    with pytest.raises(OSError, match="the graders are gone"):
        made(state_at(), 1)
    assert made.get_state() == position


def test_waves_are_polled_one_by_one() -> None:
    made, poll = engine(), Countdown()
    generate = jit_sampler(
        made.policy, made.params, made.mesh, group_size=4, config=made.run.sampling, tokenizer=made.task.tokenizer,
        waves=Waves(prompts=2, rollouts=2, of=(4, 4)), poll=poll,
    )
    prompts = np.ones((4, 3), np.int32), np.ones((4, 3), bool), jax.random.key(0)
    whole = generate(made.params, *prompts)
    assert (poll.calls, whole.tokens.shape[0]) == (4, 16)
    poll.calls, poll.at = 0, 3
    with pytest.raises(Stop):
        generate(made.params, *prompts)
    assert poll.calls == 3


def test_an_evaluation_is_polled_before_each_call() -> None:
    made = engine({"evaluation.problems": 8, "evaluation.batch_size": 4, "evaluation.samples": 2})
    poll = Countdown()
    judge = make_judge(made.run, made.task, made.policy, made.params, made.mesh, made.grade, poll=poll)
    assert len(judge(made.params)) == 8
    calls, poll.calls, poll.at = poll.calls, 0, 2
    assert calls == 2
    with pytest.raises(Stop):
        judge(made.params)
