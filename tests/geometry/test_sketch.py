"""Sketches: unbiased, exact where nothing is projected, the same for any chunk; what is kept is kept exactly."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax import geometry, vocab
from tests.one_program import one_program
from tests.reference import geometry as reference
from tests.reference.jaxpr import largest_array

M, T, H, V = 6, 5, 8, 20
RANKS = {"rank_vocab": 8, "rank_hidden": 4}


@functools.cache
def example():
    rng = np.random.default_rng(0)
    hidden = (rng.normal(size=(M, T, H)) * np.linspace(3, 0.5, H)).astype(np.float32)
    lm_head = rng.normal(size=(H, V)).astype(np.float32)
    mask = np.arange(T)[None] < np.array([5, 3, 4, 0, 1, 5])[:, None]
    return hidden, lm_head, rng.integers(0, V, size=(M, T)), mask


@functools.cache
def exact():
    return reference.gram(reference.features(*example(), temperature=0.7))


def sketch(key, **arguments):
    return one_program(geometry.lm_head_sketch)(*example(), key, temperature=0.7, **arguments)


@pytest.mark.parametrize("ranks", [{"rank_vocab": V, "rank_hidden": H}, {"rank_vocab": 512, "rank_hidden": 64}])
def test_ranks_that_cover_their_dimensions_are_exact(ranks):
    features = sketch(jax.random.key(0), **ranks)
    assert features.shape == (M, V * H)
    np.testing.assert_allclose(geometry.sketch_gram(features), exact(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "ranks", [RANKS, {"rank_vocab": 8, "rank_hidden": H}, {"rank_vocab": V, "rank_hidden": 4},
              {"rank_vocab": 1, "rank_hidden": 1}],
)  # fmt: skip
def test_the_mean_over_keys_is_the_gram_matrix(ranks):
    draw = jax.jit(jax.vmap(lambda key: geometry.sketch_gram(sketch(key, **ranks))))
    grams = np.asarray(draw(jax.random.split(jax.random.key(1), 2000)), float)
    error = grams.std(axis=0) / np.sqrt(len(grams))
    # 36 entries: 5 standard errors are passed by chance once in 50,000 tries
    assert (np.abs(grams.mean(axis=0) - exact()) <= 5 * error + 1e-4).all()
    assert grams.std(axis=0).max() > 0.01 * exact().max()  # something was projected


def test_more_columns_less_error():
    def error(rank_vocab, rank_hidden):
        one = functools.partial(sketch, rank_vocab=rank_vocab, rank_hidden=rank_hidden)
        draw = jax.jit(jax.vmap(lambda key: geometry.sketch_gram(one(key))))
        grams = np.asarray(draw(jax.random.split(jax.random.key(2), 200)))
        return np.sqrt(np.mean((grams - exact()) ** 2))

    assert error(16, H) < 0.5 * error(4, H)
    assert error(V, 6) < 0.5 * error(V, 2)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 20])
def test_chunks_change_nothing(chunk_size):
    key = jax.random.key(3)
    got = sketch(key, chunk_size=chunk_size, **RANKS)
    np.testing.assert_allclose(got, sketch(key, **RANKS), rtol=1e-5, atol=1e-5)


def test_rows_of_signs_depend_on_key_and_id_alone():
    key = vocab.sign_key(jax.random.key(0))
    signs = one_program(vocab.signs)
    rows = np.asarray(signs(key, np.arange(300), 40))
    assert set(np.unique(rows)) == {-1.0, 1.0}
    np.testing.assert_array_equal(signs(key, np.array([[7, 250], [0, 7]]), 40), rows[[[7, 250], [0, 7]]])
    np.testing.assert_array_equal(signs(key, np.arange(300), 8), rows[:, :8])
    gram = rows @ rows.T / 40  # 44,850 pairs of mean 0 and standard deviation 1/√40
    off = gram[~np.eye(300, dtype=bool)]
    assert abs(off.mean()) < 5 / np.sqrt(40 * 44_850)
    assert abs(off.std() - 1 / np.sqrt(40)) < 0.01
    assert not np.array_equal(rows, signs(vocab.sign_key(jax.random.key(1)), np.arange(300), 40))


def test_masked_garbage_permutation_and_no_gradient():
    hidden, lm_head, targets, mask = example()
    key = jax.random.key(4)
    run = jax.jit(lambda h, y, keep: geometry.lm_head_sketch(h, lm_head, y, keep, key, **RANKS))
    clean = run(hidden, targets, mask)
    dirty = run(np.where(mask[:, :, None], hidden, np.nan), np.where(mask, targets, -7), mask)
    np.testing.assert_array_equal(dirty, clean)
    np.testing.assert_array_equal(np.asarray(clean)[3], 0.0)  # the empty rollout
    order = np.array([5, 2, 0, 1, 4, 3])
    shuffled = run(hidden[order], targets[order], mask[order])
    np.testing.assert_allclose(
        geometry.sketch_gram(shuffled), np.asarray(geometry.sketch_gram(clean))[np.ix_(order, order)], rtol=1e-4,
        atol=1e-5,
    )
    total = lambda h, w: geometry.lm_head_sketch(h, w, targets, mask, key, **RANKS).sum()
    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, lm_head):
        np.testing.assert_array_equal(gradient, 0.0)
    bad = np.asarray(run(hidden, np.where(np.arange(M)[:, None] == 4, V, targets), mask))  # no such token
    assert np.isnan(bad[4]).all()
    assert np.isfinite(np.delete(bad, 4, axis=0)).all()


def test_the_tokens_taken_most_are_kept():
    _, _, targets, mask = example()
    energy = np.zeros(V)
    for i in range(M):
        for t in range(T):
            if mask[i, t]:
                energy[targets[i, t]] += 1 / mask[i].sum() ** 2
    heavy_tokens = one_program(geometry.heavy_tokens)
    kept = np.asarray(heavy_tokens(targets, mask, V, 8))
    assert kept.shape == (7,)  # seven eighths
    assert len(set(kept.tolist())) == 7
    assert energy[kept].min() >= np.delete(energy, kept).max()
    np.testing.assert_array_equal(heavy_tokens(targets, mask, V, V), np.arange(V))


def test_the_basis_finds_the_principal_directions():
    hidden, _, _, mask = example()
    rows = np.concatenate([hidden[i, mask[i]] / mask[i].sum() for i in range(M) if mask[i].any()]).astype(float)
    moment = rows.T @ rows
    values, vectors = np.linalg.eigh(moment)
    basis = geometry.start_basis(H, 4)
    np.testing.assert_allclose(np.asarray(basis).T @ np.asarray(basis), np.eye(3), atol=1e-5)
    of_batch = jax.jit(lambda basis: geometry.hidden_moment(hidden, mask, basis))
    np.testing.assert_allclose(of_batch(basis), moment @ np.asarray(basis), rtol=1e-4, atol=1e-5)
    improved = jax.jit(lambda basis: geometry.orthonormal(of_batch(basis)))
    for _ in range(60):
        basis = improved(basis)
    top = vectors[:, -3:]
    np.testing.assert_allclose(top @ top.T, np.asarray(basis) @ np.asarray(basis).T, atol=1e-3)
    assert values[-3] > 1.05 * values[-4]


def test_what_is_kept_is_kept_exactly_in_bfloat16_too():
    """Hidden states in the span of a basis that bfloat16 rounds: nothing is left to the signs."""
    rng = np.random.default_rng(0)
    span = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [1, -1, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, -1, 1, 0, 0]]).T
    basis = span / np.linalg.norm(span, axis=0)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    hidden = rng.integers(-3, 4, (M, T, 3)) @ span.T / 4  # bfloat16 has them exactly, and the head
    lm_head = np.asarray(jnp.asarray(rng.normal(size=(H, V)), jnp.bfloat16), float)
    _, _, targets, mask = example()
    run = jax.jit(functools.partial(geometry.lm_head_sketch, key=jax.random.key(0), rank_vocab=V, rank_hidden=4))
    features = run(
        jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(lm_head, jnp.float32), targets, mask,
        basis=jnp.asarray(basis, jnp.float32),
    )  # fmt: skip
    expected = reference.gram(reference.features(hidden, lm_head, targets, mask, temperature=1.0))
    np.testing.assert_allclose(geometry.sketch_gram(features), expected, rtol=1e-5, atol=1e-5 * expected.max())


def test_a_step_can_use_the_pass_that_made_its_log_probs():
    hidden, lm_head, targets, mask = example()
    key, heavy = jax.random.key(5), geometry.heavy_tokens(jnp.asarray(targets), jnp.asarray(mask), V, 8)
    basis = geometry.start_basis(H, 4)
    plain = one_program(vocab.token_log_probs)(hidden, lm_head, targets, temperature=0.7, chunk_size=6)
    out, projected = one_program(vocab.projected_log_probs)(
        hidden, lm_head, targets, key, heavy, num_signs=geometry.num_signs(8, V), temperature=0.7, chunk_size=6
    )
    for got, expected in zip(out, plain, strict=True):
        np.testing.assert_array_equal(got, expected)
    got = geometry.rollout_sketches(
        jnp.asarray(hidden), projected, jnp.asarray(mask), geometry.Sketch(key, heavy, basis, **RANKS)
    )
    expected = sketch(key, heavy=heavy, basis=basis, chunk_size=6, **RANKS)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_no_array_of_tokens_or_rollouts_times_vocabulary_or_of_vocabulary_times_rank():
    m, t, h, v, chunk = 4, 6, 8, 4000, 20
    shapes = (jnp.zeros((m, t, h)), jnp.zeros((h, v)), jnp.zeros((m, t), int), jnp.ones((m, t)))
    run = lambda size: jax.make_jaxpr(
        lambda *args: geometry.lm_head_sketch(*args, jax.random.key(0), chunk_size=size, rank_vocab=40, rank_hidden=4)
    )(*shapes)
    assert largest_array(run(chunk)) == h * v < m * t * v  # the output projection itself; neither m·T·V nor V·r
    assert largest_array(run(v)) >= m * t * v  # the walker does see what it looks for


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_vocab": 0}, "rank_vocab must be a positive integer, got 0"),
        ({"rank_hidden": -3}, "rank_hidden must be a positive integer, got -3"),
        ({"rank_vocab": 1.5}, "rank_vocab must be a positive integer, got 1.5"),
        ({"chunk_size": 0}, "chunk_size must be a positive integer, got 0"),
        ({"mask": jnp.zeros((M, T + 1))}, r"mask \(6, 6\) must have the shape of targets \(6, 5\)"),
        ({"basis": jnp.zeros((H, 2)), "rank_hidden": 4}, r"needs a basis \(8, 3\), got \(8, 2\)"),
        ({"heavy": jnp.zeros((2, 2), int)}, r"heavy must be \(e,\)"),
        ({"temperature": -1.0}, "temperature must be finite and > 0"),
    ],
)
def test_errors(change, message):
    arguments = dict(zip(("hidden", "lm_head", "targets", "mask"), example(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: geometry.lm_head_sketch(**arguments, key=jax.random.key(0)))
