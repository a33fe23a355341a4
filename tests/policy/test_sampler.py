"""The sampler: what it draws, what it says about it, when it stops, and how often it looks at a prompt."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given
from hypothesis import strategies as st

from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.logprobs import completion_scores
from salt_jax.policy.sampler import SamplingConfig, choose, filter_logits, inverse_cdf, sample
from salt_jax.policy.transformer import Decoder
from salt_jax.rollout import RolloutBatch
from tests.reference import transformer as reference
from tests.reference.jaxpr import shapes
from tests.training_setup import call, compiled, compiled_as_users_do, merged, policy_and_params, same_bits

CONFIG = TransformerConfig(
    vocab_size=11, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=2, mlp_dim=12
)
B, G, P, T = 2, 3, 5, 7
LENGTHS = (5, 3)  # real prompt tokens
STOPS, PAD = (2, 5), 0


@functools.cache
def prompts_and_mask(seed=0):
    mask = np.arange(P)[None] >= P - np.array(LENGTHS)[:, None]
    return jnp.where(mask, jax.random.randint(jax.random.key(seed), (B, P), 0, 11), 9), jnp.asarray(mask)


@functools.cache
def jitted(config, sampling, group_size=G, stop_ids=STOPS, pad_id=PAD):
    policy, _ = policy_and_params(config)
    return compiled(
        lambda params, prompts, mask, key: sample(
            nnx.merge(policy, params), prompts, mask, key,
            group_size=group_size, config=sampling, stop_ids=stop_ids, pad_id=pad_id,
        )
    )  # fmt: skip


def draw(sampling, *, config=CONFIG, key=0, **options):
    """Numpy Samples of the fixed prompts."""
    arguments = (policy_and_params(config)[1], *prompts_and_mask(), jax.random.key(key))
    return jax.tree.map(np.asarray, jitted(config, sampling, **options)(*arguments))


def as_rollouts(samples, group_size=G):
    prompts, mask = prompts_and_mask()
    n = B * group_size
    return RolloutBatch(
        tokens=np.concatenate([np.repeat(prompts, group_size, axis=0), samples.tokens], axis=1),
        prompt_mask=np.repeat(mask, group_size, axis=0), completion_mask=samples.mask,
        sampler_log_probs=samples.log_probs, rewards=np.zeros(n, np.float32), rewarded=np.ones(n, bool),
        valid=np.ones(n, bool), truncated=samples.truncated,
    )  # fmt: skip


def real_prompt(row):
    prompts, _ = prompts_and_mask()
    return np.asarray(prompts)[row // G, P - LENGTHS[row // G] :]


def reference_logits(samples, row, config=CONFIG):
    """(length, V) float64 logits that each sampled token of a row was drawn from, before the temperature."""
    params = policy_and_params(config)[1]
    completion = samples.tokens[row, : samples.lengths[row]]
    hidden = reference.completion_hidden(params, config, real_prompt(row), completion)
    return hidden @ reference.head(params, config)


def log_softmax(z):
    return z - (max(z) + math.log(sum(math.exp(x - max(z)) for x in z)))


@pytest.mark.parametrize(("scan", "temperature"), [(True, 0.7), (True, 1.0), (False, 1.3)])
def test_log_probs_are_those_of_the_trainer_and_of_loops(temperature, scan):
    config = dataclasses.replace(CONFIG, scan_layers=scan)
    samples = draw(SamplingConfig(T, temperature), config=config)
    scores = call(
        lambda rollouts: completion_scores(merged(config), rollouts, group_size=G, temperature=temperature),
        as_rollouts(samples),
    )
    gap = np.abs(np.asarray(scores.log_probs) - samples.log_probs)[samples.mask]
    assert gap.size >= B * G
    assert gap.max() <= 1e-4
    for row in (0, B * G - 1):
        for t, z in enumerate(reference_logits(samples, row, config)):
            expected = log_softmax(z / temperature)[samples.tokens[row, t]]
            np.testing.assert_allclose(samples.log_probs[row, t], expected, atol=1e-4)


def test_as_users_compile_it_the_same_tokens_are_drawn():
    policy, params = policy_and_params(CONFIG)
    sampling = SamplingConfig(T)
    run = compiled_as_users_do(
        lambda params, prompts, mask, key: sample(
            nnx.merge(policy, params), prompts, mask, key, group_size=G, config=sampling, stop_ids=STOPS, pad_id=PAD
        )
    )
    samples, expected = run(params, *prompts_and_mask(), jax.random.key(0)), draw(sampling)
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_allclose(samples.log_probs, expected.log_probs, atol=1e-5)


def check_ends(samples, stop_ids, pad_id, length):
    for row in range(len(samples.tokens)):
        stops = [t for t in range(length) if samples.tokens[row, t] in stop_ids and t < samples.lengths[row]]
        assert stops in ([], [samples.lengths[row] - 1])  # at most one, the last
        assert bool(samples.truncated[row]) == (not stops)
        if not stops:
            assert samples.lengths[row] == length
        after = slice(samples.lengths[row], None)
        assert (samples.tokens[row, after] == pad_id).all()
        assert (samples.log_probs[row, after] == 0).all()
        assert (samples.log_probs[row, : samples.lengths[row]] < 0).all()
        assert samples.mask[row].tolist() == [t < samples.lengths[row] for t in range(length)]


def test_stops_at_any_stop_id_and_says_so():
    seen = []
    for key in range(8):
        samples = draw(SamplingConfig(T), key=key)
        check_ends(samples, STOPS, PAD, T)
        last = samples.tokens[np.arange(B * G), samples.lengths - 1]
        seen += [(int(token), bool(cut)) for token, cut in zip(last, samples.truncated, strict=True)]
    assert {token for token, cut in seen if not cut} == set(STOPS)
    assert any(cut for _, cut in seen)


def test_masks_do_not_depend_on_the_pad_id():
    for pad in (STOPS[0], 7):  # the pad id is a stop, or a token that is also sampled
        samples = draw(SamplingConfig(T), pad_id=pad)
        check_ends(samples, STOPS, pad, T)
        reference_samples = draw(SamplingConfig(T))
        assert np.array_equal(samples.lengths, reference_samples.lengths)
        assert np.array_equal(samples.log_probs, reference_samples.log_probs)


def test_the_key_decides():
    sampling = SamplingConfig(T)
    assert same_bits(draw(sampling, key=3), draw(sampling, key=3))
    assert not np.array_equal(draw(sampling, key=3).tokens, draw(sampling, key=4).tokens)


def test_rollouts_of_a_group_differ():
    for key in range(8):  # of three short rollouts two may agree, all three at eight keys do not
        groups = draw(SamplingConfig(T), key=key).tokens.reshape(B, G, T).tolist()
        assert all(len({tuple(row) for row in group}) > 1 for group in groups)


def test_every_token_has_a_number_of_its_own():
    """Where all tokens are equally likely, a token tells the number that drew it: two are equal 1 time in 11."""
    params = jax.tree.map(jnp.zeros_like, policy_and_params(CONFIG)[1])
    many = [jitted(CONFIG, SamplingConfig(T))(params, *prompts_and_mask(), jax.random.key(key)) for key in range(16)]
    first, second, goes_on = (
        np.reshape([np.asarray(x) for x in column], (16, B, G))
        for column in zip(*((s.tokens[:, 0], s.tokens[:, 1], s.lengths > 1) for s in many), strict=True)
    )
    assert np.mean((first == second)[goes_on]) < 0.25
    assert np.mean(first[:, 0] == first[:, 1]) < 0.25  # of two prompts
    assert np.mean(first[:, :, 0] == first[:, :, 1]) < 0.25  # of two rollouts of one prompt


def test_rows_that_only_pad_the_batch_change_nothing():
    policy, params = policy_and_params(CONFIG)
    prompts, mask = prompts_and_mask()
    empty = mask.at[1].set(False)
    step = jitted(CONFIG, SamplingConfig(T))
    key = jax.random.key(0)
    normal = step(params, prompts, mask, key)
    for filler in (0, 6):
        padded = jax.tree.map(np.asarray, step(params, prompts.at[1].set(filler), empty, key))
        assert np.array_equal(padded.tokens[:G], normal.tokens[:G])
        assert np.isfinite(padded.log_probs).all()


def test_greedy_is_the_argmax_of_the_plain_forward():
    samples = draw(SamplingConfig(T, temperature=0.0))
    assert (samples.log_probs == 0).all()
    for row in range(B * G):
        logits = reference_logits(samples, row)
        ordered = np.sort(logits, axis=1)
        assert (ordered[:, -1] - ordered[:, -2]).min() > 1e-4  # no tie that rounding could decide
        assert samples.tokens[row, : samples.lengths[row]].tolist() == logits.argmax(axis=1).tolist()
    by_group = samples.tokens.reshape(B, G, T)
    assert (by_group == by_group[:, :1]).all()


@pytest.mark.parametrize(
    "sampling", [SamplingConfig(T, 1.3, top_k=3), SamplingConfig(T, 0.7, top_p=0.6), SamplingConfig(T, 1.3, 4, 0.8)]
)
def test_log_probs_under_a_filter_are_the_filtered_distributions(sampling):
    samples = draw(sampling, stop_ids=(2,))
    for row in range(B * G):
        for t, z in enumerate(reference_logits(samples, row)):
            kept = filter_loop(z / sampling.temperature, sampling.top_k, sampling.top_p)
            token = int(samples.tokens[row, t])
            assert token in kept
            values = [float(z[v]) / sampling.temperature for v in kept]
            expected = log_softmax(np.array(values))[kept.index(token)]
            np.testing.assert_allclose(samples.log_probs[row, t], expected, atol=1e-4)


def test_one_new_token_is_drawn_from_the_policy():
    group = 6000
    samples = draw(SamplingConfig(1, 1.3), group_size=group)
    assert samples.tokens.shape == (B * group, 1)
    assert (samples.lengths == 1).all()
    assert np.array_equal(samples.truncated, ~np.isin(samples.tokens[:, 0], STOPS))
    for b in range(B):
        tokens = samples.tokens[b * group : (b + 1) * group, 0]
        z = reference.logits(policy_and_params(CONFIG)[1], CONFIG, real_prompt(b * G))[-1]
        p = np.exp(log_softmax(z / 1.3))
        counts = np.bincount(tokens, minlength=11)
        assert (np.abs(counts - group * p) <= 5 * np.sqrt(group * p * (1 - p))).all()


class Watched:
    """Decode steps that ran, and shapes of the prompts that were prefilled."""

    def __init__(self):
        self.steps, self.prompt_shapes = [], []


@pytest.fixture
def watched(monkeypatch):
    """Every Decoder reports its decode steps when they run, and its prefills when they are traced."""
    seen, prefill, decode = Watched(), Decoder.prefill, Decoder.decode

    def watched_prefill(self, prompts, mask):
        seen.prompt_shapes.append(prompts.shape)
        return prefill(self, prompts, mask)

    def watched_decode(self, tokens, step, *rest):
        jax.debug.callback(lambda step: seen.steps.append(int(step)), step)
        return decode(self, tokens, step, *rest)

    monkeypatch.setattr(Decoder, "prefill", watched_prefill)
    monkeypatch.setattr(Decoder, "decode", watched_decode)
    return seen


CHAIN_CONFIG = dataclasses.replace(CONFIG, d_model=12, vocab_size=12, tied_embeddings=False)


def chain() -> Decoder:
    """A policy that is certain: token v is followed by v + 1.

    No layer writes to the residual stream, so that after the norm token v is sqrt(12) times the v-th unit
    vector, and the head sends it to v + 1 with a logit of 60 sqrt(12) against 0.
    """
    policy, params = policy_and_params(CHAIN_CONFIG)
    params = jax.tree.map(jnp.zeros_like, params)
    params["embedding"], params["head"] = jnp.eye(12), 60.0 * jnp.roll(jnp.eye(12), 1, axis=1)
    params["final_norm"] = jnp.ones(12)
    return nnx.merge(policy, params)


def run_chain(prompts, sampling, group_size=1):
    """Samples until token 6; every report of the model's has arrived."""
    prompts = jnp.array(prompts)
    samples = call(
        lambda prompts, mask, key: sample(
            chain(), prompts, mask, key, group_size=group_size, config=sampling, stop_ids=(6,), pad_id=11
        ),
        prompts, jnp.ones(prompts.shape, bool), jax.random.key(0),
    )  # fmt: skip
    jax.effects_barrier()
    return samples


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_loop_ends_with_its_last_row(watched, temperature):
    samples = run_chain([[0, 4], [0, 1]], SamplingConfig(64, temperature), group_size=2)
    assert samples.lengths.tolist() == [2, 2, 5, 5]
    assert samples.tokens[0].tolist() == [5, 6] + [11] * 62
    assert samples.tokens[3].tolist() == [2, 3, 4, 5, 6] + [11] * 59
    assert not samples.truncated.any()
    np.testing.assert_allclose(samples.log_probs, 0.0, atol=1e-6)
    assert sorted(watched.steps) == [0, 1, 2, 3]  # tokens 1 to 4 of the longest row, and no more of the 63


def test_no_step_after_a_first_token_that_ends_every_row(watched):
    samples = run_chain([[5], [5]], SamplingConfig(64))
    assert samples.lengths.tolist() == [1, 1]
    assert watched.steps == []


def test_runs_to_the_limit_when_nothing_stops_it(watched):
    samples = run_chain([[1], [5]], SamplingConfig(4))
    assert samples.lengths.tolist() == [4, 1]
    assert samples.truncated.tolist() == [True, False]
    assert sorted(watched.steps) == [0, 1, 2]


def test_a_prompt_is_prefilled_once_per_group(watched):
    prompts, mask = prompts_and_mask()
    group = 13  # N = 26, N·P = 130: numbers that nothing else makes
    jaxpr = jax.make_jaxpr(
        lambda prompts, mask: sample(
            merged(CONFIG), prompts, mask, jax.random.key(0),
            group_size=group, config=SamplingConfig(3), stop_ids=STOPS, pad_id=PAD,
        )
    )(prompts, mask)  # fmt: skip
    assert watched.prompt_shapes == [(B, P)]
    made = set(shapes(jaxpr))
    assert (B * P, 8) in made  # activations of the prompts' tokens
    assert not [shape for shape in made if B * group * P in shape]
    assert not [shape for shape in made if shape[:2] == (B * group, P)]


JITTED_INVERSE_CDF = jax.jit(inverse_cdf)


@given(
    weights=st.lists(
        st.sampled_from([0.0, 0.0, 1e-6, 0.5, 1.0, 3.0, 1e6]) | st.floats(1e-3, 10), min_size=1, max_size=40
    ),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
)
def test_inverse_cdf_equals_a_float64_loop(weights, uniform):
    assume(max(weights) > 0)
    weights = np.array(weights + [0.0] * (40 - len(weights)), np.float32)
    index = int(JITTED_INVERSE_CDF(weights[None], np.float32([uniform]))[0])
    assert weights[index] > 0
    total = math.fsum(weights.tolist())
    below = math.fsum(weights[:index].tolist())
    rounding = 1e-6 * total  # a few float32 roundings of the sum
    assert below - rounding <= uniform * total <= below + float(weights[index]) + rounding


@pytest.mark.parametrize("size", [1, 2, 11, 300, 1024])
def test_inverse_cdf_of_a_uniform_grid_is_the_distribution(size):
    rng = np.random.default_rng(size)
    weights = rng.exponential(size=size).astype(np.float32) * (rng.random(size) < 0.7)
    weights[-1] = 0.0 if size > 1 else 1.0
    weights[size // 2] = 1.0
    p = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    points = 1 << 14
    grid = ((np.arange(points) + 0.5) / points).astype(np.float32)
    indices = np.asarray(call(jax.vmap(lambda w, u: inverse_cdf(w[None], u[None])[0], (None, 0)), weights, grid))
    assert (np.diff(indices) >= 0).all()
    counts = np.bincount(indices, minlength=size)
    assert (counts[weights == 0] == 0).all()
    assert np.abs(counts / points - p).max() <= 1e-4


SMALLEST, LARGEST = 2.0**-24, 1 - 2.0**-24


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 100), (SMALLEST, 100), (LARGEST, 151_700)])
def test_the_ends_of_a_large_vocabulary_are_not_drawn(uniform, expected):
    """As many tokens as Qwen has; the first and the last hundred and most others have a weight of 1e-13."""
    weights, rows = np.full((8, 151_936), 1e-13, np.float32), np.arange(8)[:, None]
    weights[rows, np.arange(100, 151_800, 400)] = np.random.default_rng(0).uniform(0.5, 1.5, (8, 380))
    assert JITTED_INVERSE_CDF(weights, np.full(8, uniform, np.float32)).tolist() == [expected] * 8


def test_a_position_that_rounds_to_the_end_of_its_block():
    """Running sums of 1.5 ulp and 1.25 + 2 ulp: less the first, the second and the float below it are both 1.25."""
    weights = np.float32([[1.5 * 2.0**-23, 0.0, 1e-13, 1.25]])  # blocks of two
    assert JITTED_INVERSE_CDF(weights, np.float32([LARGEST])).tolist() == [3]


def test_rounding_draws_no_improbable_token():
    """Blocks of 64 tokens that begin and end with improbable ones, at the numbers around every block's edge."""
    size, likely = 4096, np.arange(32, 4096, 64)
    weights = np.full(size, 1e-13, np.float32)
    weights[likely] = np.random.default_rng(0).uniform(0.5, 1.5, len(likely))
    edges = np.cumsum(weights.astype(float)[likely]) / weights.sum(dtype=float)
    nearest = np.concatenate([[0.0], edges])[:, None] * 2**23 + np.arange(-4, 5)
    uniform = (np.unique(np.clip(np.round(nearest), 0, 2**23 - 1)) + 0.5) / 2**23
    drawn = np.asarray(JITTED_INVERSE_CDF(np.tile(weights, (len(uniform), 1)), uniform.astype(np.float32)))
    assert np.isin(drawn, likely).all()
    far = np.abs(edges[:, None] - uniform).min(axis=0) > 3e-7  # further than a sum's rounding reaches
    np.testing.assert_array_equal(drawn[far], likely[np.searchsorted(edges, uniform[far])])


def test_sampling_takes_uniform_numbers_that_are_never_0(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("jax.random.uniform gives 0 once in 2^23 draws")

    monkeypatch.setattr(jax.random, "uniform", refuse)
    jax.eval_shape(
        lambda prompts, mask: sample(
            merged(CONFIG), prompts, mask, jax.random.key(0),
            group_size=G, config=SamplingConfig(3), stop_ids=STOPS, pad_id=PAD,
        ),
        *prompts_and_mask(),
    )  # fmt: skip


def test_inverse_cdf_at_its_ends():
    weights = np.float32([[0.0, 0.0, 1.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0]] * 2)
    highest = np.nextafter(np.float32(1), np.float32(0))
    assert JITTED_INVERSE_CDF(weights, np.array([0.0, highest], np.float32)).tolist() == [2, 5]


def test_choose_gives_the_log_probability_of_its_token():
    logits = np.float32([[0.0, math.log(3.0), -np.inf], [1e4, 1e4, -1e4]])
    tokens, log_probs = call(choose, logits, np.float32([0.9, 0.1]))
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(log_probs, [math.log(0.75), math.log(0.5)], rtol=1e-6)


def filter_loop(z, top_k, top_p):
    """Indices that a filter keeps: all at least as large as the k-th, then as the one that reaches top_p."""
    kept = list(range(len(z)))
    if top_k:
        edge = sorted(z, reverse=True)[min(top_k, len(z)) - 1]
        kept = [v for v in kept if z[v] >= edge]
    if top_p < 1:
        p = np.exp(log_softmax(np.array([float(z[v]) for v in kept])))
        order = sorted(range(len(kept)), key=lambda i: -p[i])
        mass = list(itertools.accumulate(float(p[i]) for i in order))
        edge = p[order[next(i for i, m in enumerate(mass) if m >= top_p or i == len(mass) - 1)]]
        kept = [v for v, q in zip(kept, p, strict=True) if q >= edge]
    return kept


filtered = functools.partial(jax.jit, static_argnums=(1, 2))(filter_logits)


@given(
    rows=st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=2, max_size=2),
    top_k=st.sampled_from([0, 1, 3, 6, 8]),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.77, 0.95, 1.0]),
)
def test_filters_equal_loops_ties_included(rows, top_k, top_p):
    z = np.array(rows, np.float32)
    for row in z:  # where the mass reaches top_p but for rounding, either answer is right
        kept = filter_loop(row, top_k, 1.0)
        p = np.sort(np.exp(log_softmax(np.array([float(row[v]) for v in kept]))))[::-1]
        assume(np.abs(np.cumsum(p) - top_p).min() > 1e-5 or top_p == 1.0)
    found = np.asarray(filter_logits(jnp.asarray(z), top_k, top_p))
    for row, result in zip(z, found, strict=True):
        kept = filter_loop(row, top_k, top_p)
        expected = [row[v] if v in kept else -np.inf for v in range(7)]
        assert result.tolist() == expected


def test_filters_that_keep_everything():
    z = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    assert np.array_equal(filter_logits(z), z)
    assert np.array_equal(filter_logits(z, top_k=500), z)
    # the mass of 500 tokens may round to less than this
    assert np.array_equal(filter_logits(z, top_p=float(np.nextafter(np.float32(1), np.float32(0)))), z)


def test_ties_at_the_edge_of_the_nucleus_are_kept():
    z = np.log(np.float32([[0.4, 0.2, 0.2, 0.2]]))
    kept = lambda *limits: np.isfinite(filtered(z, *limits)).tolist()
    assert kept(0, 0.5) == [[True] * 4]
    assert kept(0, 0.39) == [[True, False, False, False]]
    assert kept(2, 1.0) == [[True] * 4]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0), ("temperature", -0.5), ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan")),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        SamplingConfig(**({"max_new_tokens": 4} | {field: value}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "message"), [({"stop_ids": ()}, "stop_ids"), ({"group_size": 0}, "group_size")])
def test_sampling_that_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(SamplingConfig(T), **options)
