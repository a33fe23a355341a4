"""An update that is not finite changes nothing; and what the host makes of it, and of metrics that run away."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.distributed.sharding import batch_sharding, make_mesh, tree_shardings
from salt_jax.learner import step as step_lib
from salt_jax.learner import weighing
from salt_jax.learner.reweighting import first_basis
from salt_jax.learner.settings import MonitorsConfig
from salt_jax.learner.state import make_optimizer
from salt_jax.learner.warm_start import warm_start_step
from salt_jax.run.guards import CAUSES, MONITORS, DivergenceError, Guards, Halt, NonFiniteError, not_finite
from tests import training_setup as setup
from tests.training_setup import (
    edited,
    initial_state,
    largest_difference,
    rollouts,
    run_step,
    same_bits,
    tiny_run,
)

OFF = {"salt.enabled": False}
TWO = {"learner.minibatches": 2} | OFF
FOUR = {"learner.minibatches": 2, "learner.epochs": 2, "learner.microbatches": 2} | OFF
SKETCH = {"salt.feature": "lm_head_sketch", "salt.rank_vocab": 8, "salt.rank_hidden": 4}


# --- the step ---


def poisoned(settings, value=jnp.nan):
    """The initial state with one parameter of one layer that is not finite."""
    run = tiny_run(settings)
    state = initial_state().replace(sketch_basis=first_basis(run))
    params = dict(state.params)
    params["final_norm"] = jnp.asarray(edited(params["final_norm"], 3, value))
    return state.replace(params=params)


def assert_unchanged(after, before):
    """All that a step may have changed are its counters."""
    assert (int(after.step), int(after.consumed_prompts)) == (int(before.step) + 1, int(before.consumed_prompts) + 4)
    counters = {"step": before.step, "consumed_prompts": before.consumed_prompts}
    assert same_bits(after.replace(**counters), before)


@pytest.mark.parametrize(
    ("settings", "updates"),
    [({}, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((FOUR, 4), (SKETCH, 1)))],
    ids=["salt", "four updates", "sketch"],
)
def test_a_policy_that_is_not_finite_stays_as_it_is(settings, updates):
    before = poisoned(settings)
    after, metrics = run_step(settings, state=before)
    assert metrics["guards/skipped"] == updates
    assert metrics["guards/advantages_finite"] == 1  # rewards have nothing to do with it
    assert math.isnan(metrics["loss"])
    assert_unchanged(after, before)
    assert run_step(settings)[1]["guards/skipped"] == 0  # the same program, on a sound policy


def test_a_reward_that_is_not_finite_skips_its_minibatch_and_no_other():
    batch = rollouts()
    first, _ = np.asarray(step_lib.split_minibatches(jnp.arange(16), tiny_run(TWO)))
    bad = batch.replace(rewards=edited(batch.rewards, first[1], np.inf))
    after, metrics = run_step(TWO, batch=bad)
    assert metrics["guards/skipped"] == 1
    assert metrics["guards/advantages_finite"] == 0
    alone, expected = run_step(TWO, batch=batch.replace(valid=edited(batch.valid, first, False)))
    assert expected["guards/skipped"] == 0
    assert expected["guards/advantages_finite"] == 1
    assert largest_difference(after.params, initial_state().params) > 1e-3
    assert largest_difference(after.params, alone.params) <= 1e-5


@pytest.mark.parametrize("which", ["padding", "without a grade"])
def test_what_is_not_learnt_from_skips_nothing(which):
    batch = rollouts()
    out = batch.valid if which == "padding" else batch.rewarded
    changes = {"valid" if which == "padding" else "rewarded": edited(out, 5, False)}
    batch = batch.replace(rewards=edited(batch.rewards, 5, np.nan), **changes)
    metrics = run_step(batch=batch)[1]
    assert metrics["guards/skipped"] == 0
    assert metrics["guards/advantages_finite"] == 1


@pytest.mark.parametrize("enabled", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["SALT", "only measured"])
def test_a_gram_matrix_that_is_not_finite(enabled, monkeypatch):
    monkeypatch.setattr(weighing, "mini_batch_gram", lambda run, *_: jnp.full((run.rows, run.rows), jnp.nan))
    before = initial_state()
    step = setup.compiled(setup.bound_step(tiny_run({"salt.enabled": enabled}), measure=True))
    after, metrics = step(before, rollouts())
    assert metrics["geometry/gram_finite"] == 0
    assert metrics["guards/skipped"] == enabled
    if enabled:
        assert_unchanged(after, before)
    else:
        assert largest_difference(after.params, run_step(OFF)[0].params) <= 1e-6


@pytest.mark.parametrize("settings", [TWO, pytest.param(FOUR, marks=pytest.mark.slow)], ids=["two", "four"])
def test_the_guard_changes_no_step_that_is_finite(settings):
    free = setup.compiled(functools.partial(setup.bound_step(tiny_run(settings)), guard=False))
    state, metrics = free(initial_state(), rollouts())
    guarded, seen = run_step(settings)
    assert metrics.keys() == seen.keys()
    assert metrics["guards/skipped"] == 0
    assert largest_difference(state.params, guarded.params) <= 1e-7
    lost = free(poisoned(settings), rollouts())[0]
    assert not any(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lost.params))


@functools.cache
def apply_adam(guard):
    """The compiled update of AdamW on two matrices, everything donated; and its arguments."""
    optimizer = make_optimizer(tiny_run().optimizer, 10)
    params = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 32))}
    arguments = (params, optimizer.init(params), jax.tree.map(lambda x: 0.1 * x, params), jnp.bool_(True))

    def update(params, opt_state, grads, sound):
        return step_lib.apply(params, opt_state, grads, optimizer, sound if guard else None)

    return jax.jit(update, donate_argnums=(0, 1)).lower(*arguments).compile(), arguments


@functools.cache
def adam_that_donates_nothing():
    optimizer = make_optimizer(tiny_run().optimizer, 10)
    return setup.compiled(lambda params, state, grads, sound: step_lib.apply(params, state, grads, optimizer, sound))


def test_the_guard_copies_neither_parameters_nor_moments():
    guarded, free = (apply_adam(guard)[0] for guard in (True, False))
    for program in (guarded, free):
        assert not re.findall(r"f32\[64,\d+\]\S* copy\(", program.as_text())
        assert program.memory_analysis().alias_size_in_bytes >= 3 * 4 * 64 * 96  # all is written over
    extra = guarded.memory_analysis().temp_size_in_bytes - free.memory_analysis().temp_size_in_bytes
    assert extra < 4 * 64 * 32  # less than one copy of the smaller matrix


@pytest.mark.parametrize(
    ("sound", "gradient", "kept"),
    [(True, 0.1, False), (False, 0.1, True), (True, math.nan, True), (True, math.inf, True), (True, 1e38, True)],
)  # fmt: skip
def test_what_an_update_keeps(sound, gradient, kept):
    """1e38: each number is finite, their norm is not."""
    _, (params, opt_state, grads, _) = apply_adam(True)
    grads = grads | {"b": np.full(grads["b"].shape, gradient, np.float32)}
    new_params, new_opt_state, norms = adam_that_donates_nothing()(params, opt_state, grads, np.bool_(sound))
    assert norms["guards/skipped"] == kept
    assert same_bits((new_params, new_opt_state), (params, opt_state)) == kept
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new_params, new_opt_state)))


def test_the_warm_start_is_guarded_too():
    run, batch = tiny_run(), rollouts()
    names = {"prompt_tokens": batch.prompts, "prompt_mask": batch.prompt_mask}
    names |= {"completion_tokens": batch.completions, "completion_mask": batch.completion_mask}
    policy = setup.policy_and_params(run.policy)[0]
    step = setup.compiled(functools.partial(warm_start_step, run=run, policy=policy, optimizer=setup.OPTIMIZER))
    for before, skipped in ((initial_state(), 0), (poisoned({}), 1)):
        after, metrics = step(before, names)
        assert metrics["guards/skipped"] == skipped
        assert same_bits(after.params, before.params) == bool(skipped)
        assert int(after.step) == 1


@pytest.mark.mesh
@pytest.mark.slow
@pytest.mark.parametrize("bad", ["reward", "parameter"])
def test_eight_devices_decide_as_one(bad):
    settings = {"learner.minibatches": 2, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    run, batch = tiny_run(settings), rollouts()
    state = poisoned({}) if bad == "parameter" else initial_state()
    if bad == "reward":
        batch = batch.replace(rewards=edited(batch.rewards, 1, np.nan))
    mesh = make_mesh(2, 2, 2)
    placed = jax.device_put(jax.tree.map(jnp.copy, state), tree_shardings(state, mesh))
    step = step_lib.jit_train_step(run, setup.policy_and_params(run.policy)[0], setup.OPTIMIZER, mesh, placed)
    after, metrics = step(placed, jax.device_put(batch, batch_sharding(mesh)))
    one, expected = run_step({"learner.minibatches": 2}, state=state, batch=batch)
    assert metrics["guards/skipped"] == expected["guards/skipped"] == {"reward": 1, "parameter": 2}[bad]
    if bad == "parameter":
        assert_unchanged(jax.device_get(after), state)
    else:
        assert largest_difference(after.params, one.params) <= 1e-5


# --- the host ---

GOOD = {
    "loss": 0.1, "grad_norm": 1.0, "update_norm": 1e-3, "entropy": 0.5, "approx_kl": 0.0, "ratio_max": 1.0,
    "sampler_gap": 1e-6, "truncated": 0.0, "guards/skipped": 0.0, "guards/advantages_finite": 1.0,
}  # fmt: skip
SKIPPED = GOOD | {"guards/skipped": 1.0, "grad_norm": math.nan, "update_norm": 0.0}


def watched(settings=None, earlier=(), **options):
    """Guards of the tiny run, and the list that its warnings go to."""
    said = []
    return Guards(tiny_run(settings), said.append, earlier, **options), said


def halted(guards, step, values):
    with pytest.raises(Halt) as caught:
        guards.observe(step, values)
    return caught.value


def test_a_step_without_anything_wrong():
    guards, said = watched()
    for step in range(1, 6):
        guards.observe(step, GOOD)
    assert said == []


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_so_many_steps_in_a_row_may_skip(allowed):
    guards, said = watched({"guards.max_skipped": allowed})
    for step in range(1, allowed + 1):
        guards.observe(step, SKIPPED)
    guards.observe(50, GOOD)  # which ends the row
    for step in range(51, 51 + allowed):
        guards.observe(step, SKIPPED)
    assert len(said) == 2 * allowed
    halt = halted(guards, 99, SKIPPED)
    assert (halt.step, halt.statistic, halt.whole) == (99, "grad_norm", True)
    assert math.isnan(halt.value)
    times = f" in {allowed + 1} steps in a row" if allowed else ""
    error = halt.error("run/checkpoints/train/90")
    assert isinstance(error, NonFiniteError)
    assert str(error) == (
        f"step 99: grad_norm is nan{times} (config.guards.max_skipped = {allowed});"
        " last good checkpoint: run/checkpoints/train/90"
    )


def test_the_error_names_the_dump_and_how_to_replay_it(tmp_path):
    halt = halted(watched({"guards.max_skipped": 0})[0], 2, SKIPPED)
    path = tmp_path / "a run" / "dumps" / "step_2"
    assert str(halt.error("none yet", path)).endswith(
        f"none yet; the batch is in {path}: python -m experiments.replay '{path}'"
    )


def test_every_skipped_step_is_warned_about_with_its_statistic():
    guards, said = watched({"learner.minibatches": 2, "learner.epochs": 2})
    guards.observe(7, SKIPPED)
    guards.observe(8, SKIPPED | {"loss": math.inf, "guards/skipped": 4.0})
    assert said == [
        "step 7: grad_norm is nan: 1 of 4 updates: skipped (config.guards.max_skipped = 3)",
        "step 8: loss is inf: skipped in 2 steps in a row (config.guards.max_skipped = 3)",
    ]


@pytest.mark.parametrize(
    ("values", "statistic"),
    [
        ({"loss": math.nan}, "loss"),
        ({"salt/participation_ratio": math.nan}, "salt/participation_ratio"),
        ({"sampler_gap": math.inf}, "sampler_gap"),
        ({"geometry/gram_finite": 0.5}, "geometry/gram_finite"),
    ],
)  # fmt: skip
def test_what_is_not_finite_though_nothing_was_skipped_stops_at_once(values, statistic):
    guards, said = watched({"guards.max_skipped": 3})
    halt = halted(guards, 5, GOOD | values)
    assert (halt.statistic, halt.whole, said) == (statistic, False, [])
    text = f"step 5: {statistic} is {values[statistic]}; last good checkpoint: none yet"
    assert str(halt.error("none yet")) == text


def test_causes_are_named_before_what_they_lead_to():
    everything = dict.fromkeys(["reward", *reversed(CAUSES)], math.nan)
    assert not_finite(everything) == [*CAUSES, "reward"]
    assert not_finite(GOOD) == []
    flags = {"geometry/gram_finite": 0.0, "guards/advantages_finite": 0.75}
    assert not_finite(flags) == ["guards/advantages_finite", "geometry/gram_finite"]


# Each monitor, thresholds to warn and to stop, and values on either side of both; what is at one is not past it.
CROSSINGS = [
    (name, *((0.3, 0.1, [0.5, 0.3, 0.29, 0.2, 0.1, 0.05]) if name.endswith("_low") else
             (0.3, 0.6, [0.1, 0.3, 0.31, 0.5, 0.6, 0.7])))
    for name in MONITORS
]  # fmt: skip


@pytest.mark.parametrize(("monitor", "warn", "stop", "values"), CROSSINGS)
def test_a_monitor_warns_and_then_stops(monitor, warn, stop, values):
    kl = {"objective.kl_coef": 0.1} if monitor.startswith("kl_ref") else {}
    limits = {f"monitors.{monitor}_warn": warn, f"monitors.{monitor}_stop": stop, "monitors.patience": 1}
    guards, said = watched(limits | kl)
    metric = MONITORS[monitor]
    for step, value in enumerate(values[:-1], 1):
        guards.observe(step, GOOD | {metric: value})
    assert len(said) == 1
    assert said[0].startswith("step 3: ")
    error = halted(guards, 6, GOOD | {metric: values[-1]}).error("here")
    side = "below" if monitor.endswith("_low") else "above"
    assert isinstance(error, DivergenceError)
    assert str(error) == (
        f"step 6: {metric} is {values[-1]:g}, {side} config.monitors.{monitor}_stop = {stop}"
        " (config.monitors.patience = 1); last good checkpoint: here"
    )


def test_every_threshold_has_a_monitor():
    names = {field.name for field in dataclasses.fields(MonitorsConfig)} - {"patience"}
    assert names == {f"{monitor}_{what}" for monitor in MONITORS for what in ("warn", "stop")}


def test_a_warning_comes_again_once_the_value_was_fine():
    guards, said = watched({"monitors.truncated_high_warn": 0.2})
    for step, share in enumerate([0.1, 0.25, 0.5, 0.2, 0.21, 0.3], 1):
        guards.observe(step, GOOD | {"truncated": share})
    text = "of the completions were cut off at config.sampling.max_new_tokens = 4, where few are right"
    assert said == [f"step 2: 25% {text}", f"step 5: 21% {text}"]


def test_patience_counts_steps_in_a_row():
    guards, _ = watched({"monitors.grad_norm_high_stop": 10.0, "monitors.patience": 3})
    for step, norm in enumerate([11.0, 12.0, 1.0, 11.0, 12.0], 1):
        guards.observe(step, GOOD | {"grad_norm": norm})
    guards.observe(6, SKIPPED)  # says nothing about the norm: neither past nor fine
    guards.observe(7, {name: value for name, value in GOOD.items() if name != "grad_norm"})
    halt = halted(guards, 8, GOOD | {"grad_norm": 10.5})
    where = "above config.monitors.grad_norm_high_stop = 10 in 3 steps in a row"
    assert str(halt) == f"step 8: grad_norm is 10.5, {where} (config.monitors.patience = 3)"
    assert not halt.whole


def test_what_is_counted_goes_on_after_a_resume():
    settings = {"guards.max_skipped": 2, "monitors.truncated_high_warn": 0.2, "monitors.entropy_low_stop": 0.1,
                "monitors.patience": 3}  # fmt: skip
    rows = [GOOD, SKIPPED | {"entropy": 0.05}, SKIPPED | {"truncated": 0.9, "entropy": 0.05}]
    guards, said = watched(settings, rows)
    guards.observe(4, GOOD | {"truncated": 0.9, "salt/eigh_fallback": 1.0})
    assert [text.partition(":")[2][:21] for text in said] == [" iterated eigenvector"]
    assert "config.guards.max_skipped" in str(halted(watched(settings, rows)[0], 4, SKIPPED))
    assert "entropy" in str(halted(watched(settings, rows)[0], 4, GOOD | {"entropy": 0.01}))
    again, said = watched(settings, [GOOD | {"salt/eigh_fallback": 2.0}])
    again.observe(2, GOOD | {"salt/eigh_fallback": 2.0})
    assert said == []


def test_the_warm_start_has_no_monitors():
    settings = {"monitors.grad_norm_high_stop": 0.5, "learner.minibatches": 2, "guards.max_skipped": 0}
    guards, said = watched(settings, warm_start=True)
    guards.observe(1, {"loss": 3.0, "grad_norm": 9.0, "guards/skipped": 0.0})
    assert said == []
    assert halted(guards, 2, {"loss": math.nan, "guards/skipped": 1.0}).whole
