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
from ml_collections import ConfigDict

from experiments import overrides
from salt_jax.collect import CollectionError
from salt_jax.distributed import hosts
from salt_jax.graders import GraderError
from salt_jax.run.checkpoint import CheckpointError
from salt_jax.run.guards import DivergenceError, NonFiniteError
from salt_jax.run.preemption import Interrupted
from salt_jax.run.workdir import StorageError
from salt_jax.spec import ConfigError
from salt_jax.tasks.paths import expanded

BAD_INPUT = 2  # wrong input: nothing was compiled, nothing written
STOPPED = 1  # the run stopped itself; its one line names the step, what happened and the last good checkpoint
INTERRUPTED = 130  # Ctrl-C before the run had begun; one under way ends with 128 + the signal, saved: 130, or 143
STOPS = (NonFiniteError, DivergenceError, CheckpointError, StorageError, CollectionError, GraderError)


class _Path(flags.ArgumentParser[str]):
    def parse(self, argument: str) -> str:
        return expanded(argument)


def define_path(name: str, said: str) -> flags.FlagHolder[Any]:
    """A flag that names a file or folder of this machine."""
    return flags.DEFINE(_Path(), name, None, said)


# The text, until ``parse_flags`` has put the configuration that it stands for in its place.
CONFIG: Any = flags.DEFINE_string(
    "config", None, "Configuration file, with its argument after a colon: configs/arithmetic.py:small"
)
WORKDIR = define_path("workdir", "Folder of the run; a run with the same configuration is resumed.")


def parse_flags(argv: list[str]) -> Any:
    """Reads the command line into ``CONFIG`` and ``WORKDIR``.

    Raises:
      ConfigError: one line for whatever is wrong with it.
    """
    try:
        plain, changes = overrides.split(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
        rest = flags.FLAGS(plain)
    except ConfigError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise ConfigError(_one_line(error)) from None
    if rest[1:]:
        raise ConfigError(f"{rest[1]!r} is not a flag; write --name=value")
    for flag in (CONFIG, WORKDIR):
        if not flag.value:
            raise ConfigError(f"--{flag.name} is missing")
    config = read_config(CONFIG.value)
    overrides.apply(config, changes)
    overrides.expand_paths(config)
    flags.FLAGS.config = config
    return config


def read_config(named: str) -> ConfigDict:
    """The configuration of a file, 'configs/arithmetic.py', or of its form, 'configs/arithmetic.py:small'.

    Raises:
      ConfigError: no such file, or whatever is wrong in it.
    """
    file, colon, form = named.partition(":")
    try:
        file = expanded(file)
    except ValueError as error:
        raise ConfigError(f"--config: {error}") from None
    if not os.path.isfile(file):
        raise ConfigError(f"--config={file} is not a file")
    try:  # the user's own file, in which anything can be wrong
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise ConfigError(f"--config={file}: has no get_config")
        config = get_config(*[form] if colon else [])
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config={file}: {type(error).__name__}: {_one_line(error)}") from None
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={file}: get_config must return a ConfigDict, got {type(config).__name__}")
    return config


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
