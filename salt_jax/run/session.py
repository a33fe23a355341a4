"""What every part of a run needs at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from salt_jax.distributed import hosts
from salt_jax.learner.settings import RunConfig
from salt_jax.models.run_steps import evaluation_scores
from salt_jax.run import setup
from salt_jax.run.checkpoint import Checkpoints
from salt_jax.run.preemption import Watch
from salt_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Session:
    """A run's checked configuration, task, mesh and folder, and whom it speaks to.

    Attributes:
      run: the checked configuration.
      task: prompts, tokenizer and verifier.
      mesh: of the run.
      folder: the workdir.
      policy: static part of the model.
      console: where progress is shown.
      grade: (texts, references) → Grades.
      watch: says when to stop.
      stamp: what made the run, and its configuration; every checkpoint carries it.
    """

    run: RunConfig
    task: Task
    mesh: Mesh
    folder: Path
    policy: Any
    console: Console
    grade: setup.Grade
    watch: Watch
    stamp: Mapping[str, Any]

    def say(self, text: str) -> None:
        """One line of progress, from one process."""
        if hosts.lead():
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that a person should read, from one process."""
        if hosts.lead():
            self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def checkpoints(self, phase: str) -> Checkpoints:
        """The checkpoints of 'warm_start' or 'train'; the best is chosen among those of 'train'."""
        chosen = self.run.checkpoint
        by = chosen.best_by if phase == setup.TRAIN else ""
        return Checkpoints(
            self.folder / "checkpoints" / phase, chosen.keep, warn=self.warn, stamp=self.stamp,
            scores=(lambda: evaluation_scores(self.folder, by)) if by else None, best_mode=chosen.best_mode,
        )  # fmt: skip
