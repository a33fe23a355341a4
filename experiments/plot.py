"""Redraws and overlays runs: python -m experiments.plot DIR [DIR …] [--out=DIR].

Writes reward.png (training reward and held-out accuracy over steps) and geometry.png (participation ratio,
n_eff, α and k over steps) and prints a table before → after. A run may still be going on. --out is the run's
own folder, or the common parent of several. Exit status 2, with nothing written, for a folder that is no run.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.arguments import local_path
from experiments.runs import Run, how_judged, load, print_table, series, smooth, smoothing_width, summarize
from salt_jax.spec import ConfigError

__all__ = ["draw", "geometry_figure", "load", "main", "print_table", "reward_figure"]

REWARD, GEOMETRY = "reward.png", "geometry.png"

# Okabe and Ito's colours, apart for the common colour blindnesses; the darker ones, which carry text, come first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A4508B", "#4D4D4D", "#B8860B", "#3A9BD9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
INK, QUIET, GRID = "#222222", "#6B6B6B", "#E4E4E4"
SILENT = "Steps at which all groups are unanimous (all advantages 0) have no $n_{eff}$, α and k and are left out."
SAMPLED = "collection/reward_sampled"  # of all rollouts that the policy drew
STYLE: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.5, "text.color": INK,
    "axes.edgecolor": "#9A9A9A", "axes.labelcolor": INK, "axes.titlesize": 10.5, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.8, "xtick.color": QUIET, "ytick.color": QUIET,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "mathtext.default": "regular", "savefig.dpi": 200,
}  # fmt: skip


def draw(folders: Sequence[Path | str], out: Path | str, labels: Sequence[str] | None = None) -> None:
    """Writes reward.png and geometry.png of the runs in ``folders`` into ``out``.

    Raises:
      ConfigError: one line, before anything is written.
    """
    runs, out = load(folders, labels), Path(out)
    images = {REWARD: _png(reward_figure(runs)), GEOMETRY: _png(geometry_figure(runs))}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            (out / name).write_bytes(image)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from None


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def reward_figure(runs: Sequence[Run]) -> Figure:
    """Training reward and held-out accuracy over steps, with its bootstrap interval, one colour a run."""
    width = smoothing_width(runs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle(_reward_headline(runs), x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        for i, run in enumerate(runs):
            # Where rollouts are selected, the batch's own reward says nothing of the policy.
            sampled = series(run.metrics, SAMPLED)[0].size
            _curve(left, i, run, SAMPLED if sampled else "reward", width)
            steps, accuracy = series(run.evaluations, "accuracy")
            if steps.size:
                right.plot(
                    steps, accuracy, color=_colour(i), marker=_marker(i), markersize=5.5, linewidth=1.6,
                    markeredgecolor="white", markeredgewidth=0.7, label=run.label, clip_on=False, zorder=3,
                )  # fmt: skip
                low, high = (series(run.evaluations, f"accuracy_{end}")[1] for end in ("low", "high"))
                if low.size == high.size == steps.size:
                    right.fill_between(steps, low, high, color=_colour(i), alpha=0.15, linewidth=0)
        left.set_title("Training reward, mean of a step's sampled rollouts")
        right.set_title(f"Held-out accuracy, {how_judged(runs)}")
        for axes, empty in ((left, "no training step yet"), (right, "no evaluation yet")):
            _finish(axes, runs, empty)
            axes.set_xlabel("training step")
        _unit_interval(left)
        right.set_ylim(0, _accuracy_limit(runs))
        _label_ends(left, runs)
        _label_ends(right, runs, ".3f")
        _caption(figure, [_how(width)])
    return figure


def _accuracy_limit(runs: Sequence[Run]) -> float:
    """Where the accuracy's axis ends: 1, or a rounder multiple of what is there where all of it is low."""
    ends = [series(run.evaluations, name)[1] for run in runs for name in ("accuracy", "accuracy_high")]
    most = max((float(values.max()) for values in ends if values.size), default=1.0)
    return next((top for top in (0.1, 0.2, 0.4) if most <= 0.8 * top), 1.0)


def geometry_figure(runs: Sequence[Run]) -> Figure:
    """Participation ratio and n_eff (within a group, whole mini-batch), α and k over steps, one colour a run."""
    width = smoothing_width(runs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 8.4), layout="constrained")
        grid = figure.subplots(3, 2, sharex=True)
        figure.suptitle(_geometry_headline(runs), x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        (pr_in, pr_total), (n_in, n_total), (alpha, k) = grid
        panels: dict[str, Axes] = {
            "geometry/participation_ratio_in": pr_in, "geometry/participation_ratio_total": pr_total,
            "geometry/n_eff_in": n_in, "geometry/n_eff_total": n_total, "salt/alpha": alpha, "salt/k": k,
        }  # fmt: skip
        for name, axes in panels.items():
            for i, run in enumerate(runs):
                _curve(axes, i, run, name, width)
        for i, run in enumerate(runs):
            _extra(n_total, i, run, "salt/n_eff_after", width, ":", "after")
            if isinstance(run.setting("salt", "scope"), int):  # α comes from smaller units than the mini-batch
                _extra(n_total, i, run, "salt/n_eff", width, "--", "unit")
        group, batch = _common(runs, "group_size"), _common(runs, "batch_size")
        pr_in.set_title("Participation ratio PR, within a group" + (f" of {group}" if group else ""))
        pr_total.set_title("PR, whole mini-batch" + (f" of {batch} rollouts" if batch else ""))
        n_in.set_title("$n_{eff}$, within a group")
        n_total.set_title("$n_{eff}$, whole mini-batch")
        alpha.set_title("SALT: gain α of the residual channel")
        k.set_title("SALT: dimension k of the shared subspace")
        off = [run.label for run in runs if not run.salt]
        unmeasured = "not measured"
        if off and not any(series(run.metrics, "geometry/n_eff_total")[0].size for run in runs):
            unmeasured = "not measured: SALT is off\nand config.salt.measure_every is 0"
        for axes in (pr_in, pr_total, n_in, n_total):
            _finish(axes, runs, unmeasured)
        for axes in (alpha, k):
            _finish(axes, runs, "SALT is off" if len(off) == len(runs) else "no step with a signal yet")
            if axes.lines and off:
                axes.set_title(axes.get_title(loc="left") + f"\n(none for {_listed(off)}: SALT is off)")
            axes.set_xlabel("training step")
        _log_row(pr_in, pr_total)
        _n_eff_row(n_in, n_total)
        alpha.set_ylim(-0.03, 1.03)
        k.set_ylim(0, 1.12 * max([1.0, *(_top(line) for line in k.lines)]))
        k.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        _n_eff_key(n_total)
        for axes in panels.values():
            _label_ends(axes, runs)
        silent = any(record.get("groups_with_signal") == 0 for run in runs for record in run.metrics)
        _caption(figure, [_how(width), SILENT] if silent else [_how(width)])
    return figure


def _curve(axes: Axes, i: int, run: Run, name: str, width: int) -> None:
    """Single steps, faint, and their mean over ``width`` steps."""
    steps, values = series(run.metrics, name)
    if not steps.size:
        return
    few = steps.size <= 60
    marker: dict[str, Any] = {"marker": _marker(i), "markersize": 3.2, "markeredgewidth": 0} if few else {}
    if width > 1:
        axes.plot(steps, values, color=_colour(i), linewidth=0.7, alpha=0.28, label=f"_raw {run.label}", **marker)
        values, marker = smooth(steps, values, width), {}
    axes.plot(steps, values, color=_colour(i), linewidth=1.9, label=run.label, zorder=3, **marker)


def _extra(axes: Axes, i: int, run: Run, name: str, width: int, style: str, what: str) -> None:
    steps, values = series(run.metrics, name)
    if steps.size:
        values = smooth(steps, values, width)
        axes.plot(steps, values, color=_colour(i), linestyle=style, linewidth=1.5, label=f"_{what} {run.label}")


def _finish(axes: Axes, runs: Sequence[Run], empty: str) -> None:
    """From step 0 to the last one; says so where there is nothing to see."""
    axes.set_xlim(0, 1.012 * max([1, *(run.last_step for run in runs)]))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    if not axes.lines:
        axes.set_yticks([])
        axes.text(
            0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color=QUIET, style="italic"
        )


def _unit_interval(axes: Axes) -> None:
    """From 0 to 1 where all values lie there; rewards may also be -1 and 1, or shaped."""
    tops = [_top(line) for line in axes.lines]
    lows = [float(np.min(np.asarray(line.get_ydata(), float))) for line in axes.lines]
    if not tops or (min(lows) >= 0 and max(tops) <= 1):
        axes.set_ylim(0, 1.02)


def _log_row(*row: Axes) -> None:
    """One logarithmic scale for a row, from 1 (a participation ratio is never less)."""
    top = max([2.0, *(_top(line) for axes in row for line in axes.lines)])
    for axes in row:
        if axes.lines:
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_ylim(0.94, 1.3 * top)


def _n_eff_row(*row: Axes) -> None:
    """One scale for a row, with n_eff = 1 and what it means for α."""
    top = 1.25 * max([1.4, *(_top(line) for axes in row for line in axes.lines)])
    if not row[0].lines:
        return
    for axes in row:
        if axes.lines:
            axes.set_ylim(0, top)
            axes.axhspan(1, top, color="#F5F1E6", zorder=0, linewidth=0)
            axes.axhline(1, color=QUIET, linewidth=1.0, dashes=(4, 3), zorder=1, label="_reference")
    row[0].annotate(
        "$n_{eff}$ ≥ 1: α = 0", (0.02, 0.96), xycoords="axes fraction", va="top", fontsize=9, color=QUIET
    )


def _n_eff_key(axes: Axes) -> None:
    kinds: Any = (("", "-", "of a"), ("after", ":", "of a′, after reweighting"), ("unit", "--", "of a in SALT's unit"))
    seen = {str(line.get_label()).split()[0] for line in axes.lines}
    handles = [
        Line2D([], [], color=QUIET, linestyle=style, label=text)
        for kind, style, text in kinds
        if not kind or f"_{kind}" in seen
    ]
    if len(handles) > 1:
        axes.legend(
            handles=handles, loc="upper left", ncols=len(handles), fontsize=8.5, frameon=False, borderaxespad=0.3,
            handlelength=1.7, columnspacing=1.2, borderpad=0.2,
        )  # fmt: skip


def _how(width: int) -> str:
    return f"Bold: centred mean over {width} steps; thin: single steps." if width > 1 else "Single steps, not smoothed."


def _caption(figure: Figure, sentences: Sequence[str]) -> None:
    figure.supxlabel("\n".join(sentences), x=0.01, ha="left", fontsize=8.5, color=QUIET)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """The positions moved as little as keeps neighbours ``gap`` apart, in their order.

    Example:
      >>> spread([0.5, 0.5], 0.25)
      [0.375, 0.625]
    """
    order = np.argsort(np.asarray(positions), kind="stable")
    blocks: list[tuple[float, int]] = []  # (mean of the wanted first positions, members)
    for rank, j in enumerate(order):
        block = (float(positions[j]) - gap * rank, 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, count = blocks.pop()
            block = ((mean * count + block[0] * block[1]) / (count + block[1]), count + block[1])
        blocks.append(block)
    firsts = [mean for mean, count in blocks for _ in range(count)]
    out = [0.0] * len(order)
    for rank, j in enumerate(order):
        out[j] = firsts[rank] + gap * rank
    return out


def _label_ends(axes: Axes, runs: Sequence[Run], spec: str | None = None) -> None:
    """Each run's name beside the end of its line, in its colour."""
    names = {run.label: i for i, run in enumerate(runs)}
    lines = [line for line in axes.lines if line.get_label() in names]
    if len(runs) < 2 and spec is None:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((0.0, np.asarray(line.get_ydata())[-1]))[1] for line in lines]
    for line, y in zip(lines, spread(ends, 0.085), strict=True):
        label = str(line.get_label())
        text = label if len(label) <= 20 else "…" + label[-19:]
        if spec is not None:
            text += f" {format(np.asarray(line.get_ydata())[-1], spec)}"
        axes.annotate(
            text, (1, y), xycoords="axes fraction", xytext=(7, 0), textcoords="offset points", va="center",
            color=_colour(names[label]), fontweight="bold", fontsize=9, annotation_clip=False,
        )  # fmt: skip


def _reward_headline(runs: Sequence[Run]) -> str:
    ends = {int(run.evaluations[-1]["step"]) for run in runs if len(run.evaluations) > 1}
    parts = []
    for run in runs:
        row = summarize(run)
        if np.isfinite(row.after):
            name = f"{run.label} " if len(runs) > 1 else ""
            when = f" (step {run.evaluations[-1]['step']})" if len(ends) > 1 else ""
            parts.append(f"{name}{row.before:.3f} → {row.after:.3f}{when}")
    if not parts or len(parts) > 3:
        return f"Training reward and held-out accuracy of {len(runs)} run{'s' if len(runs) > 1 else ''}"
    within = f" in {ends.pop()} steps" if len(ends) == 1 else ""
    return f"Held-out accuracy{within}: " + ", ".join(parts)


def _geometry_headline(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        alpha, k = series(run.metrics, "salt/alpha")[1], series(run.metrics, "salt/k")[1]
        if alpha.size:
            name = f"{run.label}: " if len(runs) > 1 else ""
            size = {"mini_batch": run.batch_size, "group": run.group_size}.get(
                str(run.setting("salt", "scope")), run.setting("salt", "scope")
            )
            parts.append(
                f"{name}α = 0 in {np.mean(alpha == 0):.0%} of the steps, mean α {alpha.mean():.2f}, "
                f"mean k {k.mean():.1f}" + (f" of {size}" if size else "")
            )
    if not parts or len(parts) > 3:
        return "Geometry of the rollouts' gradients over the run"
    return "\n".join(parts)


def _common(runs: Sequence[Run], attribute: str) -> int | None:
    values = {getattr(run, attribute) for run in runs}
    return values.pop() if len(values) == 1 else None


def _top(line: Line2D) -> float:
    return float(np.max(np.asarray(line.get_ydata())))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} runs"


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _marker(i: int) -> str:
    return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def default_out(folders: Sequence[Path | str]) -> Path:
    """The one folder itself, or the common parent of several."""
    return Path(os.path.commonpath([Path(folder).resolve() for folder in folders]))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.plot", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=local_path, metavar="DIR", help="a run's workdir")
    parser.add_argument("--out", type=local_path, help="where the plots go; the run's own folder, or the common parent")
    arguments = parser.parse_args(argv)
    try:
        out = arguments.out or default_out(arguments.folders)
        draw(arguments.folders, out)
        print_table(arguments.folders)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"plots: {out / REWARD}, {out / GEOMETRY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
