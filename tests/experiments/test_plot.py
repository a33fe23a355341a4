"""Plots and table of runs, from synthetic records: what is drawn is what the files say."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import plot, runs
from salt_jax.spec import ConfigError

STEPS = 200


def write_run(
    folder: Path,
    *,
    salt: bool = True,
    scope: str | int = "mini_batch",
    steps: int = STEPS,
    measure_every: int = 10,
    silent: tuple[int, ...] = (),
    change: dict[int, dict] | None = None,
    evaluations: tuple[int, ...] = (0, 100, 200),
    finished: bool = True,
) -> Path:
    """A run's folder: reward = step / 1000, n_eff = 0.75, α = 0.25, PR = k = 8; evaluated 0.1 + step / 1000."""
    folder.mkdir(parents=True)
    config = {
        "steps": STEPS,
        "salt": {"enabled": salt, "variant": "salt", "scope": scope, "feature": "lm_head"},
        "sampling": {"prompts_per_step": 4, "rollouts_per_prompt": 4},
        "learner": {"minibatches": 1},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = []
    for step in range(1, steps + 1):
        record = {"step": step, "reward": step / 1000, "seconds": 0.5, "tokens_per_second": 100.0 + (step == 1)}
        record["groups_with_signal"] = 0.0 if step in silent else 0.5
        if salt or (measure_every and (step - 1) % measure_every == 0):
            record |= {"geometry/participation_ratio_in": 3.0, "geometry/participation_ratio_total": 8.0}
            record |= {"geometry/n_eff_in": 0.5, "geometry/n_eff_total": 0.75}
        if salt:
            record |= {"salt/alpha": 0.25, "salt/k": 8.0, "salt/n_eff": 0.75, "salt/n_eff_after": 1.5}
        if step in silent:
            kept = ("step", "reward", "seconds", "tokens_per_second", "geometry/participation_ratio_total")
            record = {name: value if name in kept else 0.0 for name, value in record.items()}
        lines.append(json.dumps(record | (change or {}).get(step, {})))
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    lines = [json.dumps({"step": step, "accuracy": 0.1 + step / 1000, "problems": 40}) for step in evaluations]
    (folder / "evaluations.jsonl").write_text("".join(line + "\n" for line in lines))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"steps": steps}))
    return folder


def lines_of(axes, label: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [np.array(line.get_data()) for line in axes.lines if line.get_label() == label]


def texts_of(figure) -> str:
    parts = [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title, axes._left_title)]
    return "\n".join([*parts, figure.get_suptitle(), figure.get_supxlabel()])


def panels(figure) -> dict[str, object]:
    names = ("pr_in", "pr_total", "n_in", "n_total", "alpha", "k")
    return dict(zip(names, figure.axes, strict=True))


def print_to_text(folders, width: int = 40, **options) -> str:
    file = io.StringIO()
    runs.print_table(folders, console=Console(file=file, width=width, **options))
    return file.getvalue()


@pytest.fixture
def pair(tmp_path):
    """A run without and one with SALT."""
    return [write_run(tmp_path / "runs" / "grpo", salt=False), write_run(tmp_path / "runs" / "salt")]


# --- series ---


def test_a_series_leaves_out_what_is_missing_not_finite_or_undefined():
    records = [
        {"step": 1, "geometry/n_eff_total": 0.5, "groups_with_signal": 1.0},
        {"step": 2, "reward": 1.0},
        {"step": 3, "geometry/n_eff_total": math.nan, "groups_with_signal": 1.0},
        {"step": 4, "geometry/n_eff_total": 0.0, "groups_with_signal": 0.0, "geometry/participation_ratio_total": 3.0},
        {"step": 5, "geometry/n_eff_total": 0.0, "groups_with_signal": 1.0, "geometry/participation_ratio_total": 0.0},
    ]
    steps, values = runs.series(records, "geometry/n_eff_total")
    assert (steps.tolist(), values.tolist()) == ([1.0, 5.0], [0.5, 0.0])
    steps, values = runs.series(records, "geometry/participation_ratio_total")
    assert (steps.tolist(), values.tolist()) == ([4.0], [3.0])
    assert runs.series(records, "salt/k")[0].size == 0


@pytest.mark.parametrize("width", [1, 3, 7])
def test_smoothing_is_the_mean_of_the_neighbouring_steps(width):
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 4, 50)).astype(float)
    values = rng.normal(size=50)
    expected = [values[np.abs(steps - step) <= width // 2].mean() for step in steps]
    np.testing.assert_allclose(runs.smooth(steps, values, width), expected, atol=1e-12)


def test_spread_keeps_the_order_and_the_gap():
    wanted = [0.9, 0.1, 0.11, 0.12, 0.5]
    out = plot.spread(wanted, 0.1)
    assert np.argsort(out).tolist() == np.argsort(wanted).tolist()
    assert np.diff(np.sort(out)).min() >= 0.1 - 1e-12
    assert (out[0], out[4]) == pytest.approx((0.9, 0.5))
    assert np.mean(out[1:4]) == pytest.approx(0.11)


def test_labels_tell_folders_apart(tmp_path):
    first, second = write_run(tmp_path / "a" / "salt"), write_run(tmp_path / "b" / "salt")
    assert [run.label for run in runs.load([first, second])] == ["a/salt", "b/salt"]
    assert [run.label for run in runs.load([first, first])] == ["salt"]
    assert [run.label for run in runs.load([first, second], ["x", "y"])] == ["x", "y"]


# --- what is drawn ---


def test_reward_shows_every_step_their_mean_and_the_evaluations(pair):
    reward, accuracy = plot.reward_figure(loaded := runs.load(pair)).axes
    width = runs.smoothing_width(loaded)
    assert width == 11
    for label in ("grpo", "salt"):
        ((steps, values),) = lines_of(reward, f"_raw {label}")
        assert steps.tolist() == list(range(1, STEPS + 1))
        np.testing.assert_allclose(values, steps / 1000)
        ((steps, smoothed),) = lines_of(reward, label)
        np.testing.assert_allclose(smoothed, runs.smooth(steps, values, width))
        ((steps, values),) = lines_of(accuracy, label)
        assert (steps.tolist(), values.tolist()) == ([0, 100, 200], pytest.approx([0.1, 0.2, 0.3]))
    colours = {line.get_label(): line.get_color() for line in accuracy.lines}
    assert len(set(colours.values())) == 2
    assert reward.get_xlim()[0] == accuracy.get_xlim()[0] == 0


def test_the_reward_figure_says_what_is_seen_and_how_it_was_smoothed(pair):
    text = texts_of(plot.reward_figure(runs.load(pair)))
    assert "Held-out accuracy in 200 steps: grpo 0.100 → 0.300, salt 0.100 → 0.300" in text
    assert "centred mean over 11 steps" in text
    assert "salt 0.300" in text


def test_geometry_draws_each_statistic_in_its_panel(pair):
    figure = plot.geometry_figure(runs.load(pair))
    shown = panels(figure)
    expected = {"pr_in": 3.0, "pr_total": 8.0, "n_in": 0.5, "n_total": 0.75}
    for name, value in expected.items():
        for label, every in (("grpo", 10), ("salt", 1)):
            ((steps, values),) = lines_of(shown[name], label)
            assert steps.tolist() == list(range(1, STEPS + 1, every)), name
            np.testing.assert_allclose(values, value)
    for name, value in {"alpha": 0.25, "k": 8.0}.items():
        ((_, values),) = lines_of(shown[name], "salt")
        np.testing.assert_allclose(values, value)
        assert not lines_of(shown[name], "grpo")
    ((_, values),) = lines_of(shown["n_total"], "_after salt")
    np.testing.assert_allclose(values, 1.5)
    for name in ("n_in", "n_total"):
        ((_, values),) = lines_of(shown[name], "_reference")
        assert list(values) == [1, 1]
    assert shown["pr_in"].get_yscale() == shown["pr_total"].get_yscale() == "log"
    text = texts_of(figure)
    assert "none for grpo: SALT is off" in text
    assert "within a group of 4" in text
    assert "whole mini-batch of 16 rollouts" in text
    assert "α = 0 in 0% of the steps, mean α 0.25, mean k 8.0 of 16" in text
    assert "unanimous" not in text


def test_steps_without_a_signal_are_left_out_and_that_is_said(tmp_path):
    run = runs.load([write_run(tmp_path / "salt", silent=(3, 4))])
    figure = plot.geometry_figure(run)
    ((steps, values),) = lines_of(panels(figure)["alpha"], "_raw salt")
    assert set(range(1, STEPS + 1)) - set(steps) == {3, 4}
    assert set(values) == {0.25}
    assert len(lines_of(panels(figure)["pr_total"], "salt")[0][0]) == STEPS
    assert "unanimous" in texts_of(figure)
    assert runs.summarize(run[0]).alpha == 0.25


def test_a_unit_smaller_than_the_mini_batch_shows_its_own_n_eff(tmp_path):
    figure = plot.geometry_figure(runs.load([write_run(tmp_path / "salt", scope=4)]))
    assert lines_of(panels(figure)["n_total"], "_unit salt")
    assert "of 4" in figure.get_suptitle()


def test_salt_off_and_never_measured_says_so(tmp_path):
    figure = plot.geometry_figure(runs.load([write_run(tmp_path / "grpo", salt=False, measure_every=0)]))
    text = texts_of(figure)
    assert "config.salt.measure_every is 0" in text
    assert "SALT is off" in text


def test_runs_of_different_length_share_one_axis(tmp_path):
    folders = [write_run(tmp_path / "short", steps=20, evaluations=(0,)), write_run(tmp_path / "long")]
    reward, accuracy = plot.reward_figure(runs.load(folders)).axes
    assert lines_of(reward, "short")[0][0][-1] == 20
    assert reward.get_xlim() == accuracy.get_xlim()
    assert reward.get_xlim()[1] >= STEPS


def test_rewards_below_zero_are_not_cut_off(tmp_path):
    change = {step: {"reward": -1.0} for step in range(1, 50)}
    axes = plot.reward_figure(runs.load([write_run(tmp_path / "run", change=change)])).axes[0]
    assert axes.get_ylim()[0] <= -1


def test_many_runs_keep_their_own_look(tmp_path):
    folders = [write_run(tmp_path / f"run{i}", steps=3) for i in range(9)]
    accuracy = plot.reward_figure(runs.load(folders)).axes[1]
    looks = {(line.get_color(), line.get_marker()) for line in accuracy.lines}
    assert len(looks) == 9


# --- partial and wrong folders ---


def test_a_run_that_is_going_on(tmp_path):
    folder = write_run(tmp_path / "run", steps=30, evaluations=(0,), finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "rew')  # the writer is in the middle of a line
    run = runs.load([folder])[0]
    assert len(run.metrics) == 30
    assert runs.summarize(run).steps == "30 of 200"
    assert "0.100 → –" in print_to_text([folder])
    plot.draw([folder], tmp_path)


@pytest.mark.parametrize("empty", ["", None])
def test_a_warm_start_alone_is_a_plot_with_one_evaluation(tmp_path, empty):
    folder = write_run(tmp_path / "warm", steps=0, evaluations=(0,))
    if empty is None:
        (folder / "metrics.jsonl").unlink()
    figure = plot.reward_figure(runs.load([folder]))
    assert len(lines_of(figure.axes[1], "warm")[0][0]) == 1
    assert "no training step yet" in texts_of(figure)
    assert plot.main([str(folder)]) == 0
    assert (folder / plot.GEOMETRY).stat().st_size > 10_000


def test_a_value_that_is_not_finite_is_a_gap_and_is_named_in_the_table(tmp_path):
    folder = write_run(tmp_path / "run", steps=20, change={20: {"reward": math.nan}}, finished=False)
    ((steps, values),) = lines_of(plot.reward_figure(runs.load([folder])).axes[0], "run")
    assert 20 not in steps
    assert np.isfinite(values).all()
    assert "20 of 200, not finite" in print_to_text([folder])


def _break(folder: Path, how: str) -> None:
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no records":
        (folder / "metrics.jsonl").write_text("")
        (folder / "evaluations.jsonl").unlink()
    elif how == "bad line":
        (folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    elif how == "no step":
        (folder / "metrics.jsonl").write_text('{"reward": 1}\n')
    elif how == "bad config":
        (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "is not a run: it has no config.json"),
        ("no records", "nothing to draw yet"),
        ("bad line", "metrics.jsonl: line"),
        ("no step", "is damaged"),
        ("bad config", "config.json cannot be read"),
    ],
)
def test_a_folder_that_will_not_do_is_one_line_and_nothing_is_written(tmp_path, capsys, how, message):
    folder = write_run(tmp_path / "run")
    _break(folder, how)
    before = sorted(tmp_path.rglob("*"))
    assert plot.main([str(folder), f"--out={tmp_path / 'out'}"]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_no_folder_and_no_place_to_write(tmp_path, capsys):
    assert plot.main([str(tmp_path / "missing")]) == 2
    assert "does not exist" in capsys.readouterr().err
    folder = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert plot.main([str(folder), f"--out={tmp_path / 'file'}"]) == 2
    assert "cannot write to" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        plot.main([])
    with pytest.raises(ConfigError, match="labels"):
        runs.load([folder], ["a", "b"])


# --- the command and the table ---


def test_the_command_overlays_into_the_common_parent(pair, capsys):
    assert plot.main([str(folder) for folder in pair]) == 0
    parent = pair[0].parent
    for name in ("reward.png", "geometry.png"):
        image = (parent / name).read_bytes()
        assert image.startswith(b"\x89PNG")
        assert int.from_bytes(image[16:20], "big") == 1800, "twice the width a README shows"
    assert str(parent / "reward.png") in capsys.readouterr().out
    assert plot.default_out(pair[:1]) == pair[0]


def test_the_table_before_and_after(pair):
    lines = print_to_text(pair).splitlines()
    header, grpo, salt = (line.split() for line in lines[:3])
    assert header[:3] == ["run", "SALT", "steps"]
    assert grpo == ["grpo", "off", "200", "0.100", "→", "0.300", "–", "0.75", "8.0", "100", "100"]
    assert salt[:7] == ["salt", "salt", "·", "mini_batch", "·", "lm_head", "200"]
    assert salt[7:] == ["0.100", "→", "0.300", "0.25", "0.75", "8.0", "100", "100"]
    assert "on 40 held-out problems" in lines[3]
    assert not any(sign in "".join(lines) for sign in "│╭\x1b")


def test_the_table_in_a_terminal_has_a_frame(pair):
    assert "╭" in print_to_text(pair, width=120, force_terminal=True)


def test_plotting_leaves_matplotlib_as_it_was(pair, tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plot.draw(pair, tmp_path)
    assert dict(mpl.rcParams) == before
