r"""What a mathematical answer is made of: lists, sets, tuples and intervals, unions, matrices, equations, and leaves.

``read`` takes an undressed text apart at its top level and again below; ``same`` compares two such trees: tuples and
matrices in order, sets and lists without, an equation with an equation. Leaves are compared by what the caller says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

from salt_jax.graders.quantity import quantity

DEEPEST = 8  # lists within lists
LONGEST = 64  # parts of a list that are matched without order


class Node(NamedTuple):
    """A part of an answer.

    Attributes:
      kind: 'leaf', 'list', 'set', 'tuple', 'union', 'matrix' or 'equation'.
      text: of the whole.
      parts: of all but leaves; of a matrix its rows, as tuples; of an equation its two sides.
      brackets: of a tuple, as '()' or '[)'.
    """

    kind: str
    text: str
    parts: tuple[Node, ...] = ()
    brackets: str = ""


_MATRIX = re.compile(
    r"^\\begin\{([pbvBV]?matrix|array|smallmatrix)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}$", re.DOTALL
)
_CASES = re.compile(r"^\\begin\{(cases|aligned|align\*?|gathered)\}(.*)\\end\{\1\}$", re.DOTALL)
_NAME = r"(?:[a-zA-Z]|[A-Z]{2,3}|[a-zA-Z]{3,}|\\[a-zA-Z]+)(?:'+|\s*_\s*(?:\{[^{}]*\}|\w))?"
_SYMBOL = re.compile(  # x, x_1, AB, area, f(x), |z|, (x, y)
    rf"^(?:{_NAME}|[a-zA-Z]\s*\(\s*[a-zA-Z\d]\s*\)|\|\s*{_NAME}\s*\||\(\s*{_NAME}(?:\s*[,;]\s*{_NAME})+\s*\))$"
)
_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)")
_JOIN = re.compile(r"\s+(?:and|or|und|oder|et|ou|и|или)\s+|\s*;\s*|\\(?:quad|qquad)\s*|\\(?:lor|vee)(?![a-zA-Z])")
_TURNED = re.compile(r"^(?=\]|.*\[$)[\[\]]\s*([^\[\];,]+)\s*[;,]\s*([^\[\];,]+)[\[\]]$")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne)(?![a-zA-Z])")
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
    if depth > DEEPEST or quantity(text) is not None:
        return leaf
    below = functools.partial(read, depth=depth + 1)
    matrix = _MATRIX.match(text)
    if matrix:
        rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[2]) if row.strip()]
        return Node("matrix", text, tuple(
            Node("tuple", row, tuple(below(cell.strip()) for cell in split(row, _at("&"))), "[]") for row in rows
        ))  # fmt: skip
    cases = _CASES.match(text)
    if cases:
        rows = [row.replace("&", " ").strip().rstrip(",") for row in re.split(r"\\\\", cases[2]) if row.strip()]
        return Node("list", text, tuple(below(row) for row in rows))
    member = split(text, _at(r"\in"))
    if len(member) == 2 and _SYMBOL.match(member[0].strip()):
        return Node("equation", text, (Node("leaf", member[0].strip()), below(member[1].strip())))
    parts = split(text, _at(r"\cup"))
    if len(parts) > 1:
        return Node("union", text, tuple(below(part.strip()) for part in parts))
    if text.startswith(r"\{") and text.endswith(r"\}") and _matches(text.replace("\\", "")):
        inside = text[2:-2].strip()
        if re.search(r"\\mid|\||:", inside):
            return leaf
        found = below(inside) if inside else Node("list", "")
        return Node("set", text, found.parts if found.kind == "list" else (found,))
    plain = text.split("=")
    if len(plain) == 2 and _SYMBOL.match(plain[0].strip()) and quantity(plain[1].strip()):  # Q = 1,200
        return Node("equation", text, (Node("leaf", plain[0].strip()), below(plain[1].strip())))
    parts = [part.strip() for piece in split(text, _word) for part in split(piece, _comma(", " in text or ";" in text))]
    if len(parts) > 1:
        parts = [re.sub(r"^(?:and|or)\s+", "", part) for part in parts if part]
        return Node("list", text, tuple(below(part) for part in parts))
    angled = re.match(r"^\\langle(.*)\\rangle$", text)
    if angled:
        text = f"({angled[1]})"
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and _matches(text):
        inside = text[1:-1].strip()
        pieces = split(inside, _comma(", " in inside))
        if len(pieces) == 1 and ";" in inside:
            pieces = split(inside, _at(";"))
        if len(pieces) > 1 and all(piece.strip() for piece in pieces):
            return Node("tuple", text, tuple(below(piece.strip()) for piece in pieces), text[0] + text[-1])
        if text[0] == "(" and text[-1] == ")":
            return below(inside)
    sides = [side.strip() for side in split(text, lambda t, i: 1 if _EQUALS.match(t, i) else 0)]
    if len(sides) > 1 and all(sides) and not _RELATION.search(text) and not re.search(r"\\(?:equiv|approx)", text):
        if len(sides) > 2 and all(_SYMBOL.match(side) for side in sides[:-1]):  # x = y = 3
            return Node("list", text, tuple(below(f"{side} = {sides[-1]}") for side in sides[:-1]))
        return Node("equation", text, (Node("leaf", sides[0]), below(sides[-1])))
    point = re.match(r"^[A-Z]\s*(?=\()", text)
    if point and _matches(text[point.end() :]) and "," in text:  # P(1, 2)
        return below(text[point.end() :])
    if text.count(r"\pm") == 1 and r"\mp" not in text and not re.search(r"[=<>]", text):
        return Node("list", text, tuple(below(text.replace(r"\pm", sign).strip().removeprefix("+")) for sign in "+-"))
    return leaf


def assigned(node: Node) -> Node:
    """The value of x in 'x = value'; another node as it is."""
    if node.kind != "equation":
        return node
    named = _SYMBOL.match(node.parts[0].text) or node.parts[1].kind not in ("leaf", "equation")
    return node.parts[1] if named else node


Equal = Callable[[str, str], bool]


def same(a: Node, b: Node, leaf: Equal, equation: Equal) -> bool:
    """Whether an answer ``a`` is the reference ``b``; ``leaf`` and ``equation`` compare texts of those kinds."""
    again = functools.partial(same, leaf=leaf, equation=equation)
    if re.sub(r"\s", "", a.text) == re.sub(r"\s", "", b.text) and a.kind == b.kind and not a.parts:
        return True
    if a.kind == b.kind == "equation":
        names = [node.parts[0].text.replace(" ", "") for node in (a, b)]
        if names[0] == names[1] and all(assigned(node) is not node for node in (a, b)):
            return again(a.parts[1], b.parts[1])
        return equation(a.text, b.text)
    if "equation" in (a.kind, b.kind):
        if assigned(a) is a and assigned(b) is b:
            return False  # an equation is not its right-hand side
        return again(assigned(a), assigned(b))
    if a.kind == "tuple" and b.kind == "tuple":
        if a.brackets != b.brackets or len(a.parts) != len(b.parts):
            return False
        return all(again(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    a, b = (_as_matrix(x) if y.kind == "matrix" else x for x, y in ((a, b), (b, a)))
    if a.kind == "matrix" and b.kind == "matrix":
        return len(a.parts) == len(b.parts) and all(again(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    loose = ("list", "set", "union")
    if "union" in (a.kind, b.kind):
        return (a.kind == b.kind and _matched(list(a.parts), list(b.parts), again)) or leaf(a.text, b.text)
    if a.kind in loose and b.kind in loose:
        lists = [[assigned(x) for x in node.parts] if _one_name(node) else list(node.parts) for node in (a, b)]
        if _matched(lists[0], lists[1], again):
            return True
        return bool(_RELATION.search(a.text + b.text)) and leaf(a.text, b.text)
    kinds = {a.kind, b.kind}
    if kinds == {"tuple", "list"}:  # with or without brackets, in order
        values = [tuple(assigned(part) for part in _in_order(node)) for node in (a, b)]
        if a.brackets + b.brackets != "()" or len(values[0]) != len(values[1]):
            return False
        return all(again(x, y) for x, y in zip(*values, strict=True))
    if kinds == {"set", "leaf"} and not (a.parts or b.parts):
        return (b if a.kind == "set" else a).text == r"\emptyset"
    if "set" in kinds and kinds != {"set"}:
        single, other = (a, b) if a.kind == "set" else (b, a)
        return other.kind == "leaf" and len(single.parts) == 1 and again(single.parts[0], other)
    both = a.text + b.text
    if kinds == {"leaf"} or _RELATION.search(both) or r"\mathbb{R}" in both or r"\begin" in both:  # x > 1 is (1, oo)
        return leaf(a.text, b.text)
    return False


def _one_name(node: Node) -> bool:
    """Whether all parts give the same name a value: x = 1 or x = 2."""
    return all(part.kind == "equation" for part in node.parts) and len({part.parts[0].text for part in node.parts}) == 1


def _as_matrix(node: Node) -> Node:
    """[[1, 2], [3, 4]] as a matrix."""
    rows = node.kind == "tuple" and all(part.kind == "tuple" and part.brackets == "[]" for part in node.parts)
    return Node("matrix", node.text, node.parts) if rows else node


def _in_order(node: Node) -> tuple[Node, ...]:
    """Parts of a list; of one that assigns every name, by the names."""
    if all(assigned(part) is not part for part in node.parts):
        return tuple(sorted(node.parts, key=lambda part: part.parts[0].text))
    return node.parts


def _matched(a: list[Node], b: list[Node], equal: Callable[[Node, Node], bool]) -> bool:
    """Whether each part of one is a part of the other, and as many."""
    if len(a) != len(b) or len(a) > LONGEST:
        return False
    left = list(b)
    for part in a:
        found = next((i for i, other in enumerate(left) if equal(part, other)), None)
        if found is None:
            return False
        left.pop(found)
    return True
