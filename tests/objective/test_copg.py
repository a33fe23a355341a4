"""CoPG against block 7 of selection_vectors.txt, loops over pairs, closed forms, the policy gradient it stands for."""

from __future__ import annotations

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from salt_jax.objective import copg
from tests.one_program import one_program

copg_advantages, copg_loss = one_program(copg.copg_advantages), one_program(copg.copg_loss)


@pytest.fixture(scope="module")
def block(golden) -> dict[str, list[float]]:
    """The lines of '== 7 CoPG' as lists of numbers by their text before '='."""
    text = (golden / "selection_vectors.txt").read_text()
    lines = re.search(r"^== 7 CoPG\n(.*?)^\s*$", text, re.S | re.M)[1].splitlines()
    pairs = (line.strip().rpartition(" = ") for line in lines)
    numbers = lambda text: [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
    return {name.strip("= "): numbers(value) for name, _, value in pairs}


def loss_by_loop(rewards, log_ratio, beta, rewarded):
    total = 0.0
    for r, l, there in zip(rewards, log_ratio, rewarded, strict=True):
        pairs = list(itertools.combinations(np.flatnonzero(there), 2))
        for i, j in pairs:
            gap = l[i] - l[j]
            total -= ((r[i] - beta / 2 * l[i]) - (r[j] - beta / 2 * l[j])) * gap / len(pairs)
    return total / len(rewards)


def advantages_by_loop(rewards, log_ratio, beta, rewarded):
    """G times the mean over pairs' coefficients, pair by pair."""
    found = np.zeros(np.shape(rewards))
    for b, (r, l, there) in enumerate(zip(rewards, log_ratio, rewarded, strict=True)):
        pairs = list(itertools.combinations(np.flatnonzero(there), 2))
        for i, j in pairs:
            c = (r[i] - r[j]) - beta * (l[i] - l[j])
            found[b, i] += c / len(pairs) * len(r)
            found[b, j] -= c / len(pairs) * len(r)
    return found


def example(seed, b=3, g=4):
    rng = np.random.default_rng(seed)
    rewarded = rng.random((b, g)) < 0.7
    missing = lambda x: np.where(rewarded, x, rng.choice([np.nan, np.inf], size=(b, g)))
    rewards, log_ratio = missing(rng.normal(size=(b, g))), missing(rng.normal(size=(b, g)))
    return rewards, log_ratio, float(rng.choice([0.0, 0.06, 0.9])), rewarded


def test_golden_pair(block):
    """Block 7 of selection_vectors.txt: R = (1.5, .25), l = (.3, −.4), β = .1."""
    with jax.enable_x64(True):
        rewards, ratio = np.array([[1.5, 0.25]]), np.array([[0.3, -0.4]])
        value, gradient = jax.jit(jax.value_and_grad(lambda l: -copg_loss(rewards, l, 0.1)))(ratio)
        gradient = np.asarray(gradient)
        assert float(value) == pytest.approx(block["ell (maximise)"][0], rel=1e-9)
        assert gradient[0].tolist() == pytest.approx(block["coefs on grad ln pi(y), grad ln pi(y')"], rel=1e-9)
        assert gradient[0].tolist() == pytest.approx(block["finite diff"], rel=1e-9)
        advantages = np.asarray(copg_advantages(rewards, ratio, 0.1))[0]
        assert (advantages / 2).tolist() == pytest.approx(gradient[0].tolist(), rel=1e-12)
        # The largest value, at Δl = ΔR/β; both sides of it are lower.
        at = lambda gap: -float(copg_loss(rewards, np.array([[gap, 0.0]]), 0.1))
        top = block["argmax dl=dR/beta"][0]
        assert at(top) == pytest.approx(block["max value dR^2/(2 beta)"][0], rel=1e-9)
        assert max(at(top - 0.01), at(top + 0.01)) < at(top)


def test_golden_group_of_four(block):
    """Block 7: R = (1, 0, .5, 0), l = (.2, −.1, 0, .3), β = .1; coefficients of the mean over pairs, and RLOO's."""
    with jax.enable_x64(True):
        rewards, ratio = np.array([[1.0, 0.0, 0.5, 0.0]]), np.array([[0.2, -0.1, 0.0, 0.3]])
        gradient = np.asarray(jax.jit(jax.grad(lambda l: -copg_loss(rewards, l, 0.1)))(ratio))[0]
        for name in ("k=4 pair-mean coefs", "2/(k-1)*(R-mean)"):
            assert gradient.tolist() == pytest.approx(block[name], abs=1e-10)
        rloo = block["RLOO coefs (1/k)(R_i-mean_others)"]
        assert (gradient / 2).tolist() == pytest.approx(rloo, abs=1e-10)
        advantages = np.asarray(copg_advantages(rewards, ratio, 0.1))[0]
        assert (advantages / 4).tolist() == pytest.approx(gradient.tolist(), rel=1e-12)


def test_golden_bandit_is_stationary_at_its_optimum(block):
    """π* ∝ π_ref exp(R/β): the exact expectation of the advantages' policy gradient, drawn from any μ, is 0 there."""
    rewards, beta, mu = np.array([2.5, 2.0, 1.0]), 0.5, np.array([0.2, 0.3, 0.5])
    optimum = np.exp(rewards / beta) / np.exp(rewards / beta).sum()
    assert optimum.tolist() == pytest.approx(block["bandit pi*"], abs=1e-9)

    @jax.jit
    def expected_gradient(logits):
        log_ratio = lambda z: jax.nn.log_softmax(z) - jnp.log(jnp.full(3, 1 / 3))
        total = 0.0
        for i, j in itertools.product(range(3), repeat=2):
            pair = lambda z, i=i, j=j: copg_loss(rewards[[[i, j]]], log_ratio(z)[jnp.array([[i, j]])], beta)
            total = total + mu[i] * mu[j] * jax.grad(pair)(logits)
        return jnp.abs(total).max()

    with jax.enable_x64(True):
        residual = block["stationarity residual of Eq.14 at pi*"][0]
        assert expected_gradient(jnp.log(optimum)) == pytest.approx(residual, abs=1e-12)
        assert expected_gradient(jnp.zeros(3)) > 0.1


@functools.cache
def compiled(beta):
    def both(rewards, ratio, rewarded):
        loss = jax.value_and_grad(lambda l: copg_loss(rewards, l, beta, rewarded))
        return loss(ratio), copg_advantages(rewards, ratio, beta, rewarded)

    return jax.jit(both)


@given(st.integers(0, 10_000))
def test_loss_advantages_and_gradient_equal_loops_over_pairs(seed):
    rewards, ratio, beta, rewarded = example(seed)
    with jax.enable_x64(True):
        (loss, gradient), advantages = jax.tree.map(np.asarray, compiled(beta)(rewards, ratio, rewarded))
    assert float(loss) == pytest.approx(loss_by_loop(rewards, ratio, beta, rewarded), rel=1e-11, abs=1e-12)
    expected = advantages_by_loop(rewards, ratio, beta, rewarded)
    np.testing.assert_allclose(advantages, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_array_equal(advantages[~rewarded], 0.0)
    np.testing.assert_allclose(gradient, -advantages / advantages.size, rtol=1e-11, atol=1e-12)


def test_a_policy_gradient_with_these_advantages_has_the_gradient_of_the_loss():
    """Through token log-probs of a softmax policy: summed over tokens, averaged over rows, unclipped."""
    rng = np.random.default_rng(0)
    b, g, t, v = 2, 3, 4, 5
    tokens, mask = rng.integers(0, v, size=(b, g, t)), np.arange(t) < rng.integers(1, t + 1, size=(b, g, 1))
    rewards, reference = rng.normal(size=(b, g)), rng.normal(size=(b, g, t))
    rewarded = np.array([[True, True, False], [True, True, True]])
    with jax.enable_x64(True):
        logits = jnp.asarray(rng.normal(size=(t, v)))
        log_probs = lambda z: jnp.where(mask, jax.nn.log_softmax(z)[jnp.arange(t), tokens], 0.0)
        ratio = lambda z: jnp.sum(log_probs(z) - jnp.where(mask, reference, 0.0), axis=-1)
        advantages = jax.jit(lambda z: copg_advantages(rewards, ratio(z), 0.3, rewarded))(logits)
        surrogate = lambda z: -jnp.mean(advantages * jnp.sum(log_probs(z), axis=-1))
        expected = jax.jit(jax.grad(lambda z: copg_loss(rewards, ratio(z), 0.3, rewarded)))(logits)
        np.testing.assert_allclose(jax.jit(jax.grad(surrogate))(logits), expected, rtol=1e-10, atol=1e-12)
        loss = jax.jit(lambda z: copg_loss(rewards, ratio(z), 0.3, rewarded))
        check_grads(loss, (logits,), order=1, modes="rev")


def test_edge_cases():
    one, other = np.array([[3.0]]), np.array([[0.5]])
    none, spoilt = np.zeros((1, 3), bool), np.full((1, 3), np.nan)
    with jax.enable_x64(True):
        for arguments in ((one, other, one > 0), (spoilt, spoilt, none)):
            (value, gradient), advantages = compiled(0.06)(*arguments)
            for found in (value, gradient, advantages):
                np.testing.assert_array_equal(found, 0.0)
        # Without signal the policy is still pulled back: what has become likelier is made less so.
        same = np.ones((1, 2))
        (_, gradient), pulled = compiled(0.06)(same, np.array([[0.5, -0.5]]), same > 0)
        assert pulled[0, 0] < 0 < pulled[0, 1]
        assert gradient[0, 0] > 0 > gradient[0, 1]


def test_errors_name_what_is_wrong():
    two = jnp.zeros((1, 2))
    for call, message in (
        (lambda: copg_loss(jnp.zeros(2), jnp.zeros(2)), r"rewards must have shape \(B, G\)"),
        (lambda: copg_loss(two, jnp.zeros((2, 1))), "log_ratio must have the shape of rewards"),
        (lambda: copg_advantages(two, two, -0.1), "beta = -0.1 is not allowed"),
        (lambda: copg_advantages(two, two, 0.1, jnp.ones((1, 3), bool)), "rewarded must have the shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
