"""GSM8K: files, and a data set as TFDS prepares it, which is read without TensorFlow and without a network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.text.gsm8k import gsm8k

from salt_jax.tasks.gsm8k import make_gsm8k

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = [
    {"question": "How many?", "answer": "He sold 48/2 = <<48/2=24>>24 clips.\nAltogether 1,224.\n#### 1,224"},
    {"question": "And now?", "answer": "Half of 5 is <<5/2=2.5>>2.5, below 0.\n#### -2.5"},
]


def prepare(folder):
    """What TFDS's own builder of GSM8K writes, from files of these rows in the place of its download."""

    class Downloads:
        def download_and_extract(self, names):
            for name in names:
                (folder / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
            return {name: folder / name for name in names}

    tfds.disable_progress_bar()
    builder = gsm8k.Gsm8k(data_dir=folder, file_format="array_record")
    split_generators = builder._split_generators
    builder._split_generators = lambda dl_manager: split_generators(Downloads())
    builder.download_and_prepare(download_dir=str(folder / "downloads"))


def check(task):
    for split in ("train", "test"):
        examples = {e.prompt[:3]: e for e in (task.source(split)[i] for i in range(len(task.source(split))))}
        assert len(examples) == 2
        first, second = examples["How"], examples["And"]
        assert (
            first.prompt
            == "How many? Please reason step by step, and put your final answer within \\boxed{}."
        )
        assert (first.reference, second.reference) == ("1224", "-2.5")
        assert first.solution == "He sold 48/2 = 24 clips.\nAltogether 1,224.\nThe answer is \\boxed{1224}."
        assert {e.id for e in examples.values()} == {f"{split}/0", f"{split}/1"}


@pytest.mark.parametrize("name", ["{}.jsonl", "{}.jsonl.gz", "{}.json", "{}-00000-of-00001.parquet"])
def test_files(write, tmp_path, tokenizer, name):
    for split in ("train", "test"):
        write(name.format(split), ROWS)
    check(make_gsm8k("elsewhere", path=str(tmp_path), tokenizer=tokenizer))
    check(make_gsm8k(tmp_path, tokenizer=tokenizer))


def test_prepared_by_tfds(tmp_path, tokenizer):
    prepare(tmp_path)
    (tmp_path / "gsm8k" / "incomplete.XYZ_1.0.1").mkdir()
    check(make_gsm8k(tmp_path, tokenizer=tokenizer))
    check(make_gsm8k("elsewhere", path=str(tmp_path), tokenizer=tokenizer))


OFFLINE = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from salt_jax.tasks import CharTokenizer
from salt_jax.tasks.gsm8k import make_gsm8k
assert len(make_gsm8k(sys.argv[1], tokenizer=CharTokenizer("a")).source("train")) == 2
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
"""


def test_prepared_data_need_neither_tensorflow_nor_a_network(tmp_path, subprocess_env):
    prepare(tmp_path)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE, str(tmp_path)], cwd=REPOSITORY, env=subprocess_env,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_another_format_of_tfds(tmp_path, tokenizer):
    prepare(tmp_path)
    info = tmp_path / "gsm8k" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(
        ValueError,
        match="^path: .* is in the format tfrecord, which cannot be read at random; .* file_format='array_record'",
    ):
        make_gsm8k(tmp_path, tokenizer=tokenizer)


def test_nothing_there_is_said_at_once(tmp_path, tokenizer):
    with pytest.raises(
        ValueError, match="^path: .* has neither gsm8k/1.0.0, .* nor one of train.jsonl, .*openai/gsm8k"
    ):
        make_gsm8k(tmp_path, tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"^path: {tmp_path}/absent has neither"):
        make_gsm8k("", path="~/absent", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"^path: \$HOME/absent begins with a variable"):
        make_gsm8k("", path="$HOME/absent", tokenizer=tokenizer)


def test_two_files_of_a_split(write, tmp_path, tokenizer):
    for name in ("train.jsonl", "train.parquet"):
        write(name, ROWS)
    with pytest.raises(ValueError, match="has train.jsonl and train.parquet; keep one"):
        make_gsm8k(tmp_path, tokenizer=tokenizer)


@pytest.mark.parametrize("answer", ["24", "#### ", "#### twelve", "#### 1 2", "#### ,", ""])
def test_answers_that_will_not_do(write, tmp_path, tokenizer, answer):
    write("train.jsonl", [*ROWS, {"question": "q", "answer": answer}])
    write("test.jsonl", ROWS)
    message = "'answer' is empty" if not answer else "'answer' does not end with '#### ' and a number"
    with pytest.raises(ValueError, match=f"^path: .*train.jsonl line 3: {message}"):
        make_gsm8k(tmp_path, tokenizer=tokenizer)
