"""Computes the step that stopped a run again: python -m experiments.replay DUMP [--rows=N].

DUMP is the folder that the run's last line names. The train step runs on the dumped batch and state, on the dumped
mesh where there are devices for it. Printed are the metrics that are not finite and whether they are those that were
recorded, the rollouts whose log-probabilities, advantages or rewards are not finite, the parameters whose values or
gradients are not, and the largest ratio of trainer and sampler.
Exit status: 0 done, 1 the device could not compute it, 2 no dump or one that is damaged.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from rich.console import Console

from experiments.arguments import local_path
from salt_jax.distributed.sharding import batch_sharding, layout, make_mesh, path_of, tree_shardings
from salt_jax.learner.harvest import harvest
from salt_jax.learner.reweighting import first_basis
from salt_jax.learner.settings import RunConfig
from salt_jax.learner.state import TrainState, init_params, init_state, make_optimizer, make_policy
from salt_jax.learner.step import jit_train_step
from salt_jax.learner.weighing import Batch, with_advantages
from salt_jax.rollout import RolloutBatch
from salt_jax.run import provenance, setup
from salt_jax.run.config import parse
from salt_jax.run.dumps import Dump, read_dump, restore_state
from salt_jax.run.guards import not_finite
from salt_jax.spec import ConfigError
from salt_jax.tasks import Tokenizer

BAD_INPUT = 2
SHOWN_TEXT = 80  # characters of a completion


class Replay(NamedTuple):
    """What a dumped step did when it was computed again.

    Attributes:
      metrics: of the step.
      rows: row → what of it is not finite, in the order of rows.
      values: path of a parameter → how many of its numbers are not finite, where there are some.
      gradients: the same of its gradients, over all updates of the step; parameters stay where they are meanwhile.
      largest_log_ratio: max |log π_now − log π_sampler| over the tokens that were learnt from, nats; of finite ones.
    """

    metrics: dict[str, float]
    rows: dict[int, list[str]]
    values: dict[str, int]
    gradients: dict[str, int]
    largest_log_ratio: float


class Setting(NamedTuple):
    """The run of a dump, rebuilt."""

    run: RunConfig
    mesh: Mesh
    policy: Any
    optimizer: optax.GradientTransformation
    state: TrainState


def rebuild(dump: Dump, console: Console) -> Setting:
    """The run and the state before the dumped step.

    Raises:
      ConfigError: the dump's configuration is not allowed, or its state damaged.
    """
    run = parse(dump.config)
    run = dataclasses.replace(run, policy=dataclasses.replace(run.policy, vocab_size=dump.vocab_size))
    asked = run.mesh.data * run.mesh.fsdp * run.mesh.tensor
    if asked > jax.device_count():
        console.print(f"{asked} devices were used, here is {jax.device_count()}: computed on one; rounding differs")
        mesh = make_mesh()
    else:
        mesh = make_mesh(run.mesh.data, run.mesh.fsdp, run.mesh.tensor)
    optimizer = make_optimizer(run.optimizer, run.steps * run.learner.minibatches * run.learner.epochs)
    shapes = jax.eval_shape(
        lambda key: init_state(
            init_params(run.policy, key), optimizer, key, keep_reference=run.objective.needs_reference,
            sketch_basis=first_basis(run),
        ),
        jax.random.key(0),
    )

    def at(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = restore_state(dump, jax.tree.map(at, shapes, tree_shardings(shapes, mesh)))
    before = dataclasses.replace(  # what a step draws comes from its number
        state, step=jnp.full_like(state.step, dump.step - 1),
        consumed_prompts=jnp.full_like(state.consumed_prompts, (dump.step - 1) * run.rollouts.prompts_per_step),
    )
    before = jax.device_put(before, tree_shardings(before, mesh))
    return Setting(run, mesh, make_policy(run.policy, mesh), optimizer, before)


def replay(dump: Dump, console: Console) -> Replay:
    """Computes the dumped step again, and looks for what is not finite."""
    run, mesh, policy, optimizer, state = rebuild(dump, console)
    batch = jax.device_put(jax.tree.map(jnp.asarray, dump.batch), batch_sharding(mesh))
    measure = "geometry/gram_finite" in dump.metrics and not run.geometry.enabled
    step = functools.partial(jit_train_step, run, policy, mesh=mesh, measure=measure)
    values = _counts(state.params)
    counting = dataclasses.replace(state, opt_state=None)  # no second copy of the moments
    counting = dataclasses.replace(jax.tree.map(jnp.copy, counting), opt_state=_counter().init(state.params))
    after, _ = step(optimizer=_counter(), state=counting, guard=False)(counting, batch)
    gradients = _named(jax.tree.unflatten(jax.tree.structure(state.params), after.opt_state))
    rows, largest = _look_at_rows(run, mesh, policy, state, batch)
    _, metrics = step(optimizer=optimizer, state=state)(state, batch)  # last: it takes the state
    found = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return Replay(found, rows, values, gradients, largest)


def _counter() -> optax.GradientTransformation:
    """An optimizer that moves nothing, and counts the gradients that are not finite, parameter by parameter."""

    def init(params: Any) -> list[jax.Array]:  # no tree like the parameters: the rules of sharding go by its names
        return [jnp.zeros((), jnp.int32) for _ in jax.tree.leaves(params)]

    def update(grads: Any, counts: list[jax.Array], params: Any = None) -> tuple[Any, list[jax.Array]]:
        bad = [jnp.sum(~jnp.isfinite(g), dtype=jnp.int32) for g in jax.tree.leaves(grads)]
        return jax.tree.map(jnp.zeros_like, grads), [n + more for n, more in zip(counts, bad, strict=True)]

    return optax.GradientTransformation(init, update)


def _counts(tree: Any) -> dict[str, int]:
    count = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x), dtype=jnp.int32), tree))
    return _named(count(tree))


def _named(counts: Any) -> dict[str, int]:
    """Path → number, where it is not 0."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(counts))
    return {path_of(path): int(number) for path, number in leaves if number}


def _look_at_rows(
    run: RunConfig, mesh: Mesh, policy: Any, state: TrainState, rollouts: RolloutBatch
) -> tuple[dict[int, list[str]], float]:
    """Rows with something that is not finite, and the largest log-ratio; advantages are those before SALT."""
    at = layout(mesh, state.params["embedding"].shape[0])

    @jax.jit
    def look(state: TrainState, rollouts: RolloutBatch) -> Any:
        reference = None
        if run.objective.needs_reference:
            reference = harvest(run, policy, state.ref_params, rollouts, layout=at)[0].log_probs
        scores, _ = harvest(
            run, policy, state.params, rollouts, layout=at, kept="log_proxy" in run.objective.needs
        )
        batch = Batch(rollouts, old_log_probs=scores.log_probs, ref_log_probs=reference)
        advantages = with_advantages(state, batch, run, scores)[0].advantages
        return scores.log_probs, advantages

    log_probs, advantages = jax.device_get(look(state, rollouts))
    mask, graded = (np.asarray(x) for x in (rollouts.loss_mask, rollouts.valid & rollouts.rewarded))
    sampled, rewards = np.asarray(rollouts.sampler_log_probs), np.asarray(rollouts.rewards)
    advantages = advantages.reshape(len(advantages), -1)
    bad = {
        "log-probs": (mask & ~np.isfinite(log_probs)).any(axis=1),
        "the sampler's log-probs": (mask & ~np.isfinite(sampled)).any(axis=1),
        "advantage": graded & ~np.isfinite(advantages).all(axis=1),
        "reward": graded & ~np.isfinite(rewards),
    }
    rows = {row: [name for name, where in bad.items() if where[row]] for row in range(len(rewards))}
    drawn = np.ones(len(rewards), bool)
    for name in ("demonstration", "injected"):  # not drawn from this policy at this temperature
        drawn &= ~np.asarray(rollouts.extra.get(name, False))
    both = mask & drawn[:, None] & np.isfinite(log_probs) & np.isfinite(sampled)
    ratios = np.abs(np.where(both, log_probs, 0) - np.where(both, sampled, 0))
    return {row: names for row, names in rows.items() if names}, float(ratios.max(initial=0.0))


def tokenizer_of(run: RunConfig) -> Tokenizer | None:
    """The tokenizer of the run's task; None where the task cannot be set up here."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            # a task that needs a model's tokenizer is not made: a dump must not name a reward to import
            return setup.make_tokenizer(run) or setup.make_task(run, Path(folder), None).tokenizer
        except (ValueError, OSError, ImportError):
            return None


def describe(dump: Dump, found: Replay, console: Console, rows: int) -> None:
    """Prints what a replay found."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(f"step {dump.step}: stopped by {dump.statistic}; last good checkpoint: {dump.checkpoint}")
    if not dump.exact:
        say("the state is that after the step, or one later: the step cannot be computed exactly as it was")
    here = provenance.stamp()
    changed = [name for name, was in dump.versions.items() if was != here.get(name)]
    if changed:
        shown = ", ".join(f"{name} was {dump.versions[name]} and is {here.get(name)}" for name in changed)
        say(f"computed elsewhere: {shown}")
    bad = list(dict.fromkeys([*not_finite(dump.metrics), *not_finite(found.metrics)]))
    say(f"metrics that are not finite: {', '.join(bad) or 'none'}")
    for name in bad:
        there, now = dump.metrics.get(name, np.nan), found.metrics.get(name, np.nan)
        same = "as recorded" if there == now or (np.isnan(there) and np.isnan(now)) else f"recorded: {there}"
        say(f"  {name} = {now} ({same})")
    common = [name for name in dump.metrics if name in found.metrics and name not in bad]
    equal = sum(dump.metrics[name] == found.metrics[name] for name in common)
    say(f"of the {len(common)} finite metrics {equal} have the recorded bits")
    _describe_rows(dump, found, say, rows)
    for what, counts in (("values", found.values), ("gradients", found.gradients)):
        named = ", ".join(f"{path} ({count:,})" for path, count in counts.items())
        say(f"parameters with {what} that are not finite: {named or 'none'}")
    say(f"largest |log-ratio| to the sampler: {found.largest_log_ratio:.3g} nats")


def _describe_rows(dump: Dump, found: Replay, say: Any, rows: int) -> None:
    say(f"rollouts with something that is not finite: {len(found.rows)} of {len(dump.batch.rewards)}")
    run = parse(dump.config)
    tokenizer = tokenizer_of(run) if found.rows else None
    for row, names in [*found.rows.items()][:rows]:
        text = ""
        if tokenizer is not None:
            tokens = np.concatenate([
                dump.batch.prompts[row][dump.batch.prompt_mask[row]],
                dump.batch.completions[row][dump.batch.completion_mask[row]],
            ])
            text = f": {tokenizer.decode(tokens.tolist())[-SHOWN_TEXT:]!r}"
        say(f"  row {row}, group {row // run.rollouts.rollouts_per_prompt}: {', '.join(names)}{text}")
    if len(found.rows) > rows:
        say(f"  and {len(found.rows) - rows} more (--rows)")


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.replay", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("dump", type=local_path, help="folder named in the run's last line")
    parser.add_argument("--rows", type=int, default=16, help="rollouts shown at most")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax logs every file
    console = console or Console()
    try:
        dump = read_dump(options.dump)
        describe(dump, replay(dump, console), console, options.rows)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except jax.errors.JaxRuntimeError as error:  # a step that fitted where it was dumped need not fit here
        print(f"error: {str(error).splitlines()[0][:300]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
