"""GSM8K: grade-school word problems (Cobbe et al., 2021), 7,473 to train on and 1,319 to test."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from salt_jax.spec import one_line
from salt_jax.tasks.paths import expanded
from salt_jax.tasks.records import Row, read_rows
from salt_jax.tasks.references import usable
from salt_jax.tasks.settings import STEP_BY_STEP, check_text, math_grader, need_tokenizer, with_suffix
from salt_jax.tasks.task import Example, Source, Task
from salt_jax.tasks.tokenizers import Tokenizer

SPLITS = ("train", "test")
PREPARE = (
    "`import tensorflow_datasets.text; tensorflow_datasets.builder('gsm8k', data_dir=FOLDER,"
    " file_format='array_record').download_and_prepare()`"
)
FILE_NAMES = ("{}.jsonl", "{}.jsonl.gz", "{}.json", "{}.parquet", "{}-00000-of-00001.parquet")
OWN_TYPES = "tensorflow_datasets.core.features."
_NUMBER = re.compile(r"-?[0-9,]*+(?:\.[0-9]++)?")
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # '48/2 = <<48/2=24>>24': notes for a calculator, not for people


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Rows of a split, read as examples when they are asked for."""

    split: str
    rows: Sequence[Any]
    make_row: Callable[[int, Any], Row]
    suffix: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.make_row(index, self.rows[index])
        reasoning, answer = _split_answer(row)
        solution = f"{reasoning}\nThe answer is \\boxed{{{answer}}}.".lstrip()
        prompt = with_suffix(row.text("question"), self.suffix)
        return Example(prompt, answer, solution, f"{self.split}/{index}", row.where)


def make_gsm8k(
    data_dir: str | os.PathLike[str],
    path: str = "",
    suffix: str = STEP_BY_STEP,
    boxed_only: bool = False,
    last_number: bool = False,
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    r"""The GSM8K task, from a data set that TFDS prepared, or from local files; nothing is ever downloaded.

    In the folder there is either of

    - ``gsm8k/1.0.0/``, as TFDS leaves it where there is a network::

        import tensorflow_datasets.text  # registers the builder
        tensorflow_datasets.builder("gsm8k", data_dir=FOLDER, file_format="array_record").download_and_prepare()

      The file format must be array_record, which can be read at random, and without TensorFlow. This form
      goes first where both are there.
    - a file a split, train and test, as .jsonl, .jsonl.gz, .json or .parquet, with the columns

    ============  ======================================================================================
    column        meaning
    ============  ======================================================================================
    question      text
    answer        reasoning, then '#### ' and a number, '1,234' being 1234
    ============  ======================================================================================

    A solution is the reasoning without its calculator's notes, <<48/2=24>>, and the answer in a box.

    Args:
      data_dir: the folder, where ``path`` is ''.
      path: the folder.
      suffix: what a problem is followed by; '' for nothing.
      boxed_only: only an answer in a box counts.
      last_number: without a box the last number counts.
      on_bad_reference: 'error', or 'skip' to leave out rows whose reference cannot be graded by (``references``).
      tokenizer: the model's.

    Returns:
      A task with splits 'train' and 'test'.

    Raises:
      ValueError: a setting, folder, file or row that will not do, named.
    """
    tokenizer = need_tokenizer("gsm8k", tokenizer)
    check_text(path=path, suffix=suffix)
    grader = math_grader(boxed_only, last_number)
    try:
        folder = expanded(path or data_dir)
    except ValueError as error:
        raise ValueError(f"path: {error}") from None
    prepared = _prepared(folder)
    splits = _open_prepared(prepared, suffix) if prepared else _open_files(folder, suffix)
    # each row is read here: one that will not do is found now, not in the middle of a run
    return usable(Task("gsm8k", tokenizer, splits, grader), on_bad_reference)


def data_files(folder: str) -> list[str]:
    """The files that ``make_gsm8k`` reads in a folder, each by its path; [] where there are none."""
    folder = os.path.expanduser(folder)
    if prepared := _prepared(folder):
        return sorted(os.path.join(prepared, name) for name in os.listdir(prepared))
    paths = [os.path.join(folder, name.format(split)) for split in SPLITS for name in FILE_NAMES]
    return [path for path in paths if os.path.isfile(path)]


def _split_answer(row: Row) -> tuple[str, str]:
    reasoning, mark, answer = row.text("answer").rpartition("####")
    answer = answer.strip()
    if not mark or not _NUMBER.fullmatch(answer) or not answer[-1:].isdigit():
        raise row.error("'answer' does not end with '#### ' and a number")
    return _CALCULATOR.sub("", reasoning).strip(), answer.replace(",", "")


def _prepared(folder: str) -> str | None:
    """The newest version's folder of a data set that TFDS prepared."""
    top = os.path.join(folder, "gsm8k")
    names = os.listdir(top) if os.path.isdir(top) else []
    versions = [name for name in names if re.fullmatch(r"\d+\.\d+\.\d+", name)]  # not incomplete.*_1.0.0
    complete = [name for name in versions if os.path.isfile(os.path.join(top, name, "dataset_info.json"))]
    newest = max(complete, key=lambda name: [int(n) for n in name.split(".")], default=None)
    return newest and os.path.join(top, newest)


def _open_prepared(folder: str, suffix: str) -> dict[str, Source]:
    info = _json_object(os.path.join(folder, "dataset_info.json"))
    file_format = info.get("fileFormat")
    if file_format != "array_record":
        raise ValueError(
            f"path: {folder} is in the format {file_format}, which cannot be read at random; prepare it again with"
            f" {PREPARE}"
        )
    # TFDS imports whatever module a data set's folder names as that of a column's type.
    features = os.path.join(folder, "features.json")
    for name in _class_names(_json_object(features)):
        if not (isinstance(name, str) and name.startswith(OWN_TYPES)):
            raise ValueError(f"path: {features} names the type {name!r:.100}; allowed: those of {OWN_TYPES}*")
    # From its folder: TFDS's own builder of this name would ask the network what versions there are.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        found = {split: builder.as_data_source(split) for split in SPLITS if split in builder.info.splits}
    except Exception as error:  # protobuf's errors, array_record's and TFDS's own, of which each has a class
        reason = one_line(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        raise ValueError(f"path: {folder} cannot be read: {reason}") from None

    def make_row(split: str) -> Callable[[int, Any], Row]:
        return lambda index, record: Row(f"path: {folder} {split} record {index}", record)

    sources: dict[str, Source] = {}
    for split in SPLITS:
        if split not in found:
            raise ValueError(
                f"path: {folder} has no split {split}; splits there: {', '.join(builder.info.splits)}"
            )
        records = found[split]
        if not len(records):
            raise ValueError(f"path: {folder} {split} is an empty data set")
        sources[split] = _Examples(split, records, make_row(split), suffix)
    return sources


def _json_object(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except OSError as error:
        raise ValueError(f"path: {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"path: {path} is no JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"path: {path} is no JSON object")
    return value


def _class_names(value: Any) -> Iterator[Any]:
    """What stands under the keys that TFDS takes for the name of a class, wherever they are."""
    inner = [value]
    while inner:
        one = inner.pop()
        if isinstance(one, dict):
            yield from (one[key] for key in ("pythonClassName", "python_class_name", "type") if key in one)
        inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else []


def _open_files(folder: str, suffix: str) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for split in SPLITS:
        names = [name.format(split) for name in FILE_NAMES]
        found = [name for name in names if os.path.isfile(os.path.join(folder, name))]
        if len(found) > 1:
            raise ValueError(f"path: {folder} has {' and '.join(found)}; keep one")
        if not found:
            raise ValueError(
                f"path: {folder} has neither gsm8k/1.0.0, which {PREPARE} makes where there is a network, nor one of"
                f" {', '.join(names)}; GSM8K is on the Hugging Face hub as"
                " openai/gsm8k, config main"
            )
        rows = list(read_rows(os.path.join(folder, found[0]), setting="path"))
        sources[split] = _Examples(split, rows, lambda _, row: row, suffix)
    return sources
