"""AEPO against the golden numbers and loops: entropy, temperature, which rows are injected, the paper's loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from salt_jax.objective import aepo
from salt_jax.objective.aepo import temperature_for
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.one_program import one_program

aepo_paper_loss, entropy_estimate = one_program(aepo.aepo_paper_loss), one_program(aepo.entropy_estimate)
inject, injection = one_program(aepo.inject), one_program(aepo.injection)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_control(golden, precision):
    inputs, outputs = case(golden, "6.aepo.control")
    high, low = inputs["T"]

    def control(pool, entropy):
        order, count = injection(pool, entropy, inputs["H"], max_inject=inputs["R"])
        return temperature_for(entropy, inputs["H"], high, low), order, count

    for name, entropy in (("low_entropy_0p4", 0.4), ("high_entropy_0p6", 0.6), ("at_target_0p5", 0.5)):
        temperature, positive, taken = outputs[name]
        found, order, count = evaluate(control, inputs["pool_adv"], entropy, precision=precision)
        assert_close(found, temperature, precision)
        assert order[: len(positive)].tolist() == positive
        assert count == taken


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_batch_entropy_and_paper_loss(golden, precision):
    inputs, outputs = case(golden, "6.aepo.batch")
    found = evaluate(inject, inputs["batch_adv"], inputs["n"], precision=precision)
    assert_close(found, outputs["adv_after"], precision)
    inputs, outputs = case(golden, "6.aepo.entropy_estimator")
    found = evaluate(entropy_estimate, inputs["logp"], inputs["mask"], precision=precision)
    assert_close(found, outputs["entropy"], precision)
    inputs, outputs = case(golden, "6.aepo.paper_loss")
    found = evaluate(
        lambda loss, rewards, log_probs: aepo_paper_loss(loss, rewards, log_probs, inputs["alpha"]),
        inputs["grpo_loss"], np.array(inputs["reward"], float), inputs["seq_logp"], precision=precision,
    )  # fmt: skip
    assert_close(found, outputs["loss"], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_sign_imitating_hot_samples_raises_the_entropy(golden, precision):
    """dH along minus the gradient of the paper's term, in expectation over completions of one token at T."""
    inputs, outputs = case(golden, "6.aepo.sign")

    def change(p, temperature):
        logits = jnp.log(p)
        entropy = lambda z: -jnp.sum(jax.nn.softmax(z) * jax.nn.log_softmax(z))
        drawn = jax.nn.softmax(logits / temperature)
        one = lambda z, token: aepo_paper_loss(0.0, jnp.ones(1, p.dtype), jax.nn.log_softmax(z)[token][None], 1.0)
        loss = lambda z: sum(drawn[token] * one(z, token) for token in range(3))
        return jnp.sum(jax.grad(entropy)(logits) * -jax.grad(loss)(logits))

    for name, temperature in (("dH_T1p2", 1.2), ("dH_T0p8", 0.8)):
        assert_close(evaluate(change, inputs["pi"], temperature, precision=precision), outputs[name], precision)


@given(st.integers(0, 10_000))
def test_injection_equals_a_loop(seed):
    rng = np.random.default_rng(seed)
    pool = rng.choice([-1.0, 0.04, 0.06, 0.05, 1.0, np.nan], size=7)
    entropy, limit = float(rng.choice([0.3, 0.5, 0.7])), int(rng.integers(0, 6))
    positive = [row for row in range(7) if pool[row] > 0.05]
    count = min(limit, len(positive)) if entropy <= 0.5 else min(limit, len(positive)) // 2
    with jax.enable_x64(True):  # 0.05 in float32 is above 0.05
        order, taken = choose(pool, entropy, limit)
        batch = np.asarray(inject_jit(np.arange(5.0), taken))
    assert int(taken) == count
    assert order[:count].tolist() == positive[:count]
    assert sorted(order.tolist()) == list(range(7))
    assert batch.tolist() == [1.0 if row < count else float(row) for row in range(5)]


choose = jax.jit(lambda pool, entropy, limit: injection_of(pool, entropy, limit))
inject_jit = jax.jit(inject)


def injection_of(pool, entropy, limit):
    """``injection`` with every limit up to 5 in one program."""
    found = [injection(pool, entropy, 0.5, max_inject=most) for most in range(6)]
    return found[0][0], jnp.stack([count for _, count in found])[limit]


def test_a_pool_without_positive_rows_leaves_the_batch_alone():
    for pool in np.float32([[0] * 4, [-1] * 4, [np.nan] * 4]):
        count = injection(pool, 0.1, 0.5)[1]
        assert int(count) == 0
        np.testing.assert_array_equal(inject(np.arange(3, dtype=np.float32), count), np.arange(3))


def test_masked_tokens_and_missing_rewards_take_no_part():
    log_probs = np.float32([[-1.0, np.nan], [np.inf, -3.0]])
    mask = np.array([[True, False], [False, True]])
    assert float(entropy_estimate(log_probs, mask)) == 2.0
    assert float(entropy_estimate(log_probs, ~mask & False)) == 0.0
    assert not np.asarray(jax.jit(jax.grad(lambda p: entropy_estimate(p, mask)))(log_probs)).any()

    rewards, rewarded = np.float32([1.0, np.nan, 0.5]), np.array([True, False, True])
    loss = lambda p: aepo_paper_loss(0.25, rewards, p, 0.1, rewarded)
    value, gradient = jax.jit(jax.value_and_grad(loss))(np.float32([-2.0, np.nan, -4.0]))
    assert float(value) == pytest.approx(0.25 + 0.1 * (2.0 + 2.0) / 2)
    np.testing.assert_allclose(gradient, [-0.05, 0.0, -0.025], rtol=1e-6)
    assert float(aepo_paper_loss(0.25, rewards, rewards, 0.1, rewarded & False)) == 0.25
    with jax.enable_x64(True):
        check_grads(
            jax.jit(lambda p: aepo_paper_loss(0.25, np.array([1.0, 0.5]), p, 0.1)), (jnp.array([-2.0, -4.0]),), 1,
            modes="rev",
        )  # fmt: skip


def test_errors_name_what_is_wrong():
    for call, message in (
        (lambda: entropy_estimate(jnp.zeros((2, 3)), jnp.ones((2, 2))), "mask must have the shape"),
        (lambda: temperature_for(0.1, 0.5, high=0.0), "high = 0.0 is not allowed"),
        (lambda: temperature_for(0.1, 0.5, low=float("inf")), "low = inf is not allowed"),
        (lambda: injection(jnp.zeros((2, 3)), 0.1, 0.5), r"pool_advantages must have shape \(M,\)"),
        (lambda: injection(jnp.zeros(3), 0.1, 0.5, max_inject=-1), "max_inject = -1"),
        (lambda: inject(jnp.zeros((2, 3)), 1), r"advantages must have shape \(N,\)"),
        (lambda: aepo_paper_loss(0.0, jnp.zeros(2), jnp.zeros(3), 0.1), "sequence_log_probs must have the shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
