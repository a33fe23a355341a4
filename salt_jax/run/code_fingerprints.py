"""The code behind an import path: a module's file, and what it imports from beside it, by fingerprints.

Nothing is imported for that but the packages around the module; files are read and their import statements looked up.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from salt_jax import graders
from salt_jax.run.fingerprints import of_file

OURS = "salt_jax.graders"


def of_module(module: str) -> tuple[dict[str, str], set[str]]:
    """Digests of a module's file and of those that it imports from beside it, or from the graders here, by name.

    Returns:
      'package/file.py' → digest; the outermost packages that they import.

    Raises:
      OSError: a file that cannot be read.

    Example:
      >>> digests, imported = of_module("salt_jax.graders.units")
      >>> list(digests), sorted(imported)
      (['salt_jax.graders/units.py'], ['__future__', 'fractions', 're'])
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return {module: "no file"}, set()
    first, package = Path(spec.origin), module if spec.submodule_search_locations else module.rpartition(".")[0]
    ours = {OURS: Path(graders.__file__).parent}
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    roots = ours if not package and first.parent in installed else {package: first.parent} | ours
    digests, outermost, waiting = dict[str, str](), set[str](), [(package, first)]
    while waiting:
        package, path = waiting.pop()
        if (name := f"{package}/{path.name}") in digests:
            continue
        digests[name] = of_file(path)
        for imported in _imports(path, package):
            outermost.add(imported.partition(".")[0])
            waiting += _found(imported, ours if package.startswith(OURS) else roots)
    return digests, outermost


def _found(imported: str, roots: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """The file of an imported name and the package that it is in, where one of some packages' folders has it."""
    for package, root in roots.items():
        inside = imported.removeprefix(f"{package}.") if package else imported
        if (package and inside == imported) or (not package and imported.partition(".")[0] == "salt_jax"):
            continue
        at = root.joinpath(*inside.split("."))
        if at.with_name(f"{at.name}.py").is_file():
            return [(imported.rpartition(".")[0], at.with_name(f"{at.name}.py"))]
        if (at / "__init__.py").is_file():
            return [(imported, at / "__init__.py")]
    return []


def _imports(path: Path, package: str) -> Iterator[str]:
    """Dotted names that a file of a package imports, anywhere in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # of a compiled module, or not of this Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*parents, node.module]))
            yield from filter(None, [base, *(".".join(filter(None, [base, alias.name])) for alias in node.names)])
