"""What the numerical guards add to a training step: guarded and unguarded steps in turns.

    python -m experiments.benchmarks.guards [--steps=200] [--json=FILE]

The whole step (sample, grade, update) of configs/arithmetic.py with its task and its rewards, after its warm start.
Guarded: the update stays out where something is not finite, and the host looks at every metric and threshold, all of
which are set. Unguarded: every update is applied and nothing looks at it. Both arms begin with the same policy and
sample the same rollouts, as nothing is ever skipped here; both fetch their metrics.

The ratio is of medians over the arms' steps; its interval is a bootstrap over the rounds in which they took turns.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import config_dict

from configs import arithmetic
from experiments.arguments import local_path
from experiments.benchmarks import arms, report
from experiments.benchmarks.salt_overhead import ratio
from salt_jax.distributed.sharding import make_mesh
from salt_jax.learner.settings import RunConfig
from salt_jax.learner.state import TrainState, make_optimizer
from salt_jax.learner.step import jit_train_step
from salt_jax.rollout import RolloutBatch
from salt_jax.run.guards import MONITORS, Guards

LIMIT = 1.02  # of the whole step
FAR = 1e30  # no metric is past it


def all_watched(run: RunConfig) -> RunConfig:
    """The run with every threshold set, far away."""
    limits: dict[str, Any] = {}
    for monitor in MONITORS:
        limits |= {f"{monitor}_{what}": -FAR if monitor.endswith("_low") else FAR for what in ("warn", "stop")}
    return dataclasses.replace(run, monitors=dataclasses.replace(run.monitors, **limits))


def make_arm(session: arms.TaskRun, params: Any, *, guarded: bool) -> arms.Arm:
    """An arm that trains a copy of ``params``."""
    arm = session.arm(params)
    run = arm.run
    optimizer = make_optimizer(run.optimizer, run.steps)
    step = jit_train_step(run, session.policy, optimizer, make_mesh(), arm.state, guard=guarded)
    guards = Guards(all_watched(run), print)
    number = 0

    def update(state: TrainState, rollouts: RolloutBatch) -> tuple[TrainState, dict[str, Any]]:
        nonlocal number
        number += 1
        state, metrics = step(state, rollouts)
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if guarded:
            guards.observe(number, values)
        return state, metrics

    arm.update = update
    return arm


def extra_bytes(session: arms.TaskRun, arm: arms.Arm, *, guarded: bool) -> int:
    """What the compiled update allocates besides its arguments."""
    run = arm.run
    step = jit_train_step(
        run, session.policy, make_optimizer(run.optimizer, run.steps), make_mesh(), arm.state, guard=guarded
    )
    rollouts = arm.grade(arm.sample(arm.state))
    return report.extra_bytes(step.lower(arm.state, rollouts).compile())  # type: ignore[attr-defined]


def measure(config: config_dict.ConfigDict, steps: int, warm_up: int) -> dict[str, Any]:
    """Times both arms; ``warm_up`` steps of each are not counted."""
    with arms.TaskRun(config) as session:
        params = session.warm_started()
        pair = {name: make_arm(session, params, guarded=name == "guarded") for name in ("unguarded", "guarded")}
        memory = {name: extra_bytes(session, arm, guarded=name == "guarded") for name, arm in pair.items()}
        for arm in pair.values():
            arm.warm_up(warm_up)
        arms.take_turns(pair, steps)
    run, free = session.run, pair["unguarded"]
    skipped = sum(seen["guards/skipped"] for seen in pair["guarded"].metrics)
    if skipped:
        raise RuntimeError(f"{skipped:g} updates were skipped: the two arms did not do the same")
    return {
        "shapes": {
            "what": "whole step: sample, grade, update", "parameters": free.parameters, "rollouts": run.rows,
            "prompt_tokens": run.rollouts.max_prompt_length, "completion_tokens": run.sampling.max_new_tokens,
            **vars(run.policy),
        },
        "arms": {
            name: {
                "seconds": arm.spreads(),
                "extra_bytes": memory[name],
                "over_unguarded": ratio(arm.seconds["step"], free.seconds["step"]),
                "update_over_unguarded": ratio(arm.seconds["update"], free.seconds["update"]),
            }
            for name, arm in pair.items()
        },
    }  # fmt: skip


def targets(result: dict[str, Any]) -> list[report.Target]:
    """The aims."""
    return [report.Target("guarded over unguarded", result["arms"]["guarded"]["over_unguarded"]["ratio"], LIMIT)]


def print_result(result: dict[str, Any]) -> None:
    """The table, the target, and what it was measured on."""
    rows = []
    for name, arm in result["arms"].items():
        cells = [f"{1e3 * arm['seconds'][part][s]:.2f}" for part in arms.PARTS for s in ("median", "min")]
        of = [arm["over_unguarded"], arm["update_over_unguarded"]]
        ratios = [f"{one['ratio']:.4f} [{one['low']:.4f}, {one['high']:.4f}]" for one in of]
        rows.append([name, *cells, f"{arm['extra_bytes']:,}", *ratios])
    columns = [f"{part} {statistic}" for part in arms.PARTS for statistic in ("median", "min")]
    shapes = result["shapes"]
    title = f"{shapes['what']}; milliseconds, {shapes['parameters']:,} parameters, {shapes['rollouts']} rollouts"
    report.print_table(title, ("", *columns, "bytes", "step over [95 %]", "update over [95 %]"), rows)
    report.print_targets(targets(result))
    report.print_surroundings(result)


def main(arguments: Sequence[str] | None = None, config: config_dict.ConfigDict | None = None) -> dict[str, Any]:
    """Command line; ``config`` replaces the arithmetic configuration (tests)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=200, help="timed steps of each arm")
    parser.add_argument("--warm-up", type=int, default=6, help="steps before that are not counted")
    parser.add_argument("--json", type=local_path, help="file to write the result to")
    options = parser.parse_args(arguments)
    if min(options.steps, options.warm_up) < 1:
        parser.error("--steps and --warm-up must be at least 1")
    result = report.surroundings() | measure(config or arithmetic.get_config(), options.steps, options.warm_up)
    result["targets"] = [target.record() for target in targets(result)]
    print_result(result)
    if options.json:
        report.write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
