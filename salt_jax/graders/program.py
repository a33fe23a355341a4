"""What runs inside the confined process: the one file of this project that executes text.

Nothing here decides anything: the process is confined, runs the setup, reports that the program begins, runs it and its
tests, and, if all of that came to its end, writes what its parent gave it to write.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import types
from collections.abc import Iterable, Iterator
from typing import Any

from salt_jax.graders.confine import confine
from salt_jax.graders.solution import pieces

READY, REFUSED, USELESS = b"+", b"-", b"!"  # the program begins; the process is not confined; the setup fails
RESULT = 3  # the descriptor of the pipe to the parent


class Anything:
    """What nothing is known of: it can be called, its attributes are of its kind, and none equals another."""

    def __call__(self, *_: object, **__: object) -> Any:
        """Another one of its kind."""
        return type(self)()

    def __getattr__(self, name: str) -> Any:
        """Another one of its kind; Python's own attributes are not there."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(self)()


class Everything(Anything):
    """``Anything`` that equals whatever it is compared with."""

    def __eq__(self, _: object) -> bool:
        """True."""
        return True

    __hash__ = object.__hash__


def nothing(*_: object, **__: object) -> None:
    """A function that does nothing."""


def module() -> types.ModuleType:
    """A new module for a program, which its classes can look up."""
    found = types.ModuleType("program")
    sys.modules["program"] = sys.modules["__main__"] = found
    return found


def execute(text: str, place: types.ModuleType) -> None:
    """Runs a text in a module; whatever goes wrong is raised."""
    exec(compile(text, "<program>", "exec", dont_inherit=True), place.__dict__)


def examine(place: types.ModuleType, tests: Iterable[str], checked: str | None) -> None:
    """Runs tests, and the function ``check`` that they define, where there is something for it to check."""
    for text in tests:
        execute(text, place)
    if checked is not None:
        place.check(getattr(place, checked))


def run(
    *, completion: str, setup: str, late: str, prefix: str, entry_point: str | None, wanted: Iterable[str],
    tests: list[str], checked: str | None,
) -> Iterator[None]:  # fmt: skip
    """Runs setup, program and tests in one module; whatever goes wrong is raised. Yields before the program begins.

    Args:
      late: what of the setup uses the program's names.
      wanted: names that the tests use, see ``solution.pieces``.
      checked: what the tests' function ``check`` is called with; None for none.
    """
    place = module()
    execute(setup, place)
    yield
    for text in pieces(completion, prefix, entry_point, wanted):
        execute(text, place)
    execute(late, place)
    examine(place, tests, checked)


def run_without(
    *, setup: str, late: str, wanted: Iterable[str], tests: list[str], checked: str | None, **_: object
) -> Iterator[None]:
    """Runs tests without a program: all names they want do nothing, or are anything. Raises where tests see that."""
    yield
    for stand_in in (nothing, Anything(), Everything()):
        place = module()
        execute(setup, place)
        place.__dict__.update(dict.fromkeys(wanted, stand_in))
        execute(late, place)
        examine(place, tests, checked)


def child(
    result: int, nonce: bytes, folder: str, paths: list[str], sandbox: str, cpu_seconds: float, memory_mib: int,
    empty: bool, what: dict[str, Any],
) -> None:  # fmt: skip
    """The whole life of the process; never returns."""
    begun = REFUSED
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(RESULT):
            os.dup2(null, descriptor)
        os.dup2(result, RESULT)  # which may be what null was
        result = RESULT
        os.closerange(RESULT + 1, os.sysconf("SC_OPEN_MAX"))
        os.chdir(folder)
        os.environ.clear()
        os.environ.update({"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"})
        tempfile.tempdir = None
        sys.path[:] = within(sys.path, paths)
        sys.path_importer_cache.clear()
        random.seed(0)
        confine(folder, sandbox=sandbox, cpu_seconds=cpu_seconds, memory_mib=memory_mib, paths=paths)
        begun = USELESS
        steps = (run_without if empty else run)(**what)
        next(steps)
    except BaseException as error:
        os.write(result, begun + f"{type(error).__name__}: {error}".encode(errors="replace")[:1000])
        os._exit(1)
    try:
        os.write(RESULT, READY)
        next(steps, None)
        os.write(RESULT, nonce)
    finally:
        os._exit(0)


def within(folders: Iterable[str], paths: Iterable[str]) -> list[str]:
    """The folders that are below one of some paths: modules of elsewhere could not be read, and would be said to be.

    Example:
      >>> within(["/usr/lib/python3", "/home/me", ""], ["/usr"])
      ['/usr/lib/python3']
    """
    return [folder for folder in folders if any(f"{folder}/".startswith(f"{base}/") for base in paths)]
