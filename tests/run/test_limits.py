"""Thresholds that contradict each other or watch nothing, and best checkpoints by nothing, are refused in one line."""

from __future__ import annotations

import math

import pytest

from salt_jax.evaluation.evaluate import ProblemResult
from salt_jax.run.config import parse
from salt_jax.run.guards import MONITORS
from salt_jax.run.judging import record
from salt_jax.run.limits import evaluation_metrics
from salt_jax.spec import ConfigError
from tests.training_setup import tiny_config

KL = {"objective.kl_coef": 0.1}


def mixture(overrides=None):
    """The tiny configuration on two tasks at once."""
    values = tiny_config(overrides)
    parts = {"sums": {"task": "arithmetic"}, "more": {"task": "arithmetic"}}
    values["task"] = {"name": "mixture", "correct_from": 1.0, "parts": parts}
    return values


def refused(values):
    with pytest.raises(ConfigError) as caught:
        parse(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("monitor", MONITORS)
def test_thresholds_are_numbers_in_order(monitor):
    warn, stop = f"monitors.{monitor}_warn", f"monitors.{monitor}_stop"
    low = monitor.endswith("_low")
    nearer, further = (0.5, 0.25) if low else (0.25, 0.5)
    whole = (1, 0) if low else (0, 1)
    for pair in ((nearer, further), (nearer, nearer), (None, further), (nearer, None), (None, None), whole):
        run = parse(tiny_config(KL | {warn: pair[0], stop: pair[1]}))
        assert (getattr(run.monitors, f"{monitor}_warn"), getattr(run.monitors, f"{monitor}_stop")) == pair
    message = refused(tiny_config(KL | {warn: further, stop: nearer}))
    sign = "<=" if low else ">="
    allowed = f"None, numbers {sign} config.{warn} = {further}"
    assert message == f"config.{stop} = {nearer} is not allowed; allowed: {allowed}"
    for value in (math.nan, math.inf, -math.inf):
        message = refused(tiny_config(KL | {warn: None, stop: value}))
        assert message == f"config.{stop} = {value} is not allowed; allowed: None, finite numbers"


@pytest.mark.parametrize("what", ["warn", "stop"])
@pytest.mark.parametrize("settings", [{}, KL | {"objective.kl_in": "reward", "objective.kl_estimator": "k1"}])
def test_kl_is_watched_only_where_it_is_in_the_loss(what, settings):
    message = refused(tiny_config(settings | {f"monitors.kl_ref_high_{what}": 1.0}))
    start = f"config.monitors.kl_ref_high_{what} = 1.0 is not allowed; allowed: None where the loss has no KL"
    assert message.startswith(start)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"monitors.patience": 0}, "config.monitors.patience = 0 is not allowed; allowed: numbers >= 1"),
        ({"guards.max_skipped": -1}, "config.guards.max_skipped = -1 is not allowed; allowed: numbers >= 0"),
        ({"monitors.entropy_low_warn": "0.1"},
         "config.monitors.entropy_low_warn = '0.1' is not allowed; allowed: float or None"),
        ({"checkpoint.best_mode": "least"}, "config.checkpoint.best_mode = 'least' is not allowed; allowed: max, min"),
        ({"checkpoint.best_mode": "min"},
         "allowed: 'max', the default; it has no effect without config.checkpoint.best_by"),
        ({"checkpoint.best_by": "acuracy"},
         "config.checkpoint.best_by = 'acuracy' is not allowed; allowed: '' (none), accuracy, pass@1"),
        ({"checkpoint.best_by": "pass@4", "evaluation.samples": 3}, "'' (none), accuracy, pass@1, pass@2, majority"),
        ({"checkpoint.best_by": "accuracy/sums"}, "is not allowed"),
        ({"checkpoint.best_by": "accuracy", "evaluation.every": 30, "checkpoint.every": 20},
         "'' where config.checkpoint.every = 20 does not divide config.evaluation.every = 30: what is evaluated"),
    ],
)  # fmt: skip
def test_what_is_refused(overrides, message):
    assert message in refused(tiny_config(overrides))


@pytest.mark.parametrize("every", [0, 50, 100])
@pytest.mark.parametrize(("best", "mode"), [("accuracy", "max"), ("pass@2", "max"), ("length", "min")])
def test_what_is_allowed(best, mode, every):
    settings = {"checkpoint.best_by": best, "checkpoint.best_mode": mode}
    settings |= {"evaluation.samples": 2, "evaluation.every": every}
    assert parse(tiny_config(settings)).checkpoint.best_by == best


def test_a_mixture_has_its_parts():
    for best in ("accuracy/sums", "accuracy/more", "accuracy/mean_of_parts"):
        parse(mixture({"checkpoint.best_by": best}))
    message = refused(mixture({"checkpoint.best_by": "accuracy/x"}))
    assert "accuracy/mean_of_parts, accuracy/sums, accuracy/more" in message


@pytest.mark.parametrize("make", [tiny_config, mixture])
def test_the_metrics_are_those_that_an_evaluation_records(make):
    run = parse(make({"evaluation.samples": 4}))
    results = [
        ProblemResult(f"{part}/0", "7", ("7",) * 4, (1.0, 0.0) * 2, (True,) * 4, (False,) * 4, (2,) * 4, ("7",) * 4)
        for part in ("sums", "more")
    ]
    found = record(run, results)
    assert set(evaluation_metrics(run)) <= found.keys()
    assert all(found[name] is not None for name in evaluation_metrics(run))
    # nothing is left out but the intervals, and how many there were
    rest = found.keys() - set(evaluation_metrics(run))
    assert all(name.endswith(("_low", "_high", "_problems")) or name in ("problems", "samples") for name in rest)
