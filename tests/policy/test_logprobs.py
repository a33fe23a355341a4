"""Scores of completions against float64 loops, and what the chunked route never holds."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from salt_jax.policy.logprobs import completion_scores
from salt_jax.vocab.kept import KeptRule
from tests import training_setup as setup
from tests.reference import transformer as reference
from tests.reference import vocab
from tests.reference.jaxpr import largest_array, shapes

CONFIG = setup.tiny_run().policy
TEMPERATURE = 0.8


@functools.cache
def scores(chunk_size=4096, group_size=4):
    batch = setup.rollouts()
    return setup.call(
        lambda rollouts: completion_scores(
            setup.merged(CONFIG), rollouts, group_size=group_size, temperature=TEMPERATURE, chunk_size=chunk_size
        ),
        batch,
    )


def real_tokens(batch, row):
    """Prompt and completion of a row, padding left out."""
    prompt = np.asarray(batch.prompts)[row][np.asarray(batch.prompt_mask)[row]]
    return prompt, np.asarray(batch.completions)[row][np.asarray(batch.completion_mask)[row]]


@pytest.mark.parametrize("chunk_size", [4096, 4], ids=["whole", "chunked"])
def test_scores_equal_loops(chunk_size):
    batch, found = setup.rollouts(), scores(chunk_size)
    params = setup.policy_and_params(CONFIG)[1]
    head = reference.head(params, CONFIG)
    for row in range(0, 16, 3):
        prompt, completion = real_tokens(batch, row)
        hidden = reference.completion_hidden(params, CONFIG, prompt, completion)
        expected = vocab.token_statistics(hidden, head, completion, TEMPERATURE)
        for name, values in zip(("log_probs", "entropy", "log_normalizer"), expected, strict=True):
            part = np.asarray(getattr(found, name))[row, : len(completion)]
            np.testing.assert_allclose(part, values, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found.hidden[row, : len(completion)], hidden, rtol=1e-5, atol=1e-5)


def test_scores_do_not_depend_on_how_rows_share_their_prompt():
    np.testing.assert_allclose(scores(group_size=1).log_probs, scores().log_probs, atol=1e-5)
    np.testing.assert_allclose(scores(group_size=2).hidden, scores().hidden, atol=1e-5)


def test_gradient_equals_that_of_the_plain_log_softmax():
    batch = setup.rollouts()
    policy, params = setup.policy_and_params(CONFIG)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 4)), jnp.float32)

    def chunked(params):
        found = completion_scores(
            nnx.merge(policy, params), batch, group_size=4, temperature=TEMPERATURE, chunk_size=4
        )
        return jnp.sum(weights[0] * found.log_probs + weights[1] * found.entropy)

    def plain(params):
        mask = jnp.concatenate([batch.prompt_mask, jnp.ones((16, 4), bool)], axis=1)
        logits = nnx.merge(policy, params)(batch.tokens, mask)[:, 2:-1] / TEMPERATURE
        log_p = jax.nn.log_softmax(logits)
        taken = jnp.take_along_axis(log_p, batch.completions[:, :, None], axis=2)[:, :, 0]
        return jnp.sum(weights[0] * taken - weights[1] * jnp.sum(jnp.exp(log_p) * log_p, axis=-1))

    found, expected = setup.call(jax.grad(chunked), params), setup.call(jax.grad(plain), params)
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected))
    assert setup.largest_difference(found, expected) <= 1e-5 * largest


def test_no_array_of_all_logits_forward_or_backward():
    config = dataclasses.replace(CONFIG, vocab_size=1000)
    policy, params = setup.policy_and_params(config)
    batch = setup.rollouts()

    def program(chunk_size):
        def loss(params):
            found = completion_scores(
                nnx.merge(policy, params), batch, group_size=4, chunk_size=chunk_size
            )
            return jnp.sum(found.log_probs + found.entropy)

        return jax.make_jaxpr(jax.grad(loss))(params)

    n_t, chunked = 16 * 4, program(100)
    assert largest_array(chunked) < n_t * 1000 / 4
    assert (n_t, 100) in set(shapes(chunked))
    assert largest_array(program(1000)) == n_t * 1000  # what the walk would find


@pytest.mark.parametrize("rule", [KeptRule("min_p", 0.3), KeptRule("fixed", 0.1)], ids=str)
def test_what_a_rule_keeps_equals_loops(rule):
    batch = setup.rollouts()
    found = setup.call(
        lambda rollouts: completion_scores(
            setup.merged(CONFIG), rollouts, group_size=4, temperature=TEMPERATURE, chunk_size=5, kept=rule
        ),
        batch,
    )
    params = setup.policy_and_params(CONFIG)[1]
    head, dropped = reference.head(params, CONFIG), 0
    for row in range(0, 16, 3):
        prompt, completion = real_tokens(batch, row)
        hidden = reference.completion_hidden(params, CONFIG, prompt, completion)
        for t, token in enumerate(completion):
            p = vocab.probabilities(hidden[t], head, TEMPERATURE)
            edge = rule.value * max(p) if rule.form == "min_p" else rule.value
            mass = sum(q for q in p if q >= edge)
            proxy = math.log(p[token] / mass) if p[token] >= edge else -1e4
            dropped += proxy == -1e4
            np.testing.assert_allclose(found.kept_log_mass[row, t], math.log(mass), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found.log_proxy[row, t], proxy, rtol=1e-5, atol=1e-5)
    assert dropped
    for name in ("log_probs", "entropy", "log_normalizer", "hidden"):
        np.testing.assert_allclose(getattr(found, name), getattr(scores(), name), rtol=1e-5, atol=1e-5)
    assert scores().kept_log_mass is scores().log_proxy is None


def test_the_kept_mass_has_a_gradient_and_the_proxy_none():
    batch = setup.rollouts()
    policy, params = setup.policy_and_params(CONFIG)

    def totals(params):
        found = completion_scores(nnx.merge(policy, params), batch, group_size=4, kept=KeptRule("min_p", 0.3))
        return jnp.sum(found.kept_log_mass), jnp.sum(found.log_proxy)

    def gradients(params):
        transposed = jax.vjp(totals, params)[1]
        return [transposed(one) for one in ((1.0, 0.0), (0.0, 1.0))]

    of_mass, of_proxy = (jax.tree.leaves(gradient) for gradient in setup.call(gradients, params))
    assert any(np.any(g) for g in of_mass)
    assert not any(np.any(g) for g in of_proxy)


def test_bad_arguments_are_refused():
    model, batch = setup.merged(CONFIG), setup.rollouts()
    for message, arguments in (
        ("group_size=3 must divide the number of rollouts, 16", {"group_size": 3}),
        ("temperature", {"group_size": 4, "temperature": 0.0}),
        ("chunk_size", {"group_size": 4, "chunk_size": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(completion_scores, model, **arguments), batch)
