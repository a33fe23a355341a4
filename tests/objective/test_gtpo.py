"""GTPO's conflicts, advantages and loss against loops, at their edges, and against the golden numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from salt_jax.objective.advantages import group_advantages
from salt_jax.objective.gtpo import (
    OVERLAPS,
    conflict_counts,
    conflict_runs,
    conflict_weights,
    gtpo_advantages,
    gtpo_loss,
)
from tests.objective.golden_methods import PRECISIONS, assert_close, case, evaluate
from tests.reference import advantages_family as reference

weights_of = jax.jit(conflict_weights, static_argnames=("group_size", "weight", "overlap"))
counts_of = jax.jit(conflict_counts, static_argnums=3)
runs_of = jax.jit(conflict_runs, static_argnames="group_size")
advantages_of = jax.jit(gtpo_advantages, static_argnames=("gamma", "threshold", "penalize_degenerate"))
THRESHOLD = 0.7  # of the released code, and of the golden numbers


def padded(rows, fill=0):
    """Rows of different lengths as (N, T), and their mask."""
    width = max(map(len, rows))
    values = np.array([[*row, *[fill] * (width - len(row))] for row in rows])
    return values, np.arange(width)[None, :] < np.array([len(row) for row in rows])[:, None]


def everything(inputs, precision, **options):
    """All numbers of a case whose rollouts are one group."""
    tokens, mask = padded(inputs["tokens"])

    def compute(rewards, entropy, tokens, mask):
        raw = group_advantages(rewards[None], estimator="dr_grpo")[0]
        prefix, suffix = conflict_runs(tokens, mask, raw, group_size=len(tokens))
        weights = conflict_weights(tokens, mask, raw, group_size=len(tokens))
        made = gtpo_advantages(rewards[None], entropy[None], **{"threshold": THRESHOLD, **options})[0]
        counts = {form: conflict_counts(prefix, suffix, mask, form) for form in ("paper", "release")}
        log_probs = jnp.full(mask.shape, -1.5, rewards.dtype)
        return {
            "raw_adv": raw,
            "fwd_run": prefix,
            "bwd_run": suffix,
            "n_conflict_union": counts["paper"],
            "n_conflict_code": counts["release"],
            "adv": made,
            "loss_paper": gtpo_loss(log_probs, made, weights, mask),
            "loss_code": gtpo_loss(
                log_probs, made, weights, mask, form="release", num_conflicts=counts["release"]
            ),
        }, weights

    rewards, entropy = np.float64(inputs["rewards"]), np.float64(inputs["mean_entropy"])
    numbers, weights = evaluate(compute, rewards, entropy, tokens, mask, precision=precision)
    return numbers, weights, mask


@pytest.mark.parametrize(
    "name",
    ["3.gtpo.main", "3.gtpo.prefix_and_suffix_overlap", "3.gtpo.prefix2_suffix1", "3.gtpo.zero_std_group"],
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden(golden, name, precision):
    inputs, expected = case(golden, name)
    once = expected.get("alternative_no_squaring")
    expected = expected.get("official_code", expected)
    numbers, weights, mask = everything(inputs, precision)
    assert {*numbers, "lam"} == expected.keys()
    for key, value in numbers.items():
        assert_close(value, expected[key], precision)
    for row, kept, numbers_of_row in zip(weights, mask, expected["lam"], strict=True):
        assert_close(row[kept], numbers_of_row, precision)
    if once is not None:
        tokens, mask = padded(inputs["tokens"])
        alternative = weights_of(tokens, mask, np.float32(expected["raw_adv"]), group_size=2, overlap="once")
        np.testing.assert_array_equal(alternative, once)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_without_filter(golden, precision):
    inputs, expected = case(golden, "3.gtpo.no_filter(initial entropy > ln2)")
    assert inputs == "as 3.gtpo.main"
    inputs, _ = case(golden, "3.gtpo.main")
    numbers, _, _ = everything(inputs, precision, threshold=math.inf)
    for key in expected:
        assert_close(numbers[key], expected[key], precision)


@given(
    tokens=hnp.arrays(np.int32, (6, 5), elements=st.integers(0, 1)),
    lengths=hnp.arrays(np.int32, 6, elements=st.integers(0, 5)),
    signs=hnp.arrays(np.int32, 6, elements=st.integers(-1, 1)),
    overlap=st.sampled_from(OVERLAPS),
)
def test_conflicts_equal_loops(tokens, lengths, signs, overlap):
    rows = [list(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
    mask = np.arange(5)[None, :] < lengths[:, None]
    prefix, suffix = runs_of(tokens, mask, signs, group_size=3)
    expected = reference.conflict_runs(rows, signs, 3)
    assert (prefix.tolist(), suffix.tolist()) == expected
    weights = np.asarray(weights_of(tokens, mask, signs, group_size=3, weight=3.0, overlap=overlap))
    np.testing.assert_array_equal(weights[~mask], 0)
    for row, kept, loop in zip(
        weights, mask, reference.conflict_weights(rows, signs, 3, 3.0, overlap), strict=True
    ):
        np.testing.assert_array_equal(row[kept], loop)
    union = [sum(weight != 1 for weight in row) for row in reference.conflict_weights(rows, signs, 3, 3.0)]
    assert counts_of(prefix, suffix, mask).tolist() == union
    longest = np.maximum(*expected).tolist()
    assert counts_of(prefix, suffix, mask, "release").tolist() == longest


def test_where_the_unmasked_tokens_stand_does_not_matter():
    tokens, mask = padded([[5, 6, 7, 9], [5, 6, 8, 9], [5, 3]])
    advantages = np.float32([1.0, -1.0, 1.0])
    expected = np.asarray(weights_of(tokens, mask, advantages, group_size=3))
    gaps = np.array([0, 2, 3, 6])
    spread_tokens, spread_mask = np.full((3, 8), 5), np.zeros((3, 8), bool)
    spread_tokens[:, gaps], spread_mask[:, gaps] = tokens, mask
    result = weights_of(spread_tokens, spread_mask, advantages, group_size=3)
    np.testing.assert_array_equal(np.asarray(result)[:, gaps], expected)
    order = np.array([2, 0, 1])
    result = weights_of(tokens[order], mask[order], advantages[order], group_size=3)
    np.testing.assert_array_equal(result, expected[order])


def test_groups_do_not_see_each_other():
    tokens = np.full((4, 2), 5)
    weights = weights_of(tokens, tokens > 0, np.float32([1.0, 1.0, -1.0, -1.0]), group_size=2)
    np.testing.assert_array_equal(weights, np.ones((4, 2)))


def test_no_array_grows_with_the_square_of_the_batch():
    """Comparisons stay within groups: B·G²·T elements, never (N, N, T)."""
    n, t, group_size = 64, 32, 4
    shapes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            shapes.extend(math.prod(v.aval.shape) for v in equation.outvars)
            for parameter in equation.params.values():
                if hasattr(parameter, "jaxpr"):
                    visit(parameter.jaxpr)

    traced = jax.make_jaxpr(lambda x, m, a: conflict_weights(x, m, a, group_size=group_size))
    visit(traced(jnp.zeros((n, t), jnp.int32), jnp.ones((n, t), bool), jnp.ones(n)).jaxpr)
    assert max(shapes) == n * group_size * t


@given(
    rewards=hnp.arrays(np.float32, (2, 3), elements=st.sampled_from([0.0, 0.5, 1.0])),
    entropy=hnp.arrays(np.float32, (2, 3), elements=st.floats(0, 1, width=32)),
    rewarded=hnp.arrays(np.bool_, (2, 3)),
    threshold=st.sampled_from([0.5, math.inf]),
    penalize=st.booleans(),
)
def test_advantages_equal_loops(rewards, entropy, rewarded, threshold, penalize):
    raw = reference.group_advantages(rewards, estimator="dr_grpo", rewarded=rewarded)
    expected = np.zeros((2, 3))
    for b in range(2):
        for g in range(3):
            if rewarded[b, g] and entropy[b, g] <= threshold and (penalize or any(raw[b])):
                expected[b, g] = raw[b, g] - 0.25 * entropy[b, g]
    result = advantages_of(
        np.where(rewarded, rewards, np.nan), np.where(rewarded, entropy, np.nan), rewarded=rewarded, gamma=0.25,
        threshold=threshold, penalize_degenerate=penalize,
    )  # fmt: skip
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(result)[~rewarded], 0)


def test_everything_filtered():
    made = np.asarray(advantages_of(np.float32([[1.0, 0.0]]), np.float32([[2.0, 3.0]])))
    np.testing.assert_array_equal(made, [[0, 0]])
    mask = np.zeros((2, 3), bool)
    nan = np.full((2, 3), np.nan, np.float32)
    for options in ({}, {"form": "release", "num_conflicts": np.zeros(2, np.float32)}):
        loss = lambda x, o=options: gtpo_loss(x, made[0], nan, mask, **o)
        value, gradient = jax.jit(jax.value_and_grad(loss))(nan)
        assert value == 0
        np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


@pytest.mark.parametrize("form", ["paper", "release"])
def test_loss_equals_loops_and_its_gradient_is_that_of_log_p(form):
    rng = np.random.default_rng(0)
    lengths = np.array([3, 0, 4, 1])
    mask = np.arange(4)[None, :] < lengths[:, None]
    log_probs, weights = rng.normal(size=(4, 4)), rng.random((4, 4))
    advantages, counts = rng.normal(size=4), np.array([2, 0, 0, 1]) if form == "release" else None
    rows = [list(row[:length]) for row, length in zip(weights, lengths, strict=True)]
    with jax.enable_x64(True):
        garbage = np.where(mask, log_probs, np.nan)

        @jax.jit
        def compute(x, weights):
            return gtpo_loss(x, advantages, weights, mask, form=form, num_conflicts=counts)

        value, (gradient, by_weights) = jax.jit(jax.value_and_grad(compute, (0, 1)))(garbage, weights)
        np.testing.assert_allclose(value, reference.gtpo_loss(advantages, rows, counts), rtol=1e-12)
        # The ratio is 1 whatever log p is, so finite differences would see 0: the loss is linear in the weights,
        # and each token's gradient is its term of the sum.
        terms = np.asarray(by_weights) * weights
        np.testing.assert_allclose(gradient, terms, rtol=1e-12, atol=1e-15)
        np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0)
        check_grads(lambda w: compute(garbage, w), (weights,), order=1, modes=["rev"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m, a: conflict_runs(x, m, a, group_size=2), "group_size = 2"),
        (lambda x, m, a: conflict_runs(x, m[:, :1], a, group_size=3), "mask must have the shape"),
        (lambda x, m, a: conflict_runs(x, m, a[:2], group_size=3), "advantages must have shape"),
        (lambda x, m, a: conflict_weights(x, m, a, group_size=3, overlap="add"), "overlap = 'add'.*multiply, once"),
        (lambda x, m, a: conflict_weights(x, m, a, group_size=3, weight=-1.0), "weight = -1.0"),
        (lambda x, m, a: conflict_counts(a, a, m, "code"), "form = 'code' is unknown; allowed: paper, release"),
        (lambda x, m, a: gtpo_advantages(a[None], a), "mean_entropy must have the shape"),
        (lambda x, m, a: gtpo_advantages(a[None], a[None], gamma=math.inf), "gamma = inf"),
        (lambda x, m, a: gtpo_advantages(a[None], a[None], threshold=0.0), "threshold = 0.0"),
        (lambda x, m, a: gtpo_loss(x, a, x, m, form="release"), "num_conflicts must be given"),
        (lambda x, m, a: gtpo_loss(x, a, x, m, num_conflicts=a), "num_conflicts must be given"),
        (lambda x, m, a: gtpo_loss(x, a, x, m[:, :1]), "must have the shape"),
        (lambda x, m, a: gtpo_loss(x, a[:2], x, m), "advantages must have shape"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    x = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match=message) as error:
        call(x, x > 0, np.ones(3, np.float32))
    assert "\n" not in str(error.value)
