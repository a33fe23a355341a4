"""What the tests of a program check, by their syntax: tests that cannot fail, or that no program passes, are an error.

Only what runs counts: statements of the tests, functions that these name, and ``check(candidate)``, which the grader
calls with the entry point. A check is an assertion, a raise under a condition, or a call by the name of one
(``assert_allclose``, ``fail``, ``raises``); it counts where a value of the program can reach it, and where no handler
around it takes its error. Where that is hard to say, it counts: ``code.run_tests`` tries tests without a program, too.
"""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from salt_jax.graders.names import Program, program
from salt_jax.graders.reach import ANYTHING, Function, Walk

OWN = ("program", "__main__")  # modules that the program itself is


class Needs(NamedTuple):
    """What is known of tests.

    Attributes:
      wanted: the names that they need from the program.
      setup: what runs before the program.
      late: the rest of the setup, which uses the program's names.
      checked: the entry point, where the grader calls ``check`` with it; else None.
    """

    wanted: tuple[str, ...]
    setup: str
    late: str
    checked: str | None


def read_tests(setup: str, tests: Sequence[str], entry_point: str | None, folders: Sequence[str]) -> Needs:
    """What tests need, and that they check something.

    Args:
      setup: runs before the program, where it does not use the program's names.
      tests: run after it.
      entry_point: the name that the program defines; None where it is not said.
      folders: from which a program can import.

    Raises:
      ValueError: tests that no program passes, or that check nothing of it, and why.

    Example:
      >>> read_tests("", ["assert f(1) == 2"], None, [])
      Needs(wanted=('f',), setup='', late='', checked=None)
      >>> read_tests("", ["f(1) == 2"], "f", [])
      Traceback (most recent call last):
      ValueError: the tests check nothing: no assertion in them runs
    """
    if entry_point is not None and not entry_point.isidentifier():
        raise ValueError(f"entry_point = {entry_point!r} is no name of a function")
    setup = setup.replace("\r\n", "\n").replace("\r", "\n")
    before = _parsed("setup", setup)
    parts = [_parsed("tests", text) for text in tests]
    own = {name for read in (before, *parts) for name in _check_imports(read.tree.body, folders)}
    bound = before.bound.union(*(part.bound for part in parts))
    wanted = (before.free.union(*(part.free for part in parts)) - bound) | own
    wanted |= {entry_point} if entry_point is not None else set()
    check = next((node for part in reversed(parts) for node in part.tree.body if _name(node) == "check"), None)
    checked = entry_point if isinstance(check, ast.FunctionDef) else None
    given = _parameter(check) if isinstance(check, ast.FunctionDef) and checked is not None else frozenset()
    walk = Walk([before.tree, *(part.tree for part in parts)], wanted, given)
    walk.conclude(check)
    for name in walk.done:
        own |= set(_check_imports(walk.functions[name].body, folders))
    if any(_replaces(node, str(entry_point)) for part in parts for node in part.tree.body):
        raise ValueError(f"the tests define {entry_point!r} themselves, which is the entry point")
    if checked is None and entry_point is not None and not walk.mentioned & {entry_point, *ANYTHING, *own}:
        raise ValueError(f"the tests never use {entry_point!r}, which is the entry point")
    line = next((_first_line(node) for node in before.tree.body if _needed_now(node) & wanted), None)
    lines = setup.split("\n")
    return Needs(
        tuple(sorted(wanted)), setup if line is None else "\n".join(lines[: line - 1]),
        "" if line is None else "\n".join(lines[line - 1 :]), checked,
    )  # fmt: skip


def _parsed(what: str, text: str) -> Program:
    try:
        return program(text)
    except SyntaxError as error:
        where = f" (line {error.lineno})" if error.lineno else ""
        raise ValueError(f"the {what} cannot be read as Python: {error.msg or error}{where}") from None


def _name(node: ast.stmt) -> str:
    """The name that a statement gives to something."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return str(getattr(node, "name", ""))


def _replaces(node: ast.stmt, name: str) -> bool:
    """Whether a statement gives a name to something that has nothing to do with what had it before."""
    used = any(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load) for n in ast.walk(node))
    return _name(node) == name and not used


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _needed_now(node: ast.stmt) -> set[str]:
    """Names that a statement uses when it runs, and not only when functions in it are called."""
    found, nodes = set(), list[ast.AST]([node])
    while nodes:
        inner = nodes.pop()
        found |= {inner.id} if isinstance(inner, ast.Name) else set()
        body: list[ast.AST] = [inner.body] if isinstance(inner, ast.Lambda) else []
        body += inner.body if isinstance(inner, Function) else []
        nodes += [part for part in ast.iter_child_nodes(inner) if part not in body]
    return found


def _parameter(check: ast.FunctionDef) -> frozenset[str]:
    at = check.args
    names = [argument.arg for argument in (*at.posonlyargs, *at.args)]
    if len(names) - len(at.defaults) > 1 or not (names or at.vararg) or None in at.kw_defaults:
        raise ValueError("the tests' check(…) does not take the function alone")
    return frozenset(names[:1] or [at.vararg.arg if at.vararg else ""])


def _check_imports(body: Iterable[ast.stmt], folders: Sequence[str]) -> Iterator[str]:
    """ValueError for a module that is not there, but for those behind a condition; the names of the program's own."""
    for node in body:
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError("the tests import relatively, and there is no package around them")
        for name in [str(node.module)] if isinstance(node, ast.ImportFrom) else named:
            top = name.partition(".")[0]
            if top in OWN:
                yield from (named if isinstance(node, ast.ImportFrom) else [top])
            elif top not in sys.stdlib_module_names and importlib.machinery.PathFinder.find_spec(top, folders) is None:
                raise ValueError(f"the tests import {name!r:.60}, which is not installed")
            module = sys.modules.get(name)  # a row imports nothing: only what is loaded anyway is looked into
            if isinstance(node, ast.ImportFrom) and top in sys.stdlib_module_names and module is not None:
                there = {"*", *dir(module)}
                absent = [each for each in named if each not in there and not _submodule(module, each)]
                if absent and not hasattr(module, "__getattr__"):
                    raise ValueError(f"the tests import {absent[0]!r:.60}, which {name!r:.60} does not have")


def _submodule(package: object, name: str) -> bool:
    paths = getattr(package, "__path__", None)
    return paths is not None and importlib.machinery.PathFinder.find_spec(name, list(paths)) is not None
