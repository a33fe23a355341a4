"""Which checkpoint of a run is meant."""

from __future__ import annotations

import json

import pytest

from salt_jax.models import run_steps
from salt_jax.models.integrity import seal


def unexpected(text):
    raise AssertionError(text)


@pytest.fixture
def run(tmp_path):
    for step in (0, 5, 10):
        params = tmp_path / run_steps.STEPS / str(step) / "params"
        params.mkdir(parents=True)
        (params / "p").write_text(f"parameters of {step}")
        seal(params.parent, step, {})
    (tmp_path / "config.json").write_text(json.dumps({"checkpoint": {"best_by": "pass@8", "best_mode": "max"}}))
    rows = [{"step": 0, "pass@8": 0.1}, {"step": 5, "pass@8": 0.6}, {"step": 7, "pass@8": 0.9}, {"step": 10}]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 0, "pa')
    return tmp_path


def test_newest_best_and_a_step(run):
    assert run_steps.choose(run, "newest", unexpected) == 10
    assert run_steps.choose(run, "best", unexpected) == 5  # 7 was better and was not saved
    assert run_steps.choose(run, 0, unexpected) == 0


def test_the_least_is_best_where_the_run_says_so(run):
    (run / "config.json").write_text(json.dumps({"checkpoint": {"best_by": "pass@8", "best_mode": "min"}}))
    assert run_steps.choose(run, "best", unexpected) == 0


@pytest.mark.parametrize(
    ("choice", "config", "words"),
    [
        (3, None, "has no step 3; it has 0, 5, 10"),
        ("best", {"checkpoint": {"best_by": ""}}, "config.checkpoint.best_by is empty"),
        ("best", {}, "config.checkpoint.best_by is empty"),
        (
            "best", {"checkpoint": {"best_by": "maj@4", "best_mode": "max"}},
            "no evaluation of its steps 0, 5, 10 has 'maj@4'",
        ),
    ],
)  # fmt: skip
def test_what_is_not_there(choice, config, words, run):
    if config is not None:
        (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        run_steps.choose(run, choice, unexpected)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_newest_passes_over_what_is_damaged_and_nothing_else_does(run):
    steps = run / run_steps.STEPS
    (steps / "10" / "params" / "p").write_text("parameters of 11")
    (steps / "5" / "manifest.json").unlink()
    said = []
    assert run_steps.choose(run, "newest", said.append) == 0
    assert [line.split(" is ")[0] for line in said] == [f"checkpoint {steps}/10", f"checkpoint {steps}/5"]
    assert all(line.endswith("; step 0 is used instead") for line in said)
    for choice in (10, "best"):
        with pytest.raises(ValueError, match=r"/train/(10 is damaged: params/p|5 is not finished)"):
            run_steps.choose(run, choice, unexpected)
    (steps / "0" / "params" / "p").unlink()
    with pytest.raises(ValueError, match=r"no sound checkpoint: step 10 .*; step 5 .*; step 0 is damaged: params/p is"):
        run_steps.choose(run, "newest", unexpected)
    with pytest.raises(ValueError, match="has no checkpoint"):
        run_steps.choose(run / "nowhere", "newest", unexpected)


def test_scores_that_are_no_numbers_are_left_out(tmp_path):
    rows = ['{"step": 1, "a": null}', '{"step": 2, "a": NaN}', '{"step": 3, "a": 2}', '{"step": 3, "a": 1}']
    (tmp_path / "evaluations.jsonl").write_text("\n".join(rows) + "\n")
    assert run_steps.evaluation_scores(tmp_path, "a") == {3: 1.0}  # a later one counts
    assert run_steps.evaluation_scores(tmp_path / "nowhere", "a") == {}
    for line in ("{", "[]", '{"a": 1}', "3"):
        (tmp_path / "evaluations.jsonl").write_text(f"{rows[0]}\n{line}\n")
        with pytest.raises(ValueError, match="evaluations.jsonl: line 2 is damaged$"):
            run_steps.evaluation_scores(tmp_path, "a")


@pytest.mark.parametrize("text", ["newest", "best", "0", "120"])
def test_choices(text):
    assert str(run_steps.parse_choice(text)) == text


@pytest.mark.parametrize("text", ["", "last", "-1", "1.5", "Best"])
def test_other_choices_are_refused(text):
    with pytest.raises(ValueError, match="allowed: newest, best or a step"):
        run_steps.parse_choice(text)
