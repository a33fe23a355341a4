r"""When two answers that were taken apart (``structure``) are the same.

Tuples and matrices in order, sets and lists without, an equation with an equation; a name before a value may be left
out. Leaves and equations are compared by what the caller says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from salt_jax.graders.quantity import quantity
from salt_jax.graders.structure import LONGEST, RELATION, SYMBOL, Node

Equal = Callable[[str, str], bool]
Same = Callable[[Node, Node], bool]
_DERIVED = re.compile(r"^\\frac\{d([a-z])\}\{dx\}$")  # dy/dx is y'
_SET_NAME = re.compile(r"^[A-Z](?:\s*\\(?:cap|cup|setminus|times)(?![a-zA-Z])\s*[A-Z])*$|^[A-Z]\s*\^\s*\{?[-\w]+\}?$")


def assigned(node: Node) -> Node:
    """The value of x in 'x = value'; another node as it is."""
    if node.kind != "equation":
        return node
    name = node.parts[0].text
    named = SYMBOL.match(name) or (_SET_NAME.match(name) and node.parts[1].kind not in ("leaf", "equation"))
    if name.startswith("(") and sorted(of := re.findall(r"\w+", name)) != of:
        return node  # (y, x) = (1, 2)
    return node.parts[1] if named else node


def same(a: Node, b: Node, leaf: Equal, equation: Equal) -> bool:
    """Whether an answer ``a`` is the reference ``b``; ``leaf`` and ``equation`` compare texts of those kinds."""
    again = functools.partial(same, leaf=leaf, equation=equation)
    if re.sub(r"\s", "", a.text) == re.sub(r"\s", "", b.text) and a.kind == b.kind and not a.parts:
        return True
    if a.kind == b.kind == "equation":
        names = [_DERIVED.sub(r"\1'", node.parts[0].text.replace(" ", "")) for node in (a, b)]
        if any(r"\in" in x.text and r"\in" not in y.text and x.parts[1].kind == "leaf" for x, y in ((a, b), (b, a))):
            return False
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
    if {a.kind, b.kind} == {"matrix", "tuple"}:  # a column
        column, row = (a, b) if a.kind == "matrix" else (b, a)
        if row.brackets == "()" and all(len(part.parts) == 1 for part in column.parts):
            cells = [part.parts[0] for part in column.parts]
            x, y = (cells, list(row.parts)) if a.kind == "matrix" else (list(row.parts), cells)
            return len(x) == len(y) and all(map(again, x, y))
    a, b = (_as_matrix(x) if y.kind == "matrix" else x for x, y in ((a, b), (b, a)))
    if a.kind == "matrix" and b.kind == "matrix":
        return len(a.parts) == len(b.parts) and all(again(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    loose = ("list", "set")
    if {"union", "intersection"} & {a.kind, b.kind}:
        return (a.kind == b.kind and _matched(list(a.parts), list(b.parts), again)) or leaf(a.text, b.text)
    if a.kind in loose and b.kind in loose:
        return _same_lists(a, b, again, leaf)
    kinds = {a.kind, b.kind}
    if kinds == {"tuple", "list"} and not RELATION.search(a.text + b.text):  # with or without brackets, in order
        values = [tuple(assigned(part) for part in _in_order(node)) for node in (a, b)]
        if a.brackets + b.brackets != "()" or len(values[0]) != len(values[1]):
            return False
        return all(again(x, y) for x, y in zip(*values, strict=True))
    if kinds == {"set", "leaf"} and not (a.parts or b.parts):
        return (b if a.kind == "set" else a).text == r"\emptyset"
    if "set" in kinds and kinds != {"set"}:
        single, other = (a, b) if a.kind == "set" else (b, a)
        if r"\emptyset" in other.text or any(part.text == r"\emptyset" for part in single.parts):  # {∅} is not ∅
            return False
        return other.kind == "leaf" and len(single.parts) == 1 and again(single.parts[0], other)
    both = a.text + b.text
    if kinds == {"leaf"} or RELATION.search(both) or r"\mathbb{R}" in both or r"\begin" in both:  # x > 1 is (1, oo)
        return leaf(a.text, b.text)
    return False


def _same_lists(a: Node, b: Node, again: Same, leaf: Equal) -> bool:
    """Whether two lists or sets have the same parts."""
    if a.kind == b.kind == "list" and _ordered(b):  # 1, 4, 6, 4, 1
        return len(a.parts) == len(b.parts) and all(again(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    names = [_names(node) for node in (a, b)]
    bases = [{name.partition("_")[0] for name in of} for of in names]
    several = [len(of) > 1 for of in bases]
    if names[0] and names[1] and (names[0] != names[1] if any(several) else bases[0] != bases[1]):
        return False
    plain = [all(part.kind != "equation" for part in node.parts) for node in (a, b)]
    if (several[0] and plain[1]) or (several[1] and plain[0]):  # x = 1, y = 2 for 1, 2
        x, y = ([assigned(part) for part in _in_order(node)] for node in (a, b))
        return len(x) == len(y) and all(map(again, x, y))
    bare = not any(several)  # without names, or with one: then the values count
    lists = [[assigned(x) for x in node.parts] if bare else list(node.parts) for node in (a, b)]
    strict: Same = lambda x, y: (x.kind == y.kind or "set" not in (x.kind, y.kind)) and again(x, y)  # {1} is not 1
    if _matched(lists[0], lists[1], strict):
        return True
    return bool(RELATION.search(a.text + b.text)) and leaf(a.text, b.text)


def _names(node: Node) -> set[str]:
    """What the parts give values to; one name in x = 1 or x = 2, also where only the first says it."""
    named = [part.parts[0].text for part in node.parts if part.kind == "equation"]
    return {name.replace(" ", "") for name in named if SYMBOL.match(name)}


def _ordered(node: Node) -> bool:
    """Whether a list has an order of its own: numbers that repeat, and do not only rise or fall."""
    numbers = [quantity(part.text) for part in node.parts]
    values = [number.value for number in numbers if number]
    return len(values) == len(numbers) > len(set(values)) and values not in (sorted(values), sorted(values)[::-1])


def _as_matrix(node: Node) -> Node:
    """[[1, 2], [3, 4]] as a matrix."""
    rows = node.kind == "tuple" and all(part.kind == "tuple" and part.brackets == "[]" for part in node.parts)
    return Node("matrix", node.text, node.parts) if rows else node


def _in_order(node: Node) -> tuple[Node, ...]:
    """Parts of a list; of one that assigns every name, by the names."""
    if all(assigned(part) is not part for part in node.parts):
        return tuple(sorted(node.parts, key=lambda part: part.parts[0].text))
    return node.parts


def _matched(a: list[Node], b: list[Node], equal: Same) -> bool:
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
