"""Digests of files: of the whole content, or, of files of weights, of headers and sampled blocks.

Where a file is large its digest is remembered by its size and times, in the user's cache folder: a model is sampled
once, not at every start. Nothing depends on that folder; where it cannot be read or written, digests are made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

WHOLE = 64 << 20  # bytes up to which a file is read whole even where it may be sampled
REMEMBERED = 16 << 20  # bytes from which a digest is remembered
BLOCK = 1 << 16  # bytes of a sampled block
BLOCKS = 512  # of a file whose inside is not known
HEAD = 8 << 20  # bytes at the beginning of such a file, where formats have their names
LONGEST_HEADER = 128 << 20  # bytes
FORM = 1  # of the digests of sampled files; to be raised when the same file comes to have another
SETTLED = 2.0  # seconds since a file's last change before a digest of it is remembered: clocks of files are coarse


def of_file(path: str | os.PathLike[str], *, sampled: bool = True) -> str:
    """A text that is another one where the content is; the file's name and place do not matter.

    ============================  =====================================================
    file                          digest
    ============================  =====================================================
    to 64 MiB, or not ``sampled``  SHA-256, as ``sha256sum`` prints it
    larger, safetensors           size, header, and of each tensor begin, middle and end
    larger, anything else         size, begin, end, and 512 blocks between
    ============================  =====================================================

    Args:
      path: of a file; links are followed.
      sampled: whether a large file may be sampled: right for weights, of which training changes nearly all.

    Raises:
      OSError: it is absent, no file, or cannot be read.

    Example:
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = (Path(folder) / "a").write_text("1"), (Path(folder) / "b").write_text("1")
      ...     of_file(f"{folder}/a") == of_file(f"{folder}/b"), of_file(f"{folder}/a")[:8]
      (True, '6b86b273')
    """
    path = Path(os.path.expanduser(path))
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):  # to open a pipe would wait for somebody to write to it
        raise OSError(None, "is no file", str(path))
    if facts.st_size < REMEMBERED:
        return _whole(path)
    entry, known = _entry(path, sampled), _state(facts)
    if (found := _recalled(entry, known)) is not None:
        return found
    digest = _sample(path, facts.st_size) if sampled and facts.st_size > WHOLE else _whole(path)
    after = path.stat()
    if _state(after) == known and time.time() - max(after.st_mtime, after.st_ctime) > SETTLED:
        _remember(entry, known | {"digest": digest})
    return digest


def combined(parts: Iterable[str]) -> str:
    """One digest of several texts in their order.

    Example:
      >>> combined(["a", "bc"]) == combined(["ab", "c"]), len(combined([]))
      (False, 64)
    """
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def _whole(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sample(path: Path, size: int) -> str:
    digest = hashlib.sha256(f"{FORM} {size}".encode())
    with path.open("rb", buffering=0) as file:
        for start, length in _spans(file, size):
            file.seek(start)
            digest.update(_read(file, length))
    return f"sampled:{digest.hexdigest()}"


def _read(file: IO[bytes], length: int) -> bytes:
    parts = []
    while length > 0 and (part := file.read(length)):  # one read gives at most 2 GiB
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _spans(file: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """Where to read, and how many bytes."""
    tensors = _tensors(file, size)
    if tensors is None:
        yield 0, min(HEAD, size)
        for i in range(BLOCKS):
            yield i * (size - BLOCK) // max(BLOCKS - 1, 1), BLOCK
        return
    begin, places = tensors
    yield 0, begin
    for start, end in places:
        starts = (start, (start + end - BLOCK) // 2, end - BLOCK)
        yield from ((at, BLOCK) for at in starts) if end - start > 3 * BLOCK else [(start, end - start)]


def _tensors(file: IO[bytes], size: int) -> tuple[int, list[tuple[int, int]]] | None:
    """Of a safetensors file: where its data begins, and each tensor's first and last byte; None for other files."""
    file.seek(0)
    length = int.from_bytes(_read(file, 8), "little")
    if not 1 < length <= min(size - 8, LONGEST_HEADER):
        return None
    try:
        header = json.loads(_read(file, length))
        offsets = [facts["data_offsets"] for name, facts in header.items() if name != "__metadata__"]
        places = sorted((8 + length + int(start), 8 + length + int(end)) for start, end in offsets)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return (8 + length, places) if all(8 + length <= start <= end <= size for start, end in places) else None


def _state(facts: os.stat_result) -> dict[str, int]:
    """What is another where a file was written; a copy can be given old times, but not an old time of change."""
    return {"size": facts.st_size, "mtime": facts.st_mtime_ns, "ctime": facts.st_ctime_ns, "inode": facts.st_ino}


def _entry(path: Path, sampled: bool) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = combined([str(FORM), str(sampled), os.path.realpath(path)])
    return Path(home) / "salt-jax" / "fingerprints" / f"{name[:32]}.json"


def _recalled(entry: Path, known: dict[str, int]) -> str | None:
    try:
        found = json.loads(entry.read_text())
        same = all(found[name] == value for name, value in known.items())
        return found["digest"] if same and isinstance(found["digest"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(entry: Path, content: dict[str, int | str]) -> None:
    """Whole or not at all, whoever else writes; not at all where the folder cannot be written."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=entry.parent, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps(content))
            os.replace(name, entry)
        except OSError:
            os.unlink(name)
    except OSError:
        pass
