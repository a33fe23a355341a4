"""Rows of files: every format the same rows, every defect one line that names the file and the place."""

import gzip
import json
import math

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


BROKEN = {
    "invalid JSON": ("x.jsonl", b'{"a": 1}\n{"a": \n', "x.jsonl line 2: invalid JSON: Expecting value"),
    "not an object": ("x.jsonl", b'{"a": 1}\n[1]\n', "x.jsonl line 2: not an object of columns but list"),
    "a list a file": ("x.json", b'{"a": 1}', "x.json as a whole: not a list of objects but dict"),
    "a text in a list": ("x.json", b'[{"a": 1}, "b"]', "x.json row 2: not an object of columns but str"),
    "broken list": ("x.json", b'[{"a": 1}', "x.json as a whole: invalid JSON"),
    "deep": ("x.jsonl", b"[" * 200_000, "x.jsonl line 1: invalid JSON: nested too deeply"),
    "empty": ("x.jsonl", b"", "x.jsonl has no rows: an empty data set"),
    "blank": ("x.jsonl", b"\n \r\n", "x.jsonl has no rows: an empty data set"),
    "empty list": ("x.json", b"[]", "x.json has no rows: an empty data set"),
    "names only": ("x.csv", b"a,b\n", "x.csv has no rows: an empty data set"),
    "latin-1": ("x.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "x.jsonl line 2: not UTF-8: .* at byte 7"),
    "utf-16": ("x.jsonl", '{"a": 1}'.encode("utf-16"), "x.jsonl line 1: not UTF-8"),
    "latin-1 csv": ("x.csv", b"a\n\xe9\n", "x.csv as a whole: not UTF-8"),
    "open quote": ("x.csv", b'a,b\n1,"2\n', "x.csv row 1: invalid CSV: unexpected end of data"),
    "more values": ("x.csv", b"a,b\n1,2\n1,2,3\n", "x.csv row 2: more values than columns"),
    "no gzip": ("x.jsonl.gz", b'{"a": 1}\n', "x.jsonl.gz cannot be read: Not a gzipped file"),
    "cut gzip": ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n')[:-9], "x.jsonl.gz cannot be read: Compressed file ended"),
    "no parquet": ("x.parquet", b"PAR1", "x.parquet row 1: invalid parquet"),
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
    (b"caf\xc3\xa9", "café"), (42, "42"), (42.0, "42"), (0.5, "0.5"), (-3, "-3"), (1e300, str(int(1e300))),
]  # fmt: skip
REFUSED = {
    "list": ([1], "'answer' must be text or a number, got list"),
    "bool": (True, "'answer' must be text or a number, got bool"),
    "nan": (math.nan, "'answer' must be text or a number, got float"),
    "inf": (-math.inf, "'answer' must be text or a number, got float"),
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
