"""The state before the first step, and the optimizer's rates by formula."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from salt_jax.collect.turn import CHOICE, SAMPLER
from salt_jax.learner import keys
from salt_jax.learner.settings import OptimizerConfig
from salt_jax.learner.state import init_params, init_state, make_optimizer
from tests import training_setup as setup
from tests.collect.collect_setup import engine, state_at

PLAIN = OptimizerConfig(
    learning_rate=0.5, warmup_steps=0, schedule="constant", b1=0.9, b2=0.99, eps=1e-30, weight_decay=0.0, clip_norm=0.0
)


def rates(config, total, steps):
    """The rate of each update: with a constant gradient Adam's step is the rate itself, whatever b1 and b2."""
    optimizer = make_optimizer(config, total)
    params = {"w": jnp.zeros(3)}

    def update(opt_state, _):
        updates, opt_state = optimizer.update({"w": jnp.array([3.0, -0.1, 7.0])}, opt_state, params)
        return opt_state, updates["w"]

    steps_taken = jax.jit(lambda: jax.lax.scan(update, optimizer.init(params), None, length=steps)[1])()
    downhill = np.asarray(steps_taken) * np.array([-1, 1, -1], np.float32)
    assert (downhill > -1e-7).all()
    return downhill


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_rates_follow_the_schedule(schedule, warmup):
    total = 9
    found = rates(dataclasses.replace(PLAIN, schedule=schedule, warmup_steps=warmup), total, total + 2)
    for step in range(total + 2):
        done = min(max(step - warmup, 0) / (total - warmup), 1)
        after = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]
        expected = 0.5 * (step / warmup if step < warmup else after)
        np.testing.assert_allclose(found[step], expected, rtol=1e-4, atol=1e-6, err_msg=str(step))


def test_more_warmup_than_steps_is_allowed():
    found = rates(dataclasses.replace(PLAIN, warmup_steps=8, schedule="linear"), 4, 4)
    np.testing.assert_allclose(found[:, 0], [0, 0.0625, 0.125, 0.1875], rtol=1e-4)


@functools.cache
def update_of(config):
    def first(gradient, params):
        optimizer = make_optimizer(config, 10)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    return setup.compiled(first)


def first_update(config, gradient, params):
    return update_of(config)(*jax.tree.map(np.float32, (gradient, params)))


def test_clipping_and_eps():
    """Adam's first step is rate · g / (|g| + eps); with eps = 1 it shows how g was clipped."""
    config = dataclasses.replace(PLAIN, eps=1.0, clip_norm=2.0)
    params = {"w": np.zeros(2)}
    large = first_update(config, {"w": np.array([6.0, 8.0])}, params)["w"]
    clipped = np.array([1.2, 1.6])
    np.testing.assert_allclose(large, -0.5 * clipped / (clipped + 1), rtol=1e-5)
    small = first_update(config, {"w": np.array([0.6, 0.8])}, params)["w"]
    np.testing.assert_allclose(small, -0.5 * np.array([0.6 / 1.6, 0.8 / 1.8]), rtol=1e-5)
    unclipped = first_update(dataclasses.replace(config, clip_norm=0.0), {"w": np.array([6.0, 8.0])}, params)["w"]
    np.testing.assert_allclose(unclipped, -0.5 * np.array([6 / 7, 8 / 9]), rtol=1e-5)


def test_weight_decay_is_decoupled():
    config = dataclasses.replace(PLAIN, weight_decay=0.1)
    update = first_update(config, {"w": np.array([1.0, -1.0])}, {"w": np.array([4.0, -2.0])})["w"]
    np.testing.assert_allclose(update, -0.5 * (np.array([1.0, -1.0]) + 0.1 * np.array([4.0, -2.0])), rtol=1e-5)


def test_scales_of_norms_and_biases_do_not_decay():
    config = dataclasses.replace(PLAIN, weight_decay=0.1)
    params = setup.policy_and_params(dataclasses.replace(setup.tiny_run().policy, qk_norm=True))[1]
    params = jax.tree.map(np.asarray, params)
    update = jax.tree.map(np.asarray, first_update(config, jax.tree.map(np.zeros_like, params), params))
    still = {"attention_norm", "mlp_norm", "final_norm", "q_norm", "k_norm", "q_bias", "k_bias", "v_bias"}
    seen = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(update):
        name = path[-1].key
        seen[name] = bool((leaf == 0).all())
        param = params["layers"][name] if len(path) == 2 else params[name]
        np.testing.assert_allclose(leaf, 0.0 * param if name in still else -0.05 * param, rtol=1e-6, err_msg=name)
    assert {name for name, zero in seen.items() if zero} == still


def test_the_optimizers_state_is_that_of_adamw():
    """Also of runs from before norms were left out: their checkpoints go on."""
    params = {"w": jnp.zeros(2), "norm": jnp.zeros(2)}
    found = make_optimizer(dataclasses.replace(PLAIN, weight_decay=0.1, clip_norm=1.0), 10).init(params)
    adamw = optax.adamw(optax.constant_schedule(0.5), weight_decay=0.1)
    expected = optax.chain(optax.clip_by_global_norm(1.0), adamw).init(params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def test_the_first_state():
    params = {"w": jnp.ones(3)}
    state = init_state(params, setup.OPTIMIZER, jax.random.key(5))
    assert state.ref_params is None
    assert (int(state.step), int(state.consumed_prompts)) == (0, 0)
    assert state.entropy_range.tolist() == [math.inf, -math.inf]
    assert state.key.dtype == jnp.uint32
    assert np.array_equal(state.key, jax.random.key_data(jax.random.key(5)))
    kept = init_state(params, setup.OPTIMIZER, jax.random.key(5), keep_reference=True)
    assert np.array_equal(kept.ref_params["w"], params["w"])
    assert kept.ref_params["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()


def test_keys_differ_from_step_to_step_and_from_seed_to_seed():
    seen = set()
    for seed in (0, 1):
        state = init_state({"w": jnp.ones(3)}, setup.OPTIMIZER, jax.random.key(seed))
        for step in range(3):
            key = state.replace(step=jnp.int32(step)).step_key()
            seen.add(tuple(jax.random.key_data(key).tolist()))
    assert len(seen) == 6


def test_all_that_draws_in_a_step_has_a_key_of_its_own():
    made, state = engine(), state_at(2)
    streams = keys.sampling_key, keys.salt_key, keys.sketch_key, keys.estimate_key, keys.token_key
    found = [stream(state) for stream in streams]
    assert np.array_equal(jax.random.key_data(made.key(state, SAMPLER, None)), jax.random.key_data(found[0]))
    found += [made.key(state, CHOICE, None), *(made.key(state, SAMPLER, draw) for draw in range(3))]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in found}) == len(found)


def test_initial_parameters():
    config = dataclasses.replace(setup.tiny_run().policy, d_model=64, mlp_dim=256, vocab_size=99, num_layers=8)
    draw = setup.compiled(lambda key: init_params(config, key))
    params, again, other = draw(jax.random.key(1)), draw(jax.random.key(1)), draw(jax.random.key(2))
    assert setup.same_bits(params, again)
    assert not np.array_equal(params["embedding"], other["embedding"])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert type(params) is dict
    layers = params["layers"]
    assert layers["q"].shape == (8, 64, 8)
    for name, fan_in, depth in (("up", 64, 1), ("gate", 64, 1), ("down", 256, 16), ("o", 8, 16)):
        # 1/sqrt(fan in), and 1/sqrt(2 layers) less where the residual stream is written
        spread = float(np.std(layers[name]))
        assert spread == pytest.approx((fan_in * depth) ** -0.5, rel=5 * layers[name].size ** -0.5)
    assert not np.any(layers["q_bias"])
    assert np.all(np.asarray(layers["mlp_norm"]) == 1)
    assert not np.array_equal(np.asarray(layers["up"])[0], np.asarray(layers["gate"])[0])
    for name in ("q", "k", "v", "o", "gate", "up", "down"):  # the layers of a stack differ
        assert not np.allclose(*np.asarray(layers[name])[:2])
