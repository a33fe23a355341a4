"""A run's records as series, and the table of several runs, before → after. Drawing is in experiments/plot.py.

Reads config.json, metrics.jsonl, evaluations.jsonl and summary.json only, also while the run is going on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from salt_jax.run import workdir
from salt_jax.spec import ConfigError

Array = np.ndarray
Series = tuple[Array, Array]

# Where every group is unanimous all advantages are 0 and these are 0/0, which the metrics write as 0.
# The participation ratio of the whole mini-batch needs no advantage and is defined all the same.
NEEDS_SIGNAL = ("salt/", "geometry/n_eff", "geometry/participation_ratio_in", "geometry/participation_ratio_out")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder says. summary is empty until the run has ended."""

    folder: Path
    label: str
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    def setting(self, *keys: str) -> Any:
        """A value of the configuration, None where it has no such key."""
        node: Any = self.config
        for key in keys:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    @property
    def salt(self) -> bool:
        """Whether the advantages were reweighted."""
        return bool(self.setting("salt", "enabled"))

    @property
    def group_size(self) -> int | None:
        """G, rollouts of one prompt."""
        return self.setting("sampling", "rollouts_per_prompt")

    @property
    def batch_size(self) -> int | None:
        """m, rollouts of one mini-batch."""
        prompts, parts = self.setting("sampling", "prompts_per_step"), self.setting("learner", "minibatches") or 1
        return prompts * self.group_size // parts if prompts and self.group_size else None

    @property
    def last_step(self) -> int:
        """The last step that left a record, 0 if none did."""
        return max([0, *(int(record["step"]) for record in [*self.metrics, *self.evaluations])])


def load(folders: Sequence[Path | str], labels: Sequence[str] | None = None) -> list[Run]:
    """The runs in ``folders``, each folder once; labels are the folders' names where none are given.

    Raises:
      ConfigError: one line: a folder that holds no run, a file that is no JSON, no record in any of them.
    """
    if not folders:
        raise ConfigError("name at least one folder of a run")
    if labels is not None and len(labels) != len(folders):
        raise ConfigError(f"{len(folders)} folders but {len(labels)} labels")
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    if labels is None or len(paths) < len(folders):
        labels = short_labels(paths)
    runs = [_load(path, label) for path, label in zip(paths, labels, strict=True)]
    if not any(run.metrics or run.evaluations for run in runs):
        names = ", ".join(str(run.folder) for run in runs)
        raise ConfigError(f"nothing to draw yet: no {workdir.METRICS} and no {workdir.EVALUATIONS} in {names}")
    return runs


def _load(folder: Path, label: str) -> Run:
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist or is no folder")
    if not (folder / workdir.CONFIG).exists():
        raise ConfigError(f"{folder} is not a run: it has no {workdir.CONFIG}")
    objects = {}
    for name in (workdir.CONFIG, workdir.SUMMARY):
        path = folder / name
        objects[name] = _parsed(path, lambda path: json.loads(path.read_text())) if path.exists() else {}
    records = {}
    for name in (workdir.METRICS, workdir.EVALUATIONS):
        records[name] = _parsed(folder / name, workdir.read_records)
    return Run(
        folder, label, objects[workdir.CONFIG], records[workdir.METRICS], records[workdir.EVALUATIONS],
        objects[workdir.SUMMARY],
    )  # fmt: skip


def _parsed(path: Path, parse: Any) -> Any:
    try:
        return parse(path)
    except workdir.StorageError as error:  # names file and line
        raise ConfigError(str(error)) from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def short_labels(paths: Iterable[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    Example:
      >>> short_labels([Path("/runs/a/salt"), Path("/runs/b/salt")])
      ['a/salt', 'b/salt']
    """
    parts = [path.parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        labels = [os.sep.join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(Path(*part)) for part in parts]


def series(records: Sequence[Mapping[str, Any]], name: str) -> Series:
    """(steps, values) of one metric, float64, where it was recorded, is finite and is defined.

    Left out: steps without the key (with SALT off the geometry is measured every so often), NaN and infinity,
    and for statistics of the advantages steps at which no group had a signal.

    Example:
      >>> records = [{"step": 1, "salt/k": 2.0, "groups_with_signal": 0.5}, {"step": 2}]
      >>> series(records, "salt/k")
      (array([1.]), array([2.]))
    """
    needs_signal = name.startswith(NEEDS_SIGNAL)
    points = [
        (float(record["step"]), float(record[name]))
        for record in records
        if record.get(name) is not None
        and math.isfinite(record[name])
        and not (needs_signal and record.get("groups_with_signal", 1.0) == 0)
        and not ("participation_ratio" in name and record[name] == 0)  # K = 0
    ]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def smooth(steps: Array, values: Array, width: int) -> Array:
    """Centred mean over the records within ``width`` steps (odd), fewer at the ends.

    Example:
      >>> smooth(np.arange(5.0), np.array([0.0, 3.0, 0.0, 3.0, 0.0]), 3)
      array([1.5, 1. , 2. , 1. , 1.5])
    """
    low = np.searchsorted(steps, steps - width // 2, side="left")
    high = np.searchsorted(steps, steps + width // 2, side="right")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[high] - sums[low]) / (high - low)


def smoothing_width(runs: Sequence[Run]) -> int:
    """Steps to average over: about a twentieth of the longest run, odd; 1 (none) for the shortest runs."""
    return 2 * round(max(run.last_step for run in runs) / 40) + 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One run in the table; nan where a run has nothing to say.

    alpha, n_eff and participation_ratio are means over the steps at which they are defined, the last two of
    the whole mini-batch. seconds: spent in training steps, compilation included; warm start and evaluation not.
    """

    salt: str
    steps: str
    before: float
    after: float
    alpha: float
    n_eff: float
    participation_ratio: float
    seconds: float
    tokens_per_second: float


def summarize(run: Run) -> Row:
    """The numbers of one run."""

    def mean(name: str) -> float:
        values = series(run.metrics, name)[1]
        return float(values.mean()) if values.size else math.nan

    _, accuracy = series(run.evaluations, "accuracy")
    rates = series(run.metrics, "tokens_per_second")[1]
    seconds = series(run.metrics, "seconds")[1]
    settings = [str(run.setting("salt", key)) for key in ("variant", "scope", "feature")]
    done, planned = max([0, *(int(record["step"]) for record in run.metrics)]), run.setting("steps")
    steps = f"{done}" if run.summary or planned is None else f"{done} of {planned}"
    if run.metrics and not all(math.isfinite(value) for value in run.metrics[-1].values() if value is not None):
        steps += ", not finite"
    return Row(
        salt=" · ".join(settings) if run.salt else "off",
        steps=steps,
        before=float(accuracy[0]) if accuracy.size else math.nan,
        after=float(accuracy[-1]) if accuracy.size > 1 else math.nan,
        alpha=mean("salt/alpha"),
        n_eff=mean("geometry/n_eff_total"),
        participation_ratio=mean("geometry/participation_ratio_total"),
        seconds=float(seconds.sum()) if seconds.size else math.nan,
        tokens_per_second=float(np.median(rates)) if rates.size else math.nan,
    )


def how_judged(runs: Sequence[Run]) -> str:
    """What 'accuracy' means in these runs: 'greedy', 'avg@8 at temperature 1', or 'each by its own evaluation'."""
    ways = set()
    for run in runs:
        temperature, samples = run.setting("evaluation", "temperature"), run.setting("evaluation", "samples")
        ways.add(f"avg@{samples} at temperature {temperature:g}" if temperature else "greedy")
    return ways.pop() if len(ways) == 1 else "each by its own evaluation"


def print_table(
    folders: Sequence[Path | str], labels: Sequence[str] | None = None, console: Console | None = None
) -> None:
    """Prints the runs before → after; plain columns where the output is not a terminal."""
    runs = load(folders, labels)
    console = console or Console()
    plain = not console.is_terminal
    table = Table(box=None if plain else box.ROUNDED, pad_edge=not plain)
    table.add_column("run", no_wrap=True)
    table.add_column("SALT", no_wrap=plain)
    headers = ("steps", "accuracy", "mean α", "mean n_eff", "mean PR", "seconds", "tokens/s")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=plain)
    for run in runs:
        row = summarize(run)
        table.add_row(
            run.label, row.salt, row.steps, f"{_number(row.before, '.3f')} → {_number(row.after, '.3f')}",
            _number(row.alpha, ".2f"), _number(row.n_eff, ".2f"), _number(row.participation_ratio, ".1f"),
            _number(row.seconds, ",.0f"), _number(row.tokens_per_second, ",.0f"),
        )  # fmt: skip
    counts = {int(run.evaluations[-1].get("problems", 0)) for run in runs if run.evaluations}
    problems = f"{max(counts):,} held-out problems" if len(counts - {0}) == 1 else "the held-out problems"
    notes = (
        f"accuracy: {how_judged(runs)}, on {problems}, before → after; n_eff, PR: of the whole mini-batch, "
        "means over steps with a signal; seconds: in training steps"
    )
    if plain:  # columns keep their width: a file has no edge to wrap at
        wide = Console(file=console.file, width=1000, force_terminal=False, force_jupyter=console.is_jupyter)
        wide.print(table)
    else:
        console.print(table)
    console.print(notes, highlight=False, soft_wrap=plain, style="dim")


def _number(value: float, spec: str) -> str:
    return format(value, spec) if math.isfinite(value) else "–"
