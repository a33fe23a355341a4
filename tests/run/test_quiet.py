"""Only what is raised anyway is kept off the terminal."""

from __future__ import annotations

import errno
import os
import sys
import types

import pytest

from salt_jax.run import quiet


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "a"), "Read-only file system"),
        (RuntimeError("INTERNAL: x\n y: Permission denied [os_error_code='13']"), "Permission denied"),
        (ValueError("Shapes\n do not match"), "ValueError: Shapes do not match"),
        (OSError("odd"), "OSError: odd"),
    ],
)
def test_reasons(error, words):
    assert quiet.reason(error) == words


def test_other_errors_of_threads_are_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    quiet.hush()
    hook = sys.unraisablehook
    quiet.hush()
    assert sys.unraisablehook is hook  # not once more around itself
    errors = [RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("Event loop is closed")]
    for error in errors:
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [seen.exc_value for seen in shown] == errors[1:]


@pytest.mark.parametrize(
    ("path", "traceback", "shown"),
    [
        ("/site-packages/orbax/checkpoint/a.py", True, False),
        ("/site-packages/orbax/checkpoint/a.py", None, True),
        ("/site-packages/jax/a.py", True, True),
    ],
)
def test_log_lines(path, traceback, shown):
    assert quiet._is_news(types.SimpleNamespace(pathname=path, exc_info=traceback)) == shown
