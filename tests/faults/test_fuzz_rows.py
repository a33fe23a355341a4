"""Rows that lie: every task that reads files takes a row, or refuses it in one line that says where it stands."""

from __future__ import annotations

import collections
import copy
import csv
import gzip
import io
import json
import re
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salt_jax.graders import Grader, grade_all
from salt_jax.graders.choice import find_choice
from salt_jax.graders.code import parse_reference
from salt_jax.graders.mathematics import last_number
from salt_jax.run.setup import naming
from salt_jax.spec import ConfigError
from salt_jax.tasks import TASKS, check_prompt_lengths, check_solution_lengths
from salt_jax.tasks.settings import math_grader

EXAMPLES = 500

GSM8K = {"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"}
MATH = {"problem": "1+1?", "solution": "It is $\\boxed{2}$.", "answer": "2"}
DAPO = {
    "prompt": [{
        "role": "user",
        "content": "Solve the following math problem step by step. Thus.\n\n1+1?\n\n"
        'Remember to put your answer on its own line after "Answer:".',
    }],
    "reward_model": {"ground_truth": "2", "style": "rule"},
}  # fmt: skip
GPQA = {"Question": "1+1?", "Correct Answer": "2"} | {f"Incorrect Answer {i}": f"{i + 2}" for i in (1, 2, 3)}
HUMANEVAL = {
    "task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n", "entry_point": "f",
}  # fmt: skip
MBPP = {
    "task_id": 601, "text": "The identity.", "code": "f = lambda x: x", "test_list": ["assert f(1) == 1"],
    "test_setup_code": "",
}  # fmt: skip
OWN = {"prompt": "1+1?", "reference": "2", "solution": "2", "id": "a"}
MESSAGES = OWN | {"prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1?"}]}
CODE = {"prompt": "f", "reference": {"tests": ["assert f(1) == 1"], "setup": "", "entry_point": "f"}}

# name → (task, its settings where FILE is the file's path, a row that is right)
FILE = "FILE"
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gsm8k": ("gsm8k", {}, GSM8K),
    "math": ("math", {"train": FILE}, MATH),
    "dapo_math": ("dapo_math", {"train": FILE}, DAPO),
    "aime": ("aime", {"test": FILE}, MATH),
    "gpqa": ("gpqa", {"test": FILE}, GPQA),
    "humaneval": ("humaneval", {"test": FILE}, HUMANEVAL),
    "mbpp": ("mbpp", {"train": FILE}, MBPP),
    "jsonl": ("jsonl", {"train": FILE}, OWN),
    "jsonl, messages": ("jsonl", {"test": FILE, "reward": "exact_match", "suffix": "Go."}, MESSAGES),
    "jsonl, a letter": ("jsonl", {"train": FILE, "reward": "multiple_choice"}, OWN | {"reference": "B"}),
    "jsonl, code": ("jsonl", {"train": FILE, "reward": "code"}, CODE),
    "jsonl, own": ("jsonl", {"train": FILE, "reward": f"{__name__}:own_reward"}, OWN),
    "mixture": ("mixture", {"parts": {"a": {"task": "math", "train": FILE}}}, MATH),
    "mixture, own": ("mixture", {"parts": {"a": {"task": "jsonl", "train": FILE, "weight": 2}}}, MESSAGES),
}
SUFFIXES = ("jsonl", "jsonl.gz", "json", "csv", "parquet")


def own_reward(completion: str, row: dict[str, Any]) -> float:
    return float(len(row))


class Bytes:
    """Every text has ids: bytes."""

    vocab_size, pad_id, bos_id, eos_id, stop_ids = 259, 0, 1, 2, (2,)

    def encode(self, text):
        return [byte + 3 for byte in text.encode()]

    def encode_prompt(self, prompt):
        return self.encode(prompt if isinstance(prompt, str) else "".join(m["role"] + m["content"] for m in prompt))


def nested(depth: int, end: Any = 0) -> Any:
    for i in range(depth):
        end = [end] if i % 2 else {"a": end}
    return end


STRANGE = st.sampled_from([
    None, True, False, 0, -1, 2, 42.0, 10**30, -(10**4299), 1e308, float("nan"), float("inf"), -0.0, "", " ", "\n",
    "\x00", "\ud800", "a\udfff", "\x1b[2J\r\n", "\u2028", "\ufeff", "٣", "²", "9" * 5000, "#### ٣", "#### " + "," * 9,
    "#### 1\n#### x", "\\boxed{", "\\boxed{}", "{" * 3000, "]" * 3000, "[" * 3000, "x" * 100_000, " " * 100_000,
    "#" * 20_000, "answer" + " " * 100_000, [], {}, [[]], [None], [1], ["a", 2], [""], {"a": None}, {"": ""},
    {"role": "user"}, [{"role": "user"}], [{"role": 1, "content": "a"}], [{"role": "\n", "content": "a"}],
    {"ground_truth": None}, {"tests": []}, {"tests": [" "]}, {"tests": "x", "more": 1}, '{"tests": 1}',
    nested(99), nested(101), nested(900), {"\n": nested(3)}, "E", "ABCD", "b",
])  # fmt: skip
TEXTS = st.text(max_size=12) | st.text(st.characters(categories=("Cc", "Cs", "Zs", "Zl", "Nd", "Lu")), max_size=5)
VALUES = STRANGE | TEXTS | st.integers() | st.floats() | st.lists(TEXTS, max_size=2)
KEYS = st.sampled_from(["", "\n", "answer ", "id", "prompt", "ANSWER", "\ud800", "a" * 2000]) | TEXTS
DAMAGES = ["mark", "cut", "blank", "bare", "utf8", "empty", "twice", "brackets", "crlf", "number", "deep"]
BYTES = st.sampled_from(DAMAGES)


@st.composite
def files(draw) -> tuple[str, str, list[str], bytes]:
    """A case, the file's suffix, what was done to it, and its bytes."""
    case = draw(st.sampled_from(sorted(CASES)))
    row = copy.deepcopy(CASES[case][2])
    done = []
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(["value", "value", "value", "missing", "extra", "inner"]))
        key = draw(st.sampled_from(sorted(row))) if row else ""
        if kind == "missing":
            row.pop(key, None)
        elif kind == "inner" and isinstance(row.get(key), list) and row[key] and isinstance(row[key][0], dict):
            row[key] = [row[key][0] | {draw(st.sampled_from(["role", "content", "x"])): draw(VALUES)}, *row[key][1:]]
        else:
            row[draw(KEYS) if kind == "extra" else key] = draw(VALUES)
        done.append(kind)
    rows = [row] if draw(st.booleans()) else [CASES[case][2], row]
    suffix = draw(st.sampled_from(SUFFIXES[:4] if case == "gsm8k" else SUFFIXES))
    if suffix == "csv" and case == "gsm8k":
        suffix = "json"
    damage = draw(st.none() | st.none() | BYTES)
    return case, suffix, [*done, *([damage] if damage else [])], written(suffix, rows, damage, draw)


def written(suffix: str, rows: list[dict[str, Any]], damage: str | None, draw: Any) -> bytes:
    if suffix == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list({key: None for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode(errors="surrogatepass")
    elif suffix == "parquet":
        data = parquet(rows)
    elif suffix == "json":
        data = json.dumps(rows).encode()
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if damage == "mark":
        data = b"\xef\xbb\xbf" + data
    elif damage == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif damage == "blank":
        data = b"\n \r\n" + data + b"\n\n"
    elif damage == "bare":
        data += draw(st.sampled_from([b"1\n", b"null\n", b"[1]\n", b'"a"\n', b"NaN\n"]))
    elif damage == "utf8":
        data = data.replace(b"1", b"\xff\xfe", 1)
    elif damage == "empty":
        data = draw(st.sampled_from([b"", b"\n", b"[]", b"\x00" * 9]))
    elif damage == "twice":
        data = data.replace(b"{", b'{"answer": 1, "answer": 2, ', 1)
    elif damage == "brackets":
        data += draw(st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"}"]))
    elif damage == "crlf":
        data = data.replace(b"\n", b"\r\n")
    elif damage == "number":
        data = data.replace(b"1", b"1" * 5000, 1)
    elif damage == "deep":
        data = data.replace(b"{", b'{"deep": ' + b"[" * 500 + b"]" * 500 + b", ", 1)
    if suffix == "jsonl.gz":
        data = gzip.compress(data, mtime=0)
        data = data[:-9] if damage == "cut" else data
    return data


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """The rows, without the columns that Arrow has no type for."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
            pyarrow.parquet.write_table(pyarrow.table({name: columns[name]}), io.BytesIO())
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
            columns.pop(name, None)
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def message_of(case: str, folder: Any, suffix: str, data: bytes) -> tuple[str | None, int]:
    """What the task says against a file, None where it takes it; how many examples it then has, all of them tried."""
    name, arguments, right = CASES[case]
    path = folder / f"train.{suffix}"
    for other in folder.iterdir():
        other.unlink()
    path.write_bytes(data)
    if case == "gsm8k":
        (folder / "test.jsonl").write_text(json.dumps(right) + "\n")
        arguments = {"path": str(folder)}
    arguments = json.loads(json.dumps(arguments).replace(FILE, str(path)))
    try:
        with naming("config.task."):
            task = TASKS[name](folder, **arguments, tokenizer=Bytes())
    except ConfigError as error:
        return str(error), 0
    count = 0
    for split, source in task.sources.items():
        assert check_prompt_lengths(source, task.tokenizer, 10**7) > 0
        for i in range(len(source)):
            example = source[i]
            assert example.id.encode()
            assert example.reference.strip()
            if example.solution:
                check_solution_lengths([example], task.tokenizer, 10**7)
            grade(task.verifier, example.reference)
            count += 1
        assert split in ("train", "test")
    return None, count


def grade(verifier: Any, reference: str) -> None:
    """What grading asks of a reference, in this process where it can neither hang nor fork."""
    while verifier.path.endswith(":by_name"):
        name, reference = json.loads(reference)
        verifier = Grader(**verifier.arguments[name])
    if verifier.path.endswith(":run_tests"):
        parse_reference(reference)
    elif verifier.path != math_grader(False).path or (len(reference) < 20 and not set("^!") & set(reference)):
        grades = grade_all(verifier, ["\\boxed{2}", "", "B"], [reference] * 3)
        assert grades.rewards.shape == (3,)


# What an error about a row says: its file, its place there, and the column, or what is wrong with the row as a whole.
PLACE = r"(line \d+|row \d+|as a whole)"
WHOLE = r"invalid JSON|not UTF-8|not an object of columns|not a list of objects|nested too deeply"
WHOLE += r"|more values than columns|invalid CSV|invalid parquet|cannot be handed to your reward|answer .* no integer"
WHOLE += r"|the correct answer|the id of|the answer"


def test_every_row_is_taken_or_refused_in_one_line(tmp_path):
    found: collections.Counter[tuple[str, str]] = collections.Counter()

    @settings(max_examples=EXAMPLES)
    @given(files())
    def every_file(drawn):
        case, suffix, done, data = drawn
        message, count = message_of(case, tmp_path, suffix, data)
        found[case, "refused" if message else "taken"] += 1
        if message is None:
            assert count >= 1
            return
        assert len(message.splitlines()) == 1
        assert message.isprintable()
        assert len(message) < 1000
        assert message.startswith("config.task.")
        path = str(tmp_path / f"train.{suffix}")
        assert path in message
        said = message.partition(path)[2]
        whole_file = re.match(r" (has no rows|cannot be read|holds bytes that are|is UTF-16|is a web page)", said)
        assert whole_file or re.match(rf" {PLACE}[ :].*(['\"]|{WHOLE})", said), message

    every_file()
    assert sum(found.values()) >= EXAMPLES
    for case in CASES:
        assert found[case, "taken"], found
        assert found[case, "refused"], found
    assert sum(count for (_, what), count in found.items() if what == "taken") >= EXAMPLES // 5


# Rows that once left a task without the file's name, with a message of several lines, or with another exception.
FOUND = {
    "a column's name of two lines": ("math", {"a\nb": 1}, r"columns there: a\nb"),
    "a column's name that is no text": ("dapo_math", {"prompt": "1+1?", "\ud800": 1}, r"columns there: prompt, \ud800"),
    "a column's name of a page": ("gpqa", {"Question" * 900: 1}, "'Question' or 'question' is missing"),
    "5000 digits": ("aime", MATH | {"answer": "9" * 5000}, "is no integer from 0 to 999"),
    "5000 digits of an id": ("mbpp", MBPP | {"task_id": "1" * 5000}, "must be an integer from 1 to 974"),
    "5000 digits in JSON": ("jsonl", {"answer": 7}, "an integer of thousands of digits"),
    "digits of another script": ("gsm8k", GSM8K | {"answer": "so\n#### ٣"}, "'answer' does not end with '#### '"),
    "a deep row": ("jsonl, own", OWN | {"more": nested(950)}, "nested too deeply"),
    "a deep reference": ("jsonl, code", CODE | {"reference": "[" * 100_000}, "nested too deeply"),
    "spaces": ("gsm8k", GSM8K | {"answer": " " * 10**6 + "x"}, "'answer' does not end with '#### '"),  # once hours
    "spaces in DAPO's wrapper": ("dapo_math", DAPO | {"prompt": "a" + " " * 10**6 + "b"}, None),  # once hours
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_right(name, tmp_path):
    case, row, words = FOUND[name]
    data = json.dumps(row).replace("7", "7" * 5000 if "in JSON" in name else "7").encode()
    message, count = message_of(case, tmp_path, "jsonl", data)
    if words is None:
        assert (message, count) == (None, 1)
        return
    assert str(tmp_path / "train.jsonl line 1: ") in message
    assert words in message
    assert message.isprintable()
    assert len(message) < 1000


def test_a_completion_cannot_make_its_grader_search_for_hours():
    """Each of these took time that grows with the square of its length."""
    spaces = " " * 10**5
    box = "\\boxed{x" + "\n" * 10**5 + "x}"
    for text in (f"the answer is{spaces}", f"Answer:{spaces}x", f"choice **{spaces}**", box):
        assert find_choice(text) is None
    assert find_choice(f"Answer:{spaces}B") == "B"
    for unit in ("\\boxed{", "\\boxed{}", "<answer>", "选A或B", "Wait, ", "**", "the answer to "):
        assert find_choice(unit * (10**5 // len(unit))) is None
    assert last_number("1" * 10**4) == int("1" * 4000) * 10**6000 + int("1" * 3000) * 10**3000 + int("1" * 3000)


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_rows_that_are_right_are_taken(case, tmp_path):
    data = (json.dumps(CASES[case][2]) + "\n").encode()
    assert message_of(case, tmp_path, "jsonl", data) == (None, 2 if case == "gsm8k" else 1)
