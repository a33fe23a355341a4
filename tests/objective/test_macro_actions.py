"""Segments, macro rewards and macro surrogates: loops, closed forms, and block 6 of selection_vectors.txt."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective import losses, macro_actions
from salt_jax.objective.macro_actions import perplexity_segments
from salt_jax.objective.surrogates import SURROGATES, SurrogateOptions, TokenInputs
from tests.one_program import one_program

finalize, policy_loss = one_program(losses.finalize), one_program(losses.policy_loss)
fixed_segments, random_segments = one_program(macro_actions.fixed_segments), one_program(macro_actions.random_segments)
macro_discounted, macro_loss = one_program(macro_actions.macro_discounted), one_program(macro_actions.macro_loss)
macro_rewards = one_program(macro_actions.macro_rewards)
macro_token_weights = one_program(macro_actions.macro_token_weights)
segment_sum, to_tokens = one_program(macro_actions.segment_sum), one_program(macro_actions.to_tokens)

N, T = 4, 7
MASK = np.arange(T)[None] < np.array([[7], [4], [0], [1]])
SEGMENTS = np.where(MASK, np.array([[0, 0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 2, 3, 3], [0] * 7, [0] * 7]), -1)


# --- segments ---


def test_fixed_segments():
    found = np.asarray(fixed_segments(MASK, 3))
    np.testing.assert_array_equal(found[0], [0, 0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(found[1], [0, 0, 0, 1, -1, -1, -1])
    np.testing.assert_array_equal(found[2:], np.where(MASK[2:], 0, -1))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(fixed_segments(MASK[:1], 1), [np.arange(T)])
    np.testing.assert_array_equal(fixed_segments(MASK[:1], 100), np.zeros((1, T)))
    with pytest.raises(ValueError, match="macro_length = 0"):
        fixed_segments(MASK, 0)


def test_random_segments_have_the_given_lengths():
    mask = np.ones((200, 40), bool)
    mask[0, 7:] = False
    found = np.asarray(random_segments(jax.random.key(1), mask, lengths=(2, 3, 7)))
    np.testing.assert_array_equal(found[0, 7:], -1)
    counts = {2: 0, 3: 0, 7: 0}
    for row, here in zip(found, mask, strict=True):
        ids = row[here]
        np.testing.assert_array_equal(np.unique(ids), np.arange(ids.max() + 1))
        assert (np.diff(ids) >= 0).all()
        lengths = np.bincount(ids)
        for length in lengths[:-1]:  # the last one of a row may be cut
            counts[int(length)] += 1
        assert lengths[-1] <= 7
    # Long segments are cut more often at the end of a row, which cannot turn thirds into a fifth.
    assert all(0.2 * sum(counts.values()) < count for count in counts.values())
    for lengths in ((), (0, 2)):
        with pytest.raises(ValueError, match="lengths = .* is not allowed"):
            random_segments(jax.random.key(0), mask, lengths=lengths)


def test_random_segments_have_the_lengths_of_ma_rlhf_unless_told_otherwise():
    mask, key = np.ones((4, 40), bool), jax.random.key(1)
    expected = random_segments(key, mask, lengths=(1, 2, 3, 5, 10))
    np.testing.assert_array_equal(random_segments(key, mask), expected)


@given(log_probs=hnp.arrays(np.float32, (N, T), elements=st.integers(-4, 0)), mask=hnp.arrays(np.bool_, (N, T)))
def test_perplexity_segments_equal_loops(log_probs, mask):
    found = np.asarray(jax.jit(perplexity_segments)(np.where(mask, log_probs, np.nan), mask))
    for n in range(N):
        current, expected = 0, []
        for t in range(T):
            if t and mask[n, t] and mask[n, t - 1] and log_probs[n, t] < log_probs[n, t - 1]:
                current += 1
            expected.append(current if mask[n, t] else -1)
        np.testing.assert_array_equal(found[n], expected)


def test_sums_and_back():
    values = np.random.default_rng(0).normal(size=(N, T)).astype(np.float32)
    dirty = np.where(MASK, values, np.nan)
    sums = np.asarray(segment_sum(dirty, SEGMENTS, MASK))
    for n in range(N):
        for k in range(T):
            expected = sum(values[n, t] for t in range(T) if MASK[n, t] and SEGMENTS[n, t] == k)
            np.testing.assert_allclose(sums[n, k], expected, rtol=1e-6, atol=1e-6)
    back = np.asarray(to_tokens(sums, SEGMENTS, MASK))
    for n, t in np.ndindex(N, T):
        assert back[n, t] == (sums[n, SEGMENTS[n, t]] if MASK[n, t] else 0)


def test_ids_beyond_the_last_column_share_it():
    segments, everywhere = np.array([[0, 2, 4, 6]]), np.ones((1, 4), bool)
    sums = segment_sum(np.float32([[1.0, 2.0, 3.0, 4.0]]), segments, everywhere)
    np.testing.assert_array_equal(sums, [[1, 0, 2, 7]])
    np.testing.assert_array_equal(to_tokens(sums, segments, everywhere), [[1, 2, 7, 7]])


# --- rewards and advantages ---


@pytest.mark.parametrize("kind", ["sum", "mean", "unit", "position"])
def test_macro_rewards_equal_loops(kind):
    rewards = np.random.default_rng(0).normal(size=(N, T))
    with jax.enable_x64(True):
        found = macro_rewards(np.where(MASK, rewards, np.nan), SEGMENTS, MASK, kind)
    expected = np.zeros((N, T))
    for n in range(N):
        for k in range(T):
            inside = [rewards[n, t] for t in range(T) if MASK[n, t] and SEGMENTS[n, t] == k]
            if inside:
                places = 1 / np.arange(1, len(inside) + 1)
                weights = {
                    "sum": np.ones(len(inside)),
                    "mean": np.ones(len(inside)) / len(inside),
                    "unit": np.eye(len(inside))[-1],
                    "position": places / places.sum(),
                }[kind]
                expected[n, k] = np.dot(weights, inside)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_discount_per_segment():
    advantages = np.float32([1.0, -2.0, np.nan, 3.0])  # a missing reward in a row without tokens
    found = np.asarray(macro_discounted(advantages, SEGMENTS, MASK, 0.5))
    np.testing.assert_allclose(found[0], [0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(found[1], [-1, -2, -2, -2, 0, 0, 0])
    np.testing.assert_allclose(found[2:, 0], [0, 3])
    np.testing.assert_array_equal(found[~MASK], 0)
    same = macro_discounted(np.ones(N, np.float32), SEGMENTS, MASK, 1.0)
    np.testing.assert_array_equal(same, MASK)
    only_last = macro_discounted(np.ones(N, np.float32), SEGMENTS, MASK, 0.0)
    np.testing.assert_array_equal(np.asarray(only_last)[0], [0, 0, 0, 0, 0, 0, 1])


def test_bad_options_are_one_clear_line():
    zeros = np.zeros((N, T), np.float32)
    with pytest.raises(ValueError, match="kind = 'median' is unknown; allowed: sum, mean, unit, position"):
        macro_rewards(zeros, SEGMENTS, MASK, "median")
    with pytest.raises(ValueError, match="gamma = 1.5"):
        macro_discounted(np.ones(N, np.float32), SEGMENTS, MASK, 1.5)
    with pytest.raises(ValueError, match="by = 'row' is unknown; allowed: token, segment"):
        macro_loss(zeros, SEGMENTS, MASK, "row")


# --- losses ---


def make_batch():
    rng = np.random.default_rng(2)
    log_probs = -rng.exponential(1, (N, T))
    return log_probs, log_probs + rng.normal(scale=0.3, size=(N, T)), rng.normal(size=N), MASK


def test_the_token_weights_turn_the_token_mean_into_the_mean_over_segments():
    batch = make_batch()
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N, T))
    with jax.enable_x64(True):
        weights = macro_token_weights(SEGMENTS, MASK, jnp.float64)
        segments = SEGMENTS
        total, denominator = macro_loss(np.where(MASK, values, np.nan), segments, MASK, "segment")
        by_token = macro_loss(values, segments, MASK)
        weighted, tokens, metrics = policy_loss(
            *batch, surrogate="macro_sum", segments=SEGMENTS, token_weights=weights
        )
        plain = policy_loss(*batch, surrogate="macro_sum", segments=SEGMENTS)
        metrics = finalize(metrics)
    assert float(denominator) == sum(len(np.unique(SEGMENTS[n][MASK[n]])) for n in range(N))
    means = [
        values[n][MASK[n] & (SEGMENTS[n] == k)].mean() for n in range(N) for k in np.unique(SEGMENTS[n][MASK[n]])
    ]
    np.testing.assert_allclose(total, sum(means), rtol=1e-12)
    np.testing.assert_allclose(np.sum(np.asarray(weights) * values * MASK) / MASK.sum(), np.mean(means), rtol=1e-12)
    np.testing.assert_allclose(by_token, (values[MASK].sum(), MASK.sum()), rtol=1e-12)
    np.testing.assert_allclose(metrics["token_weight_mean"], 1, rtol=1e-12)
    assert float(tokens) == MASK.sum()
    assert abs(float(weighted) - float(plain[0])) > 1e-3


@pytest.mark.parametrize("name", ["macro_sum", "macro_mean"])
def test_one_token_a_segment_is_ppo(name):
    options = SurrogateOptions(macro_length=1)
    batch = make_batch()
    with jax.enable_x64(True):
        expected, expected_gradient = jax.jit(jax.value_and_grad(lambda x: policy_loss(x, *batch[1:])[0]))(batch[0])
        found, gradient = jax.jit(
            jax.value_and_grad(lambda x: policy_loss(x, *batch[1:], surrogate=name, options=options)[0])
        )(batch[0])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12)


def test_one_segment_a_row_is_gspo():
    batch = make_batch()
    with jax.enable_x64(True):
        found = policy_loss(*batch, surrogate="macro_mean", options=SurrogateOptions(macro_length=T))[0]
        expected = policy_loss(*batch, surrogate="gspo")[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_given_segments_go_before_fixed_ones():
    batch = make_batch()
    given_ = policy_loss(*batch, surrogate="macro_sum", segments=SEGMENTS, options=SurrogateOptions(macro_length=2))
    assert float(given_[0]) == float(policy_loss(*batch, surrogate="macro_sum", segments=SEGMENTS)[0])


# --- block 6 of selection_vectors.txt: n = 3 segments over 7 tokens ---


@pytest.fixture(scope="module")
def vectors(golden):
    block = re.search(r"== 6 MA.*?\n(.*?)\n\n", (golden / "selection_vectors.txt").read_text(), re.DOTALL).group(1)
    found = {}
    for line in block.splitlines():
        name, _, value = re.sub(r"^  (clipped tokens): ", r"  \1 = ", line).strip().rpartition(" = ")
        found[name] = np.array([float(x) for x in value.strip("[]").split(",")])
    assert len(found) == 12
    return found


LOG_RATIO = np.array([[0.3, -0.2, 0.05, 0.1, 0.0, -0.1, 0.02]])
ADVANTAGES = np.repeat(np.array([[0.5, -0.2, 1.0]]), [3, 3, 1], axis=1)


def test_vectors_of_the_losses(vectors):
    everywhere = np.ones((1, T), bool)
    with jax.enable_x64(True):
        segments = fixed_segments(everywhere, 3)
        weights = macro_token_weights(segments, everywhere, jnp.float64)

        def mean(**options):
            total, denominator, metrics = policy_loss(
                LOG_RATIO - 2, np.full((1, T), -2.0), ADVANTAGES, everywhere, **options
            )
            return -np.asarray(total) / denominator, finalize(metrics)

        objective, metrics = mean()
        official = vectors["A: official form, token ratio x macro advantage, token mean"]
        np.testing.assert_allclose(objective, official[0], rtol=1e-10)
        clipped = np.exp(LOG_RATIO) * np.sign(ADVANTAGES) > (1 + 0.2 * np.sign(ADVANTAGES)) * np.sign(ADVANTAGES)
        np.testing.assert_array_equal(np.flatnonzero(clipped), vectors["clipped tokens"])
        high, low = metrics["clip_fraction_high"], metrics["clip_fraction_low"]
        np.testing.assert_allclose(float(high) + float(low), len(vectors["clipped tokens"]) / T)
        for name, key in (("macro_sum", "B1 sum"), ("macro_mean", "B2 mean")):
            options = {"surrogate": name, "segments": segments}
            token, segment = mean(**options)[0], mean(**options, token_weights=weights)[0]
            np.testing.assert_allclose(token, vectors[f"{key} objective, token weighted"][0], rtol=1e-10)
            np.testing.assert_allclose(segment, vectors[f"{key} objective, mean over macro actions"][0], rtol=1e-10)


def test_vectors_of_the_ratios(vectors):
    keys = {"macro_sum": "B1 macro ratio exp(sum)", "macro_mean": "B2 macro ratio exp(mean) (GSPO-like)"}
    with jax.enable_x64(True):
        tokens = TokenInputs(LOG_RATIO, 0 * LOG_RATIO, ADVANTAGES, LOG_RATIO < 1)
        for name, key in keys.items():
            ratio = one_program(SURROGATES[name])(tokens, SurrogateOptions(macro_length=3)).ratio
            np.testing.assert_allclose(np.asarray(ratio)[0, ::3], vectors[key], rtol=1e-9)


def test_vectors_of_rewards_and_discounts(vectors):
    everywhere = np.ones((1, T), bool)
    with jax.enable_x64(True):
        segments = fixed_segments(everywhere, 3)
        discounted = np.asarray(macro_discounted(np.ones(1), segments, everywhere, 0.9))
        per_token = np.asarray(macro_discounted(np.ones(1), fixed_segments(everywhere, 1), everywhere, 0.9))
    np.testing.assert_allclose(discounted[0, ::3], vectors["critic-free macro discount A_k=g^(K-1-k)A, A=1"], rtol=1e-9)
    np.testing.assert_allclose(per_token[0], vectors["token discount g^(T-1-t)"], rtol=1e-9)
    # The rewards that the file was made with are not stated; these have its sums, and its means over each segment.
    sums, means = vectors["macro reward sum"], vectors["macro reward 'equal' mean (released code)"]
    rewards = np.array([[sums[0], 0, 0, sums[1], 0, 0, sums[2]]])
    with jax.enable_x64(True):
        found_sums = np.asarray(macro_rewards(rewards, segments, everywhere))[0, :3]
        found = np.asarray(macro_rewards(rewards, segments, everywhere, "mean"))[0, :3]
    np.testing.assert_allclose(found_sums, sums, rtol=1e-9)
    np.testing.assert_allclose(found, means, rtol=1e-9)
