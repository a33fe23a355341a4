"""KL estimators: values, stability, and their expected gradients against the exact KL on a tiny vocabulary."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.objective import KL_ESTIMATORS, ObjectiveConfig, k1, k2, k3, policy_loss
from salt_jax.objective.kl import k3_plus
from tests.reference import objective as reference

REF = np.array([0.5, 0.3, 0.15, 0.05])


def exact_gradient(direction, logits, step=1e-6):
    """∇ of KL(p ‖ q) ('reverse') or KL(q ‖ p) ('forward') in the logits of p, by central differences."""

    def divergence(x):
        p = np.exp(x - x.max())
        p /= p.sum()
        return np.sum(p * np.log(p / REF)) if direction == "reverse" else np.sum(REF * np.log(REF / p))

    eye = np.eye(len(logits)) * step
    return np.array([(divergence(logits + e) - divergence(logits - e)) / (2 * step) for e in eye])


def expected_gradient(estimator, logits):
    """Σ_a p_a ∇ estimator(log p_a): every token once, weighted by its probability, weights held fixed."""
    weights = jax.nn.softmax(logits)
    return jax.jit(jax.grad(lambda x: jnp.sum(weights * estimator(jax.nn.log_softmax(x), jnp.log(REF)))))(logits)


def test_values():
    rng = np.random.default_rng(0)
    log_probs, ref = -rng.exponential(2, 50), -rng.exponential(2, 50)
    for name, estimator in KL_ESTIMATORS.items():
        expected = [reference.kl(name, p, q) for p, q in zip(log_probs, ref, strict=True)]
        np.testing.assert_allclose(jax.jit(estimator)(log_probs, ref), expected, rtol=2e-5, atol=1e-6)


def test_expected_gradients_on_a_tiny_vocabulary():
    with jax.enable_x64(True):
        logits = jnp.array([0.3, -0.2, 1.1, 0.4])
        reverse = exact_gradient("reverse", np.asarray(logits))
        forward = exact_gradient("forward", np.asarray(logits))
        assert np.abs(reverse).max() > 0.1
        np.testing.assert_allclose(expected_gradient(k1, logits), 0, atol=1e-12)
        np.testing.assert_allclose(expected_gradient(k2, logits), reverse, atol=1e-8)
        np.testing.assert_allclose(expected_gradient(k3, logits), forward, atol=1e-8)
        np.testing.assert_allclose(expected_gradient(k3_plus, logits), reverse, atol=1e-8)


@pytest.mark.parametrize(("name", "direction"), [("k2", "reverse"), ("k3", "forward"), ("k3_plus", "reverse")])
def test_expected_gradient_through_the_loss(name, direction):
    """At the uniform policy one row a token is the exact expectation, here with zero advantages."""
    with jax.enable_x64(True):

        def loss(logits):
            log_probs = jax.nn.log_softmax(logits)[:, None]
            total, denominator, _ = policy_loss(
                log_probs,
                log_probs,
                jnp.zeros(4),
                jnp.ones((4, 1), bool),
                ref_log_probs=jnp.log(REF)[:, None],
                kl_estimator=name,
                kl_coef=1.0,
            )
            return total / denominator

        np.testing.assert_allclose(
            jax.jit(jax.grad(loss))(jnp.zeros(4)), exact_gradient(direction, np.zeros(4)), atol=1e-8
        )


def test_k1_is_refused_in_the_loss():
    zeros = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="k1.*zero expected gradient.*allowed: k2, k3, k3_plus"):
        policy_loss(zeros, zeros, jnp.ones(1), zeros == 0, kl_estimator="k1")
    with pytest.raises(ValueError, match="kl_estimator = 'k9' is unknown; allowed: k2, k3, k3_plus"):
        ObjectiveConfig(kl_estimator="k9")


@functools.cache
def value_and_gradient(name):
    return jax.jit(jax.value_and_grad(KL_ESTIMATORS[name]))


@pytest.mark.parametrize("gap", [-1e4, -21.0, 0.0, 21.0, 1e4])
@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_extremes_stay_finite(name, gap):
    value, gradient = value_and_gradient(name)(np.float32(gap), np.float32(0))
    assert np.isfinite(value)
    assert np.isfinite(gradient)
    if name == "k3" and gap > 20:  # a token the reference finds impossible still pays
        np.testing.assert_allclose(gradient, 1.0)


def test_k3_keeps_its_digits_near_zero():
    np.testing.assert_allclose(k3(jnp.float32(1e-3), jnp.float32(0)), 5e-7, rtol=2e-3)


def test_golden_vectors(golden):
    case = json.loads((golden / "methods_vectors.json").read_text())["1.kl"]
    log_prob, ref = case["inputs"]["logp"], case["inputs"]["ref"]
    with jax.enable_x64(True):
        for name in KL_ESTIMATORS:
            keys = ("k3plus_value", "k3plus_grad") if name == "k3_plus" else (name, f"grad_{name}")
            value, gradient = value_and_gradient(name)(np.float64(log_prob), np.float64(ref))
            np.testing.assert_allclose(value, case["outputs"][keys[0]], rtol=1e-12)
            np.testing.assert_allclose(gradient, case["outputs"][keys[1]], rtol=1e-12)
