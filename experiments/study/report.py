"""Tables and plots of the study: python -m experiments.study.report [--results=DIR] [--out=DIR] [--check].

Reads every result of docs/results/runs and writes tables.md, contrasts.png, curves.png and scaling.png beside it. With
--check nothing is written: exit status 1 where tables.md is not what the results say.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arguments import local_path
from experiments.study import figures, plan
from experiments.study.geometry_report import table
from experiments.study.results import RESULTS, last_accuracy, load
from experiments.study.statistics import holm, interval, sign_flip_p

TABLES = "tables.md"
LEVEL = 0.05
EQUAL_REWARD = 0.6  # training reward at which entropies are compared: all arms but the failing ones pass it

HEAD = (
    "Made by `python -m experiments.study.report` from `docs/results/runs`; what they mean is in\n"
    "[README.md](README.md)."
)
COLUMNS = f"""Greedy: accuracy on 2,000 held-out problems after step 1,200, mean ± standard deviation over seeds; a
run that stopped itself counts as 0. avg@8, pass@8: at temperature 1 on 500 of them. Entropy: nats a token, mean of the
last 100 steps, and of the first 100 steps whose training reward is at least {EQUAL_REWARD:g}. The rest: of the
mini-batch, means over the run."""

Results = Mapping[str, Mapping[str, Any]]


def of_arm(
    results: Results, arm: str, rate: float, seeds: Iterable[int], group: int = plan.GROUP
) -> list[Any]:
    """The results that there are of an arm, in the order of the seeds."""
    names = [plan.Run(arm, rate, seed, group).name for seed in seeds]
    return [results[name] for name in names if name in results]


def mean_window(result: Mapping[str, Any], name: str, *, last: bool = False) -> float:
    """Mean over the run of a metric, or its last window; NaN where it was not recorded."""
    values = [value for value in result["windows"].get(name, []) if value is not None]
    return float(np.mean(values[-1:] if last else values)) if values else math.nan


def entropy_at(result: Mapping[str, Any], reward: float) -> float:
    """Mean token entropy in the first window whose training reward is at least ``reward``; NaN where none is."""
    both = zip(result["windows"]["reward"], result["windows"]["entropy"], strict=True)
    return next((float(entropy) for got, entropy in both if got is not None and got >= reward), math.nan)


def number(value: float, spec: str = ".3f") -> str:
    """A number for a table; – for NaN.

    >>> number(0.12345), number(math.nan)
    ('0.123', '–')
    """
    return "–" if math.isnan(value) else format(value, spec).replace("-", "−")


def average(values: Iterable[float], spec: str = ".3f") -> str:
    """The mean of what is not NaN."""
    kept = [value for value in values if not math.isnan(value)]
    return number(float(np.mean(kept)) if kept else math.nan, spec)


def spread(values: Sequence[float]) -> str:
    """mean ± standard deviation over seeds."""
    if len(values) < 2:
        return number(values[0]) if values else "–"
    return f"{number(float(np.mean(values)))} ± {number(float(np.std(values, ddof=1)))}"


def rates_table(results: Results, rates: Mapping[str, float]) -> str:
    """Accuracy of every arm at every rate; what was chosen is bold."""
    rows = []
    for arm in plan.ARMS:
        cells = []
        for rate in plan.RATES:
            text = spread([last_accuracy(result) for result in of_arm(results, arm, rate, plan.RATE_SEEDS)])
            cells.append(f"**{text}**" if rates.get(arm) == rate else text)
        rows.append([f"`{arm}`", *cells])
    return table(["arm", *(f"{rate:g}" for rate in plan.RATES)], rows)


SEEN = {
    "n_eff": "geometry/n_eff_total", "Kish's count": "geometry/kish_count_total",
    "PR": "geometry/participation_ratio_total", "α": "salt/alpha", "k": "salt/k", "cosine(a′, a)": "salt/cosine",
}  # fmt: skip


def arms_table(named: Mapping[str, Sequence[Any]]) -> str:
    """What each arm reached and what its geometry was; ``named``: its results."""
    rows = []
    for arm, found in named.items():
        if not found:
            continue
        sampled = [result["sampled"] for result in found if result["sampled"]]
        rows.append([
            f"`{arm}`", str(len(found)), f"{plan.parse(found[0]['name']).rate:g}",
            spread([last_accuracy(result) for result in found]),
            average([scores["accuracy"] for scores in sampled]), average([scores["pass@8"] for scores in sampled]),
            average([mean_window(result, "entropy", last=True) for result in found]),
            average([entropy_at(result, EQUAL_REWARD) for result in found]),
            *(average([mean_window(r, name) for r in found], ".2f") for name in SEEN.values()),
            str(sum(result["stopped"] is not None for result in found)),
        ])  # fmt: skip
    columns = ["arm", "seeds", "rate", "greedy", "avg@8", "pass@8", "entropy", f"at reward {EQUAL_REWARD:g}"]
    return table([*columns, *SEEN, "stopped"], rows)


def differences(results: Results, rates: Mapping[str, float], contrast: plan.Contrast) -> list[float]:
    """Accuracy of arm − against, of every seed that has both."""
    found = []
    for seed in plan.SEEDS:
        names = [plan.Run(arm, rates[arm], seed).name for arm in (contrast.arm, contrast.against)]
        if all(name in results for name in names):
            first, second = (last_accuracy(results[name]) for name in names)
            found.append(first - second)
    return found


def contrasts_table(paired: Mapping[str, Sequence[float]]) -> str:
    """The six contrasts; no p before all seeds of all of them are there: how many there are was fixed beforehand."""
    done = all(len(values) == len(plan.SEEDS) for values in paired.values())
    p_values = {name: sign_flip_p(values) for name, values in paired.items()} if done else {}
    adjusted = holm(p_values)
    rows = []
    for contrast in plan.CONTRASTS:
        name = name_of(contrast)
        found = interval(paired[name])
        verdict = "–"
        if done:
            sign = "+" if found.mean > 0 else "−"
            verdict = sign if adjusted[name] <= LEVEL else "undecided"
        rows.append([
            name, contrast.claimed.replace("-", "−"), contrast.expected.replace("-", "−"), str(len(paired[name])),
            f"{number(found.mean, '+.3f')} ({number(found.low, '+.3f')} to {number(found.high, '+.3f')})",
            number(p_values.get(name, math.nan), ".4f"), number(adjusted.get(name, math.nan), ".4f"), verdict,
        ])  # fmt: skip
    return table(["contrast", "claimed", "expected", "seeds", "mean (95 %)", "p", "Holm", "found"], rows)


def name_of(contrast: plan.Contrast) -> str:
    """For tables and plots."""
    return f"{contrast.arm} − {contrast.against}"


def scaling_table(
    results: Results, rates: Mapping[str, float], arms: Sequence[str], metric: str | None
) -> str:
    """Accuracy, or the mean of a metric, over G."""
    rows = []
    for arm in arms:
        cells = []
        for group in plan.SCALING_GROUPS:
            found = of_arm(results, arm, rates[arm], plan.SCALING_SEEDS, group)
            values = [last_accuracy(r) if metric is None else mean_window(r, metric) for r in found]
            cells.append(spread(values) if metric is None else average(values, ".2f"))
        rows.append([f"`{arm}`", *cells])
    return table(["arm", *(f"G = {group}" for group in plan.SCALING_GROUPS)], rows)


def made_by(results: Results) -> str:
    """Commits, dates, hardware and hours."""
    stamps = [result["made_by"] for result in results.values()]
    changed = ", with changes" if any(stamp["modified"] for stamp in stamps) else ""
    commits = ", ".join(sorted({str(stamp["commit"])[:7] for stamp in stamps}))
    dates = sorted({stamp["date"] for stamp in stamps})
    machines = ", ".join(sorted({stamp["machine"] for stamp in stamps}))
    versions = ", ".join(sorted({f"Python {stamp['python']}, jax {stamp['jax']}" for stamp in stamps}))
    hours = sum(result["seconds"] for result in results.values()) / 3600
    return (
        f"{len(results)} runs, {hours:.1f} core hours, {dates[0]} to {dates[-1]}; commit {commits}{changed}; "
        f"{versions}; each run on {machines}."
    )


def report(results: Results) -> str:
    """tables.md."""
    parts = ["# Tables of the study", HEAD, made_by(results), COLUMNS]
    accuracy = {name: last_accuracy(result) for name, result in results.items()}
    try:
        rates = plan.chosen_rates(accuracy)
    except ValueError:
        rates = {}
    parts += [
        "## Learning rates",
        f"Seeds {', '.join(map(str, plan.RATE_SEEDS))}; bold: chosen.",
        rates_table(results, rates),
    ]
    if not rates:
        return "\n\n".join(parts) + "\n"
    named = {arm: of_arm(results, arm, rates[arm], plan.SEEDS) for arm in plan.ARMS}
    if any(named.values()):
        paired = {name_of(contrast): differences(results, rates, contrast) for contrast in plan.CONTRASTS}
        parts += ["## Six contrasts", contrasts_table(paired), "## Arms", arms_table(named)]
    if arms := scaling_arms(accuracy, rates):
        parts += [
            "## Rollout scaling",
            "512 rollouts a step, seeds 1 to 4. Greedy accuracy:",
            scaling_table(results, rates, arms, None),
        ]
        for said, metric in (
            ("n_eff within groups", "geometry/n_eff_in"),
            ("n_eff of the mini-batch", SEEN["n_eff"]),
            ("α", "salt/alpha"),
        ):
            parts += [f"{said}, mean over the run:", scaling_table(results, rates, arms, metric)]
    tried = {
        arm: of_arm(results, arm, rates[like], plan.EXPLORATORY_SEEDS)
        for arm, (like, _) in plan.EXPLORATORY.items()
    }
    if any(tried.values()):
        same = {arm: of_arm(results, arm, rates[arm], plan.EXPLORATORY_SEEDS) for arm in plan.ARMS}
        parts += [
            "## Exploratory",
            "Seeds 1 to 3, no test; the arms of the contrasts on the same seeds first.",
            arms_table(same | tried),
        ]
    return "\n\n".join(parts) + "\n"


def draw(results: Results, out: Path) -> list[Path]:
    """The plots that there are results for; their paths."""
    accuracy = {name: last_accuracy(result) for name, result in results.items()}
    try:
        rates = plan.chosen_rates(accuracy)
    except ValueError:
        return []
    drawn = []
    paired = {name_of(contrast): differences(results, rates, contrast) for contrast in plan.CONTRASTS}
    if all(len(values) > 1 for values in paired.values()):
        drawn += [out / "contrasts.png", out / "curves.png"]
        figures.contrasts(drawn[0], paired)
        figures.curves(drawn[1], {arm: of_arm(results, arm, rates[arm], plan.SEEDS) for arm in plan.ARMS})
    if arms := scaling_arms(accuracy, rates):
        groups = plan.SCALING_GROUPS
        found = {
            arm: {group: of_arm(results, arm, rates[arm], plan.SCALING_SEEDS, group) for group in groups}
            for arm in arms
        }
        if all(
            any(by_group[group] for group in groups if group != plan.GROUP) for by_group in found.values()
        ):
            panels = {"Greedy accuracy": last_accuracy} | {
                title: functools.partial(mean_window, name=name)
                for title, name in (
                    ("n_eff within groups", "geometry/n_eff_in"),
                    ("n_eff of the mini-batch", SEEN["n_eff"]),
                )
            }
            drawn.append(out / "scaling.png")
            figures.scaling(drawn[-1], found, panels)
    return drawn


def scaling_arms(accuracy: Mapping[str, float], rates: Mapping[str, float]) -> tuple[str, ...]:
    """The arms of rollout scaling; none before the contrasts are done, which choose one of them."""
    try:
        return plan.scaling_arms(accuracy, rates)
    except KeyError:
        return ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.study.report", description=__doc__.splitlines()[0]  # type: ignore[union-attr]
    )  # fmt: skip
    parser.add_argument(
        "--results", type=local_path, default=RESULTS, help=f"of the runs (default {RESULTS})"
    )
    parser.add_argument(
        "--out", type=local_path, help="of the tables and plots (default: the parent of --results)"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; is tables.md what the results say?"
    )
    options = parser.parse_args(arguments)
    out = options.out or options.results.parent
    try:
        results = load(options.results)
        if not results:
            raise ValueError(f"{options.results} holds no result of a run")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = report(results)
    if options.check:
        same = (out / TABLES).exists() and (out / TABLES).read_text(encoding="utf-8") == text
        print(f"{out / TABLES} is {'' if same else 'not '}what {options.results} says")
        return 0 if same else 1
    out.mkdir(parents=True, exist_ok=True)
    (out / TABLES).write_text(text, encoding="utf-8")
    drawn = draw(results, out)
    print("\n".join([text, *map(str, [out / TABLES, *drawn])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
