"""What runs inside the confined process: the one file of this project that executes text.

Nothing here decides anything: the process reports that it was confined, runs the program and its tests, and, if all
of that came to its end, writes what its parent gave it to write.
"""

from __future__ import annotations

import ast
import os
import random
import re
import sys
import tempfile
import types

from salt_jax.graders.confine import confine

READY, REFUSED = b"+", b"-"
RESULT = 3  # the descriptor of the pipe to the parent
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_CHECK = re.compile(r"^def check\(", re.MULTILINE)


def extract_program(completion: str) -> str:
    r"""The last block fenced as Python; else the last fenced without a language; else the text itself.

    A block that the end of the text cuts off counts.

    Example:
      >>> extract_program("First\n```python\nx = 1\n```\nthen\n```\nx = 2\n```\n")
      'x = 1\n'
      >>> extract_program("    return x\n")
      '    return x\n'
    """
    blocks = [(match[1].lower(), match[2]) for match in _FENCE.finditer(completion)]
    for languages in (("python", "py", "python3"), ("",)):
        found = [text for language, text in blocks if language in languages]
        if found:
            return found[-1]
    return completion


def defines(program: str, name: str) -> bool:
    """Whether a program, which need not be valid, defines a function, class or variable at its top.

    Example:
      >>> defines("def f(x):\\n    return x", "f"), defines("    return x", "f")
      (True, False)
    """
    try:
        body = ast.parse(program).body
    except SyntaxError:
        return False
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return True
    return False


def pieces(completion: str, prefix: str, entry_point: str | None) -> list[str]:
    """What to run in turn: the completion's program, with the prompt's code before it where it continues that.

    A completion that defines the entry point itself may still need the prompt's imports and helpers: the prompt, a
    function with nothing but a docstring, runs first where it is valid on its own.

    Example:
      >>> pieces("    return x", "def f(x):\\n", "f")
      ['def f(x):\\n    return x']
    """
    program = extract_program(completion)
    if not prefix:
        return [program]
    if entry_point is None or not defines(program, entry_point):
        return [prefix + program]
    try:
        ast.parse(prefix)
    except SyntaxError:
        return [program]
    return [prefix, program]


def run(completion: str, setup: str, tests: list[str], entry_point: str | None, prefix: str) -> None:
    """Runs setup, program and tests in one module; whatever goes wrong is raised."""
    module = types.ModuleType("program")  # dataclasses and typing look a class's module up
    sys.modules["program"] = sys.modules["__main__"] = module
    for text in [setup, *pieces(completion, prefix, entry_point), *tests]:
        exec(compile(text, "<program>", "exec", dont_inherit=True), module.__dict__)
    if entry_point is not None and any(_CHECK.search(text) for text in tests):
        module.check(getattr(module, entry_point))


def child(
    result: int, nonce: bytes, folder: str, paths: list[str], sandbox: str, cpu_seconds: float, memory_mib: int,
    **what: object,
) -> None:  # fmt: skip
    """The whole life of the process; never returns."""
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
        # Modules of elsewhere cannot be read; where they were listed before, importing them would say so wrongly.
        sys.path[:] = [path for path in sys.path if any(f"{path}/".startswith(f"{base}/") for base in paths)]
        sys.path_importer_cache.clear()
        random.seed(0)
        confine(folder, sandbox=sandbox, cpu_seconds=cpu_seconds, memory_mib=memory_mib, paths=paths)
    except BaseException as error:
        os.write(result, REFUSED + f"{type(error).__name__}: {error}".encode(errors="replace")[:1000])
        os._exit(1)
    try:
        os.write(RESULT, READY)
        run(**what)  # type: ignore[arg-type]
        os.write(RESULT, nonce)
    finally:
        os._exit(0)
