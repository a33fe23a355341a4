"""Every estimator and every surrogate in a training step of its own, against the public functions called one by one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import arithmetic
from salt_jax import geometry, objective, salt
from salt_jax.learner import state as state_lib
from salt_jax.learner import step as step_lib
from salt_jax.learner.keys import estimate_key, token_key
from salt_jax.objective import ESTIMATORS, SURROGATES, ObjectiveConfig, Signals
from salt_jax.policy.logprobs import completion_scores
from salt_jax.policy.sampler import sample
from salt_jax.rollout import RolloutBatch
from salt_jax.run import setup
from salt_jax.run.config import parse
from salt_jax.tasks import prompt_batches
from salt_jax.vocab.kept import KeptRule
from tests.training_setup import FAST_COMPILE, largest_difference

GROUPS, SIZE = 4, 4
REWARDS = ((1, 0, 0, 1), (0, 0, 1, 0), (1, 1, 1, 1), (0.5, 1, 0, float("nan")))  # one unanimous, one missing
OPTIMIZER = optax.sgd(0.1)


def allowed(estimator: str, surrogate: str) -> bool:
    try:
        ObjectiveConfig(estimator=estimator, surrogate=surrogate)
    except ValueError:
        return False
    return True


PAIRS = [pair for pair in itertools.product(ESTIMATORS, SURROGATES) if allowed(*pair)]


def test_only_a_sequence_ratio_with_token_advantages_is_refused():
    refused = set(itertools.product(ESTIMATORS, SURROGATES)) - set(PAIRS)
    assert refused == {(name, "gspo") for name in ("reinforce_pp", "reinforce_pp_baseline", "rank_grpo")}


def the_run(salt: bool, config: ObjectiveConfig) -> Any:
    c = arithmetic.get_config("small")
    c.policy.d_model, c.policy.num_heads, c.policy.num_kv_heads, c.policy.head_dim, c.policy.mlp_dim = 8, 2, 2, 4, 12
    c.policy.num_layers = 1
    c.sampling.prompts_per_step, c.sampling.rollouts_per_prompt = GROUPS, SIZE
    c.salt.enabled = salt
    return dataclasses.replace(parse(c), objective=config)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Policy, state with another policy as the reference, and graded rollouts of real prompts."""
    run = the_run(True, ObjectiveConfig())
    task = setup.make_task(run, tmp_path_factory.mktemp("data"), setup.make_tokenizer(run))
    config = setup.policy_config(run, task)
    policy = state_lib.make_policy(config)
    init = jax.jit(functools.partial(state_lib.init_params, config), compiler_options=FAST_COMPILE)
    params, other = (init(jax.random.key(seed)) for seed in (0, 1))
    state = state_lib.init_state(params, OPTIMIZER, jax.random.key(7), keep_reference=True).replace(ref_params=other)
    batch = next(prompt_batches(
        task.source("train"), task.tokenizer, batch_size=GROUPS, seed=0,
        max_prompt_length=run.rollouts.max_prompt_length,
    ))  # fmt: skip
    drawn = jax.jit(
        lambda params, tokens, mask: sample(
            nnx.merge(policy, params), tokens, mask, jax.random.key(3), group_size=SIZE, config=run.sampling,
            stop_ids=tuple(task.tokenizer.stop_ids), pad_id=task.tokenizer.pad_id,
        ),
        compiler_options=FAST_COMPILE,
    )(params, batch["prompt_tokens"], batch["prompt_mask"])
    drawn = jax.tree.map(np.asarray, drawn)
    n, rewards = GROUPS * SIZE, np.array(REWARDS, np.float32).reshape(-1)
    place = np.arange(drawn.mask.shape[1], dtype=np.int32)
    rollouts = RolloutBatch(
        tokens=np.concatenate([np.repeat(batch["prompt_tokens"], SIZE, axis=0), drawn.tokens], axis=1),
        prompt_mask=np.repeat(batch["prompt_mask"], SIZE, axis=0),
        completion_mask=drawn.mask, sampler_log_probs=drawn.log_probs, rewards=rewards, rewarded=~np.isnan(rewards),
        valid=np.ones(n, bool), truncated=drawn.truncated,
        extra={
            "clusters": np.arange(n, dtype=np.int32) % 3,
            "baseline": np.full(n, 0.3, np.float32),
            "components": np.stack([rewards, (rewards == 1) & (np.arange(n) % 3 > 0)], axis=1, dtype=np.float32),
            "segments": np.broadcast_to(place // 2, drawn.mask.shape),
        },
    )  # fmt: skip
    return policy, state, jax.tree.map(jnp.asarray, rollouts)


def config_of(estimator: str, surrogate: str) -> ObjectiveConfig:
    form: dict[str, Any] = {"lp_reg_form": "paper"} if surrogate == "lp_reg" else {}
    if surrogate == "clip_cov":  # half of all tokens are candidates, of which some are drawn
        form |= {"clip_cov_fraction": 0.5, "clip_cov_low": -1.0}
    if estimator == "gtpo":
        form["gtpo_threshold"] = float("inf")  # a random policy is above it everywhere
    return ObjectiveConfig(estimator=estimator, surrogate=surrogate, **form)


def diagonal() -> list[tuple[str, str, bool]]:
    """Every estimator and every surrogate at least once, with SALT off and on in turn."""
    names = list(SURROGATES)
    pairs = []
    for i, estimator in enumerate(ESTIMATORS):
        surrogate = next(s for s in names[i % len(names) :] + names if allowed(estimator, s))
        pairs.append((estimator, surrogate, i % 2 == 1))
    missing = set(names) - {surrogate for _, surrogate, _ in pairs}
    return pairs + [("rloo", surrogate, True) for surrogate in sorted(missing)]


class ByHand:
    """A step put together from the public functions, outside of training/: one forward pass and its transpose."""

    def __init__(self, policy: Any, state: Any, rollouts: RolloutBatch) -> None:
        self.policy, self.state, self.rollouts = policy, state, rollouts
        run = the_run(False, ObjectiveConfig())
        self.run = run

        def scores(params: Any) -> Any:
            return completion_scores(
                nnx.merge(policy, params), rollouts, group_size=SIZE, temperature=run.sampling.temperature,
                kept=KeptRule(run.objective.lp_reg_proxy, run.objective.lp_reg_kappa),
            )

        def transpose(params: Any, of: Any) -> Any:
            parts = lambda params: (lambda s: (s.log_probs, s.kept_log_mass))(scores(params))
            return jax.vjp(parts, params)[1](of)[0]

        self.transpose = jax.jit(transpose, compiler_options=FAST_COMPILE)
        self.scores = jax.jit(scores, compiler_options=FAST_COMPILE)(state.params)
        self.reference = jax.jit(scores, compiler_options=FAST_COMPILE)(state.ref_params).log_probs

    def step(self, config: ObjectiveConfig, with_salt: bool) -> Any:
        """The parameters after one step of gradient descent."""
        part = jax.jit(functools.partial(self.derivatives, config, with_salt), compiler_options=FAST_COMPILE)
        gradient = self.transpose(self.state.params, part(self.state, self.scores, self.rollouts, self.reference))
        return jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * np.asarray(g), self.state.params, gradient)

    def derivatives(
        self, config: ObjectiveConfig, with_salt: bool, state: Any, scores: Any, rollouts: Any, reference: Any
    ) -> Any:
        """Of the loss, in the log-probs and in the mass of the likely tokens."""
        signals = Signals(
            rollouts, log_probs=scores.log_probs, ref_log_probs=reference, entropy=scores.entropy,
            log_proxy=scores.log_proxy, key=estimate_key(state), progress=0.0,
        )  # fmt: skip
        made = objective.estimate(signals, SIZE, config)
        rollouts = rollouts.replace(valid=rollouts.valid & made.kept)
        mask, counted, a = rollouts.loss_mask, rollouts.valid & rollouts.rewarded, made.advantages
        if with_salt:
            gram = geometry.lm_head_gram(
                scores.hidden, nnx.merge(self.policy, state.params).lm_head, rollouts.completions, mask,
                temperature=self.run.sampling.temperature,
            )
            flat = jnp.where(mask, a, 0).sum(1) / jnp.maximum(mask.sum(1), 1) if a.ndim == 2 else a
            a = salt.reweight(gram, flat, salt.SaltConfig(), valid=counted & ~made.silent).advantages
        chosen = dataclasses.replace(
            signals, rollouts=rollouts, signs=made.signs, key=jax.random.split(token_key(state), 1)[0]
        )
        choices = objective.choose_tokens(chosen, a, SIZE, config)

        def mean_loss(log_probs: Any, kept_log_mass: Any) -> Any:
            total, denominator, _ = objective.loss(
                log_probs, scores.log_probs, a, mask, config, entropy=scores.entropy, valid=counted, choices=choices,
                ref_log_probs=reference if config.kl_coef else None, segments=rollouts.extra["segments"],
                kept_log_mass=kept_log_mass if config.surrogate == "lp_reg" else None,
            )
            return total / jnp.maximum(denominator, 1)

        return jax.grad(mean_loss, argnums=(0, 1))(scores.log_probs, scores.kept_log_mass)


@pytest.fixture(scope="module")
def by_hand(world):
    return ByHand(*world)


@pytest.mark.parametrize(("estimator", "surrogate", "with_salt"), diagonal(), ids=str)
def test_a_step_is_what_its_parts_give(world, by_hand, estimator, surrogate, with_salt):
    policy, state, rollouts = world
    config = config_of(estimator, surrogate)
    held = state if config.needs_reference else state.replace(ref_params=None)
    step = functools.partial(
        step_lib.train_step, run=the_run(with_salt, config), policy=policy, optimizer=OPTIMIZER
    )
    new, metrics = jax.jit(step, compiler_options=FAST_COMPILE)(held, rollouts)
    moved = largest_difference(new.params, state.params)
    assert moved > 0
    assert largest_difference(new.params, by_hand.step(config, with_salt)) <= 1e-5 * max(moved, 1e-2)
    if with_salt:
        assert float(metrics["salt/collapsed"]) == ESTIMATORS[estimator].per_token
