"""How drawn.toml was drawn: its mutants, without the tests that were found to notice each of them later.

    python -m venv ENV && ENV/bin/pip install cosmic-ray==8.7.0
    ENV/bin/python -m tests.mutants.draw 80 20261128 > drawn.toml

All mutations that cosmic-ray knows of the modules below are put in order, shuffled by the seed, and taken from the
first on. Passed over are those that change annotations, docstrings and aliases of types alone, which nothing executes,
and what is no Python. The draw was made at commit d380d21, before any test was changed for it; of another state of the
code the same command draws others.
"""

from __future__ import annotations

import ast
import difflib
import json
import random
import sys
from pathlib import Path

from tests.mutants.entries import places

ROOT = Path(__file__).resolve().parents[2]
TRAINING = (
    "checkpoint", "generation", "harvest", "judging", "keys", "loop", "phase", "reweighting", "state", "step",
    "step_metrics", "weighing",
)  # fmt: skip
MODULES = [
    *("rollout.py", "salt*.py", "evaluate*.py", "geometry/*.py", "objective/*.py", "graders/*.py", "tasks/*.py"),
    *("policy/sampler.py", "policy/waves.py", "policy/logprobs.py"), *(f"training/{name}.py" for name in TRAINING),
]  # fmt: skip


class Executed(ast.NodeTransformer):
    """What is left of a module without annotations, docstrings and aliases of types."""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                setattr(node, field, ast.Constant(None))
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(body, list):
            words = [x for x in body if isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant)]
            alias = [x for x in body if isinstance(x, ast.Assign) and isinstance(x.value, ast.Subscript)]
            node.body = [x for x in body if x not in words and not (isinstance(node, ast.Module) and x in alias)]
        return node


def executed(text: str) -> str | None:
    """The same for two texts that do the same; None for what is no Python."""
    try:
        return ast.dump(Executed().visit(ast.parse(text)))
    except SyntaxError:
        return None


def entry(path: Path, text: str) -> str:
    """A file's change as an entry of drawn.toml, with as many lines before it as make it unique in its function."""
    old, new = path.read_text().splitlines(), text.splitlines()
    changed = [code for code in difflib.SequenceMatcher(None, old, new, False).get_opcodes() if code[0] != "equal"]
    first, last = changed[0][1], changed[-1][2]
    after = last + len(new) - len(old)
    within = [
        (end - start, name, start, end) for name, (where, start, end) in places(ROOT).items()
        if where == path and start <= first and last <= end
    ]  # fmt: skip
    _, name, start, end = min(within)
    top = first
    while "\n".join(old[start:end]).count("\n".join(old[top:last]).lstrip()) > 1:
        top -= 1
    texts = ["\n".join([*old[top:first], *lines]).lstrip() for lines in (old[first:last], new[first:after])]
    return "\n".join(["[[mutant]]", f'function = "{name}"', *map("{} = {}".format, ("old", "new"), map(quoted, texts))])


def quoted(text: str) -> str:
    """As a TOML string, as it stands where that can be."""
    return json.dumps(text, ensure_ascii=False) if "'" in text or "\n" in text else f"'{text}'"


def main(count: int, seed: int) -> None:
    """Prints so many entries."""
    from cosmic_ray import mutating, plugins
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    paths = sorted({path for pattern in MODULES for path in (ROOT / "salt_jax").glob(pattern)})
    with use_db(":memory:", WorkDB.Mode.create) as database:
        init(paths, database, {})
        found = [item.mutations[0] for item in database.work_items]
    found.sort(key=lambda item: (str(item.module_path), item.operator_name, item.occurrence))
    random.Random(seed).shuffle(found)
    print(f"# {count} of {len(found)} mutations, seed {seed}: see draw.py.")
    for item in found:
        path, operator = Path(item.module_path), plugins.get_operator(item.operator_name)()
        text = mutating.mutate_code(path.read_text(), operator, item.occurrence)
        if text is None or executed(text) in (None, executed(path.read_text())):
            continue
        print(f"\n# {item.operator_name}\n{entry(path, text)}")
        count -= 1
        if not count:
            break


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
