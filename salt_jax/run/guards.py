"""What a step's metrics say about the run's health, on the host: skipped updates, divergence, and when to stop.

The train step itself leaves parameters alone where an update is not finite, and counts it (``guards/skipped``).
Here those are warned about one by one; too many steps in a row, or a metric past a threshold of ``config.monitors``,
stop the run. Every process sees the same metrics, so all of them decide alike.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from salt_jax.learner.settings import RunConfig

# Threshold of config.monitors without its _warn or _stop -> the metric it is for; '_low' is a floor, '_high' a ceiling.
MONITORS = {
    "entropy_low": "entropy",
    "entropy_high": "entropy",
    "approx_kl_high": "approx_kl",
    "kl_ref_high": "kl_ref",
    "ratio_high": "ratio_max",
    "sampler_gap_high": "sampler_gap",
    "grad_norm_high": "grad_norm",
    "truncated_high": "truncated",
}
SKIPPED, FALLBACK = "guards/skipped", "salt/eigh_fallback"
FLAGS = ("guards/advantages_finite", "geometry/gram_finite")  # below 1 where something of them was not finite
# Why an update is skipped, causes before what they lead to.
CAUSES = ("guards/advantages_finite", "loss", "geometry/gram_finite", "grad_norm")


class NonFiniteError(RuntimeError):
    """A statistic of the step is NaN or infinite; the message names it, the step and the last checkpoint.

    Example:
      >>> raise NonFiniteError("step 3: loss is nan")
      Traceback (most recent call last):
      salt_jax.run.guards.NonFiniteError: step 3: loss is nan
    """


class DivergenceError(RuntimeError):
    """A metric went past a threshold that stops the run; the message names both, the step and the last checkpoint.

    Example:
      >>> raise DivergenceError("step 3: entropy is 0.01, below config.monitors.entropy_low_stop = 0.05")
      Traceback (most recent call last):
      salt_jax.run.guards.DivergenceError: step 3: entropy is 0.01, below config.monitors.entropy_low_stop = 0.05
    """


class Halt(Exception):
    """The run must stop after this step. Whoever runs it knows the checkpoint and the dump, and raises ``error``.

    Attributes:
      step: the step.
      statistic: the metric that stops it.
      value: of the metric.
      whole: every update of the step was skipped: parameters are those before it.
      about: for whoever catches it.

    Example:
      >>> halt = Halt(12, "loss", math.nan, "loss is nan", NonFiniteError, whole=True)
      >>> str(halt.error("run/checkpoints/train/10"))
      'step 12: loss is nan; last good checkpoint: run/checkpoints/train/10'
    """

    def __init__(
        self, step: int, statistic: str, value: float, what: str, kind: type[RuntimeError], *, whole: bool
    ) -> None:
        super().__init__(f"step {step}: {what}")
        self.step, self.statistic, self.value, self.whole = step, statistic, value, whole
        self.about: Any = None
        self._kind = kind

    def error(self, checkpoint: str, dump: Path | None = None) -> RuntimeError:
        """What stops the run, in one line.

        Args:
          checkpoint: the last good one, for people.
          dump: folder of ``dumps.write_dump``, if there is one.
        """
        text = f"{self}; last good checkpoint: {checkpoint}"
        if dump is not None:
            text += f"; the batch is in {dump}: python -m experiments.replay {shlex.quote(str(dump))}"
        return self._kind(text)


def not_finite(values: Mapping[str, float]) -> list[str]:
    """The metrics that are NaN or infinite, or say so of something larger; causes first.

    Example:
      >>> not_finite({"reward": 1.0, "update_norm": math.inf, "loss": math.nan, "geometry/gram_finite": 0.5})
      ['loss', 'geometry/gram_finite', 'update_norm']
    """
    bad = {name for name, value in values.items() if not math.isfinite(value)}
    bad |= {name for name in FLAGS if values.get(name, 1.0) < 1.0}
    return [name for name in CAUSES if name in bad] + [name for name in values if name in bad - set(CAUSES)]


class Guards:
    """Watches one phase of a run.

    Args:
      run: ``guards``, ``monitors``, ``learner`` and ``sampling`` are used.
      warn: takes a line for people.
      earlier: records of the steps before, after a resume: what is counted in a row goes on.
      warm_start: the supervised phase: one update a step, and no monitors, which are about rollouts.
    """

    def __init__(
        self,
        run: RunConfig,
        warn: Callable[[str], None],
        earlier: Iterable[Mapping[str, Any]] = (),
        *,
        warm_start: bool = False,
    ) -> None:
        self._run, self._warn = run, warn
        self._updates = 1 if warm_start else run.learner.minibatches * run.learner.epochs
        self._monitors = {} if warm_start else MONITORS
        self._skipped = 0  # steps in a row
        self._warned = dict.fromkeys(self._monitors, False)  # whether the last value was past '_warn'
        self._past = dict.fromkeys(self._monitors, 0)  # steps in a row past '_stop'
        self._fallback = False  # whether that was said
        for values in earlier:
            self._count(values)

    def observe(self, step: int, values: Mapping[str, float]) -> None:
        """Warns of what is wrong with a step, or stops the run.

        Raises:
          Halt: too many steps in a row skipped an update, a statistic is not finite though none was skipped, or a
            metric was past a '_stop' threshold for config.monitors.patience steps in a row.
        """
        fallback_before, warned_before = self._fallback, dict(self._warned)
        self._count(values)
        self._check_finite(step, values)
        if self._fallback and not fallback_before:
            text = "iterated eigenvectors were refused and a full eigh was used, slower and no less right"
            self._warn(f"step {step}: {text}; {FALLBACK} in the metrics counts")
        for monitor in self._monitors:
            if self._warned[monitor] and not warned_before[monitor]:  # once each time the value goes past it
                self._warn(f"step {step}: {self._crossing(monitor, 'warn', values)}")
        for monitor, metric in self._monitors.items():
            here = math.isfinite(values.get(metric, math.nan))
            if here and self._past[monitor] >= self._run.monitors.patience:
                what = self._crossing(monitor, "stop", values)
                what += self._in_a_row(self._past[monitor], "monitors.patience")
                raise Halt(step, metric, values[metric], what, DivergenceError, whole=self._whole(values))

    def _count(self, values: Mapping[str, float]) -> None:
        """Goes on with what is counted from step to step; a metric without a finite number changes nothing."""
        self._skipped = self._skipped + 1 if values.get(SKIPPED, 0.0) else 0
        self._fallback = self._fallback or bool(values.get(FALLBACK))
        for monitor, metric in self._monitors.items():
            if math.isfinite(values.get(metric, math.nan)):
                self._warned[monitor] = self._is_past(monitor, "warn", values[metric])
                self._past[monitor] = self._past[monitor] + 1 if self._is_past(monitor, "stop", values[metric]) else 0

    def _check_finite(self, step: int, values: Mapping[str, float]) -> None:
        found = not_finite(values)
        bad = next(iter(found), None)
        if "update_norm" in found:  # of an update that was not skipped: the parameters are gone
            raise Halt(step, "update_norm", values["update_norm"], f"update_norm is {values['update_norm']}",
                       NonFiniteError, whole=False)  # fmt: skip
        if self._skipped:
            bad = bad or SKIPPED
            what, setting = f"{bad} is {values[bad]}", "guards.max_skipped"
            if self._skipped > self._run.guards.max_skipped:
                what += self._in_a_row(self._skipped, setting)
                raise Halt(step, bad, values[bad], what, NonFiniteError, whole=self._whole(values))
            parts = "" if self._whole(values) else f"{values[SKIPPED]:g} of {self._updates} updates: "
            self._warn(f"step {step}: {what}: {parts}skipped{self._in_a_row(self._skipped, setting)}")
        elif bad is not None:
            raise Halt(step, bad, values[bad], f"{bad} is {values[bad]}", NonFiniteError, whole=False)

    def _whole(self, values: Mapping[str, float]) -> bool:
        return values.get(SKIPPED, 0.0) >= self._updates

    def _limit(self, monitor: str, what: str) -> float | None:
        return getattr(self._run.monitors, f"{monitor}_{what}")

    def _is_past(self, monitor: str, what: str, value: float) -> bool:
        limit = self._limit(monitor, what)
        return limit is not None and (value < limit if monitor.endswith("_low") else value > limit)

    def _crossing(self, monitor: str, what: str, values: Mapping[str, float]) -> str:
        value, key = values[MONITORS[monitor]], f"config.monitors.{monitor}_{what}"
        if (monitor, what) == ("truncated_high", "warn"):
            limit = f"config.sampling.max_new_tokens = {self._run.sampling.max_new_tokens}"
            return f"{value:.0%} of the completions were cut off at {limit}, where few are right"
        side = "below" if monitor.endswith("_low") else "above"
        return f"{MONITORS[monitor]} is {value:.4g}, {side} {key} = {self._limit(monitor, what):g}"

    def _in_a_row(self, steps: int, setting: str) -> str:
        section, _, name = setting.partition(".")
        times = f" in {steps} steps in a row" if steps > 1 else ""
        return f"{times} (config.{setting} = {getattr(getattr(self._run, section), name)})"
