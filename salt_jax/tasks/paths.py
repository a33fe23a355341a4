"""Paths as people write them: what a leading ~ is, and what no path of this machine begins with."""

from __future__ import annotations

import os
import re

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
LFS = b"version https://git-lfs.github.com/spec"  # how the file begins that Git keeps in the place of a large one
LFS_HINT = "is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"


def expanded(path: str | os.PathLike[str]) -> str:
    """A path with ``~`` as the home folder, ``~name`` as that of another user.

    Every path that a person names goes through here: nothing is ever written to a folder called '~', '$HOME' or 'gs:'.
    Such a name of one's own is written with ./ in front.

    Args:
      path: '' stays ''.

    Raises:
      ValueError: the home of a user who is not known here, a variable that no shell has read, an address of a network.

    Example:
      >>> expanded("runs/a"), expanded("~/runs/a") == os.path.join(os.path.expanduser("~"), "runs/a")
      ('runs/a', True)
      >>> expanded("$HOME/runs/a")
      Traceback (most recent call last):
      ValueError: $HOME/runs/a begins with a variable, which only a shell reads: write it unquoted, or the path in full
    """
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("~"):
        raise ValueError(f"{text} is in the home folder of a user who is not known here; write the path in full")
    if text.startswith("$"):
        raise ValueError(
            f"{text} begins with a variable, which only a shell reads: write it unquoted, or the path in full"
        )
    if _ADDRESS.match(text):
        raise ValueError(f"{text} is an address; allowed: paths on this machine (nothing is fetched or sent)")
    return text


def check_pointer(path: str | os.PathLike[str]) -> None:
    """ValueError if a file is a Git LFS pointer: a clone without ``git lfs`` has those in the place of large files."""
    with open(path, "rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(f"{os.fspath(path)} {LFS_HINT}")
