"""What a run goes on with: the same content wherever it lies, and nothing else unless it is allowed by name."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from configs import arithmetic, base
from salt_jax.graders import Grader, exact_match
from salt_jax.models.integrity import seal
from salt_jax.run import identity, provenance, setup, workdir
from salt_jax.run.config import parse
from salt_jax.spec import ConfigError
from salt_jax.tasks import make_arithmetic, make_mixture
from tests.pretrained_setup import TEMPLATE, model_folder
from tests.training_setup import tiny_config

HELPER = "FULL = 1.0\n"
REWARD = "import helper_of_mine\n\n\ndef reward(completion, row):\n    return helper_of_mine.FULL\n"
RUN = Path("run")


def write(path: str, *numbers: int) -> None:
    rows = [json.dumps({"prompt": "one plus one ?", "id": n, "n": n}) for n in numbers]
    Path(path).write_text("".join(row + "\n" for row in rows))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data, a model and a reward, where ``started`` starts a run; no grader is started."""
    for name in ("helper_of_mine", "reward_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup, "grading", lambda run, task: contextlib.nullcontext(lambda texts, references: None))
    Path("helper_of_mine.py").write_text(HELPER)
    Path("reward_of_mine.py").write_text(REWARD)
    model_folder(Path("model"))
    write("train.jsonl", *range(8))
    write("test.jsonl", *range(4))
    return tmp_path


def config(**overrides):
    c = base.get_config()
    base.pretrained(c, "model")
    base.set_task(c, "jsonl", train="train.jsonl", test="test.jsonl", reward="reward_of_mine:reward", suffix="")
    c.steps, c.policy.scan_layers = 8, False
    c.sampling.prompts_per_step, c.sampling.rollouts_per_prompt = 2, 4
    c.sampling.max_prompt_length, c.evaluation.batch_size = 40, 4
    for key, value in overrides.items():
        section, _, name = key.rpartition("__")
        with c.ignore_type():  # several files instead of one
            (c[section] if section else c)[name] = value
    return c


def started(c=None, allow=()) -> list[str]:
    """What a start says; what it writes before its first step is written."""
    found = setup.check(c or config(), RUN, allow=allow)
    said = [*found.said, *workdir.open_workdir(RUN, found.values, found.may_change)]
    provenance.note_start(RUN, {"jax": "1", **found.made_from}, said.append)
    return said


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def retarget() -> None:
    Path("train.jsonl").unlink()
    write("other.jsonl", *range(100, 108))
    Path("train.jsonl").symlink_to("other.jsonl")


def one_bit_of_the_weights() -> None:
    content = bytearray(Path("model/model.safetensors").read_bytes())
    content[-1] ^= 1
    Path("model/model.safetensors").write_bytes(content)


CHANGED = {
    "rows replaced": (lambda: write("train.jsonl", *range(100, 108)),
        "task.train: the content of train.jsonl is not that of the run's start;"),
    "fewer rows": (lambda: write("train.jsonl", 0, 1, 2),
        "task.train: the content of train.jsonl is not that of the run's start (8 rows → 3 rows);"),
    "one number": (lambda: write("test.jsonl", 0, 1, 2, 7),
        "task.test: the content of test.jsonl is not that of the run's start;"),
    "a link to something else": (retarget, "task.train: the content of train.jsonl is not that"),
    "the weights": (one_bit_of_the_weights, "model.weights: the content of the weights in model is not that"),
    "the configuration": (lambda: edit("model/config.json", '"float32"', '"float16"'),
        "model.config: the content of config.json or generation_config.json in model is not that"),
    "stop ids": (lambda: Path("model/generation_config.json").write_text('{"eos_token_id": [1, 10]}'),
        "model.config: "),
    "the tokenizer": (lambda: edit("model/tokenizer.json", '"<pad>"\n', '"?"\n'),
        "tokenizer: the tokenizer of model is not that"),
    "the template": (lambda: Path("model/chat_template.jinja").write_text("two " + TEMPLATE),
        "template: what the chat template writes is not that"),
    "the reward": (lambda: edit("reward_of_mine.py", "FULL", "FULL / 2"),
        "grader: the grader reward_of_mine:reward, in code or arguments, is not that of the run's start;"),
    "what the reward imports": (lambda: edit("helper_of_mine.py", "1.0", "0.5"), "grader: "),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGED)
def test_something_else_is_refused_by_name(what, place):
    change, words = CHANGED[what]
    name = words.partition(":")[0]
    started()
    change()
    before = {path: path.read_bytes() for path in RUN.iterdir()}
    with pytest.raises(ConfigError) as caught:
        started()
    assert str(caught.value).startswith("--workdir=run: ")
    assert words in str(caught.value)
    assert f"--allow={name}" in str(caught.value).replace("--allow=tokenizer,", "--allow=")
    assert before == {path: path.read_bytes() for path in RUN.iterdir()}
    allowed = re.search(r"--allow=(\S+);", str(caught.value))[1].split(",")
    (said,) = started(allow=allowed)
    assert words.partition(";")[0] in said
    assert started() == []  # from now on that is what it is made from


def test_all_that_differs_is_in_one_line(place):
    started()
    write("train.jsonl", 1)
    write("test.jsonl", 1)
    with pytest.raises(ConfigError, match=r"task.train: .*\(8 rows → 1 rows\); task.test: .*--allow=task.train,task"):
        started()
    with pytest.raises(ConfigError, match=r"run: task.test: .*--allow=task.test;"):
        started(allow=["task.train"])
    (said,) = started(allow=["task"])
    assert "task.train" in said
    assert "task.test" in said


def moved(old: str, new: str) -> None:
    (shutil.copytree if Path(old).is_dir() else shutil.copy)(old, new)
    Path(old).rename(f"{old}.gone")


@pytest.mark.parametrize(
    ("move", "overrides"),
    [
        (lambda: None, {}),
        (lambda: os.utime("train.jsonl", (1, 1)), {}),
        (lambda: moved("train.jsonl", "elsewhere.jsonl"), {"task__train": "elsewhere.jsonl"}),
        (lambda: Path("link.jsonl").symlink_to("test.jsonl"), {"task__test": "link.jsonl"}),
        (lambda: None, {"task__train": ("train.jsonl",)}),
        (lambda: moved("model", "models"), {"model__path": "models"}),
        (lambda: (moved("model", "models"), moved("test.jsonl", "b.jsonl")),
         {"model__path": "models", "task__test": "b.jsonl"}),
    ],
)  # fmt: skip
def test_the_same_content_goes_on_wherever_it_lies(move, overrides, place):
    started()
    move()
    said = started(config(**overrides))
    assert len(said) == bool(overrides)
    for key, value in overrides.items():
        assert f"config.{key.replace('__', '.')} was " in said[0]
        section, _, name = key.partition("__")
        stored = json.loads((RUN / "config.json").read_text())[section][name]
        assert stored == (list(value) if isinstance(value, tuple) else value)
    assert "the same bits" not in "".join(said)
    assert started(config(**overrides)) == []


@pytest.mark.parametrize(
    ("change", "overrides", "words"),
    [
        (lambda: None, {"task__train": "test.jsonl"}, r"task.train: the content of test.jsonl .* \(8 rows → 4 rows\);"),
        (lambda: write("b.jsonl", 8), {"task__train": ("train.jsonl", "b.jsonl")}, r"l, b.jsonl is not .*→ 9 rows"),
        (lambda: None, {"task__train": "absent.jsonl"}, "config.task.train: absent.jsonl does not exist"),
        (lambda: None, {"task__suffix": "two"}, "config.task.suffix is '' there and 'two' here"),
        (lambda: None, {"task__train": "test.jsonl", "seed": 1}, "holds another configuration: config.seed is 0 there"),
        (lambda: (Path("train.jsonl").unlink(), Path("train.jsonl").mkdir()), {}, "train.jsonl is a folder"),
        (lambda: Path("test.jsonl").unlink(), {}, "config.task.test: test.jsonl does not exist"),
        (lambda: shutil.rmtree("model"), {}, "config.model.path: model does not exist"),
    ],
)  # fmt: skip
def test_other_content_under_another_name(change, overrides, words, place):
    started()
    change()
    with pytest.raises(ConfigError, match=words) as caught:
        started(config(**overrides))
    assert "\n" not in str(caught.value)


def test_the_template_writes_the_runs_first_date(place):
    edit("model/chat_template.jinja", "{% for", "{{ strftime_now('%d %b %Y %H:%M') }}{% for")
    started()
    path = RUN / "provenance.jsonl"
    record = json.loads(path.read_text())
    date = datetime.datetime.fromisoformat(record["date"])
    assert abs(datetime.datetime.now() - date) < datetime.timedelta(hours=1)
    assert date.tzinfo is None
    path.write_text(json.dumps(record | {"date": "2024-02-29T23:59:58"}) + "\n")
    with pytest.raises(ConfigError, match="run: template: what the chat template writes is not that"):
        started()  # was begun today, as the template's output says
    (allowed, said) = started(allow=["template"])
    assert "template" in allowed
    assert said.startswith("the chat template writes the date: in every prompt it is 2024-02-29T23:59:58, ")
    assert started() == [said]
    run = parse(config())
    text = setup.make_tokenizer(run, provenance.first_date(RUN)).written("one")
    assert text == "29 Feb 2024 23:59<user>one<assistant>"


def test_whose_date_it_is(tmp_path):
    def start(name: str, *records: dict) -> Path:
        (tmp_path / name).mkdir()
        lines = [json.dumps(record) for record in records]
        (tmp_path / name / "provenance.jsonl").write_text("\n".join(["7", "{", *lines]) + "\n")
        return tmp_path / name

    now, absent = datetime.datetime.now(), tmp_path / "absent"
    early = start("early", {"time": "2026-11-27T23:38:12+00:00"}, {"time": "2026-11-28T23:38:12+00:00"})
    local = datetime.datetime.fromisoformat("2026-11-27T23:38:12+00:00").astimezone().replace(tzinfo=None)
    assert provenance.first_date(early) == local.isoformat()
    late = start("late", {"time": 3}, {"date": "x"}, {"date": "2025-01-02T03:04:05", "time": "2026-11-27"})
    assert provenance.first_date(absent, late, early) == "2025-01-02T03:04:05"
    for folder in (absent, start("empty"), "a" * 300):
        assert datetime.datetime.fromisoformat(provenance.first_date(folder)) >= now.replace(microsecond=0)


@pytest.mark.parametrize(
    ("overrides", "steps", "words"),
    [
        ({}, 12, ""),
        ({}, 5, ""),  # what has been done is kept
        ({}, 4, r"config.steps is 8 there and 4 here \(it has done 5 steps; allowed: 5 or more\)"),
        ({"optimizer__schedule": "cosine"}, 12, r"and 12 here \(config.optimizer.schedule = 'cosine' ends at the"),
        ({"optimizer__schedule": "linear"}, 7, r"and 7 here \(config.optimizer.schedule = 'linear' ends at"),
        ({"optimizer__warmup_steps": 3}, 12, ""),  # optimizer steps, not a share of the run's
        ({"objective__filters": "d3s", "objective__d3s_rollouts_last": 4}, 12, r"config.objective.filters has 'd3s'"),
        ({"objective__tokens": "d3s"}, 12, r"config.objective.tokens has 'd3s', whose shares go by the last step"),
        ({"seed": 0}, 8, ""),
    ],
)
def test_more_steps(overrides, steps, words, place):
    said = started(config(**overrides))
    for step in (4, 5):
        (RUN / "checkpoints" / "train" / str(step)).mkdir(parents=True)
    (RUN / "summary.json").write_text("{}")
    if words:
        with pytest.raises(ConfigError, match=words):
            started(config(**overrides, steps=steps))
        assert (RUN / "summary.json").exists()
        return
    said = started(config(**overrides, steps=steps))
    changed = [f"resumed with another configuration: config.steps was 8 and is {steps}"]
    assert said == (changed if steps != 8 else [])
    assert (RUN / "summary.json").exists() == (steps == 8)


def test_a_run_from_before_fingerprints(place):
    started()
    record = json.loads((RUN / "provenance.jsonl").read_text())
    for name in ("fingerprints", "details", "date"):
        del record[name]
    (RUN / "provenance.jsonl").write_text(json.dumps(record) + "\n")
    write("train.jsonl", 1)
    words = "config.task.train is 'train.jsonl' there and 'test.jsonl' here .that run is from before fingerprints:"
    with pytest.raises(ConfigError, match=words):
        started(config(task__train="test.jsonl"))
    (said,) = started()
    assert said.startswith("run is from before fingerprints: ")
    assert started() == []
    write("train.jsonl", 2)
    with pytest.raises(ConfigError, match="task.train: "):
        started()


@pytest.mark.parametrize("name", ["task.trian", "", "fingerprints", "train.jsonl", "model.path"])
def test_a_name_that_is_none(name, place):
    with pytest.raises(ConfigError, match=r"^--allow=\S* is not allowed; allowed: task, model, .*task.train"):
        started(allow=["task", name])
    assert not RUN.exists()


def checkpoint(step: int, value: str) -> None:
    folder = Path("first") / "checkpoints" / "train" / str(step)
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "p").write_text(value)
    seal(folder, step, {"time": value})


@pytest.mark.parametrize("what", ["nothing", "a file", "a link to nothing"])
def test_the_folder_of_generated_data_is_gone(what, place):
    """It is made anew, to the same problems; where it cannot be, one line says so."""
    c = arithmetic.get_config("small")
    started(c)
    setup.make_task(parse(c), RUN / "data", None)
    shutil.rmtree(RUN / "data")
    if what == "nothing":
        assert started(c) == []
        return
    if what == "a file":
        (RUN / "data").write_text("")
    else:
        (RUN / "data").symlink_to("/proc/none")
    with pytest.raises(ConfigError, match=r"^run/data\S*: \w+") as caught:
        started(c)
    assert "\n" not in str(caught.value)


def test_the_policy_that_a_run_starts_from(place):
    run = parse(tiny_config({"init_from": "first"}))
    task = make_arithmetic(place, num_train=8, num_test=2)
    checkpoint(3, "a")
    one = identity.of_run(run, task)
    checkpoint(5, "b")
    two = identity.of_run(run, task)
    assert identity.differences(one.record(), two, "it") == {
        "init_from": "init_from: the newest policy in first is not that of it (step 3 → step 5)"
    }
    shutil.move("first", "second")
    moved = identity.of_run(parse(tiny_config({"init_from": "second"})), task)
    assert moved.fingerprints == two.fingerprints


def test_data_that_is_generated(place):
    """Its settings are the configuration's; that they still give the same problems is looked at all the same."""
    run, found = parse(tiny_config()), []
    for seed in (0, 0, 1):
        found.append(identity.of_run(run, make_arithmetic(place, num_train=8, num_test=2, seed=seed)))
    assert found[0] == found[1]
    assert {"task.train", "task.test", "grader"} == found[0].fingerprints.keys()
    said = identity.differences(found[0].record(), found[2], "it")
    assert list(said) == ["task.train", "task.test"]
    assert said["task.test"] == "task.test: the test split is not that of it"


@pytest.mark.parametrize("prepared", [False, True])
def test_a_folder_of_data(prepared, place):
    """The files that are read count, by name and content; the folder's own name and what else lies there do not."""
    files = ["gsm8k/1.0.0/dataset_info.json", "gsm8k/1.0.0/train.record"] if prepared else ["train.jsonl", "test.json"]
    for name in (*files, "notes.txt"):
        (place / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "data" / name).write_text(name)
    one = identity._of_folder("data")
    (place / "data" / "notes.txt").write_text("")
    shutil.move("data", "moved")
    assert identity._of_folder("moved") == one
    for name in files:
        (place / "moved" / name).write_text("other")
        assert identity._of_folder("moved") != one
        (place / "moved" / name).write_text(name)
        assert identity._of_folder("moved") == one


def test_the_parts_of_a_mixture(place):
    write("b.jsonl", 1, 2)
    parts = {
        "sums": {"task": "arithmetic", "num_train": 8, "num_test": 2},
        "own": {"task": "jsonl", "train": "train.jsonl", "test": "b.jsonl", "reward": "exact_match"},
    }
    for name in ("train.jsonl", "b.jsonl"):
        edit(name, '"n"', '"answer"')
    c = config()
    base.set_task(c, "mixture", parts=parts)
    run = parse(c)
    tokenizer = setup.make_tokenizer(run)
    one = identity.of_run(run, make_mixture(place / "data", parts=parts, tokenizer=tokenizer))
    names = {f"task.parts.{part}.{split}" for part in parts for split in ("train", "test")}
    assert names == {name for name in one.fingerprints if name.startswith("task")}
    assert one.details["task.parts.own.train"] == "8 rows"
    assert identity.files_in(run).keys() >= {"config.task.parts.own.train", "config.task.parts.own.test"}
    write("b.jsonl", 1, 3)
    edit("b.jsonl", '"n"', '"answer"')
    two = identity.of_run(run, make_mixture(place / "data", parts=parts, tokenizer=tokenizer))
    assert list(identity.differences(one.record(), two, "it")) == ["task.parts.own.test"]


def test_a_grader_is_its_code_and_what_is_beside_it():
    found, again = identity.Identity(), identity.Identity()
    identity._add_grader(found, Grader("salt_jax.graders.mathematics:math_equal", {"boxed_only": True}))
    assert re.fullmatch(r"latex2sympy2-extended \S+, math-verify \S+, sympy \S+", found.details["grader.packages"])
    identity._add_grader(again, Grader("salt_jax.graders.mathematics:math_equal", {}))
    assert found.fingerprints["grader"] != again.fingerprints["grader"]
    identity._add_grader(again, exact_match)
    identity._add_grader(found, Grader("salt_jax.graders.verdict:exact_match"))
    assert found.fingerprints["grader"] == again.fingerprints["grader"]
    identity._add_grader(found, lambda completion, reference: 1.0)  # has no file of its own, and is no error
