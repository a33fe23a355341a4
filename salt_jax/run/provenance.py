"""What a run was started with: versions, commit, devices. The same bits are promised only where these are the same.

A start's record also holds what the run is made from (``identity``) and its date, which later starts look up here.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

import salt_jax
from salt_jax.run import workdir

PROVENANCE = "provenance.jsonl"  # in the workdir, one line a start
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
_PACKAGE = Path(salt_jax.__file__).parent
_TIME, DATE, FINGERPRINTS = "time", "date", "fingerprints"
_NOT_VERSIONS = (_TIME, DATE, FINGERPRINTS, "details")


def stamp() -> dict[str, Any]:
    """Versions of this package, Python and the libraries, the checkout's commit, and the devices."""
    commit, modified = checkout(_PACKAGE)
    device = jax.devices()[0]
    return {
        "salt-jax": salt_jax.__version__, "commit": commit, "modified": modified,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": device.platform, "device": device.device_kind,
        "devices": jax.device_count(), "processes": jax.process_count(),
    }  # fmt: skip


def checkout(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the git checkout that tracks the folder's files, and whether any tracked file of it differs.

    (None, None) where git does not track the folder: a package that was installed, even below somebody's checkout;
    also where git is absent or does not answer.
    """
    if not _git(folder, "ls-files", "--", "."):
        return None, None
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit or None, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False,
            stdin=subprocess.DEVNULL, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed from one stamp to another, in the second one's order.

    Example:
      >>> differences({"jax": "0.10.2", "devices": 8}, {"jax": "0.12.0", "devices": 8})
      ['jax 0.10.2 -> 0.12.0']
    """
    names = [name for name in {**now, **before} if name not in _NOT_VERSIONS]
    pairs = {name: (before.get(name), now.get(name)) for name in names}
    return [f"{name} {_shown(old)} -> {_shown(new)}" for name, (old, new) in pairs.items() if old != new]


def _shown(value: Any) -> str:
    return "unknown" if value is None else str(value)


def starts(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's starts that can be understood: no run stops because of what others looked like."""
    path, found = folder / PROVENANCE, []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in found if isinstance(record, dict)]


def made_from(folder: Path) -> dict[str, Any]:
    """The newest record of a run that has fingerprints; {} where none has: it is from before there were any."""
    try:
        records = starts(folder)
    except OSError:
        records = []
    found = [record for record in records if isinstance(record.get(FINGERPRINTS), dict)]
    return found[-1] if found else {}


def first_date(*folders: str | Path) -> str:
    """The date and time at which the first of some runs was first started; now, where there is none of them.

    What a chat template takes for today is this, in every start: a prompt is the same all along.

    Args:
      *folders: workdirs, which need not exist: a run's own, then that of the run whose policy it starts from.

    Returns:
      ISO 8601, in local time and without a zone.
    """
    for folder in folders:
        try:
            records = starts(Path(folder).expanduser())
        except (OSError, RuntimeError):  # of a user whose home nobody knows
            continue
        for record in records:
            try:  # the time, in UTC, is all that early versions wrote
                date = datetime.datetime.fromisoformat(record.get(DATE) or record[_TIME])
            except (KeyError, TypeError, ValueError):
                continue
            return (date.astimezone() if date.tzinfo else date).replace(tzinfo=None).isoformat(timespec="seconds")
    return datetime.datetime.now().isoformat(timespec="seconds")


def note_start(folder: Path, now: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """Adds a line to the workdir's provenance, and says in one warning what differs from the line before it.

    Args:
      folder: the workdir; on several hosts the first process calls this.
      now: ``stamp()``, and what else is to be kept.
      warn: takes a line for people.
    """
    path, earlier = folder / PROVENANCE, starts(folder)
    if earlier and (changed := differences(earlier[-1], now)):
        text = "the same bits as without the interruption are not promised"
        warn(f"this run was last started with something else: {', '.join(changed)}; {text}")
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    workdir.append_record(path, {_TIME: time, **now})
