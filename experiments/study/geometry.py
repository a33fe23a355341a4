"""Measures the geometry of frozen checkpoints: python -m experiments.study.geometry --json=OUT (--run=DIR
[--checkpoint=STEP,STEP] | --config=FILE [--config.KEY=VALUE]) [--temperatures=0.6,1] [--groups=2,4,16,64] ...

The policies are checkpoints of --run, or the pretrained model of --config. Of each, at each temperature, --rollouts
completions of each of --prompts training prompts are drawn once and graded; every feature and every G sees the same
rollouts. A group of G is a consecutive part of a prompt's rollouts; a mini-batch of --rows rollouts takes as many
different prompts as there are (``geometry_rollouts.deal``), and --batches of them are made for each G. Advantages are
GRPO's. Features: 'score_sum' and 'score_mean' of the LM head, 'taken_token' (mean), 'last_block' and 'all' parameters
(mean; one backward pass a rollout). Units: the mini-batch, the group, 4 rows.

OUT gets one row a policy, temperature, feature, G and unit (``geometry_statistics.cell``; ``in`` of the training
metrics is the group's 'mean', ``total`` the mini-batch's, ``out`` stands in its own columns), and the LM head against
the last block and all parameters on mini-batches of --proxy_rows in groups of --proxy_group (``geometry_proxy``).
python -m experiments.study.geometry_report prints tables of it. It is written whole after each policy and temperature.
Wrong input is one line and exit status 2, with nothing written.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from experiments import cli, overrides, scores
from experiments.arguments import local_path
from experiments.benchmarks import report
from experiments.study import geometry_proxy, geometry_statistics
from experiments.study.geometry_rollouts import FEATURES, Frozen, Pool, deal, opened
from salt_jax.graders import GraderError
from salt_jax.models import run_steps
from salt_jax.objective.advantages import group_advantages
from salt_jax.run import setup, workdir
from salt_jax.spec import ConfigError

PROXY, REFERENCES = "score_mean", ("last_block", "all")
FEW = 4  # rows of the smallest unit
CELLS = (
    "step", "temperature", "feature", "group", "scope", "units", "signal", "ratio", "ratio_se", "mean", "mean_se",
    "median", "group_ratio", "group_mean", "prompt_ratio", "prompt_mean", "mu2", "mu2_se", "kish", "pr", "residual",
    "alpha", "k", "eigengap", "cosine", "out", "pr_out",
)  # fmt: skip
PROXIES = ("step", "temperature", "reference", "rows", "against", "batches", *geometry_proxy.NAMES)
POLICIES = ("step", "temperature", "reward", "entropy", "tokens", "truncated", "seconds")
COLUMNS = {"policies": POLICIES, "cells": CELLS, "proxy": PROXIES}
Table = dict[str, Any]


def listed(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """The ``type`` of an argument that is a list with commas.

    Example:
      >>> listed(int)("2,4")
      (2, 4)
    """

    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            allowed = f"{kind.__name__} values with commas between"
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: {allowed}") from None

    return read


def arguments_of(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command line, and what it changes in the configuration.

    Raises:
      ConfigError: what is wrong with it, in one line.
    """
    plain, changes = overrides.split(argv)
    parser = argparse.ArgumentParser(prog="python -m experiments.study.geometry", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--run", type=local_path, help="a run's folder")
    parser.add_argument("--checkpoint", default=run_steps.NEWEST, help="of --run: newest, best or steps with commas")
    parser.add_argument("--config", help="configuration of a pretrained model")
    parser.add_argument("--json", type=local_path, required=True, help="the file to write")
    parser.add_argument("--temperatures", type=listed(float), default=(0.6, 1.0))
    parser.add_argument("--groups", type=listed(int), default=(2, 4, 16, 64), help="G")
    parser.add_argument("--features", type=listed(str), default=FEATURES)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--rollouts", type=int, default=64, help="of each prompt")
    parser.add_argument("--rows", type=int, default=1024, help="of a mini-batch")
    parser.add_argument("--batches", type=int, default=4, help="mini-batches for each G")
    parser.add_argument("--proxy_rows", type=listed(int), default=(64, 512))
    parser.add_argument("--proxy_group", type=int, default=16)
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--memory_gib", type=float, default=8.0, help="features of more are left out, and named")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, sampling, permutations and nulls")
    return parser.parse_args(plain), changes


def check(flags: argparse.Namespace, changes: dict[str, Any]) -> None:
    """ConfigError for what is wrong in the command line alone."""
    if (flags.run is None) == (flags.config is None):
        raise ConfigError("name a run with --run, or a pretrained model's configuration with --config: one of the two")
    if flags.run is not None and changes:
        raise ConfigError(f"--config.{next(iter(changes))} changes nothing of --run={flags.run}: it has its own")
    if flags.config is not None and flags.checkpoint != run_steps.NEWEST:
        raise ConfigError(f"--checkpoint={flags.checkpoint} needs --run")
    if flags.json.exists():
        raise ConfigError(f"--json={flags.json} is there already; name another file")
    if not flags.json.parent.is_dir():
        raise ConfigError(f"--json={flags.json}: there is no folder {flags.json.parent}")
    for name in ("prompts", "rollouts", "rows", "batches", "permutations"):
        if getattr(flags, name) < 1:
            raise ConfigError(f"--{name}={getattr(flags, name)} is not allowed; allowed: 1 or more")
    if flags.seed < 0:
        raise ConfigError(f"--seed={flags.seed} is not allowed; allowed: 0 or more")
    if not flags.memory_gib > 0:
        raise ConfigError(f"--memory_gib={flags.memory_gib:g} is not allowed; allowed: more than 0")
    for value in flags.temperatures:
        if not 0 < value < math.inf:
            raise ConfigError(f"--temperatures: {value:g} is not allowed; allowed: finite numbers above 0")
    if unknown := [name for name in flags.features if name not in FEATURES]:
        raise ConfigError(f"--features: {unknown[0]!r} is unknown; allowed: {', '.join(FEATURES)}")
    for value in flags.groups:
        if value < 2 or flags.rollouts % value or flags.rows % value:
            what = f"divisors, 2 or more, of --rollouts={flags.rollouts} and --rows={flags.rows}"
            raise ConfigError(f"--groups: {value} is not allowed; allowed: {what}")
    if flags.rows % FEW:
        raise ConfigError(f"--rows={flags.rows} is not allowed; allowed: multiples of {FEW}")
    most = flags.prompts * flags.rollouts // flags.rows
    if flags.batches > most:
        there = f"{flags.prompts} prompts x {flags.rollouts} rollouts make {most} of {flags.rows} rows"
        raise ConfigError(f"--batches={flags.batches} is more than there is: {there}")
    if proxied(flags) and flags.proxy_group not in flags.groups:
        raise ConfigError(f"--proxy_group={flags.proxy_group} is not one of --groups")
    for value in flags.proxy_rows if proxied(flags) else ():
        if value < 1 or value % flags.proxy_group or flags.rows % value:
            what = f"divisors of --rows={flags.rows} that --proxy_group={flags.proxy_group} divides"
            raise ConfigError(f"--proxy_rows: {value} is not allowed; allowed: {what}")


def proxied(flags: argparse.Namespace) -> bool:
    """Whether the LM head is compared with a larger feature."""
    return PROXY in flags.features and any(name in flags.features for name in REFERENCES)


def advantages(rewards: np.ndarray) -> np.ndarray:
    """GRPO's, of rewards (B, G), in float64."""
    return np.asarray(group_advantages(rewards), np.float64)


class Dealt(NamedTuple):
    """The mini-batches of one G: rows (batches, m) of the pool, advantages (batches, m), and those of a null.

    With the rewards permuted among all rollouts of their prompt, (batches · m, permutations), which groups have signal
    says nothing of the features either: in a group of 2 with signal a permutation within the group changes nothing.
    """

    group: int
    rows: np.ndarray
    advantages: np.ndarray
    null: np.ndarray


def dealt(rewards: np.ndarray, group: int, flags: argparse.Namespace) -> Dealt:
    """Mini-batches of groups of G, of the rewards (P·N,) of a pool."""
    how = {"prompts": flags.prompts, "rollouts": flags.rollouts, "group": group, "rows": flags.rows}
    rows = np.stack([deal(i, **how).reshape(-1) for i in range(flags.batches)])
    rng, of_prompts = np.random.default_rng(flags.seed), rewards.reshape(-1, flags.rollouts)
    drawn = [rng.permuted(of_prompts, axis=1).reshape(-1)[rows] for _ in range(flags.permutations)]
    null = advantages(np.stack(drawn).reshape(-1, group)).reshape(flags.permutations, -1).T
    return Dealt(group, rows, advantages(rewards[rows].reshape(-1, group)).reshape(rows.shape), null)


def of_feature(grams: Sequence[np.ndarray], batch: Dealt, flags: argparse.Namespace) -> list[dict[str, Any]]:
    """The cells of one feature and one G, a row for each unit; grams (m, m), one a mini-batch."""
    group, found = batch.group, []
    prompts = batch.rows.reshape(-1) // flags.rollouts
    own = np.concatenate([geometry_statistics.blocks_of(gram, group) for gram in grams])
    mu2, mu2_se = geometry_statistics.common_mean(own, prompts[::group])
    for scope, size in (("mini_batch", flags.rows), ("group", group), ("rows_4", FEW)):
        blocks = np.concatenate([geometry_statistics.blocks_of(gram, size) for gram in grams])
        # Units of one prompt are not independent; a mini-batch is its own.
        clusters = np.arange(len(blocks)) if scope == "mini_batch" else prompts[::size]
        units = batch.advantages.reshape(-1, size)
        nulls = {
            "group": geometry_statistics.permuted(units, group, flags.permutations, flags.seed),
            "prompt": batch.null.reshape(*units.shape, -1),
        }
        one = geometry_statistics.cell(blocks, units, clusters, nulls)
        out: Sequence[float | None] = (None, None)
        if scope == "mini_batch":
            pairs = zip(grams, batch.advantages, strict=True)
            out = np.mean([geometry_statistics.between(k, x, group) for k, x in pairs], axis=0).tolist()
        about = {"group": group, "scope": scope, "mu2": mu2, "mu2_se": mu2_se, "out": out[0], "pr_out": out[1]}
        found.append(one | about)
    return found


def of_pool(
    frozen: Frozen, params: Any, pool: Pool, features: Sequence[str], flags: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All cells of one policy at one temperature, and the LM head against the larger features."""
    cells: list[dict[str, Any]] = []
    kept: dict[str, list[np.ndarray]] = {}
    batches = [dealt(np.asarray(pool.rollouts.rewards, np.float64), group, flags) for group in flags.groups]
    for feature in features:
        made: dict[bytes, np.ndarray] = {}  # where prompts are few every G has the same rows
        for batch in batches:
            grams = []
            for rows in batch.rows:
                order = np.argsort(rows)
                there, back = rows[order], np.argsort(order)
                if there.tobytes() not in made:
                    made[there.tobytes()] = frozen.gram(params, pool, feature, there)
                grams.append(made[there.tobytes()][np.ix_(back, back)])
            cells += [{"feature": feature} | row for row in of_feature(grams, batch, flags)]
            if batch.group == flags.proxy_group and feature in (PROXY, *REFERENCES):
                kept[feature], kept["advantages"] = grams, list(batch.advantages)
    return cells, of_proxy(kept, flags)


def of_proxy(kept: dict[str, list[np.ndarray]], flags: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the comparison, from the Gram matrices of each feature."""
    rows = []
    for reference in REFERENCES if PROXY in kept else ():
        for size in flags.proxy_rows if reference in kept else ():
            a = [x for one in kept["advantages"] for x in one.reshape(-1, size)]
            proxy, other = (
                [k for gram in kept[name] for k in geometry_statistics.blocks_of(gram, size)]
                for name in (PROXY, reference)
            )
            for name, means in geometry_proxy.against(proxy, other, a, flags.seed).items():
                rows.append({"reference": reference, "rows": size, "against": name, "batches": len(a)} | means)
    return rows


def steps_of(flags: argparse.Namespace) -> list[int | None]:
    """The steps of the checkpoints that are asked for; [None] without a run.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    if flags.run is None:
        return [None]
    scores.check_run(flags.run)
    try:
        choices = [run_steps.parse_choice(text) for text in flags.checkpoint.split(",")]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return [setup.final_step(flags.run, f"--run={flags.run}", print, choice) for choice in choices]


def measure(flags: argparse.Namespace, changes: dict[str, Any]) -> str:
    """Measures, writes OUT after each policy and temperature, and returns the last line for people."""
    began = time.perf_counter()
    check(flags, changes)
    steps = steps_of(flags)
    if flags.run is not None:
        config = json.loads((flags.run / workdir.CONFIG).read_text())
    else:
        config = cli.read_config(flags.config)
        overrides.apply(config, changes)
        overrides.expand_paths(config)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    about = report.surroundings()
    with opened(config, flags.run, flags.rollouts) as frozen:
        left_out = left(frozen, flags)
        about |= {"source": source_of(frozen, flags), "left_out": left_out}
        for step in steps:
            params = frozen.params(flags.run, step)
            for temperature in flags.temperatures:
                start = time.perf_counter()
                pool = frozen.pool(params, flags.prompts, temperature, flags.seed)
                features = [name for name in flags.features if name not in left_out]
                cells, proxy = of_pool(frozen, params, pool, features, flags)
                where = {"step": step or 0, "temperature": temperature}
                facts = pool.facts | {"seconds": time.perf_counter() - start}
                for name, rows in (("policies", [facts]), ("cells", cells), ("proxy", proxy)):
                    tables[name] += [where | row for row in rows]
                about["seconds"] = round(time.perf_counter() - began, 1)
                workdir.write_atomically(flags.json, text_of(about, tables))
                said = ", ".join(f"{name} {value:.3g}" for name, value in facts.items())
                print(f"step {where['step']}, temperature {temperature:g}: {said}", flush=True)
    return f"{about['seconds']:.0f} s; {flags.json}"


def left(frozen: Frozen, flags: argparse.Namespace) -> dict[str, str]:
    """The features whose rollouts' gradients do not fit, each with its size."""
    found = {}
    for feature in flags.features:
        size = frozen.features_size(feature, flags.rows) / 2**30
        if size > flags.memory_gib:
            found[feature] = f"does not fit: {size:.1f} GiB of {flags.memory_gib:g} for {flags.rows} rollouts"
            print(f"{feature} is left out: it {found[feature]}", flush=True)
    return found


def source_of(frozen: Frozen, flags: argparse.Namespace) -> Table:
    """What was measured, without the folders of this machine."""
    run = frozen.run
    of_run = {} if flags.run is None else {"run": flags.run.name, "salt": run.geometry.enabled}
    of_run |= {"model": Path(run.model.path).name} if run.model.path else {}
    given = {name: value for name, value in vars(flags).items() if name not in ("run", "config", "json", "checkpoint")}
    sampling = {"seed": run.seed, "max_new_tokens": run.sampling.max_new_tokens}
    return {"task": run.task_name, **of_run, **sampling, "arguments": given}


def short(value: Any) -> Any:
    """A number with five digits, for a file that people read.

    Example:
      >>> short(0.123456789), short(None), short("all")
      (0.12346, None, 'all')
    """
    return float(f"{value:.5g}") if isinstance(value, float) else value


def text_of(about: Table, tables: dict[str, list[dict[str, Any]]]) -> str:
    """JSON: what it is about, then the tables, a line for each row."""
    lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in about.items()]
    for name, rows in tables.items():
        shown = ",\n".join(json.dumps([short(row[c]) for c in COLUMNS[name]], allow_nan=False) for row in rows)
        lines.append(f'{json.dumps(name)}: {{"columns": {json.dumps(COLUMNS[name])}, "rows": [\n{shown}\n]}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    logging.set_verbosity(logging.ERROR)
    try:
        flags, changes = arguments_of(sys.argv[1:] if argv is None else argv)
        print(measure(flags, changes))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.BAD_INPUT
    except (GraderError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return cli.STOPPED
    except KeyboardInterrupt:
        print("interrupted: what was measured before is written", file=sys.stderr)
        return cli.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
