"""Plots of the study: the six contrasts, learning curves with their entropy, and rollout scaling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plot import COLOURS, MARKERS, QUIET, STYLE
from experiments.study import plan
from experiments.study.statistics import interval

Results = Mapping[str, Mapping[str, Any]]
COLOUR = {arm: COLOURS[i] for i, arm in enumerate(plan.ARMS)}
MARKER = {arm: MARKERS[i] for i, arm in enumerate(plan.ARMS)}


def contrasts(path: Path, paired: Mapping[str, Sequence[float]]) -> None:
    """One row a contrast: every seed's difference, their mean and its 95 % interval."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 0.55 * len(paired) + 1.5), layout="constrained")
        axes = figure.subplots()
        for row, values in enumerate(reversed(list(paired.values()))):
            found = interval(values)
            axes.plot(values, [row + 0.16] * len(values), ".", color=QUIET, markersize=5, alpha=0.7)
            axes.plot([found.low, found.high], [row - 0.1] * 2, color=COLOURS[0], linewidth=2)
            axes.plot([found.mean], [row - 0.1], "o", color=COLOURS[0], markersize=6)
            axes.annotate(
                f"{found.mean:+.3f}",
                (found.mean, row - 0.2),
                ha="center",
                va="top",
                fontsize=8.5,
                color=COLOURS[0],
            )
        axes.axvline(0, color="#222222", linewidth=1)
        axes.set_yticks(range(len(paired)), list(paired)[::-1])
        axes.set_ylim(-0.6, len(paired) - 0.4)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(
            "difference in greedy accuracy after 1,200 steps; grey: one seed, blue: mean and 95 % interval"
        )
        figure.suptitle("Six contrasts, paired by seed", x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        _save(figure, path)


def curves(path: Path, named: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Accuracy over steps, and entropy over training reward: means over seeds, the shade ± one standard error."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for arm, results in named.items():
            whole = [result for result in results if not result["stopped"]]
            if not whole:
                continue
            steps = [int(step) for step in whole[0]["accuracy"]]
            _band(left, arm, steps, np.array([list(result["accuracy"].values()) for result in whole]))
            reward, entropy = (
                np.array([result["windows"][key] for result in whole], float).mean(0)
                for key in ("reward", "entropy")
            )
            right.plot(
                reward, entropy, color=COLOUR[arm], marker=MARKER[arm], markersize=4, linewidth=1.4, label=arm
            )
        left.set_title("Greedy accuracy, 2,000 held-out problems")
        left.set_xlabel("training step")
        left.set_ylim(0, 1)
        right.set_title("Entropy at equal reward")
        right.set_xlabel("training reward, means over 100 steps")
        right.set_ylabel("nats a token")
        right.set_ylim(bottom=0)
        _legend(right)
        _save(figure, path)


def scaling(
    path: Path, found: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]],
    panels: Mapping[str, Callable[[Mapping[str, Any]], float]],
) -> None:  # fmt: skip
    """One panel a quantity over G: means over seeds, the shade ± one standard error.

    Args:
      path: png.
      found: arm -> G -> results.
      panels: title -> the number of a result.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(panels) + 1.2, 3.8), layout="constrained")
        for axes, (title, value) in zip(
            np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True
        ):
            for arm, by_group in found.items():
                groups = [group for group, results in by_group.items() if results]
                values = [[value(result) for result in by_group[group]] for group in groups]
                least = min(map(len, values), default=0)
                if least and not all(math.isnan(x) for row in values for x in row):
                    _band(axes, arm, groups, np.array([row[:least] for row in values]).T)
            axes.set_xscale("log", base=2)
            axes.set_xticks(plan.SCALING_GROUPS, [str(group) for group in plan.SCALING_GROUPS])
            axes.set_title(title)
            axes.set_xlabel("G, rollouts a prompt (512 a step)")
        _legend(axes)
        _save(figure, path)


def _band(axes: Axes, arm: str, x: Sequence[float], values: np.ndarray) -> None:
    """values (seeds, len(x))."""
    mean, error = (
        values.mean(0),
        values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0 * values[0],
    )
    axes.plot(x, mean, color=COLOUR[arm], marker=MARKER[arm], markersize=4.5, linewidth=1.6, label=arm)
    axes.fill_between(x, mean - error, mean + error, color=COLOUR[arm], alpha=0.15, linewidth=0)


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white")
