"""The TFDS builder of the arithmetic task: array_record files, no TensorFlow, no network."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from salt_jax.tasks.arithmetic_problems import ArithmeticProblems


@dataclasses.dataclass(eq=False)
class ArithmeticConfig(tfds.core.BuilderConfig):
    """A TFDS configuration whose name spells out all settings of its problems."""

    problems: ArithmeticProblems = dataclasses.field(default_factory=ArithmeticProblems)


# skip_registration: no entry in TFDS's global registry, which refuses a second import of this module.
class Arithmetic(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Texts ``prompt`` ("12+34=") and ``answer`` ("46"), generated locally."""

    # Part of the path: to be raised when the same settings come to mean other problems.
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Arithmetic problems and their answers.",
            features=tfds.features.FeaturesDict({"prompt": text, "answer": text}),
            disable_shuffling=True,  # drawn at random already; record i is problem i
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        splits = self.builder_config.problems.splits()
        return {split: self._generate_examples(problems) for split, problems in splits.items()}

    def _generate_examples(self, problems: Sequence[tuple[str, str]]) -> Iterator[tuple[int, dict[str, str]]]:
        for index, (prompt, answer) in enumerate(problems):
            yield index, {"prompt": prompt, "answer": answer}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's bars, its lines on stdout and its warning that the configuration is not a named one."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.set_verbosity(verbosity)


def open_splits(
    data_dir: str | os.PathLike[str], problems: ArithmeticProblems
) -> dict[str, Sequence[dict[str, Any]]]:
    """Random-access records of both splits, generated first if they are not under ``data_dir`` yet.

    TFDS writes into ``incomplete.*`` beside the final folder and renames it when all is written, so a killed
    process leaves nothing that is ever read; of two processes that generate at once one renames first and
    the other reads that one's files, which are the same.

    Args:
      data_dir: folder of data sets.
      problems: the settings.

    Returns:
      split → sequence of {'prompt': bytes, 'answer': bytes}.

    Example:
      >>> with tempfile.TemporaryDirectory() as data_dir:
      ...     splits = open_splits(data_dir, ArithmeticProblems(num_train=4, num_test=2))
      ...     {split: len(records) for split, records in splits.items()}
      {'train': 4, 'test': 2}
    """

    def make_builder() -> Arithmetic:
        config = ArithmeticConfig(name=problems.name, problems=problems)
        return Arithmetic(data_dir=os.path.expanduser(data_dir), config=config)

    with _quiet():
        builder = make_builder()
        # download_dir: TFDS makes the folder though nothing is ever downloaded.
        with tempfile.TemporaryDirectory() as download_dir:
            try:
                builder.download_and_prepare(download_dir=download_dir, file_format="array_record")
            except OSError:
                if not os.path.isdir(builder.data_dir):
                    raise
                builder = make_builder()  # another process was faster
        return {split: builder.as_data_source(split) for split in ("train", "test")}
