"""The supervised step under its three objectives, on the tiny policy: values, gradients, draws, meshes."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.learner.warm_start import jit_warm_start_step, warm_start_step
from salt_jax.objective.otr import otr_exact_loss, otr_loss
from salt_jax.run.config import parse
from salt_jax.spec import ConfigError
from tests import training_setup as setup

OTR = {"warm_start.otr_samples": 8, "warm_start.otr_temperature": 1.5, "warm_start.otr_beta": -0.25}


def batch():
    rollouts = setup.rollouts()
    return {
        "prompt_tokens": rollouts.prompts, "prompt_mask": rollouts.prompt_mask,
        "completion_tokens": rollouts.completions, "completion_mask": rollouts.completion_mask,
    }  # fmt: skip


@functools.cache
def compiled(objective):
    unread = {"sft": tuple(OTR), "otr_exact": ("warm_start.otr_samples",), "otr": ()}[objective]
    options = {path: value for path, value in OTR.items() if path not in unread}
    run = setup.tiny_run({"warm_start.objective": objective, "learner.vocab_chunk": 5} | options)
    policy = setup.policy_and_params(run.policy)[0]
    return setup.compiled(functools.partial(warm_start_step, run=run, policy=policy, optimizer=setup.OPTIMIZER))


def step(objective, number=0):
    """The first step, or a later one from the same parameters."""
    state = setup.initial_state()
    return compiled(objective)(state.replace(step=state.step + number), batch())


@functools.cache
def dense():
    """Objective → value and gradient by all logits of the plain forward pass; and the mean of −log π."""
    run, rollouts, state = setup.tiny_run(), setup.rollouts(), setup.initial_state()
    targets, there = rollouts.completions, rollouts.completion_mask
    options = {"temperature": 1.5, "beta": -0.25}

    def forward(params):
        mask = jnp.concatenate([rollouts.prompt_mask, jnp.ones_like(there)], axis=1)
        logits = nnx.merge(setup.policy_and_params(run.policy)[0], params)(rollouts.tokens, mask)
        return logits[:, rollouts.prompts.shape[1] - 1 : -1]

    def sft(logits):
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(there, log_p, 0)) / jnp.sum(there)

    losses = {
        "sft": sft,
        "otr": lambda z: otr_loss(z, targets, there, state.step_key(), samples=8, **options),
        "otr_exact": lambda z: otr_exact_loss(z, targets, there, **options),
    }

    def all_of_them(params):
        logits, pull_back = jax.vjp(forward, params)
        values, cotangents = zip(*(jax.value_and_grad(loss)(logits) for loss in losses.values()), strict=True)
        return jnp.stack(values), jax.vmap(pull_back)(jnp.stack(cotangents))[0]

    values, gradients = setup.call(all_of_them, state.params)
    each = [jax.tree.map(operator.itemgetter(k), (values, gradients)) for k in range(len(losses))]
    return dict(zip(losses, each, strict=True))


@pytest.mark.parametrize("objective", ["sft", "otr", "otr_exact"])
def test_one_step_follows_the_gradient_of_the_dense_loss(objective):
    """The optimizer is SGD with rate 1: parameters move by exactly the gradient."""
    state = setup.initial_state()
    new, metrics = step(objective)
    value, gradients = dense()[objective]
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert ("nll" in metrics) == (objective != "sft")
    if objective != "sft":
        assert float(metrics["nll"]) == pytest.approx(float(dense()["sft"][0]), rel=1e-5)
    expected = jax.tree.map(jnp.subtract, state.params, gradients)
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradients))
    assert largest > 1e-3
    assert setup.largest_difference(new.params, expected) <= 1e-5 * largest + 1e-6
    assert int(new.step) == int(state.step) + 1


def test_draws_follow_the_key_and_the_step():
    first, again, other = (step("otr", number)[1]["loss"] for number in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.slow
@pytest.mark.mesh
def test_a_mesh_gives_the_numbers_of_one_device():
    run = setup.tiny_run({"warm_start.objective": "otr", "mesh.fsdp": 2, "mesh.tensor": 2} | OTR)
    mesh, policy = make_mesh(fsdp=2, tensor=2), setup.policy_and_params(run.policy)[0]
    state = jax.tree.map(np.asarray, setup.initial_state())  # the step takes over what it is given
    state = jax.device_put(state, tree_shardings(state, mesh))
    meshed = jit_warm_start_step(run, policy, setup.OPTIMIZER, mesh, state)
    new, metrics = meshed(state, jax.tree.map(np.asarray, batch()))
    expected, expected_metrics = step("otr")
    assert float(metrics["loss"]) == pytest.approx(float(expected_metrics["loss"]), rel=1e-5)
    assert setup.largest_difference(new.params, expected.params) < 1e-5


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("objective", "dft", "sft, otr, otr_exact"), ("otr_samples", 0, "numbers >= 1"), ("otr_samples", 1.5, "int"),
        ("otr_temperature", 0.0, "finite numbers > 0"), ("otr_temperature", float("inf"), "finite numbers > 0"),
        ("otr_beta", 1.0, "finite numbers < 1"), ("otr_beta", float("-inf"), "finite numbers < 1"),
        ("otr_beta", float("nan"), "finite numbers < 1"), ("otr_samples", 2, "256, the default; it has no effect"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(key, value, allowed):
    with pytest.raises(ConfigError) as error:
        parse(setup.tiny_config({f"warm_start.{key}": value}))
    assert str(error.value).startswith(f"config.warm_start.{key} = {value!r} is not allowed; allowed: {allowed}")
