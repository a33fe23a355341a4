"""Rows of local files, .jsonl, .jsonl.gz, .json, .csv or .parquet, with errors that name the file and the row."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

from salt_jax.spec import one_line
from salt_jax.tasks.formats import READERS, no_data
from salt_jax.tasks.paths import expanded

LONGEST = 400  # characters of an error about a row, beside where it stands: rows can hold whole books
DEEPEST = 100  # lists and objects in each other in a row
# How messages begin, and one of their names, where somebody wrote the list down as a text.
_WRITTEN = re.compile(r"""\s*(array\()?\[?\s*\{(?=.*['"](role|from)['"]\s*:).*[]})]\s*""", re.DOTALL)


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
          numbers: also take a finite number, in digits alone, as e may be read as Euler's number: 42.0 is '42',
            5e-05 '0.00005', -0.0 '0', and 1e23 a one and 23 zeros.

        Raises:
          ValueError: missing, blank, or of another type.
        """
        name, value = self.column(*names), self.value(*names)
        if numbers and isinstance(value, Real | Decimal) and not isinstance(value, bool):
            digits = Decimal(str(value))  # the shortest that are read back as this number
            if not digits.is_finite():
                raise self.error(f"{name!r} must be text or a finite number, got {value}")
            whole = digits == digits.to_integral_value()
            return "0" if not digits else format(digits.to_integral_value() if whole else digits, "f")
        text = self._readable(name, value, "text or a number" if numbers else "text")
        if not text.strip():
            raise self.error(f"{name!r} is empty")
        return text

    def optional_text(self, *names: str) -> str:
        """``text``, or '' where the row has none or a blank one."""
        name = self.column(*names)
        return "" if name is None else self._readable(name, self.columns[name], "text")

    def prompt(self, *names: str) -> str | tuple[dict[str, str], ...]:
        """A text, or messages: a list of {role, content}, also where the list was written down as a text.

        Args:
          *names: the column, and other names it goes by.

        Raises:
          ValueError: neither of them, no message, a message without role and content, a text that begins as messages
            do and is neither JSON nor what Python prints.

        Example:
          >>> Row("x.csv row 1", {"prompt": '[{"role": "user", "content": "1+1?"}]'}).prompt("prompt")
          ({'role': 'user', 'content': '1+1?'},)
        """
        name, value = self.column(*names), self.value(*names)
        if isinstance(value, str | bytes):
            text = self.text(*names)
            if not _WRITTEN.fullmatch(text):
                return text
            value = self._written(name, text)
        if not isinstance(value, list) or not value:
            raise self.error(f"{name!r} must be text or a list of messages, got {value!r:.60}")
        messages = []
        for i, message in enumerate(value):
            place = f"{name}[{i}]"
            if not isinstance(message, dict):
                raise self.error(f"{place!r} must be a message, {{role, content}}, got {type(message).__name__}")
            inner = Row(f"{self.where} {place!r}", message)
            messages.append({"role": inner.text("role"), "content": inner.text("content")})
        return tuple(messages)

    def _written(self, name: str | None, text: str) -> Any:
        for read in (json.loads, ast.literal_eval):
            try:
                return read(text)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
        raise self.error(f"{name!r} holds messages as a text that is neither JSON nor a Python list: {text[:60]!r}")

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
    a list, or lines     both are read in .jsonl and in .json; one object alone is a row in .jsonl only
    a column twice       an error, as one would be lost
    , ; tab or |         part the values of a .csv; the last three where the first makes a single column
    web pages, archives  an error that says what the file is: also Git LFS pointers, UTF-16
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
    before = f"{setting}: " if setting else ""
    try:
        path = expanded(path)
    except ValueError as error:
        raise ValueError(one_line(f"{before}{error}")) from None
    name = one_line(f"{before}{path}")
    if not os.path.isfile(path):
        absent = "is no regular file" if os.path.exists(path) else "does not exist"
        what = "is a folder, not a file" if os.path.isdir(path) else absent
        raise ValueError(f"{name} {what}{f'; {hint}' if hint else ''}")
    read = next((reader for suffix, reader in READERS.items() if path.lower().endswith(suffix)), None)
    if read is None:
        raise ValueError(f"{name} has an unknown suffix; allowed: {', '.join(READERS)}")
    count = 0
    try:
        if (instead := no_data(path)) is not None:
            raise ValueError(f"{name} {instead}")
        for count, (where, columns) in enumerate(read(path), 1):  # noqa: B007
            if isinstance(columns, Exception):
                raise ValueError(f"{name} {where}: {_reason(columns)}")
            if not isinstance(columns, dict):
                found = "null" if columns is None else type(columns).__name__
                raise ValueError(f"{name} {where}: not an object of columns but {found}")
            if _deeper_than(DEEPEST, columns):
                allowed = f"{DEEPEST} lists and objects in each other"
                raise ValueError(f"{name} {where}: nested too deeply; allowed: {allowed}")
            yield Row(f"{name} {where}", columns)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} cannot be read: {_reason(error)}") from None
    if not count:
        raise ValueError(f"{name} has no rows: an empty data set")


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
