"""How rows stand in files, and what a file is that is taken for data and is none."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import IO, Any

import numpy as np

from salt_jax.tasks.paths import LFS, LFS_HINT

GZIP = b"\x1f\x8b"
MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark
WHOLE = "as a whole"
ALLOWED = "allowed: a list of objects, or an object a line"
# (place in the file, columns); an exception in place of the columns says what is wrong there.
Located = Iterator[tuple[str, Any]]


def opened(path: str) -> IO[bytes]:
    """A file in binary: only "\\n" ends a line, not the further line ends of Unicode that JSON texts may hold."""
    return gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def no_data(path: str) -> str | None:
    """What a file is instead of data, by how it begins, and what helps; None for a file that is worth reading."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if path.lower().endswith(".gz") and head.startswith(GZIP):
        with gzip.open(path) as file:
            head = file.read(1024)
    parquet = path.lower().endswith(".parquet")
    for start, what in (
        (LFS, LFS_HINT),
        (GZIP, "is compressed with gzip; name it .jsonl.gz, or unpack it"),
        (b"PK\x03\x04", "is a zip archive; unpack it"),
        (b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it"),
        (b"\xfd7zXZ", "is compressed with xz; unpack it"),
        (b"" if parquet else b"PAR1", "is a parquet file; name it .parquet"),
        (b"\xff\xfe", "is UTF-16 text; allowed: UTF-8, as from iconv -f UTF-16 -t UTF-8"),
        (b"\xfe\xff", "is UTF-16 text; allowed: UTF-8, as from iconv -f UTF-16 -t UTF-8"),
    ):
        if start and head.startswith(start):
            return what
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", head.removeprefix(MARK), re.IGNORECASE):
        return "is a web page (HTML), perhaps what a login or an error page answered, and no data"
    if b"\0" in head and not parquet:
        return "holds bytes that are 0: UTF-16, or no text at all; allowed: UTF-8"
    return None


class _TwiceError(ValueError):
    """A name that two columns have: one of them would be lost."""


def _once(names: list[str]) -> None:
    """_TwiceError where a name stands twice."""
    name, times = Counter(names).most_common(1)[0] if names else ("", 1)
    if times > 1:
        raise _TwiceError(f"the column {name!r} is there {times} times")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _once([name for name, _ in pairs])
    return found


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
        comma = (before.endswith(",") and after[:1] in ("}", "]")) or after == ","
        hint = " (a comma too many)" if comma else " (texts stand in double quotes)" if after[:1] == "'" else ""
        raise ValueError(f"invalid JSON: {error}{hint}") from None
    except _TwiceError:
        raise
    except RecursionError:
        raise ValueError("invalid JSON: nested too deeply") from None
    except ValueError:
        raise ValueError("invalid JSON: an integer of thousands of digits") from None


def _json(path: str) -> Located:
    """A list of objects or an object a line, whichever is there; one object alone is a row of a .jsonl file only."""
    with opened(path) as file:
        text = file.read().removeprefix(MARK)
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    if not lines:
        return
    first, alone = lines[0][1], path.lower().endswith(".json")
    whole, by_line = first.lstrip().startswith(b"["), _parses(first)
    if whole or alone or not by_line:
        try:
            rows = _parse(text)
        except ValueError as error:
            if (whole or alone) and not by_line:
                yield WHOLE, error
                return
        else:
            if isinstance(rows, list):
                yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
            else:
                yield WHOLE, ValueError(_no_list(rows))
            return
    for number, line in lines:
        try:
            yield f"line {number}", _parse(line)
        except ValueError as error:
            yield f"line {number}", error


def _parses(text: bytes) -> bool:
    try:
        _parse(text)
    except ValueError:
        return False
    return True


def _no_list(value: Any) -> str:
    if not isinstance(value, dict):
        return f"not a list of objects but {type(value).__name__}; {ALLOWED}"
    lists = {key: rows for key, rows in value.items() if isinstance(rows, list)}
    inner = next((key for key, rows in lists.items() if rows and isinstance(rows[0], dict)), None)
    there = "" if inner is None else f"; save the list under {inner!r} as a file of its own"
    return f"not a list of objects but one object with the keys {', '.join(value) or 'none'}; {ALLOWED}{there}"


def _csv(path: str) -> Located:
    with open(path, "rb") as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            yield WHOLE, ValueError(f"not UTF-8: {error.reason} at byte {error.start}")
            return
    csv.field_size_limit(2**31 - 1)  # the library's own limit is shorter than what a model writes in one answer
    # A single column has nothing to be learned from: then another mark parts the values.
    mark = next((mark for mark in ",;\t|" if len(_names(text, mark)) > 1), ",")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=mark)
    number = 0
    try:
        names = [name.strip() for name in next(filter(None, rows), [])]
        try:
            _once([name for name in names if name])  # a spreadsheet writes empty columns beside the full ones
        except _TwiceError as error:
            yield WHOLE, error
            return
        for number, row in enumerate(filter(None, rows), 1):
            if len(row) > len(names):
                yield f"row {number}", ValueError("more values than columns")
            else:
                yield f"row {number}", dict(zip_longest(names, row))
    except csv.Error as error:
        yield f"row {number + 1}", ValueError(f"invalid CSV: {error}")


def _names(text: str, mark: str) -> list[str]:
    """The names of columns where ``mark`` parts them; none where it cannot."""
    try:
        return next(filter(None, csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=mark)), [])
    except csv.Error:
        return []


def _parquet(path: str) -> Located:
    # Comes with tensorflow-datasets; a tenth of a second that the other formats need not wait for.
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _once(schema.names)
            short = [field.name for field in schema if field.type in (pyarrow.float16(), pyarrow.float32())]
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    for name in short:  # 0.1 of 32 bits is 0.1 and not 0.10000000149011612
                        row[name] = None if row[name] is None else float(str(np.float32(row[name])))
                    yield f"row {number}", row
    except _TwiceError as error:
        yield WHOLE, error
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the latter of values Python has no form of
        yield f"row {number + 1}", ValueError(f"invalid parquet: {error}")


READERS: dict[str, Callable[[str], Located]] = {
    ".jsonl": _json,
    ".jsonl.gz": _json,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
