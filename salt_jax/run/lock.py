"""One process a workdir: a lock that the kernel takes back from a process that is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from salt_jax.run.workdir import LOCK
from salt_jax.spec import ConfigError


@contextlib.contextmanager
def locked(folder: Path, warn: Callable[[str], None] = print) -> Iterator[None]:
    """Holds a workdir, made if absent, for this process; on several hosts the first process calls this.

    The file stays behind: what counts is who holds it.

    Args:
      folder: the workdir.
      warn: takes a line for people, where the file system has no locks.

    Raises:
      ConfigError: if another process holds it, naming that process.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> with locked(folder):
      ...     sorted(path.name for path in folder.iterdir())
      ['.lock']
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise ConfigError(f"--workdir={folder} cannot be written to: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "that has only just begun"
            raise ConfigError(f"--workdir={folder} is in use by process {who}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            warn(f"--workdir={folder} cannot be locked ({reason}): see to it that no second run uses it")
        else:
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
