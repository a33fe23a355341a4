"""Rank-GRPO: relevance, rewards, advantages, segments, shaping and loss against loops and golden numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import rank_grpo
from salt_jax.objective.rank_grpo import RANK_REWARDS, rank_loss, relevance
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.one_program import one_program

item_segments, length_shaping = one_program(rank_grpo.item_segments), one_program(rank_grpo.length_shaping)
rank_rewards, rank_advantages = one_program(rank_grpo.rank_rewards), one_program(rank_grpo.rank_advantages)
rank_token_weights = one_program(rank_grpo.rank_token_weights)
token_advantages = one_program(rank_grpo.token_advantages)

B, G, K, N, T = 3, 4, 3, 4, 8


# --- relevance ---


@pytest.mark.parametrize(
    ("recommended", "truth", "seen", "expected"),
    [
        (["a", "b", "c"], ["c", "a"], (), [1, 0, 1, 0]),
        (["a", "a", "a"], ["a"], (), [1, 0, 0, 0]),  # each ground truth once
        (["a", "a", "a"], ["a", "a"], (), [1, 1, 0, 0]),
        (["a", "b"], ["a", "b"], ("a",), [0, 1, 0, 0]),  # seen
        (["z", "b"], ["z", "b"], (), [0, 1, 0, 0]),  # not in the catalog
        ([], ["a"], (), [0, 0, 0, 0]),  # unparsable
        (["d", "d", "d", "d", "a"], ["a"], (), [0, 0, 0, 0]),  # beyond the list
        (["a"], [], (), [0, 0, 0, 0]),
    ],
)
def test_relevance(recommended, truth, seen, expected):
    found = relevance(recommended, truth, 4, catalog={"a", "b", "c", "d"}, seen=seen)
    assert found.tolist() == expected


def test_relevance_does_not_change_its_arguments():
    truth = ["a", "a"]
    relevance(["a"], truth, 2, catalog=["a"])
    assert truth == ["a", "a"]
    with pytest.raises(ValueError, match="num_ranks = 0"):
        relevance(["a"], truth, 0, catalog=["a"])


# --- rewards and advantages ---


def reward_loops(relevant, kind, gamma):
    result = np.zeros(np.shape(relevant))
    for n, row in enumerate(relevant):
        for k in range(1, len(row) + 1):
            if kind == "exp_inf":
                result[n, k - 1] = row[k - 1]
            elif kind == "dcg":
                result[n, k - 1] = sum(row[j - 1] / math.log2(j + 1) for j in range(k, len(row) + 1))
            else:
                result[n, k - 1] = sum(row[j - 1] / gamma ** (j - k) for j in range(k, len(row) + 1))
    return result


@pytest.mark.parametrize("kind", RANK_REWARDS)
@pytest.mark.parametrize("gamma", [1.0, 2.5])
def test_rewards_equal_loops(kind, gamma):
    relevant = np.random.default_rng(0).integers(0, 2, (N, 20)).astype(float)
    with jax.enable_x64(True):
        found = rank_rewards(relevant, kind, gamma)
    np.testing.assert_allclose(found, reward_loops(relevant, kind, gamma), rtol=1e-12)
    assert rank_rewards(np.ones((1, 2), np.int32), kind, gamma).dtype == jnp.float32


def advantage_loops(rewards, rewarded, ddof, eps):
    result = np.zeros(rewards.shape)
    for b in range(rewards.shape[0]):
        rows = [g for g in range(rewards.shape[1]) if rewarded[b, g]]
        for k in range(rewards.shape[2]):
            values = [rewards[b, g, k] for g in rows]
            if len(values) < 2 or min(values) == max(values):
                continue
            mean = math.fsum(values) / len(values)
            std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - ddof))
            for g in rows:
                result[b, g, k] = (rewards[b, g, k] - mean) / (std + eps)
    return result


@given(
    rewards=hnp.arrays(np.float64, (B, G, K), elements=st.sampled_from([0.0, 0.1, 0.63, 1.0])),
    rewarded=hnp.arrays(np.bool_, (B, G)),
    ddof=st.sampled_from([0, 1]),
    eps=st.sampled_from([0.0, 1e-4]),
)
def test_advantages_equal_loops(rewards, rewarded, ddof, eps):
    dirty = np.where(rewarded[:, :, None], rewards, np.nan)  # a reward that is missing may be NaN
    with jax.enable_x64(True):
        found = rank_advantages(dirty, rewarded, ddof, eps)
    np.testing.assert_allclose(found, advantage_loops(rewards, rewarded, ddof, eps), rtol=1e-9, atol=1e-12)


def test_a_place_without_signal_is_exactly_zero():
    rewards = np.full((1, 7, 2), 0.1, np.float32)
    rewards[0, 0, 1] = 0.2
    found = np.asarray(rank_advantages(rewards))
    np.testing.assert_array_equal(found[:, :, 0], 0)
    assert (found[:, :, 1] != 0).all()


# --- tokens ---


@given(newlines=hnp.arrays(np.int32, (N, T), elements=st.integers(0, 2)), mask=hnp.arrays(np.bool_, (N, T)))
def test_segments_equal_loops(newlines, mask):
    found = np.asarray(item_segments(newlines, mask, num_ranks=K))
    for n in range(N):
        item = 0
        for t in range(T):
            assert found[n, t] == (min(item, K) if mask[n, t] else -1)
            item += newlines[n, t] * mask[n, t]


SEGMENTS = np.array(
    [
        [0, 0, 1, 1, 2, 2, 2, -1],  # K items, then EOS
        [0, 0, 1, 1, -1, -1, -1, -1],  # fewer
        [0, 1, 2, 3, 3, 3, 3, 3],  # more
        [0, 1, 2, 2, 2, 2, 2, 2],  # K items, cut off
    ]
)
EOS = np.zeros((N, T), bool)
EOS[0, 6] = EOS[1, 3] = EOS[2, 7] = True


def test_token_advantages():
    advantages = np.arange(1.0, 1 + N * K).reshape(N, K)
    found = np.asarray(token_advantages(advantages, SEGMENTS))
    for n, t in np.ndindex(N, T):
        assert found[n, t] == (advantages[n, SEGMENTS[n, t]] if 0 <= SEGMENTS[n, t] < K else 0)


def test_length_shaping_by_hand():
    advantages = np.where(SEGMENTS >= 0, 2.0, np.nan)
    found = np.asarray(length_shaping(advantages, SEGMENTS, EOS, K, exact=0.3, overflow=-0.2, early=-0.5))
    expected = [
        [2, 2, 2, 2, 2, 2, 0.3, 0],
        [2, 2, 2, -0.5, 0, 0, 0, 0],
        [2, 2, 2, 1.8, 1.8, 1.8, 1.8, -0.2],
        [2] * 8,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_length_shaping_golden(golden, precision):
    """The file states the rules in words: each is one row here."""
    inputs, outputs = case(golden, "10.rank.length_shaping")
    num_ranks = inputs["rec_num"]
    exact, overflow, early = inputs["shaping"]
    rules = {"exact_list_eos_bonus": exact, "overflow": overflow, "early_stop": early}
    for name, value in rules.items():
        assert outputs[name].startswith(f"{value:+}")
    segments = np.array([[0, 0, 1, 1], [0, 1, 2, 2], [0, 0, 0, -1]])
    eos = np.array([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], bool)
    advantages = np.array([[0.7], [0.5], [-0.4]]) * np.ones((1, 4)) * (segments < num_ranks)
    found = evaluate(lambda a, s, e: length_shaping(a, s, e, num_ranks), advantages, segments, eos, precision=precision)
    assert_close(found, [[0.7, 0.7, 0.7, exact], [0.5, 0.5, overflow, overflow], [-0.4, -0.4, early, 0]], precision)


# --- loss ---


def loss_loops(new, old, advantages, segments, mask, form, low, high):
    total, tokens = 0.0, 0
    rows, ranks = np.shape(advantages)
    for n in range(rows):
        for k in range(int(max(segments[n])) + 1):
            item = [t for t in range(len(segments[n])) if mask[n][t] and segments[n][t] == k]
            tokens += len(item)
            if not item or k >= ranks:
                continue
            ratio = math.exp(math.fsum(new[n][t] - old[n][t] for t in item) / len(item))
            value = -min(ratio * advantages[n][k], max(1 - low, min(1 + high, ratio)) * advantages[n][k])
            total += value * (len(item) if form == "release" else 1)
    return total / (tokens if form == "release" else rows * ranks)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_loss_and_gradient_equal_loops(form):
    rng = np.random.default_rng(3)
    new = -rng.exponential(1, (N, T))
    old, advantages = new + rng.normal(scale=0.2, size=(N, T)), rng.normal(size=(N, K))
    mask = SEGMENTS >= 0

    def loss(x):
        total, denominator, _ = rank_loss(x, old, advantages, SEGMENTS, mask, form=form)
        return total / denominator

    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(loss))(np.where(mask, new, np.nan))
    arguments = (old, advantages, SEGMENTS, mask, form, 0.06, 0.08)
    np.testing.assert_allclose(value, loss_loops(new, *arguments), rtol=1e-12)
    differences, step = np.zeros((N, T)), 1e-6
    for n, t in np.ndindex(N, T):
        shift = np.zeros((N, T))
        shift[n, t] = step
        differences[n, t] = (loss_loops(new + shift, *arguments) - loss_loops(new - shift, *arguments)) / (2 * step)
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-9)


def test_the_paper_divides_by_every_place_of_every_row():
    """Padding rows aside: a place without tokens adds 0 to the sum and 1 to the count."""
    mask = SEGMENTS >= 0
    weights = rank_token_weights(SEGMENTS, mask, K, valid=np.array([True, True, True, False]))
    per_item = np.asarray(weights) / mask[:3].sum() * (3 * K)
    for n in range(3):
        for k in range(K + 1):
            total = per_item[n][SEGMENTS[n] == k].sum()
            np.testing.assert_allclose(total, float(k < K and (SEGMENTS[n] == k).any()), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(weights)[3], 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rewards_golden(golden, precision):
    inputs, outputs = case(golden, "10.rank.reward")
    for kind, name in (("exp_inf", "exp_inf"), ("dcg", "dcg_k_to_N"), ("exp_gamma", "exp_gamma2")):
        found = evaluate(lambda r, kind=kind: rank_rewards(r, kind, 2.0), inputs["rel"], precision=precision)
        assert_close(found, outputs[name], precision)
    ones = evaluate(lambda r: rank_rewards(r, "dcg"), np.eye(2), precision=precision)
    assert_close(np.diag(ones), outputs["discount"], precision)
    for name, advantages in (("exp_inf", "adv_exp_inf"), ("dcg_k_to_N", "adv_dcg")):
        found = evaluate(rank_advantages, np.array([outputs[name]]), precision=precision)
        assert_close(found[0], outputs[advantages], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_loss_golden(golden, precision):
    inputs, outputs = case(golden, "10.rank.loss")
    low, high = inputs["eps"]

    def losses(log_ratio, advantages, segments):
        old = 0 * log_ratio - 3
        results = {}
        for form in ("release", "paper"):
            total, denominator, _ = rank_loss(
                old + log_ratio, old, advantages, segments, segments >= 0, form=form, clip_low=low, clip_high=high
            )
            results[form] = total / denominator
        return results

    found = evaluate(losses, inputs["log_ratio"], inputs["adv"], np.array(inputs["seg"]), precision=precision)
    assert_close(found["release"], outputs["loss_code_token_mean"], precision)
    assert_close(found["paper"], outputs["loss_paper_mean_over_GN"], precision)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_rewards(np.ones((1, 2)), "exp"), "rank reward = 'exp' is unknown; allowed: exp_inf, dcg"),
        (lambda: rank_rewards(np.ones((1, 2)), gamma=0.5), "gamma = 0.5"),
        (lambda: rank_rewards(np.ones(2)), r"relevance must have shape \(N, K\)"),
        (lambda: rank_advantages(np.ones((2, 3))), r"rank_rewards must have shape \(B, G, K\)"),
        (lambda: rank_advantages(np.ones((1, 2, 3)), ddof=2), "ddof = 2"),
        (lambda: rank_advantages(np.ones((1, 2, 3)), eps=-1.0), "eps = -1.0"),
        (lambda: rank_advantages(np.ones((1, 2, 3)), np.ones((1, 3))), r"rewarded must have shape \(1, 2\)"),
        (lambda: item_segments(np.ones((1, 2)), np.ones((1, 3)), 2), "must have one shape"),
        (lambda: item_segments(np.ones((1, 2)), np.ones((1, 2)), 0), "num_ranks = 0"),
        (
            lambda: rank_loss(*[np.zeros((1, 2))] * 3, np.zeros((1, 2), np.int32), np.ones((1, 2)), form="code"),
            "form = 'code' is unknown; allowed: paper, release",
        ),
    ],
)
def test_bad_calls_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
