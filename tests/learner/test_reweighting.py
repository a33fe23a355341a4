"""From scores to a Gram, and from a Gram to SALT's advantages, unit by unit, against float64 loops."""

import functools

import jax
import numpy as np
import pytest

from salt_jax.learner.reweighting import diagonal_blocks, mini_batch_gram, observe_and_reweight, success_rates
from salt_jax.policy.logprobs import completion_scores
from salt_jax.salt import VARIANTS
from tests import training_setup as setup
from tests.reference import geometry as geometry_reference
from tests.reference import salt as reference
from tests.reference import transformer

RANDOM = {"random_projection", "permuted", "matched_random"}
M, G = 16, 4


@functools.cache
def seen():
    """Rollouts with one missing grade, their scores, and the head."""
    run, batch = setup.tiny_run(), setup.rollouts()
    batch = batch.replace(rewarded=setup.edited(batch.rewarded, 5, False))
    scores = setup.call(
        lambda batch: completion_scores(setup.merged(run.policy), batch, group_size=G, temperature=0.8), batch
    )
    return batch, scores, transformer.head(setup.policy_and_params(run.policy)[1], run.policy)


def gram(settings):
    run = setup.tiny_run(settings)
    policy, params = setup.policy_and_params(run.policy)
    batch, scores, _ = seen()
    return np.asarray(setup.call(lambda *a: mini_batch_gram(run, policy, *a), params, batch, scores))


def reference_gram(**options):
    batch, scores, head = seen()
    rows = geometry_reference.features(
        np.asarray(scores.hidden), head, np.asarray(batch.completions), np.asarray(batch.loss_mask),
        temperature=0.8, **options,
    )  # fmt: skip
    return geometry_reference.gram(rows.reshape(M, -1))


@pytest.mark.parametrize("normalize", [True, False], ids=["mean", "sum"])
@pytest.mark.parametrize("feature", ["lm_head", "taken_token"])
def test_gram_of_the_head_equals_loops(feature, normalize):
    found = gram({"salt.feature": feature, "salt.length_normalize": normalize, "learner.vocab_chunk": 4})
    expected = reference_gram(softmax=feature == "lm_head", length_normalize=normalize)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert (found[5] == 0).all()  # without a grade


def test_gram_of_rollout_gradients_in_the_head_is_the_heads():
    """The gradient of the mean negative log-likelihood in W is Eq. 19's feature over τ, by another route."""
    found = gram({"salt.feature": "per_rollout", "salt.subset": "^head$"})
    expected = reference_gram() / 0.8**2
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_gram_of_rollout_gradients_in_the_layers():
    settings = {"salt.feature": "per_rollout", "salt.subset": "layers/(q|down)$"}
    whole, alone = gram(settings), gram(settings | {"salt.subset_microbatch": 1})
    np.testing.assert_allclose(alone, whole, rtol=1e-4, atol=1e-6 * whole.max())
    assert np.linalg.eigvalsh(whole)[0] >= -1e-5 * whole.max()
    assert (np.delete(np.diag(whole), 5) > 0).all()


def test_diagonal_blocks_equal_loops():
    k = np.arange(36.0, dtype=np.float32).reshape(6, 6)
    for size in (1, 2, 3, 6):
        expected = [[[6 * i + j for j in range(u, u + size)] for i in range(u, u + size)] for u in range(0, 6, size)]
        assert setup.call(lambda k, size=size: diagonal_blocks(k, size), k).tolist() == expected


def test_success_rates_count_graded_rollouts():
    batch = setup.rollouts().replace(
        rewards=np.float32([1, 0, 0, 1, 0, 9, 1, 1, 1, 1, 1, 1, 0.5, 0, -1, 0]),
        rewarded=(np.arange(M) != 5) & (np.arange(M) // 4 != 2),
        valid=np.arange(M) != 14,
    )
    for correct_from, last in ((1.0, 0), (0.5, 1 / 3)):
        expected = [2 / 4] * 4 + [2 / 3] * 4 + [0] * 4 + [last] * 4
        found = setup.call(lambda batch, x=correct_from: success_rates(batch, G, x), batch)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@functools.cache
def problem():
    """Well-conditioned explicit features (16, 6), advantages and rollouts with two rows left out."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(M, 6)) * np.array([4, 3, 1, 0.5, 0.3, 0.2]) + np.array([1.5, 0, 0, 0, 0, 0])
    a = rng.normal(size=M)
    batch = setup.rollouts()
    batch = batch.replace(
        rewarded=setup.edited(batch.rewarded, 5, False), valid=setup.edited(batch.valid, 14, False)
    )
    present = np.asarray(batch.rewarded & batch.valid)
    return rows, np.where(present, a, 0.0), batch, present


@functools.cache
def program_of_every_variant():
    """All variants and scopes in one program, which shares their eigendecompositions."""
    runs = {
        (variant, scope): setup.tiny_run({"salt.variant": variant, "salt.scope": scope})
        for variant in VARIANTS
        for scope in (("mini_batch", "group", "8") if variant == "salt" else ("8",))
    }
    batch = problem()[2]

    def results(k, a, key, entropy):
        for name, run in runs.items():
            new, metrics = observe_and_reweight(run, k, a, batch, key, entropy, rates=success_rates(batch, G, 1.0))
            # of the others only what is asked for: the rest is never compiled
            yield name, (new, metrics if name[0] == "salt" else {"salt/alpha": metrics["salt/alpha"]})

    return setup.compiled(lambda *of: dict(results(*of)))


@functools.cache
def every_variant(silent_from=M):
    """Its results; the advantages of that row and of those after it are 0."""
    rows, a, _, _ = problem()
    a = np.where(np.arange(M) < silent_from, a, 0.0).astype(np.float32)
    entropy = tuple(np.float32([1.2, 1.0, 2.0]))
    return program_of_every_variant()((rows @ rows.T).astype(np.float32), a, jax.random.key(1), entropy)


def expected_units(variant, size):
    """The reference's output for each unit, padding left out of it."""
    rows, a, batch, present = problem()
    rates = np.asarray(success_rates(batch, G, 1.0))
    for start in range(0, M, size):
        here = [i for i in range(start, start + size) if present[i]]
        yield here, reference.reweight(
            rows[here], a[here], variant=variant, success_rate=rates[here], entropy=(1.2, 1.0, 2.0)
        )


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - RANDOM))
def test_advantages_of_each_variant_equal_loops(variant):
    new, metrics = every_variant()[(variant, "8")]
    alphas = []
    for here, expected in expected_units(variant, 8):
        assert expected["condition"] < 100
        np.testing.assert_allclose(np.asarray(new)[here], expected["advantages"], rtol=1e-3, atol=1e-4)
        alphas.append(expected["alpha"])
    assert np.asarray(new)[[5, 14]].tolist() == [0, 0]
    np.testing.assert_allclose(metrics["salt/alpha"], np.mean(alphas), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("variant", sorted(RANDOM))
def test_random_variants_draw_for_each_unit(variant):
    new = np.asarray(every_variant()[(variant, "8")][0])
    salt = np.asarray(every_variant()[("salt", "8")][0])
    assert not np.allclose(new, salt, atol=1e-3)
    assert new[[5, 14]].tolist() == [0, 0]
    if variant != "random_projection":  # the same values within a unit, elsewhere
        units = [[i for i in range(start, start + 8) if i not in (5, 14)] for start in (0, 8)]
        for here in units:
            np.testing.assert_allclose(np.sort(new[here]), np.sort(salt[here]), atol=1e-6)
        first, second = (np.abs(new[here][:, None] - salt[here][None]).argmin(axis=1).tolist() for here in units)
        assert first != second  # a unit's permutation is its own


@pytest.mark.parametrize(("scope", "size"), [("mini_batch", 16), ("group", 4), ("8", 8)])
def test_scope_is_the_unit_of_the_geometry(scope, size):
    new, metrics = every_variant()[("salt", scope)]
    means = {"alpha": [], "k": [], "participation_ratio": [], "n_eff": []}
    for here, expected in expected_units("salt", size):
        np.testing.assert_allclose(np.asarray(new)[here], expected["advantages"], rtol=1e-3, atol=1e-4)
        for name, values in means.items():
            values.append(expected[name])
    for name, values in means.items():
        np.testing.assert_allclose(metrics[f"salt/{name}"], np.mean(values), rtol=1e-3, atol=1e-4, err_msg=name)


def test_metrics_compare_before_and_after():
    rows, a, _, present = problem()
    new, metrics = every_variant()[("salt", "mini_batch")]
    new, k = np.asarray(new, np.float64), geometry_reference.gram(rows[present])
    before, after = a[present], new[present]
    expected = {
        "salt/n_eff_after": geometry_reference.effective_sample_size(k, after),
        "salt/cosine": before @ after / np.linalg.norm(before) / np.linalg.norm(after),
        "salt/coefficient_distortion": np.linalg.norm(after - before) / np.linalg.norm(before),
        "salt/update_deviation": np.linalg.norm(geometry_reference.update(rows[present], after - before))
        / np.linalg.norm(geometry_reference.update(rows[present], before)),
        "geometry/n_eff_total": geometry_reference.effective_sample_size(k, before),
        "geometry/participation_ratio_total": geometry_reference.participation_ratio(k),
        "geometry/gram_finite": 1,
        "salt/not_ok": 0,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_silent_units_count_in_no_mean():
    """Where one unit is unanimous, α is that of the other, not half of it."""
    metrics = every_variant(silent_from=8)[("salt", "8")][1]
    _, expected = next(iter(expected_units("salt", 8)))
    assert 0 < expected["alpha"]
    np.testing.assert_allclose(metrics["salt/alpha"], expected["alpha"], rtol=1e-3)
    np.testing.assert_allclose(metrics["salt/k"], expected["k"])
