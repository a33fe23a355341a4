"""Whether a checkpoint's folder still holds what was written: its manifest has the size and SHA-256 of every file."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
# Orbax writes these two after the seal, into the folder that it then renames.
METADATA = "_CHECKPOINT_METADATA"
AFTER_SEAL = (METADATA, "commit_success.txt")
# What the first of them may hold: Orbax's managers, except those of ``run.checkpoint``, read it as they open and
# fail where it is anything else.
_KINDS: Mapping[str, Any] = {
    "item_handlers": (dict, str), "metrics": dict, "performance_metrics": dict, "custom_metadata": dict,
    "init_timestamp_nsecs": int, "commit_timestamp_nsecs": int,
}  # fmt: skip
THREADS = 4  # hashing leaves the interpreter's lock alone


def seal(folder: Path, step: int, stamp: Mapping[str, Any]) -> None:
    """Writes the manifest of a folder whose files are all written; it appears whole or not at all.

    Args:
      folder: a checkpoint's.
      step: what it is of.
      stamp: what else to remember of it, as JSON.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "numbers").write_text("1 2 3")
      >>> seal(folder, 4, {"by": "hand"})
      >>> fault(folder, 4)
      ''
      >>> _ = (folder / "numbers").write_text("1 2 4")
      >>> fault(folder, 4)
      'is damaged: numbers has another SHA-256 than when it was written'
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    names = sorted(name for name in names if name not in (MANIFEST, *AFTER_SEAL))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        digests = list(threads.map(lambda name: _digest(folder / name), names))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }
    content = {"step": step, "files": files, "stamp": dict(stamp)}
    writing = folder / f".writing-{MANIFEST}"
    with writing.open("w") as file:
        file.write(json.dumps(content | {"sha256": _digest_of(content)}, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    writing.replace(folder / MANIFEST)


def fault(folder: Path, step: int, *, under: str = "") -> str:
    """What is wrong with a checkpoint: 'is damaged: …' or 'is not finished: …', naming the file; '' if it is sound.

    Args:
      folder: the checkpoint's.
      step: what it should be of.
      under: the subfolder whose files are hashed; of the others only the sizes are compared. '' hashes all.
    """
    try:
        return _fault(folder, step, under)
    except OSError as error:
        return f"is damaged: {error.filename or folder} cannot be read: {error.strerror or error}"


def _fault(folder: Path, step: int, under: str) -> str:
    if not (folder / MANIFEST).exists():
        return f"is not finished: it has no {MANIFEST}, which early versions did not write"
    try:
        content = json.loads((folder / MANIFEST).read_text())
        written = content.pop("sha256")
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"is damaged: {MANIFEST} cannot be understood"
    if written != _digest_of(content):
        return f"is damaged: {MANIFEST} is not as it was written"
    if content["step"] != step:
        return f"is damaged: {MANIFEST} is of step {content['step']}"
    for name, (size, _) in files.items():  # sizes first: they cost nothing
        path = folder / name
        if not path.is_file():
            return f"is damaged: {name} is missing"
        if path.stat().st_size != size:
            return f"is damaged: {name} has {path.stat().st_size} bytes instead of {size}"
    if (folder / METADATA).exists() and not _is_metadata((folder / METADATA).read_bytes()):
        return f"is damaged: {METADATA} cannot be understood"
    chosen = [name for name in files if not under or name.startswith(f"{under}/")]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        for name, digest in zip(chosen, threads.map(lambda name: _digest(folder / name), chosen), strict=True):
            if digest != files[name][1]:
                return f"is damaged: {name} has another SHA-256 than when it was written"
    return ""


def stamp_of(folder: Path) -> dict[str, Any]:
    """What ``seal`` was given to remember."""
    return json.loads((folder / MANIFEST).read_text())["stamp"]


def steps(directory: Path) -> list[int]:
    """The steps that have a folder, sound or not, in order; [] where the directory does not exist.

    A folder is of a step only if its name is the step as it is written: 03 is somebody's copy.
    """
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(int(name) for name in names if str(int(name)) == name)


def newest_sound(directory: Path, *, under: str = "") -> tuple[int | None, dict[int, str]]:
    """The newest checkpoint that is sound, None if there is none, and the faults of those that are newer."""
    faults: dict[int, str] = {}
    for step in reversed(steps(directory)):
        what = fault(directory / str(step), step, under=under)
        if not what:
            return step, faults
        faults[step] = what
    return None, faults


def _is_metadata(content: bytes) -> bool:
    try:
        found = json.loads(content)
    except ValueError:  # also of what is no text
        return False
    if not isinstance(found, dict):
        return False
    return all(isinstance(found[name], kind) for name, kind in _KINDS.items() if found.get(name) is not None)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
