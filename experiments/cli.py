"""What the runnable studies share: flags, one-line errors and exit statuses."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from salt_jax.graders import GraderError
from salt_jax.training import hosts
from salt_jax.training.checkpoint import CheckpointError
from salt_jax.training.collect import CollectionError
from salt_jax.training.config import ConfigError, unknown_key
from salt_jax.training.guards import DivergenceError, NonFiniteError
from salt_jax.training.preemption import Interrupted
from salt_jax.training.workdir import StorageError

BAD_INPUT = 2  # wrong input: nothing was compiled, nothing written
STOPPED = 1  # the run stopped itself; its one line names the step, what happened and the last good checkpoint
INTERRUPTED = 130  # Ctrl-C before the run had begun; one under way ends with 128 + the signal, saved: 130, or 143
STOPS = (NonFiniteError, DivergenceError, CheckpointError, StorageError, CollectionError, GraderError)

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, with its argument after a colon: configs/arithmetic.py:small", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a run with the same configuration is resumed.")


def parse_flags(argv: list[str]) -> Any:
    """Reads the command line into ``CONFIG`` and ``WORKDIR``.

    Raises:
      ConfigError: one line for whatever is wrong with it.
    """
    _check_file(argv)
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        raise ConfigError(_bad_override(argv) or _one_line(error)) from None
    except (flags.Error, TypeError, ValueError, ImportError, OSError, RecursionError) as error:  # of a name of a page
        raise ConfigError(_one_line(error)) from None
    if rest[1:]:
        raise ConfigError(f"{rest[1]!r} is not a flag; write --name=value")
    for flag in (CONFIG, WORKDIR):
        if not flag.value:
            raise ConfigError(f"--{flag.name} is missing")
    try:
        CONFIG.value.keys()
    except (OSError, AttributeError) as error:  # a file that could not be read is an error only when it is asked for
        raise ConfigError(f"--config: {_one_line(error)}") from None
    return CONFIG.value


def _config_file(argv: list[str]) -> tuple[str, list[str]]:
    """Path and arguments of the last ``--config=path:argument``, which counts; '' where the flag is absent."""
    found: tuple[str, list[str]] = "", []
    for name, value in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, rest = name.partition("=")
        if flag in ("--config", "-config"):
            path, colon, argument = (rest if equals else value).partition(":")
            found = path, [argument] if colon else []
    return found


def _check_file(argv: list[str]) -> None:
    path, arguments = _config_file(argv)
    if path and not os.path.isfile(path):
        raise ConfigError(f"--config={path} is not a file")
    if path:
        try:  # what is wrong in the user's own file, which can be anything
            runpy.run_path(path)["get_config"](*arguments)
        except Exception as error:
            what = "has no get_config" if isinstance(error, KeyError) else f"{type(error).__name__}: {_one_line(error)}"
            raise ConfigError(f"--config={path}: {what}") from None


def _one_line(error: BaseException) -> str:
    """The message without the traceback that some libraries put into it."""
    text = " ".join(str(error).split()) or type(error).__name__
    _, _, inner = text.rpartition("Error: ")
    return inner if "Traceback (most recent call last)" in text else text


def _bad_override(argv: list[str]) -> str:
    """The unknown ``--config.…`` key with what is allowed in its place, or ''."""
    path, arguments = _config_file(argv)
    if not path:
        return ""
    config = runpy.run_path(path)["get_config"](*arguments)
    for argument in argv[1:]:
        name = argument.lstrip("-").split("=")[0]
        node = config
        for key in name.split(".")[1:] if name.startswith("config.") else []:
            if not hasattr(node, "keys") or key not in node:
                return unknown_key(name, sorted(node.keys()) if hasattr(node, "keys") else [])
            node = node[key]
    return ""


def run(main: Callable[[], None], argv: list[str] | None = None, *, resumes: bool = True) -> int:
    """Joins the other processes of the run, parses flags, runs ``main``, and turns known failures into one line on
    stderr and an exit status."""
    # Orbax and absl log every file they write; a person watches a progress line.
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        if said := hosts.initialize_from_environment():
            print(said, flush=True)
        parse_flags(sys.argv if argv is None else argv)
        main()
    except ConfigError as error:
        return _failed(BAD_INPUT, error)
    except STOPS as error:
        return _failed(STOPPED, error)
    except Interrupted as interrupted:
        print(f"interrupted by {interrupted}: saved; the same command goes on", file=sys.stderr)
        return interrupted.status
    except KeyboardInterrupt:
        next_time = "goes on from the last checkpoint" if resumes else "starts over; nothing was written"
        print(f"interrupted: the same command {next_time}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if line := hosts.explain(error):
            hosts.end_process(STOPPED, f"error: {line}")
        traceback.print_exc()  # a bug: shown whole, but an exit in good order would wait for the other processes
        hosts.end_process(STOPPED, f"error: process {hosts.index()} of {hosts.count()} failed as above")
    return 0


def _failed(status: int, error: Exception) -> int:
    line = f"error: {error}"
    if jax.distributed.is_initialized():  # the others may not know, and an exit in good order would wait for them
        hosts.end_process(status, line)
    print(line, file=sys.stderr)
    return status
