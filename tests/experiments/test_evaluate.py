"""The evaluation's folder, table and comparison; the policy itself is tests/run's."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sys
import types

import pytest
from ml_collections import config_dict
from rich.console import Console

from experiments import cli, evaluate, scores
from salt_jax.evaluation.evaluate import ProblemResult, read_problems, summarize
from salt_jax.models.integrity import seal
from salt_jax.run.identity import Identity
from salt_jax.spec import ConfigError


def problem(name: str, rewards: list[float], answers: list[str | None] | None = None) -> ProblemResult:
    n = len(rewards)
    rewarded = tuple(not math.isnan(reward) for reward in rewards)
    return ProblemResult(
        name, "7", ("…",) * n, tuple(rewards), rewarded, (False,) * n, (10,) * n, tuple(answers or [None] * n)
    )


RESULTS = [problem(str(i), [1.0, 0.0, float(i % 2), 0.0]) for i in range(40)]
MADE_FROM = ("task.train", "task.test", "tokenizer", "template", "grader", "grader.packages", "model.weights")
BETTER = [problem(str(i), [1.0, 1.0, float(i % 2), 0.0]) for i in range(40)]


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def save(folder, results=RESULTS):
    return scores.save(folder, results, correct_from=1.0, about={"seconds": 2.0})


# --- the folder ---


def test_a_folder_holds_the_problems_and_the_numbers(tmp_path):
    folder = tmp_path / "new" / "out"
    scores.check_folder(folder)
    evaluation = save(folder)
    assert read_problems(folder / "problems.jsonl") == RESULTS
    assert evaluation == summarize(RESULTS, ks=(1, 2, 4))
    assert json.loads((folder / "evaluation.json").read_text()) == evaluation.to_record() | {"seconds": 2.0}
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "problems.jsonl"]


@pytest.mark.parametrize("names", [[], ["problems.jsonl"], [".writing-problems.jsonl"]])
def test_an_evaluation_that_was_cut_off_is_written_again(names, tmp_path):
    for name in names:
        (tmp_path / name).write_text("half")
    scores.check_folder(tmp_path)
    save(tmp_path)
    assert read_problems(tmp_path / "problems.jsonl") == RESULTS


@pytest.mark.parametrize(
    ("name", "words"), [("evaluation.json", "holds an evaluation already"), ("thesis.tex", "holds thesis.tex")]
)
def test_a_folder_in_use_is_refused(name, words, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=words):
        scores.check_folder(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        scores.check_folder(tmp_path / name)


def test_a_run_and_a_baseline_are_what_they_should_be(tmp_path):
    with pytest.raises(ConfigError, match="--run=.* is not a run: it has no config.json"):
        scores.check_run(tmp_path)
    with pytest.raises(ConfigError, match="--baseline=.* is not an evaluation: it has no problems.jsonl"):
        scores.load_problems(tmp_path)
    (tmp_path / "problems.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match="problems.jsonl, line 1: Expecting"):
        scores.load_problems(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    scores.check_run(tmp_path)


# --- what people see ---


def table(results) -> tuple[dict[str, list[str]], str]:
    """Cells by score, and the line below."""
    shown = console()
    evaluation = summarize(results, ks=scores.powers_of_two(len(results[0].texts)))
    scores.print_evaluation(evaluation, 1234.5, shown)
    header, *rows, below = shown.file.getvalue().rstrip().split("\n")
    assert header.split() == ["score", "mean", "95", "%", "interval", "problems"]
    return {row.split()[0]: row.split()[1:] for row in rows}, below


def test_the_table_has_every_score_once():
    rows, below = table(RESULTS)
    evaluation = summarize(RESULTS, ks=(1, 2, 4))
    assert list(rows) == ["avg@4", "pass@2", "pass@4"]  # pass@1 is avg@4, and nothing has an answer
    average = evaluation.average
    assert rows["avg@4"] == ["0.375", f"{average.low:.3f}", "–", f"{average.high:.3f}", "40"]
    assert rows["pass@2"][0] == "0.667"  # 1 - mean of 3/6 and 1/6
    assert below == (
        "40 problems, 160 samples of 10.0 tokens; 0.0% truncated; 0 without a reward; mean reward 0.375; "
        "1,234 tokens/s, loading, compilation and grading included"
    )


def test_the_table_of_votes_and_of_missing_rewards():
    rows, below = table([problem("a", [1.0, 1.0, 0.0], ["7", "7", "8"]), problem("b", [math.nan] * 3)])
    assert rows["maj@3"] == ["1.000", "–", "1"]  # one problem has no interval
    assert "3 without a reward" in below
    rows, below = table([problem("a", [math.nan]), problem("b", [math.nan])])
    assert rows == {"avg@1": ["–", "–", "0"]}
    assert "mean reward –" in below


# --- against a baseline ---


def test_a_comparison_is_a_line_and_a_file(tmp_path):
    result, line = scores.compare_with(tmp_path / "base", BETTER, RESULTS, correct_from=1.0)
    assert line == (
        f"accuracy less that of {tmp_path / 'base'}: +0.250 (95 % interval +0.250 to +0.250), p = 0.0001 "
        "by flipping signs, on 40 problems"
    )
    scores.save_comparison(tmp_path, tmp_path / "base", result)
    assert json.loads((tmp_path / "comparison.json").read_text()) == {
        "baseline": str(tmp_path / "base"), "difference": 0.25, "low": 0.25, "high": 0.25,
        "p_value": 1 / 10_001, "problems": 40, "left_out": 0,
    }  # fmt: skip


def test_a_comparison_of_other_problems_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="--baseline=base: the two hold different problems: 2 .*'39', 'z'$"):
        scores.compare_with("base", [*RESULTS[:39], problem("z", [1.0])], RESULTS, correct_from=1.0)


@pytest.mark.parametrize(
    ("other", "refused", "said"),
    [
        ((), "", ()),
        (("task.test",), "task.test: the task.test is not that of the baseline$", ()),
        (("grader", "template"), "cannot be paired with this evaluation: grader: the grader is not that of", ()),
        (("grader.packages",), "grader.packages: ", ()),
        (("task.train", "model.weights"), "", ()),  # policies may differ, and what they were trained on
        (("template", "tokenizer"), "", ("tokenizer: the tokenizer is not", "template: the template is not")),
        (None, "", ("--baseline=.* is from before fingerprints: whether its test data and grader are ",)),
    ],
)
def test_only_the_same_data_and_grader_are_paired(other, refused, said, command, tmp_path, capsys):
    save(tmp_path / "base")
    if other is not None:
        record = {"fingerprints": {name: "2" if name in other else "1" for name in MADE_FROM}}
        (tmp_path / "base" / "evaluation.json").write_text(json.dumps(record))
    if refused:
        with pytest.raises(ConfigError, match=refused):
            command(tmp_path / "out", baseline=tmp_path / "base")
        assert not (tmp_path / "out").exists()
        assert command.asked == []
        return
    command(tmp_path / "out", baseline=tmp_path / "base")
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["fingerprints"] == dict.fromkeys(MADE_FROM, "1")
    assert record["date"] == "2026-11-28T09:00:00"
    lines = capsys.readouterr().out.splitlines()
    assert sum("baseline" in line and "accuracy less" not in line for line in lines) == len(said)
    assert all(any(re.match(words, line) for line in lines) for words in said)


def test_a_comparison_without_an_interval(tmp_path):
    ungraded = dataclasses.replace(RESULTS[1], rewards=(math.nan,) * 4, rewarded=(False,) * 4)
    result, line = scores.compare_with("base", [BETTER[0], ungraded], RESULTS[:2], correct_from=1.0)
    assert line == (
        "accuracy less that of base: +0.250, p = 1 by flipping signs, on 1 problems; 1 without a reward left out"
    )
    scores.save_comparison(tmp_path, "base", result)
    assert json.loads((tmp_path / "comparison.json").read_text())["low"] is None


# --- the command ---


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`command(flag=value)` runs main with a policy that gives BETTER; `asked` has its runs and steps."""
    asked = []
    judging = types.ModuleType("salt_jax.run.judging")

    def evaluate_run(config, run_folder, console, step, accept):
        accept(made, {"date": "2026-11-28T09:00:00", **made.record()})
        asked.append((run_folder, step))
        return BETTER

    judging.evaluate_run = evaluate_run
    monkeypatch.setitem(sys.modules, "salt_jax.run.judging", judging)
    config = config_dict.create(task={"name": "arithmetic", "correct_from": 1.0})
    made = Identity()
    for name in MADE_FROM:
        made.add(name, "1", f"the {name}")

    def flag(value):
        return types.SimpleNamespace(value=value)

    def command(out, run=None, baseline=None, checkpoint=None):
        monkeypatch.setattr(cli, "WORKDIR", flag(str(out)))
        monkeypatch.setattr(cli, "CONFIG", flag(config))
        monkeypatch.setattr(evaluate, "RUN", flag(run and str(run)))
        monkeypatch.setattr(evaluate, "CHECKPOINT", flag(checkpoint))
        monkeypatch.setattr(evaluate, "BASELINE", flag(baseline and str(baseline)))
        evaluate.main()

    command.asked = asked
    return command


def test_the_command_writes_and_prints(command, tmp_path, capsys):
    command(tmp_path / "out")
    assert command.asked == [(None, None)]
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (record["accuracy"], record["run"]) == (0.625, None)
    assert record["config"] == {"task": {"name": "arithmetic", "correct_from": 1.0}}
    assert record["tokens_per_second"] == pytest.approx(40 * 4 * 10 / record["seconds"])
    said = capsys.readouterr().out
    assert "avg@4" in said
    assert f"completions: {tmp_path / 'out' / 'problems.jsonl'}" in said


def test_the_command_compares(command, tmp_path, capsys):
    save(tmp_path / "base")
    run = saved_run(tmp_path)
    command(tmp_path / "out", run=run, baseline=tmp_path / "base")
    assert command.asked == [(run, 8)]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["difference"] == 0.25
    assert "+0.250" in capsys.readouterr().out


def saved_run(folder):
    """A run with checkpoints of steps 0, 4 and 8, best at 4."""
    run = folder / "run"
    for step in (0, 4, 8):
        params = run / "checkpoints" / "train" / str(step) / "params"
        params.mkdir(parents=True)
        (params / "p").write_text(str(step))
        seal(params.parent, step, {})
    (run / "config.json").write_text('{"checkpoint": {"best_by": "accuracy", "best_mode": "max"}}')
    rows = ({"step": step, "accuracy": value} for step, value in ((0, 0.1), (4, 0.3), (8, 0.2)))
    (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.mark.parametrize(("checkpoint", "step"), [(None, 8), ("newest", 8), ("best", 4), ("0", 0)])
def test_which_checkpoint(checkpoint, step, command, tmp_path):
    run = saved_run(tmp_path)
    command(tmp_path / "out", run=run, checkpoint=checkpoint)
    assert command.asked == [(run, step)]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["step"] == step


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [("5", "--run=.*/run: .*/train has no step 5; it has 0, 4, 8$"), ("last", "allowed: newest, best or a step$")],
)
def test_a_checkpoint_that_is_not_there(checkpoint, words, command, tmp_path):
    with pytest.raises(ConfigError, match=words):
        command(tmp_path / "out", run=saved_run(tmp_path), checkpoint=checkpoint)
    with pytest.raises(ConfigError, match="--checkpoint=best needs --run"):
        command(tmp_path / "out", checkpoint="best")
    assert command.asked == []


def test_a_damaged_checkpoint_is_passed_over_with_a_line(command, tmp_path, capsys):
    run = saved_run(tmp_path)
    (run / "checkpoints" / "train" / "8" / "params" / "p").write_text("9")
    command(tmp_path / "out", run=run)
    assert command.asked == [(run, 4)]
    assert "train/8 is damaged: params/p has another SHA-256" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["out", "run", "baseline"])
def test_the_command_checks_before_it_evaluates(wrong, command, tmp_path):
    folders = {"out": tmp_path / "out"}
    if wrong == "out":
        save(folders["out"])
    else:
        folders[wrong] = tmp_path / "nowhere"
    with pytest.raises(ConfigError):
        command(**folders)
    assert command.asked == []


def test_results_are_kept_where_the_baseline_does_not_fit(command, tmp_path):
    save(tmp_path / "base", RESULTS[:3])
    with pytest.raises(ConfigError, match="different problems"):
        command(tmp_path / "out", baseline=tmp_path / "base")
    assert read_problems(tmp_path / "out" / "problems.jsonl") == BETTER
    assert (tmp_path / "out" / "evaluation.json").exists()
