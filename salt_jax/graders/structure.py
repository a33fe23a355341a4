r"""What a mathematical answer is made of: lists, sets, tuples and intervals, unions, matrices, equations, and leaves.

``read`` takes an undressed text apart at its top level and again below; ``compare`` says when two such trees are the
same.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

from salt_jax.graders.dates import date
from salt_jax.graders.quantity import quantity

DEEPEST, LONGEST_TEXT = 8, 2000  # lists within lists; characters of what is taken apart
LONGEST = 200  # parts of a list that are matched without order


class Node(NamedTuple):
    """A part of an answer.

    Attributes:
      kind: 'leaf', 'list', 'set', 'tuple', 'union', 'intersection', 'matrix' or 'equation'.
      text: of the whole.
      parts: of all but leaves; of a matrix its rows, as tuples; of an equation its two sides.
      brackets: of a tuple, as '()' or '[)'.
    """

    kind: str
    text: str
    parts: tuple[Node, ...] = ()
    brackets: str = ""


_MATRIX = re.compile(
    r"^\\begin\{([pbBV]?matrix\*?|array|smallmatrix)\}(?:\{[^{}]*\}|\[[lcr]\])?(.*)\\end\{\1\}$", re.DOTALL
)
_CASES = re.compile(r"^\\begin\{(cases|aligned|align\*?|gathered)\}(.*)\\end\{\1\}$", re.DOTALL)
_NAME = (
    r"(?!\\?(?:not|neq?|no|wrong|false|never)(?![a-zA-Z]))"
    r"(?:[a-zA-Z]|[A-Z]{2,3}|[a-zA-Z]{3,}|\\[a-zA-Z]+)(?:'+|\s*_\s*(?:\{[^{}]*\}|\w))?"
)
SYMBOL = re.compile(  # x, x_1, AB, AB : BC, a + b, \\angle A, area, f(x), |z|, (x, y)
    rf"^(?:{_NAME}(?:\s*:\s*{_NAME})*|[a-z](?:\s*\+\s*[a-z])+"
    r"|\\(?:sum|prod|int|lim|det|Pr)(?![a-zA-Z]).*|(?:P|E|Var|\\mathbb\{[EP]\})\s*[(\[].*[)\]]"
    r"|\\frac\{(?:d|\\partial)\s*\w*\}\{(?:d|\\partial)\s*\w\}|m?\s*\\(?:angle|triangle|vec|overrightarrow)\s*\{?[a-zA-Z]{1,3}\}?"
    rf"|[a-zA-Z](?:'*|\^\s*\{{?-1\}}?)\s*\(\s*[a-zA-Z\d]\s*\)|\|\s*{_NAME}\s*\||\(\s*{_NAME}(?:\s*[,;]\s*{_NAME})+\s*\))$"
)
_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)")
_JOIN = re.compile(
    r"(?<=[\d}])\s+[oóye]\s+(?=[a-z]\s*=|-?\d+$)"
    r"|\s+(?:and|or|und|oder|et|ou|и|или|或|和|且)\s+|\s*;\s*|\\(?:quad|qquad)\s*|\\(?:lor|vee)(?![a-zA-Z])"
)
_OR = re.compile(r"\s*,?\s+(?:or|oder|ou|или|ó)\s+|\s*;\s*|\s*\\(?:lor|vee)(?![a-zA-Z])\s*")
_TURNED = re.compile(r"^(?=\]|.*\[$)[\[\]]\s*([^\[\];,]+)\s*[;,]\s*([^\[\];,]+)[\[\]]$")
_CONDITION = r"(?:(?!\\mid|\||:|\\in|\\mathbb|=).)*"
_SUCH_THAT = re.compile(  # of the real numbers x that fulfil a condition
    r"^([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?)?\s*(?:\\mid|\||:)\s*"
    rf"({_CONDITION}(?:[<>]|\\(?:le|ge|ne)(?![a-zA-Z])){_CONDITION})$"
)
_INTEGERS = re.compile(  # {x ∈ ℤ : 1 ≤ x < 4}
    r"^([a-zA-Z])\s*\\in\s*\\mathbb\s*\{?[ZN]\}?\s*(?:\\mid|\||:|,)\s*(-?\d+)\s*(<|\\le)\s*\1\s*(<|\\le)\s*(-?\d+)$"
)
_LABEL = re.compile(r"^\(([a-h])\)\s+(?=\S)")
_ANGLED = re.compile(r"^\\langle(.*)\\rangle$")
_LEFT_BRACE = re.compile(r"^\\\{\s*\\begin\{array\}\s*\{[lcr]*\}(.*)\\end\{array\}\s*\.?$", re.DOTALL)
_ARRAY = re.compile(r"^[(\[]\s*\\begin\{array\}.*\\end\{array\}\s*[)\]]$", re.DOTALL)
RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne)(?![a-zA-Z])")
_OPEN, _CLOSE = "([{", ")]}"


def split(text: str, at: Callable[[str, int], int]) -> list[str]:
    """Parts of a text between the places outside all brackets where ``at`` finds a separator (its length, or 0)."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text[i] == "\\" and i + 1 < len(text) and text[i + 1] in "{}":
            depth += 1 if text[i + 1] == "{" else -1
            i += 2
            continue
        if text[i] in _OPEN:
            depth += 1
        elif text[i] in _CLOSE:
            depth -= 1
        width = at(text, i) if depth == 0 else 0
        if width:
            parts.append(text[start:i])
            i = start = i + width
        else:
            i += 1
    return [*parts, text[start:]]


def _comma(spaced: bool) -> Callable[[str, int], int]:
    """A comma that does not set off thousands: where some are followed by a space, only those do part."""
    def width(text: str, i: int) -> int:
        if text[i] != ",":
            return 0
        following = text[i + 1 : i + 5]
        thousands = i > 0 and text[i - 1].isdigit() and following[:3].isdigit() and not following[3:4].isdigit()
        return 0 if thousands and spaced else 1

    return width


def _word(text: str, i: int) -> int:
    found = _JOIN.match(text, i)
    return found.end() - i if found else 0


def _either(text: str, i: int) -> int:
    found = _OR.match(text, i)
    return found.end() - i if found else 0


def _at(symbol: str) -> Callable[[str, int], int]:
    def width(text: str, i: int) -> int:
        behind = text[i + len(symbol) : i + len(symbol) + 1]
        return len(symbol) if text.startswith(symbol, i) and not (symbol[-1].isalpha() and behind.isalpha()) else 0

    return width


def _matches(text: str) -> bool:
    """Whether the bracket that opens a text is closed by its last character."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in _OPEN) - (c in _CLOSE)
        if depth == 0 and i < len(text) - 1:
            return False
    return depth == 0


@functools.lru_cache(maxsize=1 << 13)
def read(text: str, depth: int = 0) -> Node:
    """The tree of an undressed text.

    Example:
      >>> read("(1, 2)").kind, read(r"x = 1 and y = 2").kind, read("1,234").kind, read("x^2 + 1").kind
      ('tuple', 'list', 'leaf', 'leaf')
    """
    text = re.sub(r"\s+", " ", text).strip()
    turned = _TURNED.match(text)
    if turned:  # ]1; 2] is (1, 2]
        text = f"{'(' if text[0] == ']' else '['}{turned[1]}, {turned[2]}{')' if text[-1] == '[' else ']'}"
    leaf = Node("leaf", text)
    if depth > DEEPEST or len(text) > LONGEST_TEXT or quantity(text) is not None or date(text) is not None:
        return leaf
    angled = _ANGLED.match(text)
    if angled:
        text = f"({angled[1].strip()})"
    below = functools.partial(read, depth=depth + 1)
    return next((node for node in (reader(text, below) for reader in _READERS) if node is not None), leaf)


Below = Callable[[str], Node]


def _environment(text: str, below: Below) -> Node | None:
    r"""A matrix, or the rows of cases; rows that only \\ sets apart."""
    text = _LEFT_BRACE.sub(r"\\begin{cases}\1\\end{cases}", text)
    if _ARRAY.match(text):  # \left[ \begin{array} … \right]
        text = text[1:-1].strip()
    matrix = _MATRIX.match(text)
    if matrix:
        rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[2]) if row.strip()]
        return Node("matrix", text, tuple(
            Node("tuple", row, tuple(below(cell.strip()) for cell in split(row, _at("&"))), "[]") for row in rows
        ))  # fmt: skip
    cases = _CASES.match(text)
    if cases and "\\\\" not in cases[2]:
        return below(cases[2].replace("&", " "))
    if cases:
        rows = [row for row in re.split(r"\\\\", cases[2]) if row.strip()]
        cells = [[cell.strip().rstrip(",") for cell in row.split("&")] for row in rows]
        if cases[1] == "cases" and all(len(row) == 2 and row[0] and row[1][:1] != "=" for row in cells):  # conditions
            pairs = [(row[0], re.sub(r"^(?:if|for|when|where)\s+", "", row[1])) for row in cells]
            return Node("list", text, tuple(Node("tuple", text, tuple(map(below, pair)), "[]") for pair in pairs))
        rows = [row.replace("&", " ").strip().rstrip(",") for row in rows]
        return Node("list", text, tuple(below(row) for row in rows))
    rows = [row.strip() for row in split(text, _at("\\\\"))] if "\\\\" in text and "\\begin" not in text else []
    if len(rows) > 1 and all(rows):
        return Node("list", text, tuple(below(row.rstrip(",")) for row in rows))
    return None


def _sets(text: str, below: Below) -> Node | None:
    """x ∈ a set, unions and intersections, and a set in its braces."""
    member = split(text, _at(r"\in")) if r"\in" in text else []
    if len(member) == 2 and SYMBOL.match(member[0].strip()):
        return Node("equation", text, (Node("leaf", member[0].strip()), below(member[1].strip())))
    name, equals, rest = text.partition("=")
    if equals and r"\cup" in rest and SYMBOL.match(name.strip()) and "=" not in rest:  # S = A ∪ B
        return Node("equation", text, (Node("leaf", name.strip()), below(rest.strip())))
    for symbol, kind in ((r"\cup", "union"), (r"\cap", "intersection")):
        parts = split(text, _at(symbol)) if symbol in text else []
        if len(parts) > 1 and not _EQUALS.search(parts[-1]):
            return Node(kind, text, tuple(below(part.strip()) for part in parts))
    if not (text.startswith(r"\{") and text.endswith(r"\}") and _matches(text.replace("\\", ""))):
        return None
    inside = text[2:-2].strip()
    if re.search(r"\\mid|\||:", inside):
        counted = _INTEGERS.match(inside)
        if counted:
            least, most = int(counted[2]) + (counted[3] == "<"), int(counted[5]) - (counted[4] == "<")
            numbers = range(least, min(most, least + LONGEST) + 1)
            return Node("set", text, tuple(Node("leaf", str(number)) for number in numbers))
        said = _SUCH_THAT.match(inside)
        bound = said is not None and re.search(rf"(?<![a-zA-Z\\]){said[1]}(?![a-zA-Z])", said[2])
        return below(said[2].strip()) if said and bound else Node("leaf", text)
    found = below(inside) if inside else Node("list", "")
    return Node("set", text, found.parts if found.kind == "list" else (found,))


def _list(text: str, below: Below) -> Node | None:
    """What stands between commas, semicolons and joining words."""
    plain = text.split("=")
    if len(plain) == 2 and "," not in plain[0] and quantity(plain[1].strip()):  # Q = 1,200
        return Node("equation", text, (Node("leaf", plain[0].strip()), below(plain[1].strip())))
    either = [piece.strip() for piece in split(text, _either)] if "=" in text else []
    if len(either) > 1 and all(len(split(piece, _comma(False))) > 1 or " and " in piece for piece in either):
        return Node("list", text, tuple(below(piece) for piece in either))  # x = 1, y = 2 or x = 3, y = 4
    parts = [part.strip() for piece in split(text, _word) for part in split(piece, _comma(", " in text or ";" in text))]
    if len(parts) < 2:
        return None
    if all(_LABEL.match(part) for part in parts):  # (a) 1; (b) 2
        parts = [_LABEL.sub("", part) for part in parts]
    nodes = [below(re.sub(r"^(?:and|or)\s+", "", part)) for part in parts if part]
    spread = tuple(part for node in nodes for part in (node.parts if _spreads(node) else (node,)))
    return Node("list", text, _filled(spread))


def _spreads(node: Node) -> bool:
    r"""Whether a part of a list is several: \pm 1, or x = y = 3."""
    return node.kind == "list" and (r"\pm" in node.text or node.text.count("=") > 1)


def _bracketed(text: str, below: Below) -> Node | None:
    """A tuple or an interval, or what stands in round brackets."""
    if not (len(text) > 2 and text[0] in "([" and text[-1] in ")]" and _matches(text)):
        return None
    inside = text[1:-1].strip()
    pieces = split(inside, _comma(", " in inside))
    if len(pieces) == 1 and ";" in inside:
        pieces = split(inside, _at(";"))
    if len(pieces) > 1 and all(piece.strip() for piece in pieces):
        return Node("tuple", text, tuple(below(piece.strip()) for piece in pieces), text[0] + text[-1])
    return below(inside) if text[0] == "(" and text[-1] == ")" else None


def _equated(text: str, below: Below) -> Node | None:
    """An equation, the same value for several names, a point with its name, and both signs of ±."""
    sides = [side.strip() for side in split(text, lambda t, i: 1 if _EQUALS.match(t, i) else 0)] if "=" in text else []
    if len(sides) > 1 and all(sides) and not RELATION.search(text) and not re.search(r"\\(?:equiv|approx)", text):
        if len(sides) > 2 and all(SYMBOL.match(side) for side in sides[:-1]):  # x = y = 3
            return Node("list", text, tuple(below(f"{side} = {sides[-1]}") for side in sides[:-1]))
        rest = below(sides[1]) if len(sides) == 2 else Node("leaf", " = ".join(sides[1:]))
        return Node("equation", text, (Node("leaf", sides[0]), rest))
    point = re.match(r"^[A-Z]\s*(?=\()", text)
    if point and _matches(text[point.end() :]) and re.search("[,;]", text):  # P(1, 2)
        return Node("equation", text, (Node("leaf", point[0].strip()), below(text[point.end() :])))
    if text.count(r"\pm") == 1 and r"\mp" not in text and not re.search(r"[=<>]", text):
        both = [below(text.replace(r"\pm", sign).strip().removeprefix("+")) for sign in "+-"]
        if both[0].kind == "tuple":  # each part of it
            inside = ", ".join(f"-({part.text})" for part in both[0].parts)
            both[1] = below(f"{both[0].brackets[0]}{inside}{both[0].brackets[1]}")
        return Node("list", text, tuple(both))
    return None


_READERS: tuple[Callable[[str, Below], Node | None], ...] = (_environment, _sets, _list, _bracketed, _equated)


def _filled(parts: tuple[Node, ...]) -> tuple[Node, ...]:
    r"""Parts of a list in which \ldots stands for an arithmetic progression: all, or the first three and \ldots."""
    at = [i for i, part in enumerate(parts) if part.text == r"\ldots"]
    if len(at) != 1 or at[0] < 2:
        return parts
    others = parts[: at[0]] + parts[at[0] + 1 :]
    shown = [quantity(part.parts[1].text if part.kind == "equation" else part.text) for part in others]
    if any(number is None or number.unit or number.decimal for number in shown):
        return parts
    values = [number.value for number in shown if number]
    step = values[1] - values[0]
    before = values[: at[0]]
    if not step or any(b - a != step for a, b in zip(before, before[1:], strict=False)):
        return parts
    leaf = lambda value: Node("leaf", str(value))
    if at[0] == len(parts) - 1:  # for ever
        return (*(leaf(value) for value in before[:3]), parts[-1]) if len(before) > 2 else parts
    count = (values[-1] - values[0]) / step
    whole = [values[0] + i * step for i in range(int(count) + 1)] if 0 < count < LONGEST else []
    if count.denominator != 1 or values[at[0] :] != whole[len(whole) - len(values) + at[0] :]:
        return parts
    return tuple(leaf(value) for value in whole)


def is_symbol(text: str) -> bool:
    """Whether a text is what a value is given to: x, a_n, f(x), \\angle ABC."""
    return bool(SYMBOL.match(text))
