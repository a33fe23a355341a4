"""Mathematical answers: read as a whole, numbers exactly, the rest by Math-Verify (extra `math`).

An answer and its reference are undressed (``dress``), taken apart (``structure``) and compared part by part: quantities
exactly (``quantity``), everything else as Math-Verify's grammar reads it, from its first character to its last. What
cannot be read so is compared as a text. Nothing is picked out of the middle of an answer.

Math-Verify's own time limits use SIGALRM, which only a main thread may: they are off here, and the pool's deadline
stands in. Simplification can take any time, so grade in a ``GraderPool``.
"""

from __future__ import annotations

import functools
import logging
import re
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any

from salt_jax.graders.dress import undressed
from salt_jax.graders.extract import answer_text, last_boxes
from salt_jax.graders.quantity import UNITS, equal, quantity
from salt_jax.graders.structure import Node, assigned, read, same
from salt_jax.graders.verdict import GraderError, Verdict

PLAIN = 200  # operations of an answer that is brought to a normal form; a longer one stays as it was parsed
DIGITS, CLOSE = 40, 1e-30  # digits of a number that is not rational, and how close two equal ones are, relatively
ROUNDED = 1e-6  # the same where one of them is a decimal
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_COMMA = re.compile(r"^(-?(?:\d{1,3}(?:[. ]\d{3})+|\d+)),(\d+)(?=$|\s|[€$%])")
_REAL = re.compile(r"[<>]|\\(?:le|ge|cup|cap|setminus|mathbb)(?![a-zA-Z])")
_MARKS = re.compile(r"[\s{}.,!?'\"()-]")
_UNIT = re.compile(
    r"^(.*?[\w})\]])\s+((?:(?:square|cubic) )?[a-zA-Z]+(?:\s*/\s*[a-zA-Z]+|\s+per\s+[a-zA-Z]+)?"
    r"(?:\s*\^\s*\{?[23]\}?)?)$"
)


@functools.cache
def _library() -> ModuleType:
    try:
        import math_verify
    except ImportError:
        raise GraderError("math_equal needs the extra 'math': pip install 'salt-jax[math]'") from None
    for module in ("parser", "grader"):
        log = logging.getLogger(f"math_verify.{module}")
        log.addFilter(lambda record: not record.getMessage().startswith("Timeout is disabled"))
    return math_verify


@functools.lru_cache(maxsize=1 << 13)
def _read_whole(text: str) -> Any:
    """What Math-Verify's grammar reads in the whole of an undressed text; None where it does not read all of it."""
    _library()
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify.grader import should_treat_as_complex

    try:
        # capitals are other letters: R is not r
        config = ConversionConfig(lowercase_symbols=False)
        return latex2sympy(
            text, is_real=not should_treat_as_complex(text), normalization_config=None, conversion_config=config
        )
    except Exception:  # of its parser and of sympy, of many kinds
        return None


def last_number(text: str) -> Fraction | None:
    """The last number written in digits, without its thousands separators; None where there is none.

    Example:
      >>> last_number("3/4 of 1,000.50"), last_number("none")
      (Fraction(2001, 2), None)
    """
    found = _NUMBER.findall(text)
    # by way of Decimal, which has no limit of digits
    return Fraction(Decimal(found[-1].replace(",", "").rstrip("."))) if found else None


def normal_form(value: Any) -> str:
    """A text that is the same for most answers that are equal: numbers as fractions, sets in order.

    Cheap rather than complete: nothing is simplified that could take long, so equal answers can differ as texts.
    """
    import sympy  # type: ignore[import-untyped]

    if isinstance(value, str):
        return value.strip()
    if isinstance(value, sympy.Eq) and value.lhs.is_Symbol:
        value = value.rhs  # x = 3
    if isinstance(value, sympy.Set | sympy.Tuple) and value.args and not isinstance(value, sympy.Interval):
        parts = [normal_form(part) for part in value.args]
        return "{" + ", ".join(sorted(parts)) + "}" if isinstance(value, sympy.Set) else f"({', '.join(parts)})"
    if isinstance(value, sympy.Float):
        return str(sympy.Rational(str(value)))
    small = isinstance(value, sympy.Expr) and value.count_ops() <= PLAIN
    if small and not value.atoms(sympy.Function, sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit):
        exponents = [power.exp for power in value.atoms(sympy.Pow)]
        if all(abs(e) <= PLAIN if e.is_Rational else not e.is_number for e in exponents):
            value = value.doit()  # Math-Verify keeps 2 + 2, and 50 %, as they were written
            if isinstance(value, sympy.Expr) and value.atoms(sympy.Float):
                value = value.xreplace({f: sympy.Rational(str(f)) for f in value.atoms(sympy.Float)})
    return str(value)


def _leaf(answer: str, reference: str) -> bool:
    """Whether a part of an answer is that part of the reference."""
    numbers = quantity(answer), quantity(reference)
    if numbers[0] and numbers[1]:
        return equal(numbers[0], numbers[1])
    (answer, of_answer), (reference, of_reference) = _without_unit(answer), _without_unit(reference)
    if of_answer and of_reference and of_answer != of_reference:
        return False
    if _same_text(answer, reference):
        return True
    if _REAL.search(answer + reference):
        sets = _real_set(answer), _real_set(reference)
        if sets[0] is not None and sets[1] is not None:
            return bool(sets[0] == sets[1])
    values = _read_whole(answer), _read_whole(reference)
    if values[0] is None or values[1] is None:
        return False
    return _same_value(*values, ("." in answer) != ("." in reference))


def _without_unit(text: str) -> tuple[str, str]:
    """A text, and the unit behind it that it is left without; '' where there is none that is known."""
    found = _UNIT.match(text)
    one = quantity(f"1 {found[2]}") if found else None
    known = one is not None and one.unit and not one.unit.startswith("=")
    return (found[1], f"{one.value} {one.unit}") if found and one and known else (text, "")


def _same_text(answer: str, reference: str) -> bool:
    """Whether two texts are the same but for spaces, and words also but for capitals and marks."""
    if answer.replace(" ", "") == reference.replace(" ", ""):
        return bool(answer.strip())
    words = [_MARKS.sub("", re.sub(r"^(?:an?|the)\s", "", text.casefold())) for text in (answer, reference)]
    return words[0] == words[1] and len(words[0]) > 1 and words[0].isalpha()


def _same_value(a: Any, b: Any, rounded: bool) -> bool:
    """Whether two values of sympy are equal: numbers to 40 digits, all else as Math-Verify verifies it."""
    import sympy  # type: ignore[import-untyped]

    a, b = (_with_i(x) for x in (a, b))
    if all(isinstance(x, sympy.Expr) and not x.free_symbols and x.is_number is not False for x in (a, b)):
        if all(x.is_rational for x in (a, b)) and not rounded:
            return bool(a.doit() == b.doit())
        x, y = (sympy.N(value, DIGITS) for value in (a, b))
        if not (x.is_number and y.is_number) or x.has(sympy.oo, sympy.zoo, sympy.nan) or y.has(sympy.oo, sympy.nan):
            return bool(a == b)
        scale = max(abs(x), abs(y))
        return bool(abs(x - y) <= (ROUNDED if rounded else CLOSE) * scale)
    return bool(_library().verify([b], [a], timeout_seconds=None, raise_on_error=True))


def _with_i(value: Any) -> Any:
    """A value in which i, where nothing else is unknown, is the imaginary unit."""
    import sympy

    unknown: Any = getattr(value, "free_symbols", ())
    if unknown and {x.name for x in unknown} == {"i"}:
        return value.xreplace({x: sympy.I for x in unknown})
    return value


def _real_set(text: str) -> Any:
    """The set of real numbers that a text says: of inequalities, intervals, unions and ℝ; None for all else."""
    import sympy

    text = re.sub(r"^[a-zA-Z]\s*\\in(?![a-zA-Z])", "", text).strip()
    for pattern, joined in (
        (r"\s+or\s+|\\lor(?![a-zA-Z])|\\cup(?![a-zA-Z])", sympy.Union),
        (r"\s+and\s+|\\land(?![a-zA-Z])|\\cap(?![a-zA-Z])", sympy.Intersection),
    ):
        parts = re.split(pattern, text)
        if len(parts) > 1:
            sets = [_real_set(part.strip()) for part in parts]
            return None if any(part is None for part in sets) else joined(*sets)
    parts = re.split(r"\\setminus(?![a-zA-Z])|\s+except\s+", text)
    if len(parts) == 2:
        whole, less = _real_set(parts[0]), read(parts[1].strip())
        numbers = [_read_whole(part.text) for part in less.parts or (less,)]
        sure = all(isinstance(x, sympy.Expr) and x.is_number for x in numbers)
        return whole - sympy.FiniteSet(*numbers) if whole is not None and sure else None
    if text in (r"\mathbb{R}", r"\mathbf{R}"):
        return sympy.S.Reals
    if text == r"\emptyset":
        return sympy.S.EmptySet
    found = read(text)
    if found.kind == "tuple" and len(found.parts) == 2:
        ends = [_read_whole(part.text) for part in found.parts]
        if all(isinstance(x, sympy.Expr) and (x.is_number or x in (sympy.oo, -sympy.oo)) for x in ends):
            return sympy.Interval(*(_exact(x) for x in ends), found.brackets[0] == "(", found.brackets[1] == ")")
        return None
    value = _read_whole(text)
    return None if value is None else _as_set(value)


def _exact(value: Any) -> Any:
    """Decimals as fractions."""
    import sympy

    value = value.doit()
    return value.xreplace({x: sympy.Rational(str(x)) for x in value.atoms(sympy.Float)})


def _as_set(value: Any) -> Any:
    """What an inequality in one unknown says of it; None for all else."""
    import sympy

    relation = isinstance(value, sympy.And | sympy.Or | sympy.Rel) and not isinstance(value, sympy.Eq)
    if not relation or len(value.free_symbols) != 1:
        return None
    unknown = value.free_symbols.pop()
    try:
        return _exact(value.xreplace({unknown: sympy.Symbol("x", real=True)})).as_set()
    except Exception:  # sympy cannot solve it
        return None


def _equation(answer: str, reference: str) -> bool:
    """Whether two equations say the same: their sides' differences are multiples of each other."""
    import sympy

    values = []
    for text in (answer, reference):
        sides = [_read_whole(side.strip()) for side in re.split(r"(?<![<>!:\\\\])=(?!=)", text)]
        if len(sides) != 2 or not all(isinstance(side, sympy.Expr) for side in sides):
            return answer.replace(" ", "") == reference.replace(" ", "")
        values.append(sympy.expand(sympy.fraction(sympy.together(sides[0].doit() - sides[1].doit()))[0]))
    if values[1] == 0 or values[0] == 0:
        return values[0] == values[1]
    ratio = sympy.simplify(values[0] / values[1])
    return bool(ratio.is_number and ratio != 0)


@functools.lru_cache(maxsize=1 << 12)
def _reference(text: str) -> Node:
    found = read(undressed(text))
    cut = found.text.count("\\begin") != found.text.count("\\end")
    if cut or (not re.search(r"[^\W_]", found.text) and not found.parts and found.kind != "set"):
        raise ValueError(f"the reference {text[:100]!r} has no mathematical value")
    return found


def _in_other_dress(completion: str, text: str, gold: Node) -> bool:
    """Whether the last boxes together are the list of the reference, or a decimal comma makes its number."""
    if gold.kind in ("list", "set"):
        boxes = last_boxes(completion, len(gold.parts))
        if len(boxes) == len(gold.parts) > 1:
            return same(read(", ".join(undressed(box) for box in boxes)), gold, _leaf, _equation)
    number = quantity(gold.text)
    comma = _COMMA.sub(lambda m: f"{m[1].replace('.', '').replace(' ', '')}.{m[2]}", undressed(text))
    return bool(number and number.decimal and "," in text and same(read(comma), gold, _leaf, _equation))


def _answer(node: Node) -> str:
    """A text that is the same for most answers that are equal."""
    node = assigned(node)
    if node.parts and node.kind != "equation":
        parts = [_answer(part) for part in node.parts]
        if node.kind in ("list", "set", "union"):
            return " U ".join(sorted(parts)) if node.kind == "union" else "{" + ", ".join(sorted(parts)) + "}"
        brackets = node.brackets or "[]"
        return f"{brackets[0]}{', '.join(parts)}{brackets[1]}"
    found = quantity(node.text)
    if found:
        size = UNITS.get(found.word, ("", Fraction(1)))[1]
        return str(found.value / 100 if found.unit == "%" else found.value / size)
    value = _read_whole(node.text)
    return node.text if value is None else normal_form(value)


def math_equal(
    completion: str, reference: str, *, boxed_only: bool = False, last_number: bool = False
) -> Verdict:
    r"""1.0 if the completion's answer is mathematically the reference, else 0.0.

    Where the completion has a box, its last ``\boxed{…}`` that is not empty is the answer; a box within a chain of
    thought counts only where nothing after the thought says an answer. Without a box: what an ``<answer>`` holds, what
    follows the last 'answer is' or '####', the last LaTeX, the last number. All of it must be the reference.

    ======================================  =================  ======
    completion                              reference          reward
    ======================================  =================  ======
    ``so $\boxed{\frac12}$``                ``0.5``            1
    ``The answer is 1,234.``                ``1234``           1
    ``\boxed{3/4}``                         ``1/4``            0, and 1 with last_number
    ``\boxed{x^2-1=0}``                     ``0``              0
    ``The answer is 42.`` (boxed_only)      ``42``             0
    anything without an answer              ``42``             0, answer None
    anything                                no mathematics     missing
    ======================================  =================  ======

    Args:
      completion: what the policy wrote.
      reference: a plain answer, such as ``42``, ``\frac{3}{4}`` or ``x=3``; also in ``$…$`` or a box.
      boxed_only: count nothing but a box.
      last_number: also accept a text whose last number is the reference's last number, as the authors' release does.
        That takes ``1/4`` for ``3/4``: for comparison with it only.

    Returns:
      ``Verdict`` with the answer's normal form.

    Raises:
      GraderError: without the extra `math`.
      ValueError: a reference that cannot be read.
    """
    _library()
    gold = _reference(answer_text(reference, boxed_only=True) or reference)
    text = answer_text(completion, boxed_only=boxed_only)
    correct, answer = False, None
    if text is not None and text.strip():
        found = read(undressed(text))
        correct = same(found, gold, _leaf, _equation) or _in_other_dress(completion, text, gold)
        answer = _answer(found) or None
    if not correct and last_number:
        numbers = _last(completion), _last(reference)
        correct = numbers[0] is not None and numbers[0] == numbers[1]
    return Verdict(float(correct), answer)


_last = last_number  # the function, which an argument of the same name hides


def check_reference(reference: str, **_: bool) -> None:
    """ValueError for a reference without a value, or that is not equal to itself; nothing is simplified, so it ends."""

    def itself(text: str, _: str) -> bool:
        number = quantity(text)
        return bool(text.strip()) if number is None else equal(number, number)

    gold = _reference(answer_text(reference, boxed_only=True) or reference)
    if not same(gold, gold, itself, itself):
        raise ValueError(f"the reference {reference[:100]!r} is not equal to itself: no answer could be right")
