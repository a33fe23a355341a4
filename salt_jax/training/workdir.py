"""A run's folder: whose configuration it holds, and its line-by-line records."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salt_jax.training.settings import ConfigError

CONFIG = "config.json"
METRICS = "metrics.jsonl"  # one JSON object a training step
EVALUATIONS = "evaluations.jsonl"  # one a held-out evaluation
TEXTS = "evaluations"  # folder of completions, one file an evaluation, with config.evaluation.keep_texts
WARM_START = "warm_start.jsonl"  # one a warm-start step
SUMMARY = "summary.json"  # before, after, wall time; written when the run has ended
_TEMPORARY = ".writing-"


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


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run may use ``workdir``; writes nothing.

    Args:
      workdir: the folder, which need not exist.
      config: the run's configuration as a nested dict.

    Returns:
      True if the folder holds a run with this configuration, which is then resumed.

    Raises:
      ConfigError: if it holds another configuration, naming the keys that differ, or files of no run.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file; name a folder")
    if not workdir.exists():
        return False
    if not (workdir / CONFIG).exists():
        others = [p.name for p in workdir.iterdir() if not p.name.startswith(_TEMPORARY)]
        if others:
            raise ConfigError(
                f"--workdir={workdir} holds {min(others)} but no {CONFIG}: not a run; name another folder"
            )
        return False
    saved = flat(json.loads((workdir / CONFIG).read_text()))
    ours = flat(json.loads(json.dumps(config)))
    changed = [key for key in sorted(saved.keys() | ours.keys()) if saved.get(key) != ours.get(key)]
    if changed:
        shown = ", ".join(f"{key} is {saved.get(key)!r} there and {ours.get(key)!r} here" for key in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise ConfigError(f"--workdir={workdir} holds another configuration: {shown}{more}; name another folder")
    return True


def open_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes the folder and stores the configuration, after ``check_workdir`` has allowed it."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / CONFIG).exists():
        write_atomically(workdir / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is incomplete


def rewind(path: Path, step: int) -> None:
    """Drops the records after ``step``: the resumed run computes them again, to the same numbers."""
    if path.exists():
        kept = [json.dumps(record) for record in read_records(path) if record["step"] <= step]
        write_atomically(path, "".join(line + "\n" for line in kept))


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one object as one line."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
