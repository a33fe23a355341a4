"""What SALT adds to a training step: off, exact and sketch, in turns step by step.

    python -m experiments.benchmarks.salt_overhead [--steps=100] [--json=FILE]
    python -m experiments.benchmarks.salt_overhead --policy qwen2.5-1.5b --rollouts 64 --tokens 1024 --mfu measured

The first is the whole step (sample, grade, update) of configs/arithmetic.py with its task and its rewards, after its
warm start.
With ``--policy`` it is the update alone, of random weights on random tokens in that policy's shape, in bfloat16: for a
GPU. All arms then take turns with one and the same state, which is as large as the policy allows.

The ratio is of medians over the arms' steps; its interval is a bootstrap over the rounds in which they took turns.
``--mfu measured``: model FLOPs a second of the SALT-off update (6 per weight of a matrix product and token, 12·width
per token, layer and position attended to; nothing for recomputation) over the rate of one large bfloat16 matmul.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from configs import arithmetic, base
from experiments.arguments import local_path
from experiments.benchmarks import arms, report
from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.learner.reweighting import first_basis
from salt_jax.learner.state import init_params, init_state, make_optimizer, make_policy
from salt_jax.learner.step import jit_train_step
from salt_jax.rollout import RolloutBatch
from salt_jax.run import config as training_config

VARIANTS: dict[str, dict[str, Any]] = {
    "off": {"enabled": False},
    "exact": {"enabled": True, "feature": "lm_head"},
    "sketch": {"enabled": True, "feature": "lm_head_sketch"},
}
LIMITS = {"arithmetic": {"exact": 1.10, "sketch": 1.03}, "policy": {"exact": 1.10, "sketch": 1.02}}
MFU_LIMIT = 0.40
BOOTSTRAPS = 2000
POLICIES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": {
        "vocab_size": 151_936, "d_model": 1536, "num_layers": 28, "num_heads": 12, "num_kv_heads": 2, "head_dim": 128,
        "mlp_dim": 8960, "rope_theta": 1e6, "qkv_bias": True, "tied_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936, "d_model": 896, "num_layers": 24, "num_heads": 14, "num_kv_heads": 2, "head_dim": 64,
        "mlp_dim": 4864, "rope_theta": 1e6, "qkv_bias": True, "tied_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512, "d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
        "mlp_dim": 64,
    },
}  # fmt: skip


def ratio(times: Sequence[float], reference: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Ratio of medians, and its 95 % bootstrap interval over rounds (both series have one time a round).

    Example:
      >>> ratio([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
      {'ratio': 2.0, 'low': 2.0, 'high': 2.0}
    """
    a, b = np.asarray(times), np.asarray(reference)
    rounds = np.random.default_rng(seed).integers(0, len(a), (BOOTSTRAPS, len(a)))
    drawn = np.median(a[rounds], axis=1) / np.median(b[rounds], axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"ratio": float(np.median(a) / np.median(b)), "low": float(low), "high": float(high)}


def whole_steps(config: config_dict.ConfigDict, names: Sequence[str], steps: int, warm_up: int) -> dict[str, Any]:
    """Steps of the arms on the configuration's own task, each from the same warm-started policy.

    ``warm_up`` steps of each are not counted: a length bucket compiles when it is first met.
    """
    with arms.TaskRun(config) as session:
        params, run = session.warm_started(), session.run
        trained = {name: session.arm(params, variant=VARIANTS[name]) for name in names}
        first = {name: arm.warm_up(warm_up) for name, arm in trained.items()}
        arms.take_turns(trained, steps)
    return {
        "shapes": {
            "what": "whole step: sample, grade, update",
            "parameters": trained["off"].parameters,
            "rollouts": run.rows,
            "prompt_tokens": run.rollouts.max_prompt_length,
            "completion_tokens": run.sampling.max_new_tokens,
            **vars(run.policy),
        },
        "arms": {
            name: {
                "seconds": arm.spreads(),
                "first_steps": first[name],
                "over_off": ratio(arm.seconds["step"], trained["off"].seconds["step"]),
                "update_over_off": ratio(arm.seconds["update"], trained["off"].seconds["update"]),
            }
            for name, arm in trained.items()
        },
    }


def policy_config(options: argparse.Namespace) -> config_dict.ConfigDict:
    """configs/base.py in the shape that the command line asks for; the vocabulary is not among its keys."""
    c = base.get_config()
    c.policy.update({name: value for name, value in POLICIES[options.policy].items() if name != "vocab_size"})
    c.policy.update(compute_dtype=options.dtype, attention=options.attention, remat=options.remat)
    group = options.group
    c.sampling.update(prompts_per_step=options.rollouts // group, rollouts_per_prompt=group)
    c.sampling.update(max_prompt_length=options.prompt, max_new_tokens=options.tokens - options.prompt)
    c.learner.update(microbatches=options.microbatches, vocab_chunk=options.vocab_chunk)
    return c


def random_rollouts(run: training_config.RunConfig) -> RolloutBatch:
    """Full rows of random tokens, one prompt a group, random binary rewards."""
    rng, size = np.random.default_rng(0), run.rollouts
    prompts = rng.integers(0, run.policy.vocab_size, (size.prompts_per_step, size.max_prompt_length))
    completions = rng.integers(0, run.policy.vocab_size, (run.rows, run.sampling.max_new_tokens))
    ones = jnp.ones(run.rows, bool)
    return RolloutBatch(
        tokens=jnp.asarray(np.concatenate([prompts.repeat(size.rollouts_per_prompt, 0), completions], 1), jnp.int32),
        prompt_mask=jnp.ones((run.rows, size.max_prompt_length), bool),
        completion_mask=jnp.ones(completions.shape, bool),
        sampler_log_probs=jnp.full(completions.shape, -np.log(run.policy.vocab_size), jnp.float32),
        rewards=jnp.asarray(rng.integers(0, 2, run.rows), jnp.float32),
        rewarded=ones,
        valid=ones,
        truncated=~ones,
    )


def model_flops(run: training_config.RunConfig) -> float:
    """Of one update: forward and backward pass over every token once; a group's prompt is one, as the step has it."""
    p, size = run.policy, run.rollouts
    q, kv = p.num_heads * p.head_dim, p.num_kv_heads * p.head_dim
    block = p.num_layers * (p.d_model * (2 * q + 2 * kv) + 3 * p.d_model * p.mlp_dim)
    prompt, new = size.max_prompt_length, run.sampling.max_new_tokens
    tokens = size.prompts_per_step * prompt + run.rows * new
    # Each token attends to itself and what comes before it: products with keys and with values.
    attended = size.prompts_per_step * prompt * (prompt + 1) / 2
    attended += run.rows * (new * prompt + new * (new + 1) / 2)
    head = run.rows * new * p.d_model * p.vocab_size
    return 6.0 * (block * tokens + head + 2 * p.num_layers * q * attended)


def matmul_rate(size: int, repeats: int = 10) -> float:
    """FLOPs a second of a size x size bfloat16 matmul, the best of ``repeats``."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)


def updates(options: argparse.Namespace) -> dict[str, Any]:
    """Updates of every arm in turns, from one state that goes from each to the next."""
    run = training_config.parse(policy_config(options))
    vocab_size = POLICIES[options.policy]["vocab_size"]
    run = dataclasses.replace(run, policy=dataclasses.replace(run.policy, vocab_size=vocab_size))
    runs = {
        name: dataclasses.replace(run, geometry=dataclasses.replace(run.geometry, **variant))
        for name, variant in VARIANTS.items()
        if name in options.arms
    }
    mesh = make_mesh()
    policy, optimizer = make_policy(run.policy, mesh), make_optimizer(run.optimizer, run.steps)
    params = jax.jit(lambda key: init_params(run.policy, key))(jax.random.key(0))
    basis = first_basis(runs["sketch"]) if "sketch" in runs else None
    state = init_state(params, optimizer, jax.random.key(1), sketch_basis=basis)
    state = jax.device_put(state, tree_shardings(state, mesh))
    del params
    rollouts = random_rollouts(run)
    memory, programs, compile_seconds = {}, {}, {}
    for name, variant in runs.items():
        start = time.perf_counter()
        step = jit_train_step(variant, policy, optimizer, mesh, state)
        programs[name] = step.lower(state, rollouts).compile()  # type: ignore[attr-defined]
        compile_seconds[name] = time.perf_counter() - start
        memory[name] = report.extra_bytes(programs[name])
        state, _ = jax.block_until_ready(programs[name](state, rollouts))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(options.steps):
        names = list(runs) if i % 2 == 0 else list(runs)[::-1]
        for name in names:
            start = time.perf_counter()
            state, _ = jax.block_until_ready(programs[name](state, rollouts))
            seconds[name].append(time.perf_counter() - start)
    found: dict[str, Any] = {
        "shapes": {
            "what": "update alone: random weights and tokens",
            "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
            "rollouts": run.rows,
            "prompt_tokens": run.rollouts.max_prompt_length,
            "completion_tokens": run.sampling.max_new_tokens,
            "microbatches": run.learner.microbatches,
            **vars(run.policy),
        },
        "arms": {
            name: {
                "seconds": {"update": report.spread(times)},
                "compile_seconds": compile_seconds[name],
                "extra_bytes": memory[name],
                "over_off": ratio(times, seconds["off"]),
            }
            for name, times in seconds.items()
        },
    }
    if options.mfu == "measured":
        rate, flops = matmul_rate(options.matmul), model_flops(run)
        median = report.spread(seconds["off"])["median"]
        found["mfu"] = {
            "model_flops": flops,
            "matmul_size": options.matmul,
            "matmul_flops_per_second": rate,
            "off": flops / median / rate,
        }
    return found


def targets(result: dict[str, Any]) -> list[report.Target]:
    """The aims."""
    kind = "policy" if "update alone" in result["shapes"]["what"] else "arithmetic"
    found = [
        report.Target(f"{name} over off", result["arms"][name]["over_off"]["ratio"], limit)
        for name, limit in LIMITS[kind].items()
        if name in result["arms"]
    ]
    if "mfu" in result:
        utilisation = report.Target("model FLOP utilisation, SALT off", result["mfu"]["off"], MFU_LIMIT, at_least=True)
        found.append(utilisation)
    return found


def print_result(result: dict[str, Any]) -> None:
    """The table, the targets, and what it was measured on."""
    shapes, measured = result["shapes"], result["arms"]
    parts = list(measured["off"]["seconds"])
    rows = []
    for name, arm in measured.items():
        over = arm["over_off"]
        cells = [f"{1e3 * arm['seconds'][p][s]:.1f}" for p in parts for s in ("median", "min")]
        rows.append([name, *cells, f"{over['ratio']:.3f} [{over['low']:.3f}, {over['high']:.3f}]"])
    columns = [f"{part} {statistic}" for part in parts for statistic in ("median", "min")]
    title = f"{shapes['what']}; milliseconds, {shapes['parameters']:,} parameters, {shapes['rollouts']} rollouts"
    report.print_table(title, ("SALT", *columns, "over off [95 %]"), rows)
    if "mfu" in result:
        mfu = result["mfu"]
        print(f"{mfu['model_flops']:.3g} model FLOPs an update; matmul {mfu['matmul_flops_per_second']:.3g} FLOP/s")
    report.print_targets(targets(result))
    report.print_surroundings(result)


def main(arguments: Sequence[str] | None = None, config: config_dict.ConfigDict | None = None) -> dict[str, Any]:
    """Command line; ``config`` replaces the arithmetic configuration (tests)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each arm")
    parser.add_argument("--warm-up", type=int, default=6, help="steps before that are not counted")
    parser.add_argument("--arms", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--json", type=local_path, help="file to write the result to")
    shape = parser.add_argument_group("update alone, of a policy's shape")
    shape.add_argument("--policy", choices=sorted(POLICIES))
    shape.add_argument("--rollouts", type=int, default=64)
    shape.add_argument("--group", type=int, default=8, help="rollouts a prompt")
    shape.add_argument("--tokens", type=int, default=1024, help="tokens a rollout, its prompt included")
    shape.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    shape.add_argument("--microbatches", type=int, default=1)
    shape.add_argument("--vocab-chunk", type=int, default=4096, help="columns of logits held at once")
    shape.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    shape.add_argument("--attention", default="segments", help="config.policy.attention; cudnn on NVIDIA GPUs")
    shape.add_argument("--remat", default="full", help="config.policy.remat")
    shape.add_argument("--mfu", choices=("measured",), help="model FLOP utilisation against a matmul timed here")
    shape.add_argument("--matmul", type=int, default=8192, help="side of that matmul")
    options = parser.parse_args(arguments)
    if min(options.steps, options.warm_up) < 1:
        parser.error("--steps and --warm-up must be at least 1")
    if "off" not in options.arms:
        parser.error("--arms needs off: the others are compared with it")
    if options.mfu and not options.policy:
        parser.error("--mfu needs --policy")
    if options.policy and not 0 < options.prompt < options.tokens:
        parser.error("--prompt must be between 1 and --tokens - 1")
    if options.policy:
        measured = updates(options)
    else:
        measured = whole_steps(config or arithmetic.get_config(), options.arms, options.steps, options.warm_up)
    result = report.surroundings() | measured
    result["targets"] = [target.record() for target in targets(result)]
    print_result(result)
    if options.json:
        report.write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
