"""What names a function to import: the user's own configuration alone, never a row, a run's folder or a dump."""

from __future__ import annotations

import json
import sys

import pytest

from salt_jax.graders.custom import by_name, call_user
from salt_jax.run.config import parse
from salt_jax.run.setup import check, make_task
from salt_jax.spec import ConfigError
from salt_jax.tasks import TASKS
from tests.faults.test_fuzz_rows import Bytes
from tests.training_setup import tiny_config


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that could be imported, and has not been."""
    name = "salt_jax_test_of_import_paths"
    (tmp_path / f"{name}.py").write_text("def f(*_, **__):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_reading_a_configuration_imports_nothing_and_starting_its_run_does(module, tmp_path):
    values = tiny_config({
        "objective.estimator": "darling", "collection.clusters": f"{module}:f", "task.digits": 1, "task.num_train": 8,
        "task.num_test": 4, "sampling.max_prompt_length": 4,
    })  # fmt: skip
    parse(values)
    assert module not in sys.modules
    check(values, tmp_path / "run")
    assert module in sys.modules
    values["collection"]["clusters"] = f"{module}:g"
    with pytest.raises(ConfigError, match="config.collection.clusters = .*cannot be imported"):
        check(values, tmp_path / "run")
    values["collection"]["clusters"] = "no function"
    with pytest.raises(ConfigError, match="config.collection.clusters = .*not of the form"):
        parse(values)


def test_the_task_of_a_folders_configuration_imports_nothing_without_a_tokenizer(module, tmp_path):
    """What wants the tokenizer of a run that began on random parameters makes its task: experiments.select_data."""
    for task in (
        {"name": "jsonl", "train": "x.jsonl", "reward": f"{module}:f"},
        {"name": "mixture", "parts": {"a": {"task": "jsonl", "train": "x.jsonl", "reward": f"{module}:f"}}},
    ):
        run = parse(tiny_config() | {"task": task | {"correct_from": 1.0}})
        with pytest.raises(ValueError, match="needs a model's tokenizer"):
            make_task(run, tmp_path, None)
    assert module not in sys.modules


def test_a_row_imports_nothing(module, tmp_path):
    path = f"{module}:f"
    row = {"prompt": "1+1?", "reference": path, "path": path, "reward": path, "grader": {"path": path, "arguments": {}}}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    for reward in ("math", "exact_match", "salt_jax.graders.verdict:exact_answer_of_no_module"):
        arguments = {"train": str(tmp_path / "x.jsonl"), "reward": reward}
        if reward.startswith("salt_jax"):
            with pytest.raises(ValueError, match="cannot be imported"):
                TASKS["jsonl"](tmp_path, **arguments, tokenizer=Bytes())
            continue
        task = TASKS["jsonl"](tmp_path, **arguments, tokenizer=Bytes())
        task.grade(["2"], [task.source("train")[0].reference])
    assert call_user("2", json.dumps(row), path=f"{__name__}:length") == 5
    with pytest.raises(ValueError, match="has no grader"):
        by_name("2", json.dumps([path, path]), a={"path": "salt_jax.graders.verdict:exact_match", "arguments": {}})
    assert module not in sys.modules


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_prepared_data_set_imports_nothing(key, module, tmp_path):
    """TFDS would import it: tensorflow_datasets.core.features.feature.FeatureConnector.cls_from_name."""
    folder = tmp_path / "gsm8k" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "array_record", "name": "gsm8k", "version": "1.0.0"}')
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"a": {key: f"{module}.X"}}}}))
    with pytest.raises(ValueError, match="features.json names the type") as caught:
        TASKS["gsm8k"](tmp_path, tokenizer=Bytes())
    assert len(str(caught.value).splitlines()) == 1
    assert module not in sys.modules


DAMAGED = ["", "[]", "{", '{"fileFormat": 3}', "[" * 100_000, '{"fileFormat": "array_record"}', "\xff"]


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_prepared_data_set_is_one_line(name, text, tmp_path):
    folder = tmp_path / "gsm8k" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="^path: ") as caught:
        TASKS["gsm8k"](tmp_path, tokenizer=Bytes())
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)


def length(completion: str, row: dict) -> float:
    return float(len(row))
