"""Ghost products against materialised gradients, and against jax.grad of a small network."""

from __future__ import annotations

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax.selection import (
    bias_gram,
    embedding_gram,
    ghost_costs,
    linear_gram,
    linear_norms,
    logra_matrices,
    logra_project,
    norm_scale_gram,
    tied_gram,
    weighted_gram,
)
from tests.objective.golden_methods import PRECISIONS, evaluate
from tests.selection.golden_vectors import assert_printed, block, printed

# The file prints what inputs give, not the inputs. Found by search over halves: these give G_0, G_1, the shortcut of
# one token, the bias, embedding and token-weighted Grams as printed, all at once.
A = np.array([[[1.0, 2.0], [0.0, 1.0]], [[-1.0, 1.0], [2.0, 0.0]]])
D = np.array([[[0.5, 0.0, -0.5], [1.0, 1.0, 0.0]], [[0.0, 2.0, -1.0], [1.0, 0.0, 0.5]]])
IDS, TOKEN_WEIGHTS = np.array([[0, 0], [1, 0]]), np.array([[1.0, -1.0], [0.5, 0.0]])
# Of the norm's scale only the gradients are printed: any inputs that sum to them.
NORMALIZED = np.array([[[1.0, 2.0], [-0.5, 1.0]], [[2.0, 0.5], [1.0, -1.0]]])
NORM_GRADIENTS = np.array([[[1.5, 0.5], [1.0, -0.5]], [[0.0, 2.0], [1.0, -3.0]]])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_grams(golden, precision):
    text = block(golden, 12)
    for i in range(2):
        np.testing.assert_array_equal(D[i].T @ A[i], printed(text, f"G_{i}"))

    def say(function, *arrays, label):
        found = evaluate(function, *arrays, precision=precision)
        assert_printed(found, printed(text, label), precision)
        return found

    gram = printed(text, "Gram materialised")
    for route, tile in itertools.product(("ghost", "features"), (1, 2)):
        say(functools.partial(linear_gram, route=route, tile=tile), A, D, label="Gram ghost")
    assert printed(text, "Gram ghost") == gram
    say(linear_norms, A, D, label="norms =")
    say(lambda a, d: linear_norms(a[:, :1], d[:, :1]) ** 2, A, D, label="||a||^2||d||^2 (t=0 only)")
    say(bias_gram, D, label="bias Gram")
    say(weighted_gram, gram, [2.0, -1.0], label="w w' * K")
    say(lambda a, d, w: linear_gram(a, d, token_weights=w), A, D, TOKEN_WEIGHTS, label="(advantages inside D)")
    say(embedding_gram, IDS, D, label="embedding Gram ghost (id equality mask)")
    assert printed(text, "embedding Gram ghost") == printed(text, "embedding Gram materialised")
    np.testing.assert_array_equal((NORMALIZED * NORM_GRADIENTS).sum(axis=1), printed(text, "gamma) grads"))
    say(norm_scale_gram, NORMALIZED, NORM_GRADIENTS, label="its Gram")
    # the stand-in of the file: G_0 from one use of a tensor and G_1 from the other; sums before squares
    sums = evaluate(lambda k: jnp.stack([jnp.sum(k), jnp.trace(k)]), gram, precision=precision)
    assert_printed(sums, printed(text, "tied weights: ||a+b||^2 vs ||a||^2+||b||^2"), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_projections(golden, precision):
    text = block(golden, 12)
    # signs of the two projections that give the printed numbers
    project_in, project_out = np.array([[1.0, -1.0]]), np.array([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0]]) / np.sqrt(2)
    project_out[0] = -project_out[0] if (project_out[0] @ [-1.5, -1.0, 0.5]) > 0 else project_out[0]
    found = evaluate(logra_project, A, D, project_in, project_out, precision=precision)[0]
    for label in ("LoGra proj (k_o x k_i) sample 0", "= Po G Pi'"):
        assert_printed(found, printed(text, label), precision)

    # every projection to one number: k_i = k_o = 1, and one dense row of signs
    signs = {n: np.array(list(itertools.product((-1.0, 1.0), repeat=n))) for n in (2, 3, 6)}
    pairs = [(i[None], o[None]) for i in signs[2] for o in signs[3]]
    ins, outs = (np.stack(x) for x in zip(*pairs, strict=True))
    every = jax.vmap(logra_project, in_axes=(None, None, 0, 0))
    small = evaluate(every, A, D, ins, outs, precision=precision)[..., 0, 0]  # (32, 2)
    dense = evaluate(
        lambda s, a, d: s @ jnp.einsum("ntp,ntd->pdn", d, a, precision="highest").reshape(6, 2), signs[6], A, D,
        precision=precision,
    )  # fmt: skip
    for found, label in ((small, "of proj Gram == Gram"), (dense, "same for dense JL, k=1")):
        assert_printed(found.T @ found / np.asarray(len(found), precision), printed(text, label), precision)
    variances = [np.var(x[:, 0] ** 2) for x in (small, dense)]
    assert_printed(variances, printed(text, "Var of ||Pg_0||^2: Kronecker vs dense (k=1)"), precision)


def test_golden_choice_rule(golden):
    """Costs are printed to three digits, for five layers."""
    lines = re.findall(r"N,T,d,p=\((.*?)\): (.*)", block(golden, 12))
    assert len(lines) == 5
    for sizes, said in lines:
        costs = ghost_costs(*map(int, sizes.split(",")))
        for field, label in (
            ("norm_ghost", "norm_ghost"), ("norm_features", "norm_mat"), ("gram_ghost", "gram_ghost"),
            ("gram_features", "gram_mat"), ("memory_ghost", "mem_norm_ghost"), ("memory_features", "mem_mat"),
        ):  # fmt: skip
            assert getattr(costs, field) == pytest.approx(printed(said, f"{label}="), rel=5e-3)
        assert f"2T^2<=dp: {costs.ghost_norms}" in said
        assert f"{costs.gram_threshold:.1f}" == said.rpartition("=")[2]


# --- against jax.grad of a network with every kind of layer ---

V, W, P, N, T = 5, 4, 3, 5, 3


def network():
    rng = np.random.default_rng(0)
    params = {"embedding": (V, W), "scale": (W,), "kernel": (P, W), "bias": (P,)}
    return {name: rng.normal(size=shape) for name, shape in params.items()}, rng.integers(0, V, (N, T)), rng


def forward(params, ids, zero):
    """Summed loss of one example, with a perturbation of zero at each layer's output, and the layers' inputs."""
    x = params["embedding"][ids] + zero["embedding"]
    unit = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    y = unit * params["scale"][None] + zero["scale"]
    z = y @ params["kernel"].T + params["bias"][None] + zero["kernel"]
    return jnp.sum(jnp.tanh(z) ** 2), {"scale": unit, "kernel": y}


def test_every_layer_equals_per_example_gradients():
    params, ids, _ = network()
    zero = {"embedding": np.zeros((T, W)), "scale": np.zeros((T, W)), "kernel": np.zeros((T, P))}
    with jax.enable_x64(True):
        gradients = jax.jit(jax.vmap(jax.grad(lambda p, i: forward(p, i, zero)[0]), in_axes=(None, 0)))(params, ids)
        take = jax.vmap(jax.grad(forward, argnums=2, has_aux=True), in_axes=(None, 0, None))
        d, a = jax.jit(take)(params, ids, zero)
        found = jax.jit(lambda a, d: {
            "embedding": embedding_gram(ids, d["embedding"]),
            "scale": norm_scale_gram(a["scale"], d["scale"]),
            "kernel": linear_gram(a["kernel"], d["kernel"], route="ghost", tile=2),
            "bias": bias_gram(d["kernel"]),
        })(a, d)  # fmt: skip
        other = linear_gram(a["kernel"], d["kernel"], route="features", tile=2)
        norms = linear_norms(a["kernel"], d["kernel"])
        auto = linear_gram(a["kernel"], d["kernel"])
    for name, gram in found.items():
        flat = np.asarray(gradients[name]).reshape(N, -1)
        np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-9, atol=1e-12)
    for gram in (other, auto):
        np.testing.assert_allclose(gram, found["kernel"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(norms, np.sqrt(np.diagonal(found["kernel"])), rtol=1e-9)


def test_tied_weights_sum_before_squaring():
    rng = np.random.default_rng(1)
    table, ids = rng.normal(size=(V, W)), rng.integers(0, V, (N, T))

    def loss(table, ids, zero_in, zero_out):
        hidden = jnp.tanh(jnp.take(table, ids, axis=0) + zero_in)
        return jnp.sum(jnp.sin(hidden @ table.T + zero_out)), hidden

    zeros = np.zeros((T, W)), np.zeros((T, V))
    with jax.enable_x64(True):
        gradients = jax.jit(jax.vmap(jax.grad(lambda t, i: loss(t, i, *zeros)[0]), in_axes=(None, 0)))(table, ids)
        take = jax.vmap(jax.grad(loss, argnums=(2, 3), has_aux=True), in_axes=(None, 0, None, None))
        (d_in, d_out), hidden = jax.jit(take)(table, ids, *zeros)
        found = jax.jit(tied_gram)(ids, d_in, hidden, d_out)
        apart = embedding_gram(ids, d_in) + linear_gram(hidden, d_out)
    flat = np.asarray(gradients).reshape(N, -1)
    np.testing.assert_allclose(found, flat @ flat.T, rtol=1e-9, atol=1e-11)
    assert np.abs(np.asarray(apart) - flat @ flat.T).max() > 0.1


# --- edges ---


@functools.cache
def both_routes():
    def each(a, d, w):
        routes = itertools.product(("ghost", "features"), (2, 9))
        grams = {f"{route}{tile}": linear_gram(a, d, token_weights=w, route=route, tile=tile) for route, tile in routes}
        return grams | {"norms": linear_norms(a, d, token_weights=w)}

    return jax.jit(each)


def test_masked_tokens_may_hold_anything():
    rng = np.random.default_rng(2)
    a, d = rng.normal(size=(3, 4, 2)).astype(np.float32), rng.normal(size=(3, 4, 3)).astype(np.float32)
    weights = np.ones((3, 4), np.float32)
    weights[1, 2:], weights[2] = 0, 0
    g = np.einsum("ntp,ntd->npd", d * weights[:, :, None], a).reshape(3, -1)
    a[weights == 0], d[weights == 0] = np.nan, np.inf
    found = both_routes()(a, d, weights)
    norms = found.pop("norms")
    for gram in found.values():
        np.testing.assert_allclose(gram, g @ g.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norms, np.linalg.norm(g, axis=1), rtol=1e-4, atol=1e-5)
    assert float(norms[2]) == 0


def test_sequence_weights_factor_out():
    rng = np.random.default_rng(3)
    a, d, w = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 4, 3)), rng.normal(size=3)
    with jax.enable_x64(True):
        inside = linear_gram(a, d, token_weights=np.repeat(w[:, None], 4, 1))
        outside = weighted_gram(linear_gram(a, d), w)
    np.testing.assert_allclose(inside, outside, rtol=1e-9)


def test_bfloat16_is_summed_in_float32():
    a, d = (jnp.asarray(x, jnp.bfloat16) for x in (A, D))
    assert linear_gram(a, d).dtype == jnp.float32
    np.testing.assert_array_equal(linear_gram(a, d), linear_gram(A.astype(np.float32), D.astype(np.float32)))


def test_projection_matrices_have_unit_variance_rows():
    project_in, project_out = logra_matrices(jax.random.key(0), 50, 40, 4, 9)
    np.testing.assert_allclose(np.abs(project_in), 1 / 2)
    np.testing.assert_allclose(np.abs(project_out), 1 / 3, rtol=1e-6)
    assert abs(float(project_in.mean())) < 4 * 0.5 / np.sqrt(200)


def test_wrong_input_is_named():
    a, d = jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5))
    with pytest.raises(ValueError, match=r"\(N, T, d\) and \(N, T, p\)"):
        linear_gram(a, d[:, :2])
    with pytest.raises(ValueError, match="route = 'dense'"):
        linear_gram(a, d, route="dense")
    with pytest.raises(ValueError, match="tile"):
        linear_gram(a, d, tile=0)
    with pytest.raises(ValueError, match=r"token_weights must be \(2, 3\)"):
        bias_gram(d, token_weights=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="must be alike"):
        norm_scale_gram(a, d)
    with pytest.raises(ValueError, match=r"ids \(2, 4\)"):
        embedding_gram(jnp.zeros((2, 4), int), d)
    with pytest.raises(ValueError, match=r"project_out must be \(k, 5\)"):
        logra_project(a, d, jnp.ones((1, 4)), jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"gram .* must be \(n, n\)"):
        weighted_gram(jnp.eye(2), jnp.ones(3))
    with pytest.raises(ValueError, match="embedding_gradients"):
        tied_gram(jnp.zeros((2, 3), int), d, a, d)
    with pytest.raises(ValueError, match="tokens"):
        ghost_costs(1, 0, 1, 1)
