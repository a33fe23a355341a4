"""The blocks of code in a text: fences of Markdown, well formed or not, and HTML's <code>."""

from __future__ import annotations

import html
import re
import textwrap
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

# A line with a fence: what stands before it (a list's or a quotation's marks, or words), the fence, its language.
_FENCE = re.compile(r"^([^\n]*?)(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
_MARKS = re.compile(r"(?:[ \t>]|[-*+][ \t]|\d{1,9}[.)][ \t])*")
_LANGUAGE = re.compile(r"[\s{.]*([A-Za-z]*)")
_SPAN = re.compile(r"(?:python3?|py)?[ \t]+", re.IGNORECASE)
_TAG = re.compile(r"<(/?)(pre|code|answer)\b[^<>\n]{0,200}>", re.IGNORECASE)
FENCES, MOST = 1000, 100  # fences, and blocks, of a text that are looked at: its last ones
NEAR = 8  # fences after one that are tried as its end


class Block(NamedTuple):
    """A block: its language in small letters ('' where none is said), its text, and whether a fence ends it."""

    language: str
    text: str
    closed: bool = True

    @property
    def python(self) -> bool:
        """Whether it may be Python by what it says: 'python', 'py3', '{.python}', or nothing."""
        return not self.language or self.language.startswith(("py", "ipy"))


class _Line(NamedTuple):
    start: int
    before: str  # of the fence, on its line
    fence: str
    after: str
    end: int  # of the line, its line end included

    @property
    def alone(self) -> bool:
        """Whether nothing but a list's marks stands before the fence."""
        return _MARKS.fullmatch(self.before) is not None

    def closes(self, opening: _Line) -> bool:
        """Whether it can end the block of an opening fence."""
        return self.fence[0] == opening.fence[0] and len(self.fence) >= len(opening.fence) and not self.after.strip()

    def opens(self) -> bool:
        """Whether it can only begin a block: it names a language."""
        return self.alone and "`" not in self.after and bool(_language(self.after))


def blocks(text: str, whole: Callable[[str], bool]) -> list[Block]:
    r"""The blocks of a text in their order; text before a first fence that opens nothing is one, too.

    Where a fence could end a block or belong to its text (a docstring with a fence in it), the first that leaves a
    program ends it, else the first. A block that no fence ends goes to the end of the text.

    Args:
      text: with line ends of one character.
      whole: whether a text is a program.

    Example:
      >>> blocks("So:\n\n1. first\n   ```py\n   x = 1\n   ```\n", lambda text: True)
      [Block(language='py', text='x = 1\n', closed=True)]
    """
    matches = deque(_FENCE.finditer(text), maxlen=FENCES)
    lines = [_Line(m.start(), m[1], m[2], m[3], min(m.end() + 1, len(text))) for m in matches]
    found: list[Block] = []
    at = 0
    if lines and not lines[0].after.strip():  # it may close what nothing opened
        found.append(Block("", _inner(text, 0, lines[0]), closed=False))
    while at < len(lines):
        line = lines[at]
        at += 1
        if line.fence in line.after:  # opened and closed on one line
            inside = line.after[: line.after.index(line.fence)]
            found.append(Block("", _SPAN.sub("", inside, count=1).strip() + "\n"))
            continue
        ends = [i for i in range(at, min(at + NEAR, len(lines))) if _may_end(lines[i], line)]
        ends = ends or [next((i for i in range(at, len(lines)) if _may_end(lines[i], line)), len(lines))]
        language = _language(line.after)
        end, inside = ends[0], ""
        for i in ends if Block(language, "").python else ends[:1]:
            inside = _level(_inner(text, line.end, lines[i] if i < len(lines) else None), line, whole)
            if whole(inside):
                end = i
                break
        else:
            inside = _level(_inner(text, line.end, lines[end] if end < len(lines) else None), line, whole)
        found.append(Block(language, inside, closed=end < len(lines)))
        at = end + (end < len(lines) and lines[end].closes(line))
    found += _tagged(text) if not any(block.text.strip() for block in found) else []
    return [block for block in found if block.text.strip()][-MOST:]


def _language(after: str) -> str:
    match = _LANGUAGE.match(after)
    return match[1].lower() if match else ""


def _may_end(line: _Line, opening: _Line) -> bool:
    """Whether a block may end before or on this line: its fence, also behind code, or the next one's opening."""
    return line.closes(opening) or line.opens()


def _inner(text: str, start: int, end: _Line | None) -> str:
    """What stands before a fence; where that is code on its line, it belongs to it."""
    if end is None:
        return text[start:]
    return text[start : end.start] if end.alone else text[start : end.start + len(end.before)] + "\n"


def _level(text: str, opening: _Line, whole: Callable[[str], bool]) -> str:
    """A block's text without the indentation, or the marks of a quotation, that its fence has."""
    if not opening.alone or not opening.before:
        return text
    if ">" in opening.before:
        text = re.sub(r"^[ \t]*>[ \t]?", "", text, flags=re.MULTILINE)
    less = re.sub(rf"^[ \t]{{1,{len(opening.before)}}}", "", text, flags=re.MULTILINE)
    level = textwrap.dedent(text)
    return level if not whole(less) and whole(level) else less


def _tagged(text: str) -> Iterator[Block]:
    """What stands in the innermost <pre>, <code> or <answer> tags."""
    opened: tuple[str, int] | None = None
    for tag in _TAG.finditer(text):
        name = tag[2].lower()
        if not tag[1]:
            opened = name, tag.end()
        elif opened and opened[0] == name:
            inside = text[opened[1] : tag.start()]
            yield Block("", (inside if name == "answer" else html.unescape(inside)).strip("\n") + "\n")
            opened = None
