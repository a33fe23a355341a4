"""The table of methods names all there are, and the page is the one the code writes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from configs import methods as forms
from experiments import methods
from salt_jax.collect import COLLECTORS
from salt_jax.objective.shaping import overlong_penalty
from salt_jax.run import loop
from salt_jax.run.config import parse
from tests.house import REPOSITORY


def test_the_page_is_up_to_date():
    assert (REPOSITORY / "docs" / "methods.md").read_text() == methods.page()


@pytest.mark.parametrize(("title", "table", "names"), [(s[0], s[2], s[3]) for s in methods.SECTIONS], ids=lambda x: "")
def test_every_method_has_its_row(title, table, names):
    assert list(table) == list(names), title


def test_every_collector_has_its_row():
    assert list(methods.COLLECTOR_ROWS) == list(COLLECTORS)


@pytest.mark.parametrize("size", ["", "-small"])
@pytest.mark.parametrize("name", forms.METHODS)
def test_every_form_is_a_configuration_that_may_run(name, size):
    run = parse(forms.get_config(name + size))
    for key, value in forms.METHODS[name].get("objective", {}).items():
        assert getattr(run.objective, key) == value


@pytest.mark.parametrize("size", ["", "-small"])
def test_no_right_answer_is_penalised_for_its_length(size):
    run = parse(forms.get_config("dapo" + size))
    longest = 2 * (10 ** run.task_arguments["digits"] - 1)  # the largest sum
    tokens = len(str(longest)) + 1  # and its end
    penalty = overlong_penalty(np.array([tokens]), run.sampling.max_new_tokens, run.objective.overlong_buffer)
    assert float(penalty[0]) == 0
    assert run.objective.overlong_buffer > 0


def test_a_form_that_does_not_exist():
    with pytest.raises(ValueError, match=r"configs/methods.py:ppo is unknown; allowed: grpo, "):
        forms.get_config("ppo")


def quick(name: str):
    """Two steps of a form, from a short warm start."""
    c = forms.get_config(f"{name}-small")
    c.steps, c.warm_start.steps, c.evaluation.problems, c.evaluation.batch_size = 2, 20, 8, 8
    c.collection.on_exhausted = "train" if c.collection.method == "dynamic" else c.collection.on_exhausted
    return c


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in forms.METHODS]
)
def test_a_form_runs(name, tmp_path):
    summary = loop.train(quick(name), tmp_path / "run", Console(file=io.StringIO(), width=200))
    assert summary["steps"] == 2
