"""Whole runs in this process: one device and eight, a policy taken over, a run that goes wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import math
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

from configs import arithmetic
from experiments.fault_runs import differences
from salt_jax.collect import generation
from salt_jax.distributed.sharding import make_mesh
from salt_jax.learner.state import init_params, init_state, make_optimizer
from salt_jax.run import loop, setup, workdir
from salt_jax.run.checkpoint import Checkpoints
from salt_jax.run.config import parse
from salt_jax.run.dumps import read_dump
from salt_jax.run.guards import NonFiniteError
from salt_jax.spec import ConfigError

STEPS = 3


def tiny(**overrides):
    config = arithmetic.get_config("small")
    config.steps, config.warm_start.steps = STEPS, 4
    config.policy.d_model, config.policy.mlp_dim, config.policy.head_dim = 16, 32, 8
    config.policy.num_layers, config.seed = 1, 7  # with this seed a step has a group with signal
    config.evaluation.every, config.logging.tensorboard = 2, False
    for key, value in overrides.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    return config


def train(config, folder: Path) -> tuple[dict, str]:
    text = io.StringIO()
    summary = loop.train(config, folder, Console(file=text, width=200))
    return summary, text.getvalue()


def final_params(folder: Path):
    step = Checkpoints(folder / "checkpoints" / "train", keep=2).latest_step()
    with ocp.CheckpointManager(folder / "checkpoints" / "train") as manager:
        return manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore()))["params"]


def test_rows_that_were_left_out_are_said_and_counted(tmp_path, monkeypatch):
    make = setup.make_task

    def lacking(*arguments):
        return dataclasses.replace(make(*arguments), left_out={"train": ["x.jsonl line 3: why", "x.jsonl line 4: so"]})

    monkeypatch.setattr(setup, "make_task", lacking)
    monkeypatch.setattr(loop, "train_in", lambda *_: {})
    _, text = train(tiny(), tmp_path / "run")
    said = "config.task: 2 references of train cannot be used, and their rows were left out; the first is x.jsonl line"
    assert text.count(said) == 1
    (start,) = (tmp_path / "run" / "provenance.jsonl").read_text().splitlines()
    assert json.loads(start)["left_out"] == {"train": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    summary, text = train(tiny(), folder)
    return folder, summary, text


def test_what_a_run_leaves_behind(finished):
    folder, summary, text = finished
    rows = workdir.read_records(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
        assert row["sampler_gap_max"] <= 1e-4  # sampler and trainer agree
        assert row["ratio_max"] == pytest.approx(1.0)
        assert 1 <= row["salt/participation_ratio"] <= 32
        for name in ("n_eff", "participation_ratio"):
            assert {f"geometry/{name}_in", f"geometry/{name}_out", f"geometry/{name}_total"} <= row.keys()
    assert [row["step"] for row in workdir.read_records(folder / "evaluations.jsonl")] == [0, 2, 3]
    assert [row["step"] for row in workdir.read_records(folder / "warm_start.jsonl")] == [1, 2, 3, 4]
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["before"]["step"] == 0
    assert summary["after"]["step"] == STEPS
    assert "train 3/3" in text
    assert "PR" in text
    assert "greedy accuracy" in text


@pytest.mark.mesh
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=lambda s: "x".join(map(str, s)))
@pytest.mark.slow
def test_eight_devices_give_what_one_gives(shape, finished, tmp_path):
    folder, _, _ = finished
    data, fsdp, tensor = shape
    train(tiny(mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor), tmp_path / "run")
    one, eight = final_params(folder), final_params(tmp_path / "run")
    # Adam divides by the root of tiny second moments, so that rounding can show; one update is 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), one, eight)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        for ours, theirs in zip(
            workdir.read_records(folder / name), workdir.read_records(tmp_path / "run" / name), strict=True
        ):
            for key in ("accuracy", "reward", "completion_length", "truncated"):
                if key in ours:
                    assert ours[key] == pytest.approx(theirs[key], abs=1e-6), key


def test_a_second_run_starts_from_the_first_ones_policy(finished, tmp_path):
    folder, summary, _ = finished
    before = sorted(folder.rglob("*"))
    second, _ = train(tiny(init_from=str(folder), warm_start__steps=0, steps=0), tmp_path / "run")
    assert second["before"]["accuracy"] == summary["after"]["accuracy"]
    jax.tree.map(np.testing.assert_array_equal, final_params(folder), final_params(tmp_path / "run"))
    assert sorted(folder.rglob("*")) == before  # the first run's folder is only read


def test_more_steps_are_those_of_a_run_that_was_to_have_them(finished, tmp_path):
    folder = tmp_path / "run"
    first, _ = train(tiny(steps=2), folder)
    assert first["after"]["step"] == 2
    summary, text = train(tiny(), folder)
    assert differences(finished[0], folder) == []
    assert (summary["steps"], summary["after"]) == (STEPS, finished[1]["after"])
    assert "config.steps was 2 and is 3\n" in text  # and no word of other bits
    lines = (folder / "provenance.jsonl").read_text().splitlines()
    made = [{name: json.loads(line)[name] for name in ("date", "fingerprints", "details")} for line in lines]
    assert made[0] == made[1]
    assert made[0]["fingerprints"].keys() == {"task.train", "task.test", "grader"}
    seal = json.loads((folder / "checkpoints" / "train" / "3" / "manifest.json").read_text())["stamp"]["made_by"]
    assert seal["fingerprints"] == made[0]["fingerprints"]
    with pytest.raises(ConfigError, match=r"config.steps is 3 there and 2 here \(it has done 3 steps; allowed: 3 or m"):
        train(tiny(steps=2), folder)


def test_a_resumed_run_does_not_hold_the_state_that_it_throws_away():
    run = parse(tiny())
    optimizer, mesh = make_optimizer(run.optimizer, 3), make_mesh()
    config = dataclasses.replace(run.policy, vocab_size=12)
    params = init_params(config, jax.random.key(0))

    def begin(params):
        return init_state(params, optimizer, jax.random.key(1), keep_reference=True)

    fresh = loop.first_state(begin, params, mesh, None)
    shapes = loop.first_state(begin, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params), mesh, 2)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype, a.sharding), (b.shape, b.dtype, b.sharding)),
        fresh, shapes,
    )


def test_records_that_are_missing_are_named(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    for name, step in (("metrics.jsonl", 2), ("evaluations.jsonl", 0)):
        rows = workdir.read_records(folder / name)
        rows.append(rows[-1] | {"step": 4})  # as a run leaves it that was killed before its next checkpoint
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] != step))
    (folder / "summary.json").unlink()
    summary, text = train(tiny(), folder)
    assert "metrics.jsonl has no record of 1 steps up to 3, the first: 2" in text
    assert "evaluations.jsonl has no evaluation before the first step" in text
    assert summary["before"] is None
    assert summary["after"]["step"] == 3
    assert [row["step"] for row in workdir.read_records(folder / "metrics.jsonl")] == [1, 3]
    assert [row["step"] for row in workdir.read_records(folder / "evaluations.jsonl")] == [2, 3]


def test_a_disk_that_is_full_from_the_start_is_one_line(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(workdir, "write_atomically", full)
    with pytest.raises(workdir.StorageError, match=r"^\S+/run/config.json: No space left on device$"):
        train(tiny(), tmp_path / "run")


def test_another_policy_cannot_be_taken_over(finished, tmp_path):
    folder, _, _ = finished
    with pytest.raises(ConfigError, match="another policy"):
        train(tiny(init_from=str(folder), policy__mlp_dim=48), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_policy_that_explodes_stops_the_run(finished, tmp_path):
    folder, _, _ = finished
    config = tiny(init_from=str(folder), warm_start__steps=0, optimizer__learning_rate=1e30, checkpoint__every=1)
    with pytest.raises(NonFiniteError) as caught:
        train(config, tmp_path / "run")
    pattern = r"step (\d): (\w+) is (nan|inf); last good checkpoint: (.*/checkpoints/train/(\d)); the batch is in .*"
    step, _, _, checkpoint, saved = re.fullmatch(pattern, str(caught.value)).groups()
    assert int(saved) == int(step) - 1
    assert Checkpoints(tmp_path / "run" / "checkpoints" / "train", keep=2).latest_step() == int(saved)
    assert Path(checkpoint).is_dir()


@pytest.mark.parametrize("allowed", [0, 1])
def test_updates_that_are_not_finite_change_nothing_and_then_stop_the_run(allowed, finished, tmp_path, monkeypatch):
    folder, _, _ = finished
    config = tiny(init_from=str(folder), warm_start__steps=0, checkpoint__every=1, guards__max_skipped=allowed)
    config.evaluation.every = 0
    evaluated = []

    @contextlib.contextmanager
    def grading(run, task):
        def grade(texts, references):
            grades = task.grade(texts, references)
            evaluated.append(len(texts))
            if len(evaluated) > 1:  # the first is an evaluation
                grades.rewards[::4] = np.inf  # one of each group
            return grades

        yield grade

    monkeypatch.setattr(loop.setup, "grading", grading)
    with pytest.raises(NonFiniteError) as caught:
        train(config, tmp_path / "run")
    pattern = r"step (\d): guards/advantages_finite is 0.0( in 2 steps in a row)? \(config.guards.max_skipped = (\d)\)"
    pattern += r"; last good checkpoint: (.*/checkpoints/train/(\d)); the batch is in (\S+): python -m \S+replay .*"
    step, _, limit, checkpoint, saved, dump = re.fullmatch(pattern, str(caught.value)).groups()
    assert (int(step), int(limit), int(saved)) == (allowed + 1, allowed, allowed)
    assert Checkpoints(tmp_path / "run" / "checkpoints" / "train", keep=2).latest_step() == int(saved)
    assert Path(checkpoint).is_dir()
    jax.tree.map(np.testing.assert_array_equal, final_params(folder), final_params(tmp_path / "run"))
    rows = workdir.read_records(tmp_path / "run" / "metrics.jsonl")
    assert [row["guards/skipped"] for row in rows] == [1.0] * (allowed + 1)
    found = read_dump(Path(dump))
    assert (found.step, found.exact, found.statistic) == (allowed + 1, True, "guards/advantages_finite")


@pytest.mark.slow
def test_the_update_gets_no_more_columns_than_the_longest_row_needs(tmp_path, monkeypatch):
    shapes = []

    def recording(*arguments, **options):
        step = jit_train_step(*arguments, **options)

        def call(state, rollouts):
            longest = (int(mask.sum(axis=1).max()) for mask in (rollouts.prompt_mask, rollouts.completion_mask))
            shapes.append((*longest, rollouts.prompt_length, rollouts.completions.shape[1]))
            return step(state, rollouts)

        return call

    jit_train_step = loop.jit_train_step
    monkeypatch.setattr(loop, "jit_train_step", recording)
    train(tiny(sampling__max_prompt_length=12, learner__prompt_buckets=12, warm_start__steps=0), tmp_path / "run")
    assert len(shapes) == STEPS
    for prompt, completion, prompt_columns, completion_columns in shapes:
        assert prompt == prompt_columns < 12
        assert completion_columns == generation.bucket_length(completion, 3, 4)


def test_a_solution_longer_than_the_limit_is_found_first(tmp_path):
    with pytest.raises(ConfigError, match="max_new_tokens"):
        train(tiny(sampling__max_new_tokens=1), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_attention_kernel_of_another_backend_is_found_first(tmp_path):
    with pytest.raises(ConfigError, match="^config.policy.attention = 'splash' needs a tpu, .* on cpu; allowed: seg"):
        train(tiny(policy__attention="splash"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_task_argument_of_the_wrong_type(tmp_path):
    config = tiny().to_dict()
    config["task"]["operators"] = 5
    with pytest.raises(ConfigError, match="config.task"):
        train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
