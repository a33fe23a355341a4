"""The mutants' lists, and where in the code each of them stands.

An entry names a function (or class, or constant) by its dotted name, a text that stands in it once, what stands there
instead, and the tests that must fail; or, in place of tests, why nothing can differ: such a mutant is not run. What has
moved to another file is still found where no other function has its name.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LISTS = ("drawn", "written")
Places = dict[str, tuple[Path, int, int]]  # dotted name -> file, first line and the line past the last


class Mutant(NamedTuple):
    """One entry of the list ``of``; ``equivalent`` is '' or the reason."""

    of: str
    label: str
    function: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str


def read(name: str) -> Iterator[Mutant]:
    """The entries of a list, in its order."""
    for number, row in enumerate(tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text())["mutant"], 1):
        label = " ".join(f"{name} {number} {row['function']}: {row['old']} -> {row['new']}".split())
        if ("tests" in row) == ("equivalent" in row) or row["old"] == row["new"]:
            sys.exit(f"error: {label}: needs a change, and either tests or the reason why it is equivalent")
        tests, reason = tuple(row.get("tests", ())), row.get("equivalent", "")
        yield Mutant(name, label, row["function"], row["old"], row["new"], tests, reason)


def places(root: Path) -> Places:
    """Where every function, class and constant of the package stands."""
    found: Places = {}

    def visit(inside: ast.AST, prefix: str, path: Path) -> None:
        for node in ast.iter_child_nodes(inside):
            named, names = isinstance(node, ast.FunctionDef | ast.ClassDef), list[str]()
            if named:
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(inside, ast.Module):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)]
            for name in names:
                first = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", ()))])
                found[f"{prefix}.{name}"] = path, first - 1, node.end_lineno
            visit(node, f"{prefix}.{node.name}" if named else prefix, path)

    for path in sorted((root / "salt_jax").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        visit(ast.parse(path.read_text()), ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path)
    return found


def mutated(mutant: Mutant, found: Places) -> tuple[Path, str]:
    """The file of a mutant, and its text with the change; the command ends unless there is one place for it."""
    name = end = mutant.function
    while name not in found and "." in end:  # moved: the longest end of its name that only one has
        end = end.partition(".")[2]
        same = [other for other in found if other.endswith(f".{end}")]
        name = same[0] if len(same) == 1 else name
    if name not in found:
        sys.exit(f"error: {mutant.label}: no function has this name, or several have")
    path, first, last = found[name]
    lines = path.read_text().splitlines(keepends=True)
    body = "".join(lines[first:last])
    if (times := body.count(mutant.old)) != 1:
        sys.exit(f"error: {mutant.label}: the text stands there {times} times, not once")
    return path, "".join([*lines[:first], body.replace(mutant.old, mutant.new), *lines[last:]])
