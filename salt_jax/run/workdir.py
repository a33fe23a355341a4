"""A run's folder: whose configuration it holds, and its line-by-line records."""

from __future__ import annotations

import fnmatch
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from salt_jax.run.quiet import DISK
from salt_jax.spec import ConfigError

CONFIG = "config.json"
METRICS = "metrics.jsonl"  # one JSON object a training step
EVALUATIONS = "evaluations.jsonl"  # one a held-out evaluation
TEXTS = "evaluations"  # folder of completions, one file an evaluation, with config.evaluation.keep_texts
WARM_START = "warm_start.jsonl"  # one a warm-start step
SUMMARY = "summary.json"  # before, after, wall time; written when the run has ended
_TEMPORARY = ".writing-"
SEEN_WITHIN = 60.0  # seconds
LOCK = ".lock"  # held by the process at work in the folder

# Keys that a resumed run may have changed: where and how it computes, what it says and keeps, not what it computes.
# Paths to the same content and the number of steps may have changed, too, where ``setup.may_change`` finds it so.
MAY_CHANGE = (
    "config.mesh.*", "config.checkpoint.*", "config.logging.*", "config.grading.*", "config.guards.*",
    "config.monitors.*", "config.policy.attention", "config.policy.remat", "config.sampling.wave_mib",
    "config.salt.memory_mib", "config.salt.vocab_chunk", "config.learner.microbatches", "config.learner.vocab_chunk",
)  # fmt: skip
SAME_BITS = ("config.checkpoint.*", "config.logging.*", "config.guards.*", "config.monitors.*")  # of these
STEPS = "config.steps"


class StorageError(RuntimeError):
    """A file of the run could not be written; the message names the step, the file and the last good checkpoint.

    Example:
      >>> raise StorageError("step 3: /runs/a/metrics.jsonl: No space left on device")
      Traceback (most recent call last):
      salt_jax.run.workdir.StorageError: step 3: /runs/a/metrics.jsonl: No space left on device
    """


def about_a_file(error: OSError) -> bool:
    """Whether an error is the file system's: of a file, or of a disk.

    Example:
      >>> about_a_file(OSError(28, "No space left on device")), about_a_file(TimeoutError())
      (True, False)
    """
    return error.filename is not None or error.errno in DISK


def reason(error: OSError, folder: Path) -> str:
    """What went wrong with which file; ``folder`` where the error does not say.

    Example:
      >>> reason(OSError(28, "No space left on device", "/runs/a/metrics.jsonl"), Path("/runs/a"))
      '/runs/a/metrics.jsonl: No space left on device'
    """
    return f"{error.filename or folder}: {error.strerror or error}"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all, also when the process is killed."""
    temporary = path.with_name(_TEMPORARY + path.name)
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def flat(values: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    """Nested sections as dotted keys.

    Example:
      >>> flat({"salt": {"rho": 1.0}, "steps": 3})
      {'config.salt.rho': 1.0, 'config.steps': 3}
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}.{key}")
        else:
            out[f"{prefix}.{key}"] = value
    return out


def changes(workdir: Path, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose value is another than that of the run in ``workdir``, each with the one there and the one here."""
    there, here = flat(json.loads((workdir / CONFIG).read_text())), flat(json.loads(json.dumps(config)))
    keys = sorted(there.keys() | here.keys())
    return {key: (there.get(key), here.get(key)) for key in keys if there.get(key) != here.get(key)}


def named(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether a dotted key is among some patterns.

    Example:
      >>> named("config.mesh.data", MAY_CHANGE), named("config.salt.rho", MAY_CHANGE)
      (True, False)
    """
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def check_workdir(workdir: Path, config: Mapping[str, Any], also: Mapping[str, str] = MappingProxyType({})) -> bool:
    """Whether a run may use ``workdir``; writes nothing.

    Args:
      workdir: the folder, which need not exist.
      config: the run's configuration as a nested dict.
      also: further keys that may have changed, each with '', or the reason why it may not.

    Returns:
      True if the folder holds a run with this configuration, or one that differs in ``MAY_CHANGE`` and ``also`` alone,
      which is then resumed.

    Raises:
      ConfigError: if it holds another configuration, naming the keys that differ, or files of no run.
    """
    try:
        there = workdir.exists()
    except OSError as error:  # a name that is too long
        raise ConfigError(f"--workdir={workdir}: {error.strerror}") from None
    if there and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file; name a folder")
    if not workdir.exists():
        return False
    if not (workdir / CONFIG).exists():
        others = [p.name for p in workdir.iterdir() if not p.name.startswith(_TEMPORARY) and p.name != LOCK]
        if others:
            raise ConfigError(
                f"--workdir={workdir} holds {min(others)} but no {CONFIG}: not a run; name another folder"
            )
        return False
    try:
        found = changes(workdir, config)
    except (ValueError, AttributeError, OSError):
        raise ConfigError(f"--workdir={workdir}: {CONFIG} cannot be read: not a run; name another folder") from None
    changed = {key: values for key, values in found.items() if not named(key, MAY_CHANGE) and also.get(key) != ""}
    if changed:
        first = list(changed.items())[:4]
        reasons = {key: f" ({also[key]})" for key in changed if key in also}
        shown = ", ".join(
            f"{key} is {there!r} there and {here!r} here{reasons.get(key, '')}" for key, (there, here) in first
        )
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise ConfigError(f"--workdir={workdir} holds another configuration: {shown}{more}; name another folder")
    return True


def check_equal(first: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """That this process was started with the configuration and the versions of the run's first process.

    Raises:
      ConfigError: naming what differs.

    Example:
      >>> check_equal({"config": {"seed": 0}}, {"config": {"seed": 1}})
      Traceback (most recent call last):
      salt_jax.spec.ConfigError: config.seed is 0 in process 0 and 1 here: start all processes alike
    """
    there, here = flat(first, ""), flat(json.loads(json.dumps(ours)), "")
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            what = f"{key.removeprefix('.')} is {there.get(key)!r} in process 0 and {here.get(key)!r} here"
            raise ConfigError(f"{what}: start all processes alike")


def check_shared(workdir: Path) -> None:
    """That this process sees the folder that the first process of the run has opened.

    Raises:
      ConfigError: if it does not.
    """
    until = time.monotonic() + SEEN_WITHIN
    while not (workdir / CONFIG).exists():  # a network file system remembers for a while that it was not there
        if time.monotonic() < until:
            list(workdir.parent.glob("*"))
            time.sleep(0.5)
            continue
        raise ConfigError(f"--workdir={workdir} is not shared: {CONFIG}, which process 0 has written, is not there")


def open_workdir(
    workdir: Path, config: Mapping[str, Any], also: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Makes the folder and stores the configuration, after ``check_workdir`` has allowed it.

    A summary of another number of steps goes: the run has not ended any more.

    Returns:
      Lines that a person should read: the keys that differ from the run that is resumed.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    found = changes(workdir, config) if (workdir / CONFIG).exists() else {}
    if found or not (workdir / CONFIG).exists():
        if STEPS in found:
            (workdir / SUMMARY).unlink(missing_ok=True)
        write_atomically(workdir / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    if not found:
        return []
    shown = ", ".join(f"{key} was {there!r} and is {here!r}" for key, (there, here) in found.items())
    bits = "" if all(named(key, SAME_BITS) or key in also for key in found) else "; the same bits are not promised"
    return [f"resumed with another configuration: {shown}{bits}"]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line cut off by a kill is left out.

    Raises:
      StorageError: another line is no JSON object with a step, naming it.
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is incomplete
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
            if not isinstance(records[-1]["step"], int):
                raise TypeError("a step is a number")
        except (ValueError, TypeError, KeyError):
            raise StorageError(f"{path}: line {number} is damaged: delete it, or what follows it too") from None
    return records


def rewind(path: Path, step: int) -> None:
    """Drops the records after ``step``: the resumed run computes them again, to the same numbers."""
    if path.exists():
        kept = [json.dumps(record) for record in read_records(path) if record["step"] <= step]
        write_atomically(path, "".join(line + "\n" for line in kept))


def sync(path: Path) -> None:
    """Puts a file's records on the disk itself: after a power cut they are there if the next checkpoint is."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one object as one line."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
