"""Stage `study`: what is graded on the device is graded as the task does, and seeds do not see each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accelerator.learning import arithmetic_task
from experiments.accelerator.study import Laboratory, Problems
from salt_jax.collect.generation import grade_samples
from salt_jax.policy.sampler import Samples


def test_completions_are_graded_on_the_device_as_the_task_grades_them(monkeypatch):
    lab = Laboratory("small", 1)
    task = arithmetic_task(lab.run)
    first: Problems = jax.tree.map(lambda x: x[:6], lab.splits["test"])
    right, mask = np.asarray(first.solutions), np.asarray(first.solution_mask)
    lengths = mask.sum(axis=1)
    tokens = right.copy()
    tokens[1, 0] = right[2, 0] if right[2, 0] != right[1, 0] else right[3, 0]  # another digit
    tokens[2] = right[2, ::-1]  # the end token comes first
    at = [int(x) for x in lengths - 1]
    lengths[3] -= 1  # no end token, cut off
    tokens[3, at[3]] = lab.pad_id
    truncated = np.arange(6) == 3
    made = Samples(jnp.asarray(tokens), jnp.asarray(lengths), jnp.zeros(tokens.shape), jnp.asarray(truncated))
    monkeypatch.setattr("experiments.accelerator.study.sample", lambda *_, **__: made)
    monkeypatch.setattr("experiments.accelerator.study.nnx.merge", lambda *_: None)
    _, found = lab._sample(None, first, jax.random.key(0), greedy=True)
    references = [example.reference for example in list(task.source("test"))[:6]]
    graded = grade_samples(task, task.grade, made, references, 1).rewards
    assert found.tolist() == np.where(truncated, 0, graded).tolist()
    assert found.tolist()[0] == 1
    assert set(found.tolist()) == {0.0, 1.0}


def test_seeds_are_apart_and_arms_get_the_same_problems():
    lab = Laboratory("small", 3)
    chosen = lab.chosen(done=200, chunk=4)
    assert chosen.shape == (4, 3, lab.run.rollouts.prompts_per_step)
    assert (chosen[:, 0] != chosen[:, 1]).any()
    np.testing.assert_array_equal(chosen, lab.chosen(done=200, chunk=4))
    assert (chosen != lab.chosen(done=100, chunk=4)).any()
    keys = jax.random.key_data(lab._keys())
    assert len({tuple(key) for key in keys.tolist()}) == 3
