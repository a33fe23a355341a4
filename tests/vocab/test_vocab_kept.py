"""The kept mass against float64 loops and against KL to a constant proxy: values, gradients, chunks, meshes, sizes."""

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
from salt_jax.vocab import kept as vocab_kept
from salt_jax.vocab import token_log_probs
from salt_jax.vocab.kept import DROPPED, KeptRule
from tests.one_program import one_program
from tests.reference import vocab as reference
from tests.reference.jaxpr import largest_array, shapes

kept_log_mass = one_program(vocab_kept.kept_log_mass)

N, H, V = 5, 3, 11
RULES = [KeptRule("min_p", 0.02), KeptRule("min_p", 0.4), KeptRule("fixed", 0.05)]


def example(seed: int = 0, scale: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden = (scale * rng.normal(size=(N, H))).astype(np.float32)
    return hidden, rng.normal(size=(H, V)).astype(np.float32), rng.integers(0, V, size=N)


def kept_by_loop(p: np.ndarray, rule: KeptRule) -> list[int]:
    edge = rule.value * max(p) if rule.form == "min_p" else rule.value
    return [v for v in range(len(p)) if p[v] >= edge]


def mass_by_loop(hidden, lm_head, rule: KeptRule, temperature: float) -> np.ndarray:
    masses = []
    for h in hidden:
        p = reference.probabilities(h, lm_head, temperature)
        total = sum(p[v] for v in kept_by_loop(p, rule))
        masses.append(math.log(total) if total else DROPPED)
    return np.array(masses)


@pytest.mark.parametrize(
    ("rule", "chunk_size"), [(RULES[0], 1), (RULES[0], 64), (RULES[1], 4), (RULES[2], 10), (RULES[2], 11)], ids=str
)
def test_values_and_gradients_match_float64_loops(rule, chunk_size):
    hidden, lm_head, targets = example()
    weights = np.linspace(-1, 2, N)

    def total(h, w):
        found = vocab_kept.kept_log_mass(h, w, rule, temperature=0.5, chunk_size=chunk_size)
        return jnp.sum(jnp.asarray(weights, jnp.float32) * found.log_mass), found

    (_, found), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, lm_head)
    np.testing.assert_allclose(found.log_mass, mass_by_loop(hidden, lm_head, rule, 0.5), rtol=1e-5, atol=1e-6)
    by_loop = lambda h, w: float(np.sum(weights * mass_by_loop(h, w, rule, 0.5)))
    for got, expected in zip(
        gradients,
        (
            reference.finite_difference(lambda h: by_loop(h, lm_head), hidden),
            reference.finite_difference(lambda w: by_loop(hidden, w), lm_head),
        ),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    log_probs = one_program(token_log_probs)(hidden, lm_head, targets, temperature=0.5).log_probs
    proxies = np.asarray(one_program(vocab_kept.log_proxy)(log_probs, found))
    log_probs = np.asarray(log_probs)
    for n in range(N):
        p = reference.probabilities(hidden[n], lm_head, 0.5)
        inside = targets[n] in kept_by_loop(p, rule)
        expected = math.log(p[targets[n]]) - mass_by_loop(hidden[n : n + 1], lm_head, rule, 0.5)[0]
        assert proxies[n] == pytest.approx(expected if inside else DROPPED, abs=1e-5)


@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_minus_the_mass_is_the_divergence_from_a_constant_proxy_in_value_and_gradient(rule):
    """KL(proxy ‖ p) by the dense softmax, the proxy made of p and held constant."""
    hidden, lm_head, _ = example(2)

    def dense(h, w):
        log_p = jax.nn.log_softmax(h @ w)
        p = jax.lax.stop_gradient(jnp.exp(log_p))
        kept = jnp.where(p >= rule.value * p.max(axis=1, keepdims=True), p, 0.0)
        proxy = kept / kept.sum(axis=1, keepdims=True)
        return jnp.sum(jnp.where(proxy > 0, proxy * (jnp.log(jnp.where(proxy > 0, proxy, 1)) - log_p), 0.0))

    streamed = lambda h, w: -vocab_kept.kept_log_mass(h, w, rule, chunk_size=4).log_mass.sum()
    value, gradients = jax.jit(jax.value_and_grad(streamed, (0, 1)))(hidden, lm_head)
    expected, by_dense = jax.jit(jax.value_and_grad(dense, (0, 1)))(hidden, lm_head)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    assert max(np.abs(g).max() for g in by_dense) > 1e-3
    for got, wanted in zip(gradients, by_dense, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_nothing_kept_is_a_constant_and_drops_every_token():
    hidden, lm_head, targets = example()
    rule = KeptRule("fixed", 0.999)
    total = lambda h: vocab_kept.kept_log_mass(h, lm_head, rule, temperature=50.0).log_mass.sum()
    assert jax.jit(total)(hidden) == N * DROPPED
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(hidden), 0.0)
    found = kept_log_mass(hidden, lm_head, rule, temperature=50.0)
    log_probs = one_program(token_log_probs)(hidden, lm_head, targets, temperature=50.0).log_probs
    np.testing.assert_array_equal(vocab_kept.log_proxy(log_probs, found), DROPPED)


@functools.cache
def wild(chunk_size: int):
    return jax.jit(lambda h, w: vocab_kept.kept_log_mass(h, w, RULES[0], chunk_size=chunk_size))


@given(st.integers(0, 1000), st.floats(0.01, 300.0))
def test_wild_logits_stay_finite_and_keep_the_likeliest_token(seed, scale):
    hidden, lm_head, _ = example(seed, scale)
    one, several = wild(11)(hidden, lm_head), wild(4)(hidden, lm_head)
    np.testing.assert_allclose(one.log_mass, several.log_mass, rtol=1e-4, atol=1e-4)
    assert np.isfinite(one.log_mass).all()
    assert (one.log_mass <= 0).all()
    assert (one.log_mass >= np.log(1 / V) - 1e-4).all()  # the likeliest token alone has 1/V at least
    assert (one.log_threshold < 0).all()


def test_leading_axes_bfloat16_and_float64():
    hidden, lm_head, _ = example()
    flat = kept_log_mass(hidden, lm_head, RULES[1], chunk_size=4).log_mass
    stacked = np.stack([hidden, hidden[::-1]])
    both = kept_log_mass(stacked, lm_head, RULES[1], chunk_size=4).log_mass
    np.testing.assert_allclose(both, np.stack([flat, flat[::-1]]), rtol=1e-6, atol=1e-7)
    low = jax.jit(jax.grad(lambda h, w: vocab_kept.kept_log_mass(h, w, RULES[1]).log_mass.sum(), (0, 1)))(
        jnp.asarray(hidden, jnp.bfloat16), lm_head
    )
    assert [g.dtype for g in low] == [jnp.bfloat16, jnp.float32]
    with jax.enable_x64(True):
        wide = kept_log_mass(hidden.astype(float), lm_head.astype(float), RULES[1])
        assert wide.log_mass.dtype == jnp.float64
        np.testing.assert_allclose(wide.log_mass, mass_by_loop(hidden, lm_head, RULES[1], 1.0), rtol=1e-12)


def test_no_array_of_tokens_times_vocabulary():
    hidden, lm_head = jnp.zeros((64, 8)), jnp.zeros((8, 1000))

    def program(chunk_size):
        loss = lambda h, w: vocab_kept.kept_log_mass(h, w, RULES[0], chunk_size=chunk_size).log_mass.sum()
        return jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, lm_head)

    assert largest_array(program(100)) == 8 * 1000  # the gradient of lm_head
    assert (64, 100) in set(shapes(program(100)))
    assert largest_array(program(1000)) == 64 * 1000


@pytest.mark.mesh
@pytest.mark.parametrize("shape", [(2, 2, 2)], ids=str)
def test_a_mesh_gives_the_numbers_of_one_device(shape):
    auto = (jax.sharding.AxisType.Auto,) * 3
    where = Layout(jax.make_mesh(shape, ("data", "fsdp", "tensor"), auto))
    keys = jax.random.split(jax.random.key(0), 2)
    hidden, lm_head = jax.random.normal(keys[0], (8, 3, 8)), jax.random.normal(keys[1], (8, 32))

    def program(hidden, lm_head, layout):
        def total(hidden, lm_head):
            found = vocab_kept.kept_log_mass(
                hidden, lm_head, RULES[1], temperature=0.7, chunk_size=3, layout=layout
            )
            return jnp.sum(jnp.cos(hidden[..., 0]) * found.log_mass), found

        return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, lm_head)

    put = lambda x, spec: jax.device_put(x, jax.sharding.NamedSharding(where.mesh, spec))
    got = jax.jit(functools.partial(program, layout=where))(put(hidden, where.rows), put(lm_head, where.head))
    expected = jax.jit(functools.partial(program, layout=None))(hidden, lm_head)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="must divide"):
        vocab_kept.kept_log_mass(hidden, lm_head[:, :31], RULES[0], layout=where)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: KeptRule("top_p"), "form = 'top_p' is unknown; allowed: min_p, fixed"),
        (lambda: KeptRule("min_p", 0.0), r"value = 0.0 is not allowed; allowed: numbers in \(0, 1\)"),
        (lambda: KeptRule("min_p", float("nan")), "value = nan"),
        (lambda: vocab_kept.kept_log_mass(jnp.zeros((2, 3)), jnp.zeros((4, 5)), RULES[0]), "hidden"),
        (lambda: vocab_kept.kept_log_mass(jnp.zeros((2, 3)), jnp.zeros((3, 5)), RULES[0], temperature=0.0), "temper"),
        (lambda: vocab_kept.kept_log_mass(jnp.zeros((2, 3)), jnp.zeros((3, 5)), RULES[0], chunk_size=0), "chunk_size"),
    ],
)
def test_errors_name_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        change()
