"""The run's folder and its records."""

from __future__ import annotations

import io
import json
import time

import pytest
from rich.console import Console

from salt_jax.run import workdir
from salt_jax.run.metrics import MetricWriter
from salt_jax.spec import ConfigError

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


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for line in ('{"step": 1', "[]", '{"loss": 1.0}', "\xff"):
        path.write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b'\n{"step": 3}\n')
        with pytest.raises(workdir.StorageError, match=r"metrics.jsonl: line 2 is damaged"):
            workdir.read_records(path)


def test_what_a_resumed_run_may_change(tmp_path):
    before = {"steps": 3, "mesh": {"data": 1}, "checkpoint": {"keep": 2}}
    assert workdir.open_workdir(tmp_path / "run", before) == []
    same = before | {"checkpoint": {"keep": 5}}
    assert workdir.check_workdir(tmp_path / "run", same)
    (said,) = workdir.open_workdir(tmp_path / "run", same)
    assert said == "resumed with another configuration: config.checkpoint.keep was 2 and is 5"
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == same
    (said,) = workdir.open_workdir(tmp_path / "run", same | {"mesh": {"data": 8}})
    assert "config.mesh.data was 1 and is 8" in said
    assert said.endswith("the same bits are not promised")
    with pytest.raises(ConfigError, match=r"config.steps is 3 there and 4 here; name another folder"):
        workdir.check_workdir(tmp_path / "run", same | {"steps": 4, "mesh": {"data": 2}})


def test_a_configuration_that_cannot_be_read(tmp_path):
    (tmp_path / "config.json").write_text('{"st')
    with pytest.raises(ConfigError, match=r"config.json cannot be read"):
        workdir.check_workdir(tmp_path, CONFIG)


def test_the_lock_is_no_foreign_file(tmp_path):
    (tmp_path / workdir.LOCK).write_text("")
    assert not workdir.check_workdir(tmp_path, CONFIG)


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
