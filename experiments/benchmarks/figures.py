"""Plots of benchmarks, in the style of experiments/plot.py: small panels of lines on logarithmic scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plot import COLOURS, MARKERS, QUIET, STYLE


@dataclasses.dataclass
class Line:
    """One curve; ``colour`` is an index into the palette, ``dashed`` for what it is compared with."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dashed: bool = False


@dataclasses.dataclass
class Panel:
    """Lines with their titles; ``limit`` is drawn as a line of its own, with its text."""

    title: str
    xlabel: str
    ylabel: str
    lines: list[Line]
    limit: tuple[float, str] | None = None
    floor: float | None = None  # what is smaller is drawn there: a logarithm has no zero


def draw(path: str | Path, title: str, rows: Sequence[Sequence[Panel]], caption: str) -> None:
    """Writes rows of panels to ``path``, one key beside the last panel of each row."""
    with mpl.rc_context(STYLE):
        height, width = 2.5 * len(rows) + 1.0, 3.1 * max(len(row) for row in rows) + 2.0
        figure = Figure(figsize=(width, height), layout="constrained")
        grid: Any = figure.subplots(len(rows), max(len(row) for row in rows), squeeze=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for i, row in enumerate(rows):
            for j in range(grid.shape[1]):
                if j < len(row):
                    _panel(grid[i][j], row[j])
                else:
                    grid[i][j].set_axis_off()
            handles, labels = grid[i][len(row) - 1].get_legend_handles_labels()
            grid[i][len(row) - 1].legend(
                handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5
            )
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color=QUIET)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", facecolor="white")


def _panel(axes: Axes, panel: Panel) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for line in panel.lines:
        y = line.y if panel.floor is None else [max(value, panel.floor) for value in line.y]
        colour = COLOURS[line.colour % len(COLOURS)]
        axes.plot(
            line.x, y, label=line.label, color=colour, linestyle=":" if line.dashed else "-", linewidth=1.6,
            marker=MARKERS[line.colour % len(MARKERS)], markersize=4, markeredgewidth=0,
            markerfacecolor="none" if line.dashed else colour,
        )  # fmt: skip
    ticks = sorted({x for line in panel.lines for x in line.x})
    axes.set_xticks(ticks if len(ticks) <= 6 else ticks[::2], minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(panel.title)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    if panel.limit is not None:
        value, text = panel.limit
        axes.axhline(value, color=QUIET, linewidth=1.0, dashes=(4, 3), zorder=1)
        axes.annotate(
            text, (0.98, value), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            ha="right", fontsize=8.5, color=QUIET,
        )  # fmt: skip
