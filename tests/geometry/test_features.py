"""Gram routes against explicit float64 features, against each other, and against the sizes they promise."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax import geometry, vocab
from tests.one_program import one_program
from tests.reference import geometry as reference
from tests.reference.jaxpr import largest_array
from tests.training_setup import compiled_as_users_do

M, T, H, V = 4, 3, 2, 7
CHUNKS = [1, 3, 5, 7, 64]
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


def example(seed: int = 0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(M, T, H)).astype(np.float32)
    lm_head = rng.normal(size=(H, V)).astype(np.float32)
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)  # one rollout is empty
    return hidden, lm_head, rng.integers(0, V, size=(M, T)), mask


@functools.cache
def compiled(route: str, chunk_size: int = 64, length_normalize: bool = True):
    function = getattr(geometry, route)
    return jax.jit(functools.partial(function, chunk_size=chunk_size, length_normalize=length_normalize))


@pytest.mark.parametrize("route", ["features", "pairs"])
@pytest.mark.parametrize("softmax", [True, False])
def test_both_routes_match_explicit_features(route, softmax):
    inputs, function = example(), geometry.lm_head_gram if softmax else geometry.taken_token_gram
    for chunk_size in (3, None):
        got = jax.jit(functools.partial(function, route=route, chunk_size=chunk_size))(*inputs)
        rows = reference.features(*inputs, softmax=softmax)
        np.testing.assert_allclose(got, reference.gram(rows), **TOLERANCE)


@pytest.mark.parametrize("route", ["features", "pairs"])
@pytest.mark.parametrize("function", [geometry.lm_head_gram, geometry.taken_token_gram])
def test_features_as_users_compile_them(route, function):
    inputs = example(1)
    got = compiled_as_users_do(functools.partial(function, route=route, chunk_size=3))(*inputs)
    rows = reference.features(*inputs, softmax=function is geometry.lm_head_gram)
    np.testing.assert_allclose(got, reference.gram(rows), **TOLERANCE)


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize(("temperature", "length_normalize"), [(1.0, True), (0.6, False)])
def test_lm_head_gram_matches_explicit_features(chunk_size, temperature, length_normalize):
    inputs = example()
    got = compiled("lm_head_gram", chunk_size, length_normalize)(*inputs, temperature=temperature)
    rows = reference.features(*inputs, temperature=temperature, length_normalize=length_normalize)
    np.testing.assert_allclose(got, reference.gram(rows), **TOLERANCE)
    np.testing.assert_array_equal(np.asarray(got)[2], 0.0)  # the empty rollout


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("length_normalize", [True, False])
def test_taken_token_gram_matches_explicit_features(chunk_size, length_normalize):
    inputs = example()
    got = compiled("taken_token_gram", chunk_size, length_normalize)(*inputs)
    rows = reference.features(*inputs, softmax=False, length_normalize=length_normalize)
    np.testing.assert_allclose(got, reference.gram(rows), **TOLERANCE)


@pytest.mark.parametrize("chunk_size", [3, 64])
def test_a_given_log_normalizer_saves_a_pass_and_changes_nothing(chunk_size):
    hidden, lm_head, targets, mask = example()
    normalizer = one_program(vocab.token_log_probs)(hidden, lm_head, targets, temperature=0.7).log_normalizer
    normalizer = np.where(mask, normalizer, np.float32(np.nan))  # masked entries do not matter here either
    run = compiled("lm_head_gram", chunk_size)
    reused = run(hidden, lm_head, targets, mask, temperature=0.7, log_normalizer=normalizer)
    np.testing.assert_allclose(reused, run(hidden, lm_head, targets, mask, temperature=0.7), **TOLERANCE)


@pytest.mark.parametrize("route", ["lm_head_gram", "taken_token_gram"])
@pytest.mark.parametrize("chunk_size", [3, 64])
def test_masked_garbage_is_ignored_and_kept_garbage_is_loud(route, chunk_size):
    hidden, lm_head, targets, mask = example()
    run = compiled(route, chunk_size)
    clean = run(hidden, lm_head, targets, mask)
    dirty, odd = np.where(mask[:, :, None], hidden, np.nan), np.where(mask, targets, -7)
    np.testing.assert_array_equal(run(dirty, lm_head, odd, mask), clean)
    dirty[1, 0, 0] = np.nan
    bad = np.asarray(run(dirty, lm_head, targets, mask))
    assert np.isnan(bad[1, [0, 1, 3]]).all()
    keep = np.ix_([0, 2, 3], [0, 2, 3])
    np.testing.assert_array_equal(bad[keep], np.asarray(clean)[keep])
    odd[3, 0] = V  # no such token
    assert np.isnan(np.asarray(run(hidden, lm_head, odd, mask))[3, 3])


@pytest.mark.parametrize("route", ["lm_head_gram", "taken_token_gram"])
def test_permutation_padding_and_no_gradient(route):
    hidden, lm_head, targets, mask = example()
    run = compiled(route, 3)
    gram = np.asarray(run(hidden, lm_head, targets, mask))
    order = np.array([3, 1, 0, 2])
    shuffled = run(hidden[order], lm_head, targets[order], mask[order])
    np.testing.assert_allclose(shuffled, gram[np.ix_(order, order)], **TOLERANCE)
    longer = run(
        np.pad(hidden, ((0, 0), (0, 2), (0, 0)), constant_values=9.0),
        lm_head,
        np.pad(targets, ((0, 0), (0, 2))),
        np.pad(mask, ((0, 0), (0, 2))),
    )
    np.testing.assert_allclose(longer, gram, **TOLERANCE)
    total = lambda h, w: getattr(geometry, route)(h, w, targets, mask).sum()
    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, lm_head):
        np.testing.assert_array_equal(gradient, 0.0)


def lm_head_loss(params, rollout):
    """Mean negative log-likelihood times the temperature, of one rollout."""
    hidden, targets, mask = rollout
    logits = hidden @ params["lm_head"] / 0.7
    taken = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0]
    return -0.7 * jnp.where(mask, taken, 0.0).sum() / jnp.maximum(mask.sum(), 1)


@pytest.mark.parametrize("microbatch", [None, 1, 2, 4])
def test_per_rollout_gradients_of_the_lm_head_give_lm_head_gram(microbatch):
    hidden, lm_head, targets, mask = example()
    params = {"lm_head": lm_head, "unused": np.ones(3, np.float32)}
    rollouts = (hidden, targets, mask)
    got = one_program(geometry.per_rollout_gram)(lm_head_loss, params, rollouts, microbatch=microbatch)
    expected = compiled("lm_head_gram", 3)(hidden, lm_head, targets, mask, temperature=0.7)
    np.testing.assert_allclose(got, expected, **TOLERANCE)


def quadratic_loss(params, rollout):
    x, _ = rollout
    return jnp.sum(params["layers"][0]["kernel"] * x) + 2.0 * jnp.sum(params["head"] * x**2) + params["steps"]


PARAMS = {"layers": [{"kernel": jnp.ones(3)}], "head": jnp.ones(3), "steps": jnp.array(3)}
POINTS = np.arange(12.0, dtype=np.float32).reshape(4, 3) - 5


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        (None, np.concatenate([2 * POINTS**2, POINTS], axis=1)),
        (lambda path: path == "head", 2 * POINTS**2),
        (lambda path: path.startswith("layers/0/"), POINTS),
    ],
)
def test_where_selects_the_parameters(where, rows):
    rollouts = (jnp.asarray(POINTS), jnp.arange(4))
    run = jax.jit(lambda p, r: geometry.per_rollout_gram(quadratic_loss, p, r, where=where, microbatch=2))
    np.testing.assert_allclose(run(PARAMS, rollouts), reference.gram(rows.astype(float)), rtol=1e-6)


def test_per_rollout_gram_is_a_constant_and_bfloat16_parameters_give_float32():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    loss = lambda p, x: jnp.sum(p["w"] ** 2 * x)
    gram = lambda p: geometry.per_rollout_gram(loss, p, jnp.asarray(POINTS))
    assert gram(params).dtype == jnp.float32
    np.testing.assert_array_equal(jax.grad(lambda p: gram(p).sum())(params)["w"].astype(jnp.float32), 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"where": lambda path: "lora" in path}, "where selects no floating-point parameter; the paths are"),
        ({"where": lambda path: path == "steps"}, "where selects no floating-point parameter"),
        ({"microbatch": 3}, "microbatch must be a positive divisor of the 4 rollouts, got 3"),
        ({"microbatch": 0}, "microbatch must be a positive divisor of the 4 rollouts, got 0"),
        ({"rollouts": (jnp.ones((4, 3)), jnp.ones(5))}, "rollouts must share one leading axis m"),
    ],
)
def test_per_rollout_errors(change, message):
    arguments = {"params": PARAMS, "rollouts": (jnp.asarray(POINTS), jnp.arange(4))} | change
    with pytest.raises(ValueError, match=message):
        geometry.per_rollout_gram(quadratic_loss, **arguments)


@pytest.mark.parametrize("route", ["lm_head_gram", "taken_token_gram"])
def test_no_array_of_rollouts_times_vocabulary(route):
    m, t, h, v, chunk = 6, 5, 4, 60, 12
    shapes = (jnp.zeros((m, t, h)), jnp.zeros((h, v)), jnp.zeros((m, t), int), jnp.ones((m, t)))
    run = lambda size: jax.make_jaxpr(functools.partial(getattr(geometry, route), chunk_size=size))(*shapes)
    assert largest_array(run(chunk)) == m * chunk * h  # not m · chunk · T: residuals come in blocks of rollouts
    assert largest_array(run(v)) == m * v * h  # the walker does see what it looks for


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": jnp.zeros((M, H))}, r"hidden must be \(m, T, H\)"),
        ({"mask": jnp.zeros((M, T + 1))}, r"mask \(4, 4\) must have the shape of targets \(4, 3\)"),
        ({"targets": jnp.zeros((M, T + 1), int)}, r"targets \(4, 4\) must be hidden \(4, 3, 2\)"),
        ({"temperature": 0}, "temperature must be finite and > 0, got 0"),
        ({"chunk_size": -1}, "chunk_size must be a positive integer, got -1"),
        ({"log_normalizer": jnp.zeros(M)}, r"log_normalizer \(4,\) must have the shape of"),
        ({"chunk_size": 2.5}, "chunk_size must be a positive integer, got 2.5"),
        ({"memory_budget": 0}, "memory_budget must be a positive integer, got 0"),
        ({"memory_budget": 100}, "memory_budget = 100 bytes is too small for m = 4, T = 3, H = 2: 8 vocabulary"),
        ({"route": "fast"}, "route must be one of auto, features, pairs, got 'fast'"),
        ({"accumulation_dtype": jnp.float16}, "accumulation_dtype must be float32, .* got float16"),
        ({"accumulation_dtype": jnp.bfloat16}, "accumulation_dtype must be float32, .* got bfloat16"),
        ({"accumulation_dtype": jnp.float64}, "float64 with jax_enable_x64"),
    ],
)
def test_lm_head_gram_errors(change, message):
    arguments = dict(zip(("hidden", "lm_head", "targets", "mask"), example(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: geometry.lm_head_gram(**arguments))  # while tracing: nothing is compiled


def test_bfloat16_states_are_multiplied_as_they_are_and_summed_in_float32():
    hidden, lm_head, targets, mask = example()
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    for route in ("features", "pairs"):
        run = functools.partial(geometry.lm_head_gram, route=route, chunk_size=3)
        got = jax.jit(run)(hidden, lm_head, targets, mask)
        assert got.dtype == jnp.float32
        head = lm_head.astype(jnp.bfloat16).astype(np.float32)  # the policy's logits are of a bfloat16 head too
        rows = reference.features(np.asarray(hidden, np.float32), head, targets, mask)
        expected = reference.gram(rows)
        # Residuals and features are rounded once each, to 2^-9 of their size; the sums are not.
        np.testing.assert_allclose(got, expected, atol=4 * 2.0**-9 * np.diagonal(expected).max())
        assert np.abs(got - expected).max() > 1e-5  # it did run in bfloat16
        text = str(jax.make_jaxpr(run)(hidden, lm_head, targets, mask))
        products = [line for line in text.splitlines() if " = dot_general[" in line]
        assert products, text
        assert not any("bf16" in line.partition(" = ")[0] for line in products)


def test_float64_where_it_is_enabled():
    hidden, lm_head, targets, mask = example()
    expected = reference.gram(reference.features(hidden, lm_head, targets, mask))
    with jax.enable_x64(True):
        got = one_program(geometry.lm_head_gram)(
            hidden.astype(np.float64), lm_head.astype(np.float64), targets, mask, accumulation_dtype=np.float64
        )
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)



def test_on_policy_score_features_are_nearly_orthogonal_where_taken_token_features_are_not():
    """Finding 1 of the design notes: E[p − onehot] = 0, so correct features of different rollouts decorrelate."""
    m, t, h, v = 24, 16, 8, 12
    rng = np.random.default_rng(0)
    hidden = (1.0 + 0.3 * rng.normal(size=(m, t, h))).astype(np.float32)  # hidden states share a direction
    lm_head = (0.3 * rng.normal(size=(h, v))).astype(np.float32)
    targets = jax.random.categorical(jax.random.key(0), jnp.asarray(hidden @ lm_head))
    inputs = (hidden, lm_head, targets, np.ones((m, t)))

    def mean_cosine(gram):
        norms = np.sqrt(np.diagonal(gram))
        return np.mean((gram / np.outer(norms, norms))[~np.eye(m, dtype=bool)])

    score, taken = (np.asarray(compiled(route)(*inputs)) for route in ("lm_head_gram", "taken_token_gram"))
    # A mean of 276 zero-mean pairs over at least v − 1 directions: standard error about 1/sqrt(276 · 11) = 0.02.
    assert abs(mean_cosine(score)) < 0.06
    assert mean_cosine(taken) > 0.5
    assert reference.participation_ratio(score) > 2 * reference.participation_ratio(taken)


@pytest.mark.parametrize("case", range(12))
def test_golden_lm_head_gram(golden, case):
    """The authors' features by autograd in float64, token sum; their Gram includes the factor 1/temperature²."""
    row = json.loads((golden / "lm_head_gram.json").read_text())[case]
    with np.load(golden / "lm_head_gram.npz") as data:
        names = ("hidden", "lm_head", "targets", "mask", "gram", "log_probs")
        hidden, lm_head, targets, mask, gram, log_probs = (data[f"{name}_{case}"] for name in names)
    targets = targets.astype(np.int32)
    temperature = row["temperature"]
    got = compiled("lm_head_gram", 32, False)(hidden, lm_head, targets, mask, temperature=temperature)
    # float32 sums of t terms per token: a few eps of the largest entry.
    expected = gram * temperature**2
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6 * np.abs(expected).max())
    out = one_program(vocab.token_log_probs)(hidden, lm_head, targets, temperature=temperature, chunk_size=32)
    np.testing.assert_allclose(
        np.where(mask, out.log_probs, 0), np.where(mask, log_probs, 0), rtol=1e-5, atol=1e-5
    )
