"""One phase of a run, step by step: from its newest checkpoint to its last step, with records, evaluations and saves.

The order of events at the end of step n is fixed, and a checkpoint comes last: metrics of n are written and watched,
an evaluation that is due at n is made and written, then n is saved. So everything that belongs to steps up to a
checkpoint is on disk before it, and a resumed run drops and repeats only what came after. The record of step n + 1 is
written once the checkpoint of n is whole, while the device works on: a kill costs at most ``checkpoint.every`` steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from salt_jax.distributed import hosts
from salt_jax.evaluation.evaluate import write_problems
from salt_jax.learner.state import TrainState
from salt_jax.run import workdir
from salt_jax.run.checkpoint import CheckpointError, Checkpoints
from salt_jax.run.dumps import write_dump
from salt_jax.run.guards import Guards, Halt
from salt_jax.run.judging import Judge, record, score, sentence
from salt_jax.run.metrics import MetricWriter
from salt_jax.run.preemption import Interrupted
from salt_jax.run.session import Session

Metrics = Mapping[str, Any]
POLL_EVERY = 16  # steps of a warm start between polls of several processes: each waits for the device


class Prepared(NamedTuple):
    """What a step's update takes, and the host's numbers of how it came to be."""

    batch: Any
    host: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Work:
    """What a phase does.

    Attributes:
      label: its name on screen.
      total: its steps.
      records: file of its metrics.
      prepare: (state, step) → what the update takes. Where it is interrupted it leaves ``data`` as it was.
      update: (state, prepared, step) → the state after the step, metrics on the device, the host's numbers.
      data: what a checkpoint holds beside the state: ``get_state`` and ``set_state``.
      samples: whether ``prepare`` waits for the update before it anyway, as sampling does.
      judge: makes an evaluation; None: there are none.
      every: steps between evaluations; 0: before the first and after the last alone.
    """

    label: str
    total: int
    records: str
    prepare: Callable[[TrainState, int], Prepared]
    update: Callable[[TrainState, Prepared, int], tuple[TrainState, Metrics, Mapping[str, float]]]
    data: Any
    samples: bool = False
    judge: Judge | None = None
    every: int = 0

    def due(self, step: int) -> bool:
        """Whether the policy is evaluated after a step."""
        return self.judge is not None and (
            step in (0, self.total) or (self.every > 0 and step % self.every == 0)
        )


class Pending(NamedTuple):
    """A step that has been dispatched and not been looked at."""

    step: int
    metrics: Metrics
    host: Mapping[str, float]
    batch: Any


class Phase:
    """A phase of a run under way.

    Args:
      session: what the run has at hand.
      checkpoints: of this phase.
      work: what it does.
      state: where it begins unless there is a checkpoint.
      latest: step of the checkpoint that it goes on from, of ``checkpoints.latest_step``; None: there is none.
    """

    def __init__(
        self, session: Session, checkpoints: Checkpoints, work: Work, state: TrainState, latest: int | None
    ) -> None:
        self.session, self.checkpoints, self.work, self.state = session, checkpoints, work, state
        self.folder, run = session.folder, session.run
        self.done = latest or 0  # steps whose update is in ``state``
        self.saved = latest  # the step of the newest checkpoint
        if latest is not None:
            self.state = checkpoints.restore(latest, state, work.data)
            session.say(f"{work.label}: resumed at step {latest} of {work.total}")
        rows = self._rewound(latest) if hosts.lead() else []
        if hosts.count() > 1:  # the last of them are all that is counted in a row
            rows = hosts.first_to_all(rows[-max(run.guards.max_skipped, run.monitors.patience) - 1 :])
        self.guards = Guards(run, session.warn, earlier=rows, warm_start=not work.samples)
        self.pending: Pending | None = None
        self.writer = MetricWriter(
            self.folder / work.records, total=work.total, start=self.done, label=work.label,
            console=session.console, print_every=run.logging.print_every,
            events=self.folder / "tensorboard" / work.label.replace(" ", "_") if run.logging.tensorboard else None,
        ) if hosts.lead() else None  # fmt: skip

    def run(self) -> TrainState:
        """Goes to the last step.

        Raises:
          Interrupted: asked to stop; the last finished step is saved.
          NonFiniteError, DivergenceError: the run stopped itself, see ``guards``.
          CheckpointError: a checkpoint could not be written.
          StorageError: another file could not.
        """
        try:
            try:
                self._go()
            except Interrupted:
                self._save_where_it_is()
                raise
        except Halt as halt:
            raise halt.error(self.last_good, self._dump(halt)) from None
        except OSError as error:
            self._end_if_alone(error)
            if not workdir.about_a_file(error):
                raise
            raise workdir.StorageError(
                f"step {self.done}: {workdir.reason(error, self.folder)}; last good checkpoint: {self.last_good}"
            ) from error
        except Exception as error:
            self._end_if_alone(error)
            raise
        finally:
            try:
                self.checkpoints.close()  # also when the run stops itself: what its message names must be whole
            finally:
                if self.writer is not None:
                    self.writer.close()
        return self.state

    def _end_if_alone(self, error: Exception) -> None:
        """Ends the process where another one is gone: closing the checkpoints would wait minutes for it."""
        if line := hosts.explain(error):
            hosts.end_process(1, f"error: step {self.done}: {line}")

    @property
    def last_good(self) -> str:
        """The newest checkpoint that was begun, for people."""
        return "none yet" if self.saved is None else str(self.checkpoints.directory / str(self.saved))

    def _go(self) -> None:
        work, watch = self.work, self.session.watch
        if work.due(self.done) and hosts.first_to_all(hosts.lead() and self._unevaluated(self.done)):
            self._evaluate()
        if self.saved is None:
            self._save()
        for step in range(self.done + 1, work.total + 1):
            if work.samples or hosts.count() == 1 or step % POLL_EVERY == 1:
                watch.check()
            prepared = work.prepare(self.state, step)
            if work.samples and self.pending and float(self.pending.metrics["guards/skipped"]):
                self._flush()  # before the next update, so that a dump has the state of its step
            self.state, metrics, host = work.update(self.state, prepared, step)
            self.done = step
            self._flush()
            self.pending = Pending(step, metrics, host, prepared.batch)
            save = step == work.total or step % self.session.run.checkpoint.every == 0
            if work.due(step) or save:
                self._flush()
            if work.due(step):
                self._evaluate()
            if save:
                self._save()

    def _flush(self) -> None:
        """Writes the record of the step before, once the checkpoint before it is whole, and looks at it."""
        if self.pending is None:
            return
        step, metrics, host, _ = pending = self.pending
        self.checkpoints.settle()
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if self.writer is not None:
            self.writer.write(step, {**values, **host})  # before it is looked at, so that a bad step can be seen
        try:
            self.guards.observe(step, values)
        except Halt as halt:
            halt.about = (pending, values)
            raise

    def _rewound(self, latest: int | None) -> list[dict[str, Any]]:
        """Drops what the files have of later steps and says what they lack of earlier ones; the records that stay."""
        work, rows = self.work, workdir.read_records(self.folder / self.work.records)
        if rows and latest is None:
            text = f"{work.records} has {len(rows)} steps but there is no checkpoint in {self.checkpoints.directory}"
            self.session.warn(f"{text}: the phase starts over")
        for name in (work.records, workdir.EVALUATIONS) if work.judge else (work.records,):
            workdir.rewind(self.folder / name, -1 if latest is None else latest)
        rows = [row for row in rows if latest is not None and row["step"] <= latest]
        found = {row["step"] for row in rows}
        if lost := [step for step in range(1, (latest or 0) + 1) if step not in found]:
            first = f"the first: {lost[0]}"
            self.session.warn(f"{work.records} has no record of {len(lost)} steps up to {latest}, {first}")
        if work.judge is not None and latest and self._unevaluated(0):
            self.session.warn(f"{workdir.EVALUATIONS} has no evaluation before the first step")
        return rows

    def _unevaluated(self, step: int) -> bool:
        """Whether the evaluation of a step was never made: the run was stopped before it, or in it."""
        return all(row["step"] != step for row in workdir.read_records(self.folder / workdir.EVALUATIONS))

    def _evaluate(self) -> None:
        run, step = self.session.run, self.done
        assert self.work.judge is not None  # ``due`` has said so
        results = self.work.judge(self.state.params)
        if self.writer is None:
            return
        if run.evaluation.keep_texts:
            (self.folder / workdir.TEXTS).mkdir(exist_ok=True)
            write_problems(self.folder / workdir.TEXTS / f"{step}.jsonl", results)
        path = self.folder / workdir.EVALUATIONS
        self.writer.note(path, step, record(run, results), sentence(run, score(run, results)))

    def _save(self) -> None:
        if self.writer is not None:
            for name in (self.work.records, workdir.EVALUATIONS):
                workdir.sync(self.folder / name)
        self.checkpoints.save(self.done, self.state, self.work.data)
        self.saved = self.done

    def _save_where_it_is(self) -> None:
        """The last finished step: nothing of the step in hand has changed the state or the data's position."""
        self._flush()
        if self.saved != self.done:
            self._save()
        self.checkpoints.settle()

    def _dump(self, halt: Halt) -> Path | None:
        """The batch and the state of the step that stopped the run; None for a phase without rollouts."""
        (step, _, _, batch), values = halt.about
        if not self.work.samples:
            return None
        config = json.loads((self.folder / workdir.CONFIG).read_text())
        try:
            return write_dump(
                self.folder, step=step, statistic=halt.statistic, values=values, batch=batch, state=self.state,
                config_values=config, exact=self.done == step and halt.whole, checkpoint=self.last_good,
            )
        except (OSError, CheckpointError) as error:  # what stopped the run is what its last line must say
            self.session.warn(f"the batch of step {step} could not be dumped: {error}")
            return None
