"""Orbax checkpoints of parameters, training state and data position: asynchronous, atomic, sealed, and checked.

A checkpoint is written beside its place, sealed there with the size and hash of every file (``policy.integrity``) and
then renamed to its step: a folder with a step's name is whole, or was damaged later, which the seal shows. Older
checkpoints are deleted after that. So a kill at any moment leaves all that was there, and at most a folder with
another name, which the next start removes.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from salt_jax.distributed import hosts
from salt_jax.learner.state import TrainState
from salt_jax.models import integrity, run_steps
from salt_jax.run.quiet import errors_only, hush, reason

DAMAGED = "damaged"  # folder beside the phases' where a run puts aside what it cannot use


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; one line that names the step and the path."""


@dataclasses.dataclass
class _NewestAndBest:
    """Orbax's question which checkpoints to preserve: the newest few, and one more that is asked for."""

    keep: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        oldest = len(checkpoints) - self.keep
        return [i >= oldest or info.step == self.best for i, info in enumerate(checkpoints)]


class _Step(ocp.path.step.Metadata):
    """A checkpoint for Orbax, which would read its time from a file that no seal covers; nothing here asks for it."""

    commit_timestamp = datetime.datetime.min.replace(tzinfo=datetime.UTC)


class _Steps(ocp.path.step.NameFormat):
    """Which folders are checkpoints, for Orbax: those that are for ``policy.integrity``."""

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[_Step]:
        return (self.find_step(base_path, step) for step in integrity.steps(Path(base_path)))

    def find_step(self, base_path: Any, step: int) -> _Step:
        path = Path(base_path) / str(step)
        if not path.is_dir():
            raise ValueError(f"{path} is not there")
        return _Step(step=step, path=base_path / str(step))


class Checkpoints:
    """The checkpoints of one phase of a run, a step a folder.

    A save returns when the arrays are on the host; writing and hashing go on in the background. Where there are
    several processes, all make this object and call its methods in the same order; the first one verifies, seals,
    deletes and decides.

    Args:
      directory: absolute folder, made here.
      keep: newest checkpoints kept; None opens another run's folder for reading only.
      warn: takes a line that a person should read.
      stamp: what every checkpoint remembers, as JSON: provenance, configuration.
      scores: what the evaluations so far say of each step; the best step's checkpoint is kept, too.
      best_mode: whether 'max' or 'min' of the scores is best.

    Raises:
      CheckpointError: if the folder cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        keep: int | None,
        *,
        warn: Callable[[str], None] = print,
        stamp: Mapping[str, Any] | None = None,
        scores: Callable[[], Mapping[int, float]] | None = None,
        best_mode: str = "max",
    ) -> None:
        self.directory = directory
        self._read_only, self._warn, self._stamp = keep is None, warn, dict(stamp or {})
        self._scores, self._best_mode = scores, best_mode
        self._saving: int | None = None  # the step of a save that has not been settled
        self._failed = False
        self._kept = _NewestAndBest(keep or 0)
        hush()
        if keep is None:  # neither cleans up nor deletes anything there
            options = ocp.CheckpointManagerOptions(
                read_only=True, save_interval_steps=0, create=False, step_name_format=_Steps()
            )
        else:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                step_name_format=_Steps(),
                cleanup_tmp_directories=True,
                # Directories made later, in the background, would keep a process that fails there for five minutes.
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._seal, create_directories_asynchronously=False
                ),
            )
        try:
            with errors_only():
                self._manager = ocp.CheckpointManager(directory, options=options)
        except OSError as error:
            raise CheckpointError(f"the folder of checkpoints {directory} cannot be used: {reason(error)}") from error

    def latest_step(self) -> int | None:
        """The newest sound checkpoint's step; None where a run starts over.

        What is newer and not sound is named in a warning and, unless this is another run's folder, moved to damaged/
        beside it. Nothing is deleted.

        Raises:
          CheckpointError: if no checkpoint is sound and one of them was of a step after 0.
        """
        self.settle()
        step = _of_first_process(self._newest)
        if not self._read_only:
            with errors_only():
                self._manager.reload()
        return step

    def _newest(self) -> int | None:
        newest, faults = integrity.newest_sound(self.directory)
        if newest is None and max(faults, default=0) > 0:
            advice = "repair one, or name another workdir"
            raise CheckpointError(f"{self.directory} has no sound checkpoint: {run_steps.listed(faults)}; {advice}")
        for step, what in faults.items():
            text = f"checkpoint {self.directory / str(step)} {what}; "
            text += "the phase starts over" if newest is None else f"step {newest} is used instead"
            if not self._read_only:
                text += f"; it is now {self._put_aside(step)}"
            self._warn(text)
        return newest

    def _put_aside(self, step: int) -> Path:
        name = f"{self.directory.name}_{step}"
        folder, again = self.directory.parent / DAMAGED, 0
        while (place := folder / (f"{name}.{again}" if again else name)).exists():
            again += 1
        try:
            folder.mkdir(exist_ok=True)
            return (self.directory / str(step)).rename(place)
        except OSError as error:
            raise CheckpointError(f"{self.directory / str(step)} cannot be moved: {reason(error)}") from error

    def best_step(self) -> int | None:
        """The step with the best score among the checkpoints; None where none has one."""
        return self._best_of(self._sealed())

    def _best_of(self, steps: Sequence[int]) -> int | None:
        try:
            scores = {} if self._scores is None else self._scores()
        except ValueError as error:
            raise CheckpointError(f"the best checkpoint is not known: {error}") from None
        return run_steps.best_of(scores, steps, self._best_mode)

    def save(self, step: int, state: TrainState, data: Any) -> None:
        """Saves the state, and the position of the data, as they are now; waits for an earlier save to end.

        Args:
          step: of the checkpoint; none may be there.
          state: on all processes' devices.
          data: has ``get_state()``, JSON or JSON as bytes, and ``set_state()``. The first process's is saved.

        Raises:
          CheckpointError: if this cannot be written, or an earlier save has failed.
        """
        self.settle()
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            state=ocp.args.StandardSave(_rest(state)),
            data=ocp.args.JsonSave(_position(data)),
        )
        if self._scores is not None and hosts.lead():  # it is the first process that deletes
            self._kept.best = self._best_of([*self._sealed(), step])
        self._saving = step
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._failure(error) from error

    def settle(self) -> None:
        """Returns when the last save is whole, sealed and in its place; at once when nothing is being saved.

        Raises:
          CheckpointError: if it failed. Calls after that return at once.
        """
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
            if hosts.lead() and not (self._folder(self._saving) / integrity.MANIFEST).exists():
                raise FileNotFoundError(f"it has no {integrity.MANIFEST}")
        except Exception as error:
            raise self._failure(error) from error
        self._saving = None

    def restore(self, step: int, state: TrainState, data: Any) -> TrainState:
        """The saved state, laid out like ``state``, of which shapes and shardings are enough; sets ``data``'s position.

        Raises:
          CheckpointError: if it cannot be read, or is of another state.
        """
        restored = self._restore(
            step,
            params=ocp.args.StandardRestore(_abstract(state.params)),
            state=ocp.args.StandardRestore(_abstract(_rest(state))),
            data=ocp.args.JsonRestore(),
        )
        _go_on(data, restored["data"])
        # Fresh buffers of JAX's own: what a reader hands out may alias memory that must not be donated.
        leaves, tree = jax.tree.flatten((restored.pop("params"), restored.pop("state")))
        for i, leaf in enumerate(leaves):  # one by one, so that there are never two of all
            leaves[i] = jnp.copy(leaf)
        params, rest = jax.tree.unflatten(tree, leaves)
        return dataclasses.replace(state, params=params, **rest)

    def restore_params(self, step: int, params: Any) -> Any:
        """Only the parameters, laid out like ``params``; else as ``restore``."""
        return jax.tree.map(
            jnp.copy, self._restore(step, params=ocp.args.StandardRestore(_abstract(params)))["params"]
        )

    def _restore(self, step: int, **items: Any) -> Any:
        self.settle()
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())
        except Exception as error:
            raise CheckpointError(f"{self._folder(step)} cannot be restored: {reason(error)}") from error

    def close(self) -> None:
        """Settles, and releases the manager's threads.

        A failure of the last save is raised, but only warned about while another exception is on its way out.
        """
        on_its_way = sys.exception()
        try:
            self.settle()
        except CheckpointError as error:
            if on_its_way is None:
                raise
            self._warn(str(error))
        finally:
            try:
                self._manager.close()
            except Exception:
                if not self._failed:  # after a failure Orbax raises the same again
                    raise
            self._remove_unfinished()

    def _seal(self) -> None:
        """Called in the first process's background, when everything is written and nothing has its name yet."""
        step = self._saving
        assert step is not None
        written = sorted(self.directory.glob(f"{step}.orbax-checkpoint-tmp*")) or [self._folder(step)]
        integrity.seal(written[-1], step, self._stamp)

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def _sealed(self) -> list[int]:
        steps = integrity.steps(self.directory)
        return [step for step in steps if (self._folder(step) / integrity.MANIFEST).exists()]

    def _failure(self, error: Exception) -> CheckpointError:
        """What to raise for a save that failed with ``error``; nothing is being saved any more."""
        step, self._saving, self._failed = self._saving, None, True
        self._remove_unfinished()
        good = [other for other in self._sealed() if other != step]
        last = f"the last good one is {self._folder(good[-1])}" if good else "there is none yet"
        return CheckpointError(
            f"step {step}: the checkpoint could not be written to {self.directory}: {reason(error)}; {last}"
        )

    def _remove_unfinished(self) -> None:
        """After a failure: room for whatever else is on that disk. Where it fails the next start does it."""
        if self._failed and hosts.lead():
            for folder in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(folder, ignore_errors=True)


def chosen_step(folder: Path, choice: str | int, warn: Callable[[str], None]) -> int:
    """``run_steps.choose`` by the first process for all.

    Raises:
      CheckpointError: as it raises ValueError.
    """

    def choose() -> int:
        try:
            return run_steps.choose(folder, choice, warn)
        except ValueError as error:
            raise CheckpointError(str(error)) from None

    step = _of_first_process(choose)
    assert step is not None
    return step


def _of_first_process(decide: Callable[[], int | None]) -> int | None:
    """The first process's decision in every process; where it stops with a CheckpointError, the others do, too."""
    if hosts.count() == 1:
        return decide()
    told: tuple[int | None, str | None] = None, None
    if hosts.lead():
        try:
            told = decide(), None
        except CheckpointError as error:
            told = None, str(error)
    step, problem = hosts.first_to_all(told)
    if problem is not None:
        raise CheckpointError(problem)
    return step


def _rest(state: TrainState) -> dict[str, Any]:
    """The state without its parameters, which are an item of their own: other runs start from them."""
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}
    return {name: value for name, value in rest.items() if value is not None}


def _abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings to restore onto: those of this run, not those that were saved."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _position(data: Any) -> dict[str, Any]:
    """The position of the data as JSON: a copy, since it is written while the data moves on."""
    state = data.get_state()
    return {"text": state.decode()} if isinstance(state, bytes) else {"value": json.loads(json.dumps(state))}


def _go_on(data: Any, position: Mapping[str, Any]) -> None:
    data.set_state(position["text"].encode() if "text" in position else position["value"])
