"""The arithmetic task: right answers, disjoint splits, and files that are whole or absent."""

import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.tasks import TASKS, check_prompt_lengths, check_solution_lengths, make_arithmetic
from salt_jax.tasks.arithmetic_problems import ArithmeticProblems

REPOSITORY = pathlib.Path(__file__).parents[2]


def read(task):
    return {split: [source[i] for i in range(len(source))] for split, source in task.sources.items()}


@given(
    operands=st.integers(2, 4),
    digits=st.integers(1, 20),
    operators=st.sampled_from(["+", "-", "*", "+-", "-+", "*+", "+-*", "*-+"]),
    seed=st.integers(0, 2**40),
)
def test_answers_are_what_python_says(operands, digits, operators, seed):
    problems = ArithmeticProblems(operands, digits, operators, num_train=12, num_test=8, seed=seed)
    splits = problems.splits()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 12, "test": 8}
    prompts = [prompt for rows in splits.values() for prompt, _ in rows]
    assert len(set(prompts)) == 20
    number = rf"(0|[1-9]\d{{0,{digits - 1}}})"
    form = re.compile(rf"{number}([{re.escape(operators)}]{number}){{{operands - 1}}}=")
    for prompt, answer in itertools.chain(*splits.values()):
        assert form.fullmatch(prompt)
        assert str(eval(prompt.removesuffix("="))) == answer


@pytest.mark.parametrize(
    ("operands", "digits", "operators"), [(2, 1, "+"), (2, 1, "*-"), (3, 1, "+-*"), (2, 2, "+")]
)
def test_the_numbering_is_one_to_one(operands, digits, operators):
    problems = ArithmeticProblems(operands, digits, operators, num_train=1, num_test=1)
    prompts = {problems.problem(index)[0] for index in range(problems.space)}
    numbers = [str(n) for n in range(10**digits)]
    expected = set()
    for parts in itertools.product(*([numbers, operators] * operands)[: 2 * operands - 1]):
        expected.add("".join(parts) + "=")
    assert prompts == expected


def test_the_whole_space_can_be_used():
    splits = ArithmeticProblems(2, 1, "+", num_train=60, num_test=40).splits()
    prompts = [prompt for rows in splits.values() for prompt, _ in rows]
    assert len(set(prompts)) == 100


def test_the_seed_chooses_the_problems():
    def train(seed):
        return ArithmeticProblems(num_train=20, num_test=5, seed=seed).splits()["train"]

    assert train(1) == train(1)
    assert train(1) != train(2)


def test_full_size_two_digit_addition(tmp_path):
    task = TASKS["arithmetic"](tmp_path)
    splits = read(task)
    train, test = ({example.prompt for example in splits[split]} for split in ("train", "test"))
    assert (len(train), len(test), len(splits["train"]), len(splits["test"])) == (8000, 2000, 8000, 2000)
    assert not train & test
    ids = [example.id for examples in splits.values() for example in examples]
    assert len(set(ids)) == 10_000
    assert ids[0] == "train/0"
    assert check_prompt_lengths(task.source("train"), task.tokenizer, 6) == 6
    assert check_solution_lengths(task.source("test"), task.tokenizer, 4) == 4
    examples = splits["test"]
    grades = task.grade([e.solution for e in examples], [e.reference for e in examples])
    assert grades.rewards.sum() == 2000
    assert task.grade(["x"], [examples[0].reference]).rewards[0] == 0


def test_files_are_reused_and_settings_do_not_collide(tmp_path):
    settings = {"num_train": 30, "num_test": 10}
    first = read(make_arithmetic(tmp_path, operators="+-", **settings))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.name.endswith("array_record-00000-of-00001") for path in files)
    assert read(make_arithmetic(tmp_path, operators="-+", **settings)) == first
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    others = [
        read(make_arithmetic(tmp_path, **(settings | change)))
        for change in ({"operators": "-"}, {"seed": 1}, {"digits": 1}, {"operands": 3}, {"num_train": 31})
    ]
    assert all(other != first for other in others)
    assert len(list((tmp_path / "arithmetic").iterdir())) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operands": 1}, "operands = 1 is not allowed; allowed: integers >= 2"),
        ({"digits": 0}, "digits = 0"),
        ({"digits": 2.0}, "digits = 2.0"),
        ({"num_train": 0}, "num_train = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"operators": ""}, "operators = ''"),
        ({"operators": "+/"}, re.escape("operators = '+/' is not allowed; allowed: one or more of '+-*'")),
        ({"operators": "++"}, re.escape("operators = '++' repeats one")),
        ({"num_train": 8001}, r"num_train \+ num_test = 10001 exceeds the 10000 problems with 2 operands"),
        ({"digits": 1}, "exceeds the 100 problems"),
    ],
)
def test_bad_settings_are_one_clear_line_and_write_nothing(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        make_arithmetic(tmp_path / "data", **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_two_processes_at_once(tmp_path, monkeypatch):
    """A second run finishes while the first is still writing: the first reads the second's files."""
    from salt_jax.tasks import arithmetic_builder

    settings = {"num_train": 30, "num_test": 10}
    generate = arithmetic_builder.Arithmetic._generate_examples
    others = []

    def overtaken(self, problems):
        if not others:
            others.append(None)
            others[0] = make_arithmetic(tmp_path, **settings)
        return generate(self, problems)

    monkeypatch.setattr(arithmetic_builder.Arithmetic, "_generate_examples", overtaken)
    task = make_arithmetic(tmp_path, **settings)
    assert others[0] is not None
    assert read(task) == read(others[0])
    assert not [path for path in tmp_path.rglob("*") if "incomplete" in path.name]


KILLED = """
import os, signal, sys
from salt_jax.tasks import arithmetic_builder, make_arithmetic
generate = arithmetic_builder.Arithmetic._generate_examples
def killed(self, problems):
    for index, row in enumerate(generate(self, problems)):
        if index == 5 and len(problems) == 10:  # the train split is on disk by now
            os.kill(os.getpid(), signal.SIGKILL)
        yield row
arithmetic_builder.Arithmetic._generate_examples = killed
make_arithmetic(sys.argv[1], num_train=30, num_test=10)
"""

QUIET = """
import sys
import salt_jax.tasks
assert "tensorflow_datasets" not in sys.modules
task = salt_jax.tasks.make_arithmetic(sys.argv[1], num_train=30, num_test=10)
batches = salt_jax.tasks.prompt_batches(
    task.source("train"), task.tokenizer, batch_size=8, max_prompt_length=6, seed=0)
next(batches)
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
"""


def run(code, data_dir, env):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(data_dir)], cwd=REPOSITORY, env=env, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_killed_generation_is_never_read(tmp_path, subprocess_env):
    killed = run(KILLED, tmp_path, subprocess_env)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left  # it did die while writing
    assert all("incomplete" in os.fspath(path.relative_to(tmp_path)) for path in left)
    task = make_arithmetic(tmp_path, num_train=30, num_test=10)
    assert {split: len(examples) for split, examples in read(task).items()} == {"train": 30, "test": 10}
    assert read(task) == read(make_arithmetic(tmp_path / "other", num_train=30, num_test=10))


def test_generation_is_quiet_and_without_tensorflow(tmp_path, subprocess_env):
    result = run(QUIET, tmp_path, subprocess_env)
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("", "")
