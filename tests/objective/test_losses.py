"""The clipped surrogate against float64 loops: values, gradients, masks, extremes, additivity."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import AGGREGATIONS, ObjectiveConfig, finalize, loss, merge, policy_loss
from salt_jax.objective.aggregation import NEED_MAX_LENGTH, WHOLE_BATCH
from tests.one_program import one_program
from tests.reference import objective as reference

N, T = 6, 5


def make_batch(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(1, (N, T))
    lengths = np.array([5, 3, 0, 1, 4, 5])  # a row with an empty mask among them
    batch = {
        "log_probs": log_probs,
        "old_log_probs": log_probs + rng.normal(scale=0.4, size=(N, T)),
        "advantages": rng.normal(size=N),
        "ref_log_probs": log_probs + rng.normal(scale=0.5, size=(N, T)),
        "entropy": rng.random((N, T)),
    }
    batch = {name: x.astype(dtype) for name, x in batch.items()}
    return batch | {"mask": np.arange(T)[None] < lengths[:, None]}


def options_for(aggregation, **options):
    return {"aggregation": aggregation, "max_length": 7 if aggregation in NEED_MAX_LENGTH else None, **options}


def split(batch):
    arrays = dict(batch)
    return [arrays.pop(name) for name in ("log_probs", "old_log_probs", "advantages", "mask")], arrays


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kl_estimator", ["k2", "k3"])
@pytest.mark.parametrize("per_token_advantages", [False, True])
def test_equals_loops(aggregation, kl_estimator, per_token_advantages):
    batch = make_batch()
    if per_token_advantages:
        batch["advantages"] = np.random.default_rng(9).normal(size=(N, T)).astype(np.float32)
    options = options_for(
        aggregation, clip_low=0.1, clip_high=0.3, kl_estimator=kl_estimator, kl_coef=0.3, entropy_coef=0.05
    )
    arrays, extra = split(batch)
    total, denominator, metrics = jax.jit(lambda *a, **k: policy_loss(*a, **k, **options))(*arrays, **extra)
    expected_total, expected_denominator, expected_metrics = reference.policy_loss(
        *arrays, **extra, **options
    )
    np.testing.assert_allclose(total, expected_total, rtol=1e-5)
    assert float(denominator) == expected_denominator
    final = finalize(metrics)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(final[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert set(final) - set(expected_metrics) == {"surrogate", "entropy"}


def test_every_metric_is_reached_by_the_batch():
    arrays, extra = split(make_batch())
    final = finalize(one_program(policy_loss)(*arrays, **extra)[2])
    assert 0 < final["clip_fraction_low"] < 1
    assert 0 < final["clip_fraction_high"] < 1


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradient_equals_finite_differences(aggregation):
    batch = make_batch(dtype=np.float64)
    options = options_for(aggregation, kl_coef=0.2, entropy_coef=0.1)
    arrays, extra = split(batch)
    with jax.enable_x64(True):
        gradient, entropy_gradient = jax.jit(
            jax.grad(
                lambda x, h: policy_loss(x, *arrays[1:], **(extra | {"entropy": h}), **options)[0], argnums=(0, 1)
            )
        )(jnp.asarray(arrays[0]), jnp.asarray(extra["entropy"]))
    step = 1e-6
    expected = np.zeros((N, T))
    for n in range(N):
        for t in range(T):
            values = []
            for sign in (1, -1):
                moved = arrays[0].copy()
                moved[n, t] += sign * step
                values.append(reference.policy_loss(moved, *arrays[1:], **extra, **options)[0])
            expected[n, t] = (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(np.asarray(gradient)[~batch["mask"]], 0)
    weights = batch["mask"] / np.maximum(batch["mask"].sum(1, keepdims=True), 1)
    weights = weights if aggregation == "seq_mean_token_mean" else batch["mask"]
    np.testing.assert_allclose(entropy_gradient, -0.1 * weights, rtol=1e-12)


def test_no_gradient_but_through_log_probs_and_entropy():
    arrays, extra = split(make_batch())

    def total(old, advantages, ref):
        return policy_loss(
            arrays[0], old, advantages, arrays[3], ref_log_probs=ref, kl_coef=1.0, aggregation="token_mean"
        )[0]

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(arrays[1], arrays[2], extra["ref_log_probs"]):
        np.testing.assert_array_equal(gradient, 0)


@functools.cache
def program(aggregation, **options):
    """(log_probs, entropy, other arrays) -> (sum, (denominator, metrics)), gradients in the first two."""

    def total(log_probs, entropy, others):
        value, *aux = policy_loss(log_probs, **others, entropy=entropy, **options_for(aggregation, **options))
        return value, aux

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def value_and_gradients(batch, aggregation, **options):
    """(sum, denominator, metrics, gradients in log_probs and in entropy)."""
    others = dict(batch)
    arrays = others.pop("log_probs"), others.pop("entropy")
    (total, (denominator, metrics)), gradients = program(aggregation, **options)(*arrays, others)
    return jax.device_get((total, denominator, metrics, gradients))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_masked_garbage_changes_nothing(aggregation, garbage):
    batch = make_batch()
    # A row without tokens may carry a NaN advantage (a missing reward, say).
    dirty = {name: x if name == "mask" else x.copy() for name, x in batch.items()}
    for name in ("log_probs", "old_log_probs", "ref_log_probs", "entropy"):
        dirty[name][~batch["mask"]] = garbage
    dirty["advantages"][~batch["mask"].any(axis=1)] = garbage

    found, expected = (value_and_gradients(x, aggregation, kl_coef=0.2, entropy_coef=0.1) for x in (dirty, batch))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_everything_masked(aggregation):
    batch = make_batch() | {"mask": np.zeros((N, T), bool)}
    batch["log_probs"] = np.full((N, T), np.nan, np.float32)
    arrays, extra = split(batch)
    options = options_for(aggregation, kl_coef=0.2)

    def divided(x):
        total, denominator, metrics = policy_loss(x, *arrays[1:], **extra, **options)
        return total / jnp.maximum(denominator, 1), (total, denominator, metrics)

    (value, (total, denominator, metrics)), gradient = jax.jit(jax.value_and_grad(divided, has_aux=True))(arrays[0])
    assert float(value) == float(total) == 0
    assert float(denominator) == {"dr_grpo": N * 7, "token_sum_norm": 7}.get(aggregation, 0)
    np.testing.assert_array_equal(gradient, 0)
    assert all(float(x) == 0 for x in finalize(metrics).values())


@pytest.mark.parametrize("aggregation", [name for name in AGGREGATIONS if name not in WHOLE_BATCH])
@pytest.mark.parametrize("num_parts", [2, 3, 6])
def test_microbatches_add_up(aggregation, num_parts):
    batch = make_batch()

    def evaluate(rows):
        part = {name: x[rows] for name, x in batch.items()}
        return value_and_gradients(part, aggregation, kl_coef=0.3, entropy_coef=0.05)

    whole = evaluate(slice(None))
    parts = [evaluate(slice(i * N // num_parts, (i + 1) * N // num_parts)) for i in range(num_parts)]
    metrics = jax.tree.map(np.zeros_like, whole[2])  # zeros are the identity of merge
    for part in parts:
        metrics = jax.jit(merge)(metrics, part[2])
    np.testing.assert_allclose(sum(part[0] for part in parts), whole[0], rtol=1e-5)
    assert float(sum(part[1] for part in parts)) == float(whole[1])
    np.testing.assert_allclose(np.concatenate([part[3][0] for part in parts]), whole[3][0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), metrics, whole[2])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_rows_and_columns_change_nothing(aggregation):
    batch = make_batch()
    options = options_for(aggregation, kl_coef=0.3)
    padded = {
        name: np.pad(x, [(0, 2)] + [(0, 3)] * (x.ndim - 1), constant_values=1 if name == "mask" else 0)
        for name, x in batch.items()
    }
    padded["mask"][:N, T:] = False  # padding rows keep mask = 1: `valid` alone must exclude them
    arrays, extra = split(batch)
    expected = one_program(policy_loss)(*arrays, **extra, **options)
    arrays, extra = split(padded)
    result = one_program(policy_loss)(*arrays, **extra, **options, valid=np.arange(N + 2) < N)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, expected)


@jax.jit
@jax.value_and_grad
def of_one_token(log_probs, advantages):
    zeros = jnp.zeros((1, 1))
    return policy_loss(log_probs, zeros, advantages, zeros == 0, ref_log_probs=zeros, kl_coef=0.1)[0]


@pytest.mark.parametrize("gap", [1e4, -1e4, 25.0, -25.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_log_ratios(gap, advantage):
    value, gradient = of_one_token(np.full((1, 1), gap, np.float32), np.float32([advantage]))
    expected = reference.policy_loss(
        [[gap]], [[0.0]], [advantage], [[1]], ref_log_probs=[[0.0]], kl_coef=0.1
    )[0]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_on_policy_gradient_is_the_policy_gradient(clip):
    """At r = 1 the gradient is −A, also where the bounds touch 1 (a tie that `minimum` would halve)."""
    arrays, _ = split(make_batch())
    everywhere = np.ones((N, T), bool)
    total = lambda x: policy_loss(x, arrays[0], arrays[2], everywhere, clip_low=clip, clip_high=clip)[0]
    gradient = jax.jit(jax.grad(total))(arrays[0])
    np.testing.assert_allclose(gradient, np.repeat(-arrays[2][:, None], T, axis=1), rtol=1e-6)


def test_bfloat16_is_computed_in_float32():
    arrays, _ = split(make_batch())
    total, denominator, metrics = one_program(policy_loss)(*[x.astype(jnp.bfloat16) for x in arrays[:3]], arrays[3])
    assert {x.dtype for x in jax.tree.leaves((total, denominator, metrics))} == {jnp.dtype(jnp.float32)}


@functools.cache
def wild_program(aggregation):
    options = options_for(aggregation)
    return jax.jit(jax.value_and_grad(lambda *a: policy_loss(*a, **options)[:2], has_aux=True))


wild = hnp.arrays(np.float32, (3, 2), elements=st.floats(-1e4, 1e4, width=32))


@settings(max_examples=25, deadline=None)
@given(
    log_probs=wild,
    old=wild,
    advantages=hnp.arrays(np.float32, (3,), elements=st.floats(-10, 10, width=32)),
    mask=hnp.arrays(np.bool_, (3, 2)),
    aggregation=st.sampled_from(sorted(AGGREGATIONS)),
)
def test_wild_inputs_stay_finite_and_right(log_probs, old, advantages, mask, aggregation):
    options = options_for(aggregation)
    (total, denominator), gradient = wild_program(aggregation)(log_probs, old, advantages, mask)
    expected, expected_denominator, _ = reference.policy_loss(log_probs, old, advantages, mask, **options)
    assert np.isfinite(gradient).all()
    assert float(denominator) == expected_denominator
    # Differences of float32 numbers near 1e4 are good to 5e-4 nats, and terms of opposite sign may cancel.
    ratios = np.exp(np.minimum(log_probs.astype(np.float64) - old, 20))
    scale = np.sum(np.abs(advantages)[:, None] * ratios * mask)
    np.testing.assert_allclose(total, expected, atol=2e-3 * scale + 1e-6)


def test_config_calls_the_same_loss():
    batch = make_batch()
    config = ObjectiveConfig(
        clip_high=0.28, aggregation="dr_grpo", max_length=9, kl_coef=0.1, kl_estimator="k2"
    )
    arrays, extra = split(batch)
    result = jax.jit(loss, static_argnums=4)(*arrays, config, **extra)
    expected, denominator, _ = reference.policy_loss(
        *arrays, **extra, clip_high=0.28, aggregation="dr_grpo", max_length=9, kl_coef=0.1, kl_estimator="k2"
    )
    np.testing.assert_allclose(result[0], expected, rtol=1e-5)
    assert float(result[1]) == denominator == N * 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"estimator": "gae"}, "estimator = 'gae' is unknown; allowed: grpo"),
        ({"ddof": 3}, "ddof = 3"),
        ({"eps": -1e-6}, "eps = -1e-06"),
        ({"clip_low": -0.1}, "clip_low = -0.1"),
        ({"clip_high": float("nan")}, "clip_high = nan"),
        ({"aggregation": "mean"}, "aggregation = 'mean' is unknown; allowed: token_mean"),
        ({"aggregation": "dr_grpo"}, "needs max_length"),
        ({"aggregation": "token_sum_norm"}, "needs max_length"),
        ({"max_length": 0}, "max_length = 0"),
        ({"kl_estimator": "k1"}, "zero expected gradient"),
        ({"kl_coef": -1.0}, "kl_coef = -1.0"),
        ({"entropy_coef": float("inf")}, "entropy_coef = inf"),
    ],
)
def test_bad_config_is_one_clear_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        ObjectiveConfig(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kl_coef": 0.1}, "kl_coef = 0.1 needs ref_log_probs"),
        ({"entropy_coef": 0.1}, "entropy_coef = 0.1 needs entropy"),
        ({"log_probs": np.zeros(3)}, r"log_probs must have shape \(N, T\)"),
        ({"mask": np.ones((6, 4))}, "mask must have the shape of log_probs"),
        ({"advantages": np.ones(5)}, r"advantages must have shape \(6,\) or \(6, 5\), got \(5,\)"),
        ({"valid": np.ones(5)}, "valid must have shape"),
    ],
)
def test_bad_arrays_are_one_clear_line(change, message):
    arrays = dict(
        zip(("log_probs", "old_log_probs", "advantages", "mask"), split(make_batch())[0], strict=True)
    )
    with pytest.raises(ValueError, match=message):
        policy_loss(**(arrays | change))


def test_golden_vectors(golden):
    case = json.loads((golden / "methods_vectors.json").read_text())["1.loss.fixture"]
    inputs, expected = case["inputs"], case["outputs"]
    new, old = np.log(inputs["new_prob"]), np.log(inputs["old_prob"])
    calls = {
        "grpo_seq_mean_token_mean": {"aggregation": "seq_mean_token_mean"},
        "dapo_token_mean_cliphigher": {"aggregation": "token_mean", "clip_high": 0.28},
        "drgrpo_BxLmax_L4": {"aggregation": "dr_grpo", "max_length": 4},
        "seq_mean_token_sum": {"aggregation": "seq_mean_token_sum"},
        "drgrpo_verl_sum_over_norm_L4": {"aggregation": "token_sum_norm", "max_length": 4},
        "grpo_with_dual_clip3": {"aggregation": "seq_mean_token_mean", "dual_clip": 3.0},
        "dapo_token_mean_cliphigher_dualclip3": {
            "aggregation": "token_mean",
            "clip_high": 0.28,
            "dual_clip": 3.0,
        },
    }
    per_token = {
        "per_token_clip02": {},
        "per_token_cliphigher028": {"clip_high": 0.28},
        "per_token_dualclip3": {"dual_clip": 3.0},
    }
    for x64, rtol in ((False, 1e-5), (True, 1e-12)):
        with jax.enable_x64(x64):
            for name, options in calls.items():
                total, denominator, _ = jax.jit(functools.partial(policy_loss, **options))(
                    new, old, np.array(inputs["adv"]), np.array(inputs["mask"])
                )
                np.testing.assert_allclose(np.asarray(total) / np.asarray(denominator), expected[name], rtol=rtol)
            for name, options in per_token.items():
                of_one = jax.jit(functools.partial(policy_loss, **options))
                for n, t in np.argwhere(inputs["mask"]):
                    one = [x[n : n + 1, t : t + 1] for x in (new, old)]
                    total, _, _ = of_one(*one, np.array(inputs["adv"][n : n + 1]), np.ones((1, 1)))
                    np.testing.assert_allclose(total, expected[name][n][t], rtol=rtol)
