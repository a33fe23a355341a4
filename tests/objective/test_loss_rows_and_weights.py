"""What the loss takes besides a surrogate: token weights, demonstrations, options given in one place."""

import functools

import jax
import numpy as np
import pytest

from salt_jax.objective.aggregation import AGGREGATIONS, NEED_MAX_LENGTH, WHOLE_BATCH
from salt_jax.objective.losses import check_loss_options, finalize, merge, policy_loss
from salt_jax.objective.surrogates import SurrogateOptions
from tests.one_program import one_program
from tests.reference import surrogates as reference

N, T = 6, 5
SHOWN = np.array([False, True, False, True, False, True])
WEIGHT = 0.7


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(1, (N, T))
    lengths = np.array([5, 3, 0, 0, 4, 5])  # an empty row of either kind
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs + rng.normal(scale=0.4, size=(N, T)),
        "advantages": rng.normal(size=N),
        "mask": np.arange(T)[None] < lengths[:, None],
        "ref_log_probs": log_probs + rng.normal(scale=0.5, size=(N, T)),
        "entropy": rng.random((N, T)),
        "token_weights": rng.random((N, T)) * 2,
    }


def options_for(aggregation):
    return {"aggregation": aggregation, "max_length": 7 if aggregation in NEED_MAX_LENGTH else None}


@functools.cache
def compiled(names, **options):
    def total(log_probs, entropy, arrays):
        given = dict(zip(names, arrays, strict=True)) | ({} if entropy is None else {"entropy": entropy})
        value, denominator, metrics = policy_loss(log_probs, **given, **options)
        return value, (denominator, metrics)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def run(batch, **options):
    """(sum, denominator, metrics, gradients) of a dict of arrays."""
    arrays = dict(batch)
    log_probs, entropy = arrays.pop("log_probs"), arrays.pop("entropy", None)
    program = compiled(tuple(arrays), **options)
    (value, (denominator, metrics)), gradients = program(log_probs, entropy, list(arrays.values()))
    return jax.device_get((value, denominator, metrics, gradients))  # NumPy keeps float64 out of the context


def select(batch, *names):
    return {name: batch[name] for name in ("log_probs", "old_log_probs", "advantages", "mask", *names)}


# --- token weights ---


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_token_weights_multiply_the_surrogate_and_nothing_else(aggregation):
    batch = make_batch()
    mask, weights = batch["mask"], batch["token_weights"]
    spread = np.repeat(batch["advantages"][:, None], T, axis=1)
    losses, *_ = reference.token_losses(
        "ppo_clip", batch["log_probs"], batch["old_log_probs"], spread, mask, SurrogateOptions()
    )
    with jax.enable_x64(True):
        value, denominator, metrics, _ = run(select(batch, "token_weights"), **options_for(aggregation))
        with_both = run(batch, kl_coef=0.3, entropy_coef=0.1, **options_for(aggregation))
        final = jax.device_get(finalize(metrics))
    expected = reference.weighted_sum(losses, mask, aggregation, weights=weights, max_length=7)
    np.testing.assert_allclose((value, denominator), expected, rtol=1e-12)
    np.testing.assert_allclose(final["token_weight_mean"], weights[mask].mean(), rtol=1e-12)
    np.testing.assert_allclose(final["surrogate"], expected[0] / max(expected[1], 1), rtol=1e-12)
    distance = batch["ref_log_probs"] - batch["log_probs"]
    rest = 0.3 * (np.exp(distance) - 1 - distance) - 0.1 * batch["entropy"]
    rest_sum = reference.weighted_sum(rest, mask, aggregation, max_length=7)[0]
    np.testing.assert_allclose(with_both[0], value + rest_sum, rtol=1e-12)


def test_weights_of_one_change_nothing_and_of_zero_leave_no_gradient():
    batch = make_batch() | {"token_weights": np.ones((N, T))}
    plain, ones = run(select(batch)), run(select(batch, "token_weights"))
    np.testing.assert_array_equal(ones[3][0], plain[3][0])
    zeros = run(select(batch | {"token_weights": np.zeros((N, T))}, "token_weights"))
    np.testing.assert_array_equal(zeros[3][0], 0)
    assert float(zeros[1]) == batch["mask"].sum()


def test_token_weights_are_constants_and_may_hold_garbage_where_masked():
    batch = make_batch()
    arrays = select(batch)

    @jax.jit
    @jax.value_and_grad
    def total(weights):
        return policy_loss(**arrays, token_weights=weights)[0]

    dirty = np.where(batch["mask"], batch["token_weights"], np.nan)
    value, gradient = total(dirty)
    assert float(value) == float(total(batch["token_weights"])[0])
    np.testing.assert_array_equal(gradient, 0)


# --- demonstrations ---


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_demonstrations_are_outside_everything_but_their_own_term(aggregation):
    batch = make_batch()
    options = options_for(aggregation) | {"kl_coef": 0.3, "entropy_coef": 0.1}
    shown = batch | {"demonstration": SHOWN, "demonstration_weight": WEIGHT}
    shown["advantages"] = np.where(SHOWN, np.nan, batch["advantages"])  # a demonstration has no reward
    for name in ("old_log_probs", "ref_log_probs", "token_weights"):
        shown[name] = np.where(SHOWN[:, None], np.nan, batch[name])
    with jax.enable_x64(True):
        value, denominator, metrics, (gradient, entropy_gradient) = run(shown, **options)
        alone = run({name: x[~SHOWN] for name, x in batch.items()}, **options)
        final, final_alone = jax.device_get((finalize(metrics), finalize(alone[2])))
    tokens = batch["mask"] & SHOWN[:, None]
    nll = -batch["log_probs"][tokens].sum()
    np.testing.assert_allclose(value, alone[0] + WEIGHT * nll, rtol=1e-12)
    assert float(denominator) == float(alone[1])
    np.testing.assert_allclose(np.asarray(gradient)[~SHOWN], alone[3][0], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(gradient)[SHOWN], -WEIGHT * tokens[SHOWN], rtol=1e-12)
    np.testing.assert_array_equal(np.asarray(entropy_gradient)[SHOWN], 0)
    np.testing.assert_allclose(final.pop("demonstration_nll"), nll / tokens.sum(), rtol=1e-12)
    assert set(final) == set(final_alone)
    for name, expected in final_alone.items():
        np.testing.assert_allclose(final[name], expected, rtol=1e-12, err_msg=name)


def test_the_weight_that_gives_a_token_mean_beside_the_policys_loss():
    """demonstration_weight = coef·D / tokens: sum / D = L_RL + coef · token-mean NLL."""
    batch = make_batch()
    tokens = batch["mask"] & SHOWN[:, None]
    with jax.enable_x64(True):
        alone = run({name: x[~SHOWN] for name, x in select(batch).items()})
        weight = 0.5 * float(alone[1]) / tokens.sum()
        value, denominator, *_ = run(select(batch) | {"demonstration": SHOWN, "demonstration_weight": weight})
    expected = alone[0] / alone[1] + 0.5 * -batch["log_probs"][tokens].mean()
    np.testing.assert_allclose(value / denominator, expected, rtol=1e-12)


@pytest.mark.parametrize("aggregation", [name for name in AGGREGATIONS if name not in WHOLE_BATCH])
def test_microbatches_with_demonstrations_and_weights_add_up(aggregation):
    batch = make_batch() | {"demonstration": SHOWN}
    options = options_for(aggregation) | {"kl_coef": 0.3}
    whole = run(batch | {"demonstration_weight": WEIGHT}, **options)
    parts = [
        run({name: x[n : n + 2] for name, x in batch.items()} | {"demonstration_weight": WEIGHT}, **options)
        for n in range(0, N, 2)
    ]
    np.testing.assert_allclose(sum(part[0] for part in parts), whole[0], rtol=1e-5)
    assert float(sum(part[1] for part in parts)) == float(whole[1])
    np.testing.assert_allclose(np.concatenate([part[3][0] for part in parts]), whole[3][0], rtol=1e-6)
    together = functools.reduce(merge, [part[2] for part in parts])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), together, whole[2])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_masked_tokens_and_padding_rows_of_demonstrations(garbage):
    batch = select(make_batch()) | {"demonstration": SHOWN, "demonstration_weight": WEIGHT}
    clean = run(batch)
    dirty = batch | {"log_probs": np.where(batch["mask"], batch["log_probs"], garbage)}
    jax.tree.map(np.testing.assert_array_equal, run(dirty), clean)
    valid = np.arange(N) != 5  # row 5 is a demonstration
    found = run(batch | {"valid": valid})
    without = run(batch | {"mask": batch["mask"] & valid[:, None]})
    jax.tree.map(np.testing.assert_array_equal, found, without)
    assert float(found[2].sums["demonstration_nll"][1]) == 3


def test_only_demonstrations():
    batch = select(make_batch()) | {"demonstration": np.ones(N, bool), "demonstration_weight": WEIGHT}
    value, denominator, metrics, (gradient, _) = run(batch)
    np.testing.assert_allclose(value, -WEIGHT * batch["log_probs"][batch["mask"]].sum(), rtol=1e-6)
    assert float(denominator) == 0
    np.testing.assert_allclose(gradient, -WEIGHT * batch["mask"], rtol=1e-6)
    final = finalize(metrics)
    assert all(float(final[name]) == 0 for name in final if name != "demonstration_nll")


# --- options and metrics ---


def test_metrics_appear_only_where_they_mean_something():
    zeros = np.zeros((2, 3), np.float32)
    names = {"surrogate", "ratio_mean", "ratio_max", "approx_kl", "clip_fraction_low", "clip_fraction_high"}
    chosen = np.array([[1, 0, 0], [1, 1, 0]], bool)

    def metrics(**options):
        arrays = {"chosen": options.pop("chosen")} if "chosen" in options else {}
        program = jax.jit(functools.partial(policy_loss, **options))
        return finalize(program(zeros, zeros, np.float32([1.0, -1.0]), zeros == 0, **arrays)[2])

    assert set(metrics()) == names
    assert set(metrics(dual_clip=3.0)) == names | {"dual_clip_fraction"}
    found = metrics(surrogate="clip_cov", chosen=chosen)
    assert set(found) == names | {"chosen_fraction"}
    np.testing.assert_allclose(found["chosen_fraction"], 0.5)


def test_clips_are_given_once():
    zeros, loss = np.zeros((1, 1), np.float32), one_program(policy_loss)
    arrays = (zeros + 3, zeros, np.ones(1, np.float32), zeros == 0)
    by_keyword = loss(*arrays, clip_high=0.5)[0]
    assert float(by_keyword) == -1.5
    assert float(loss(*arrays, options=SurrogateOptions(clip_high=0.5))[0]) == -1.5
    assert float(loss(*arrays, clip_high=0.5, options=SurrogateOptions(clip_high=0.5))[0]) == -1.5
    with pytest.raises(ValueError, match="clip_high = 0.3 contradicts options, where it is 0.5; give it once"):
        policy_loss(*arrays, clip_high=0.3, options=SurrogateOptions(clip_high=0.5))
    with pytest.raises(ValueError, match="dual_clip = 3.0 contradicts options, where it is None"):
        policy_loss(*arrays, dual_clip=3.0, options=SurrogateOptions())
    options = SurrogateOptions(clip_high=0.28)
    assert check_loss_options(0.2, 0.28, "token_mean", None, "k3", 0.0, 0.0, "gspo", options) == options


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_weights": np.ones((2, 2))}, r"token_weights must have the shape of log_probs \(2, 3\), got \(2, 2\)"),
        ({"chosen": np.ones(2)}, "chosen must have the shape of log_probs"),
        ({"segments": np.ones((3, 2))}, "segments must have the shape of log_probs"),
        ({"log_proxy": np.ones((2,))}, "log_proxy must have the shape of log_probs"),
        ({"kept_log_mass": np.ones((2, 4))}, "kept_log_mass must have the shape of log_probs"),
        (
            {"demonstration": np.ones(3, bool), "demonstration_weight": 1.0},
            r"demonstration must have shape \(2,\), got \(3,\)",
        ),
        ({"demonstration": np.ones(2, bool)}, "go together, demonstration_weight is None"),
        ({"demonstration_weight": 1.0}, "go together, demonstration is None"),
    ],
)
def test_bad_arrays_are_one_clear_line(change, message):
    zeros = np.zeros((2, 3))
    arrays = {"log_probs": zeros, "old_log_probs": zeros, "advantages": np.ones(2), "mask": zeros == 0}
    with pytest.raises(ValueError, match=message) as error:
        policy_loss(**(arrays | change))
    assert "\n" not in str(error.value)
