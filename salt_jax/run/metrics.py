"""Where metrics go: JSON lines, TensorBoard, and a progress bar or plain lines."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from salt_jax.run.events import EventFile
from salt_jax.run.workdir import append_record

# metric -> (label, format) of what a person sees while the run goes on
SHOWN = {
    "loss": ("loss", ".3f"),
    "reward": ("reward", ".3f"),
    "accuracy": ("accuracy", ".3f"),
    "salt/alpha": ("α", ".2f"),
    "salt/participation_ratio": ("PR", ".1f"),
    "salt/n_eff": ("n_eff", ".2f"),
    "tokens_per_second": ("tok/s", ",.0f"),
}


class RunConsole(Console):
    """A terminal that may be closed, or a pipe whose reader may go: the run goes on unprinted."""

    def on_broken_pipe(self) -> None:
        """The pipe's reader is gone."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # what Python flushes at its end would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def print(self, *arguments: Any, **options: Any) -> None:
        """As rich's; nothing where the terminal is gone."""
        try:
            super().print(*arguments, **options)
        except OSError:
            self.on_broken_pipe()


def headline(values: Mapping[str, float]) -> str:
    """The metrics a person watches, in one line; without those of SALT where no group has a signal to reweight.

    Example:
      >>> headline({"reward": 0.25, "salt/alpha": 0.5, "grad_norm": 1.0})
      'reward 0.250  α 0.50'
      >>> headline({"reward": 0.0, "salt/alpha": 1.0, "groups_with_signal": 0.0})
      'reward 0.000  no signal'
    """
    signal = values.get("groups_with_signal", 1.0) > 0
    shown = {name: of for name, of in SHOWN.items() if name in values and (signal or not name.startswith("salt/"))}
    parts = [f"{label} {format(values[name], spec)}" for name, (label, spec) in shown.items()]
    return "  ".join(parts if signal else [*parts, "no signal"])


class MetricWriter:
    """Writes one phase's records: a JSON line a step, TensorBoard events, and something to look at.

    Args:
      path: the JSON-lines file.
      total: steps of the phase.
      start: steps done before this process.
      label: what the phase is called on screen.
      events: folder for TensorBoard, or None.
      print_every: steps between lines where the output is not a terminal.
      console: where to show progress.
    """

    def __init__(
        self,
        path: Path,
        *,
        total: int,
        start: int,
        label: str,
        events: Path | None,
        print_every: int,
        console: Console,
    ) -> None:
        self._path, self._total, self._label, self._print_every = path, total, label, print_every
        self._console = console
        self._began, self._start = time.perf_counter(), start
        self._events = None if events is None else EventFile(events, start)
        self._progress = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"), TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task(label, total=total, completed=start, shown="")
            self._progress.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records one step."""
        append_record(self._path, {"step": step, **values})
        self._send(step, values)
        shown = headline(values)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, shown=shown)
        elif step % self._print_every == 0 or step == self._total:
            per_step = (time.perf_counter() - self._began) / max(step - self._start, 1)
            eta = datetime.timedelta(seconds=round(per_step * (self._total - step)))  # also over an hour
            self._console.print(
                f"{self._label} {step}/{self._total}  {shown}  ETA {eta}", highlight=False, soft_wrap=True
            )

    def note(self, path: Path, step: int, values: Mapping[str, float | None], text: str) -> None:
        """Records an evaluation: a line in its own file, events, and a line on screen; None is undefined, no event."""
        append_record(path, {"step": step, **values})
        self._send(step, {f"evaluation/{name}": value for name, value in values.items() if value is not None})
        self._console.print(f"{self._label} {step}/{self._total}  {text}", highlight=False, soft_wrap=True)

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        if self._events is not None:
            self._events.write(step, values)

    def close(self) -> None:
        """Ends the progress bar and flushes the events."""
        if self._progress is not None:
            self._progress.stop()
        if self._events is not None:
            self._events.close()
