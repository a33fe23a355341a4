"""An evaluation inside a run: which keys its calls draw from."""

from __future__ import annotations

import itertools

import pytest

from salt_jax.run import judging
from salt_jax.run.config import parse
from tests.collect.collect_setup import Script, engine
from tests.training_setup import tiny_config


def keys_of_two_evaluations(monkeypatch, seed):
    """Keys of all calls; each evaluation has two batches of four problems."""
    made = engine({"evaluation.problems": 8, "evaluation.batch_size": 4, "evaluation.samples": 2, "seed": seed})
    script = Script({name: itertools.repeat("1") for name in "12345678"})
    monkeypatch.setattr(judging, "jit_sampler", lambda *_, group_size, **__: script.sampler(4, group_size, 1.0))
    judge = judging.make_judge(made.run, made.task, made.policy, made.params, made.mesh, made.grade)
    for _ in range(2):
        assert [result.correct() for result in judge(None)] == [2] * 8
    return script.keys


def test_each_call_draws_from_a_key_of_its_own_and_each_evaluation_from_the_same(monkeypatch):
    keys = keys_of_two_evaluations(monkeypatch, seed=0)
    assert len(keys) == 4
    assert keys[0] != keys[1]
    assert keys[2:] == keys[:2]
    other = keys_of_two_evaluations(monkeypatch, seed=1)
    assert not any(key in keys for key in other)


@pytest.mark.parametrize(
    ("samples", "temperature", "one"), [(4, 0.0, True), (1, 0.0, False), (4, 0.5, False), (1, 1.0, False)]
)
def test_several_samples_at_temperature_0_are_said_to_be_one(samples, temperature, one):
    run = parse(tiny_config({"evaluation.samples": samples, "evaluation.temperature": temperature}))
    said = judging.of_one_sample(run)
    assert (said is not None) == one
    if said:
        assert said.startswith("config.evaluation.temperature = 0 is greedy: the 4 samples of a problem are one and")
