"""A tiny run that the tests of policies and training share: configuration, state, graded rollouts, compiled steps.

Everything is cached for the process, so that a configuration compiles once however many tests look at it. The
optimizer is SGD with rate 1: parameters then move by exactly the gradient. (Adam's first step is the sign of the
gradient, which would turn rounding of a zero into a full step.) XLA's backend optimisations are off: they double
the time to compile programs that run for a millisecond.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from configs import base
from salt_jax.learner import state as state_lib
from salt_jax.learner import step as step_lib
from salt_jax.learner.reweighting import first_basis
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import sample
from salt_jax.policy.transformer import Decoder
from salt_jax.rollout import RolloutBatch
from salt_jax.run.config import RunConfig, parse

VOCAB, PAD, STOP = 12, 0, 2
FAST_COMPILE = {"xla_backend_optimization_level": 0}
# As users compile: what tests/conftest.py turns off for all other tests is on.
DEFAULT_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 3}
if "--xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", ""):
    DEFAULT_COMPILE["xla_cpu_use_fusion_emitters"] = True
OPTIMIZER = optax.sgd(1.0)
TINY = {
    "policy.d_model": 8,
    "policy.num_layers": 2,
    "policy.num_heads": 4,
    "policy.num_kv_heads": 2,
    "policy.head_dim": 2,
    "policy.mlp_dim": 12,
    "policy.qkv_bias": True,
    "policy.tied_embeddings": False,
    "sampling.prompts_per_step": 4,
    "sampling.rollouts_per_prompt": 4,
    "sampling.max_prompt_length": 3,
    "sampling.max_new_tokens": 4,
    "sampling.temperature": 0.8,
    "salt.subset_microbatch": 8,
    "warm_start.batch_size": 8,
    "evaluation.batch_size": 8,
}
PROMPT_LENGTHS = (3, 1, 2, 3, 2, 3, 1, 2)
REWARDS = (  # one row a prompt; the third group is unanimous
    (1, 0, 0, 1), (0, 0, 1, 0), (1, 1, 1, 1), (1, 1, 0, 1), (0, 1, 0, 0), (1, 0, 1, 0), (0, 0, 0, 0), (0, 1, 1, 1),
)  # fmt: skip


def tiny_config(overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """configs/base.py as a nested dict, tiny, with overrides by dotted key."""
    values = base.get_config().to_dict()
    for path, value in (TINY | (overrides or {})).items():
        section, _, name = path.rpartition(".")
        (values[section] if section else values)[name] = value
    return values


def tiny_run(overrides: dict[str, Any] | None = None) -> RunConfig:
    """The checked configuration, its policy with a vocabulary."""
    run = parse(tiny_config(overrides))
    return dataclasses.replace(run, policy=dataclasses.replace(run.policy, vocab_size=VOCAB))


def compiled(function: Any, **options: Any) -> Any:
    """jax.jit without backend optimisations."""
    return jax.jit(function, compiler_options=FAST_COMPILE, **options)


def compiled_as_users_do(function: Any, **options: Any) -> Any:
    """jax.jit as it is without the flags of the tests."""
    return jax.jit(function, compiler_options=DEFAULT_COMPILE, **options)


def call(function: Any, *arguments: Any) -> Any:
    """Compiles and calls."""
    return compiled(function)(*arguments)


@functools.cache
def policy_and_params(config: TransformerConfig, seed: int = 0) -> tuple[Any, Any]:
    """Static part and random parameters of a policy; nnx.merge makes the model. No bias is 0, no norm's scale 1."""
    policy = state_lib.make_policy(config)
    leaves = jax.eval_shape(lambda key: state_lib.init_params(config, key), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def leaf(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        kernel = not name.endswith(("norm", "bias"))
        fan_in = leaf.shape[-1] if name == "embedding" else leaf.shape[-2] if kernel else 16
        return (name.endswith("norm") + rng.normal(size=leaf.shape) * fan_in**-0.5).astype(np.float32)

    with jax.ensure_compile_time_eval():  # the cache must not hold the tracers of whoever calls first
        return policy, jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(leaf, leaves))


def merged(config: TransformerConfig) -> Decoder:
    """A policy with the parameters of `policy_and_params`."""
    return nnx.merge(*policy_and_params(config))


@functools.cache
def initial_state(reference: bool = False) -> state_lib.TrainState:
    """The state before the first step; the reference policy, where kept, differs from the policy."""
    run = tiny_run()
    params = policy_and_params(run.policy)[1]
    state = state_lib.init_state(params, OPTIMIZER, jax.random.key(7), keep_reference=reference)
    return state.replace(ref_params=policy_and_params(run.policy, 1)[1]) if reference else state


@functools.cache
def rollouts(prompts: int = 4) -> RolloutBatch:
    """Completions drawn by the sampler from the initial state's policy, with the rewards above."""
    run = tiny_run({"sampling.prompts_per_step": prompts})
    group, length = run.rollouts.rollouts_per_prompt, run.rollouts.max_prompt_length
    mask = np.arange(length)[None] >= length - np.array(PROMPT_LENGTHS[:prompts])[:, None]

    def draw(mask: Any, keys: Any) -> Any:
        tokens = jax.random.randint(keys[0], (len(PROMPT_LENGTHS), length), 3, VOCAB)[:prompts]
        tokens = jnp.where(mask, tokens, PAD)
        return tokens, sample(
            merged(run.policy), tokens, mask, keys[1],
            group_size=group, config=run.sampling, stop_ids=(STOP, 5), pad_id=PAD,
        )  # fmt: skip

    tokens, drawn = jax.tree.map(np.asarray, call(draw, mask, (jax.random.key(0), jax.random.key(3))))
    n = prompts * group
    batch = RolloutBatch(
        tokens=np.concatenate([np.repeat(tokens, group, axis=0), drawn.tokens], axis=1),
        prompt_mask=np.repeat(mask, group, axis=0),
        completion_mask=drawn.mask,
        sampler_log_probs=drawn.log_probs,
        rewards=np.array(REWARDS[:prompts], np.float32).reshape(-1),
        rewarded=np.ones(n, bool),
        valid=np.ones(n, bool),
        truncated=drawn.truncated,
    )  # by NumPy: on the device, each of these operations would be compiled first
    return jax.tree.map(jnp.asarray, batch)


def edited(array: Any, where: Any, value: Any) -> np.ndarray:
    """A copy of an array with other values at some places; ``array.at[where].set(value)`` without a compilation."""
    copy = np.array(array)
    copy[where] = value
    return copy


def bound_step(run: RunConfig, measure: bool = False) -> Any:
    """train_step with everything static bound."""
    policy = policy_and_params(run.policy)[0]
    return functools.partial(
        step_lib.train_step, run=run, policy=policy, optimizer=OPTIMIZER, measure=measure
    )


def _differences(overrides: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The overrides that change something: equal configurations share one compiled step."""
    usual = tiny_config()

    def value(path: str) -> Any:
        section, _, name = path.rpartition(".")
        return (usual[section] if section else usual)[name]

    return tuple(sorted((path, new) for path, new in overrides.items() if new != value(path)))


@functools.cache
def _compiled_step(items: tuple[tuple[str, Any], ...], measure: bool) -> Any:
    return compiled(bound_step(tiny_run(dict(items)), measure))


def run_step(
    overrides: dict[str, Any] | None = None,
    *,
    state: Any = None,
    batch: RolloutBatch | None = None,
    measure: bool = False,
) -> tuple[state_lib.TrainState, dict[str, np.ndarray]]:
    """One step of the configuration from the initial state on `rollouts()`, or from what is given."""
    overrides = overrides or {}
    run = tiny_run(overrides)
    if state is None:
        state = initial_state(run.objective.needs_reference).replace(sketch_basis=first_basis(run))
    batch = rollouts(run.rollouts.prompts_per_step) if batch is None else batch
    batch = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), batch)  # a weakly typed array would compile again
    new, metrics = _compiled_step(_differences(overrides), measure)(state, batch)
    return new, {name: np.asarray(value) for name, value in metrics.items()}


def largest_difference(a: Any, b: Any) -> float:
    """Largest absolute difference between two trees of arrays; NaN where either holds one."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs)


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees of arrays are equal bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def take_rows(batch: RolloutBatch, rows: Any) -> RolloutBatch:
    """The given rows of a batch, in that order."""
    return jax.tree.map(lambda x: np.asarray(x)[np.asarray(rows)], batch)
