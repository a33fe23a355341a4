"""Removing what is in a folder whose owner was not to be trusted."""

from __future__ import annotations

import contextlib
import os
import stat


def empty_folder(folder: str) -> None:
    """Removes all that is in a folder, however deep it is and whatever its permissions are.

    Folders inside folders are first moved up, so that no path grows and nothing recurses; links are not followed.

    Raises:
      OSError: if something cannot be removed.

    Example:
      >>> import os, tempfile
      >>> folder = tempfile.mkdtemp()
      >>> os.makedirs(os.path.join(folder, "a", "b"))
      >>> empty_folder(folder); os.listdir(folder)
      []
      >>> os.rmdir(folder)
    """
    os.chmod(folder, stat.S_IRWXU)
    moved = 0
    while folders := [entry.path for entry in _emptied(folder)]:
        for inner in folders:
            os.chmod(inner, stat.S_IRWXU)
            for entry in _emptied(inner):
                os.chmod(entry.path, stat.S_IRWXU)  # a folder's own permission is asked for when it moves
                while True:
                    moved += 1
                    target = os.path.join(folder, f"moved-{moved}")
                    if not os.path.lexists(target):
                        break
                os.rename(entry.path, target)
            os.rmdir(inner)


def remove_folder(folder: str) -> None:
    """Removes a folder with all that is in it, see ``empty_folder``; nothing where there is none.

    Raises:
      OSError: if something cannot be removed.
    """
    if os.path.lexists(folder):
        empty_folder(folder)
        os.rmdir(folder)


def _emptied(folder: str) -> list[os.DirEntry[str]]:
    """Removes a folder's files and links; the folders that are left."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
    return folders
