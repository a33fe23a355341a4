"""Checks of the settings that say when a run warns or stops, and which checkpoint is the best."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from salt_jax.evaluation.scores import powers_of_two
from salt_jax.learner.settings import RunConfig
from salt_jax.run.guards import MONITORS
from salt_jax.spec import ConfigError

BEST_MODES = ("max", "min")


def check_limits(run: RunConfig) -> None:
    """Refuses thresholds that contradict each other or watch nothing, and a best checkpoint by no metric.

    Raises:
      ConfigError: one line naming the key and what is allowed.
    """
    _check_monitors(run)
    _check_best(run)


def evaluation_metrics(run: RunConfig) -> list[str]:
    """The metrics of a run's evaluations that a checkpoint can be best by.

    'majority' has no value where the grader finds no answer, 'accuracy/PART' none for a part that is not tested on.
    """
    names = ["accuracy", *(f"pass@{k}" for k in powers_of_two(run.evaluation.samples))]
    names += ["majority", "reward", "missing", "truncated", "length"]
    if run.task_name == "mixture":
        names += ["accuracy/mean_of_parts", *(f"accuracy/{part}" for part in run.task_arguments.get("parts") or {})]
    return names


def _check_monitors(run: RunConfig) -> None:
    for name, value in dataclasses.asdict(run.monitors).items():
        if value is not None and not math.isfinite(value):
            raise _refused(f"monitors.{name}", value, "None, finite numbers")
    for monitor in MONITORS:
        warn, stop = (getattr(run.monitors, f"{monitor}_{what}") for what in ("warn", "stop"))
        low = monitor.endswith("_low")
        if warn is not None and stop is not None and (stop > warn if low else stop < warn):
            bound = f"None, numbers {'<=' if low else '>='} config.monitors.{monitor}_warn = {warn}"
            raise _refused(f"monitors.{monitor}_stop", stop, bound)
        if monitor == "kl_ref_high" and not (run.objective.needs_reference and run.objective.kl_in == "loss"):
            for what, value in (("warn", warn), ("stop", stop)):
                if value is not None:
                    unread = "None where the loss has no KL term, which takes config.objective.kl_coef > 0 in it"
                    raise _refused(f"monitors.{monitor}_{what}", value, unread)


def _check_best(run: RunConfig) -> None:
    best, mode = run.checkpoint.best_by, run.checkpoint.best_mode
    if mode not in BEST_MODES:
        raise _refused("checkpoint.best_mode", mode, ", ".join(BEST_MODES))
    if not best:
        if mode != "max":
            unread = "'max', the default; it has no effect without config.checkpoint.best_by"
            raise _refused("checkpoint.best_mode", mode, unread)
        return
    names = evaluation_metrics(run)
    if best not in names:
        raise _refused("checkpoint.best_by", best, f"'' (none), {', '.join(names)}")
    every, saved = run.evaluation.every, run.checkpoint.every
    if every % saved:
        dividing = f"'' where config.checkpoint.every = {saved} does not divide config.evaluation.every = {every}"
        raise _refused("checkpoint.best_by", best, f"{dividing}: what is evaluated must be saved")


def _refused(path: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"config.{path} = {value!r} is not allowed; allowed: {allowed}")
