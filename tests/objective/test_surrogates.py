"""Every surrogate against float64 loops: values, finite differences, masks, invariances, golden numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective.losses import finalize, policy_loss
from salt_jax.objective.surrogates import SURROGATES, SurrogateOptions, check_surrogate
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.reference import surrogates as reference

N, T = 4, 5
CASES = {
    "ppo_clip": {},
    "ppo_clip dual": {"dual_clip": 1.2, "clip_high": 0.28},
    "gspo": {"clip_low": 0.05, "clip_high": 0.08},
    "gspo_token": {"clip_low": 0.05, "clip_high": 0.08},
    "cispo": {"clip_low": 1.0, "clip_high": 0.28},
    "cispo two bounds": {},
    "reinforce": {},
    "on_policy": {},
    "opmd": {"tau": 0.7},
    "rec none": {},
    "rec one_side importance": {"rec_mask": "one_side", "rec_weight": "importance"},
    "rec two_side k2": {"rec_mask": "two_side", "rec_regularizer": "k2"},
    "rec ring forward_kl": {
        "rec_mask": "ring", "rec_regularizer": "forward_kl", "rec_outer_low": 0.4, "rec_outer_high": 0.6,
    },
    "rec gspo": {"rec_mask": "gspo_one_side", "rec_weight": "gspo_importance", "clip_low": 0.05, "clip_high": 0.08},
    "rec advantage": {"rec_weight": "advantage", "rec_temperature": 0.5},
    "clip_cov": {},
    "kl_cov": {"kl_cov_coef": 0.8},
    "macro_sum": {},
    "macro_mean": {"clip_low": 0.1, "clip_high": 0.1},
    "lp_reg release": {"lp_reg_cap": 1.3, "lp_reg_beta": 0.6},
    "lp_reg paper": {"lp_reg_cap": 1.3, "lp_reg_beta": 0.6, "lp_reg_form": "paper"},
}  # fmt: skip
READS = {
    "clip_cov": ["chosen"],
    "kl_cov": ["chosen"],
    "macro_sum": ["segments"],
    "macro_mean": ["segments"],
    "lp_reg release": ["chosen", "log_proxy"],
    "lp_reg paper": ["chosen", "kept_log_mass"],
}


def options_of(label):
    return label.split()[0], SurrogateOptions(**CASES[label])


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(1, (N, T))
    lengths = np.array([5, 3, 0, 4])  # a row with an empty mask among them
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs + rng.normal(scale=0.4, size=(N, T)),
        "advantages": rng.normal(size=(N, 1)) * np.ones((1, T)) + 0.3 * rng.normal(size=(N, T)),
        "mask": np.arange(T)[None] < lengths[:, None],
        "chosen": rng.random((N, T)) < 0.5,
        "segments": np.cumsum(rng.random((N, T)) < 0.5, axis=1),
        "log_proxy": log_probs + rng.normal(scale=0.8, size=(N, T)),
        "kept_log_mass": -rng.random((N, T)),
    }


def split(label, batch):
    arrays = [batch[name] for name in ("log_probs", "old_log_probs", "advantages", "mask")]
    extra = {name: batch[name] for name in READS.get(label, [])}
    if "segments" in extra:
        extra["segments"] = np.minimum(extra["segments"], T - 1)
    return arrays, extra


@functools.cache
def value_and_gradient(label, aggregation="token_mean"):
    """One compiled program a case and aggregation: (sum, denominator, metrics), gradients."""
    name, options = options_of(label)

    def total(log_probs, kept_log_mass, arrays, extra):
        extra = extra | ({} if kept_log_mass is None else {"kept_log_mass": kept_log_mass})
        value, denominator, metrics = policy_loss(
            log_probs, *arrays, surrogate=name, options=options, aggregation=aggregation, **extra
        )
        return value, (denominator, finalize(metrics))

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def run(label, batch, aggregation="token_mean"):
    """(sum, denominator, metrics, gradients) in float64."""
    (log_probs, *arrays), extra = split(label, batch)
    kept_log_mass = extra.pop("kept_log_mass", None)
    with jax.enable_x64(True):
        (value, (denominator, metrics)), gradients = value_and_gradient(label, aggregation)(
            log_probs, kept_log_mass, arrays, extra
        )
        return jax.device_get((value, denominator, metrics, gradients))


@pytest.mark.parametrize("label", CASES)
def test_values_and_gradients_equal_loops(label):
    name, options = options_of(label)
    batch = make_batch()
    arrays, extra = split(label, batch)
    aggregation = "seq_mean_token_mean" if "gspo" in label else "token_mean"
    value, denominator, metrics, (gradient, mass_gradient) = run(label, batch, aggregation)
    assert gradient.dtype == np.float64
    losses, ratios, below, above = reference.token_losses(name, *arrays, options, **extra)
    expected = reference.weighted_sum(losses, batch["mask"], aggregation)
    np.testing.assert_allclose((value, denominator), expected, rtol=1e-12)
    tokens = batch["mask"].sum()
    for metric, values in (("ratio_mean", ratios), ("clip_fraction_low", below), ("clip_fraction_high", above)):
        np.testing.assert_allclose(metrics[metric], values.sum() / tokens, rtol=1e-12, err_msg=metric)
    np.testing.assert_allclose(metrics["ratio_max"], ratios.max(), rtol=1e-12)
    np.testing.assert_allclose(metrics["surrogate"], expected[0] / expected[1], rtol=1e-12)

    def moved_sum(what, n, t, step):
        arrays_moved, extra_moved = [x.copy() for x in arrays], {k: v.copy() for k, v in extra.items()}
        (arrays_moved[0] if what == "log_probs" else extra_moved[what])[n, t] += step
        moved = reference.token_losses(name, *arrays_moved, options, at=arrays[0], **extra_moved)[0]
        return reference.weighted_sum(moved, batch["mask"], aggregation)[0]

    step = 1e-6
    for what, found in (("log_probs", gradient), ("kept_log_mass", mass_gradient)):
        if found is None:
            continue
        differences = np.zeros((N, T))
        for n, t in np.ndindex(N, T):
            differences[n, t] = (moved_sum(what, n, t, step) - moved_sum(what, n, t, -step)) / (2 * step)
        assert np.abs(differences).max() > 0.01
        np.testing.assert_allclose(found, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("label", CASES)
def test_the_batch_reaches_every_branch(label):
    """The comparison above compares something: bounds act on some tokens and not on others."""
    metrics = run(label, make_batch())[2]
    acts = {
        "cispo": ["high"], "lp_reg release": ["high"], "lp_reg paper": ["high"],
    }  # fmt: skip
    never = ("reinforce", "on_policy", "opmd", "kl_cov", "rec none", "rec advantage")
    for side in acts.get(label, [] if label in never else ["low", "high"]):
        assert 0 < metrics[f"clip_fraction_{side}"] < 1, side
    if label == "ppo_clip dual":
        assert 0 < metrics["dual_clip_fraction"] < 1


@pytest.mark.parametrize("label", CASES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_masked_garbage_changes_nothing(label, garbage):
    batch = make_batch()
    dirty = {name: x.copy() for name, x in batch.items()}
    for name in ("log_probs", "old_log_probs", "advantages", "log_proxy", "kept_log_mass"):
        dirty[name][~batch["mask"]] = garbage
    dirty["chosen"][~batch["mask"]] = True
    dirty["segments"][~batch["mask"]] = -1
    clean, found = run(label, batch), run(label, dirty)
    jax.tree.map(np.testing.assert_array_equal, found, clean)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    np.testing.assert_array_equal(np.asarray(found[3][0])[~batch["mask"]], 0)


@pytest.mark.parametrize("label", CASES)
def test_everything_masked(label):
    batch = make_batch() | {"mask": np.zeros((N, T), bool)}
    value, denominator, metrics, gradients = run(label, batch)
    assert float(value) == float(denominator) == 0
    assert all(float(x) == 0 for x in metrics.values())
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("label", CASES)
def test_rows_may_be_permuted(label):
    batch = make_batch()
    value, denominator, metrics, (gradient, _) = run(label, batch)
    order = np.array([2, 0, 3, 1])
    permuted = run(label, {name: x[order] for name, x in batch.items()})
    np.testing.assert_allclose((permuted[0], permuted[1]), (value, denominator), rtol=1e-12)
    np.testing.assert_allclose(permuted[3][0], gradient[order], rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), permuted[2], metrics)


@pytest.mark.parametrize("label", ["ppo_clip", "gspo", "gspo_token", "rec gspo", "macro_sum", "macro_mean"])
def test_rows_and_columns_may_be_padded(label):
    batch = make_batch()
    value, denominator, _, (gradient, _) = run(label, batch)
    padded = run(label, {name: np.pad(x, [(0, 1), (0, 2)]) for name, x in batch.items()})
    np.testing.assert_allclose((padded[0], padded[1]), (value, denominator), rtol=1e-12)
    np.testing.assert_allclose(padded[3][0][:N, :T], gradient, rtol=1e-12)


@pytest.mark.parametrize("label", CASES)
def test_each_surrogate_looks_at_its_own_row_only(label):
    batch = make_batch()
    whole = run(label, batch)
    rows = np.eye(N, dtype=bool)[:, :, None]
    parts = [run(label, batch | {"mask": batch["mask"] & row}) for row in rows]  # one row is left of each
    np.testing.assert_allclose(sum(part[0] for part in parts), whole[0], rtol=1e-12)
    assert sum(float(part[1]) for part in parts) == whole[1]
    np.testing.assert_allclose(sum(part[3][0] for part in parts), whole[3][0], rtol=1e-12)


numbers = {
    "log_probs": st.floats(-3, 0),
    "old_log_probs": st.floats(-3, 0),
    "advantages": st.floats(-3, 3),
    "log_proxy": st.floats(-3, 0),
    "kept_log_mass": st.floats(-3, 0),
}
batches = st.fixed_dictionaries(
    {name: hnp.arrays(np.float64, (N, T), elements=elements) for name, elements in numbers.items()}
    | {name: hnp.arrays(np.bool_, (N, T)) for name in ("mask", "chosen")}
    | {"segments": hnp.arrays(np.int32, (N, T), elements=st.integers(0, T - 1))}
)


@pytest.mark.parametrize("label", CASES)
@settings(max_examples=10)
@given(batch=batches)
def test_random_inputs_equal_loops(label, batch):
    name, options = options_of(label)
    arrays, extra = split(label, batch)
    value, denominator, _, gradients = run(label, batch)
    losses, *_ = reference.token_losses(name, *arrays, options, **extra)
    expected = reference.weighted_sum(losses, batch["mask"], "token_mean")
    np.testing.assert_allclose((value, denominator), expected, rtol=1e-9, atol=1e-9)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("label", CASES)
@pytest.mark.parametrize("gap", [1e4, -1e4, 25.0, -25.0])
def test_extreme_log_ratios_stay_finite_and_right(label, gap):
    name, options = options_of(label)
    batch = make_batch() | {"mask": np.ones((N, T), bool)}
    batch["log_probs"] = np.full((N, T), -1.0)
    batch["old_log_probs"] = np.full((N, T), -1.0 - gap)
    arrays, extra = split(label, batch)
    value, _, _, gradients = run(label, batch)
    losses, *_ = reference.token_losses(name, *arrays, options, **extra)
    np.testing.assert_allclose(value, reference.weighted_sum(losses, batch["mask"], "token_mean")[0], rtol=1e-9)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


# --- identities ---


def test_gspo_token_is_gspo_for_advantages_of_rollouts():
    batch = make_batch()
    batch["advantages"] = np.repeat(batch["advantages"][:, :1], T, axis=1)
    results = [run(name, batch, "seq_mean_token_mean") for name in ("gspo", "gspo_token")]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-12)
    np.testing.assert_allclose(results[0][3][0], results[1][3][0], rtol=1e-12)


def test_on_the_policy_every_ratio_surrogate_has_the_gradient_of_reinforce():
    batch = make_batch()
    batch["old_log_probs"] = batch["log_probs"]
    expected = run("reinforce", batch)[3][0]
    assert np.abs(expected).max() > 0.1
    for label in ("ppo_clip", "ppo_clip dual", "gspo_token", "cispo", "on_policy", "rec none", "kl_cov"):
        np.testing.assert_allclose(run(label, batch)[3][0], expected, rtol=1e-12, err_msg=label)
    np.testing.assert_allclose(2 * 0.85 * run("opmd", batch)[3][0], expected, rtol=1e-12)


def test_gradients_flow_nowhere_else():
    batch = make_batch()
    for label in CASES:
        (log_probs, old, advantages, mask), extra = split(label, batch)
        name, options = options_of(label)
        constants = {"old": old, "advantages": advantages, "log_proxy": extra.pop("log_proxy", None)}

        total = functools.partial(_total_of, log_probs, mask, {"surrogate": name, "options": options} | extra)
        for gradient in jax.tree.leaves(jax.jit(jax.grad(total))(constants)):
            np.testing.assert_array_equal(gradient, 0)


def _total_of(log_probs, mask, keywords, constants):
    proxy = {} if constants["log_proxy"] is None else {"log_proxy": constants["log_proxy"]}
    return policy_loss(log_probs, constants["old"], constants["advantages"], mask, **keywords, **proxy)[0]


# --- errors ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_low": -0.1}, "clip_low = -0.1 is not allowed; allowed: numbers >= 0"),
        ({"clip_high": float("nan")}, "clip_high = nan"),
        ({"dual_clip": 1.0}, "dual_clip = 1.0 is not allowed; allowed: None or finite numbers > 1"),
        ({"rec_mask": "both"}, "rec_mask = 'both' is unknown; allowed: none, one_side"),
        ({"rec_weight": "r"}, "rec_weight = 'r' is unknown; allowed: none, importance"),
        ({"rec_regularizer": "k3"}, "rec_regularizer = 'k3' is unknown; allowed: none, k2, forward_kl"),
        ({"rec_temperature": 0.0}, "rec_temperature = 0.0"),
        ({"rec_coef": -1.0}, "rec_coef = -1.0"),
        ({"rec_mask": "ring", "rec_outer_low": 0.1}, "rec_outer_low = 0.1.*must be at least clip_low = 0.2"),
        ({"tau": float("inf")}, "tau = inf"),
        ({"kl_cov_coef": -0.5}, "kl_cov_coef = -0.5"),
        ({"macro_length": 0}, "macro_length = 0"),
        ({"lp_reg_form": "full"}, "lp_reg_form = 'full' is unknown; allowed: release, paper"),
        ({"lp_reg_cap": 0.0}, "lp_reg_cap = 0.0"),
        ({"lp_reg_beta": float("nan")}, "lp_reg_beta = nan"),
    ],
)
def test_bad_options_are_one_clear_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        SurrogateOptions(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"surrogate": "ppo"}, "surrogate = 'ppo' is unknown; allowed: ppo_clip, gspo"),
        ({"surrogate": "gspo", "dual_clip": 3.0}, "dual_clip = 3.0 has no effect on surrogate = 'gspo'"),
        ({"surrogate": "clip_cov"}, "surrogate = 'clip_cov' needs chosen"),
        ({"surrogate": "kl_cov"}, "surrogate = 'kl_cov' needs chosen"),
        ({"surrogate": "macro_sum"}, "surrogate = 'macro_sum' needs segments"),
        ({"surrogate": "lp_reg"}, "surrogate = 'lp_reg' needs chosen"),
        ({"surrogate": "lp_reg", "chosen": np.ones((1, 2), bool)}, "surrogate = 'lp_reg' needs log_proxy"),
        (
            {"surrogate": "lp_reg", "chosen": np.ones((1, 2), bool), "options": SurrogateOptions(lp_reg_form="paper")},
            "surrogate = 'lp_reg' needs kept_log_mass",
        ),
    ],
)
def test_bad_calls_are_one_clear_line(given, message):
    zeros = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match=message) as error:
        policy_loss(zeros, zeros, np.ones(1, np.float32), zeros == 0, **given)
    assert "\n" not in str(error.value)


def test_every_surrogate_has_a_case_here():
    assert {label.split()[0] for label in CASES} == set(SURROGATES)
    check_surrogate("ppo_clip", SurrogateOptions(dual_clip=2.0))


# --- golden numbers ---


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_gspo_golden(golden, precision, name):
    inputs, outputs = case(golden, "1.gspo(lo=3e-4,hi=4e-4)")

    def loss(new, old, advantages, mask):
        total, denominator, metrics = policy_loss(
            new, old, advantages, mask, surrogate=name, clip_low=3e-4, clip_high=4e-4, aggregation="seq_mean_token_mean"
        )
        return total / denominator, finalize(metrics)

    arguments = (np.log(inputs["new_prob"]), np.log(inputs["old_prob"]), inputs["adv"], inputs["mask"])
    value, metrics = evaluate(loss, *arguments, precision=precision)
    assert_close(value, outputs["loss"], precision)
    assert_close(metrics["ratio_max"], max(outputs["seq_ratio"]), precision)
    gradient = evaluate(jax.grad(lambda *a: loss(*a)[0]), *arguments, precision=precision)
    assert_close(gradient, outputs["dloss_dlogp"], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gspo_clipped_golden(golden, precision):
    inputs, outputs = case(golden, "1.gspo.clipped")

    def loss(log_ratio, advantages):
        total, denominator, metrics = policy_loss(
            log_ratio, 0 * log_ratio, advantages, log_ratio < 1, surrogate="gspo", clip_low=3e-4, clip_high=4e-4,
            aggregation="seq_mean_token_mean",
        )  # fmt: skip
        return total / denominator, finalize(metrics)["ratio_mean"]

    value, ratio = evaluate(loss, inputs["log_ratio"], inputs["adv"], precision=precision)
    assert_close(value, outputs["loss"], precision)
    assert_close(ratio, np.mean(outputs["seq_ratio"]), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_cispo_golden(golden, precision):
    inputs, outputs = case(golden, "1.cispo(hi=.28,no lower)")

    def loss(new, old, advantages, mask, aggregation="token_mean"):
        total, denominator, _ = policy_loss(
            new, old, advantages, mask, surrogate="cispo", clip_low=1.0, clip_high=0.28, aggregation=aggregation
        )
        return total / denominator

    arguments = (np.log(inputs["new_prob"]), np.log(inputs["old_prob"]), inputs["adv"], inputs["mask"])
    assert_close(evaluate(loss, *arguments, precision=precision), outputs["loss_token_mean"], precision)
    assert_close(evaluate(jax.grad(loss), *arguments, precision=precision), outputs["dloss_dlogp"], precision)
    for n, t in np.argwhere(inputs["mask"]):
        one = [np.array(x)[n : n + 1, t : t + 1] for x in arguments[:2]] + [inputs["adv"][n : n + 1], np.ones((1, 1))]
        assert_close(evaluate(loss, *one, precision=precision), outputs["per_token"][n][t], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_opmd_loss_scale_golden(golden, precision):
    inputs, outputs = case(golden, "9.opmd_native")

    def loss(log_probs, advantages):
        options = SurrogateOptions(tau=inputs["tau"])
        return policy_loss(
            log_probs, log_probs, advantages, log_probs < 0, surrogate="opmd", options=options,
            aggregation="seq_mean_token_sum",
        )[0]  # fmt: skip

    log_probs = np.array([[-1.0], [-3.0]])
    gradient = evaluate(jax.grad(loss), log_probs, outputs["adv_mean"], precision=precision)
    assert_close(gradient[:, 0], -outputs["loss_scale"] * np.array(outputs["adv_mean"]), precision)


def test_no_sequence_ratio_has_a_gradient_at_its_limit():
    """log s = 12 is past the limit of 10: both forms of GSPO are constants there, and agree."""
    mask = np.ones((1, 2), bool)
    for name in ("gspo", "gspo_token"):
        def total(log_probs, name=name):
            return policy_loss(
                log_probs, jnp.zeros((1, 2)), jnp.array([-1.0]), mask, surrogate=name, clip_high=1e9
            )[0]

        value, gradient = jax.jit(jax.value_and_grad(total))(np.full((1, 2), 12.0, np.float32))
        assert float(value) == pytest.approx(2 * np.exp(10.0), rel=1e-6)
        np.testing.assert_array_equal(gradient, 0)
