"""Filters against exhaustive search and loops, at their edges, and against the golden numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from salt_jax.objective.advantages import group_advantages
from salt_jax.objective.filters import (
    d3s_rollouts,
    d3s_schedule,
    d3s_tokens,
    informative_groups,
    max_variance,
    not_truncated,
    pods,
    positive_only,
    red_drop,
    whole_part,
)
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.reference import advantages_family as reference

drop = jax.jit(red_drop)
informative = jax.jit(informative_groups, static_argnames="keep_singletons")
tokens_of = jax.jit(d3s_tokens, static_argnames="scope")
choose = jax.jit(lambda values, keep, counted: max_variance(values, keep, counted=counted))

# --- golden numbers ---


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_dynamic_sampling(golden, precision):
    inputs, expected = case(golden, "1.dapo.dynamic_sampling")
    result = evaluate(informative_groups, np.float64(inputs["groups"]), precision=precision)
    assert result.tolist() == expected["keep"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_d3s_sample(golden, precision):
    inputs, expected = case(golden, "4.d3s.sample")
    kept = evaluate(max_variance, [inputs["adv"]], inputs["N"], precision=precision)[0]
    assert np.flatnonzero(kept).tolist() == expected["selected"]
    assert_close(np.var(np.array(inputs["adv"], precision)[kept]), expected["pop_var"], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_d3s_intra_then_cross(golden, precision):
    inputs, expected = case(golden, "4.d3s.intra_then_cross")
    groups = np.array(inputs["adv_groups"])
    intra = evaluate(max_variance, groups, inputs["N_s"], precision=precision)
    assert [np.flatnonzero(row).tolist() for row in intra] == expected["intra"]
    kept = evaluate(d3s_rollouts, groups, inputs["N_s"], inputs["N_batch"], precision=precision)
    assert np.argwhere(kept).tolist() == sorted(expected["cross"])
    assert_close(np.var(groups.astype(precision)[kept]), expected["pop_var"], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scope", ["batch", "rollout"])
def test_golden_d3s_token(golden, precision, scope):
    inputs, expected = case(golden, "4.d3s.token")
    advantages, entropy = np.array([inputs["abs_adv"]]), np.array([inputs["entropy"]])
    np.testing.assert_allclose(advantages[0] * entropy[0], expected["key"])
    kept = evaluate(
        lambda a, h, k: d3s_tokens(a, h, h > 0, k, scope=scope), advantages, entropy, inputs["K"], precision=precision
    )
    assert np.flatnonzero(kept[0]).tolist() == expected["keep"]
    assert kept.sum() == expected["n_keep"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_d3s_schedule(golden, precision):
    inputs, expected = case(golden, "4.d3s.schedule")
    for span, name in (("N", "N_s"), ("K", "K")):
        result = evaluate(lambda p, s=span: d3s_schedule(p, *inputs[s]), inputs["p"], precision=precision)
        assert_close(result, expected[name], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_red_drop(golden, precision):
    inputs, expected = case(golden, "9.red_drop")
    rewards = np.array([inputs["rewards"]])
    drawn = evaluate(lambda r: red_drop(r, jax.random.key(3)), rewards, precision=precision)
    assert (rewards[drawn] >= rewards.mean()).sum() == expected["n_pos"]
    assert (~drawn).sum() == expected["n_drop"]
    # Which negatives go is chance: the numbers are those of one draw.
    kept = ~np.isin(np.arange(5), inputs["dropped"])[None]
    result = evaluate(
        lambda r, k: group_advantages(r, estimator="dr_grpo", rewarded=k), rewards, kept, precision=precision
    )
    assert_close(result[0], expected["adv"], precision)


# --- variance ---


@given(
    values=hnp.arrays(np.float32, (2, 7), elements=st.integers(-6, 6).map(lambda i: i / 4)),
    counted=hnp.arrays(np.bool_, (2, 7)),
    keep=st.integers(-1, 8),
)
def test_no_subset_has_a_larger_variance(values, counted, keep):
    kept = np.asarray(choose(np.where(counted, values, np.nan).astype(np.float32), keep, counted))
    assert not (kept & ~counted).any()
    for row, mask, of in zip(values, kept, counted, strict=True):
        size = max(0, min(keep, int(of.sum())))
        assert mask.sum() == size
        if size:
            best = reference.largest_variance(row[of].astype(np.float64), size)
            np.testing.assert_allclose(np.var(row[mask].astype(np.float64)), best, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_equal_values_keep_the_first(value):
    result = choose(jnp.full((1, 6), value), 4, jnp.array([[True, False, True, True, True, True]]))
    assert result.astype(int).tolist() == [[1, 0, 1, 1, 1, 0]]


def test_equal_variances_go_to_the_larger_share_of_large_values():
    """{2, 1, −2} and {2, −1, −2} are as varied; one unit more of offset must not decide."""
    for offset in (0.0, 0.1, 100.0):
        result = choose(jnp.array([[2.0, 1.0, -1.0, -2.0]]) + offset, 3, jnp.ones((1, 4), bool))
        assert result.astype(int).tolist() == [[1, 1, 0, 1]]


def test_a_size_for_every_row():
    kept = choose(jnp.array([[3.0, 1, 2, 0], [3, 1, 2, 0]]), jnp.array([1, 2]), jnp.ones((2, 4), bool))
    assert kept.astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize("keep", [2, 100, 1999])
def test_large_pools(keep):
    """Against all splits in float64, where the sums over the pool dwarf those over the kept."""
    values = np.random.default_rng(0).standard_cauchy((1, 2000)).astype(np.float32)
    kept = choose(values, keep, np.ones((1, 2000), bool))[0]
    ordered = np.sort(values[0].astype(np.float64))
    best = max(np.var(np.concatenate([ordered[:low], ordered[2000 - keep + low :]])) for low in range(keep + 1))
    np.testing.assert_allclose(np.var(values[0, kept].astype(np.float64)), best, rtol=1e-5)


def test_pods_keeps_the_most_varied_rewards():
    rewards = jnp.array([[1.0, 0, 0, jnp.nan, 1, 1], [1, 1, 1, 1, 1, 1]])
    kept = jax.jit(lambda r, k, w: pods(r, k, rewarded=w))(rewards, 2, jnp.isfinite(rewards))
    assert kept.astype(int).tolist() == [[1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_permuting_distinct_values_permutes_the_choice():
    values, order = np.random.default_rng(1).normal(size=(1, 9)).astype(np.float32), np.arange(9)[::-1]
    everything = np.ones((1, 9), bool)
    np.testing.assert_array_equal(choose(values[:, order], 4, everything), choose(values, 4, everything)[:, order])


# --- groups and rollouts ---


@given(
    rewards=hnp.arrays(np.float32, (3, 3), elements=st.sampled_from([0.0, 0.1, 1.0])),
    rewarded=hnp.arrays(np.bool_, (3, 3)),
    singles=st.booleans(),
)
def test_informative_groups_equal_loops(rewards, rewarded, singles):
    result = np.asarray(informative(np.where(rewarded, rewards, np.nan), rewarded=rewarded, keep_singletons=singles))
    for row, known, kept in zip(rewards, rewarded, result, strict=True):
        values = row[known]
        expected = singles if len(values) == 1 else len(values) > 1 and values.max() > values.min()
        assert bool(kept) is bool(expected)


@given(
    rewards=hnp.arrays(np.float32, (3, 6), elements=st.sampled_from([0.0, 0.1, 1.0])),
    rewarded=hnp.arrays(np.bool_, (3, 6)),
    seed=st.integers(0, 100),
)
def test_red_drop_balances(rewards, rewarded, seed):
    kept = np.asarray(drop(np.where(rewarded, rewards, np.nan), jax.random.key(seed), rewarded=rewarded))
    assert not (kept & ~rewarded).any()
    for row, known, mask in zip(rewards, rewarded, kept, strict=True):
        if not known.any():
            continue
        values = row[known].astype(np.float64)
        positive = known & (row.astype(np.float64) >= values.mean() - 1e-7)
        negative = known & ~positive
        assert (mask & positive).sum() == positive.sum()
        assert (mask & negative).sum() == min(negative.sum(), positive.sum())


def test_red_drop_drops_every_negative_as_often():
    rewards = jnp.array([[1.0, 0, 0, 0]])
    draw = jax.jit(jax.vmap(lambda key: red_drop(rewards, key)[0]))
    often = np.mean(draw(jax.random.split(jax.random.key(0), 3000)), axis=0)
    assert often[0] == 1
    np.testing.assert_allclose(often[1:], 1 / 3, atol=5 * np.sqrt(2 / 9 / 3000))


def test_red_drop_keeps_ten_equal_rewards():
    """In float32 the mean of ten 0.1 is above 0.1."""
    rewards = jnp.full((1, 10), 0.1)
    assert drop(rewards, jax.random.key(0)).all()


def test_the_plain_ones_and_that_they_may_keep_nothing():
    assert positive_only(jnp.array([1.0, 0.0, -1.0, jnp.nan])).tolist() == [True, False, False, False]
    assert not_truncated(jnp.array([1, 0])).tolist() == [False, True]
    nothing = jnp.zeros((2, 3), bool)
    values, key = jnp.full((2, 3), jnp.nan), jax.random.key(0)
    for keep_nothing in (
        lambda x, none: max_variance(x, 2, counted=none),
        lambda x, none: pods(x, 2, rewarded=none),
        lambda x, none: d3s_rollouts(x, 2, 3, counted=none),
        lambda x, none: d3s_tokens(x, x, none, 0.5),
        lambda x, none: d3s_tokens(x, x, none, 0.5, scope="rollout"),
        lambda x, none: red_drop(x, key, rewarded=none),
        lambda x, none: informative_groups(x, rewarded=none),
    ):
        assert not jax.jit(keep_nothing)(values, nothing).any()


# --- tokens ---


@given(
    keys=hnp.arrays(np.float32, (2, 3, 4), elements=st.integers(0, 4).map(float)),
    mask=hnp.arrays(np.bool_, (3, 4)),
    fraction=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    scope=st.sampled_from(["batch", "rollout"]),
)
def test_tokens_equal_loops(keys, mask, fraction, scope):
    advantages, entropy = np.where(mask, keys, np.nan)
    kept = np.asarray(tokens_of(advantages, entropy, mask, fraction, scope=scope))
    expected = np.zeros((3, 4), bool)
    places = list(itertools.product(range(3), range(4)))
    for part in [places] if scope == "batch" else [places[4 * n : 4 * n + 4] for n in range(3)]:
        there = sorted((p for p in part if mask[p]), key=lambda p: -float(advantages[p] * entropy[p]))
        for place in there[: max(1, int(round(fraction * 10) * len(there) // 10))]:
            expected[place] = True
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_share_of_whole_tokens_is_whole(fraction):
    x = jnp.ones((10, 10))
    assert jax.jit(lambda k: d3s_tokens(x, x, x > 0, k))(fraction).sum() == round(100 * fraction)


def test_schedule_ends_and_beyond():
    assert [float(d3s_schedule(p, 4, 8)) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [4, 4, 6, 8, 8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: max_variance(x[0], 1), r"values must have shape \(B, G\)"),
        (lambda x: max_variance(x, 1, counted=x[0]), "counted must have the shape of values"),
        (lambda x: max_variance(x, jnp.ones(3, int)), "keep must be a scalar or have shape"),
        (lambda x: max_variance(x, 1.5), "keep must be an integer, got float32"),
        (lambda x: pods(x, 1, rewarded=x[:1]), "counted must have the shape"),
        (lambda x: informative_groups(x[0]), r"rewards must have shape \(B, G\)"),
        (lambda x: red_drop(x, jax.random.key(0), rewarded=x[0]), "rewarded must have the shape of rewards"),
        (lambda x: d3s_tokens(x, x, x, 0.5, scope="row"), "scope = 'row' is unknown; allowed: batch, rollout"),
        (lambda x: d3s_tokens(x, x[:1], x, 0.5), "must have the shape"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(jnp.ones((2, 2)))
    assert "\n" not in str(error.value)


# --- rounding ---


def test_a_schedule_that_does_not_move_is_constant_and_ends_where_it_says():
    for kept in (5, 7):
        steps = jnp.arange(1200) / 1199
        np.testing.assert_array_equal(whole_part(d3s_schedule(steps, kept, kept)), kept)
    assert whole_part(d3s_schedule(jnp.array([0.0, 1.0]), 4, 8)).tolist() == [4, 8]


def test_a_share_of_a_count_is_not_lost_to_rounding():
    for tenths, rollouts, groups in itertools.product(range(1, 11), range(1, 9), (3, 7, 10, 30)):
        share = whole_part(jnp.float32(tenths / 10) * rollouts * groups)
        assert int(share) == tenths * rollouts * groups // 10
