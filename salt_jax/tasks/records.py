"""Rows of local files, .jsonl, .jsonl.gz, .json, .csv or .parquet, with errors that name the file and the row."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

LONGEST = 400  # characters of an error about a row, beside where it stands: rows can hold whole books
DEEPEST = 100  # lists and objects in each other in a row
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a file; what is read from it is checked here.

    Attributes:
      where: 'data/x.jsonl line 3', for errors.
      columns: name → value; None, JSON's null, is the same as a column that is missing.

    Example:
      >>> row = Row("x.jsonl line 3", {"Answer": 42.0, "tags": ["a"]})
      >>> row.text("answer", "Answer", numbers=True)
      '42'
      >>> row.text("problem")
      Traceback (most recent call last):
      ValueError: x.jsonl line 3: 'problem' is missing; columns there: Answer, tags
    """

    where: str
    columns: Mapping[str, Any]

    def error(self, message: str) -> ValueError:
        """An error that names this row, on one line whatever the row holds."""
        return ValueError(f"{self.where}: {one_line(message, LONGEST)}")

    def column(self, *names: str) -> str | None:
        """The first of some names that this row has a value for."""
        return next((name for name in names if self.columns.get(name) is not None), None)

    def value(self, *names: str) -> Any:
        """The value under the first of some names that this row has.

        Raises:
          ValueError: none is there, naming the columns that are.
        """
        name = self.column(*names)
        if name is None:
            wanted = " or ".join(map(repr, names))
            raise self.error(
                f"{wanted} is missing; columns there: {', '.join(map(str, self.columns)) or 'none'}"
            )
        return self.columns[name]

    def text(self, *names: str, numbers: bool = False) -> str:
        """A text that is not blank, as it stands.

        Args:
          *names: the column, and other names it goes by.
          numbers: also take an integer, or a finite float; 42.0 is '42'.

        Raises:
          ValueError: missing, blank, or of another type.
        """
        name, value = self.column(*names), self.value(*names)
        if (
            numbers
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) < float("inf")
        ):
            return str(int(value)) if value == int(value) else repr(value)
        text = self._readable(name, value, "text or a number" if numbers else "text")
        if not text.strip():
            raise self.error(f"{name!r} is empty")
        return text

    def optional_text(self, *names: str) -> str:
        """``text``, or '' where the row has none or a blank one."""
        name = self.column(*names)
        return "" if name is None else self._readable(name, self.columns[name], "text")

    def texts(self, *names: str) -> list[str]:
        """A list of texts, perhaps empty."""
        name, value = self.column(*names), self.value(*names)
        if not isinstance(value, list):
            raise self.error(f"{name!r} must be a list of texts, got {type(value).__name__}")
        return [self._readable(f"{name}[{i}]", item, "text") for i, item in enumerate(value)]

    def _readable(self, name: str | None, value: Any, allowed: str) -> str:
        try:
            text = value.decode() if isinstance(value, bytes) else value
            if isinstance(text, str):
                text.encode()  # half of a surrogate pair is text for JSON, and for no tokenizer
                return text
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise self.error(f"{name!r} is not Unicode text: {error.reason}") from None
        raise self.error(f"{name!r} must be {allowed}, got {type(value).__name__}")


def read_rows(path: str | os.PathLike[str], *, setting: str = "", hint: str = "") -> Iterator[Row]:
    """The rows of one file, one after the other; nothing is ever downloaded.

    ===================  =====================================================================
    in the file          what happens
    ===================  =====================================================================
    UTF-8 byte order     skipped
    blank lines          skipped, and counted: line numbers are an editor's
    CRLF line ends       as LF
    other encodings      an error that names the line
    JSON: NaN, Infinity  read as floats; as a text or number of a column they are refused
    no row               an error
    ===================  =====================================================================

    Args:
      path: .jsonl or .jsonl.gz, an object a line; .json, a list of objects; .csv with a line of names;
        .parquet. A leading ~ is the home folder; other relative paths start at the working directory.
      setting: the config key that names the file; errors begin with it.
      hint: where the file can be got, for the error of an absent one.

    Yields:
      A ``Row`` each; of a .csv all values are texts.

    Raises:
      ValueError: an absent or unreadable file, an unknown suffix, a row that is no object, an empty data set.
    """
    path = os.path.expanduser(os.fspath(path))
    name = one_line(f"{setting}: {path}" if setting else path)
    read = next((reader for suffix, reader in _READERS.items() if path.endswith(suffix)), None)
    if read is None:
        raise ValueError(f"{name} has an unknown suffix; allowed: {', '.join(SUFFIXES)}")
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise ValueError(f"{name} {what}{f'; {hint}' if hint else ''}")
    count = 0
    try:
        for count, (where, columns) in enumerate(read(path), 1):  # noqa: B007
            if isinstance(columns, Exception):
                raise ValueError(f"{name} {where}: {_reason(columns)}")
            if not isinstance(columns, dict):
                raise ValueError(f"{name} {where}: not an object of columns but {type(columns).__name__}")
            if _deeper_than(DEEPEST, columns):
                allowed = f"{DEEPEST} lists and objects in each other"
                raise ValueError(f"{name} {where}: nested too deeply; allowed: {allowed}")
            yield Row(f"{name} {where}", columns)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} cannot be read: {_reason(error)}") from None
    if not count:
        raise ValueError(f"{name} has no rows: an empty data set")


def one_line(text: str, longest: int | None = None) -> str:
    """A text for an error: what is not printable is written as an escape, the middle of a long text is left out.

    Example:
      >>> one_line("a\\nb \\x1b[2J"), one_line("0123456789", longest=5)
      ('a\\\\nb \\\\x1b[2J', '01...89')
    """
    if longest is not None and len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-(longest // 2) :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _deeper_than(depth: int, value: Any) -> bool:
    """Whether lists and objects are in each other more than so often: what handles them later goes into each."""
    level = [value]
    for _ in range(depth):
        inner = [x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list)]
        if not inner:
            return False
        level = [x for values in inner for x in values]
    return any(isinstance(x, dict | list) for x in level)


def _reason(error: Exception) -> str:
    return one_line(" ".join(str(error).split()) or type(error).__name__, LONGEST)


# Each yields (place in the file, columns); an exception in place of the columns says what is wrong there.
_Located = Iterator[tuple[str, Any]]


def _json_lines(path: str) -> _Located:
    # In binary: only "\n" ends a line, not the further line ends of Unicode that JSON texts may hold.
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                try:
                    yield f"line {number}", _parse(line)
                except ValueError as error:
                    yield f"line {number}", error


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error}") from None
    except RecursionError:
        raise ValueError("invalid JSON: nested too deeply") from None
    except ValueError:
        raise ValueError("invalid JSON: an integer of thousands of digits") from None


def _json_list(path: str) -> _Located:
    with open(path, "rb") as file:
        try:
            rows = _parse(file.read().removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            yield "as a whole", error
            return
    if not isinstance(rows, list):
        yield (
            "as a whole",
            ValueError(f"not a list of objects but {type(rows).__name__}; is it a .jsonl file?"),
        )
        return
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _csv(path: str) -> _Located:
    with open(path, "rb") as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            yield "as a whole", ValueError(f"not UTF-8: {error.reason} at byte {error.start}")
            return
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            more = None in row
            yield f"row {number}", ValueError("more values than columns") if more else dict(row)
    except csv.Error as error:
        yield f"row {number + 1}", ValueError(f"invalid CSV: {error}")


def _parquet(path: str) -> _Located:
    # Comes with tensorflow-datasets; a tenth of a second that the other formats need not wait for.
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the latter of values Python has no form of
        yield f"row {number + 1}", ValueError(f"invalid parquet: {_reason(error)}")


_READERS: dict[str, Callable[[str], _Located]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
    ".parquet": _parquet,
}
