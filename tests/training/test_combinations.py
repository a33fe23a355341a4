"""Every allowed estimator × surrogate × SALT takes a real training step on the arithmetic task.

364 programs would compile for an hour. Here the real ``train_step`` is compiled four times (advantages a rollout or a
token, SALT off and on) with all estimators and all surrogates inside it, behind ``lax.switch``; which of them runs
is an argument. A diagonal of combinations also runs as its own program, and must give the same parameters.
"""

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
from salt_jax import objective
from salt_jax.objective import ESTIMATORS, SURROGATES, LossMetrics, ObjectiveConfig, TokenChoices
from salt_jax.objective.signals import OPTIONAL
from salt_jax.policy.sampler import sample
from salt_jax.rollout import RolloutBatch
from salt_jax.tasks import prompt_batches
from salt_jax.training import setup, weighing
from salt_jax.training import state as state_lib
from salt_jax.training import step as step_lib
from salt_jax.training.config import parse
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


def the_run(salt: bool, config: ObjectiveConfig | None = None) -> Any:
    c = arithmetic.get_config("small")
    c.policy.d_model, c.policy.num_heads, c.policy.num_kv_heads, c.policy.head_dim, c.policy.mlp_dim = 8, 2, 2, 4, 12
    c.policy.num_layers = 1
    c.sampling.prompts_per_step, c.sampling.rollouts_per_prompt = GROUPS, SIZE
    c.salt.enabled = salt
    run = parse(c)
    return run if config is None else dataclasses.replace(run, objective=config)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Policy, state with another policy as the reference, and graded rollouts of real prompts."""
    run = the_run(True)
    task = setup.make_task(run, tmp_path_factory.mktemp("data"), setup.make_tokenizer(run))
    config = setup.policy_config(run, task)
    policy = state_lib.make_policy(config)
    params, other = (state_lib.init_params(config, jax.random.key(seed)) for seed in (0, 1))
    state = state_lib.init_state(params, OPTIMIZER, jax.random.key(7), keep_reference=True).replace(ref_params=other)
    batch = next(prompt_batches(
        task.source("train"), task.tokenizer, batch_size=GROUPS, seed=0,
        max_prompt_length=run.rollouts.max_prompt_length,
    ))  # fmt: skip
    drawn = jax.jit(
        lambda params, tokens, mask: sample(
            nnx.merge(policy, params), tokens, mask, jax.random.key(3), group_size=SIZE, config=run.sampling,
            stop_ids=tuple(task.tokenizer.stop_ids), pad_id=task.tokenizer.pad_id,
        )
    )(params, batch["prompt_tokens"], batch["prompt_mask"])
    n, rewards = GROUPS * SIZE, jnp.array(REWARDS, jnp.float32).reshape(-1)
    place = jnp.arange(drawn.mask.shape[1])
    rollouts = RolloutBatch(
        tokens=jnp.concatenate([jnp.repeat(jnp.asarray(batch["prompt_tokens"]), SIZE, axis=0), drawn.tokens], axis=1),
        prompt_mask=jnp.repeat(jnp.asarray(batch["prompt_mask"]), SIZE, axis=0),
        completion_mask=drawn.mask, sampler_log_probs=drawn.log_probs, rewards=rewards, rewarded=~jnp.isnan(rewards),
        valid=jnp.ones(n, bool), truncated=drawn.truncated,
        extra={
            "clusters": jnp.arange(n, dtype=jnp.int32) % 3,
            "baseline": jnp.full(n, 0.3),
            "components": jnp.stack([rewards, (rewards == 1) & (jnp.arange(n) % 3 > 0)], axis=1),
            "segments": jnp.broadcast_to(place // 2, drawn.mask.shape).astype(jnp.int32),
        },
    )  # fmt: skip
    return policy, state, rollouts


class Everything(ObjectiveConfig):
    """A configuration for which the step makes whatever any method could ask for."""

    needs = frozenset(OPTIONAL)
    needs_reference = True
    chooses_tokens = True


EVERYTHING = Everything(surrogate="lp_reg", lp_reg_form="paper")


def config_of(estimator: str, surrogate: str) -> ObjectiveConfig:
    form: dict[str, Any] = {"lp_reg_form": "paper"} if surrogate == "lp_reg" else {}
    if estimator == "gtpo":
        form["gtpo_threshold"] = float("inf")  # a random policy is above it everywhere
    return ObjectiveConfig(estimator=estimator, surrogate=surrogate, **form)


@functools.cache
def switched_step(policy: Any, salt: bool, per_token: bool) -> Any:
    """train_step with every estimator of one level and every surrogate in it: (state, rollouts, which, which)."""
    estimators = [name for name in ESTIMATORS if ESTIMATORS[name].per_token == per_token]
    names = ("surrogate", "entropy", "ratio_mean", "approx_kl")

    def padded(choices: TokenChoices, like: Any) -> TokenChoices:
        chosen = jnp.zeros_like(like, dtype=bool) if choices.chosen is None else choices.chosen
        return TokenChoices(chosen=chosen, log_proxy=like * 0.0 if choices.log_proxy is None else choices.log_proxy)

    def step(state: Any, rollouts: Any, estimator: Any, surrogate: Any) -> Any:
        def estimate(signals: Any, size: int, config: Any) -> Any:
            branches = [
                lambda signals, name=name: objective.estimate(signals, size, config_of(name, "ppo_clip"))
                for name in estimators
            ]
            return jax.lax.switch(estimator, branches, signals)

        def choose(signals: Any, advantages: Any, size: int, config: Any) -> Any:
            branches = [
                lambda signals, advantages, name=name: padded(
                    objective.choose_tokens(signals, advantages, size, config_of("grpo", name)), signals.log_probs
                )
                for name in SURROGATES
            ]
            return jax.lax.switch(surrogate, branches, signals, advantages)

        def loss(log_probs: Any, old: Any, advantages: Any, mask: Any, config: Any, **given: Any) -> Any:
            def one(name: str, arrays: Any) -> Any:
                log_probs, entropy, mass = arrays
                seen = given | {"entropy": entropy, "kept_log_mass": mass, "ref_log_probs": None}
                total, denominator, metrics = objective.loss(
                    log_probs, old, advantages, mask, config_of("grpo", name), **seen
                )
                return total, denominator, LossMetrics({k: metrics.sums[k] for k in names}, {})

            branches = [functools.partial(one, name) for name in SURROGATES]
            arrays = (log_probs, given["entropy"], given["kept_log_mass"])
            return jax.lax.switch(surrogate, branches, arrays)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weighing, "estimate", estimate)
            patch.setattr(weighing, "choose_tokens", choose)
            patch.setattr(step_lib, "policy_objective", loss)
            run = the_run(salt, EVERYTHING)
            return step_lib.train_step(state, rollouts, run=run, policy=policy, optimizer=OPTIMIZER)

    jitted = jax.jit(step, compiler_options=FAST_COMPILE)
    surrogates = list(SURROGATES)
    return lambda state, rollouts, one, other: jitted(state, rollouts, estimators.index(one), surrogates.index(other))


@pytest.mark.parametrize("salt", [False, True], ids=["off", "salt"])
@pytest.mark.parametrize(("estimator", "surrogate"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_takes_a_step(world, estimator, surrogate, salt):
    policy, state, rollouts = world
    step = switched_step(policy, salt, ESTIMATORS[estimator].per_token)
    new, metrics = step(state, rollouts, estimator, surrogate)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params))
    assert all(np.isfinite(float(value)) for value in metrics.values()), metrics
    assert float(metrics["grad_norm"]) > 0
    assert largest_difference(new.params, state.params) > 0
    assert int(new.step) == 1
    if salt:
        assert float(metrics["salt/collapsed"]) == ESTIMATORS[estimator].per_token


def diagonal() -> list[tuple[str, str, bool]]:
    """Every estimator and every surrogate at least once, with SALT off and on in turn."""
    names = list(SURROGATES)
    pairs = []
    for i, estimator in enumerate(ESTIMATORS):
        surrogate = next(s for s in names[i % len(names) :] + names if allowed(estimator, s))
        pairs.append((estimator, surrogate, i % 2 == 1))
    missing = set(names) - {surrogate for _, surrogate, _ in pairs}
    return pairs + [("rloo", surrogate, True) for surrogate in sorted(missing)]


@pytest.mark.parametrize(
    ("estimator", "surrogate", "salt"),
    [case if i % 7 == 0 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(diagonal())],
    ids=str,
)
def test_as_its_own_program(world, estimator, surrogate, salt):
    policy, state, rollouts = world
    config = config_of(estimator, surrogate)
    held = state if config.needs_reference else state.replace(ref_params=None)
    step = functools.partial(
        step_lib.train_step, run=the_run(salt, config), policy=policy, optimizer=OPTIMIZER
    )
    new, _ = jax.jit(step, compiler_options=FAST_COMPILE)(held, rollouts)
    together, _ = switched_step(policy, salt, ESTIMATORS[estimator].per_token)(state, rollouts, estimator, surrogate)
    moved = largest_difference(new.params, state.params)
    assert moved > 0
    assert largest_difference(new.params, together.params) <= 1e-5 * max(moved, 1)
