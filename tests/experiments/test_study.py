"""The study: arms differ in what their names say, nothing is run twice, statistics are loops, tables the results."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest

from experiments.study import __main__ as runner
from experiments.study import one, plan, report, results, statistics
from salt_jax.run.config import parse
from salt_jax.run.guards import NonFiniteError
from salt_jax.run.workdir import StorageError
from tests.house import REPOSITORY

RESULTS = REPOSITORY / results.RESULTS
RUN = plan.Run("salt", 3e-4, 1)
EVERY_ARM = [*plan.ARMS, *plan.EXPLORATORY]


def flat(config, prefix: str = "") -> dict:
    found = {}
    for key, value in config.items():
        deeper = hasattr(value, "items")
        found |= flat(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return found


def resolved(run: plan.Run) -> dict:
    """Every key of a run's configuration, after the program's own checks."""
    config = plan.config_of(run, Path("warm"))
    parse(config)
    return flat(config.to_dict())


def difference(one: dict, other: dict) -> dict:
    return {key: other[key] for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.mark.parametrize("arm", EVERY_ARM)
def test_an_arm_differs_from_salt_in_what_its_name_says(arm):
    settings = plan.ARMS[arm] if arm in plan.ARMS else plan.EXPLORATORY[arm][1]
    assert difference(resolved(RUN), resolved(plan.Run(arm, 3e-4, 1))) == settings
    variant = settings.get("salt.variant")
    assert variant is None or arm.startswith(variant)
    assert all(key.startswith("salt.") for key in settings)


def test_arms_are_different_from_each_other():
    seen = [resolved(plan.Run(arm, 3e-4, 1)) for arm in EVERY_ARM]
    assert all(difference(a, b) for a, b in itertools.combinations(seen, 2))


def test_seed_rate_and_group_change_nothing_else():
    first = resolved(RUN)
    assert difference(first, resolved(plan.Run("salt", 3e-4, 2))) == {"seed": 2}
    assert difference(first, resolved(plan.Run("salt", 1e-4, 1))) == {"optimizer.learning_rate": 1e-4}
    wider = {"sampling.rollouts_per_prompt": 64, "sampling.prompts_per_step": 8}
    assert difference(first, resolved(plan.Run("salt", 3e-4, 1, 64))) == wider
    warm = difference(resolved(plan.Run("salt", 2e-4, 1)), flat(plan.warm_config(1).to_dict()))
    assert warm == {"steps": 0, "init_from": "", "warm_start.steps": 140}


def test_the_same_seed_gave_the_same_first_batch():
    """The mean reward of 512 rollouts before the first update, in every run that was made."""
    seen: dict[tuple[int, int], set[float]] = {}
    for name, result in results.load(RESULTS).items():
        run = plan.parse(name)
        seen.setdefault((run.seed, run.group), set()).add(result["first_reward"])
    assert all(len(rewards) == 1 for rewards in seen.values())
    assert len(set().union(*seen.values())) > len(seen) / 2  # and another seed another one


def test_rates_and_contrasts_share_no_seed():
    assert not set(plan.RATE_SEEDS) & set(plan.SEEDS)
    assert {contrast.arm for contrast in plan.CONTRASTS} | {c.against for c in plan.CONTRASTS} == set(
        plan.ARMS
    )


@pytest.mark.parametrize("name", ["salt", "salt-g16-r0.0003", "slat-g16-r0.0003-s1", "salt-g15-r0.0003-s1",
                                  "salt-g16-r3e-4-s1", "salt-g0-r0.0003-s1", "salt-g16-r1..2-s1"])  # fmt: skip
def test_a_name_of_no_run_is_refused(name):
    with pytest.raises(ValueError, match="names no run; write ARM-gG-rRATE-sSEED"):
        plan.parse(name)


def test_every_run_of_every_part_has_a_name_of_its_own():
    accuracy = accuracies()
    for part in plan.PARTS:
        found = plan.runs(part, accuracy)
        assert len({run.name for run in found}) == len(found)
        assert [plan.parse(run.name) for run in found] == list(found)


def accuracies(**better: float) -> dict[str, float]:
    """Of all runs: 0.5, but for those whose name starts with a key of ``better``, its dashes as underscores."""
    rates = {arm: plan.RATES[0] for arm in plan.ARMS}
    names = [run.name for run in [*plan.rate_runs(), *plan.contrast_runs(rates)]]
    found = dict.fromkeys(names, 0.5)
    for start, value in better.items():
        found |= {name: value for name in names if re.sub(r"\W", "_", name).startswith(start)}
    return found


def test_the_rate_is_the_best_of_the_mean_and_of_equals_the_lowest():
    assert set(plan.chosen_rates(accuracies()).values()) == {1e-4}
    assert plan.chosen_rates(accuracies(salt_g16_r0_0009=0.6))["salt"] == 9e-4
    one_seed = accuracies(salt_g16_r0_0009_s101=0.7, salt_g16_r0_0003=0.61)
    assert plan.chosen_rates(one_seed)["salt"] == 3e-4
    with pytest.raises(ValueError, match="1 runs of 'rates' are missing, as salt-g16-r0.0001-s101"):
        plan.chosen_rates({name: a for name, a in accuracies().items() if name != "salt-g16-r0.0001-s101"})


def test_scaling_takes_the_better_geometric_arm_and_waits_for_the_contrasts():
    for arm in ("natural", "natural_positive"):
        found = {run.arm for run in plan.runs("scaling", accuracies(**{f"{arm}_g16": 0.6}))}
        assert found == {"grpo", "salt", "positive_only", arm}
    missing = {name: value for name, value in accuracies().items() if name != "permuted-g16-r0.0001-s12"}
    with pytest.raises(ValueError, match="1 runs of 'contrasts' are missing, as permuted-g16-r0.0001-s12"):
        plan.runs("scaling", missing)


# The runner, with children that only say that they were there.


def result(name: str, accuracy: float = 0.5, **more) -> dict:
    stamp = {
        "commit": "abc",
        "modified": False,
        "python": "3",
        "jax": "1",
        "date": "2026-01-01",
        "machine": "none",
    }
    windows = {"reward": [0.2, 0.7], "entropy": [0.9, 0.4], "geometry/n_eff_in": [1.0, 3.0]}
    return {
        "name": name, "changes": plan.parse(name).changes, "stopped": None, "seconds": 100.0, "sampled": None,
        "accuracy": {"0": 0.2, "1200": accuracy}, "windows": windows, "made_by": stamp, "first_reward": 0.2, **more,
    }  # fmt: skip


class Recorded(runner.Workers):
    """Children are names; ``fail`` are those that end badly."""

    def __init__(self, *arguments, fail=()):
        super().__init__(*arguments)
        self.seen, self.fail = [], fail

    def child(self, name, core):
        self.seen.append(name)
        if name.startswith("warm-s"):
            (self.options.workdir / name).mkdir()
            (self.options.workdir / name / "summary.json").touch()
        return name not in self.fail


def worked(tmp_path, runs, *, hours=1.0, seconds=10.0, fail=()):
    options = argparse.Namespace(workdir=tmp_path, results=tmp_path, hours=hours)
    workers = Recorded(runs, options, {run.name: seconds for run in runs}, fail=fail)
    workers.work(0)
    return workers


def test_a_warm_start_is_made_once_before_the_first_run_of_its_seed(tmp_path, capsys):
    runs = [plan.Run(arm, 1e-4, seed) for seed in (1, 2) for arm in ("grpo", "salt")]
    names = [run.name for run in runs]
    assert worked(tmp_path, runs).seen == ["warm-s1", *names[:2], "warm-s2", *names[2:]]


def test_no_run_is_started_without_its_warm_start_or_past_the_hours(tmp_path, capsys):
    assert worked(tmp_path, [RUN], fail=("warm-s1",)).seen == ["warm-s1"]
    late = worked(tmp_path, [RUN], hours=0.001)
    assert (late.seen, late.pending) == ([], [RUN])


def test_a_finished_run_is_not_run_again_and_other_settings_are_refused(tmp_path, capsys):
    names = [run.name for run in plan.rate_runs()]
    for name in names[1:]:
        one.write(tmp_path / f"{name}.json", result(name))
    command = ["rates", f"--workdir={tmp_path / 'work'}", f"--results={tmp_path}", "--dry-run"]
    assert runner.main(command) == 0
    assert capsys.readouterr().out.splitlines()[1:] == names[:1]
    assert not (tmp_path / "work").exists()
    for bad, message in (
        (result(names[1]) | {"changes": {}}, "was made with other settings than"),
        (result(names[2]), "was made with other settings than"),
        ([], "is not a result of a run"),
    ):
        (tmp_path / f"{names[1]}.json").write_text(json.dumps(bad))
        assert runner.main(command) == 2
        assert message in capsys.readouterr().err


def test_a_later_part_waits_for_an_earlier_one(tmp_path, capsys):
    assert runner.main(["contrasts", f"--workdir={tmp_path}", f"--results={tmp_path}"]) == 2
    assert "42 runs of 'rates' are missing" in capsys.readouterr().err


def test_time_is_estimated_from_the_arm_then_from_all_then_guessed():
    made = {
        name: result(name, seconds=s)
        for name, s in (("grpo-g16-r0.0001-s1", 60.0), ("salt-g16-r0.0001-s1", 90.0))
    }
    assert runner.seconds_of(RUN, made) == 90.0
    assert runner.seconds_of(plan.Run("scaled", 1e-4, 1), made) == 75.0
    assert runner.seconds_of(RUN, {}) == runner.GUESS


def test_windows_are_means_of_a_hundred_steps_where_a_metric_is_defined():
    records = [
        {"step": s, "reward": s / 1000, "salt/alpha": 0.5, "groups_with_signal": s > 100}
        for s in range(1, 251)
    ]
    found = one.windows(records)
    assert found["reward"] == [0.0505, 0.1505, 0.2255]
    assert found["salt/alpha"] == [None, 0.5, 0.5]
    assert "entropy" not in found


def test_a_run_that_diverges_counts_and_a_full_disk_does_not(tmp_path, monkeypatch, capsys):
    def train(config, folder, console=None):
        raise error

    made = types.SimpleNamespace(evaluations=[{"step": 0, "accuracy": 0.2}], metrics=[])
    monkeypatch.setattr(one, "train", train)
    monkeypatch.setattr(one.runs, "load", lambda folders: [made])
    command = [RUN.name, f"--workdir={tmp_path}", f"--results={tmp_path / 'results'}"]
    error: Exception = StorageError("no space left")
    assert one.main(command) == 1
    assert not (tmp_path / "results").exists()
    error = NonFiniteError("step 7: the loss is not finite")
    assert one.main(command) == 0
    found = json.loads((tmp_path / "results" / f"{RUN.name}.json").read_text())
    assert found["stopped"] == "step 7: the loss is not finite"
    assert results.last_accuracy(found) == 0
    assert one.main(["slat-g16-r0.0003-s1", *command[1:]]) == 2


# Statistics and tables.


@pytest.mark.parametrize("n", [2, 5, 8])
def test_sign_flips_match_a_loop_over_all_of_them(n):
    differences = np.random.default_rng(n).normal(0.3, 1, size=n)
    seen = abs(differences.mean())
    flips = [abs(np.mean(differences * signs)) for signs in itertools.product((1, -1), repeat=n)]
    assert statistics.sign_flip_p(differences) == pytest.approx(
        np.mean(np.array(flips) >= seen * (1 - 1e-12))
    )


def test_holm_multiplies_by_how_many_are_left_and_never_falls():
    p = {"a": 0.03, "b": 0.001, "c": 0.02, "d": 0.5}
    assert statistics.holm(p) == pytest.approx({"b": 0.004, "c": 0.06, "a": 0.06, "d": 0.5})
    assert statistics.holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_the_interval_is_students():
    values = [0.1, 0.4, 0.2, 0.6]
    half = 3.18244630528 * math.sqrt(np.var(values, ddof=1) / 4)  # of a table: 97.5 %, 3 degrees of freedom
    assert statistics.interval(values) == pytest.approx((0.325, 0.325 - half, 0.325 + half), rel=1e-6)


def made(seeds, **arms: float) -> dict[str, dict]:
    """Results of the contrasts at the lowest rate; accuracies by arm, 0.5 elsewhere."""
    runs = [plan.Run(arm, 1e-4, seed) for arm in plan.ARMS for seed in seeds]
    return {run.name: result(run.name, arms.get(run.arm, 0.5) + 0.001 * run.seed) for run in runs}


RATES = dict.fromkeys(plan.ARMS, 1e-4)


def paired_of(results):
    return {report.name_of(c): report.differences(results, RATES, c) for c in plan.CONTRASTS}


def test_contrasts_are_tested_when_all_seeds_are_there_and_not_before():
    early = report.contrasts_table(paired_of(made(plan.SEEDS[:-1], salt=0.3)))
    assert "| salt − grpo | + | − | 11 | −0.200 (−0.200 to −0.200) | – | – | – |" in early
    done = report.contrasts_table(paired_of(made(plan.SEEDS, salt=0.3)))
    assert "| salt − grpo | + | − | 12 | −0.200 (−0.200 to −0.200) | 0.0005 | 0.0029 | − |" in done
    assert re.search(r"\| natural − grpo .*\| 1.0000 \| 1.0000 \| undecided \|", done)


def test_a_pair_needs_both_of_its_runs_and_a_run_that_stopped_counts_as_nothing():
    results = made(plan.SEEDS, salt=0.3)
    results["salt-g16-r0.0001-s3"] |= {"stopped": "not finite"}
    del results["grpo-g16-r0.0001-s5"]
    found = paired_of(results)["salt − grpo"]
    assert len(found) == 11
    assert min(found) == pytest.approx(-0.503)


def test_entropy_at_equal_reward_is_of_the_first_window_that_reaches_it():
    assert report.entropy_at(result(RUN.name), 0.6) == 0.4
    assert report.entropy_at(result(RUN.name), 0.2) == 0.9
    assert math.isnan(report.entropy_at(result(RUN.name), 0.8))


def test_report_draws_what_there_is_and_its_tables_can_be_checked(tmp_path, capsys):
    rates = {run.name: result(run.name) for run in plan.rate_runs()}
    for name, value in (rates | made(plan.SEEDS)).items():
        one.write(tmp_path / "runs" / f"{name}.json", value)
    command = [f"--results={tmp_path / 'runs'}"]
    assert report.main(command) == 0
    assert {path.name for path in tmp_path.glob("*.*")} == {"tables.md", "contrasts.png", "curves.png"}
    assert report.main([*command, "--check"]) == 0
    (tmp_path / "tables.md").write_text("0.9")
    assert report.main([*command, "--check"]) == 1
    capsys.readouterr()
    assert report.main([f"--results={tmp_path / 'none'}"]) == 2
    assert "holds no result of a run" in capsys.readouterr().err


def test_the_committed_tables_are_what_the_committed_results_say():
    assert (RESULTS.parent / report.TABLES).read_text() == report.report(results.load(RESULTS))
