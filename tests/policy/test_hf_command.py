"""Folders of this project's own, and the command: import, export, inspect."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from salt_jax.policy.hf import export, import_checkpoint, main, open_checkpoint, write_policy_json
from salt_jax.policy.integrity import seal
from salt_jax.policy.rope import RopeScaling
from salt_jax.training.state import init_params
from tests import hf_checkpoints as setup
from tests.house import REPOSITORY

CONFIG = dataclasses.replace(setup.TINY, rope_scaling=RopeScaling("yarn", 2.0, 32), qkv_bias=True)


@pytest.fixture
def model(tmp_path):
    """A Hugging Face folder with a tokenizer."""
    folder = setup.write_checkpoint(tmp_path / "model", config=CONFIG)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    return folder


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_import_then_export_is_the_same_model(model, tmp_path, capsys):
    own, out = tmp_path / "own", tmp_path / "out"
    assert main(["import", str(model), str(own)]) == 0
    assert main(["export", str(own), str(out), "--dtype", "float32"]) == 0
    assert capsys.readouterr() == ("", "")
    for folder in (own, out):
        checkpoint = open_checkpoint(folder)
        assert checkpoint.config == CONFIG
        assert checkpoint.stop_ids == (5, 6)
        assert (checkpoint.tokenizer_source / "tokenizer.json").read_text() == "{}"
        equal(checkpoint.load(), open_checkpoint(model).load())
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        theirs, ours = ((folder / name).read_text() for folder in (model, out))
        assert json.loads(theirs) | ({"torch_dtype": "float32"} if name == "config.json" else {}) == json.loads(ours)


def save_steps(workdir, steps):
    """What training writes: a composite checkpoint whose item params is the parameters."""
    saved = {}
    with ocp.CheckpointManager(workdir / "checkpoints" / "train") as manager:
        for step in steps:
            saved[step] = init_params(CONFIG, jax.random.key(step))
            items = ocp.args.Composite(
                params=ocp.args.StandardSave(saved[step]), state=ocp.args.StandardSave({"step": np.int32(step)})
            )
            manager.save(step, args=items)
            manager.wait_until_finished()
            seal(workdir / "checkpoints" / "train" / str(step), step, {})
    return saved


def test_a_workdir_opens_at_a_step_and_at_its_last(model, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text('{"steps": 3}')  # a run's own configuration
    write_policy_json(workdir, CONFIG, open_checkpoint(model))
    with pytest.raises(ValueError, match="no parameters were saved yet"):
        open_checkpoint(workdir)
    saved = save_steps(workdir, (2, 10))
    equal(open_checkpoint(workdir).load(), saved[10])
    equal(open_checkpoint(workdir, step=2).load(), saved[2])
    with pytest.raises(ValueError, match="has no step 3; it has 2, 10"):
        open_checkpoint(workdir, step=3)
    assert open_checkpoint(workdir, attention="xla").config == dataclasses.replace(CONFIG, attention="xla")
    assert main(["export", str(workdir), str(tmp_path / "out"), "--checkpoint", "2", "--dtype", "float32"]) == 0
    equal(open_checkpoint(tmp_path / "out").load(), saved[2])
    assert open_checkpoint(tmp_path / "out").stop_ids == (5, 6)


def test_an_export_of_the_best_and_of_what_is_left(tmp_path, capsys):
    workdir = tmp_path / "run"
    write_policy_json(workdir, CONFIG, None)
    saved = save_steps(workdir, (2, 4, 6))
    (workdir / "config.json").write_text('{"checkpoint": {"best_by": "accuracy", "best_mode": "max"}}')
    rows = [{"step": step, "accuracy": value} for step, value in ((0, 0.9), (2, 0.5), (4, 0.25), (6, 0.1))]
    (workdir / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["export", str(workdir), str(tmp_path / "best"), "--checkpoint=best", "--dtype=float32"]) == 0
    equal(open_checkpoint(tmp_path / "best").load(), saved[2])
    newest = next(path for path in (workdir / "checkpoints" / "train" / "6" / "params" / "d").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    assert main(["export", str(workdir), str(tmp_path / "newest"), "--dtype=float32"]) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match(r"warning: checkpoint .*/6 is damaged: params/d/.* SHA-256 .*; step 4 is used instead", error)
    equal(open_checkpoint(tmp_path / "newest").load(), saved[4])
    assert main(["export", str(workdir), str(tmp_path / "six"), "--checkpoint=6"]) == 2
    assert re.match(r"error: checkpoint .*/6 is damaged: params/d/", capsys.readouterr().err)


def test_a_workdir_of_a_random_policy(tmp_path):
    write_policy_json(tmp_path, CONFIG, None)
    saved = save_steps(tmp_path, (1,))
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.stop_ids, checkpoint.tokenizer_source, checkpoint.hf_config) == ((), None, None)
    export(checkpoint.load(), checkpoint.config, tmp_path / "out", source=checkpoint, dtype="float32")
    equal(open_checkpoint(tmp_path / "out").load(), saved[1])


def test_policy_json_is_written_once(model, tmp_path):
    run = tmp_path / "run"
    write_policy_json(run, CONFIG, open_checkpoint(model))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    write_policy_json(run, CONFIG, open_checkpoint(model))  # a run that resumes
    with pytest.raises(ValueError, match="is of another policy"):
        write_policy_json(run, dataclasses.replace(CONFIG, rope_theta=2.0), open_checkpoint(model))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert json.loads((run / "policy.json").read_text())["source"] == str(model)


def test_parameters_of_another_shape_are_named(model, tmp_path):
    own = tmp_path / "own"
    import_checkpoint(model, own)
    text = (own / "policy.json").read_text()
    (own / "policy.json").write_text(text.replace('"mlp_dim": 12', '"mlp_dim": 16'))
    with pytest.raises(ValueError, match=r"parameter layers/down must be \(2, 16, 8\), got \(2, 12, 8\)"):
        open_checkpoint(own)
    (own / "policy.json").write_text(text.replace('"qkv_bias": true', '"qkv_bias": false'))
    with pytest.raises(ValueError, match=r"parameter layers/k_bias must be absent, got \(2, 4\)"):
        open_checkpoint(own)
    (own / "policy.json").write_text(text)
    with pytest.raises(ValueError, match="imported checkpoint: it has no step 3"):
        open_checkpoint(own, step=3)
    with pytest.raises(ValueError, match="d_model is the checkpoint's own"):
        open_checkpoint(own, d_model=3)


def test_inspect_is_for_people(model, capsys):
    assert main(["inspect", str(model)]) == 0
    text = capsys.readouterr().out
    for line in (
        "qwen2: 2 layers, width 8, 2 heads of 4 on 1 keys and values, mlp 12",
        "theta 10000, RopeScaling(kind='yarn', factor=2.0, original_max_position_embeddings=32,",
        "27 tensors (27 F32), ",
        "5, 6",
        "layers/q_bias           (2, 8)",
    ):
        assert line in text
    parameters = sum(x.size for x in jax.tree.leaves(init_params(CONFIG, jax.random.key(0))))
    assert f"parameters  {parameters:,}\n" in text
    assert f"{4 * parameters:,} bytes" in text


def test_an_error_is_one_line_and_status_2(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for arguments in (
        ["inspect", str(tmp_path / "nowhere")],
        ["import", str(model), str(tmp_path / "full")],
        ["export", str(model), str(tmp_path / "full")],
        ["export", str(model), str(tmp_path / "out"), "--checkpoint", "3"],
        ["export", str(model), str(tmp_path / "out"), "--checkpoint", "last"],
        ["import", str(tmp_path / "full"), str(tmp_path / "out")],
    ):
        assert main(arguments) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    for place, words in (("$HOME/out", "begins with a variable"), ("~nobody-of-this-name/out", "not known here")):
        assert main(["export", str(model), place]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["inspect", "~/absent"]) == 2
    assert f"{tmp_path}/absent does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    with pytest.raises(SystemExit) as error:
        main(["export", str(model)])
    assert error.value.code == 2


def test_the_command_runs(tmp_path, subprocess_env):
    command = [sys.executable, "-m", "salt_jax.policy.hf", "inspect", str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, env=subprocess_env, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"error: {tmp_path} has no config.json\n")
