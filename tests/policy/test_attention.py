"""Every implementation of attention against the segments, which other tests hold to float64 loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from salt_jax.distributed.sharding import make_mesh
from salt_jax.learner.state import make_policy
from salt_jax.policy import attention
from salt_jax.policy.attention import ATTENTION, check_backend, segments, splash
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.transformer import left_aligned
from tests.reference.jaxpr import equations
from tests.training_setup import call, largest_difference, policy_and_params

CONFIG = TransformerConfig(
    vocab_size=11, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=2, mlp_dim=12, qkv_bias=True
)
P, T = 4, 5
REAL = (4, 2, 1, 0)  # tokens of each prompt; the last only pads the batch
FUSED = ["xla", "splash"]
fused = pytest.mark.parametrize("name", FUSED)


@pytest.fixture(autouse=True)
def _kernels_as_plain_operations(monkeypatch):
    monkeypatch.setitem(ATTENTION, "splash", functools.partial(splash, interpret=True))
    with jax.numpy_rank_promotion("allow"):  # inside JAX's kernel
        yield


def inputs(group, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(P)[None] >= P - np.array(REAL)[:, None]
    tokens = rng.integers(0, 11, (len(REAL), P)), rng.integers(0, 11, (len(REAL), group, T))
    return jnp.asarray(tokens[0], jnp.int32), jnp.asarray(mask), jnp.asarray(tokens[1], jnp.int32)


def hidden_and_gradient(config, group, mesh=None):
    """Hidden states of completions, and the gradient in the parameters of a sum with a weight for each of them."""
    params = policy_and_params(config)[1]
    policy = make_policy(config, mesh)

    def loss(params, *arguments):
        hidden = nnx.merge(policy, params).completion_hidden(*arguments)
        weights = np.random.default_rng(5).normal(size=hidden.shape).astype(np.float32)
        weights[3] = 0  # what a row without a prompt says has no meaning: its first state is that of padding
        return jnp.sum(hidden * weights), hidden

    gradient, hidden = call(jax.grad(loss, has_aux=True), params, *inputs(group))
    assert np.isfinite(hidden).all()
    return hidden[:3], gradient


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(expected[1]))
    assert largest_difference(found[1], expected[1]) <= 1e-5 * largest


@functools.cache
def expected(group):
    return hidden_and_gradient(CONFIG, group)


@fused
@pytest.mark.parametrize("group", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_hidden_states_and_gradients_are_those_of_the_segments(name, group):
    assert_same(hidden_and_gradient(dataclasses.replace(CONFIG, attention=name), group), expected(group))


@fused
@pytest.mark.parametrize("config", [{"scan_layers": False, "remat": "dots"}, {"remat": "full"}], ids=["dots", "full"])
@pytest.mark.slow
def test_with_rematerialisation(name, config):
    config = dataclasses.replace(CONFIG, attention=name, **config)
    assert_same(hidden_and_gradient(config, 3), expected(3))


@fused
def test_in_bfloat16(name):
    """As far from float32 as some 24 roundings of half an ulp explain; tests/policy/test_bfloat16.py counts them."""
    model = nnx.merge(*policy_and_params(dataclasses.replace(CONFIG, attention=name, compute_dtype="bfloat16")))
    hidden = call(model.completion_hidden, *inputs(3))[:3]
    assert hidden.dtype == jnp.bfloat16
    error, exact = np.asarray(hidden, np.float32) - np.asarray(expected(3)[0]), np.asarray(expected(3)[0])
    assert 2**-11 < np.linalg.norm(error) / np.linalg.norm(exact) <= 24 * 2**-9


@fused
def test_prefill_gives_the_same_states_and_cache(name):
    prompts, lengths = left_aligned(*inputs(1)[:2])
    mask = np.arange(P)[None] < np.array(REAL)[:, None]

    def real(attention):
        model = nnx.merge(*policy_and_params(dataclasses.replace(CONFIG, attention=attention)))
        hidden, (keys, values) = call(model.prefill, prompts, lengths)
        assert np.isfinite(hidden).all()
        at = np.asarray(mask)
        cache = (np.asarray(x) * at[None, :, None, :, None] for x in (keys, values))
        return [np.where(at[:, :, None], hidden, 0), *cache]

    for found, reference in zip(real(name), real("segments"), strict=True):
        np.testing.assert_allclose(found, reference, atol=1e-5)


def arrays(shape, seed=0):
    """q, k, v, lengths and prompt_kv of completions: batch, K, group, T, R, C, P; without P of rows, None for it."""
    batch, heads, group, length, per_head, c, prompt = shape
    rng = np.random.default_rng(seed)
    own = (batch, heads, group, length)
    shapes = (*own, per_head, c), (*own, c), (*own, c), (batch, heads, prompt, c), (batch, heads, prompt, c)
    q, k, v, before_k, before_v = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return q, k, v, rng.integers(1, prompt + 1, batch).astype(np.int32), (before_k, before_v)


def rows(shape):
    """The same of rows, groups of one: prompt_kv is None and lengths are the rows' own."""
    q, k, v, _, _ = arrays(shape)
    lengths = np.random.default_rng(2).integers(1, shape[3] + 1, shape[0]).astype(np.int32)
    return q[:, :, 0], k[:, :, 0], v[:, :, 0], lengths, None


def value_and_gradients(function, arguments):
    q, k, v, lengths, prompt_kv = arguments
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    if prompt_kv is None:  # what comes out for padding has no meaning
        weights *= np.arange(q.shape[2])[None, None, :, None, None] < lengths[:, None, None, None, None]

    def loss(q, k, v, prompt_kv):
        out = function(q, k, v, lengths, prompt_kv)
        return jnp.sum(out * weights), jnp.where(weights == 0, 0, out)

    gradients, out = call(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True), q, k, v, prompt_kv)
    return out, gradients


SHAPES = pytest.mark.parametrize(
    "shape", [(2, 1, 2, 130, 2, 8, 150), (1, 2, 1, 300, 1, 4, 3), (1, 1, 2, 1, 3, 4, 140)],
    ids=["several blocks", "long completions", "one token"],
)  # fmt: skip


@SHAPES
def test_completions_of_several_blocks(shape):
    arguments = arrays(shape)
    assert_same(value_and_gradients(ATTENTION["splash"], arguments), value_and_gradients(segments, arguments))


ROWS = (3, 2, 1, 131, 2, 8, 1)


@functools.cache
def expected_of_rows():
    return value_and_gradients(segments, rows(ROWS))


@fused
def test_rows_of_several_blocks(name):
    """Of an odd length, which cuDNN's gradient does not take as it is."""
    assert_same(value_and_gradients(ATTENTION[name], rows(ROWS)), expected_of_rows())


@pytest.mark.parametrize("name", ["segments", *FUSED])
def test_layers_gather_nothing(name):
    """Forward and backward: ids were put in order before they were embedded. 'cudnn' runs what 'xla' does."""
    config = dataclasses.replace(CONFIG, attention=name)
    policy, params = policy_and_params(config)
    gradient = jax.grad(lambda params: jnp.sum(nnx.merge(policy, params).completion_hidden(*inputs(3))))
    program = list(equations(jax.make_jaxpr(gradient)(params)))
    moves = lambda found: [e.primitive.name for e in found if e.primitive.name in ("gather", "scatter", "scatter-add")]
    assert moves(program)  # of ids, of embeddings and of the states that predict
    layers = [e for e in program if e.primitive.name == "scan" and e.params["length"] == CONFIG.num_layers]
    assert len(layers) == 2
    assert [moves(equations(e.params["jaxpr"])) for e in layers] == [[], []]


def test_kernels_of_whole_rows_take_no_prompt_beside_them():
    with pytest.raises(ValueError, match="whole rows"):
        ATTENTION["xla"](*arrays((2, 2, 2, 5, 2, 4, 4)))


def test_blocks_pad_to_128_and_divide():
    found = {tokens: attention._blocks(tokens) for tokens in (1, 128, 129, 512, 513, 1024, 1500)}
    assert found == {
        1: (128, 128), 128: (128, 128), 129: (256, 256), 512: (512, 512), 513: (640, 128), 1024: (1024, 512),
        1500: (1536, 512),
    }  # fmt: skip


@pytest.mark.mesh
@fused
@pytest.mark.parametrize(
    ("group", "shape"),
    [(3, (2, 2, 2)), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, (8, 1, 1)), (2, (4, 1, 2))))],
)
def test_on_a_mesh(name, group, shape):
    """Four prompts on four or eight devices; the eight do not divide them."""
    mesh = make_mesh(*shape)
    config = dataclasses.replace(CONFIG, attention=name)
    assert_same(hidden_and_gradient(config, group, mesh), expected(group))


@pytest.mark.slow
def test_one_gradient_a_rollout():
    """vmap of grad, as the feature 'per_rollout' takes it, on a mesh."""
    mesh = make_mesh(2, 1, 2)

    def gradients(name, mesh):
        config = dataclasses.replace(CONFIG, attention=name)
        params = policy_and_params(config)[1]

        def loss(params, prompt, mask, completion):
            model = nnx.merge(make_policy(config, mesh), params)
            return jnp.sum(model.completion_hidden(prompt[None], mask[None], completion[None]))

        rows = (x[:3] for x in inputs(1))  # those with a prompt
        return call(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0, 0)), params, *rows)

    reference = gradients("segments", None)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(reference))
    assert largest_difference(gradients("splash", mesh), reference) <= 1e-5 * largest


@pytest.mark.parametrize("head_dim", [24, 64, 128])
def test_splash_lowers_to_a_tpu_kernel(head_dim):
    """Without a TPU: the program for one is made, by the real kernel, with its gradient."""
    q, k, v, lengths, prompt_kv = arrays((2, 2, 2, 5, 2, head_dim, 4))
    gradient = jax.jit(jax.grad(lambda q, k, v: jnp.sum(splash(q, k, v, lengths, prompt_kv)), argnums=(0, 1, 2)))
    text = gradient.trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 3  # forward, gradient of q, gradient of k and v


@pytest.mark.parametrize(
    ("name", "backend"), [("cudnn", "cpu"), ("cudnn", "tpu"), ("splash", "cpu"), ("splash", "gpu")]
)
def test_a_kernel_for_another_backend_is_refused(name, backend):
    with pytest.raises(ValueError, match=f"^attention = '{name}' needs a (gpu|tpu), .*{backend}; allowed: ") as caught:
        check_backend(name, backend)
    assert "\n" not in str(caught.value)


def test_every_other_choice_is_allowed():
    for backend in ("cpu", "gpu", "tpu"):
        for name in ("segments", "xla"):
            check_backend(name, backend)
    check_backend("cudnn", "gpu")
    check_backend("splash", "tpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "flash"}, "attention must be one of segments, xla, cudnn, splash"),
        ({"attention": "cudnn"}, "compute_dtype"),
        ({"attention": "cudnn", "compute_dtype": "bfloat16", "head_dim": 12}, "head_dim"),
        ({"attention": "cudnn", "compute_dtype": "bfloat16", "head_dim": 264}, "head_dim"),
    ],
)
def test_configurations_without_a_kernel_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"^attention.*{message}|^{message}") as caught:
        dataclasses.replace(CONFIG, **fields)
    assert "\n" not in str(caught.value)
