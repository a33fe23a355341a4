"""Which program a completion answers with. Where there are several blocks, their syntax decides: who defines what."""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from salt_jax.graders.blocks import Block, blocks
from salt_jax.graders.names import Program, program

TRIED, READ = 300, 1_500_000  # texts, and their characters, of a completion that are parsed; then nothing is a program
CUTS, STARTS = 6, 8  # how often a text is shortened at its end, or begun further on, to be a program
_START = re.compile(r"^(?:async[ ]+def|def|class|import|from|@)\b|^@", re.MULTILINE)
_HARD = re.compile(r"^[ \t]*\u00a0[ \t\u00a0]*", re.MULTILINE)  # an indentation with spaces that do not break


class _Answer(NamedTuple):
    """What can be run: the program; how well it fits: more of the names wanted, then better kinds, then later ones."""

    names: int  # 2 for one that is defined, 1 for one that is imported; the entry point goes before all others
    kind: int  # 3 defines them, 2 continues the prompt's code, 1 only once indented, 0 has nothing but a head
    python: bool
    at: int
    text: str
    read: Program


def extract_program(completion: str, wanted: Iterable[str] = ()) -> str:
    r"""The program of a completion that continues nothing; see ``pieces``.

    Example:
      >>> extract_program("First\n```python\nx = 1\n```\nthen\n```\nprint(x)\n```\n", ["x"])
      'x = 1\n'
      >>> extract_program("def f(x):\n    return x\n```\nIt returns x.", ["f"])
      'def f(x):\n    return x\n'
    """
    return "\n".join(pieces(completion, "", None, wanted))


def pieces(completion: str, prefix: str, entry_point: str | None, wanted: Iterable[str] = ()) -> list[str]:
    r"""What to run in turn: a completion's program, and of the prompt's code and other blocks what it needs.

    ============================================  ===================================================================
    in the completion                             what is run
    ============================================  ===================================================================
    several blocks that define what is wanted     the last that is complete
    a block that uses names of other blocks       their definitions with it
    a block of usage, tests, output or shell      nothing of it, as it defines nothing that is wanted
    a body, indented or not, with a prefix        the prefix and the body
    a whole function, with a prefix               the prefix (with an empty body, where it needs one), then the function
    code before a fence that nothing opened       that code
    no fence                                      the text, from its first definition to the last line that is code
    blocks in a finished ``<think>``              only where nothing behind it will do
    nothing that will do                          the last block of Python, else without a language, else the text
    ============================================  ===================================================================

    Args:
      completion: what the policy wrote.
      prefix: code of the prompt that a completion may continue.
      entry_point: the function, class or variable to define; None where only ``wanted`` is known.
      wanted: further names that tests use.

    Example:
      >>> pieces("return x", "def f(x):\n", "f")
      ['def f(x):\n    return x']
    """
    text = completion.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff\u200b")
    text = _HARD.sub(lambda match: " " * len(match[0]), text)
    names = frozenset(wanted) | ({entry_point} if entry_point is not None else frozenset())
    reader = _Reader(prefix, entry_point, names)
    _, thought, after = text.rpartition("</think>")
    for part in (after, text) if thought and after.strip() else (text,):
        found = reader.pieces(part)
        if found:
            return found
    return reader.rest(after if after.strip() else text)


class _Reader:
    """Reads the parts of one completion, within bounds."""

    def __init__(self, prefix: str, entry_point: str | None, names: frozenset[str]) -> None:
        self.prefix, self.entry_point, self.names = prefix, entry_point, names
        self.known: dict[str, Program | SyntaxError] = {}
        self.left = READ
        lines = prefix.rstrip().splitlines() or [""]
        indent = lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())]
        self.indent = indent + "    " if re.match(r"\s*(?:async\s+)?def\b", lines[-1]) else indent or "    "

    def parse(self, text: str) -> Program:
        """``names.program``, once a text, and within bounds."""
        if text not in self.known:
            self.left -= len(text)
            if len(self.known) >= TRIED or self.left < 0:
                raise SyntaxError("too much to read")
            try:
                self.known[text] = program(text)
            except SyntaxError as error:
                self.known[text] = error
        found = self.known[text]
        if isinstance(found, SyntaxError):
            raise found
        return found

    def shortened(self, text: str, cut: bool, made: Callable[[str], str] = str) -> tuple[str, Program] | None:
        """A text that is a program once made one; where it may be cut, without what comes after its last code."""
        lines, before = text.split("\n"), made("").count("\n")
        for _ in range(CUTS):
            try:
                whole = made("\n".join(lines))
                read = self.parse(whole)
                bare = {line for node in read.tree.body if cut and _word(node, read) for line in _lines(node)}
                if not bare:
                    return whole, read
                lines = whole.split("\n")
                lines = ["" if number in bare else line for number, line in enumerate(lines, 1)]
                return "\n".join(lines), self.parse("\n".join(lines))
            except SyntaxError as error:
                at = min((error.lineno or 0) - before, len(lines)) - 1
                while at > 0 and (not lines[at].strip() or lines[at][0] in " \t"):
                    at -= 1
                if not cut or at <= 0:
                    return None
                lines = [*lines[:at], ""]
        return None

    def _wanted(self, read: Program) -> int:
        """How far a program has the names that are wanted, see ``_Answer``."""
        imports = [node for node in read.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        imported = {name for node in imports for name in _bound(node)}
        score = {name: 1 if name in imported else 2 for name in read.bound & self.names}
        return sum(score.values()) + 2 * len(self.names) * score.get(str(self.entry_point), 0)

    def whole(self, text: str) -> bool:
        """Whether a text is a program, or continues the prompt's."""
        return bool(text.strip()) and len(self.known) < TRIED and any(True for _ in self.answers(Block("", text), 0))

    def answers(self, block: Block, at: int) -> Iterator[_Answer]:
        """The ways to run a block."""
        text, cut = block.text, not block.closed
        found = self.shortened(text, cut)
        starts = [match.start() for match, _ in zip(_START.finditer(text), range(STARTS), strict=False)] if cut else []
        for start in [0, *starts]:
            found = self.shortened(text[start:], cut)
            if found and (not self.names or found[1].bound & self.names):
                break
        if found:
            main = {self.entry_point} & self.names or self.names
            kind = 3 if not self.names or any(_full(found[1], str(name)) for name in main) else 0
            yield _Answer(self._wanted(found[1]), kind, block.python, at, *found)
        if self.prefix and (not found or self.entry_point not in found[1].bound):
            ended = self.prefix if self.prefix.endswith("\n") else self.prefix + "\n"
            level = textwrap.dedent(text)
            forms: list[tuple[int, str, Callable[[str], str]]] = [
                (2, text, lambda body: self.prefix + body),
                (1, text.lstrip(), lambda body: ended + self.indent + body),
                (1, level, lambda body: ended + textwrap.indent(body, self.indent)),
            ]
            for shorten, (kind, body, made) in itertools.product((False, True) if cut else (False,), forms):
                longer = self.shortened(body, shorten, made) if body.strip() else None
                if longer and self._continues(longer[1].tree, self.prefix.rstrip().count("\n") + 1):
                    yield _Answer(self._wanted(longer[1]), kind, block.python, at, *longer)
                    break

    def _continues(self, tree: ast.Module, lines: int) -> bool:
        """Whether the function of the prompt's last lines goes on behind them."""
        for node in tree.body:
            last = (getattr(node, "body", None) or [node])[-1]  # a word alone is prose
            word = isinstance(last, ast.Expr) and isinstance(last.value, ast.Name)
            named = self.entry_point in (None, getattr(node, "name", None))
            if node.lineno <= lines < (node.end_lineno or 0) and named and not word:
                return True
        return False

    def pieces(self, part: str) -> list[str] | None:
        """What to run of a part of the text; None where nothing of it will do."""
        found = blocks(part, self.whole) or [Block("", part, closed=False)]
        all_answers = [answer for i, block in enumerate(found) for answer in self.answers(block, i)]
        fit = [a for a in all_answers if a.names or not self.names]
        if not self.names:  # nothing is known but what the blocks say of themselves
            fit = [a for a in fit if a.python and found[a.at].language] or [a for a in fit if a.python]
        if not fit:
            return None
        best = max(fit, key=lambda a: a[:4])
        others = {a.at: a.read for a in all_answers if a.kind in (0, 3) and a.at != best.at}
        before, after = self._helpers(best, others)
        if best.kind in (1, 2):
            return [*before, best.text, *after]
        return [*self._empty_prefix(), *before, best.text, *after]

    def _empty_prefix(self) -> list[str]:
        for text in (self.prefix, f"{self.prefix.rstrip()}\n{self.indent}pass\n") if self.prefix.strip() else ():
            try:
                self.parse(text)
            except SyntaxError:
                continue
            return [text]
        return []

    def _helpers(self, best: _Answer, others: dict[int, Program]) -> tuple[list[str], list[str]]:
        """Definitions of other blocks that the program needs, of those before it and behind it."""
        missing = list((best.read.free | self.names) - best.read.bound)
        # the nearest before it first
        order = sorted(others, key=lambda at: (at > best.at, at if at > best.at else -at))
        needed: dict[int, set[str]] = {}
        done = set(best.read.bound)
        while missing:
            name = missing.pop()
            at = next((at for at in order if name in others[at].bound), None)
            if name in done or at is None:
                continue
            done.add(name)
            needed.setdefault(at, set()).add(name)
            missing += list(others[at].free)
            statements = [node for node in others[at].tree.body if name in _bound(node)]
            missing += [n.id for node in statements for n in ast.walk(node) if isinstance(n, ast.Name)]
        texts = {
            at: "\n".join(ast.unparse(node) for node in others[at].tree.body if _bound(node) & names) + "\n"
            for at, names in sorted(needed.items())
        }
        return [t for at, t in texts.items() if at < best.at], [t for at, t in texts.items() if at > best.at]

    def rest(self, part: str) -> list[str]:
        """What to run where nothing will do, for the error that it ends with."""
        found = [block for block in blocks(part, self.whole) if block.python]
        found = [block for block in found if block.language] or found
        return [self.prefix + (found[-1].text if found else part)]


def _bound(node: ast.stmt) -> set[str]:
    """The names that a definition, an import or an assignment makes; none of other statements."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _word(node: ast.stmt, read: Program) -> bool:
    """Whether a statement is words that are code by chance, as [DONE] or O(1): of a name that nobody has."""
    if not isinstance(node, ast.Expr):
        return False
    inner = list(ast.walk(node))
    calls = [n.func for n in inner if isinstance(n, ast.Call)]
    unknown = [n for n in inner if isinstance(n, ast.Name) and n.id in read.free]
    return bool(unknown) and all(isinstance(call, ast.Name) and call.id in read.free for call in calls)


def _full(found: Program, name: str) -> bool:
    """Whether a program defines a name with more than a head and a docstring."""
    nodes = [node for node in found.tree.body if getattr(node, "name", None) == name]
    return name in found.bound and not (nodes and _head(nodes[-1]))


def _head(node: ast.stmt) -> bool:
    """Whether a definition has no body yet: a docstring, 'pass', '...' or 'raise NotImplementedError'."""
    if isinstance(node, ast.ClassDef):
        return bool(node.body) and all(_head(inner) for inner in node.body)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return all(_head(inner) for inner in node.body)
    if isinstance(node, ast.Raise):
        return node.exc is not None and "NotImplemented" in ast.unparse(node.exc)
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
