"""Runs from a pretrained model's folder: its tokenizer, graders in workers, evaluation, export, bad input."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from configs import base
from salt_jax.evaluation.evaluate import read_problems
from salt_jax.models.hf import export, open_checkpoint
from salt_jax.run import judging, loop, provenance, setup, workdir
from salt_jax.spec import ConfigError
from tests.pretrained_setup import CONFIG, TEMPLATE, fast_tokenizer, model_folder
from tests.training_setup import policy_and_params

PROMPTS = ("one plus one ?", "one plus two ?", "two plus two ?", "two ? plus ?")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


def rows(folder: Path, name: str, **extra) -> str:
    """A JSONL file of the four prompts; extra marks the first row."""
    lines = [json.dumps({"prompt": text, "id": i} | (extra if i == 0 else {})) for i, text in enumerate(PROMPTS)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def config(model: Path, folder: Path, *, train: str | None = None, **overrides):
    c = base.get_config()
    base.pretrained(c, str(model))
    test = rows(folder, "test.jsonl")
    base.set_task(c, "jsonl", train=train or test, test=test, reward="tests.run.grading_words:reward", suffix="")
    c.steps = 2
    c.policy.scan_layers = False
    c.sampling.prompts_per_step, c.sampling.rollouts_per_prompt = 2, 4
    c.sampling.max_prompt_length, c.sampling.max_new_tokens = 10, 4
    c.evaluation.samples, c.evaluation.temperature, c.evaluation.batch_size = 4, 1.0, 4
    c.evaluation.keep_texts = True
    c.checkpoint.every, c.logging.tensorboard, c.monitors.truncated_high_warn = 1, False, 0.0
    c.optimizer.learning_rate = 1e-2
    for key, value in overrides.items():
        section, _, name = key.rpartition("__")
        (c[section] if section else c)[name] = value
    return c


def train(c, folder: Path) -> str:
    text = io.StringIO()
    loop.train(c, folder, Console(file=text, width=200))
    return text.getvalue()


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    train_file = rows(folder, "train.jsonl", fail=True)
    text = train(config(model, folder, train=train_file), folder / "run")
    return folder / "run", text


def test_a_run_from_a_model_folder(finished):
    folder, text = finished
    metrics = workdir.read_records(folder / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    for row in metrics:
        assert row["sampler_gap_max"] <= 1e-4  # what was imported samples and trains alike
    # four prompts in two batches of two: the row that cannot be graded loses its four rewards, once
    assert sorted(row["missing_rewards"] for row in metrics) == [0.0, 4.0]
    assert "4 of 8 rewards are missing, the first: ValueError: this row cannot be graded" in text
    assert "of the completions were cut off at config.sampling.max_new_tokens = 4" in text
    evaluations = workdir.read_records(folder / "evaluations.jsonl")
    assert [record["step"] for record in evaluations] == [0, 2]
    for record in evaluations:
        results = read_problems(folder / "evaluations" / f"{record['step']}.jsonl")
        assert len(results) == record["problems"] == 4
        share = np.mean([np.mean(result.rewards) for result in results])
        assert record["accuracy"] == pytest.approx(share)
        assert record["accuracy_low"] <= record["accuracy"] <= record["accuracy_high"]
        assert record["pass@4"] >= record["pass@2"] >= record["pass@1"] == pytest.approx(record["accuracy"])
        assert all(result.prompt in PROMPTS for result in results)
    assert "avg@4" in text


def test_the_first_evaluation_is_of_the_model_itself(finished, model):
    """The completions kept at step 0 are those that the folder's own weights give."""
    folder, _ = finished
    c = config(model, folder.parent)
    results = judging.evaluate_run(c, None, Console(file=io.StringIO()))
    assert results == read_problems(folder / "evaluations" / "0.jsonl")


def test_a_run_can_be_evaluated_later(finished, model):
    folder, _ = finished
    said = io.StringIO()
    results = judging.evaluate_run(config(model, folder.parent), folder, Console(file=said))
    assert results == read_problems(folder / "evaluations" / "2.jsonl")
    assert "warning" not in said.getvalue()
    c = config(model, folder.parent)
    c.evaluation.temperature = 0.0
    results = judging.evaluate_run(c, folder, Console(file=said))
    assert "warning: config.evaluation.temperature = 0 is greedy: the 4 samples" in said.getvalue()
    assert all(len(set(result.texts)) == 1 for result in results)


def test_a_run_is_evaluated_where_its_model_has_moved(finished, model, tmp_path):
    """Its policy and date are the run's; a model that is another one is not its own."""
    folder, _ = finished
    shutil.copytree(model, tmp_path / "moved")
    made = []

    class Enough(Exception):
        pass

    def accept(identity, record):
        made.append(record)
        raise Enough

    c = config(tmp_path / "moved", folder.parent)
    with pytest.raises(Enough):
        judging.evaluate_run(c, folder, Console(file=io.StringIO()), accept=accept)
    (start,) = provenance.starts(folder)
    assert made[0]["date"] == start["date"]
    other = [name for name, value in made[0]["fingerprints"].items() if value != start["fingerprints"][name]]
    assert other == ["task.train"]  # it was trained on another file
    with (tmp_path / "moved" / "generation_config.json").open("w") as file:
        json.dump({"eos_token_id": [1, 10]}, file)
    with pytest.raises(ConfigError, match="holds another policy or task"):
        judging.evaluate_run(c, folder, Console(file=io.StringIO()), accept=accept)


def test_a_run_can_be_exported_and_started_from(finished, tmp_path):
    folder, _ = finished
    trained = open_checkpoint(folder)
    export(trained.load(), trained.config, tmp_path / "exported", source=trained, dtype="float32")
    again = open_checkpoint(tmp_path / "exported")
    jax.tree.map(np.testing.assert_array_equal, trained.load(), again.load())
    start = policy_and_params(CONFIG)[1]
    assert not np.array_equal(again.load()["embedding"], start["embedding"])  # it is the trained policy
    text = train(config(tmp_path / "exported", tmp_path, steps=0), tmp_path / "run")
    assert "avg@4" in text


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(finished, model, tmp_path):
    """Killed after step 1: the rest gives the same bits, from the run's own checkpoint and not from the model."""
    folder, _ = finished
    c = config(model, tmp_path, train=str(folder.parent / "train.jsonl"), steps=2)
    c.task.test = str(folder.parent / "test.jsonl")
    real, calls = loop.MetricWriter.write, []

    def write(self, step, values):
        real(self, step, values)
        calls.append(step)
        if step == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.MetricWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            train(c, tmp_path / "run")
        assert "resumed at step 1 of 2" in train(c, tmp_path / "run")
    one, two = (open_checkpoint(path).load() for path in (folder, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.slow
def test_waves_and_long_prompts(model, tmp_path):
    """Small waves change no rollout; a prompt over the limit is skipped and counted."""
    options = dict(sampling__max_prompt_length=9, sampling__on_long_prompt="skip", steps=1)
    path = tmp_path / "long.jsonl"
    path.write_text(Path(rows(tmp_path, "short.jsonl")).read_text() + json.dumps({"prompt": "one plus " * 9}) + "\n")
    texts = [
        train(config(model, tmp_path, train=str(path), sampling__wave_mib=mib, **options), tmp_path / f"run{mib}")
        for mib in (None, 1)
    ]
    assert "1 of 5 prompts are over config.sampling.max_prompt_length = 9 and were skipped" in texts[0]
    one, two = (workdir.read_records(tmp_path / f"run{mib}" / "metrics.jsonl") for mib in (None, 1))
    assert one[0]["reward"] == two[0]["reward"]
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], abs=1e-5)


@pytest.mark.slow
def test_a_grader_that_hangs_costs_its_deadline_and_its_rewards(model, tmp_path):
    path = rows(tmp_path, "hang.jsonl", hang=True)
    c = config(model, tmp_path, train=path, steps=2, grading__deadline=0.5, grading__workers=4)
    train(c, tmp_path / "run")
    assert sorted(r["missing_rewards"] for r in workdir.read_records(tmp_path / "run" / "metrics.jsonl")) == [0.0, 4.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"policy__d_model": 8}, r"config.policy.d_model = 8 is not allowed; allowed: None"),
        ({"model__path": "absent"}, r"config.model.path: absent does not exist"),
        ({"sampling__max_prompt_length": 3}, r"config.sampling.max_prompt_length = 3 but the prompt of example"),
        ({"model__system": "two", "model__chat": False}, r"config.model.system and model.template are for"),
        ({"grading__deadline": 0.0}, r"config.grading.deadline = 0.0 is not allowed"),
        ({"sampling__on_long_prompt": "drop"}, r"config.sampling.on_long_prompt = 'drop' is not allowed"),
        ({"task__train": "absent.jsonl"}, r"config.task.*absent.jsonl"),
        ({"task__reward": "no_such_module:f"}, r"config.task.reward = 'no_such_module:f'"),
        ({"task__reward": "maths"}, r"config.task.reward = 'maths' is unknown"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_written(model, tmp_path, overrides, message):
    c = config(model, tmp_path, **overrides)
    with pytest.raises(ConfigError, match=message) as caught:
        train(c, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


def edited(folder: Path, **changes) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def rewritten(folder: Path, template: str) -> None:
    fast_tokenizer(template).save_pretrained(folder)


SYSTEM_ROW = {"prompt": [{"role": "system", "content": "one"}, {"role": "user", "content": "two"}]}


@pytest.mark.parametrize(
    ("break_it", "overrides", "message"),
    [
        (lambda m: (m / "generation_config.json").write_text('{"eos_token_id": 99}'), {},
         "config.model.path: .*/generation_config.json: eos_token_id 99 is outside the model's vocabulary of 11"),
        (lambda m: (m / "tokenizer.json").write_text("{"), {}, "config.model.path: the tokenizer in .* cannot be read"),
        (lambda m: edited(m, eos_token=None), {}, "config.model.path: .*the tokenizer has no end-of-sequence token"),
        (lambda m: edited(m, eos_token=3), {}, "config.model.path: .*/tokenizer_config.json: eos_token must be a text"),
        (lambda m: rewritten(m, "{% if"), {}, "config.model.path: .*the chat template cannot be read: "),
        (lambda m: rewritten(m, NO_SYSTEM), {"model__system": "two"},
         "config.model.system = 'two': the model's chat template refuses a system message: no system$"),
        (lambda m: rewritten(m, NO_SYSTEM), {"task__train": SYSTEM_ROW},
         "config.task.train: the prompt of example 'train/0': the chat template refused a prompt: no system$"),
        (lambda m: None, {"task__test": SYSTEM_ROW, "model__chat": False},
         "config.task.test: the prompt of example 'test/0': a prompt of messages needs model.chat = True$"),
        (lambda m: None, {"task__suffix": "two", "task__train": {"prompt": [{"role": "system", "content": "one"}]}},
         "config.task.train: .*.jsonl line 1: 'prompt' has no message of the user for suffix to stand behind$"),
        (lambda m: None, {"warm_start__steps": 1},
         "config.warm_start.steps: example 'train/0' has no solution: warm_start.steps needs one$"),
    ],
)  # fmt: skip
def test_a_message_begins_with_the_key_to_change(model, tmp_path, break_it, overrides, message):
    copy = shutil.copytree(model, tmp_path / "model")
    break_it(copy)
    for key, value in overrides.items():
        if isinstance(value, dict):
            (tmp_path / "rows.jsonl").write_text(json.dumps(value) + "\n")
            overrides = overrides | {key: str(tmp_path / "rows.jsonl")}
    with pytest.raises(ConfigError, match=f"^{message}"):
        setup.check(config(copy, tmp_path, **overrides), tmp_path / "run")


def test_an_end_that_only_the_model_names(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    edited(copy, eos_token=None)
    (copy / "generation_config.json").write_text('{"eos_token_id": 10}')
    run = setup.check(config(copy, tmp_path), tmp_path / "run").run
    assert setup.make_tokenizer(run).stop_ids == (10,)


def test_a_weight_that_is_not_finite_stops_a_run_before_its_first_step(tmp_path):
    model_folder(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    c = config(tmp_path / "model", tmp_path)
    message = "^config.model.path: .*: tensor model.layers.1.mlp.up_proj.weight is not finite: 1 NaN"
    with pytest.raises(ConfigError, match=message):
        train(c, tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        judging.evaluate_run(c, None, Console(file=io.StringIO()))


def test_a_folder_without_weights_or_with_another_tokenizer(model, tmp_path):
    for name, message in (("model.safetensors", "has no weights|no .*safetensors"), ("tokenizer.json", "tokenizer")):
        broken = tmp_path / name.partition(".")[0]
        broken.mkdir()
        for file in model.iterdir():
            if file.name != name and not (name == "tokenizer.json" and "token" in file.name):
                (broken / file.name).write_bytes(file.read_bytes())
        with pytest.raises(ConfigError, match=message):
            train(config(broken, tmp_path), tmp_path / "run")
    larger = tmp_path / "larger"
    export(*reversed(with_vocabulary(20)), larger)
    for file in model.iterdir():
        if "token" in file.name or "chat" in file.name:
            (larger / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="11 tokens, the model a vocabulary of 20: it belongs to another model"):
        train(config(larger, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def with_vocabulary(size: int):
    other = dataclasses.replace(CONFIG, vocab_size=size)
    return other, policy_and_params(other)[1]


def test_a_row_without_a_prompt_is_named(model, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "one ?"}\n{"question": "two ?"}\n')
    with pytest.raises(ConfigError, match=r"config.task.*bad.jsonl line 2.*'prompt' is missing"):
        train(config(model, tmp_path, train=str(path)), tmp_path / "run")
    path.write_text('{"prompt": "one ?"}\n{"prompt": 7}\n')
    with pytest.raises(ConfigError, match=r"bad.jsonl line 2: 'prompt' must be text"):
        train(config(model, tmp_path, train=str(path)), tmp_path / "run")
    path.write_text("")
    with pytest.raises(ConfigError, match=r"bad.jsonl.*empty"):
        train(config(model, tmp_path, train=str(path)), tmp_path / "run")
