"""What the runnable studies share: flags, one-line errors and exit statuses."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from salt_jax.graders import GraderError
from salt_jax.training.collect import CollectionError
from salt_jax.training.config import ConfigError, unknown_key
from salt_jax.training.metrics import NonFiniteError

BAD_INPUT = 2  # wrong input: nothing was compiled, nothing written
STOPPED = 1  # the run stopped itself: a statistic that is not finite (its message names the step), or no grader
INTERRUPTED = 130  # Ctrl-C; what was being saved has been saved

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
    except (flags.Error, TypeError, ValueError, ImportError, OSError) as error:
        raise ConfigError(_one_line(error)) from None
    if rest[1:]:
        raise ConfigError(f"{rest[1]!r} is not a flag; write --name=value")
    for flag in (CONFIG, WORKDIR):
        if not flag.value:
            raise ConfigError(f"--{flag.name} is missing")
    return CONFIG.value


def _config_file(argv: list[str]) -> tuple[str, list[str]]:
    """Path and arguments of ``--config=path:argument``; '' where the flag is absent."""
    for name, value in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, rest = name.partition("=")
        if flag in ("--config", "-config"):
            path, colon, argument = (rest if equals else value).partition(":")
            return path, [argument] if colon else []
    return "", []


def _check_file(argv: list[str]) -> None:
    path, _ = _config_file(argv)
    if path and not os.path.isfile(path):
        raise ConfigError(f"--config={path} is not a file")


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
    """Parses flags, runs ``main`` and turns known failures into one line on stderr and an exit status."""
    # Orbax and absl log every file they write; a person watches a progress line.
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        parse_flags(sys.argv if argv is None else argv)
        main()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (NonFiniteError, CollectionError, GraderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        next_time = "goes on from the last checkpoint" if resumes else "starts over; nothing was written"
        print(f"interrupted: the same command {next_time}", file=sys.stderr)
        return INTERRUPTED
    return 0
