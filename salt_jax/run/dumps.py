"""The batch and state of a step that stopped a run, in a folder from which ``experiments.replay`` repeats the step.

    DIR/dumps/step_12/   batch.npz    every array of the rollout batch
                         state/       the training state, by Orbax
                         reason.json  step, statistic, metrics, last good checkpoint, versions
                         config.json  the run's configuration
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from salt_jax.distributed import hosts
from salt_jax.learner.state import TrainState, vocabulary
from salt_jax.rollout import RolloutBatch
from salt_jax.run import provenance
from salt_jax.spec import ConfigError

DUMPS = "dumps"  # folder in a run's workdir
BATCH, STATE, REASON, CONFIG = "batch.npz", "state", "reason.json", "config.json"
EXTRA = "extra/"  # before the names of ``RolloutBatch.extra`` in batch.npz
_TEMPORARY = ".writing-"


class DumpError(OSError):
    """A dump could not be written; nothing of it is left.

    Example:
      >>> raise DumpError("runs/a/dumps/step_12: No space left on device")
      Traceback (most recent call last):
      salt_jax.run.dumps.DumpError: runs/a/dumps/step_12: No space left on device
    """


@dataclasses.dataclass(frozen=True)
class Dump:
    """What ``read_dump`` found.

    Attributes:
      path: the folder.
      step: that stopped the run.
      statistic: why.
      metrics: of the step, as they were recorded.
      exact: whether the state's parameters are those before the step: all its updates were skipped.
      checkpoint: the last good one, for people.
      vocab_size: of the policy.
      versions: ``provenance.stamp`` of the process that wrote it.
      config: the run's configuration as a nested dict.
      batch: NumPy arrays.
    """

    path: Path
    step: int
    statistic: str
    metrics: Mapping[str, float]
    exact: bool
    checkpoint: str
    vocab_size: int
    versions: Mapping[str, Any]
    config: Mapping[str, Any]
    batch: RolloutBatch


def write_dump(
    folder: Path,
    *,
    step: int,
    statistic: str,
    values: Mapping[str, float],
    batch: RolloutBatch,
    state: TrainState,
    config_values: Mapping[str, Any],
    exact: bool,
    checkpoint: str,
) -> Path:
    """Writes a dump whole or not at all; of several processes all must call it, and the first one writes.

    Args:
      folder: the run's workdir.
      step: that stopped the run.
      statistic: why.
      values: metrics of the step.
      batch: that the step was about to learn from.
      state: as it is now.
      config_values: the run's configuration as a nested dict.
      exact: whether the state's parameters are those before the step.
      checkpoint: the last good one, for people.

    Returns:
      The dump's folder: DIR/dumps/step_N, or step_N.1 and so on where there is another one already. A run that is
      started again and stops as it did before has the dump that it had: none is written.

    Raises:
      DumpError: a full disk, a folder that cannot be written; the same on all processes where the first one fails.
    """
    parent = folder.absolute() / DUMPS
    reason = {
        "step": step, "statistic": statistic, "metrics": dict(values), "exact": exact, "checkpoint": checkpoint,
        "vocab_size": vocabulary(state.params), "versions": provenance.stamp(),
    }  # fmt: skip
    if same := _in_lead(parent, lambda: _written(parent, step, reason, config_values)):
        return parent / same
    arrays = hosts.fetch(_leaves(batch))
    name = _in_lead(parent, lambda: _begin(parent, step, arrays, reason, config_values))
    temporary = parent / (_TEMPORARY + name)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:  # all processes write their parts
            checkpointer.save(temporary / STATE, args=ocp.args.StandardSave(_present(state)))
        _in_lead(parent, lambda: str(temporary.rename(parent / name)))
    except (OSError, ValueError, RuntimeError) as error:  # what TensorStore raises differs by file system
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, DumpError):
            raise
        raise DumpError(f"{parent / name}: {' '.join(str(error).split())[:200]}") from error
    return parent / name


def _in_lead(parent: Path, write: Any) -> str:
    """What ``write`` returns in the first process, on all; its failure on all, too."""
    done: tuple[str | None, str] = (None, "")
    if hosts.lead():
        try:
            done = (None, write())
        except OSError as error:
            done = (f"{error.filename or parent}: {error.strerror or error}", "")
    failed, result = hosts.first_to_all(done)
    if failed is not None:
        raise DumpError(failed)
    return result


def _written(parent: Path, step: int, reason: Any, config_values: Any) -> str:
    """Name of the dump that says all of this already, by whatever versions; '' if there is none."""
    wanted = _said(reason), json.loads(json.dumps(config_values))
    for path in sorted((*parent.glob(f"step_{step}"), *parent.glob(f"step_{step}.*"))):
        if not ((path / BATCH).is_file() and (path / STATE).is_dir()):
            continue
        try:
            found = json.loads((path / REASON).read_bytes()), json.loads((path / CONFIG).read_bytes())
        except (OSError, ValueError):  # damaged
            continue
        if isinstance(found[0], dict) and (_said(found[0]), found[1]) == wanted:
            return path.name
    return ""


def _said(reason: Mapping[str, Any]) -> str:
    """As text: NaN is not equal to itself."""
    return json.dumps({name: value for name, value in reason.items() if name != "versions"}, sort_keys=True)


def _begin(parent: Path, step: int, arrays: Any, reason: Any, config_values: Any) -> str:
    """All of a dump but its state, in a temporary folder; the name that it will have."""
    parent.mkdir(parents=True, exist_ok=True)
    name, again = f"step_{step}", 0
    while (parent / name).exists():
        again += 1
        name = f"step_{step}.{again}"
    temporary = parent / (_TEMPORARY + name)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    try:
        np.savez(temporary / BATCH, **arrays)
        (temporary / REASON).write_text(json.dumps(reason, indent=2) + "\n")
        (temporary / CONFIG).write_text(json.dumps(config_values, indent=2, sort_keys=True) + "\n")
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return name


def read_dump(path: str | Path) -> Dump:
    """Reads all of a dump but its state.

    Raises:
      ConfigError: no dump, or one that is damaged; one line.
    """
    path = Path(path)
    if not (path / REASON).is_file():
        raise ConfigError(f"{path} is not a dump: it has no {REASON}")
    reading = REASON
    try:
        reason = json.loads((path / REASON).read_text())
        known = {field.name: reason[field.name] for field in dataclasses.fields(Dump) if field.name in reason}
        reading = CONFIG
        config = json.loads((path / CONFIG).read_text())
        reading = BATCH
        with (path / BATCH).open("rb") as file, np.load(file) as arrays:  # object arrays are refused
            plain = {name: arrays[name] for name in arrays.files if not name.startswith(EXTRA)}
            extra = {name.removeprefix(EXTRA): arrays[name] for name in arrays.files if name.startswith(EXTRA)}
        reading = f"{REASON} or {BATCH}"
        return Dump(path=path, config=config, batch=RolloutBatch(**plain, extra=extra), **known)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is damaged: {reading}: {' '.join(str(error).split())[:200]}") from None


def restore_state(dump: Dump, state: TrainState) -> TrainState:
    """The dump's state, laid out like ``state``, whose leaves may be shapes with shardings.

    Raises:
      ConfigError: it is damaged, or of other shapes.
    """

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            args = ocp.args.StandardRestore(jax.tree.map(abstract, _present(state)))
            restored = checkpointer.restore(dump.path.absolute() / STATE, args=args)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{dump.path} is damaged: {STATE}: {' '.join(str(error).split())[:200]}") from None
    # Fresh buffers of JAX's own: what a reader hands out may alias memory that must not be donated.
    return dataclasses.replace(state, **jax.tree.map(jnp.copy, restored))


def _present(state: TrainState) -> dict[str, Any]:
    """The fields of a state that are not None."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _leaves(batch: RolloutBatch) -> dict[str, Any]:
    plain = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "extra"}
    return plain | {EXTRA + name: value for name, value in batch.extra.items()}
