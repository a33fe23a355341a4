"""Command lines that must be refused, run in copies (forks) of one process that has imported what they need.

Importing takes two seconds, a copy a fraction of one. The process has started nothing of JAX: that each copy does.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from subprocess import CompletedProcess

from tests.house import REPOSITORY

PATIENCE = 120  # seconds for one command line; then SIGALRM ends it


class CommandLines:
    """Started once; each call is `python -m MODULE ARGUMENTS`, for modules that end with sys.exit(cli.run(main))."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.experiments.command_lines"], cwd=REPOSITORY, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, module: str, *arguments: str) -> CompletedProcess[str]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([module, *arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the process that runs command lines ended with status {self.process.wait()}"
        return CompletedProcess(arguments, *json.loads(answer))

    def close(self) -> None:
        self.process.communicate()


def run(module: str, *arguments: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a copy of this process that does what the module does."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        child = os.fork()
        if child == 0:
            status = 70  # of an exception, which Python prints
            try:
                signal.alarm(PATIENCE)
                os.dup2(out.fileno(), 1)
                os.dup2(error.fileno(), 2)
                sys.argv = [module, *arguments]
                status = importlib.import_module("experiments.cli").run(importlib.import_module(module).main)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        error.seek(0)
        return status, out.read(), error.read()


if __name__ == "__main__":
    importlib.import_module("experiments.train")
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
