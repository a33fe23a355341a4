"""Which names a Python program makes and which it needs from elsewhere; read, never executed."""

from __future__ import annotations

import ast
import builtins
import symtable
import warnings
from typing import NamedTuple

GIVEN = frozenset(dir(builtins)) | {"__file__", "__annotations__", "__path__"}
_OWN_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


class Program(NamedTuple):
    """A program that Python can compile.

    Attributes:
      tree: its syntax.
      bound: the names that its module has once it ran.
      free: the names that it uses, anywhere, and neither it nor Python itself has.
    """

    tree: ast.Module
    bound: frozenset[str]
    free: frozenset[str]


def program(text: str) -> Program:
    """A text as a program.

    Raises:
      SyntaxError: it is none; also of one that is nested too deeply, or holds what no program may.

    Example:
      >>> found = program("import math\\ndef f(x):\\n    return math.sqrt(g(x))\\n")
      >>> sorted(found.bound), sorted(found.free)
      (['f', 'math'], ['g'])
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes and the like: the program's own affair
            tree = ast.parse(text)
            tables = [symtable.symtable(text, "<program>", "exec")]
    except SyntaxError:
        raise
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise SyntaxError(str(error) or type(error).__name__) from None
    _check_places(tree)
    bound = {s.get_name() for s in tables[0].get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    used = {s.get_name() for s in tables[0].get_symbols() if s.is_referenced()}
    tables = list(tables[0].get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_global():
                used |= {symbol.get_name()} if symbol.is_referenced() else set()
                bound |= {symbol.get_name()} if symbol.is_assigned() else set()
    return Program(tree, frozenset(bound), frozenset(used - bound - GIVEN))


def _check_places(tree: ast.Module) -> None:
    """SyntaxError for what the grammar takes, and a module not: 'return' outside a function."""
    outside: list[ast.AST] = list(tree.body)
    while outside:
        node = outside.pop()
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom | ast.Await | ast.AsyncFor | ast.AsyncWith):
            what = f"{type(node).__name__.lower()} outside a function"
            raise SyntaxError(what, ("<program>", node.lineno, node.col_offset, ""))
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case) and not isinstance(node, _OWN_SCOPE):
            inner = ast.iter_child_nodes(node)
            outside += [n for n in inner if isinstance(n, ast.stmt | ast.excepthandler | ast.match_case)]
            value = getattr(node, "value", None)
            outside += [value] if isinstance(value, ast.expr) else []
