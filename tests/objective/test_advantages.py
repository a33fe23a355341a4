"""Group advantages against float64 loops, at their edges, and against the golden vectors."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import ESTIMATORS as ALL_ESTIMATORS
from salt_jax.objective import ObjectiveConfig, advantages
from salt_jax.objective.advantages import (
    ACCEPTS,
    ESTIMATORS,
    NEEDS,
    OWN_DEGENERATE,
    WITH_SINGLETON,
    AdvantageOptions,
    check_advantage_options,
    group_advantages,
)
from salt_jax.objective.objective import advantages as flat_advantages
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.one_program import one_program
from tests.reference import advantages_family as family
from tests.reference import objective as reference

OPTIONS = [field.name for field in dataclasses.fields(AdvantageOptions)]
jitted = jax.jit(group_advantages, static_argnames=["estimator", *OPTIONS])
CLASSIC = ("grpo", "dr_grpo", "rloo")
# Every estimator with every option that changes what it does.
VARIANTS = [
    *(("grpo", {"ddof": ddof, "singleton": single}) for ddof in (0, 1) for single in ("zero", "reward")),
    *((name, {"singleton": "reward"}) for name in WITH_SINGLETON if name != "grpo"),
    *((name, {}) for name in ESTIMATORS if name != "grpo"),
    ("opmd", {"opmd_baseline": "log_mean_exp", "tau": 0.3}),
    ("opmd", {"opmd_baseline": "log_mean_exp", "singleton": "reward"}),
    ("asymre", {"asymre_shift": 0.25}),
    ("darling", {"darling_floor": 0.1}),
    ("darling", {"darling_form": "add", "darling_lambda_reward": 0.5, "darling_lambda_diversity": 2.0}),
    ("darling", {"darling_add_bias": True}),
]


def arrays_for(estimator, shape, seed=0):
    """Random arrays of those that the estimator reads besides rewards."""
    rng = np.random.default_rng(seed)
    made = {
        "baseline": rng.normal(size=shape).astype(np.float32),
        "weight": rng.random(shape).astype(np.float32),
        "clusters": rng.integers(0, 3, shape),
        "correct": rng.random(shape) < 0.5,
    }
    return {name: made[name] for name in NEEDS.get(estimator, ()) + ACCEPTS.get(estimator, ())}


@pytest.mark.parametrize(("estimator", "options"), VARIANTS)
def test_every_variant_equals_loops(estimator, options):
    rng = np.random.default_rng(0)
    rewarded = rng.random((7, 5)) < 0.7
    rewarded[0], rewarded[1] = False, np.arange(5) == 2  # none, and one
    arrays, order = arrays_for(estimator, rewarded.shape), rng.permutation(5)
    for rewards in (rng.random((7, 5)), rng.integers(0, 2, (7, 5)).astype(np.float64)):
        expected = family.group_advantages(
            rewards.tolist(), estimator=estimator, rewarded=rewarded, **arrays, **options
        )
        garbage = np.where(rewarded, rewards, np.nan)
        with jax.enable_x64(True):
            precise = jitted(garbage, estimator=estimator, rewarded=rewarded, **arrays, **options)
            assert precise.dtype == np.float64
            np.testing.assert_allclose(precise, expected, rtol=1e-9, atol=1e-10)
        garbage = garbage.astype(np.float32)
        result = jitted(garbage, estimator=estimator, rewarded=rewarded, **arrays, **options)
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(np.asarray(result)[~rewarded], 0)
        other = {name: x[:, order] for name, x in arrays.items()}
        permuted = jitted(
            garbage[:, order], estimator=estimator, rewarded=rewarded[:, order], **other, **options
        )
        np.testing.assert_allclose(permuted, np.asarray(result)[:, order], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("estimator", CLASSIC)
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("jit", [False, True])
def test_equals_loops(estimator, ddof, jit):
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(5, 6)).astype(np.float32)
    rewarded = rng.random((5, 6)) < 0.7

    def compute(rewards, rewarded):
        return group_advantages(rewards, estimator=estimator, ddof=ddof, eps=1e-4, rewarded=rewarded)

    result = (jax.jit(compute) if jit else compute)(rewards, rewarded)
    expected = reference.group_advantages(
        rewards, estimator=estimator, ddof=ddof, eps=1e-4, rewarded=rewarded
    )
    assert result.shape == (5, 6)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "eps"),
    [*((name, 1e-6) for name in ESTIMATORS if name not in OWN_DEGENERATE), ("grpo", 0.0)],
)
@pytest.mark.parametrize("group_size", [1, 7, 10])
def test_equal_rewards_give_exactly_zero(estimator, eps, group_size):
    rewards = np.repeat(np.array([[0.1], [-0.7], [1e6]], np.float32), group_size, axis=1)
    result = jitted(rewards, estimator=estimator, eps=eps)
    np.testing.assert_array_equal(result, np.zeros((3, group_size)))


@pytest.mark.parametrize("value", [0.1, -0.7, 1e6])
@pytest.mark.parametrize("group_size", [1, 7, 10])
def test_what_equal_rewards_give_where_the_method_says_otherwise(value, group_size):
    rewards = np.full((1, group_size), value, np.float32)
    same, zeros = np.zeros((1, group_size), int), np.zeros((1, group_size))
    np.testing.assert_array_equal(jitted(rewards, estimator="asymre"), zeros + np.float32(0.1))
    np.testing.assert_array_equal(jitted(rewards, estimator="raft"), np.maximum(rewards, 0))
    np.testing.assert_array_equal(
        jitted(rewards, estimator="given_baseline", baseline=np.zeros_like(rewards)), rewards
    )
    for options in ({}, {"darling_floor": 0.1}, {"darling_form": "add"}):
        result = jitted(rewards, estimator="darling", clusters=same, **options)
        np.testing.assert_array_equal(result, zeros)


def test_darling_rewards_unlike_answers_of_equal_quality():
    result = jitted(np.ones((1, 3), np.float32), estimator="darling", clusters=np.array([[0, 0, 1]]))
    np.testing.assert_allclose(result, [[-1 / 6, -1 / 6, 1 / 3]], rtol=1e-6)


def test_float_residue_is_the_reason_for_the_gate():
    """In float32 the mean of ten 0.1 is not 0.1, so (r − mean) / (std + eps) alone is far from 0."""
    rewards = np.full(10, 0.1, np.float32)
    mean = np.cumsum(rewards, dtype=np.float32)[-1] / np.float32(10)
    residue = (rewards - mean) / (np.std(rewards - mean) + 1e-6)
    assert np.abs(residue).max() > 1e-3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_missing_rewards_equal_the_subset(estimator):
    rewards = np.array([[1.0, np.nan, 0.0, 0.25, np.inf, 1.0]], np.float32)
    rewarded = np.isfinite(rewards)
    arrays = arrays_for(estimator, rewards.shape)
    result = jitted(rewards, estimator=estimator, rewarded=rewarded, **arrays)
    few = {name: x[rewarded][None] for name, x in arrays.items()}
    subset = jitted(rewards[rewarded][None], estimator=estimator, **few)
    np.testing.assert_array_equal(np.asarray(result)[~rewarded], 0)
    np.testing.assert_allclose(np.asarray(result)[rewarded], np.asarray(subset)[0], rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_rewarded_gives_zero(estimator):
    rewards, none = np.float32([[1.0, np.nan, 3.0]]), np.zeros((1, 3), bool)
    result = jitted(rewards, estimator=estimator, rewarded=none, **arrays_for(estimator, (1, 3)))
    np.testing.assert_array_equal(result, np.zeros((1, 3)))


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name not in OWN_DEGENERATE])
def test_nothing_or_one_rewarded_gives_zero(estimator):
    rewards = jnp.array([[1.0, 2.0, 3.0], [jnp.nan, 5.0, jnp.nan]])
    rewarded = jnp.array([[False, False, False], [False, True, False]])
    np.testing.assert_array_equal(
        jitted(rewards, estimator=estimator, rewarded=rewarded), np.zeros((2, 3))
    )


def test_nan_that_counts_as_rewarded_is_not_hidden():
    result = np.asarray(jitted(np.float32([[1.0, np.nan], [1.0, 0.0]])))
    assert np.isnan(result[0]).all()
    assert np.isfinite(result[1]).all()


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float16, jnp.bfloat16])
def test_any_real_dtype_is_computed_in_float32(dtype):
    rewards = np.array([[1, 0, 0, 1]]).astype(dtype)
    result = jitted(rewards, estimator="dr_grpo")
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, [[0.5, -0.5, -0.5, 0.5]])


@settings(max_examples=25, deadline=None)
@given(
    rewards=hnp.arrays(np.float32, (2, 4), elements=st.floats(-1e3, 1e3, width=32)),
    rewarded=hnp.arrays(np.bool_, (2, 4)),
    estimator=st.sampled_from([*CLASSIC, "opmd"]),
)
def test_wild_rewards(rewards, rewarded, estimator):
    result = np.asarray(jitted(rewards, estimator=estimator, rewarded=rewarded))
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result[~rewarded], 0)
    np.testing.assert_allclose(result.sum(axis=1), 0, atol=3e-3 if estimator != "grpo" else 1e-2)
    for row in range(2):
        values = rewards[row][rewarded[row]]
        if len(values) < 2 or values.max() == values.min():
            np.testing.assert_array_equal(result[row], 0)


@settings(max_examples=25, deadline=None)
@given(
    rewards=hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)),
    rewarded=hnp.arrays(np.bool_, (3, 4)),
    variant=st.sampled_from(VARIANTS),
)
def test_wild_rewards_of_every_variant_between_0_and_1(rewards, rewarded, variant):
    estimator, options = variant
    rewards = np.where(rewarded, rewards, np.nan)
    arrays = arrays_for(estimator, rewards.shape)
    result = np.asarray(jitted(rewards, estimator=estimator, rewarded=rewarded, **arrays, **options))
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result[~rewarded], 0)


def test_permuting_a_group_permutes_its_advantages():
    rewards = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
    order = np.random.default_rng(2).permutation(8)
    np.testing.assert_allclose(
        jitted(rewards[:, order]), jitted(rewards)[:, order], rtol=1e-5, atol=1e-6
    )


def test_flat_batch_equals_groups():
    config = ObjectiveConfig(estimator="rloo")
    rewards = np.random.default_rng(3).normal(size=12).astype(np.float32)
    rewarded = np.arange(12) != 5
    result = one_program(flat_advantages)(rewards, 4, config, rewarded)
    expected = reference.group_advantages(
        rewards.reshape(3, 4), estimator="rloo", rewarded=rewarded.reshape(3, 4)
    )
    np.testing.assert_allclose(result, expected.reshape(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: group_advantages(jnp.ones((2, 2)), estimator="ppo"),
            "estimator = 'ppo'.*grpo, dr_grpo, rloo",
        ),
        (lambda: group_advantages(jnp.ones(4)), r"rewards must have shape \(B, G\), got \(4,\)"),
        (lambda: group_advantages(jnp.ones((2, 2)), ddof=2), "ddof = 2"),
        (lambda: group_advantages(jnp.ones((2, 2)), eps=-1.0), "eps = -1.0"),
        (lambda: group_advantages(jnp.ones((2, 2)), eps=float("nan")), "eps = nan"),
        (lambda: group_advantages(jnp.ones((2, 2)), rewarded=jnp.ones(2)), "rewarded must have the shape"),
        (lambda: flat_advantages(jnp.ones(5), 2, ObjectiveConfig()), "5 rewards .* group_size = 2"),
        (lambda: flat_advantages(jnp.ones((2, 2)), 2, ObjectiveConfig()), r"shape \(N,\)"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        ("grpo", {"singleton": "one"}, "singleton = 'one' is unknown; allowed: zero, reward"),
        ("raft", {"singleton": "reward"}, "singleton = 'reward' means nothing to estimator = 'raft'"),
        ("opmd", {"opmd_baseline": "max"}, "opmd_baseline = 'max' is unknown; allowed: mean, log_mean_exp"),
        ("opmd", {"tau": -1.0}, "tau = -1.0"),
        ("opmd", {"tau": 0.0, "opmd_baseline": "log_mean_exp"}, "tau = 0.0"),
        ("opmd", {"tau": float("inf")}, "tau = inf"),
        ("asymre", {"asymre_shift": float("nan")}, "asymre_shift = nan"),
        ("darling", {"darling_floor": 1.5}, "darling_floor = 1.5 .* from 0 to 1"),
        ("darling", {"darling_form": "plus"}, "darling_form = 'plus' is unknown; allowed: multiply, add"),
        ("darling", {"darling_lambda_reward": float("inf")}, "darling_lambda_reward = inf"),
        ("darling", {"darling_lambda_diversity": float("nan")}, "darling_lambda_diversity = nan"),
        ("darling", {"darling_add_bias": "no"}, "darling_add_bias = 'no' .* True, False"),
    ],
)
def test_bad_options_are_one_clear_line(estimator, options, message):
    with pytest.raises(ValueError, match=message) as error:
        check_advantage_options(estimator, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "given_baseline"}, "'given_baseline' needs baseline, got None"),
        ({"estimator": "darling"}, "'darling' needs clusters, got None"),
        ({"estimator": "grpo", "weight": np.ones((2, 2))}, "weight means nothing to estimator = 'grpo'"),
        ({"estimator": "darling", "clusters": np.ones((2, 2))}, "clusters must be integers, got float32"),
        ({"estimator": "darling", "clusters": np.ones(2, int)}, "clusters must have the shape of rewards"),
        ({"estimator": "given_baseline", "baseline": np.ones((1, 2))}, "baseline must have the shape"),
    ],
)
def test_bad_arrays_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        group_advantages(jnp.ones((2, 2)), **options)
    assert "\n" not in str(error.value)


def test_options_are_hashable_and_an_unknown_one_is_refused():
    assert len({AdvantageOptions(), AdvantageOptions(), AdvantageOptions(tau=2.0)}) == 2
    rewards = jnp.array([[1.0, 0.0, 0.5]])
    everything = dataclasses.asdict(AdvantageOptions(ddof=0))
    np.testing.assert_array_equal(jitted(rewards, **everything), jitted(rewards, ddof=0))
    with pytest.raises(TypeError, match="tua"):
        group_advantages(rewards, tua=1.0)


# --- golden numbers ---


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_groups(golden, precision):
    inputs, expected = case(golden, "1.adv.group[1,0,0,1]")
    calls = {
        "grpo_sample_std_eps1e6": {},
        "grpo_sample_std_eps1e4_TRL": {"eps": 1e-4},
        "grpo_pop_std_eps1e6": {"ddof": 0},
        "dr_grpo": {"estimator": "dr_grpo"},
        "rloo": {"estimator": "rloo"},
    }
    assert {*calls, "zero_std_group_111", "singleton_verl_mean0_std1_r1"} == expected.keys()
    for name, options in calls.items():
        result = evaluate(lambda r, o=options: group_advantages(r, **o), [inputs["rewards"]], precision=precision)
        assert_close(result[0], expected[name], precision)
    np.testing.assert_array_equal(jitted(np.ones((1, 3)))[0], expected["zero_std_group_111"])
    # verl's convention for a group of one is an option here; by default such a group has advantage 0.
    single = evaluate(lambda r: group_advantages(r, singleton="reward"), [[1.0]], precision=precision)
    assert_close(single[0], expected["singleton_verl_mean0_std1_r1"], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_rec_asymre_opmd(golden, precision):
    inputs, expected = case(golden, "9.rec_adv_std")
    result = evaluate(lambda r: group_advantages(r, ddof=0), [np.float64(inputs["rewards"])], precision=precision)
    assert_close(result[0], expected["std_normalize_pop_std_eps1e6"], precision)

    inputs, expected = case(golden, "9.asymre_native")
    result = evaluate(
        lambda r: group_advantages(r, estimator="asymre", asymre_shift=inputs["shift"]),
        [np.float64(inputs["rewards"])],
        precision=precision,
    )
    assert_close(result[0], expected["adv"], precision)

    inputs, expected = case(golden, "9.opmd_native")
    for baseline, name in (("mean", "adv_mean"), ("log_mean_exp", "adv_logavgexp")):
        result = evaluate(
            lambda r, b=baseline: group_advantages(r, estimator="opmd", opmd_baseline=b, tau=inputs["tau"]),
            [np.float64(inputs["rewards"])],
            precision=precision,
        )
        assert_close(result[0], expected[name], precision)


def printed(text, heading, *labels):
    """The first list of numbers after the labels, in their order, in one block of selection_vectors.txt."""
    text = text.split(f"\n== {heading}", 1)[1].split("\n==", 1)[0]
    for label in labels:
        text = text.split(label, 1)[1]
    return [float(x) for x in re.search(r"\[([^\]]*)\]", text)[1].split(",")]


def test_golden_reinforce_ada(golden):
    """Advantages over a pool's pass rate are given_baseline; the weights are 1/p, and 1/sqrt(mean) of form Est."""
    text = (golden / "selection_vectors.txt").read_text()
    for name, pass_rate in (("hard", 2 / 12), ("mid", 2 / 4), ("easy", 11 / 12), ("dead", 0.0)):
        block = ("2 Reinforce-Ada", f"balanced {name}")
        rewards = np.array([printed(text, *block, "r = ")], np.float32)
        baseline = np.full_like(rewards, pass_rate)
        result = jitted(rewards, estimator="given_baseline", baseline=baseline)
        np.testing.assert_allclose(np.asarray(result)[0], printed(text, *block, "A=r-p_hat = "), rtol=1e-5, atol=1e-7)
        if name != "dead":
            result = jitted(
                rewards, estimator="given_baseline", baseline=baseline, weight=1 / baseline
            )
            np.testing.assert_allclose(np.asarray(result)[0], printed(text, *block, "weighted A/p_hat = "), rtol=1e-5)
    rewards = np.array([[1, 0, 0, 0]], np.float32)
    mean = np.full_like(rewards, 0.25)
    result = jitted(rewards, estimator="given_baseline", baseline=mean, weight=1 / np.sqrt(mean))
    expected = printed(text, "2 Reinforce-Ada", "(r-rbar)/sqrt(rbar) = ")
    np.testing.assert_allclose(np.asarray(result)[0], expected, rtol=1e-6)


def test_golden_darling(golden):
    text = (golden / "selection_vectors.txt").read_text()
    rewards, clusters = np.float32([[1.0, 0.0, 1.0, 1.0]]), np.array([[0, 0, 1, 2]])
    for floor in (0.0, 0.1):
        result = jitted(rewards, estimator="darling", clusters=clusters, darling_floor=floor)
        expected = printed(text, "5 DARLING", f"floor={floor}", "A (no std) = ")
        np.testing.assert_allclose(np.asarray(result)[0], expected, rtol=1e-5, atol=1e-7)
    result = jitted(
        np.ones((1, 4), np.float32), estimator="darling", clusters=np.zeros((1, 4), int), darling_floor=0.1
    )
    np.testing.assert_array_equal(np.asarray(result)[0], printed(text, "5 DARLING", "all one cluster", "A = "))


@pytest.mark.parametrize("name", advantages.MORE_THAN_REWARDS)
def test_estimators_of_more_than_rewards_are_told_apart_from_unknown_ones(name):
    assert name in ALL_ESTIMATORS
    with pytest.raises(ValueError, match=f"estimator = '{name}' looks at more than the rewards of a group"):
        advantages.group_advantages([[1.0, 0.0]], estimator=name)


def test_every_estimator_is_of_groups_or_of_more():
    assert set(advantages.ESTIMATORS) | set(advantages.MORE_THAN_REWARDS) == set(ALL_ESTIMATORS)
