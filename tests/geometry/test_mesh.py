"""On a mesh: the numbers of one device, and no more than the stated bytes between devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.collectives import collectives
from salt_jax import geometry, vocab
from salt_jax.distributed.layout import Layout
from tests.one_program import one_program

pytestmark = pytest.mark.mesh
M, T, H, V = 16, 3, 8, 32
MESHES = [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)]
AUTO = (jax.sharding.AxisType.Auto,) * 3


@functools.cache
def layout(shape):
    return Layout(jax.make_mesh(shape, ("data", "fsdp", "tensor"), AUTO))


@functools.cache
def example():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, lm_head = jax.random.normal(keys[0], (M, T, H)), jax.random.normal(keys[1], (H, V))
    targets, mask = jax.random.randint(keys[2], (M, T), 0, V), jax.random.uniform(keys[3], (M, T)) < 0.8
    return hidden, lm_head, targets, mask


def placed(shape, inputs):
    """Rollouts split over data and fsdp, the output projection over fsdp and tensor."""
    where = layout(shape)
    specs = (where.rows, where.head, where.rows, where.rows)
    return [
        jax.device_put(x, jax.sharding.NamedSharding(where.mesh, spec)) for x, spec in zip(inputs, specs, strict=True)
    ]


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_gram_matrices_equal_one_device(shape):
    arguments = placed(shape, example())
    for function, how in (
        (geometry.lm_head_gram, {"chunk_size": 3, "temperature": 0.7}),  # 3 divides nothing: stale columns, padding
        (geometry.lm_head_gram, {}),
        (geometry.taken_token_gram, {"chunk_size": 4}),
    ):
        got = jax.jit(functools.partial(function, layout=layout(shape), **how))(*arguments)
        close(got, one_program(function)(*example(), **how))
        assert got.sharding.is_fully_replicated


@functools.partial(jax.jit, static_argnames="where")
def statistics(hidden, lm_head, targets, mask, where):
    """Log-probs and entropies, their gradients, and the Gram matrix of the sketch."""

    def total(hidden, lm_head):
        out = vocab.token_log_probs(hidden, lm_head, targets, temperature=0.7, chunk_size=5, layout=where)
        return jnp.sum(jnp.cos(hidden[..., 0]) * out.log_probs) + 0.3 * out.entropy.sum(), out

    values, gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, lm_head)
    features = geometry.lm_head_sketch(
        hidden, lm_head, targets, mask, jax.random.key(1), rank_vocab=8, rank_hidden=4, chunk_size=5, layout=where
    )
    return values, gradients, geometry.sketch_gram(features, layout=where)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_log_probs_gradients_and_sketches_equal_one_device(shape):
    got = statistics(*placed(shape, example()), where=layout(shape))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(statistics(*example(), where=None)), strict=True):
        close(one, other)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)], ids=str)
def test_the_exact_gram_sends_each_feature_once(shape, dtype):
    """Bytes from the compiled program: an all-to-all of the features, an all-reduce of K, no gathering of features."""
    where, chunk = layout(shape), 4
    hidden, *rest = placed(shape, example())
    run = jax.jit(functools.partial(geometry.lm_head_gram, layout=where, chunk_size=chunk, route="features"))
    text = run.lower(hidden.astype(dtype), *rest).compile().as_text()
    found = collectives(text)
    assert all(c.known for c in found)
    total = {
        kind: sum(c.bytes * c.trips for c in found if c.kind == kind)
        for kind in ("all-to-all", "all-gather", "all-reduce")
    }
    assert {c.kind for c in found} <= set(total)
    # XLA's CPU backend does bfloat16 products and exchanges in float32
    size = max(jnp.dtype(dtype).itemsize, 4 if dtype == jnp.bfloat16 else 0)
    mine = M // where.batch_shards * (V // where.vocab_shards) * H  # features of one device, all chunks
    assert total["all-to-all"] == mine * size
    # the output projection's rows, for its own columns alone: H·V/vocab numbers; K itself; a few numbers a token
    width = 0 if where.width_shards == 1 else H * (V // where.vocab_shards) * size
    assert total["all-gather"] <= width
    tokens = 0 if where.vocab_shards == 1 else 2 * 4 * M * T // where.batch_shards
    assert total["all-reduce"] <= 4 * M * M * 2 + tokens


def test_the_sketch_gathers_m_times_r():
    where = layout((2, 2, 2))
    args = placed((2, 2, 2), example())
    basis, heavy = geometry.start_basis(H, 4), jnp.arange(7)

    def run(*args):
        features = geometry.lm_head_sketch(
            *args, jax.random.key(0), rank_vocab=8, rank_hidden=4, basis=basis, heavy=heavy, layout=where
        )
        return geometry.sketch_gram(features, layout=where)

    found = collectives(jax.jit(run).lower(*args).compile().as_text())
    assert all(c.known for c in found)
    assert not [c for c in found if c.kind not in ("all-gather", "all-reduce")]
    r = 8 * 4
    gathered = sum(c.bytes * c.trips for c in found if c.kind == "all-gather")
    assert gathered <= 4 * (M * r + H * V // 2)  # the features, and the output projection's rows
    assert gathered >= 4 * M * r
    # over the vocabulary: peak, sum, moment and taken logit of a token, 7 kept logits and 1 sign, of 4 rollouts
    assert sum(c.bytes * c.trips for c in found if c.kind == "all-reduce") <= 4 * (M // 4) * T * (4 + 7 + 1)


@pytest.mark.parametrize(
    ("rows", "width", "columns", "message"),
    [
        (15, H, V, r"mesh .* splits rollouts over \('data', 'fsdp'\): 4 must divide 15"),
        (M, H, 33, r"splits the vocabulary over 'tensor': 2 must divide V of lm_head \(H, V\) = \(8, 33\)"),
        (M, 7, V, r"splits the width over 'fsdp': 2 must divide H of lm_head \(H, V\) = \(7, 32\)"),
    ],
)
def test_a_mesh_that_does_not_divide_is_named_while_tracing(rows, width, columns, message):
    shapes = (jnp.zeros((rows, T, width)), jnp.zeros((width, columns)), jnp.zeros((rows, T), int), jnp.ones((rows, T)))
    sketch = functools.partial(geometry.lm_head_sketch, key=jax.random.key(0))
    for function in (geometry.lm_head_gram, geometry.taken_token_gram, sketch):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(function, layout=layout((2, 2, 2))), *shapes)


def test_layouts_that_make_no_sense_are_refused():
    mesh = layout((2, 2, 2)).mesh
    with pytest.raises(ValueError, match="'model' is not an axis of the mesh"):
        Layout(mesh, vocab="model")
    with pytest.raises(ValueError, match="the vocabulary axis 'fsdp' must split nothing else"):
        Layout(mesh, vocab="fsdp")
