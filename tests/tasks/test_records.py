"""Rows of files: every format the same rows, every defect one line that names the file and the place."""

import datetime
import gzip
import json
import math
from decimal import Decimal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.tasks.records import Row, read_rows

ROWS = [{"problem": "What is ½?", "answer": "0.5"}, {"problem": 'a\nb,\u2028"c"', "answer": "-1"}]


def columns(path):
    return [dict(row.columns) for row in read_rows(path)]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_every_format_has_the_same_rows(write, suffix):
    assert columns(write(f"x.{suffix}", ROWS)) == ROWS


@pytest.mark.parametrize(
    ("suffix", "places"), [("jsonl", "line"), ("json", "row"), ("csv", "row"), ("parquet", "row")]
)
def test_rows_know_their_place(write, suffix, places):
    path = write(f"x.{suffix}", ROWS)
    assert [row.where for row in read_rows(path, setting="train")] == [
        f"train: {path} {places} {i}" for i in (1, 2)
    ]


def test_marks_line_ends_and_blank_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    rows = list(read_rows(path))
    assert [row.columns["a"] for row in rows] == [1, 2]
    assert [row.where[-6:] for row in rows] == ["line 1", "line 4"]
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    assert columns(tmp_path / "x.csv") == [{"a": "1", "b": "2"}]
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf[{"a": 1}]')
    assert columns(tmp_path / "x.json") == [{"a": 1}]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
BROKEN = {
    "invalid JSON": ("x.jsonl", b'{"a": 1}\n{"a": \n', "x.jsonl line 2: invalid JSON: Expecting value"),
    "not an object": ("x.jsonl", b'{"a": 1}\n[1]\n', "x.jsonl line 2: not an object of columns but list"),
    "a list a file": ("x.json", b'{"a": 1}', "x.json as a whole: not a list of objects but one object with the keys a"),
    "a text in a list": ("x.json", b'[{"a": 1}, "b"]', "x.json row 2: not an object of columns but str"),
    "broken list": ("x.json", b'[{"a": 1}', "x.json as a whole: invalid JSON"),
    "deep": ("x.jsonl", b"[" * 200_000, "x.jsonl as a whole: invalid JSON: nested too deeply"),
    "empty": ("x.jsonl", b"", "x.jsonl has no rows: an empty data set"),
    "blank": ("x.jsonl", b"\n \r\n", "x.jsonl has no rows: an empty data set"),
    "empty list": ("x.json", b"[]", "x.json has no rows: an empty data set"),
    "names only": ("x.csv", b"a,b\n", "x.csv has no rows: an empty data set"),
    "latin-1": ("x.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "x.jsonl line 2: not UTF-8: .* at byte 7"),
    "utf-16": ("x.jsonl", '{"a": 1}'.encode("utf-16"), "x.jsonl is UTF-16 text; allowed: UTF-8"),
    "latin-1 csv": ("x.csv", b"a\n\xe9\n", "x.csv as a whole: not UTF-8"),
    "open quote": ("x.csv", b'a,b\n1,"2\n', "x.csv row 1: invalid CSV: unexpected end of data"),
    "more values": ("x.csv", b"a,b\n1,2\n1,2,3\n", "x.csv row 2: more values than columns"),
    "no gzip": ("x.jsonl.gz", b'{"a": 1}\n', "x.jsonl.gz cannot be read: Not a gzipped file"),
    "cut gzip": ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n')[:-9], "x.jsonl.gz cannot be read: Compressed file ended"),
    "no parquet": ("x.parquet", b"PAR1", "x.parquet row 1: invalid parquet"),
    "null": ("x.jsonl", b'{"a": 1}\nnull\n', "x.jsonl line 2: not an object of columns but null"),
    "rows under a key": (
        "x.json", b'{"version": 1, "data": [{"a": 1}]}',
        "the keys version, data; allowed: a list of objects, or an object a line; save the list under 'data'",
    ),
    "a number": ("x.json", b"3", "x.json as a whole: not a list of objects but int"),
    "cut lines": ("x.json", b'{"a": 1}\n{"a": \n', "x.json line 2: invalid JSON: Expecting value"),
    "list of lists": ("x.jsonl", b"[1]\n[2]\n", "x.jsonl line 1: not an object of columns but list"),
    "trailing comma": ("x.jsonl", b'{"a": 1,}\n', r"x.jsonl line 1: invalid JSON: .* \(a comma too many\)"),
    "comma behind a row": ("x.jsonl", b'{"a": 1},\n', r"x.jsonl line 1: invalid JSON: .* \(a comma too many\)"),
    "comma in a list": ("x.json", b'[{"a": 1},]', r"x.json as a whole: invalid JSON: .* \(a comma too many\)"),
    "Python's quotes": ("x.jsonl", b"{'a': 1}\n", r"line 1: invalid JSON: .* \(texts stand in double quotes\)"),
    "a key twice": ("x.jsonl", b'{"a": 1, "b": 2, "a": 3}\n', "x.jsonl line 1: the column 'a' is there 2 times"),
    "a name twice": ("x.csv", b"a,b,a\n1,2,3\n", "x.csv as a whole: the column 'a' is there 2 times"),
    "pointer": ("x.jsonl", POINTER, "x.jsonl is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"),
    "parquet pointer": ("x.parquet", POINTER, "x.parquet is a Git LFS pointer"),
    "csv pointer": ("x.csv", POINTER, "x.csv is a Git LFS pointer"),
    "login page": ("x.json", b"\n<!DOCTYPE html>\n<html>Log in</html>", "x.json is a web page"),
    "error page": ("x.parquet", b"<html><body>404</body></html>", "x.parquet is a web page"),
    "bare gzip": ("x.jsonl", gzip.compress(b'{"a": 1}\n'), "x.jsonl is compressed with gzip; name it .jsonl.gz"),
    "zip": ("x.csv", b"PK\x03\x04....", "x.csv is a zip archive; unpack it"),
    "parquet elsewhere": ("x.jsonl", b"PAR1....", "x.jsonl is a parquet file; name it .parquet"),
    "utf-16 csv": ("x.csv", "a,b\n1,2\n".encode("utf-16-le"), "x.csv holds bytes that are 0: UTF-16"),
    "cut list": ("x.jsonl", b'[\n{"a": 1},\n{"a": 2}\n', r"x.jsonl as a whole: invalid JSON: .*line 4"),
    "a pretty object": ("x.jsonl", b'{\n"a": 1\n}\n', "not a list of objects but one object with the keys a; allowed"),
    "columns": ("x.json", b'{"a": [1, 2], "b": [3, 4]}', "one object with the keys a, b; .* or an object a line$"),
    "gzip pointer": ("x.jsonl.gz", POINTER, "x.jsonl.gz is a Git LFS pointer"),
    "a page in gzip": ("x.jsonl.gz", gzip.compress(b"<html>"), "x.jsonl.gz is a web page"),
    "error in XML": ("x.jsonl", b'<?xml version="1.0"?><Error/>', "x.jsonl is a web page"),
    "suffix": ("x.txt", b"", r"x.txt has an unknown suffix; allowed: .jsonl, .jsonl.gz, .json, .csv, .parquet"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_one_line(tmp_path, case):
    name, content, message = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        list(read_rows(tmp_path / name, setting="train"))
    assert str(error.value).startswith(f"train: {tmp_path}")
    assert "\n" not in str(error.value)


READ = {
    "lines in .json": ("x.json", b'{"a": 1}\n\n{"a": 2}\n'),
    "a list in .jsonl": ("x.jsonl", b'[{"a": 1},\n {"a": 2}]\n'),
    "a list on one line": ("x.jsonl", b'[{"a": 1}, {"a": 2}]'),
    "capitals": ("x.JSONL", b'{"a": 1}\n{"a": 2}\n'),
    "a pretty list": ("x.json", b'[\n  {\n    "a": 1\n  },\n  {\n    "a": 2\n  }\n]\n'),
}  # fmt: skip
TABLES = {
    "semicolons": b"a;b\n1,5;2\n",
    "tabs": b"a\tb\n1,5\t2\n",
    "bars": b"a|b\n1,5|2\n",
    "quoted names": b'"a";"b"\n"1,5";"2"\n',
    "spaces around names": b'a, b\n"1,5",2\n',
    "empty columns": b'a,b,,\n"1,5",2,,\n',
    "blank lines": b'a,b\n\n"1,5",2\n\n',
}


@pytest.mark.parametrize("case", READ)
def test_lists_and_lines_are_read_under_either_name(tmp_path, case):
    name, content = READ[case]
    (tmp_path / name).write_bytes(content)
    assert columns(tmp_path / name) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("case", TABLES)
def test_tables_with_other_marks(tmp_path, case):
    (tmp_path / "x.csv").write_bytes(TABLES[case])
    (row,) = columns(tmp_path / "x.csv")
    assert {name: value for name, value in row.items() if name} == {"a": "1,5", "b": "2"}


def test_a_single_column_a_missing_value_and_a_long_one(tmp_path):
    (tmp_path / "x.csv").write_text("a\nb;c\n")
    assert columns(tmp_path / "x.csv") == [{"a": "b;c"}]
    (tmp_path / "x.csv").write_text("a,b\n" + "x" * 200_000 + "\n")
    assert columns(tmp_path / "x.csv") == [{"a": "x" * 200_000, "b": None}]


def test_numbers_of_32_bits_are_those_that_were_written(tmp_path):
    values = {"a": pyarrow.array([0.1, None], pyarrow.float32()), "b": pyarrow.array([0.1, 2.0], pyarrow.float64())}
    pyarrow.parquet.write_table(pyarrow.table(values), tmp_path / "x.parquet")
    assert columns(tmp_path / "x.parquet") == [{"a": 0.1, "b": 0.1}, {"a": None, "b": 2.0}]
    table = pyarrow.table([[1], [2]], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "y.parquet")
    with pytest.raises(ValueError, match=r"y.parquet as a whole: the column 'a' is there 2 times"):
        columns(tmp_path / "y.parquet")


MESSAGES = ({"role": "user", "content": "1+1? It's \"easy\"."}, {"role": "assistant", "content": "2"})
PROMPTS = [
    ("1+1?", "1+1?"),
    (list(MESSAGES), MESSAGES),
    (json.dumps(MESSAGES), MESSAGES),
    (json.dumps(MESSAGES, indent=2) + "\n", MESSAGES),
    (str(list(MESSAGES)), MESSAGES),
    ([MESSAGES[0] | {"name": None}], MESSAGES[:1]),
    ("[role: user] What is the content: a or b?", "[role: user] What is the content: a or b?"),
    ('[{"role": "user"}] has how many keys?', '[{"role": "user"}] has how many keys?'),
    ("Sort [3, 1, 2]", "Sort [3, 1, 2]"),
    ("[3, 1, 2]", "[3, 1, 2]"),
    ('[{"a": 1}]', '[{"a": 1}]'),
]
NO_PROMPTS = [
    (str([dict(m) for m in MESSAGES]).replace("}, {", "}\n {"), "holds messages as a text that is neither JSON nor"),
    (f"array({list(MESSAGES)}, dtype=object)", "holds messages as a text that is neither JSON nor a Python list"),
    (json.dumps(MESSAGES[0]), "must be text or a list of messages, got {'role'"),
    ('[{"from": "human", "value": "1+1?"}]', r"\[0\]': 'role' is missing; columns there: from, value"),
    ('[{"role": "user"}]', r"\[0\]': 'content' is missing"),
    ([], r"must be text or a list of messages, got \[\]"),
    (3, "must be text or a list of messages, got 3"),
]


@pytest.mark.parametrize(("value", "prompt"), PROMPTS)
def test_prompts(value, prompt):
    assert Row("x", {"p": value}).prompt("q", "p") == prompt


@pytest.mark.parametrize(("value", "message"), NO_PROMPTS)
def test_prompts_that_will_not_do(value, message):
    with pytest.raises(ValueError, match=f"^x line 7:? 'p.*{message}") as error:
        Row("x line 7", {"p": value}).prompt("p")
    assert "\n" not in str(error.value)


def test_lists_may_be_a_hundred_deep(tmp_path):
    for depth in (100, 101):
        (tmp_path / "x.jsonl").write_bytes(b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}\n")
        if depth == 100:
            assert len(columns(tmp_path / "x.jsonl")) == 1
        else:
            with pytest.raises(ValueError, match="nested too deeply; allowed: 100 lists and objects in each other"):
                columns(tmp_path / "x.jsonl")


def test_an_empty_parquet_table(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"a": pyarrow.array([], pyarrow.int64())}), tmp_path / "x.parquet"
    )
    with pytest.raises(ValueError, match="an empty data set"):
        list(read_rows(tmp_path / "x.parquet"))


def test_absent_files_say_where_they_are_to_be_had(tmp_path):
    with pytest.raises(ValueError, match=r"train: .*x.jsonl does not exist; it is on the hub as a/b$"):
        list(read_rows(tmp_path / "x.jsonl", setting="train", hint="it is on the hub as a/b"))
    (tmp_path / "y.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"y.jsonl is a folder, not a file$"):
        list(read_rows(tmp_path / "y.jsonl"))


TEXTS = [
    ("42", "42"),
    (b"caf\xc3\xa9", "café"), (42, "42"), (42.0, "42"), (0.5, "0.5"), (-3, "-3"), (1e300, "1" + 300 * "0"),
    (1e22, "1" + 22 * "0"), (1e23, "1" + 23 * "0"), (5e-05, "0.00005"), (1e-07, "0.0000001"), (-1.5e-7, "-0.00000015"),
    (5e-324, "0." + 323 * "0" + "5"), (-0.0, "0"), (0, "0"), (2**53 + 1, "9007199254740993"),
    (-(10**30), "-1" + 30 * "0"),
    (0.1 + 0.2, "0.30000000000000004"), (Decimal("0.10"), "0.10"), (Decimal("1E+3"), "1000"), (np.float32(0.1), "0.1"),
    (np.int64(7), "7"),
]  # fmt: skip
REFUSED = {
    "list": ([1], "'answer' must be text or a number, got list"),
    "bool": (True, "'answer' must be text or a number, got bool"),
    "nan": (math.nan, "'answer' must be text or a finite number, got nan"),
    "inf": (-math.inf, "'answer' must be text or a finite number, got -inf"),
    "too large": (json.loads("1e400"), "'answer' must be text or a finite number, got inf"),
    "nan of a table": (Decimal("NaN"), "'answer' must be text or a finite number, got NaN"),
    "numpy bool": (np.bool_(True), "'answer' must be text or a number, got bool"),
    "date": (datetime.date(2024, 5, 1), "'answer' must be text or a number, got date"),
    "none": (None, "'answer' is missing; columns there: answer"),
    "blank": (" \n", "'answer' is empty"),
    "bytes": (b"\xff", "'answer' is not Unicode text"),
    "half a pair": (json.loads('"\\ud800"'), "'answer' is not Unicode text"),
}


@pytest.mark.parametrize(("value", "text"), TEXTS)
def test_texts(value, text):
    assert Row("x", {"answer": value}).text("answer", numbers=True) == text


@pytest.mark.parametrize("case", REFUSED)
def test_refused_values(case):
    value, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"^x line 7: {message}"):
        Row("x line 7", {"answer": value}).text("answer", numbers=True)


def test_other_columns():
    row = Row("x line 7", {"B": "b", "none": None, "tests": ["a", 3]})
    assert row.text("a", "B") == "b"
    assert (row.optional_text("none"), row.optional_text("B")) == ("", "b")
    with pytest.raises(ValueError, match="'a' or 'b' is missing; columns there: B, none, tests"):
        row.text("a", "b")
    with pytest.raises(ValueError, match="'B' must be a list of texts, got str"):
        row.texts("B")
    with pytest.raises(ValueError, match=r"'tests\[1\]' must be text, got int"):
        row.texts("tests")
    with pytest.raises(ValueError, match="'n' must be text, got int"):
        Row("x", {"n": 3}).text("n")


@given(st.binary(max_size=60), st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.jsonl.gz", "x.parquet"]))
def test_any_bytes_are_rows_or_one_line(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("wild") / name
    path.write_bytes(content)
    try:
        rows = list(read_rows(path))
    except ValueError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert rows
