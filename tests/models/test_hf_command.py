"""Folders of this project's own, and the command: import, export, inspect."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from salt_jax.learner.state import init_params
from salt_jax.models.hf import export, import_checkpoint, main, open_checkpoint, write_policy_json
from salt_jax.models.hf_tensors import scan
from salt_jax.models.integrity import seal
from salt_jax.models.safetensors_folder import Safetensors
from salt_jax.policy.rope import RopeScaling
from tests import hf_checkpoints as setup
from tests.house import REPOSITORY
from tests.pretrained_setup import fast_tokenizer

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


def save_steps(workdir, steps, broken=None):
    """What training writes: a composite checkpoint whose item params is the parameters."""
    saved = {}
    with ocp.CheckpointManager(workdir / "checkpoints" / "train") as manager:
        for step in steps:
            saved[step] = init_params(CONFIG, jax.random.key(step))
            if broken:
                saved[step]["layers"][broken] = saved[step]["layers"][broken].at[1, 2].set(jnp.nan)
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
    (own / "policy.json").write_text(text.replace('"num_layers": 2', '"num_layers": 1000000000000'))
    with pytest.raises(ValueError, match=r"layers/down must be \(1000000000000, 12, 8\), got \(2, 12, 8\)"):
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
    fast_tokenizer(words=23).save_pretrained(model)  # and <|endoftext|>, which transformers puts into those of qwen2
    assert main(["inspect", str(model)]) == 0
    text = capsys.readouterr().out
    for line in (
        "qwen2: 2 layers, width 8, 2 heads of 4 on 1 keys and values, mlp 12",
        "theta 10000, RopeScaling(kind='yarn', factor=2.0, original_max_position_embeddings=32,",
        "27 tensors (27 F32), ",
        "5, 6",
        "layers/q_bias           (2, 8)",
        f"tokenizer   {model}, 24 tokens, a chat template",
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
    command = [sys.executable, "-m", "salt_jax.models.hf", "inspect", str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, env=subprocess_env, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"error: {tmp_path} has no config.json\n")


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda m: None, "the tokenizer in .* cannot be read: "),
        (lambda m: (m / "tokenizer.json").unlink(), "has no tokenizer: neither tokenizer.json nor"),
        (lambda m: fast_tokenizer().save_pretrained(m), "12 tokens, the model a vocabulary of 24: it belongs to a"),
        (lambda m: fast_tokenizer(template="{% for").save_pretrained(m), "the chat template cannot be read: "),
        (lambda m: (m / "generation_config.json").write_text('{"eos_token_id": [5, 24]}'),
         "generation_config.json: eos_token_id 24 is outside the model's vocabulary of 24: ids are 0 to 23"),
        (lambda m: (m / "tokenizer_config.json").write_text('{"eos_token": 3}'),
         "tokenizer_config.json: eos_token must be a text, or an object with the text content, got 3"),
    ],
    ids=["unreadable", "absent", "of-another", "template", "stop-id", "end-number"],
)  # fmt: skip
def test_inspect_says_what_a_run_would(model, break_it, expected, capsys):
    break_it(model)
    assert main(["inspect", str(model)]) == 2
    assert re.fullmatch(f"error: .*{expected}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
def test_a_weight_that_is_not_finite_is_named(dtype, tmp_path, capsys):
    tensors = setup.random_tensors(setup.TINY, dtype)
    (bad := tensors["model.layers.1.mlp.up_proj.weight"])[3, 2], bad[0, 0] = np.nan, -np.inf
    folder, out = setup.write_checkpoint(tmp_path / "model", tensors=tensors), tmp_path / "out"
    fast_tokenizer(words=24).save_pretrained(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    said = f"error: {folder}: tensor {name} is not finite: 1 NaN and 1 infinite of 96 numbers\n"
    for command in (["inspect", str(folder)], ["import", str(folder), str(out)], ["export", str(folder), str(out)]):
        assert main(command) == 2
        assert capsys.readouterr().err == said
    assert not out.exists()
    assert main(["inspect", str(folder), "--headers"]) == 0


def test_a_number_that_is_not_finite_in_a_run_or_an_imported_folder(tmp_path):
    write_policy_json(tmp_path, CONFIG, None)
    save_steps(tmp_path, (1,), broken="mlp_norm")
    with pytest.raises(ValueError, match="parameter layers/mlp_norm has values that are not finite"):
        open_checkpoint(tmp_path).load()
    with pytest.raises(ValueError, match="parameter layers/mlp_norm has values that are not finite"):
        open_checkpoint(tmp_path).scan()


def test_blocks_cover_every_number(tmp_path):
    """A scan by blocks of three rows sees the last row and the first."""
    for row in (0, 23):
        tensors = setup.random_tensors(setup.TINY)
        tensors["model.embed_tokens.weight"][row, 7] = np.inf
        folder = Safetensors(setup.write_checkpoint(tmp_path / str(row), tensors=tensors))
        with pytest.raises(ValueError, match="tensor model.embed_tokens.weight is not finite: 0 NaN and 1 infinite of"):
            scan(folder, "here", numbers=24)
