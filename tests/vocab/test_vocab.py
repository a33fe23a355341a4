"""The vocabulary core against float64 loops: values, gradients, chunks, temperatures, sizes of its arrays."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax import vocab
from salt_jax.vocab import chunks as vocab_chunks
from tests.one_program import one_program
from tests.reference import vocab as reference
from tests.reference.jaxpr import largest_array

N, H, V = 5, 3, 11
CHUNKS = [1, 2, 4, 10, 11, 64]  # 2, 4 and 10 leave a ragged last chunk


def example(seed: int = 0, scale: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden = (scale * rng.normal(size=(N, H))).astype(np.float32)
    lm_head = rng.normal(size=(H, V)).astype(np.float32)
    return hidden, lm_head, rng.integers(0, V, size=N)


@functools.cache
def compiled(chunk_size: int, temperature: float):
    """Values and gradients of Σ u log p + v H, one compilation per chunk size."""

    def total(hidden, lm_head, targets, u, v):
        out = vocab.token_log_probs(hidden, lm_head, targets, temperature=temperature, chunk_size=chunk_size)
        return jnp.sum(u * out.log_probs) + jnp.sum(v * out.entropy), out

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_values_and_gradients_match_float64_loops(chunk_size, temperature):
    hidden, lm_head, targets = example()
    u, v = np.linspace(-1, 2, N), np.linspace(1.5, -0.5, N)
    (_, out), (g_hidden, g_head) = compiled(chunk_size, temperature)(
        hidden, lm_head, targets, jnp.asarray(u, jnp.float32), jnp.asarray(v, jnp.float32)
    )
    for got, expected in zip(
        out, reference.token_statistics(hidden, lm_head, targets, temperature), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=3e-6)
    total = lambda h, w: reference.weighted_sum(h, w, targets, temperature, u, v)
    by_hidden = reference.finite_difference(lambda h: total(h, lm_head), hidden)
    by_head = reference.finite_difference(lambda w: total(hidden, w), lm_head)
    np.testing.assert_allclose(g_hidden, by_hidden, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(g_head, by_head, rtol=1e-5, atol=1e-5)


def test_one_output_alone_has_the_same_gradient_as_a_zero_weight_on_the_other():
    hidden, lm_head, targets = example(1)
    ones, zeros = np.ones(N, np.float32), np.zeros(N, np.float32)
    for field, u, v in (("log_probs", ones, zeros), ("entropy", zeros, ones)):
        total = lambda h, w, field=field: getattr(vocab.token_log_probs(h, w, targets, chunk_size=4), field).sum()
        alone = jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, lm_head)
        _, both = compiled(4, 1.0)(hidden, lm_head, targets, u, v)
        for got, expected in zip(alone, both, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_log_normalizer_is_a_constant():
    hidden, lm_head, targets = example()
    total = lambda h, w: vocab.token_log_probs(h, w, targets).log_normalizer.sum()
    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, lm_head):
        np.testing.assert_array_equal(gradient, 0.0)


def test_uniform_distribution_in_closed_form():
    hidden, lm_head = np.zeros((2, 3, H), np.float32), np.ones((H, V), np.float32)
    out = one_program(vocab.token_log_probs)(hidden, lm_head, np.zeros((2, 3), int), chunk_size=4)
    assert out.log_probs.shape == out.entropy.shape == out.log_normalizer.shape == (2, 3)
    np.testing.assert_allclose(out.log_probs, -np.log(V), rtol=1e-6)
    np.testing.assert_allclose(out.entropy, np.log(V), rtol=1e-6)


@given(st.integers(0, 1000), st.floats(0.01, 300.0), st.sampled_from([0.05, 1.0, 7.0]))
def test_wild_logits_stay_finite_and_consistent(seed, scale, temperature):
    hidden, lm_head, targets = example(seed, scale)
    one = wild(11)(hidden, lm_head, targets, temperature)
    several = wild(4)(hidden, lm_head, targets, temperature)
    eps = np.finfo(np.float32).eps
    for a, b in zip(one, several, strict=True):
        assert np.isfinite(a).all()
        # Two orders of summation over logits of this size: a few units in their last place.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 + 4 * eps * np.abs(one.log_normalizer).max())
    log_probs, entropy = one[:2]
    assert (log_probs <= 0).all()
    assert (entropy >= 0).all()
    assert (entropy <= np.log(V) + 1e-5).all()


@functools.cache
def wild(chunk_size: int):
    return jax.jit(lambda h, w, y, t: vocab.token_log_probs(h, w, y, temperature=t, chunk_size=chunk_size))


def test_leading_axes_vmap_and_remat_change_nothing():
    hidden, lm_head, targets = example()
    hidden, targets = np.stack([hidden, hidden[::-1]]), np.stack([targets, targets[::-1]])
    total = lambda h, y: vocab.token_log_probs(h, lm_head, y, chunk_size=4).log_probs
    flat = jax.jit(jax.grad(lambda h: total(h, targets).sum()))(hidden)
    mapped = jax.jit(jax.grad(lambda h: jax.vmap(jax.checkpoint(total))(h, targets).sum()))(hidden)
    np.testing.assert_allclose(flat, mapped, rtol=1e-6, atol=1e-6)


def test_bfloat16_hidden_states_give_float32_results_and_bfloat16_gradients():
    hidden, lm_head, targets = example()
    low = jnp.asarray(hidden, jnp.bfloat16)
    head = jnp.asarray(lm_head, jnp.bfloat16).astype(jnp.float32)  # what a bfloat16 product sees
    out = one_program(vocab.token_log_probs)(low, head, targets, chunk_size=4)
    expected = reference.token_statistics(np.asarray(low, np.float64), np.asarray(head), targets, 1.0)
    assert out.log_probs.dtype == jnp.float32
    np.testing.assert_allclose(out.log_probs, expected[0], rtol=1e-5, atol=1e-5)
    total = lambda h, w: vocab.token_log_probs(h, w, targets).log_probs.sum()
    g_hidden, g_head = jax.jit(jax.grad(total, argnums=(0, 1)))(low, head)
    assert (g_hidden.dtype, g_head.dtype) == (jnp.bfloat16, jnp.float32)


def test_a_target_outside_the_vocabulary_is_nan_and_does_not_touch_the_gradient_when_masked():
    hidden, lm_head, targets = example()
    targets[0], targets[1] = -1, V
    mask = np.arange(N) >= 2

    def total(h):
        log_probs = vocab.token_log_probs(h, lm_head, targets, chunk_size=4).log_probs
        return jnp.where(mask, log_probs, 0.0).sum(), log_probs

    gradient, log_probs = jax.jit(jax.grad(total, has_aux=True))(hidden)
    np.testing.assert_array_equal(np.isnan(log_probs), ~mask)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[:2], 0.0)


def test_scaled_logits_is_the_one_transform():
    hidden, lm_head, targets = example()
    logits = vocab.scaled_logits(jnp.asarray(hidden), jnp.asarray(lm_head), 0.7)
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(N), targets]
    got = one_program(vocab.token_log_probs)(hidden, lm_head, targets, temperature=0.7, chunk_size=4).log_probs
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_uniform_numbers_lie_strictly_between_0_and_1():
    bits = np.array([0, 2**9 - 1, 2**9, 2**31, 2**32 - 2**9, 2**32 - 1], np.uint32)
    found = np.asarray(vocab_chunks.open_unit(jnp.asarray(bits)))
    assert found.dtype == np.float32
    assert found.min() > 0
    assert found.max() < 1
    np.testing.assert_array_equal(found, [(int(b) // 2**9 + 0.5) / 2**23 for b in bits])


def test_no_array_of_tokens_times_vocabulary():
    n, h, v, chunk = 64, 8, 96, 16
    shapes = (jnp.zeros((n, h)), jnp.zeros((h, v)), jnp.zeros(n, int))

    def total(hidden, lm_head, targets):
        out = vocab.token_log_probs(hidden, lm_head, targets, chunk_size=chunk)
        return (out.log_probs + out.entropy).sum()

    step = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(*shapes)
    assert largest_array(step) == n * chunk
    whole = jax.make_jaxpr(jax.grad(lambda h, w, y: total_naive(h, w, y), argnums=(0, 1)))(*shapes)
    assert largest_array(whole) >= n * v  # the walker does see what it looks for


def total_naive(hidden, lm_head, targets):
    return jax.nn.log_softmax(hidden @ lm_head)[jnp.arange(len(targets)), targets].sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": -1}, "temperature must be finite and > 0, got -1"),
        ({"temperature": float("nan")}, "temperature must be finite and > 0, got nan"),
        ({"chunk_size": 0}, "chunk_size must be a positive integer, got 0"),
        ({"chunk_size": 2.5}, "chunk_size must be a positive integer, got 2.5"),
        (
            {"lm_head": jnp.zeros((H + 1, V))},
            r"hidden \(5, 3\) must end in H of lm_head \(H, V\), got \(4, 11\)",
        ),
        ({"targets": jnp.zeros(N + 1, int)}, r"targets \(6,\) must be hidden \(5, 3\) without its last axis"),
    ],
)
def test_errors_name_what_is_wrong(change, message):
    hidden, lm_head, targets = example()
    arguments = {"hidden": hidden, "lm_head": lm_head, "targets": targets} | change
    with pytest.raises(ValueError, match=message):
        vocab.token_log_probs(**arguments)
