"""Reward shaping, filters, estimators and token choices together; the edge cases of every estimator in one table."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salt_jax import objective
from salt_jax.objective import ESTIMATORS, FILTERS, SURROGATES, ObjectiveConfig, Signals, rollout_advantages
from tests.one_program import one_program

estimate, choose_tokens = one_program(objective.estimate), one_program(objective.choose_tokens)
loss, example_rollouts = one_program(objective.loss), one_program(objective.example_rollouts)

NAN = float("nan")
B, G, T = 3, 4, 5
RAGGED = (5, 1, 3, 2, 4, 5, 1, 2, 3, 4, 5, 2)
MIXED = np.array([[1, 0, 0, 1], [0, 1, 1, 1], [0.5, 0, 1, 0]], np.float32)
# What a group without a signal gets where the method's own definition is not 0, from the reward all of it has.
WITHOUT_SIGNAL = {"asymre", "raft", "given_baseline", "gtpo", "copg"}


def signals_of(rewards, *, size=G, rewarded=None, valid=None, seed=0):
    """Random tokens, log-probs and entropies around the given rewards."""
    rewards = np.asarray(rewards, np.float32).reshape(-1)
    n, rng = len(rewards), np.random.default_rng(seed)
    rollouts = example_rollouts(
        rewards, tokens=rng.integers(3, 6, (n, T)), lengths=np.resize(RAGGED, n),
        clusters=rng.integers(0, 3, n).astype(np.int32), baseline=np.full(n, 0.25, np.float32),
        components=rng.integers(0, 2, (n, 2)).astype(np.float32),
        segments=np.broadcast_to(np.arange(T) // 3, (n, T)).astype(np.int32),
    )  # fmt: skip
    rewarded = ~np.isnan(rewards) if rewarded is None else np.asarray(rewarded).reshape(-1)
    rollouts = rollouts.replace(rewarded=rewarded)
    if valid is not None:
        rollouts = rollouts.replace(valid=valid)
    old, ref = (-rng.uniform(0.1, 3, (n, T)).astype(np.float32) for _ in range(2))
    return Signals(
        rollouts, log_probs=old, ref_log_probs=ref, entropy=rng.uniform(0, 0.6, (n, T)).astype(np.float32),
        log_proxy=old + np.float32(0.1), key=jax.random.key(0), progress=0.5,
    )  # fmt: skip


def estimated(name, rewards, size=G, **options):
    made = estimate(signals_of(rewards, size=size), size, ObjectiveConfig(estimator=name, **options))
    return np.asarray(made.advantages), np.asarray(made.kept)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_signal_gives_advantages_of_the_right_shape(name):
    advantages, kept = estimated(name, MIXED)
    assert advantages.shape == ((B * G, T) if ESTIMATORS[name].per_token else (B * G,))
    assert np.isfinite(advantages).all()
    assert np.any(advantages != 0)
    assert kept.all()


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - WITHOUT_SIGNAL - {"rank_grpo", "bnpo", "darling"}))
def test_a_group_without_signal_gets_exactly_zero(name, reward):
    rewards = MIXED.copy()
    rewards[1] = reward
    advantages, _ = estimated(name, rewards)
    of_group = advantages.reshape(B, G, -1)[1]
    if name == "reinforce_pp":  # no groups: the batch is its baseline
        assert np.isfinite(of_group).all()
    elif name == "reinforce_pp_baseline":  # whitening moves the zero of all tokens, of every group alike
        mask = np.asarray(signals_of(rewards).rollouts.completion_mask).reshape(B, G, T)[1]
        assert len(np.unique(of_group[mask].round(6))) == 1
    else:
        np.testing.assert_array_equal(of_group, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("asymre", 0.1), ("raft", 0.5), ("given_baseline", 0.25)],
)
def test_a_group_without_signal_where_the_definition_says_otherwise(name, expected):
    advantages, _ = estimated(name, np.full((1, G), 0.5))
    np.testing.assert_allclose(advantages, expected, rtol=1e-6)


def test_gtpo_without_signal_pays_for_its_entropy():
    signals = signals_of(np.ones((1, G)))
    mask = np.asarray(signals.rollouts.completion_mask)
    mean = [np.mean(np.asarray(signals.entropy)[i][mask[i]]) for i in range(G)]
    made = estimate(signals, G, ObjectiveConfig(estimator="gtpo")).advantages
    np.testing.assert_allclose(made, [-0.1 * h for h in mean], rtol=1e-5)


def test_copg_without_signal_pulls_the_log_ratios_together():
    signals = signals_of(np.ones((1, G)))
    mask = np.asarray(signals.rollouts.completion_mask)
    ratio = np.where(mask, np.asarray(signals.log_probs) - np.asarray(signals.ref_log_probs), 0).sum(1)
    made = np.asarray(estimate(signals, G, ObjectiveConfig(estimator="copg")).advantages)
    assert np.corrcoef(made, ratio)[0, 1] == pytest.approx(-1)


@pytest.mark.parametrize("name", ["bnpo", "darling", "rank_grpo"])
def test_without_signal_in_what_the_method_itself_compares(name):
    signals = signals_of(np.ones((1, G)))
    extra = dict(signals.rollouts.extra)
    extra |= {"components": np.ones((G, 2), np.float32), "clusters": np.zeros(G, np.int32)}
    signals = dataclasses.replace(signals, rollouts=signals.rollouts.replace(extra=extra))
    np.testing.assert_array_equal(estimate(signals, G, ObjectiveConfig(estimator=name)).advantages, 0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_missing_rewards_get_exactly_zero_and_count_nowhere(name):
    rewards = MIXED.copy()
    rewards[0, 1] = NAN
    rewards[2] = NAN  # a whole group
    other = rewards.copy()
    other[np.isnan(rewards)] = 7.0
    lost = np.isnan(rewards).reshape(-1)
    made = [
        np.asarray(estimate(
            signals_of(values, rewarded=~np.isnan(rewards)), G, ObjectiveConfig(estimator=name)
        ).advantages)
        for values in (rewards, other)
    ]  # fmt: skip
    assert np.isfinite(made[0]).all()
    np.testing.assert_array_equal(made[0][lost], 0)
    np.testing.assert_array_equal(made[0], made[1])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_rollout_a_group(name):
    advantages, _ = estimated(name, [1.0, 0.0, 1.0], size=1)
    assert np.isfinite(advantages).all()
    by_batch_or_itself = {"reinforce_pp", "reinforce_pp_baseline", "bnpo"} | WITHOUT_SIGNAL
    if name not in by_batch_or_itself:
        np.testing.assert_array_equal(advantages, 0)


@functools.partial(jax.jit, static_argnums=1)
def advantages_value_and_gradient(signals, config):
    """All that a step makes of a batch: advantages, and the mean loss with its gradient at the policy before it."""
    made, rollouts = objective.estimate(signals, G, config), signals.rollouts

    def mean(log_probs):
        choices = objective.choose_tokens(signals, made.advantages, G, config)
        total, denominator, _ = objective.loss(
            log_probs, signals.log_probs, made.advantages, rollouts.loss_mask, config, choices=choices,
            valid=rollouts.valid & rollouts.rewarded,
        )
        return total / jnp.maximum(denominator, 1)

    return made.advantages, *jax.value_and_grad(mean)(signals.log_probs)


@pytest.mark.parametrize("how", ["nothing graded", "nothing valid"])
@pytest.mark.parametrize(
    ("name", "surrogate"),
    [
        pytest.param(name, surrogate, marks=[pytest.mark.slow] if name in ("reinforce_pp", "gtpo", "bnpo") else [])
        for name in ("grpo", "rank_grpo", "reinforce_pp", "gtpo", "bnpo")
        for surrogate in SURROGATES
        if not (ESTIMATORS[name].per_token and surrogate == "gspo")  # refused
    ],
)
def test_a_batch_of_which_nothing_is_left(name, how, surrogate):
    nothing = np.zeros(B * G, bool)
    signals = signals_of(MIXED, **({"rewarded": nothing} if how == "nothing graded" else {"valid": nothing}))
    config = ObjectiveConfig(estimator=name, surrogate=surrogate)
    for made in advantages_value_and_gradient(signals, config):
        np.testing.assert_array_equal(made, 0)


@pytest.mark.parametrize("name", FILTERS)
def test_filters_that_drop_everything_leave_no_advantage(name):
    rewards = np.zeros((B, G), np.float32)
    signals = signals_of(rewards)
    signals = dataclasses.replace(signals, rollouts=signals.rollouts.replace(truncated=np.ones(B * G, bool)))
    made = estimate(signals, G, ObjectiveConfig(filters=name, **({"pods_keep": 2} if name == "pods" else {})))
    np.testing.assert_array_equal(made.advantages, 0)
    if name in ("informative", "not_truncated", "positive_only"):
        assert not np.asarray(made.kept).any()
        assert float(made.metrics["filtered"]) == 1


def test_filters_run_in_their_order_and_statistics_are_of_what_counts():
    config = ObjectiveConfig(estimator="dr_grpo", filters="pods,positive_only", pods_keep=2)
    made = estimate(signals_of([[1.0, 0.8, 0.2, 0.0]]), 4, config)
    np.testing.assert_allclose(made.advantages, [0.5, 0, 0, 0], atol=1e-7)  # mean of 1 and 0
    assert np.asarray(made.kept).tolist() == [True, False, False, False]


def test_d3s_keeps_a_share_of_the_batch_after_a_number_of_each_group():
    config = ObjectiveConfig(
        estimator="dr_grpo", filters="d3s", d3s_rollouts_first=2, d3s_rollouts_last=2, d3s_batch=0.5
    )
    made = estimate(signals_of([[1.0, 0.5, 0.5, 0.0], [0.6, 0.5, 0.5, 0.4]]), 4, config)
    assert np.asarray(made.kept).tolist() == [True, False, False, True] + [False] * 4  # half of 2 of each of 2 groups


def test_red_drop_keeps_its_tokens_in_the_denominator():
    made = estimate(signals_of([[1.0, 0, 0, 0]]), 4, ObjectiveConfig(estimator="dr_grpo", filters="red_drop"))
    assert np.asarray(made.kept).all()
    assert sorted(np.asarray(made.advantages).tolist()) == [-0.5, 0.0, 0.0, 0.5]
    assert float(made.metrics["filtered"]) == 0.5


def test_winners_push_and_the_others_count():
    """WAPO's release: A = r − mean of the winners over (groups with a winner) · G · L_max."""
    config = ObjectiveConfig(
        estimator="dr_grpo", filters="informative,winners", aggregation="dr_grpo", max_length=T, surrogate="reinforce"
    )
    signals = signals_of(np.stack([MIXED[0], np.ones(4), MIXED[1]]))
    made = estimate(signals, G, config)
    assert np.asarray(made.kept).tolist() == [True] * 4 + [False] * 4 + [True] * 4
    winners = [i for i, r in enumerate(MIXED[0]) if r > 0.5] + [8 + i for i, r in enumerate(MIXED[1]) if r > 0.75]
    assert np.flatnonzero(~np.asarray(made.silent) & np.asarray(made.kept)).tolist() == winners
    rollouts = signals.rollouts.replace(valid=made.kept)
    total, denominator, _ = loss(
        signals.log_probs, signals.log_probs, made.advantages, rollouts.loss_mask, config,
        valid=rollouts.valid & rollouts.rewarded,
    )
    mask, log_probs = np.asarray(rollouts.completion_mask), np.asarray(signals.log_probs)
    own = {0: 0.5, 3: 0.5, 9: 0.25, 10: 0.25, 11: 0.25}
    expected = sum(-a * log_probs[i, t] for i, a in own.items() for t in range(T) if mask[i, t])
    assert float(denominator) == 2 * G * T
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_gtpo_of_the_release_divides_by_conflicts_and_sums_over_a_group():
    signals = Signals(example_rollouts([1.0, 0.0], tokens=[[5, 6, 7, 9], [5, 6, 8, 9]]))
    advantages = jnp.array([1.0, -1.0])
    paper, release = (
        choose_tokens(signals, advantages, 2, ObjectiveConfig(tokens="conflict", gtpo_form=form)).weights
        for form in ("paper", "release")
    )
    np.testing.assert_allclose(paper, [[2, 2, 1, 2], [0, 0, 1, 0]])
    np.testing.assert_allclose(release, np.asarray(paper) * 2 / 2)  # two rows a group, two conflicts in the longer run
    single = Signals(example_rollouts([1.0, 0.0, 0.0], tokens=[[5, 6], [5, 7], [8, 9]]))
    release = choose_tokens(
        single, jnp.array([1.0, -1.0, -1.0]), 3, ObjectiveConfig(tokens="conflict", gtpo_form="release")
    ).weights
    np.testing.assert_allclose(release, [[6, 3], [0, 3], [3, 3]])


def test_conflicts_take_their_signs_from_rewards_also_of_rows_that_entropy_drops():
    """The only positive row is above the threshold: it is dropped, and still defines conflicts (GTPO's release)."""
    rollouts = example_rollouts(
        [1.0, 0.0, 0.0], tokens=[[5, 7, 8, 9], [5, 7, 3, 3], [4, 6, 9, 9]], lengths=[4, 3, 3]
    )
    entropy = np.repeat(np.float32([[0.75], [0.2], [0.3]]), 4, axis=1)
    config = ObjectiveConfig(estimator="gtpo", tokens="conflict")
    signals = Signals(rollouts, entropy=entropy)
    made = estimate(signals, 3, config)
    np.testing.assert_allclose(made.signs, [2 / 3, -1 / 3, -1 / 3], rtol=1e-6)
    assert float(made.advantages[0]) == 0
    assert np.asarray(made.silent).tolist() == [True, False, False]  # else SALT would push it
    weights = choose_tokens(dataclasses.replace(signals, signs=made.signs), made.advantages, 3, config).weights
    np.testing.assert_allclose(weights, [[2, 2, 1, 2], [0, 0, 1, 0], [1, 1, 0, 0]])


def test_a_penalty_does_not_pass_for_a_signal():
    rollouts = example_rollouts([1.0, 1.0, 1.0, 0.0], tokens=np.full((4, 4), 3), lengths=[4, 1, 4, 1])
    config = ObjectiveConfig(filters="informative", overlong_buffer=2, max_length=4)
    assert np.asarray(estimate(Signals(rollouts), 2, config).kept).tolist() == [False, False, True, True]


@pytest.mark.parametrize("filters", ["pods,red_drop", "red_drop,pods", "red_drop,not_truncated"])
def test_rows_of_the_denominator_stay_there_whatever_filter_comes_next(filters):
    options = {"pods_keep": 4} if "pods" in filters else {}
    made = estimate(signals_of([[1.0, 0, 0, 0]]), 4, ObjectiveConfig(filters=filters, **options))
    assert np.asarray(made.kept).all()
    assert int(np.asarray(made.silent).sum()) == 2


@pytest.mark.parametrize(
    "aggregation", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "dr_grpo", "token_sum_norm"]
)
def test_demonstrations_alone_teach_their_mean(aggregation):
    """Every prompt of the minibatch failed: there is no rollout, and no denominator of theirs."""
    signals = signals_of(np.zeros((1, 4)))
    shown = np.array([True, False, False, False])
    rollouts = signals.rollouts.replace(extra={"demonstration": shown}, valid=shown)
    signals = dataclasses.replace(signals, rollouts=rollouts)
    config = ObjectiveConfig(estimator="dr_grpo", surrogate="on_policy", aggregation=aggregation, max_length=T)
    made = estimate(signals, 4, config)
    choices = choose_tokens(signals, made.advantages, 4, config)
    total, denominator, _ = loss(
        signals.log_probs, signals.log_probs, made.advantages, rollouts.loss_mask, config, choices=choices,
        valid=rollouts.valid & rollouts.rewarded, demonstration=shown,
    )
    mask = np.asarray(rollouts.completion_mask)[0]
    expected = -np.asarray(signals.log_probs)[0][mask].mean()
    assert float(total / jnp.maximum(denominator, 1)) == pytest.approx(float(expected), rel=1e-5)


def test_injected_rollouts_are_not_weighed_back():
    signals = signals_of([[1.0, 0.0, 0.0, 0.0]])
    injected = np.array([True, False, False, False])
    rollouts = signals.rollouts.replace(
        extra={"injected": injected}, sampler_log_probs=signals.log_probs - np.float32(0.5)
    )
    signals = dataclasses.replace(signals, rollouts=rollouts)
    weights = np.asarray(choose_tokens(signals, np.ones(4, np.float32), 4, ObjectiveConfig(importance="token")).weights)
    mask = np.asarray(rollouts.completion_mask)
    np.testing.assert_array_equal(weights[0][mask[0]], 1)
    np.testing.assert_allclose(weights[1:][mask[1:]], np.exp(0.5), rtol=1e-6)


def test_weights_multiply_and_injected_rollouts_have_advantage_one():
    signals = signals_of([[1.0, 0.0, 1.0, 1.0]])
    extra = {"weight": np.float32([2, 2, 1, 1]), "injected": np.array([False, False, True, False])}
    signals = dataclasses.replace(signals, rollouts=signals.rollouts.replace(extra=extra))
    made = estimate(signals, 4, ObjectiveConfig(estimator="dr_grpo")).advantages
    np.testing.assert_allclose(made, [0.5, -1.5, 1.0, 0.25])


def test_overlong_and_kl_are_taken_off_the_reward():
    signals = signals_of(MIXED)
    mask = np.asarray(signals.rollouts.completion_mask)
    config = ObjectiveConfig(
        estimator="dr_grpo", overlong_buffer=2, max_length=T, kl_in="reward", kl_estimator="k1", kl_coef=0.1
    )
    made = estimate(signals, G, config)
    shaped = np.zeros((B, G))
    for i in range(B * G):
        penalty = -max(0, mask[i].sum() - (T - 2)) / 2
        log_ratio = sum(float(signals.log_probs[i, t] - signals.ref_log_probs[i, t]) for t in range(T) if mask[i, t])
        shaped.flat[i] = MIXED.flat[i] + penalty - 0.1 * log_ratio
    np.testing.assert_allclose(
        np.asarray(made.advantages).reshape(B, G), shaped - shaped.mean(1, keepdims=True), atol=1e-5
    )
    assert float(made.metrics["reward_shaping"]) == pytest.approx(float((shaped - MIXED).mean()), abs=1e-5)


def test_demonstrations_are_no_rollouts_and_weigh_as_their_own_mean():
    signals = signals_of([[1.0, 0, 0, 1.0], [0, 0, 0, 0]], size=4)
    demonstration = np.zeros(8, bool)
    demonstration[4] = True
    rollouts = signals.rollouts.replace(
        extra={"demonstration": demonstration}, valid=np.array([True] * 5 + [False] * 3)
    )
    signals = dataclasses.replace(signals, rollouts=rollouts)
    config = ObjectiveConfig(estimator="dr_grpo", surrogate="on_policy", demonstration_coef=0.3)
    made = estimate(signals, 4, config)
    np.testing.assert_allclose(made.advantages, [0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0])
    choices = choose_tokens(signals, made.advantages, 4, config)
    total, denominator, _ = loss(
        signals.log_probs, signals.log_probs, made.advantages, rollouts.loss_mask, config, choices=choices,
        valid=rollouts.valid & rollouts.rewarded, demonstration=demonstration,
    )
    mask, log_probs = np.asarray(rollouts.completion_mask), np.asarray(signals.log_probs)
    own = [(i, t) for i in range(4) for t in range(T) if mask[i, t]]
    policy = sum(-float(made.advantages[i]) for i, t in own) / len(own)
    shown = [t for t in range(T) if mask[4, t]]
    supervised = sum(-float(log_probs[4, t]) for t in shown) / len(shown)
    assert float(total / denominator) == pytest.approx(policy + 0.3 * supervised, rel=1e-5)


def test_one_advantage_a_rollout_from_one_a_token():
    mask = jnp.array([[True, True, False], [False, False, False]])
    values = jnp.array([[1.0, 2.0, NAN], [NAN, NAN, NAN]])
    np.testing.assert_array_equal(rollout_advantages(values, mask), [1.5, 0])
    np.testing.assert_array_equal(rollout_advantages(jnp.array([1.0, 2.0]), mask), [1, 2])


@pytest.mark.parametrize(
    ("options", "names"),
    [({"estimator": "darling"}, "clusters"), ({"estimator": "given_baseline"}, "baseline"),
     ({"estimator": "rank_grpo"}, "components")],
)  # fmt: skip
def test_what_the_rollouts_must_bring_is_named(options, names):
    with pytest.raises(ValueError, match=f"needs {names} with the rollouts"):
        estimate(Signals(example_rollouts([1.0, 0.0])), 2, ObjectiveConfig(**options))


def test_signals_and_extra_of_another_shape_are_named():
    rollouts = example_rollouts([1.0, 0.0], tokens=[[3], [4]])
    for shape in ((2, 3), (2,), (1, 1)):
        with pytest.raises(ValueError, match=r"Signals.entropy must have the shape of completion_mask \(2, 1\), got"):
            estimate(Signals(rollouts, entropy=np.ones(shape, np.float32)), 2, ObjectiveConfig(estimator="gtpo"))
    few = rollouts.replace(extra={"clusters": np.zeros(1, np.int32)})
    with pytest.raises(ValueError, match=r"clusters must have 2 rows .*, got \(1,\)"):
        estimate(Signals(few), 2, ObjectiveConfig(estimator="darling"))
    with pytest.raises(ValueError, match="'wieght' is no entry of RolloutBatch.extra; allowed: baseline, clusters, "):
        example_rollouts([1.0, 0.0], wieght=[2.0, 2.0])
    with pytest.raises(ValueError, match=r"rewards must have shape \(N,\), got \(1, 2\)"):
        example_rollouts([[1.0, 0.0]])


@pytest.mark.parametrize(
    ("options", "signal"),
    [({"estimator": "gtpo"}, "entropy"), ({"estimator": "copg"}, "log_probs"), ({"filters": "red_drop"}, "key")],
)
def test_signals_that_are_missing_are_named(options, signal):
    with pytest.raises(ValueError, match=f"Signals.{signal} is None"):
        estimate(Signals(example_rollouts([1.0, 0.0])), 2, ObjectiveConfig(**options))
