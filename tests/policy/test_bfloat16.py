"""bfloat16 from end to end: sampler, trainer and gradient are as far from float32 as its rounding explains."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from salt_jax.policy.layers import Block, TransformerConfig
from salt_jax.policy.logprobs import completion_scores
from salt_jax.policy.rope import rope_table
from salt_jax.policy.sampler import SamplingConfig, sample
from salt_jax.rollout import RolloutBatch
from tests.training_setup import call, merged, policy_and_params

EXACT = TransformerConfig(
    vocab_size=40, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64, qk_norm=True
)
ROUNDED = dataclasses.replace(EXACT, compute_dtype="bfloat16")
HALF_ULP = 2.0**-9  # what rounding to bfloat16 changes a value by, relative to it, at most
# Values on the way through two blocks are rounded about 20 times: 8 products, 2 norms and 2 sums in each. Were all
# errors of one sign, they would add up to this.
FORWARD = 24 * HALF_ULP
B, G, P, T = 3, 4, 5, 9
TEMPERATURE = 0.9


@functools.cache
def drawn():
    """Rollouts that the policy in bfloat16 draws; log-probs as its sampler says."""
    mask = np.arange(P)[None] >= P - np.array([5, 3, 1])[:, None]
    prompts = np.asarray(jax.random.randint(jax.random.key(0), (B, P), 3, 40))
    samples = call(
        lambda *arguments: sample(
            merged(ROUNDED), *arguments, group_size=G, config=SamplingConfig(T, TEMPERATURE), stop_ids=(2,), pad_id=0
        ),
        prompts, mask, jax.random.key(1),
    )  # fmt: skip
    samples = jax.tree.map(np.asarray, samples)
    prompts, mask = (np.repeat(x, G, axis=0) for x in (prompts, mask))
    n = B * G
    return RolloutBatch(
        tokens=np.concatenate([prompts, samples.tokens], axis=1), prompt_mask=mask, completion_mask=samples.mask,
        sampler_log_probs=samples.log_probs, rewards=np.zeros(n, np.float32), rewarded=np.ones(n, bool),
        valid=np.ones(n, bool), truncated=samples.truncated,
    )  # fmt: skip


@functools.cache
def scores_and_gradient(config):
    policy, params = policy_and_params(config)
    rollouts = drawn()

    def loss(params):
        scores = completion_scores(nnx.merge(policy, params), rollouts, group_size=G, temperature=TEMPERATURE)
        weights = np.random.default_rng(0).normal(size=(B * G, T)).astype(np.float32)
        return jnp.sum(jnp.where(rollouts.loss_mask, weights * scores.log_probs, 0.0)), scores

    gradient, scores = call(jax.grad(loss, has_aux=True), params)
    return scores, gradient


def logit_errors():
    """(N, T) how much a logit can be off: by the states' own error, and by the rounding of the head."""
    exact, rounded = (np.asarray(scores_and_gradient(c)[0].hidden, np.float32) for c in (EXACT, ROUNDED))
    head = np.asarray(merged(EXACT).lm_head)
    carried = np.abs((rounded - exact) @ head)
    return np.max(carried + np.abs(rounded) @ np.abs(head) * HALF_ULP, axis=-1) / TEMPERATURE


@pytest.mark.slow
def test_hidden_states():
    exact, rounded = (scores_and_gradient(c)[0].hidden for c in (EXACT, ROUNDED))
    assert (exact.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    mask = np.asarray(drawn().loss_mask)
    error = np.linalg.norm(np.asarray(rounded, np.float32) - np.asarray(exact), axis=-1)[mask]
    size = np.linalg.norm(np.asarray(exact), axis=-1)[mask]
    assert (error <= FORWARD * size).all()
    assert np.median(error / size) >= HALF_ULP / 4  # it is bfloat16 indeed


def test_log_probs_and_entropies():
    """A log-probability moves by at most twice what the logits do; the entropy of a distribution follows it."""
    exact, rounded = (scores_and_gradient(c)[0] for c in (EXACT, ROUNDED))
    mask = np.asarray(drawn().loss_mask)
    bound = 2 * logit_errors()[mask]
    assert rounded.log_probs.dtype == rounded.entropy.dtype == jnp.float32
    error = np.abs(np.asarray(rounded.log_probs) - np.asarray(exact.log_probs))[mask]
    assert (error <= bound).all()
    assert error.max() >= HALF_ULP / 4
    assert np.median(bound) < 0.15  # nats: the bound says something
    assert np.abs(np.asarray(rounded.entropy) - np.asarray(exact.entropy))[mask].max() <= 4 * bound.max()


@pytest.mark.parametrize("config", [ROUNDED, EXACT], ids=["bfloat16", "float32"])
def test_the_sampler_and_the_trainer_agree_as_far_as_rounding_lets_them(config):
    """The cache's path rounds in other places than the trainer's: each is as far from float32 as the bound says."""
    mask, bound = np.asarray(drawn().loss_mask), logit_errors()
    gap = np.abs(np.asarray(scores_and_gradient(config)[0].log_probs) - np.asarray(drawn().sampler_log_probs))[mask]
    assert gap.max() <= 4 * bound[mask].max()
    assert gap.mean() <= bound[mask].mean()


def test_queries_and_keys_are_rounded_once():
    """Rotated and scaled in float32, from the bfloat16 projections: half an ulp from the exact product."""
    config = dataclasses.replace(ROUNDED, head_dim=24, qk_norm=False, rms_norm_eps=0.0)
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (50, 24))  # the norm keeps them, and their products with a diagonal are exact
    weights = [np.asarray(jnp.asarray(rng.normal(size=24), jnp.bfloat16), float) for _ in range(2)]
    q, k = (np.diag(w).astype(np.float32) for w in weights)

    def projected(signs):
        block = SimpleNamespace(config=config, attention_norm=jnp.ones(24), q=jnp.asarray(q), k=jnp.asarray(k), v=k)
        table = rope_table(jnp.arange(50), 24, 10_000.0, None)
        return Block.qkv(block, signs.astype(jnp.bfloat16), table)[:2], table

    found, table = call(projected, signs.astype(np.float32))
    cos, sin = (np.asarray(t, float) for t in table)
    for got, w, scale in zip(found, weights, (24**-0.5, 1.0), strict=True):
        a, b = np.split(signs * w, 2, axis=1)
        exact = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1) * scale
        half_ulp = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 8)
        assert got.dtype == jnp.bfloat16
        assert (np.abs(np.asarray(got[:, 0], float) - exact) <= half_ulp + 1e-6).all()  # 1e-6: float32's roundings


def test_gradient():
    """Float32, and off by the roundings of the forward and of the backward pass, twice as long."""
    exact, rounded = (scores_and_gradient(c)[1] for c in (EXACT, ROUNDED))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rounded))
    exact, rounded = jax.tree.map(np.asarray, (exact, rounded))
    norm = lambda tree: np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(tree)))
    error = norm(jax.tree.map(lambda a, b: a - b, rounded, exact)) / norm(exact)
    assert HALF_ULP / 4 <= error <= 3 * FORWARD
    for name in exact["layers"]:  # no parameter's gradient is lost
        a, b = (np.asarray(g["layers"][name]).ravel() for g in (exact, rounded))
        assert a @ b >= 0.99 * np.linalg.norm(a) * np.linalg.norm(b), name
