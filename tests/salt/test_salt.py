"""salt.reweight: every variant against float64 loops on explicit features, every row of the edge-case table."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax.experimental import checkify

from salt_jax import salt
from salt_jax.salt import variants as salt_variants
from tests.reference import geometry as geometry_reference
from tests.reference import salt as reference

M, D = 8, 10
RANDOM = ("random_projection", "permuted", "matched_random")
DETERMINISTIC = tuple(name for name in salt.VARIANTS if name not in RANDOM)
# float32 eigenvectors: a few eps over the relative eigengap, which `example` keeps above 0.1.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
ENTROPY = (1.2, 0.7, 2.1)


def example(seed: int = 0, m: int = M, rank: int = D) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Explicit features (m, D) with a decaying spectrum, advantages and success rates."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(m, m)))
    right, _ = np.linalg.qr(rng.normal(size=(D, D)))
    size = min(m, rank, D)
    rows = (left[:, :size] * 2.0 * 0.75 ** np.arange(size)) @ right[:size]
    return rows, rng.normal(size=m), np.repeat(rng.uniform(size=m // 2), 2) if m % 2 == 0 else np.full(m, 0.3)


@functools.cache
def run(variant: str = "salt", **fields):
    """(gram, a, valid, success_rate) -> SaltOutput; `reweight` compiles once per variant, not per number."""
    config = salt.SaltConfig(variant=variant, **fields)

    def call(gram, a, valid, rate):
        return salt.reweight(
            gram, a, config, valid=valid, key=jax.random.key(3), success_rate=rate, entropy=ENTROPY
        )

    return call


def call(rows, a, rate=None, *, valid=None, gram=None, **fields):
    gram = geometry_reference.gram(rows) if gram is None else gram
    valid = np.ones(len(a), bool) if valid is None else valid
    rate = np.full(len(a), 0.3) if rate is None else rate
    arrays = [jnp.asarray(x, jnp.float32) for x in (gram, a, rate)]
    return run(**fields)(arrays[0], arrays[1], jnp.asarray(valid), arrays[2])


def assert_matches(out: salt.SaltOutput, expected: dict, keep=slice(None), **tolerance: float) -> None:
    tolerance = tolerance or CLOSE
    for name in ("advantages", "shared", "residual"):
        np.testing.assert_allclose(
            np.asarray(getattr(out, name))[keep], expected[name], **tolerance, err_msg=name
        )
    for name in ("alpha", "participation_ratio", "n_eff"):
        np.testing.assert_allclose(getattr(out, name), expected[name], **tolerance, err_msg=name)
    np.testing.assert_allclose(out.eigengap, expected["gap"], rtol=1e-4, atol=1e-4)
    assert int(out.k) == expected["k"]
    assert bool(out.ok)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", DETERMINISTIC)
def test_variant_matches_the_float64_reference(variant, seed):
    rows, a, rate = example(seed)
    extra = {"success_rate": rate, "entropy": ENTROPY, "variant": variant}
    assert_matches(call(rows, a, rate, variant=variant), reference.reweight(rows, a, **extra))


@pytest.mark.parametrize(
    "fields",
    [
        {"rho": 0.5},
        {"rho": 3.0},
        {"rho": 0.01},
        {"k_min": 3},
        {"k_min": 20},
        {"k_max": 1},
        {"alpha_min": 0.3, "alpha_max": 0.6},
        {"rescale": True},
        {"variant": "fixed_alpha", "fixed_alpha": 0.25},
        {"variant": "soft_filter", "k_min": 7},
        {"variant": "soft_filter", "k_min": 20},
        {"variant": "natural", "rho": 0.3},
        {"variant": "natural", "k_min": 20},
        {"variant": "natural_positive", "k_max": 1},
    ],
)
def test_config_fields_match_the_float64_reference(fields):
    for seed in (4, 5):
        rows, a, _ = example(seed)
        assert_matches(call(rows, a, **fields), reference.reweight(rows, a, **fields))


@pytest.mark.parametrize("seed", range(6))
def test_the_channels_add_up(seed):
    rows, a, _ = example(seed)
    out = call(rows, a)
    np.testing.assert_allclose(out.advantages, out.shared + out.alpha * out.residual, rtol=1e-6, atol=1e-6)


def test_alpha_is_zero_and_the_residual_is_dropped_where_n_eff_is_at_least_one():
    rows, a, _ = example()
    rows = rows * np.sign(a)[:, None] * np.sign(rows @ np.ones(D))[:, None] + 2 * np.sign(a)[:, None]
    out = call(rows, a)
    assert out.n_eff > 1
    assert out.alpha == 0
    np.testing.assert_array_equal(out.advantages, out.shared)


# The edge-case table of the design notes, one row a test id.


def zeros_like_all(out: salt.SaltOutput) -> None:
    np.testing.assert_array_equal(out.advantages, 0.0)
    assert out.n_eff == 0
    assert all(np.isfinite(np.asarray(field)).all() for field in out)
    assert bool(out.ok)


@pytest.mark.parametrize("variant", salt.VARIANTS)
def test_edge_all_advantages_zero(variant):
    rows, a, _ = example()
    zeros_like_all(call(rows, 0 * a, variant=variant))


@pytest.mark.parametrize("variant", salt.VARIANTS)
def test_edge_zero_gram(variant):
    rows, a, _ = example()
    out = call(0 * rows, a, variant=variant)
    np.testing.assert_array_equal(out.advantages, np.float32(a))
    np.testing.assert_array_equal(out.shared, np.float32(a))
    np.testing.assert_array_equal(out.residual, 0.0)
    assert (out.participation_ratio, out.n_eff, out.alpha, out.k, out.eigengap) == (0, 0, 0, 0, 0)
    assert not out.ok


@pytest.mark.parametrize("fields", [{}, {"k_min": 5}, {"k_max": 3}, {"rescale": True}])
@pytest.mark.parametrize("value", [1.7, -0.3])
def test_edge_one_rollout(fields, value):
    out = call(None, np.array([value]), gram=np.array([[2.5]]), **fields)
    assert out.advantages[0] == np.float32(value)
    assert (int(out.k), bool(out.ok)) == (1, True)
    padded = call(
        None,
        np.array([9.0, value, 9.0]),
        gram=np.diag([np.nan, 2.5, 1.0]),
        valid=np.array([False, True, False]),
        **fields,
    )
    np.testing.assert_array_equal(padded.advantages, np.float32([0, value, 0]))
    assert int(padded.k) == 1


@pytest.mark.parametrize(
    "fields",
    [{}, *({"variant": v, "k_min": 8} for v in ("salt", "soft_filter", "natural", "natural_positive"))],
)
def test_edge_duplicate_rollouts(fields):
    rows, a, _ = example(0)
    rows = rows[[0, 0, 1, 1, 2, 2, 0, 1]]  # rank 3 of 8
    out = call(rows, a, **fields)
    assert_matches(out, reference.reweight(rows, a, **fields))
    assert int(out.k) <= 3
    # No dependence on the basis of the null space: equal rollouts with equal advantages stay equal.
    equal = call(rows, a[[0, 0, 2, 2, 4, 4, 0, 2]], **fields).advantages
    np.testing.assert_allclose(equal[jnp.array([0, 2, 4])], equal[jnp.array([1, 3, 5])], **CLOSE)


def test_edge_close_eigenvalues_are_reported_and_repeatable():
    gram = np.diag([1.0, 1.0 - 1e-4, 0.5, 0.1])
    a = np.array([1.0, -1.0, 0.5, -0.5])
    outs = [call(None, a, gram=gram, k_max=1) for _ in range(3)]
    np.testing.assert_allclose(outs[0].eigengap, 1e-4, rtol=1e-2)
    for out in outs[1:]:
        for field, first in zip(out, outs[0], strict=True):
            np.testing.assert_array_equal(field, first)


@pytest.mark.parametrize("variant", salt.VARIANTS)
@pytest.mark.parametrize(("where", "bad"), [("gram", np.nan), ("gram", np.inf), ("advantages", np.nan)])
def test_edge_not_finite_is_refused(variant, where, bad):
    rows, a, _ = example()
    gram = geometry_reference.gram(rows)
    if where == "gram":
        gram[2, 5] = bad
    else:
        a[2] = bad
    out = call(rows, a, gram=gram, variant=variant)
    np.testing.assert_array_equal(out.advantages, np.float32(a))
    np.testing.assert_array_equal(out.shared, np.float32(a))
    np.testing.assert_array_equal(out.residual, 0.0)
    assert (out.alpha, out.k, bool(out.ok)) == (0, 0, False)
    assert np.isnan([out.participation_ratio, out.n_eff]).all()


@pytest.mark.parametrize("variant", ["scaled", "entropy_alpha"])
def test_edge_a_variants_own_argument_not_finite_is_refused(variant):
    rows, a, rate = example()
    rate[0] = np.nan
    gram, a, rate = (jnp.asarray(x, jnp.float32) for x in (geometry_reference.gram(rows), a, rate))
    config = salt.SaltConfig(variant=variant)
    out = salt.reweight(gram, a, config, success_rate=rate, entropy=(1.0, 0.0, jnp.inf))
    assert not out.ok
    np.testing.assert_array_equal(out.advantages, a)


@pytest.mark.parametrize("variant", DETERMINISTIC)
def test_edge_permutation(variant):
    rows, a, rate = example(1)
    order = np.random.default_rng(0).permutation(M)
    out = call(rows, a, rate, variant=variant)
    moved = call(rows[order], a[order], rate[order], variant=variant)
    np.testing.assert_allclose(moved.advantages, out.advantages[order], **CLOSE)
    np.testing.assert_allclose(moved.residual, out.residual[order], **CLOSE)
    assert moved.k == out.k
    for name in ("alpha", "participation_ratio", "n_eff", "eigengap"):
        np.testing.assert_allclose(getattr(moved, name), getattr(out, name), **CLOSE)


@pytest.mark.parametrize("variant", salt.VARIANTS)
def test_edge_scale_of_the_gram_and_of_the_advantages(variant):
    rows, a, rate = example(2)
    gram = geometry_reference.gram(rows).astype(np.float32)
    out = call(rows, a, rate, gram=gram, variant=variant)
    for exponent in (-90, 1, 90):  # a power of two: the same bits
        same = call(rows, a, rate, gram=np.ldexp(gram, exponent), variant=variant)
        for field, first in zip(same, out, strict=True):
            np.testing.assert_array_equal(field, first)
    scaled = call(rows, a, rate, gram=gram * np.float32(3e-30), variant=variant)
    np.testing.assert_allclose(scaled.advantages, out.advantages, **CLOSE)
    longer = call(rows, np.ldexp(np.float32(a), 40), rate, gram=gram, variant=variant)
    np.testing.assert_array_equal(longer.advantages, np.ldexp(out.advantages, 40))


@pytest.mark.parametrize("variant", DETERMINISTIC)
def test_edge_padding_changes_nothing_for_real_rollouts(variant):
    """Five real rollouts of eight: the shape of the other tests, and the reference knows of the five alone."""
    rows, a, rate = example(3)
    valid = np.isin(np.arange(M), [0, 2, 3, 4, 7])
    gram = np.where(valid[:, None] & valid, geometry_reference.gram(rows), np.nan)
    of_all = np.where(valid, a, np.inf), np.where(valid, rate, np.nan)
    padded = call(None, *of_all, gram=gram, valid=valid, variant=variant)
    for name in ("advantages", "shared", "residual"):
        np.testing.assert_array_equal(np.asarray(getattr(padded, name))[~valid], 0.0)
    extra = {"success_rate": rate[valid], "entropy": ENTROPY, "variant": variant}
    assert_matches(padded, reference.reweight(rows[valid], a[valid], **extra), keep=valid)


@pytest.mark.parametrize("variant", RANDOM)
def test_edge_padding_changes_nothing_for_what_is_drawn(variant):
    rows, a, rate = example(3)
    out = call(rows, a, rate, variant=variant)
    valid = np.zeros(M + 5, bool)
    valid[[0, 2, 3, 4, 7, 9, 10, 11]] = True
    gram = np.full((M + 5, M + 5), np.nan)
    gram[np.ix_(valid, valid)] = geometry_reference.gram(rows)
    a_all, rate_all = np.full(M + 5, np.inf), np.full(M + 5, np.nan)
    a_all[valid], rate_all[valid] = a, rate
    padded = call(None, a_all, rate_all, gram=gram, valid=valid, variant=variant)
    for name in ("advantages", "shared", "residual"):
        field = np.asarray(getattr(padded, name))
        np.testing.assert_array_equal(field[~valid], 0.0)
        np.testing.assert_allclose(field[valid], getattr(out, name), **CLOSE, err_msg=name)
    assert padded.k == out.k
    for name in ("alpha", "participation_ratio", "n_eff", "eigengap", "ok"):
        np.testing.assert_allclose(getattr(padded, name), getattr(out, name), **CLOSE)


def test_edge_no_valid_rollout_at_all_is_zero_and_nothing_to_report():
    rows, a, _ = example()
    out = call(rows, a * np.nan, valid=np.zeros(M, bool))
    assert all((np.asarray(field) == 0).all() for field in out._replace(ok=0))
    assert bool(out.ok)


def test_edge_entropy_without_a_range_is_zero():
    rows, a, _ = example()
    gram, a = jnp.asarray(geometry_reference.gram(rows), jnp.float32), jnp.asarray(a, jnp.float32)
    config = salt.SaltConfig(variant="entropy_alpha")
    alphas = [salt.reweight(gram, a, config, entropy=e).alpha for e in ((1.0, 1.0, 1.0), (3.0, 1.0, 2.0))]
    assert alphas == [0, 1]


@pytest.mark.parametrize("variant", ["natural", "natural_positive"])
def test_natural_is_the_damped_natural_gradient_in_the_span_of_the_features(variant):
    """S a' ∝ (SSᵀ + λI)⁻¹ S b, solved among the D coordinates of the features instead of the m rollouts."""
    for seed in range(3):
        rows, a, _ = example(seed)
        out = call(rows, a, variant=variant)
        b = np.maximum(a, 0) if variant == "natural_positive" else a
        fisher = rows.T @ rows
        shift = shift_of_trace(fisher, float(out.k))
        expected = shift * np.linalg.solve(fisher + shift * np.eye(D), rows.T @ b)
        np.testing.assert_allclose(rows.T @ np.asarray(out.advantages, float), expected, **CLOSE)


def shift_of_trace(fisher: np.ndarray, k: float) -> float:
    """λ with tr F(F + λI)⁻¹ = k."""
    low, high = 1e-9, 1e3
    for _ in range(200):
        shift = np.sqrt(low * high)
        above = np.trace(np.linalg.solve(fisher + shift * np.eye(D), fisher)) > k
        low, high = (shift, high) if above else (low, shift)
    return high


@pytest.mark.parametrize("m", [1, 2, 5])
def test_edge_natural_keeps_the_direction_of_a_where_the_spectrum_is_flat(m):
    """k = rank would need λ = 0 and leave nothing: k is at most rank − 1, ½ for one rollout."""
    a = np.linspace(-1, 2, m)
    for variant, b in (("natural", a), ("natural_positive", np.maximum(a, 0))):
        out = call(None, a, gram=3 * np.eye(m), variant=variant)
        np.testing.assert_allclose(out.advantages, b / max(m, 2), rtol=1e-5)
        assert int(out.k) == m


def test_edge_natural_leaves_what_has_no_feature_and_damps_a_lone_direction():
    gram = np.diag([4.0, 0.0, 0.0])
    out = call(None, np.array([1.0, 2.0, -3.0]), gram=gram, variant="natural")
    np.testing.assert_allclose(out.advantages, [0.5, 2.0, -3.0], rtol=1e-5)


def test_update_norm_matched_has_the_size_of_salts_update():
    for seed in range(4):
        rows, a, _ = example(seed)
        matched, plain = (call(rows, a, variant=name).advantages for name in ("update_norm_matched", "salt"))
        sizes = [
            np.linalg.norm(geometry_reference.update(rows, np.asarray(c, float))) for c in (matched, plain)
        ]
        np.testing.assert_allclose(sizes[0], sizes[1], rtol=1e-5)
        np.testing.assert_allclose(matched / a, np.full(M, matched[0] / a[0]), rtol=1e-5)


def test_update_norm_matched_does_not_amplify_rounding():
    rows = np.repeat(np.random.default_rng(0).normal(size=(1, D)), M, axis=0)
    out = call(rows, np.array([1.0, -1.0] * 4), variant="update_norm_matched")  # all cancel: the update is 0
    np.testing.assert_array_equal(out.advantages, 0.0)


# Random variants: what the draw must satisfy, whatever it is.


def draw(variant: str, seed: int, rows, a):
    gram = jnp.asarray(geometry_reference.gram(rows), jnp.float32)
    return salt.reweight(
        gram, jnp.asarray(a, jnp.float32), salt.SaltConfig(variant=variant), key=jax.random.key(seed)
    )


def test_random_projection_is_an_orthogonal_projection_of_the_same_dimension():
    rows, _, _ = example()
    # P from its action on the unit vectors: shared is linear in a.
    columns = [np.asarray(draw("random_projection", 1, rows, unit).shared) for unit in np.eye(M)]
    p = np.stack(columns, axis=1)
    k = int(draw("salt", 0, rows, np.ones(M)).k)
    np.testing.assert_allclose(p, p.T, atol=2e-6)
    np.testing.assert_allclose(p @ p, p, atol=2e-6)
    np.testing.assert_allclose(np.trace(p), k, atol=1e-5)
    a = np.linspace(-1, 1, M)
    out = draw("random_projection", 1, rows, a)
    expected = p @ a + float(out.alpha) * (np.eye(M) - p) @ np.maximum(a, 0)
    np.testing.assert_allclose(out.advantages, expected, atol=1e-5)
    assert np.abs(draw("random_projection", 2, rows, a).shared - out.shared).max() > 1e-2


def test_permuted_and_matched_random_keep_the_values_of_salt():
    rows, a, _ = example()
    plain = np.asarray(draw("salt", 0, rows, a).advantages)
    for variant in ("permuted", "matched_random"):
        drawn = [np.asarray(draw(variant, seed, rows, a).advantages) for seed in (1, 1, 2)]
        np.testing.assert_array_equal(np.sort(drawn[0]), np.sort(plain))
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert (drawn[0] != drawn[2]).any()
        assert (drawn[0] != plain).any()


def test_matched_random_follows_the_ranking_of_the_random_residual():
    rows, a, _ = example()
    scores = draw("random_projection", 1, rows, a).residual
    values = draw("matched_random", 1, rows, a).advantages
    np.testing.assert_array_equal(np.argsort(values), np.argsort(scores))


# jit, vmap, differentiation, wild inputs.


@pytest.mark.parametrize(
    "variant", ["salt", "matched_random", "scaled", "entropy_alpha", "update_norm_matched"]
)
def test_vmap_equals_one_at_a_time(variant):
    examples = [example(seed) for seed in (0, 1)]
    grams = jnp.asarray(np.stack([geometry_reference.gram(rows) for rows, _, _ in examples]), jnp.float32)
    a, rate = (jnp.asarray(np.stack([e[i] for e in examples]), jnp.float32) for i in (1, 2))
    valid = jnp.ones((2, M), bool).at[1, 3].set(False)
    together = jax.jit(jax.vmap(run(variant)))(grams, a, valid, rate)
    for i in range(2):
        alone = run(variant)(grams[i], a[i], valid[i], rate[i])
        for field, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(field[i], expected, **CLOSE)


def test_everything_is_a_constant():
    rows, a, _ = example()
    gram, a = jnp.asarray(geometry_reference.gram(rows), jnp.float32), jnp.asarray(a, jnp.float32)
    total = lambda k, c: sum(jnp.sum(field) for field in salt.reweight(k, c, salt.SaltConfig())[:4])
    for gradient in jax.grad(total, argnums=(0, 1))(gram, a):
        np.testing.assert_array_equal(gradient, 0.0)


@given(
    st.integers(0, 10**6),
    st.integers(1, M),
    st.integers(-30, 30),
    st.integers(-20, 20),
    st.sampled_from(["salt", "amplify", "soft_filter", "natural", "natural_positive"]),
)
def test_wild_inputs(seed, rank, log_gram, log_a, variant):
    rows, a, _ = example(seed, rank=rank)
    out = call(None, a * 10.0**log_a, gram=geometry_reference.gram(rows) * 10.0**log_gram, variant=variant)
    expected = reference.reweight(rows, a, variant=variant)
    pr = expected["participation_ratio"]
    assume(abs(pr - np.round(pr - 0.5) - 0.5) > 1e-3)  # round() is discontinuous there
    assert_matches(
        out._replace(**{n: getattr(out, n) / 10.0**log_a for n in ("advantages", "shared", "residual")}),
        expected,
    )


# The iterated eigenvectors of large mini-batches, here at a small m; see also geometry/test_subspace.py.

LARGE = 64


def large(seed: int = 0, decay: float = 0.7) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(LARGE, 120)) * np.arange(1, 121.0) ** -decay
    return jnp.asarray(rows @ rows.T, jnp.float32), jnp.asarray(rng.normal(size=LARGE), jnp.float32)


@pytest.mark.parametrize("variant", ["salt", "signed", "soft_filter"])
def test_iterated_eigenvectors_give_the_same_reweighting(variant):
    for seed in range(2):
        gram, a = large(seed)
        full, iterated = (
            salt.reweight(gram, a, salt.SaltConfig(variant=variant, eigen=eigen))
            for eigen in ("full", "iterative")
        )
        assert full.eigengap > 0.01
        assert (bool(full.fallback), bool(iterated.fallback)) == (False, False)
        for name in full._fields:
            np.testing.assert_allclose(
                getattr(iterated, name), getattr(full, name), rtol=1e-4, atol=5e-5, err_msg=name
            )


def test_an_iteration_that_is_refused_says_so_and_changes_nothing():
    gram, a = large()
    flat = jnp.eye(LARGE)  # k = m: no block holds it
    for matrix, fields in ((flat, {}), (flat, {"k_max": 3}), (gram, {"k_min": 40})):
        full, iterated = (
            salt.reweight(matrix, a, salt.SaltConfig(eigen=eigen, **fields))
            for eigen in ("full", "iterative")
        )
        assert (bool(full.fallback), bool(iterated.fallback)) == (False, True)
        for field, expected in zip(iterated._replace(fallback=full.fallback), full, strict=True):
            np.testing.assert_allclose(field, expected, rtol=1e-6, atol=1e-6)
    # Every variant that needs the whole spectrum has it from the start.
    for variant in salt_variants.WHOLE_SPECTRUM:
        assert not salt.reweight(flat, a, salt.SaltConfig(variant=variant, eigen="iterative")).fallback


def test_iterated_eigenvectors_under_vmap_and_grad_and_without_a_gram():
    config = salt.SaltConfig(eigen="iterative")
    gram, a = large()
    grams = jnp.stack([gram, jnp.eye(LARGE), gram.at[1, 2].set(jnp.nan), jnp.zeros((LARGE, LARGE))])
    together = jax.vmap(lambda k: salt.reweight(k, a, config))(grams)
    assert together.fallback.tolist() == [False, True, False, False]
    assert together.ok.tolist() == [True, True, False, False]
    for i in range(4):
        alone = salt.reweight(grams[i], a, config)
        for field, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(field[i], expected, **CLOSE)
    np.testing.assert_array_equal(together.advantages[2:], jnp.stack([a, a]))
    total = lambda k, c: jnp.sum(salt.reweight(k, c, config).advantages)
    for gradient in jax.grad(total, argnums=(0, 1))(gram, a):
        np.testing.assert_array_equal(gradient, 0.0)


# ok = False is not silent: on the host, mapped, and compiled.

GOOD = (np.diag([4.0, 1.0, 1.0]), np.array([1.0, 1.0, -2.0]))
BAD = {
    "advantages": (GOOD[0], np.array([1.0, np.inf, -1.0]), "they are not finite"),
    "gram": (np.diag([4.0, np.nan, 1.0]), GOOD[1], "the Gram matrix, success_rate or entropy is not finite"),
    "zero": (0 * GOOD[0], GOOD[1], "the Gram matrix is 0, no rollout has a gradient feature"),
}


@functools.cache
def checked():
    def new_advantages(gram, a):
        out = salt.reweight(gram, a, salt.SaltConfig())
        out.check()
        return out.advantages

    return jax.jit(checkify.checkify(new_advantages))


@pytest.mark.parametrize("what", BAD)
def test_an_output_that_is_not_ok_raises_and_says_why(what):
    gram, a, message = BAD[what]
    gram, a = jnp.asarray(gram, jnp.float32), jnp.asarray(a, jnp.float32)
    with pytest.raises(ValueError, match=f"^SALT left the advantages as they were: {message}$"):
        salt.reweight(gram, a, salt.SaltConfig()).raise_if_bad()
    error, _ = checked()(gram, a)
    with pytest.raises(checkify.JaxRuntimeError, match=f"^SALT left the advantages as they were: {message}"):
        error.throw()


def test_an_output_that_is_ok_does_not_raise():
    gram, a = (jnp.asarray(x, jnp.float32) for x in GOOD)
    salt.reweight(gram, a, salt.SaltConfig()).raise_if_bad()
    error, new = checked()(gram, a)
    error.throw()
    np.testing.assert_allclose(new, salt.reweight(gram, a, salt.SaltConfig()).advantages, rtol=1e-6)
    nothing = jnp.zeros(3, bool)  # no rollout at all is no fault
    salt.reweight(gram, a, salt.SaltConfig(), valid=nothing).raise_if_bad()


def test_mapped_outputs_say_how_many_are_bad():
    outs = []
    for gram in (GOOD[0], BAD["zero"][0], GOOD[0], BAD["zero"][0]):
        gram, a = jnp.asarray(gram, jnp.float32), jnp.asarray(GOOD[1], jnp.float32)
        outs.append(salt.reweight(gram, a, salt.SaltConfig()))
    out = jax.tree.map(lambda *fields: jnp.stack(fields), *outs)
    with pytest.raises(ValueError, match="^SALT left the advantages as they were in 2 of 4 units: the Gram"):
        out.raise_if_bad()


def test_a_traced_output_cannot_raise_and_says_what_can():
    gram, a = (jnp.asarray(x, jnp.float32) for x in GOOD)
    with pytest.raises(ValueError, match=r"^raise_if_bad\(\) needs values; .* use check\(\) under checkify"):
        jax.eval_shape(lambda k: salt.reweight(k, a, salt.SaltConfig()).raise_if_bad(), gram)


# Errors, each one line.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "slat"}, f"variant must be one of {', '.join(salt.VARIANTS)}, got 'slat'"),
        ({"rho": 0}, "rho must be a finite number > 0, got 0"),
        ({"rho": float("inf")}, "rho must be a finite number > 0, got inf"),
        ({"k_min": 0}, "k_min must be an integer >= 1, got 0"),
        ({"k_min": 1.5}, "k_min must be an integer >= 1, got 1.5"),
        ({"k_max": 1, "k_min": 2}, "k_max must be None or an integer >= k_min = 2, got 1"),
        ({"alpha_min": -0.1}, r"alpha_min must be a number in \[0, 1\], got -0.1"),
        ({"alpha_max": 1.5}, r"alpha_max must be a number in \[0, 1\], got 1.5"),
        ({"alpha_min": 0.9, "alpha_max": 0.1}, "alpha_min must be <= alpha_max = 0.1, got 0.9"),
        ({"fixed_alpha": float("nan")}, r"fixed_alpha must be a number in \[0, 1\], got nan"),
        ({"rescale": 1}, "rescale must be True or False, got 1"),
        ({"eigen": "fast"}, "eigen must be one of auto, full, iterative, got 'fast'"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        salt.SaltConfig(**fields)


def test_config_is_frozen_and_hashable():
    config = salt.SaltConfig()
    assert hash(config) == hash(salt.SaltConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rho = 2.0


@pytest.mark.parametrize(
    ("variant", "missing"),
    [(name, "key") for name in RANDOM] + [("scaled", "success_rate"), ("entropy_alpha", "entropy")],
)
def test_a_missing_argument_is_named(variant, missing):
    with pytest.raises(ValueError, match=f"^variant '{variant}' needs the argument {missing}$"):
        salt.reweight(jnp.eye(2), jnp.ones(2), salt.SaltConfig(variant=variant))


def test_shape_errors():
    config = salt.SaltConfig()
    with pytest.raises(
        ValueError, match=r"gram must be \(m, m\) and advantages \(m,\), got \(2, 2\) and \(3,\)"
    ):
        salt.reweight(jnp.eye(2), jnp.ones(3), config)
    with pytest.raises(ValueError, match=r"valid \(3,\) must have the shape of advantages \(2,\)"):
        salt.reweight(jnp.eye(2), jnp.ones(2), config, valid=jnp.ones(3, bool))
