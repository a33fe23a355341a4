"""Stages `ceilings`, `step`, `geometry` and `decode`: how fast, against what the device can."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.accelerator.held import decaying_gram
from experiments.accelerator.measuring import (
    COPY,
    GIB,
    WHOLE,
    Program,
    compile_together,
    failed,
    fused,
    policy_of,
    seconds,
)
from experiments.accelerator.rows import Row, Setting
from experiments.benchmarks import report, sampling
from experiments.benchmarks.salt_overhead import (
    POLICIES,
    VARIANTS,
    model_flops,
    policy_config,
    random_rollouts,
)
from experiments.benchmarks.tpu_aot import memory
from salt_jax import geometry, salt, vocab
from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.learner.reweighting import first_basis
from salt_jax.learner.state import TrainState, init_params, init_state, make_optimizer, make_policy
from salt_jax.learner.step import jit_train_step
from salt_jax.policy.sampler import SamplingConfig, sample
from salt_jax.run import config as training_config

STEP_AIMS = {"exact": 1.08, "sketch": 1.03}  # over SALT off
MINIBATCHES = (256, 64, 1024)  # m, the one with an aim first
BLOCK = 64  # rollouts: what is linear in m is timed once


def ceilings(setting: Setting) -> Iterator[Row]:
    """The rate of a large bfloat16 product, and bytes read and written a second by a copy larger than any cache."""
    n = 256 if setting.tiny else 8192
    a, b = (jax.random.normal(key, (n, n), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    x = jnp.ones(2**18 if setting.tiny else 2**29)
    programs = compile_together({
        WHOLE: lambda: jax.jit(jnp.matmul).lower(a, b), COPY: lambda: jax.jit(jnp.negative).lower(x),
    })  # fmt: skip
    run = seconds(programs[WHOLE], a, b)
    note = f"{n:,} cubed"
    yield Row(WHOLE, 2 * n**3 / run / 1e12, "TFLOP/s", compile=programs[WHOLE].seconds, run=run, note=note)
    run = seconds(programs[COPY], x)
    note = f"{x.nbytes / GIB:.3g} GiB, read and written"
    yield Row(COPY, 2 * x.nbytes / run / 1e12, "TB/s", compile=programs[COPY].seconds, run=run, note=note)


def ceiling(setting: Setting, what: str) -> float:
    """What stage `ceilings` found, in operations or bytes a second; measured here where it has not run."""
    known = setting.known.get(("ceilings", what))
    rates = {what: known} if known else {row.what: row.value for row in ceilings(setting)}
    return 1e12 * (rates[what] or float("nan"))


def step(setting: Setting) -> Iterator[Row]:
    """Whole updates with SALT off, exact and sketched, by the fused attention; by `segments` where that fails."""
    shape = argparse.Namespace(
        policy="tiny" if setting.tiny else "qwen2.5-1.5b", rollouts=64, group=8, dtype="bfloat16", remat="full",
        prompt=16 if setting.tiny else 256, tokens=48 if setting.tiny else 1280, vocab_chunk=4096,
        attention=fused(), microbatches=1,
    )  # fmt: skip
    try:
        yield from _updates(setting, shape)
    except Exception as error:
        yield failed(f"updates with {shape.attention}", error)
        vars(shape).update(attention="segments", microbatches=8)  # scores of all rollouts at once would not fit
        yield from _updates(setting, shape)


def _updates(setting: Setting, shape: argparse.Namespace) -> Iterator[Row]:
    run = training_config.parse(policy_config(shape))
    vocab_size = POLICIES[shape.policy]["vocab_size"]
    run = dataclasses.replace(run, policy=dataclasses.replace(run.policy, vocab_size=vocab_size))
    runs = {
        name: dataclasses.replace(run, geometry=dataclasses.replace(run.geometry, **variant))
        for name, variant in VARIANTS.items()
    }
    mesh, basis, rollouts = make_mesh(), first_basis(runs["sketch"]), random_rollouts(run)
    policy, optimizer = make_policy(run.policy, mesh), make_optimizer(run.optimizer, run.steps)

    def start(key: jax.Array) -> TrainState:
        return init_state(init_params(run.policy, key), optimizer, key, sketch_basis=basis)

    shapes = jax.eval_shape(start, jax.random.key(0))
    lowerings: dict[str, Any] = {
        name: lambda variant=variant: jit_train_step(variant, policy, optimizer, mesh, shapes).lower(shapes, rollouts)  # type: ignore[attr-defined]
        for name, variant in runs.items()
    }
    programs = compile_together(lowerings)
    assert programs["off"].compiled  # or its exception is raised, before anything is allocated
    state = jax.jit(start, out_shardings=tree_shardings(shapes, mesh))(jax.random.key(0))
    rate, off = ceiling(setting, WHOLE), float("nan")
    for name, program in programs.items():
        try:
            times = []
            for _ in range(4):  # one state, which goes from each to the next
                began = time.perf_counter()
                state, metrics = jax.block_until_ready(program(state, rollouts))
                times.append(time.perf_counter() - began)
            if metrics["guards/skipped"] > 0:
                raise FloatingPointError("the update was skipped: something is not finite")
        except Exception as error:
            yield failed(f"update, SALT {name}", error)
            if name == "off":
                raise
            continue
        median = float(np.median(times[1:]))
        note = f"{shape.attention}, remat {shape.remat}, microbatches {shape.microbatches}; "
        note += f"first {times[0]:.2f} s, then {min(times[1:]):.3f} to {max(times[1:]):.3f}"
        yield Row(f"update, SALT {name}", median, "s", compile=program.seconds, run=median, note=note)
        if name == "off":
            off, flops = median, model_flops(run)
            note = f"{flops:.3g} FLOPs; what remat computes again is not counted"
            yield Row("MFU, SALT off", flops / off / rate, "", 0.45, at_least=True, note=note)
        else:
            yield Row(f"SALT {name} over off", median / off, "×", STEP_AIMS[name])
        yield _memory(f"memory, SALT {name}", program)


def _memory(what: str, program: Program) -> Row:
    held = memory(program.compiled)
    size = held["arguments"] + held["temporaries"] + held["outputs"] - held["aliased"]
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    note = f"arguments {held['arguments'] / GIB:.1f}, temporaries {held['temporaries'] / GIB:.1f}"
    return Row(what, size / GIB, "GiB", note=f"{note}; most allocated so far {peak / GIB:.1f}")


def geometry_speed(setting: Setting) -> Iterator[Row]:
    """The Gram of a minibatch and the eigen-part, beside the LM head's own forward and backward pass."""
    rate, rng = ceiling(setting, WHOLE), np.random.default_rng(0)
    t, v, h = (16, 512, 32) if setting.tiny else (1024, 151_936, 1536)
    head = jax.jit(lambda: jax.random.normal(jax.random.key(0), (h, v)) * (3.0 / h**0.5))()
    spectra = {m: (decaying_gram(m, rng), rng.choice([-1.0, 1.0], m).astype(np.float32)) for m in MINIBATCHES}
    states = {m: _random_states(m, t, head) for m in MINIBATCHES}
    chunk = min(4096, max(GIB // (BLOCK * t), 128))  # logits of 4 GiB at most

    def loss(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        return -vocab.token_log_probs(hidden, head, targets, chunk_size=chunk).log_probs.mean()

    def sketch(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        mask = jnp.ones(targets.shape, bool)
        found = geometry.lm_head_sketch(hidden, head, targets, mask, jax.random.key(1), chunk_size=chunk)
        return geometry.sketch_gram(found)

    def exact(of: tuple[jax.Array, jax.Array], head: jax.Array) -> jax.Array:
        hidden, targets = of
        mask, normalizer = jnp.ones(targets.shape, bool), jnp.full(targets.shape, 16.0)  # the step knows the true ones
        return jnp.sum(geometry.lm_head_gram(hidden, head, targets, mask, log_normalizer=normalizer))

    def reweight(of: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.sum(salt.reweight(*of, salt.SaltConfig()).advantages)

    block = states[BLOCK]
    names = [f"LM head, forward and backward, {BLOCK} rollouts", f"sketch of {BLOCK} rollouts"]
    programs = compile_together({
        names[0]: lambda: jax.jit(jax.grad(loss, (0, 1))).lower(block[0], head, block[1]),
        names[1]: lambda: jax.jit(sketch).lower(block[0], head, block[1]),
        "Gram": lambda: _one_of(exact).lower(0, states, head),
        "eigen-part": lambda: _one_of(reweight).lower(0, spectra),
    })  # fmt: skip
    # FLOPs of what has to be computed: one forward and two backward products, nothing for logits made twice.
    product, signs, base = 2.0 * BLOCK * t * v * h, 2.0 * BLOCK * t * v * geometry.num_signs(1024, v), float("nan")
    for name, flops in zip(names, (3 * product, product + signs), strict=True):
        try:
            run = seconds(programs[name], block[0], head, block[1], most=5)
            base = run if name == names[0] else base
            note = "linear in m" if name == names[0] else f"{run / base:.2f} × the LM head, linear in m"
            yield _timed(name, programs[name], run, flops / rate, note)
        except Exception as error:
            yield failed(name, error)
    spectra = jax.device_put(spectra)
    for i, m in enumerate(MINIBATCHES):
        try:
            program, note = programs["eigen-part"], "iterated" if m > 256 else "whole eigh"
            run = seconds(program, i, spectra)
            yield Row(f"eigen-part, m = {m}", 1e3 * run, "ms", compile=program.seconds, run=run, note=note)
            program, of_head = programs["Gram"], base * m / BLOCK
            run = seconds(program, i, states, head, most=5)
            square = 2.0 * m * m * v * h * (0.625 if m >= 128 else 1.0)  # half of it and the diagonal blocks
            least, note = (2 * product * m / BLOCK + square) / rate, f"{run / of_head:.2f} × the LM head"
            row = _timed(f"Gram, exact, m = {m}", program, run, least, note)
            yield dataclasses.replace(row, aim=1e3 * of_head if m == MINIBATCHES[0] else None)
        except Exception as error:
            yield failed(f"Gram and eigen-part, m = {m}", error)


def _one_of(function: Any) -> Any:
    """Jitted (which, of, *rest) -> ``function`` of that entry of ``of``: one program for all minibatches."""

    def run(which: jax.Array, of: dict[int, Any], *rest: Any) -> jax.Array:
        return jax.lax.switch(which, [lambda m=m: function(of[m], *rest) for m in MINIBATCHES])

    return jax.jit(run)


def _timed(what: str, program: Program, run: float, least: float, note: str) -> Row:
    """A row in ms; ``least`` seconds are what its products take at the measured rate."""
    note = f"{least / run:.0%} of the product's rate, {report.extra_bytes(program.compiled) / GIB:.2f} GiB, {note}"
    return Row(what, 1e3 * run, "ms", compile=program.seconds, run=run, note=note)


def _random_states(m: int, t: int, head: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden states (m, t, H) bfloat16, and tokens (m, t)."""
    keys = jax.random.split(jax.random.key(m))
    hidden = jax.jit(lambda: jax.random.normal(keys[0], (m, t, head.shape[0]), jnp.bfloat16))()
    return hidden, jax.random.randint(keys[1], (m, t), 0, head.shape[1])


def decode(setting: Setting) -> Iterator[Row]:
    """Tokens a second of the sampler, prompts included, and the share of what reading weights and caches takes."""
    rate, policy = ceiling(setting, COPY), policy_of(setting)
    new, prompt = (8, 8) if setting.tiny else (256, 256)
    config, model = SamplingConfig(max_new_tokens=new), make_policy(policy)

    def generate(params: Any, ids: jax.Array) -> Any:
        return sample(
            nnx.merge(model, params), ids, jnp.ones(ids.shape, bool), jax.random.key(2), group_size=8,
            config=config, stop_ids=(policy.vocab_size,), pad_id=0,  # an id that is never drawn
        )  # fmt: skip

    params = jax.jit(functools.partial(init_params, policy))(jax.random.key(0))
    ids = {
        rows: jax.random.randint(jax.random.key(rows), (rows // 8, prompt), 0, policy.vocab_size) for rows in (64, 512)
    }
    lowerings = {str(rows): functools.partial(jax.jit(generate).lower, params, of) for rows, of in ids.items()}
    programs = compile_together(lowerings)
    for rows, of in ids.items():
        program, size = programs[str(rows)], argparse.Namespace(
            prompts=rows // 8, rollouts=8, prompt=prompt, new_tokens=new
        )  # fmt: skip
        try:
            run = seconds(program, params, of, most=2)
        except Exception as error:
            yield failed(f"{rows} rollouts", error)
            continue
        needed = (sampling.matrix_bytes(policy) + sampling.cache_bytes(policy, config, size)) * new
        note = f"{1e3 * run / new:.2f} ms a token, {report.extra_bytes(program.compiled) / GIB:.1f} GiB"
        yield Row(f"{rows} rollouts", rows * new / run, "tokens/s", compile=program.seconds, run=run, note=note)
        aim = 0.4 if rows == 64 else None
        yield Row(f"share of the bandwidth, {rows} rollouts", needed / rate / run, "", aim, at_least=True)
