"""Keeps off the terminal what the libraries behind checkpoints say and also raise, or say where nothing is wrong."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from absl import logging

DISK = (  # what the system says of a disk or its rights
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EFBIG,
)


def reason(error: BaseException) -> str:
    """What the system says of a disk that is full or the like, wherever a library hid it; else the message's start.

    Example:
      >>> reason(ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [os_error_code='28']"))
      'No space left on device'
      >>> reason(KeyError("params"))
      "KeyError: 'params'"
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    for number in DISK:
        if os.strerror(number) in text:
            return os.strerror(number)
    return f"{type(error).__name__}: {text[:300]}"


def hush() -> None:
    """From now on tracebacks of Orbax's background stay off the terminal: what they tell is raised as well.

    Orbax logs them; and where a save fails, TensorStore's threads find Orbax's event loop closed, once a file.
    """
    logging.get_absl_logger().addFilter(_is_news)  # adding it again changes nothing
    earlier = sys.unraisablehook
    if getattr(earlier, "hushes", False):
        return

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            earlier(unraisable)

    hook.hushes = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _is_news(record: Any) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


@contextmanager
def errors_only() -> Iterator[None]:
    """Without Orbax's warnings that a folder is read only, as was asked, or an older checkpoint half deleted."""
    loudness = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(loudness)
