"""The tempered copy against float64 loops: expectation and draws, gradients, chunks, meshes, sizes."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.distributed.layout import Layout
from salt_jax.vocab.tempered import tempered_statistics
from tests.one_program import one_program
from tests.reference import vocab as reference
from tests.reference.jaxpr import largest_array

N, H, V, K = 5, 3, 11, 7
TEMPERING = 1.25


def example(seed: int = 0, scale: float = 1.5):
    rng = np.random.default_rng(seed)
    hidden = (scale * rng.normal(size=(N, H))).astype(np.float32)
    lm_head = rng.normal(size=(H, V)).astype(np.float32)
    return hidden, lm_head, rng.integers(0, V, size=N), rng.random((N, K)).astype(np.float32)


def shares_by_loop(hidden, lm_head, uniforms, temperature):
    """ω (N, V): the tempered copy, or the shares of tokens found by walking along its running sum."""
    shares = np.zeros((len(hidden), lm_head.shape[1]))
    for n, h in enumerate(hidden):
        p = reference.probabilities(h, lm_head, temperature * TEMPERING)
        if uniforms is None:
            shares[n] = p
            continue
        for u in uniforms[n]:
            token, passed = 0, p[0]
            while passed <= u:
                token += 1
                passed += p[token]
            shares[n, token] += 1 / len(uniforms[n])
    return shares


def statistics_by_loop(hidden, lm_head, targets, shares, temperature):
    log_probs, means, weights = [], [], []
    for n, h in enumerate(hidden):
        p = reference.probabilities(h, lm_head, temperature)
        log_probs.append(math.log(p[targets[n]]))
        means.append(sum(shares[n, v] * math.log(p[v]) for v in range(len(p))))
        weights.append(shares[n, targets[n]])
    return np.array(log_probs), np.array(means), np.array(weights)


@pytest.mark.parametrize(
    ("drawn", "chunk_size"), [(False, 1), (False, 4), (False, 64), (True, 4), (True, 10), (True, 11)]
)
def test_values_and_gradients_match_float64_loops(drawn, chunk_size):
    hidden, lm_head, targets, uniforms = example()
    uniforms = uniforms if drawn else None
    shares = shares_by_loop(hidden, lm_head, uniforms, 0.5)
    u, v = np.linspace(-1, 2, N), np.linspace(1.5, -0.5, N)

    def total(h, w):
        found = tempered_statistics(
            h, w, targets, tempering=TEMPERING, uniforms=uniforms, temperature=0.5, chunk_size=chunk_size
        )
        weighted = jnp.asarray(u, jnp.float32) * found.log_probs + jnp.asarray(v, jnp.float32) * found.mean
        return jnp.sum(weighted), found

    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, lm_head)
    for got, expected in zip(found, statistics_by_loop(hidden, lm_head, targets, shares, 0.5), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

    def by_loop(h, w):  # the shares stay what they were
        log_probs, means, _ = statistics_by_loop(h, w, targets, shares, 0.5)
        return float(np.sum(u * log_probs + v * means))

    by_hidden = reference.finite_difference(lambda h: by_loop(h, lm_head), hidden)
    by_head = reference.finite_difference(lambda w: by_loop(hidden, w), lm_head)
    np.testing.assert_allclose(gradients[0], by_hidden, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(gradients[1], by_head, rtol=1e-5, atol=2e-5)


def test_draws_follow_the_tempered_copy():
    """A grid of uniforms gives each token its share to within one draw: every token is there, none twice."""
    hidden, lm_head, _, _ = example(3)
    draws = 2000
    grid = np.broadcast_to((np.arange(draws) + 0.5) / draws, (N, draws)).astype(np.float32)
    expected = shares_by_loop(hidden, lm_head, None, 1.0)
    draw = jax.jit(
        lambda y: tempered_statistics(hidden, lm_head, y, tempering=TEMPERING, uniforms=grid, chunk_size=4)
    )
    for token in range(V):
        np.testing.assert_allclose(draw(np.full(N, token)).weight, expected[:, token], atol=1.5 / draws)


@functools.cache
def wild(chunk_size: int):
    return jax.jit(
        lambda h, w, y, u: (
            tempered_statistics(h, w, y, tempering=TEMPERING, chunk_size=chunk_size),
            tempered_statistics(h, w, y, tempering=TEMPERING, uniforms=u, chunk_size=chunk_size),
        )
    )


@given(st.integers(0, 1000), st.floats(0.01, 300.0))
def test_wild_logits_stay_finite(seed, scale):
    hidden, lm_head, targets, uniforms = example(seed, scale)
    uniforms[:, 0], uniforms[:, 1] = 0.0, np.nextafter(np.float32(1), np.float32(0))
    for chunk_size in (11, 4):
        exact, drawn = wild(chunk_size)(hidden, lm_head, targets, uniforms)
        for found in (exact, drawn):
            assert all(np.isfinite(field).all() for field in found)
            assert (found.log_probs <= 0).all()
            assert ((found.weight >= 0) & (found.weight <= 1 + 1e-6)).all()
        # No draw is worse than a token whose tempered share a float32 sum can hold.
        assert (drawn.mean >= TEMPERING * np.log(1e-9) - np.log(V) - 1).all()


def test_a_target_outside_the_vocabulary_is_nan():
    hidden, lm_head, targets, uniforms = example()
    targets[0], targets[1] = -1, V
    for u in (None, uniforms):
        run = one_program(tempered_statistics)
        found = run(hidden, lm_head, targets, tempering=TEMPERING, uniforms=u, chunk_size=4)
        for field in (found.log_probs, found.weight):
            np.testing.assert_array_equal(np.isnan(field), np.arange(N) < 2)
        assert np.isfinite(found.mean).all()


@pytest.mark.parametrize("drawn", [False, True], ids=["exact", "drawn"])
def test_no_array_of_tokens_times_vocabulary_or_of_draws_times_vocabulary(drawn):
    hidden, lm_head, targets = jnp.zeros((64, 8)), jnp.zeros((8, 1000)), jnp.zeros(64, int)
    uniforms = jnp.zeros((64, 50)) if drawn else None

    def program(chunk_size):
        loss = lambda h, w: tempered_statistics(
            h, w, targets, tempering=1.3, uniforms=uniforms, chunk_size=chunk_size
        ).mean.sum()
        return jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, lm_head)

    assert largest_array(program(100)) == 8 * 1000  # the gradient of lm_head
    assert largest_array(program(1000)) == 64 * 1000


@pytest.mark.mesh
@pytest.mark.parametrize(("shape", "drawn"), [((2, 2, 2), False), ((2, 2, 2), True), ((1, 1, 8), True)], ids=str)
def test_a_mesh_gives_the_numbers_of_one_device(shape, drawn):
    auto = (jax.sharding.AxisType.Auto,) * 3
    where = Layout(jax.make_mesh(shape, ("data", "fsdp", "tensor"), auto))
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, lm_head = jax.random.normal(keys[0], (8, 3, 8)), jax.random.normal(keys[1], (8, 32))
    targets, uniforms = jax.random.randint(keys[2], (8, 3), 0, 32), jax.random.uniform(keys[3], (8, 3, K))

    def program(hidden, lm_head, targets, uniforms, layout):
        def total(hidden, lm_head):
            found = tempered_statistics(
                hidden, lm_head, targets, tempering=TEMPERING, uniforms=uniforms if drawn else None,
                temperature=0.7, chunk_size=3, layout=layout,
            )
            return jnp.sum(jnp.cos(hidden[..., 0]) * found.mean + 0.3 * found.log_probs), found

        return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, lm_head)

    put = lambda x, spec: jax.device_put(x, jax.sharding.NamedSharding(where.mesh, spec))
    placed = put(hidden, where.rows), put(lm_head, where.head), put(targets, where.rows), put(uniforms, where.rows)
    got = jax.jit(functools.partial(program, layout=where))(*placed)
    expected = jax.jit(functools.partial(program, layout=None))(hidden, lm_head, targets, uniforms)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tempering": 0.0}, "tempering = 0.0 is not allowed; allowed: finite numbers > 0"),
        ({"tempering": float("inf")}, "tempering = inf"),
        ({"tempering": 1.0, "uniforms": jnp.zeros((2, 4))}, "uniforms must be targets"),
        ({"tempering": 1.0, "uniforms": jnp.zeros((5, 0))}, "uniforms must be targets"),
        ({"tempering": 1.0, "chunk_size": 0}, "chunk_size"),
        ({"tempering": 1.0, "temperature": -1.0}, "temperature"),
    ],
)
def test_errors_name_what_is_wrong(options, message):
    hidden, lm_head, targets, _ = example()
    with pytest.raises(ValueError, match=message):
        tempered_statistics(hidden, lm_head, targets, **options)
