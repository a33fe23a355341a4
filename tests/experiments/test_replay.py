"""A step that stopped a run is computed again from its dump: the same numbers, and where they come from."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from configs import arithmetic
from experiments import replay
from salt_jax.distributed.sharding import make_mesh
from salt_jax.learner.state import init_state, make_optimizer
from salt_jax.learner.step import jit_train_step
from salt_jax.run import dumps, loop
from salt_jax.run import setup as run_setup
from salt_jax.run.config import parse
from salt_jax.run.guards import NonFiniteError
from tests import training_setup as setup

CONFIG = {"salt.enabled": False, "learner.minibatches": 2, "steps": 9}
STEP = 5


def stopped(folder, batch, params=None, *, exact=True):
    """A dump of the step that the batch, or the parameters, stopped; and the metrics as the run saw them."""
    config = setup.tiny_config(CONFIG)
    run = parse(config)
    run = dataclasses.replace(run, policy=dataclasses.replace(run.policy, vocab_size=setup.VOCAB))
    policy, sound = setup.policy_and_params(run.policy)
    optimizer = make_optimizer(run.optimizer, run.steps * 2)
    state = init_state(jax.tree.map(jnp.copy, sound if params is None else params), optimizer, jax.random.key(3))
    state = state.replace(step=jnp.int32(STEP - 1), consumed_prompts=jnp.int32(4 * (STEP - 1)))
    after, metrics = jit_train_step(run, policy, optimizer, make_mesh(), state)(state, batch)
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return dumps.write_dump(
        folder, step=STEP, statistic="loss", values=values, batch=batch, state=after,
        config_values=json.loads(json.dumps(config)), exact=exact, checkpoint="run/checkpoints/train/4",
    ), values


@pytest.fixture(scope="module")
def bad_reward(tmp_path_factory):
    """Row 6, of the first group of the second minibatch: its group's advantages are not finite. All else is sound."""
    batch = setup.rollouts()
    batch = batch.replace(rewards=batch.rewards.at[6].set(jnp.inf))
    return stopped(tmp_path_factory.mktemp("reward"), batch, exact=False)


@pytest.fixture(scope="module")
def bad_parameter(tmp_path_factory):
    params = dict(setup.policy_and_params(setup.tiny_run().policy)[1])
    params["final_norm"] = params["final_norm"].at[:3].set(jnp.nan)
    return stopped(tmp_path_factory.mktemp("parameter"), setup.rollouts(), params)


@pytest.fixture(scope="module")
def found(bad_parameter):
    return replay.replay(dumps.read_dump(bad_parameter[0]), Console(file=io.StringIO()))


def test_a_parameter_that_is_not_finite_is_found(bad_parameter, found):
    _, recorded = bad_parameter
    assert recorded["guards/skipped"] == 2
    assert found.metrics.keys() == recorded.keys()
    assert json.dumps(found.metrics) == json.dumps(recorded)  # every bit, and NaN where it was NaN
    assert found.values == {"final_norm": 3}
    assert found.gradients.keys() >= {"final_norm", "embedding", "head"}
    graded = np.asarray(setup.rollouts().completion_mask).any(axis=1)
    assert found.rows == {row: ["log-probs"] for row in range(16) if graded[row]}
    assert found.largest_log_ratio == 0  # there is no finite one


def test_what_is_printed_of_it(bad_parameter, found):
    path, recorded = bad_parameter
    out = io.StringIO()
    replay.describe(dumps.read_dump(path), found, Console(file=out, width=200), rows=2)
    text = out.getvalue()
    assert f"step {STEP}: stopped by loss; last good checkpoint: run/checkpoints/train/4\n" in text
    assert "  loss = nan (as recorded)\n" in text
    finite = sum(math.isfinite(value) for value in recorded.values())
    assert f"of the {finite} finite metrics {finite} have the recorded bits\n" in text
    assert "rollouts with something that is not finite: 16 of 16\n" in text
    assert "  row 1, group 0: log-probs: '" in text
    assert "row 2," not in text
    assert "  and 14 more (--rows)\n" in text
    assert "parameters with values that are not finite: final_norm (3)\n" in text
    assert "exactly" not in text


@pytest.mark.slow
def test_a_reward_that_is_not_finite_is_found_in_its_row(bad_reward):
    path, recorded = bad_reward
    assert recorded["guards/skipped"] == 1  # the other minibatch was learnt from: the state is another one
    out = io.StringIO()
    assert replay.main([str(path)], Console(file=out, width=200)) == 0
    text = out.getvalue()
    assert "the step cannot be computed exactly as it was\n" in text
    assert "rollouts with something that is not finite: 4 of 16\n" in text
    for row in (4, 5, 7):
        assert f"  row {row}, group 1: advantage: " in text
    assert "  row 6, group 1: advantage, reward: " in text
    assert "  reward = inf (as recorded)\n" in text
    assert "  guards/advantages_finite = 0.0 (as recorded)\n" in text
    assert "parameters with values that are not finite: none\n" in text
    assert "parameters with gradients that are not finite: " in text
    assert "final_norm (" in text


def test_fewer_devices_than_the_run_had(bad_parameter, tmp_path, monkeypatch):
    path = tmp_path / "dump"
    shutil.copytree(bad_parameter[0], path)
    config = json.loads((path / dumps.CONFIG).read_text())
    config["mesh"] = {"data": 2, "fsdp": 1, "tensor": 1}
    (path / dumps.CONFIG).write_text(json.dumps(config))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    text, dump = io.StringIO(), dumps.read_dump(path)
    setting = replay.rebuild(dump, Console(file=text, width=200))
    assert text.getvalue() == "2 devices were used, here is 1: computed on one; rounding differs\n"
    assert setting.mesh.size == 1
    assert (int(setting.state.step), int(setting.state.consumed_prompts)) == (STEP - 1, 4 * (STEP - 1))
    saved = replay.rebuild(dumps.read_dump(bad_parameter[0]), Console(file=io.StringIO())).state
    assert setup.same_bits(setting.state, saved)


@pytest.mark.parametrize("damage", ["absent", "a run", "state"])
def test_what_is_no_dump_is_one_line_and_status_2(damage, bad_parameter, tmp_path, capsys):
    path = tmp_path / "dump"
    if damage == "a run":
        path.mkdir()
        (path / "config.json").write_text("{}")
    if damage == "state":
        shutil.copytree(bad_parameter[0], path)
        shutil.rmtree(path / dumps.STATE)
    assert replay.main([str(path)], Console(file=io.StringIO())) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} is ")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_last_line_of_a_run_names_a_dump_that_replays(tmp_path, monkeypatch):
    """From the third step on a grader gives an infinite reward to row 3; one step in a row may be skipped."""
    config, calls, grading = arithmetic.get_config("small"), [], run_setup.grading
    config.steps, config.warm_start.steps, config.guards.max_skipped, config.checkpoint.every = 8, 0, 1, 2
    config.policy.d_model, config.policy.mlp_dim, config.policy.head_dim = 16, 32, 8
    config.evaluation.every, config.logging.tensorboard, config.learner.length_buckets = 0, False, 1

    @contextlib.contextmanager
    def infinite(run, task):
        with grading(run, task) as grade:

            def graded(texts, references):
                grades = grade(texts, references)
                calls.extend([None] * (len(texts) == run.rows))
                if len(calls) < 3 or len(texts) != run.rows:
                    return grades
                rewards = np.array(grades.rewards)
                rewards[3] = np.inf
                return grades._replace(rewards=rewards)

            yield graded

    monkeypatch.setattr(run_setup, "grading", infinite)
    with pytest.raises(NonFiniteError) as caught:
        loop.train(config, tmp_path / "run", Console(file=io.StringIO()))
    path = tmp_path / "run" / "dumps" / "step_4"
    assert str(caught.value) == (
        "step 4: guards/advantages_finite is 0.0 in 2 steps in a row (config.guards.max_skipped = 1);"
        f" last good checkpoint: {tmp_path}/run/checkpoints/train/2;"
        f" the batch is in {path}: python -m experiments.replay {path}"
    )
    dump = dumps.read_dump(path)
    found = replay.replay(dump, Console(file=io.StringIO()))
    assert dump.exact
    assert found.rows[3] == ["advantage", "reward"]
    assert {name: found.metrics[name] for name in found.metrics if math.isfinite(found.metrics[name])} == {
        name: value for name, value in dump.metrics.items() if math.isfinite(value)
    }
