r"""Families of numbers that an integer counts: kπ + π/4 with k ∈ ℤ, 3 (mod 5), 5k + 3.

A family is a period and the residues in it. Two are equal if their residues are, within a common period: how it is
written, which letter counts, and where it starts do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

LONGEST = 400  # characters of a text that may be a family
MOST = 1000  # residues within a common period
_WHOLE = r"(?:\\mathbb\s*\{?\s*Z\s*\}?|\\mathbf\s*\{?\s*Z\s*\}?|\\?Z(?![a-zA-Z])|(?:the )?(?:set of )?integers)"
_DOMAIN = re.compile(
    rf"[\s,;]*\(?\s*(?:where|for|with)?\s*(?:(?:any|all|every|some|an|each)\s+)*(?:integers?\s+(?P<b>[a-zA-Z])"
    rf"|(?P<a>[a-zA-Z])\s*(?:\\in\s*{_WHOLE}|is\s+(?:an|any)\s+integer|(?:an|any)\s+integer)"
    r"|(?P<c>[a-zA-Z])\s*=\s*0\s*,\s*\\pm\s*1\s*,(?:\s*\\pm\s*2\s*,)?\s*\\ldots)\s*\)?$"
)
_MODULO = re.compile(
    r"\s*(?:\\pmod|\\bmod|\\mod|\(\s*(?:\\bmod|\\mod|mod)|mod(?:ulo)?(?![a-z]))\s*\{?\s*(\d+)\s*\}?\s*\)?$"
)
_NAME = re.compile(r"^[a-zA-Z](?:_\s*\{?\w+\}?)?\s*(?:=(?!=)|\\equiv|\\in(?![a-zA-Z]))\s*")
Read = Callable[[str], Any]  # text → a value of sympy, or None
Family = tuple[Any, tuple[Any, ...]]  # the period, positive; numbers that stand for their residues


def counted(text: str) -> tuple[str, str]:
    r"""A text without the words that say which letter runs through all integers, and that letter ('' for none).

    Example:
      >>> counted(r"\frac{\pi}{4} + k\pi, k \in \mathbb{Z}"), counted("5n + 3 for any integer n"), counted("x > 3")
      (('\\frac{\\pi}{4} + k\\pi', 'k'), ('5n + 3', 'n'), ('x > 3', ''))
    """
    found = _DOMAIN.search(text) if len(text) <= LONGEST else None
    return (text[: found.start()].strip(), found["a"] or found["b"] or found["c"]) if found else (text, "")


def is_modular(text: str) -> bool:
    """Whether a text ends in a modulus."""
    return bool(_MODULO.search(text))


def families(text: str, letter: str, read: Read) -> Family | None:
    """The family that a text is, as a whole; None where it is none.

    Args:
      text: without its domain, see ``counted``.
      letter: which runs through all integers; '' for none, '*' for whichever the text has.
      read: how a piece becomes a value.
    """
    modulo = _MODULO.search(text)
    if modulo:
        pieces, period = _pieces(text[: modulo.start()]), int(modulo[1])
        values = [read(_NAME.sub("", piece.strip())) for piece in pieces]
        if not period or not all(getattr(value, "is_Integer", False) or _integer(value) for value in values):
            return None
        return period, tuple(int(value.doit()) % period for value in values)
    if not letter:
        return None
    found: list[Family] = []
    for piece in _pieces(text):
        value = read(_NAME.sub("", piece.strip()))
        family = None if value is None else _linear(value, letter)
        if family is None:
            return None
        found.append(family)
    return _joined(found) if found else None


def _integer(value: Any) -> bool:
    return bool(getattr(value, "is_number", False) and value.doit().is_Integer)


def _pieces(text: str) -> list[str]:
    """What stands between commas and 'or'; ± as two."""
    pieces = re.split(r"\s*[,;]\s*|\s+(?:or|and)\s+|\s*\\(?:lor|vee|cup)(?![a-zA-Z])\s*", text.strip())
    signs = [piece.replace(r"\pm", sign) for piece in pieces for sign in ("+-" if piece.count(r"\pm") == 1 else "+")]
    return [re.sub(r"(^|=)\s*\+", r"\1", piece) for piece in signs if piece.strip()]


def _linear(value: Any, letter: str) -> Family | None:
    """a + b·letter as (|b|, a)."""
    import sympy  # type: ignore[import-untyped]

    if not isinstance(value, sympy.Expr) or len(value.free_symbols) != 1:
        return None
    symbol = next(iter(value.free_symbols))
    if letter not in ("*", symbol.name):
        return None
    value = sympy.expand(value.doit())
    slope, start = value.coeff(symbol, 1), value.coeff(symbol, 0)
    if sympy.expand(value - slope * symbol - start) != 0 or not (slope.is_real and start.is_real) or slope == 0:
        return None
    return abs(slope), (start,)


def _joined(found: list[Family]) -> Family | None:
    """Several families as one, in the least common period."""
    import sympy

    first = found[0][0]
    ratios = [sympy.nsimplify(period / first) if period != first else sympy.Integer(1) for period, _ in found]
    if not all(ratio.is_Rational for ratio in ratios):
        return None
    common = first
    if any(ratio != 1 for ratio in ratios):
        top = sympy.ilcm(*(r.p for r in ratios)) if len(ratios) > 1 else ratios[0].p
        common = first * sympy.Rational(top, sympy.igcd(*(r.q for r in ratios)))
    starts = []
    for period, residues in found:
        times = common / period
        if not sympy.simplify(times).is_Integer or times > MOST:
            return None
        starts += [start + i * period for start in residues for i in range(int(times))]
    return common, tuple(starts)


def same_family(a: Family, b: Family) -> bool:
    """Whether two families have the same members."""
    import sympy

    ratio = sympy.nsimplify(sympy.sympify(a[0]) / b[0])
    if not ratio.is_Rational or len(a[1]) * ratio.q > MOST or len(b[1]) * ratio.p > MOST:
        return False
    period = b[0] * ratio.p
    parts = [
        {_phase(start + i * of, period) for start in starts for i in range(int(count))}
        for (of, starts), count in ((a, ratio.q), (b, ratio.p))
    ]
    return parts[0] == parts[1]


def _phase(start: Any, period: Any) -> Fraction | str:
    """Where in the period a number lies: exactly where that is rational, else to 30 digits."""
    import sympy

    share = sympy.nsimplify(sympy.sympify(start) / period) if period != 0 else sympy.Integer(0)
    if share.is_Rational:
        return Fraction(int(share.p), int(share.q)) % 1
    return str(sympy.N(share - sympy.floor(share), 30))
