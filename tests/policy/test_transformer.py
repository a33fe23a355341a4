"""The decoder against float64 loops, and its streams (prompt shared by a group, cache) against the plain forward."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from salt_jax.policy.layers import REMAT, TransformerConfig, rms_norm
from salt_jax.policy.transformer import left_aligned
from tests.reference import transformer as reference
from tests.training_setup import call, compiled, edited, largest_difference, merged, policy_and_params

LLAMA = TransformerConfig(
    vocab_size=11, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=2, mlp_dim=12, rms_norm_eps=1e-5
)
QWEN2 = dataclasses.replace(LLAMA, qkv_bias=True, rope_theta=1e6, num_kv_heads=1, head_dim=4)
QWEN3 = dataclasses.replace(LLAMA, qk_norm=True, head_dim=6, tied_embeddings=False)
MODELS = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}
UNROLLED = dataclasses.replace(QWEN3, scan_layers=False)
B, G, P, T = 2, 3, 4, 5

models = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
two_models = pytest.mark.parametrize("config", [QWEN2, UNROLLED], ids=["qwen2-scanned", "qwen3-unrolled"])
scanned = pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])


def inputs(seed=0):
    """Prompts of 4 and 2 real tokens, and completions."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(0, 11, (B, P)).astype(np.int32)
    mask = np.array([[True] * 4, [False] * 2 + [True] * 2])
    return jnp.asarray(prompts), jnp.asarray(mask), jnp.asarray(rng.integers(0, 11, (B, G, T)), jnp.int32)


def rows_and_mask(prompts, mask, completions):
    """The same as concatenated rows (B·G, P+T)."""
    rows = jnp.concatenate([jnp.repeat(prompts, G, axis=0), completions.reshape(B * G, -1)], axis=1)
    real = jnp.ones((B * G, completions.shape[2]), bool)
    return rows, jnp.concatenate([jnp.repeat(mask, G, axis=0), real], axis=1)


@functools.cache
def concatenated():
    """Those of `inputs`."""
    return call(rows_and_mask, *inputs())


@models
@scanned
def test_logits_equal_loops(config, scan):
    config = dataclasses.replace(config, scan_layers=scan)
    params = policy_and_params(config)[1]
    tokens, mask = concatenated()
    found = np.asarray(call(lambda tokens, mask: merged(config)(tokens, mask), tokens, mask))
    assert found.dtype == np.float32
    for row in (0, B * G - 1):  # one without padding, one with
        real = np.flatnonzero(mask[row])
        expected = reference.logits(params, config, np.asarray(tokens)[row, real])
        np.testing.assert_allclose(found[row, real], expected, rtol=1e-5, atol=1e-5)


def test_layers_are_stacked():
    assert policy_and_params(QWEN3)[1]["layers"]["o"].shape == (2, 24, 8)


def test_amount_and_content_of_left_padding_do_not_matter():
    tokens = np.random.default_rng(2).integers(0, 11, (2, 4)).astype(np.int32)
    logits, results = compiled(lambda t, m: merged(QWEN2)(t, m)), []
    for padding, filler in ((0, 0), (3, 0), (3, 7)):
        padded = jnp.asarray(np.concatenate([np.full((2, padding), filler, np.int32), tokens], axis=1))
        mask = np.broadcast_to(np.arange(padding + 4)[None] >= padding, padded.shape) if padding else None
        results.append(np.asarray(logits(padded, mask))[:, padding:])
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    assert np.array_equal(results[1], results[2])


def test_rows_without_any_real_token_are_finite():
    prompts, mask, completions = inputs()
    mask = edited(mask, 1, False)
    model = merged(QWEN2)
    hidden = call(lambda p, m, c: model.completion_hidden(p, m, c), prompts, mask, completions)
    assert np.isfinite(hidden).all()


def weighted_sum(hidden):
    """A scalar in which every hidden state has its own weight."""
    weights = jnp.asarray(np.random.default_rng(5).normal(size=hidden.shape), jnp.float32)
    return jnp.sum(hidden.astype(jnp.float32) * weights), hidden


@functools.cache
def completion_states(config):
    """Value, hidden states (B, G, T, D) and gradient in the parameters, prompt processed once per group."""
    policy, params = policy_and_params(config)

    def loss(params, *arguments):
        return weighted_sum(nnx.merge(policy, params).completion_hidden(*arguments))

    return call(jax.value_and_grad(loss, has_aux=True), params, *inputs())


def plain_states(config):
    """The same from whole rows."""
    policy, params = policy_and_params(config)

    def loss(params, *arguments):
        tokens, mask = rows_and_mask(*arguments)
        rows, lengths = left_aligned(tokens, mask)
        hidden, _ = nnx.merge(policy, params).prefill(rows, lengths)
        at = lengths[:, None] - T - 1 + jnp.arange(T)[None]  # the states before each of the last T tokens
        return weighted_sum(jnp.take_along_axis(hidden, at[:, :, None], axis=1).reshape(B, G, T, -1))

    return call(jax.value_and_grad(loss, has_aux=True), params, *inputs())


@two_models
def test_shared_prompt_equals_whole_rows_in_value_and_gradient(config):
    (value, hidden), gradient = completion_states(config)
    (expected_value, expected_hidden), expected_gradient = plain_states(config)
    np.testing.assert_allclose(hidden, expected_hidden, atol=1e-5)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    largest = max(float(np.max(np.abs(g))) for g in jax.tree.leaves(expected_gradient))
    assert largest_difference(gradient, expected_gradient) <= 1e-5 * largest
    # it reaches every parameter of a layer (a bias of the keys hardly: only its rotation is seen)
    reached = {name: float(np.max(np.abs(g))) for name, g in gradient["layers"].items()}
    assert min(value for name, value in reached.items() if name != "k_bias") > 1e-3 * largest


@two_models
@pytest.mark.parametrize("remat", [pytest.param("dots", marks=pytest.mark.slow), "full"])
def test_rematerialisation_changes_neither_values_nor_gradients(config, remat):
    plain, recomputed = completion_states(config), completion_states(dataclasses.replace(config, remat=remat))
    np.testing.assert_allclose(recomputed[0][0], plain[0][0], rtol=1e-6)
    assert largest_difference(recomputed, plain) <= 1e-5


@two_models
def test_rematerialisation_stores_less_for_the_backward_pass(config):
    def stored(remat):
        policy, params = policy_and_params(dataclasses.replace(config, remat=remat))
        forward = lambda params: nnx.merge(policy, params).completion_hidden(*inputs())
        pullback = jax.eval_shape(lambda params: jax.vjp(forward, params)[1], params)  # a tree of what it stores
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    assert list(REMAT) == ["none", "dots", "full"]
    assert stored("none") > 1.5 * stored("dots")
    assert stored("dots") > 1.5 * stored("full")


def test_bfloat16_is_close_and_is_bfloat16():
    (_, exact), _ = completion_states(QWEN2)
    config = dataclasses.replace(QWEN2, compute_dtype="bfloat16")
    rounded = call(lambda *a: merged(config).completion_hidden(*a), *inputs())
    assert rounded.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(policy_and_params(config)[1]))
    error = np.abs(np.asarray(rounded, np.float32) - np.asarray(exact))
    # about ten roundings of half an ulp (2^-9 of a value) accumulate on the way through two layers
    assert 2**-10 < error.max() <= 10 * 2**-9 * np.abs(exact).max()
    assert jax.eval_shape(lambda tokens: merged(config)(tokens), inputs()[0]).dtype == jnp.float32


def test_tokens_after_the_end_change_nothing_before_it():
    prompts, mask, completions = inputs()
    model = merged(LLAMA)
    compiled_states = compiled(lambda completions: model.completion_hidden(prompts, mask, completions))
    first = np.asarray(compiled_states(completions))
    changed = edited(completions, np.s_[:, 1:, 2:], completions[:, 1:, 2:] + 1) % 11
    other = np.asarray(compiled_states(changed))
    assert np.array_equal(first[:, :, :3], other[:, :, :3])  # state 2 predicts token 2 and has not seen it
    assert np.array_equal(first[:, 0], other[:, 0])
    assert (np.abs(first[:, 1:, 3:] - other[:, 1:, 3:]).max(axis=-1) > 1e-4).all()


@two_models
def test_decoding_with_the_cache_equals_the_training_forward(config):
    prompts, mask, completions = inputs()
    model = merged(config)

    def decode(prompts, mask, completions):
        rows, lengths = left_aligned(prompts, mask)
        hidden, prompt_kv = model.prefill(rows, lengths)
        states = [jnp.repeat(hidden[jnp.arange(B), lengths - 1], G, axis=0)]
        cache = model.empty_cache(B, G, T - 1)
        tokens = completions.reshape(B * G, T)
        for step in range(T - 1):
            state, cache = model.decode(tokens[:, step], jnp.int32(step), lengths, prompt_kv, cache)
            states.append(state)
        return jnp.stack(states, axis=1).reshape(B, G, T, -1)

    (_, expected), _ = completion_states(config)
    np.testing.assert_allclose(call(decode, prompts, mask, completions), expected, atol=1e-5)


def test_completions_of_one_token():
    prompts, mask, completions = inputs()
    hidden = call(lambda *a: merged(LLAMA).completion_hidden(*a), prompts, mask, completions[:, :, :1])
    params = policy_and_params(LLAMA)[1]
    assert hidden.shape == (B, G, 1, 8)
    for b, real in enumerate((P, 2)):
        expected = reference.hidden_states(params, LLAMA, np.asarray(prompts)[b, P - real :])[-1]
        np.testing.assert_allclose(hidden[b, :, 0], [expected] * G, rtol=1e-5, atol=1e-5)


def test_rms_norm_of_zero_and_of_extremes():
    x = jnp.array([[0.0, 0.0], [1e-15, -1e-15], [3e15, 4e15]])
    y = np.asarray(rms_norm(x, jnp.ones(2), 1e-6))
    np.testing.assert_allclose(y, [[0, 0], [1e-12, -1e-12], [0.6 * 2**0.5, 0.8 * 2**0.5]], rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in "vocab_size d_model num_layers num_heads num_kv_heads head_dim mlp_dim".split()),
        ("num_layers", -1),
        ("num_kv_heads", 3),  # does not divide 4
        ("head_dim", 3),  # odd
        ("compute_dtype", "float16"),
        ("remat", "some"),
        ("rope_theta", 0.0),
        ("rope_theta", -1.0),
        ("rope_theta", float("nan")),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", float("nan")),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        dataclasses.replace(LLAMA, **{field: value})
    assert "\n" not in str(caught.value)
    assert str(value) in str(caught.value)
