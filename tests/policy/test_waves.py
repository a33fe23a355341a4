"""Generation in waves: the plan against a brute-force search, and that no rollout depends on its wave."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.collect.generation import jit_sampler
from salt_jax.distributed.sharding import make_mesh
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import SamplingConfig, sample
from salt_jax.policy.waves import MIB, Waves, plan_waves, wave_bytes
from tests.reference.jaxpr import outputs
from tests.training_setup import policy_and_params

CONFIG = TransformerConfig(vocab_size=11, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=12)
LARGE = TransformerConfig(
    vocab_size=50_000, d_model=64, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=64
)
SAMPLING = SamplingConfig(max_new_tokens=6)


class Stops:
    """As much of a tokenizer as a sampler wants."""

    stop_ids, pad_id = (2, 5), 0


@pytest.mark.parametrize(
    ("compute", "cache", "width"), [("float32", "compute", 4), ("bfloat16", "compute", 2), ("float32", "bfloat16", 2)]
)
def test_bytes_are_counted_array_by_array(compute, cache, width):
    policy = TransformerConfig(
        vocab_size=7, d_model=4, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=4, mlp_dim=4, compute_dtype=compute
    )
    total = 0
    for _layer in range(3):
        for _key_or_value in range(2):
            total += 2 * 5 * 2 * 4 * width  # 2 prompts of 5 tokens, 2 heads of width 4
            total += 2 * 3 * 9 * 2 * 4 * width  # 2 x 3 completions of 9 tokens
    total += 3 * (2 * 3 * 7) * 4  # three float32 arrays of a row of 7 for each of 6 rollouts
    assert wave_bytes(policy, SamplingConfig(max_new_tokens=9, cache_dtype=cache), 5, 2, 3) == total


@given(
    prompts=st.integers(1, 24), rollouts=st.integers(1, 16), shards=st.sampled_from([1, 2, 4]),
    budget=st.integers(1, 60),
)  # fmt: skip
def test_the_plan_is_the_largest_that_fits(prompts, rollouts, shards, budget):
    prompts *= shards
    options = dict(prompts=prompts, rollouts=rollouts, prompt_length=8, budget_mib=budget, shards=shards)

    def fits(b, g):
        return wave_bytes(LARGE, SAMPLING, 8, b // shards, g) <= budget * MIB

    whole = [b for b in range(shards, prompts + 1, shards) if prompts % b == 0 and fits(b, rollouts)]
    parts = [g for g in range(1, rollouts + 1) if rollouts % g == 0 and fits(shards, g)]
    if not parts:
        with pytest.raises(ValueError, match=f"wave_mib = {budget} is less than the . MiB that one rollout"):
            plan_waves(LARGE, SAMPLING, **options)
        return
    waves = plan_waves(LARGE, SAMPLING, **options)
    assert (waves.prompts, waves.rollouts) == ((max(whole), rollouts) if whole else (shards, max(parts)))
    covered = {
        (p, r) for first, start in waves for p in range(first, first + waves.prompts)
        for r in range(start, start + waves.rollouts)
    }  # fmt: skip
    assert len(covered) == prompts * rollouts == len(waves) * waves.prompts * waves.rollouts


def test_a_budget_that_no_rollout_fits_is_refused_with_what_one_takes():
    # 3 x 200,000 logits of 4 bytes are 2.3 MiB, keys and values of 8 + 6 tokens less than 0.1
    policy = dataclasses.replace(LARGE, vocab_size=200_000)
    with pytest.raises(ValueError, match="wave_mib = 2 is less than the 3 MiB that one rollout a device takes"):
        plan_waves(policy, SAMPLING, prompts=2, rollouts=2, prompt_length=8, budget_mib=2)


def test_without_a_budget_there_is_one_wave():
    waves = plan_waves(LARGE, SAMPLING, prompts=64, rollouts=64, prompt_length=8, budget_mib=None)
    assert (waves, len(waves)) == (Waves(64, 64, (64, 64)), 1)


def generate(waves, *, mesh=(1, 1, 1), temperature=1.0):
    policy, params = policy_and_params(CONFIG)
    lengths = np.array([3, 1, 2, 3])
    mask = np.arange(3)[None] >= 3 - lengths[:, None]
    prompts = np.where(mask, np.random.default_rng(0).integers(0, 11, (4, 3)), 0).astype(np.int32)
    sampler = jit_sampler(
        policy, params, make_mesh(*mesh), group_size=4, tokenizer=Stops,
        config=SamplingConfig(max_new_tokens=6, temperature=temperature), waves=waves,
    )  # fmt: skip
    return jax.tree.map(np.asarray, sampler(params, prompts, mask, jax.random.key(3)))


@pytest.fixture(scope="module")
def whole():
    return generate(None)


@pytest.mark.parametrize("wave", [(2, 4), (1, 2), (1, 1), (4, 4)], ids=str)
def test_a_rollout_does_not_depend_on_its_wave(wave, whole):
    assert len({tuple(row) for row in whole.tokens.tolist()}) > 8  # rollouts differ, so that their order shows
    made = generate(Waves(*wave, (4, 4)))
    for name in ("tokens", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(made, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(made.log_probs, whole.log_probs, atol=1e-5)


@pytest.mark.mesh
def test_nor_on_a_mesh(whole):
    made = generate(Waves(2, 2, (4, 4)), mesh=(2, 1, 2))
    np.testing.assert_array_equal(made.tokens, whole.tokens)


def test_a_bfloat16_cache_holds_bfloat16_and_changes_log_probs_by_its_rounding():
    policy, params = policy_and_params(CONFIG)
    prompts, mask = jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), bool)

    def draw(cache_dtype):
        config = SamplingConfig(max_new_tokens=6, cache_dtype=cache_dtype)
        return lambda params: sample(
            nnx.merge(policy, params), prompts, mask, jax.random.key(1),
            group_size=3, config=config, stop_ids=(10,), pad_id=0,
        )  # fmt: skip

    cache = (2, 2, 3, 4, 5)  # layers aside: prompts, key/value heads, rollouts, width, tokens
    for name, dtype in (("bfloat16", jnp.bfloat16), ("compute", jnp.float32)):
        made = outputs(jax.make_jaxpr(draw(name))(params))
        found = {aval.dtype for aval in made if getattr(aval, "shape", ())[-5:] == cache}
        assert found == {jnp.dtype(dtype)}, name
    rough, exact = jax.jit(draw("bfloat16"))(params), jax.jit(draw("compute"))(params)
    assert rough.tokens[:, 0].tolist() == exact.tokens[:, 0].tolist()  # the first comes from the prompt alone
    same = np.cumprod(np.asarray(rough.tokens == exact.tokens), axis=1).astype(bool)
    difference = np.abs(np.asarray(rough.log_probs - exact.log_probs))[same]
    assert 0 < difference.max() < 0.05  # 2^-8 of scores of a few units
