"""The run's folder and its records."""

from __future__ import annotations

import io
import json
import math
import time

import pytest
from rich.console import Console

from salt_jax.training import workdir
from salt_jax.training.config import ConfigError
from salt_jax.training.metrics import MetricWriter, NonFiniteError, check_finite

CONFIG = {"steps": 3, "salt": {"rho": 1.0, "k_max": None}}


def test_a_new_folder_then_the_same_again(tmp_path):
    folder = tmp_path / "a" / "run"
    assert not workdir.check_workdir(folder, CONFIG)
    assert not folder.exists()
    workdir.open_workdir(folder, CONFIG)
    assert workdir.check_workdir(folder, CONFIG)
    assert json.loads((folder / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 4, "salt": {"rho": 1.0, "k_max": None}}, "config.steps is 3 there and 4 here"),
        ({"steps": 3, "salt": {"rho": 0.5, "k_max": None}}, "config.salt.rho is 1.0 there and 0.5 here"),
        ({"steps": 3, "salt": {"rho": 1.0}}, None),  # None and absent mean the same
        ({"steps": 3, "salt": {"rho": 1.0, "k_max": 2}}, "config.salt.k_max is None there and 2 here"),
    ],
)
def test_another_configuration(changed, words, tmp_path):
    workdir.open_workdir(tmp_path / "run", CONFIG)
    if words is None:
        assert workdir.check_workdir(tmp_path / "run", changed)
        return
    with pytest.raises(ConfigError) as caught:
        workdir.check_workdir(tmp_path / "run", changed)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        workdir.check_workdir(tmp_path / "run", CONFIG)


def test_killed_between_making_the_folder_and_its_configuration(tmp_path):
    (tmp_path / ".writing-config.json").write_text('{"ste')
    assert not workdir.check_workdir(tmp_path, CONFIG)
    workdir.open_workdir(tmp_path, CONFIG)
    assert workdir.check_workdir(tmp_path, CONFIG)


def test_records_survive_a_cut_line_and_rewind(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        workdir.append_record(path, {"step": step, "loss": 0.1 * step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in workdir.read_records(path)] == [1, 2, 3]
    workdir.rewind(path, 2)
    assert workdir.read_records(path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}]
    workdir.append_record(path, {"step": 3, "loss": 7.0})
    assert workdir.read_records(path)[-1]["loss"] == 7.0
    assert workdir.read_records(tmp_path / "absent.jsonl") == []


def test_a_step_that_is_not_finite_names_everything():
    check_finite(5, {"loss": 0.0, "geometry/gram_finite": 1.0}, "none yet")
    for name, value in (("loss", math.nan), ("grad_norm", math.inf), ("salt/participation_ratio", math.nan)):
        with pytest.raises(NonFiniteError) as caught:
            check_finite(5, {"reward": 1.0, name: value}, "run/checkpoints/train/4")
        assert "step 5" in str(caught.value)
        assert name in str(caught.value)
        assert "train/4" in str(caught.value)
    with pytest.raises(NonFiniteError, match="gram_finite"):
        check_finite(5, {"loss": 0.0, "geometry/gram_finite": 0.5}, "none yet")


def test_the_remaining_time_has_hours(tmp_path, monkeypatch):
    clock = iter([0.0, 60.0])  # the writer begins, and a minute later one step of 122 is done
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    text = io.StringIO()
    writer = MetricWriter(
        tmp_path / "metrics.jsonl", total=122, start=0, label="train", events=None, print_every=1,
        console=Console(file=text),
    )
    writer.write(1, {"loss": 0.5})
    assert text.getvalue() == "train 1/122  loss 0.500  ETA 2:01:00\n"
