"""Tables, in Markdown, and a plot of what experiments.study.geometry measured.

    python -m experiments.study.geometry_report FILE [FILE ...] [--plot=PNG]

For each policy and temperature: n_eff by feature and G where the unit is a group, and where it is the mini-batch; what
SALT makes of each unit at one G; the LM head against larger features, with its nulls. Wrong input is one line and exit
status 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.arguments import local_path
from experiments.benchmarks import figures
from salt_jax.spec import ConfigError

SAID = {
    "score_sum": "score, sum", "score_mean": "score, mean", "taken_token": "taken token", "last_block": "last block",
    "all": "all parameters",
}  # fmt: skip
UNITS = {"mini_batch": "mini-batch", "group": "group", "rows_4": "4 rows"}
Row = dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    """A result, its tables as lists of rows by column.

    Raises:
      ConfigError: it is no such file.
    """
    try:
        result = json.loads(path.read_text())
        for name in ("policies", "cells", "proxy"):
            table = result[name]
            result[name] = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        result["source"]["task"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is no result of experiments.study.geometry") from None
    return result


def number(value: float | None, error: float | None = None) -> str:
    """Two decimals below 10, else one; '–' for what is undefined.

    Example:
      >>> number(0.456), number(12.34), number(None), number(0.456, 0.1)
      ('0.46', '12.3', '–', '0.46 ± 0.10')
    """
    if value is None:
        return "–"
    digits = 2 if abs(value) < 10 else 1
    text = f"{value:.{digits}f}".replace("-", "−")
    return text if error is None else f"{text} ± {error:.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
      >>> print(table(["a", "b"], [["1", "2"]]))
      | a | b |
      |---|---|
      | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|---" * len(line) + "|" if i == 1 else f"| {' | '.join(line)} |" for i, line in enumerate(lines))


def picked(rows: Sequence[Row], **values: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def falling(cells: Sequence[Row]) -> str:
    """n_eff of a group by feature and G: ratio of means (mean of ratios).

    Beside it the common mean, and the null of rewards permuted among the rollouts of their prompt.
    """
    groups = sorted({row["group"] for row in cells})
    least, largest, rows = groups[0], groups[-1], []
    for feature in dict.fromkeys(row["feature"] for row in cells):
        by_group = {row["group"]: row for row in picked(cells, feature=feature, scope="group")}
        last = by_group[largest]
        found = [f"{number(by_group[g]['ratio'])} ({number(by_group[g]['mean'])})" for g in groups]
        error = None if last["mu2_se"] is None else f"{last['mu2_se']:.3f}"
        common = f"{last['mu2']:.3f}".replace("-", "−") + (f" ± {error}" if error else "")
        nulls = [f"{number(one['prompt_ratio'])} ({number(one['prompt_mean'])})" for one in (by_group[least], last)]
        rows.append([SAID[feature], common, *found, *nulls, number(last["kish"])])
    header = ["feature", "‖μ‖²/E‖s‖²", *[f"G = {g}" for g in groups], f"permuted, G = {least}",
              f"permuted, G = {largest}", f"Kish's count, G = {largest}"]  # fmt: skip
    return table(header, rows)


def whole(cells: Sequence[Row]) -> str:
    """Where the unit is the mini-batch, by feature and G: its n_eff (total), SALT's α, n_eff of the groups' updates."""
    groups = sorted({row["group"] for row in cells})
    rows = []
    for feature in dict.fromkeys(row["feature"] for row in cells):
        by_group = {row["group"]: row for row in picked(cells, feature=feature, scope="mini_batch")}
        shown = [[number(by_group[g][name]) for name in ("ratio", "alpha", "out")] for g in groups]
        rows.append([SAID[feature], *[" · ".join(three) for three in shown]])
    return table(["total · α · out", *[f"G = {g}" for g in groups]], rows)


def units(cells: Sequence[Row], group: int) -> str:
    """What SALT makes of each unit at one G."""
    rows = [
        [SAID[row["feature"]], UNITS[row["scope"]], f"{number(row['ratio'])} ({number(row['mean'])})",
         number(row["median"]), number(row["alpha"]), number(row["k"]), number(row["pr"]), number(row["eigengap"]),
         number(row["residual"]), number(row["cosine"]), number(row["signal"])]
        for row in picked(cells, group=group)
    ]  # fmt: skip
    header = ["feature", "unit", "n_eff", "median", "α", "k", "PR", "eigengap", "residual energy", "cosine(a′, a)",
              "with signal"]  # fmt: skip
    return table(header, rows)


def proxies(rows: Sequence[Row]) -> str:
    """The LM head against larger features."""
    shown = [
        [SAID[row["reference"]], str(row["rows"]), row["against"], *(number(row[name]) for name in (
            "spearman", "sign", "pr_error", "overlap", "k_match")),
         f"{number(row['k_proxy'])} / {number(row['k_reference'])}", number(row["cosine"])]
        for row in rows
    ]  # fmt: skip
    header = ["LM head against", "rows", "", "Spearman", "sign", "PR error", "overlap", "k equal", "k", "cosine of a′"]
    return table(header, shown)


def policies(results: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], Row]]:
    """Each policy at each temperature: its name, the result it is of, and its row."""
    for result in results:
        source = result["source"]
        name = source.get("model", source["task"])
        for row in result["policies"]:
            step = "" if "run" not in source else f", step {row['step']}"
            yield f"{name}{step}, temperature {row['temperature']:g}", result, row


def report(results: Sequence[dict[str, Any]]) -> str:
    """All tables."""
    text = []
    for name, result, row in policies(results):
        at = {"step": row["step"], "temperature": row["temperature"]}
        cells = picked(result["cells"], **at)
        text += [
            f"### {name}",
            f"Mean reward {row['reward']:.3f}, entropy {row['entropy']:.2f} nats a token, {row['tokens']:.1f} tokens, "
            f"{row['truncated']:.1%} cut off; commit {str(result['commit'])[:7]}, {result['date'][:10]}.",
            falling(cells), whole(cells), units(cells, 16 if picked(cells, group=16) else cells[0]["group"]),
        ]  # fmt: skip
        if proxy := picked(result["proxy"], **at):
            text.append(proxies(proxy))
    return "\n\n".join(text)


def plot(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """n_eff of a group against G: a row of panels for each temperature, a panel for each policy."""
    rows: dict[float, list[figures.Panel]] = {}
    for name, result, row in policies(results):
        lines = []
        for i, feature in enumerate(SAID):
            cells = picked(
                result["cells"], step=row["step"], temperature=row["temperature"], feature=feature, scope="group"
            )
            cells = [cell for cell in cells if cell["ratio"] and cell["prompt_ratio"]]
            if cells:
                x = [cell["group"] for cell in cells]
                lines.append(figures.Line(SAID[feature], x, [cell["ratio"] for cell in cells], i))
                lines.append(figures.Line("", x, [cell["prompt_ratio"] for cell in cells], i, dashed=True))
        panel = figures.Panel(name.replace(", temperature", "\ntemperature"), "G", "n_eff", lines, floor=0.02)
        rows.setdefault(row["temperature"], []).append(panel)
    caption = "ΣN / ΣD over groups. Dotted: the same with rewards permuted."
    figures.draw(path, "n_eff of a group against its size", [rows[t] for t in sorted(rows, reverse=True)], caption)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    name, said = "python -m experiments.study.geometry_report", __doc__.splitlines()[0]  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(prog=name, description=said)
    parser.add_argument("files", type=local_path, nargs="+", metavar="FILE", help="of experiments.study.geometry")
    parser.add_argument("--plot", type=local_path, help="png to draw")
    flags = parser.parse_args(argv)
    try:
        results = [load(path) for path in flags.files]
        print(report(results))
        if flags.plot:
            plot(flags.plot, results)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.BAD_INPUT
    except OSError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return cli.STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
