"""One run of the study: python -m experiments.study.one NAME --workdir=DIR --results=DIR [--core=N].

NAME is a run of ``plan``, or 'warm-sSEED', the supervised phase that all runs of a seed start from. Trains in DIR/NAME,
evaluates the last policy at temperature 1 too, and writes RESULTS/NAME.json. An interrupted run goes on; one that
diverges, as with numbers that are not finite, has a result too: it counts, with an accuracy of 0. What else ends a run,
as a full disk, says nothing of its arm: one line, exit status 1, no result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import cli, runs
from experiments.arguments import local_path
from experiments.benchmarks.report import cores, cpu_model
from experiments.study import plan
from salt_jax.run import judging, provenance, setup
from salt_jax.run.guards import DivergenceError, NonFiniteError
from salt_jax.run.loop import train
from salt_jax.run.preemption import Interrupted
from salt_jax.run.workdir import write_atomically

# Of metrics.jsonl; means over EVERY steps are kept.
KEPT = (
    "reward", "entropy", "grad_norm", "completion_length", "truncated", "groups_with_signal", "salt/alpha", "salt/k",
    "salt/cosine", "salt/eigengap", "geometry/n_eff_in", "geometry/n_eff_out", "geometry/n_eff_total",
    "geometry/participation_ratio_in", "geometry/participation_ratio_total", "geometry/kish_count_in",
    "geometry/kish_count_total",
)  # fmt: skip
EVERY = 100


def windows(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Means over every EVERY steps, 4 digits; None where a metric was not recorded or nothing had a signal.

    >>> windows([{"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.75}])["reward"]
    [0.5]
    """
    last = max((int(record["step"]) for record in records), default=0)
    found = {}
    for name in KEPT:
        steps, values = runs.series(records, name)
        parts = [values[(steps > start) & (steps <= start + EVERY)] for start in range(0, last, EVERY)]
        means = [float(f"{part.mean():.4g}") if part.size else None for part in parts]
        if any(mean is not None for mean in means):
            found[name] = means
    return found


def train_one(name: str, workdir: Path) -> dict[str, Any]:
    """Trains or goes on, and evaluates; what a result says of it."""
    run, folder = plan.parse(name), workdir / name
    config = plan.config_of(run, workdir / f"warm-s{run.seed}")
    console, began, stopped, sampled = Console(width=200), time.perf_counter(), None, None
    try:
        train(config, folder, console)
    except (NonFiniteError, DivergenceError) as error:
        stopped = str(error)
    seconds = time.perf_counter() - began
    if stopped is None:
        config.update_from_flattened_dict(plan.SAMPLED)
        results = judging.evaluate_run(config, folder, console, plan.STEPS)
        scores = judging.record(setup.parse(config), results)
        sampled = {key: scores[key] for key in ("accuracy", "pass@8", "length", "problems", "missing")}
    made = runs.load([folder])[0]
    stamp = provenance.stamp()
    return {
        "name": name, "changes": run.changes, "stopped": stopped,
        "accuracy": {str(record["step"]): record["accuracy"] for record in made.evaluations},
        "sampled": sampled,
        "first_reward": made.metrics[0]["reward"] if made.metrics else None,
        "windows": windows(made.metrics),
        "seconds": round(seconds, 1),
        "made_by": {key: stamp[key] for key in ("salt-jax", "commit", "modified", "python", "jax")}
        | {"date": time.strftime("%Y-%m-%d"), "machine": f"{cpu_model()}, {cores()} core(s)"},
    }  # fmt: skip


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Whole or not at all: a result that exists is not made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(result, separators=(",", ":"), allow_nan=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("name")
    parser.add_argument("--workdir", type=local_path, required=True)
    parser.add_argument("--results", type=local_path, required=True)
    parser.add_argument("--core", type=int, help="the only one to run on")
    options = parser.parse_args(arguments)
    if options.core is not None:  # before JAX counts them
        os.sched_setaffinity(0, {options.core})

    warm = options.name.removeprefix("warm-s")
    try:
        if warm != options.name and warm.isdecimal():
            train(plan.warm_config(int(warm)), options.workdir / options.name)
        else:
            write(options.results / f"{options.name}.json", train_one(options.name, options.workdir))
    except Interrupted as interrupted:
        print(f"interrupted by {interrupted}: saved; the same command goes on", file=sys.stderr)
        return interrupted.status
    except (cli.ConfigError, *cli.STOPS) as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.BAD_INPUT if isinstance(error, cli.ConfigError) else cli.STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
