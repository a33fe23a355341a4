"""One-Token Rollout against the golden numbers and loops: draws, expectation, the DFT identity, the streamed form."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from salt_jax.objective.otr import draw_uniforms, otr_exact_loss, otr_loss, otr_loss_of_draws, streamed_otr
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate

N, T, V, H = 3, 4, 7, 3


def one(loss):
    """The loss of a single position, from its probabilities."""
    return lambda p, *rest: loss(jnp.log(p)[None], jnp.array([0]), jnp.array([True]), *rest)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, precision):
    inputs, outputs = case(golden, "8.otr")
    p, beta = inputs["probs"], inputs["beta"]
    assert inputs["gt"] == 0
    rewards = [1.0 if token == inputs["gt"] else beta for token in inputs["samples"]]
    assert rewards == outputs["reward"]
    drawn = one(functools.partial(otr_loss_of_draws, beta=beta))
    assert_close(evaluate(drawn, p, [inputs["samples"]], precision=precision), outputs["loss_sampled"], precision)
    for temperature, name in ((1.0, "exact_kappa1"), (1.3, "exact_kappa1p3")):
        exact = one(functools.partial(otr_exact_loss, beta=beta, temperature=temperature))
        assert_close(evaluate(exact, p, precision=precision), outputs[name], precision)
        streamed = lambda q, temperature=temperature: streamed_otr(
            jnp.ones((1, 1, 1), q.dtype), jnp.log(q)[None], jnp.array([[0]]), jnp.array([[True]]),
            temperature=temperature, beta=beta, chunk_size=2,
        )[0]  # fmt: skip
        assert_close(evaluate(streamed, p, precision=precision), outputs[name], precision)
    tempered = np.array(p) ** (1 / 1.3) / sum(np.array(p) ** (1 / 1.3))
    np.testing.assert_allclose(tempered, outputs["rollout_dist_kappa1p3"], rtol=1e-12)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_identity_at_temperature_1_it_is_dft(golden, precision):
    inputs, outputs = case(golden, "8.otr.identity")
    p = case(golden, "8.otr")[0]["probs"]
    target, there = jnp.array([0]), jnp.array([True])
    exact = lambda z: otr_exact_loss(z[None], target, there, temperature=float(inputs["kappa"]), beta=-0.1)
    found = evaluate(lambda q: jax.grad(exact)(jnp.log(q)), p, precision=precision)
    assert_close(found, outputs["grad_logits"], precision)


@given(st.integers(0, 10_000), st.sampled_from([-0.5, 0.0, 0.3]))
def test_at_temperature_1_the_gradient_is_that_of_dft_times_one_minus_beta(seed, beta):
    logits, targets, mask = example(seed)
    with jax.enable_x64(True):
        found = identity_gradient(beta)(logits, targets, mask)
        expected = (1 - beta) * np.asarray(dft_gradient(logits, targets, mask))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@functools.cache
def identity_gradient(beta):
    return jax.jit(jax.grad(functools.partial(otr_exact_loss, temperature=1.0, beta=beta)))


@jax.jit
@jax.grad
def dft_gradient(z, targets, mask):
    """SFT with each token weighted by its own probability, a constant."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(z), targets[..., None], axis=-1)[..., 0]
    return per_sequence(-jax.lax.stop_gradient(jnp.exp(log_p)) * log_p, mask)


def per_sequence(loss, mask):
    means = jnp.sum(jnp.where(mask, loss, 0), axis=1) / jnp.maximum(mask.sum(axis=1), 1)
    return means.sum() / jnp.maximum(mask.any(axis=1).sum(), 1)


def example(seed):
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.integers(0, T + 1, size=(N, 1))
    return rng.normal(scale=1.5, size=(N, T, V)), rng.integers(0, V, size=(N, T)), mask


def loss_by_loop(logits, targets, mask, shares, beta):
    """shares (N, T, V): the tempered copy, or how often each token was drawn, over K."""
    means = []
    for i in range(N):
        places = [t for t in range(T) if mask[i, t]]
        total = 0.0
        for t in places:
            weights = [math.exp(z) for z in logits[i, t]]
            for v in range(V):
                reward = 1.0 if v == targets[i, t] else beta
                total -= shares[i, t, v] * reward * math.log(weights[v] / sum(weights))
        if places:
            means.append(total / len(places))
    return sum(means) / max(len(means), 1)


def tempered_by_loop(logits, temperature):
    weights = np.array([[[math.exp(z / temperature) for z in row] for row in rows] for rows in logits])
    return weights / weights.sum(axis=-1, keepdims=True)


@functools.cache
def dense():
    def all_three(logits, targets, mask, draws):
        return [
            jax.value_and_grad(functools.partial(otr_exact_loss, temperature=1.3, beta=-0.1))(logits, targets, mask),
            jax.value_and_grad(functools.partial(otr_loss_of_draws, beta=0.2))(logits, targets, mask, draws),
        ]

    return jax.jit(all_three)


@given(st.integers(0, 10_000))
def test_dense_forms_equal_loops_and_garbage_takes_no_part(seed):
    logits, targets, mask = example(seed)
    draws = np.random.default_rng(seed + 1).integers(0, V, size=(N, T, 5))
    counts = np.stack([(draws == v).mean(axis=-1) for v in range(V)], axis=-1)
    with jax.enable_x64(True):
        found = dense()(np.where(mask[..., None], logits, np.nan), np.where(mask, targets, -5), mask, draws)
    exact = loss_by_loop(logits, targets, mask, tempered_by_loop(logits, 1.3), -0.1)
    drawn = loss_by_loop(logits, targets, mask, counts, 0.2)
    for (value, gradient), expected in zip(found, (exact, drawn), strict=True):
        assert float(value) == pytest.approx(expected, rel=1e-11, abs=1e-12)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0.0)


def test_gradient_equals_finite_differences_at_constant_draws():
    logits, targets, mask = example(0)
    draws = np.random.default_rng(1).integers(0, V, size=(N, T, 5))
    with jax.enable_x64(True):
        loss = jax.jit(lambda z: otr_loss_of_draws(z, targets, mask, draws, beta=0.2))
        check_grads(loss, (jnp.asarray(logits),), order=1, modes="rev", atol=1e-6, rtol=1e-6)
        shares = tempered_by_loop(logits, 1.3)
        rewards = np.where(np.arange(V) == targets[..., None], 1.0, -0.1)
        fixed = lambda z: per_sequence(-jnp.sum(shares * rewards * jax.nn.log_softmax(z), axis=-1), mask)
        expected = jax.jit(jax.grad(fixed))(logits)
        found = jax.jit(jax.grad(lambda z: otr_exact_loss(z, targets, mask)))(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_drawn_losses_average_to_their_expectation():
    logits, targets, mask = example(3)
    losses = jax.jit(jax.vmap(lambda key: otr_loss(logits, targets, mask, key, samples=64)))(
        jax.random.split(jax.random.key(0), 400)
    )
    expected = loss_by_loop(logits, targets, mask, tempered_by_loop(logits, 1.3), -0.1)
    error = float(np.std(losses)) / 20
    assert error < 0.02 * abs(expected) + 0.01
    assert float(np.mean(losses)) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("samples", [None, 16])
@pytest.mark.parametrize("chunk_size", [3, 64])
def test_streamed_equals_dense_from_the_same_key(samples, chunk_size):
    rng = np.random.default_rng(0)
    hidden, lm_head = rng.normal(size=(N, T, H)), rng.normal(size=(H, V))
    _, targets, mask = example(0)
    assert mask.any()
    key = jax.random.key(5)

    def streamed(hidden, lm_head):
        return streamed_otr(
            hidden, lm_head, np.where(mask, targets, 99), jnp.asarray(mask),
            key=key, samples=samples, chunk_size=chunk_size,
        )  # fmt: skip

    def plain(hidden, lm_head):
        logits = hidden @ lm_head
        if samples is None:
            return otr_exact_loss(logits, targets, mask)
        return otr_loss(logits, targets, mask, key, samples=samples)

    with jax.enable_x64(True):
        (value, nll), gradients = jax.jit(jax.value_and_grad(streamed, (0, 1), has_aux=True))(hidden, lm_head)
        expected, by_dense = jax.jit(jax.value_and_grad(plain, (0, 1)))(hidden, lm_head)
        log_p = jax.nn.log_softmax(hidden @ lm_head)
    assert float(value) == pytest.approx(float(expected), rel=1e-11)
    taken = np.take_along_axis(np.asarray(log_p), targets[..., None], axis=-1)[..., 0]
    assert float(nll) == pytest.approx(-taken[mask].mean(), rel=1e-11)
    for got, wanted in zip(gradients, by_dense, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


def test_everything_masked_is_zero():
    logits, targets, mask = example(0)
    for loss in (
        lambda z: otr_exact_loss(z, targets, mask & False),
        lambda z: otr_loss(z, targets, mask & False, jax.random.key(0), samples=2),
        lambda z: streamed_otr(z, jnp.ones((V, 2)), targets, jnp.asarray(mask & False))[0],
    ):
        value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits, jnp.float32))
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


def test_the_same_key_draws_the_same_tokens():
    same = draw_uniforms(jax.random.key(1), (2,), 3)
    np.testing.assert_array_equal(same, draw_uniforms(jax.random.key(1), (2,), 3))
    assert (same != draw_uniforms(jax.random.key(2), (2,), 3)).all()


def test_draws_are_from_uniform_numbers_that_are_never_0(monkeypatch):
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    assert draw_uniforms(jax.random.key(0), (2,), 3).min() == 2.0**-24


def test_errors_name_what_is_wrong():
    z, y, m, key = jnp.zeros((2, 3)), jnp.zeros(2, int), jnp.ones(2, bool), jax.random.key(0)
    for call, message in (
        (lambda: otr_loss(z, y, m, key, samples=0), "samples = 0 is not allowed; allowed: integers >= 1"),
        (lambda: otr_loss(z, y, m, key, temperature=0.0), "temperature = 0.0"),
        (lambda: otr_exact_loss(z, y, m, beta=1.0), "beta = 1.0 is not allowed; allowed: finite numbers < 1"),
        (lambda: otr_exact_loss(z, y, m, beta=float("nan")), "beta = nan"),
        (lambda: otr_exact_loss(z, y[:1], m), "must be"),
        (lambda: otr_exact_loss(z, y, m[:1]), "mask must have the shape"),
        (lambda: otr_loss_of_draws(z, y, m, jnp.zeros((3, 4), int)), "draws must be targets"),
        (lambda: streamed_otr(z[None], z.T, y[None], m[None], samples=3), "samples = 3 needs a key"),
        (lambda: streamed_otr(z[None], z.T, y[None], m), "mask must have the shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
