"""What Math-Verify's grammar reads in a text, as values of sympy, and when two values are equal.

Math-Verify's own time limits use SIGALRM, which only a main thread may: they are off here, and the pool's deadline
stands in. Simplification can take any time, so grade in a ``GraderPool``.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from salt_jax.graders.structure import read
from salt_jax.graders.verdict import GraderError

LONGEST, DEEPEST = 400, 12  # characters and brackets within brackets of what is read
_HUGE = re.compile(  # exponents, factorials and binomials that are not worked out
    r"\^\s*\{?\s*[-+(]*\s*(?:\d{5,}|\{?\s*\d+\s*\^)|\d{5,}\s*[)}]?\s*!|!\s*!|\([^()a-zA-Z]*\^[^()a-zA-Z]*\)\s*!"
    r"|\\binom\s*\{?\s*\d{6,}|\d{300,}|\^\s*\{[^{}a-zA-Z]*\d[^{}a-zA-Z]*\^|\\(?:sum|prod|int|lim|gcd|lcm)(?![a-zA-Z])"
    r"|(?:\^\s*\{[^{}]*){3}\^|\\(?:sin|cos|tan|sec|csc|cot)\s*\^\s*\{?\s*\d\d|\([^()]*(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])[^()]*\)"
    r"\s*\^\s*\{?\s*(?:\d\d\d|[2-9]\d)"
)
_HARD = re.compile(  # inequalities that are not solved
    r"\\sqrt\s*\{[^{}]*[a-z]|\\(?:sin|cos|tan|log|ln)\s*\(?\s*[a-z]|\^\s*\{?\s*(?:\d\d|[5-9])|(?:\|[^|]*){5}"
)
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*(?:d|\\partial)(?![a-zA-Z]{2})")
_TOWER = re.compile(r"(?<=\^)\s*\{\s*(\d{1,4})\s*\^\s*(?:(\d{1,2})|\{\s*(\d{1,2})\s*\})\s*\}")
_MISREAD = re.compile(r"(?<![\d_])\d+\s+\d|\d\s*_|\d\s*\.\s*\.|\dx\d")
_MIXED = re.compile(r"(?<![\d.}])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
LARGEST = 1e30  # a number that an expression with letters may simplify to
PLAIN = 200  # operations of an answer that is brought to a normal form; a longer one stays as it was parsed
DIGITS, CLOSE = 40, 1e-30  # digits of a number that is not rational, and how close two equal ones are, relatively
ROUNDED = 1e-6  # the same where one of them is a decimal


def attempted(compute: Callable[[], Any], otherwise: Any) -> Any:
    """What sympy or Math-Verify's parser computes; ``otherwise`` where it raises, which is of many kinds.

    Want of memory is no answer to the question and goes on: the reward is then missing.
    """
    try:
        return compute()
    except MemoryError:
        raise
    except Exception:
        return otherwise


@functools.cache
def library() -> ModuleType:
    """Math-Verify, without its warnings of time limits that are off.

    Raises:
      GraderError: without the extra `math`.
    """
    try:
        import math_verify
    except ImportError:
        raise GraderError("math_equal needs the extra 'math': pip install 'salt-jax[math]'") from None
    for module in ("parser", "grader"):
        log = logging.getLogger(f"math_verify.{module}")
        log.addFilter(lambda record: not record.getMessage().startswith("Timeout is disabled"))
    return math_verify


def _power(tower: re.Match[str]) -> str:
    """An exponent that is a power, worked out."""
    return f"{{{int(tower[1]) ** int(tower[2] or tower[3])}}}"


def _depth(text: str) -> int:
    depth = most = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        most = max(most, depth)
    return max(most, text.count("|") // 2)


@functools.lru_cache(maxsize=1 << 13)
def read_whole(text: str) -> Any:
    """What Math-Verify's grammar reads in the whole of an undressed text; None where it does not read all of it.

    None too for what would take long (long texts, deep brackets, towers of powers, sums, integrals, limits), and for
    what the grammar reads as something else: two numbers beside each other, a digit that its base does not have, dy/dx.
    """
    mixed = _MIXED.search(text)
    improper = mixed is not None and int(mixed[2]) >= int(mixed[3])
    if improper or _DERIVATIVE.search(text):
        return None
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    text = _TOWER.sub(_power, text) if "^" in text else text
    if len(text) > LONGEST or _HUGE.search(text) or _MISREAD.search(text) or _depth(text) > DEEPEST:
        return None
    library()
    text = re.sub(r"(\d+(?:\.\d+)?)\s*%", r"\\frac{\1}{100}", text)
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify.grader import should_treat_as_complex

    config = ConversionConfig(lowercase_symbols=False)  # capitals are other letters: R is not r
    real = not should_treat_as_complex(text)
    return attempted(
        lambda: latex2sympy(text, is_real=real, normalization_config=None, conversion_config=config), None
    )


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


def same_value(a: Any, b: Any, rounded: bool) -> bool:
    """Whether two values of sympy are equal: numbers to 40 digits, all else as Math-Verify verifies it."""
    import sympy  # type: ignore[import-untyped]

    a, b = (_with_i(x) for x in (a, b))
    if all(isinstance(x, sympy.Expr) and not x.free_symbols and x.is_number is not False for x in (a, b)):
        if all(x.is_rational for x in (a, b)) and not rounded:
            return bool(a.doit() == b.doit())
        x, y = (sympy.N(value, DIGITS) for value in (a, b))
        endless = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)
        if not (x.is_number and y.is_number) or x.has(*endless) or y.has(*endless):
            return bool(a == b)
        scale = max(abs(x), abs(y))
        return bool(abs(x - y) <= (ROUNDED if rounded else CLOSE) * scale)
    for x, y in ((a, b), (b, a)):  # a long number is no value of letters
        number = isinstance(x, sympy.Expr) and not x.free_symbols and getattr(y, "free_symbols", None)
        if number and not abs(sympy.N(x)) < LARGEST:
            return False
    return bool(library().verify([b], [a], timeout_seconds=None, raise_on_error=True))


def _with_i(value: Any) -> Any:
    """A value in which i, where nothing else is unknown, is the imaginary unit."""
    import sympy

    unknown: Any = getattr(value, "free_symbols", ())
    if unknown and {x.name for x in unknown} == {"i"}:
        return value.xreplace({x: sympy.I for x in unknown})
    return value


def real_set(text: str) -> Any:
    """The set of real numbers that a text says: of inequalities, intervals, unions and ℝ; None for all else."""
    import sympy

    if len(text) > LONGEST:
        return None
    text = re.sub(r"^[a-zA-Z]\s*\\in(?![a-zA-Z])", "", text).strip()
    for pattern, joined in (
        (r"\s+or\s+|\s*或\s*|\\lor(?![a-zA-Z])|\\cup(?![a-zA-Z])", sympy.Union),
        (r"\s+and\s+|\s*[且和]\s*|\\land(?![a-zA-Z])|\\cap(?![a-zA-Z])", sympy.Intersection),
    ):
        parts = re.split(pattern, text)
        if len(parts) > 1:
            sets = [real_set(part.strip()) for part in parts]
            return None if any(part is None for part in sets) else joined(*sets)
    parts = re.split(r"\s*,\s*", text)
    if len(parts) > 1 and all(re.search(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])", part) for part in parts):
        sets = [real_set(part) for part in parts]
        return None if any(part is None for part in sets) else sympy.Intersection(*sets)
    parts = re.split(r"\\setminus(?![a-zA-Z])|\s+except\s+", text)
    if len(parts) == 2:
        whole, less = real_set(parts[0]), read(parts[1].strip())
        numbers = [read_whole(part.text) for part in less.parts or (less,)]
        sure = all(isinstance(x, sympy.Expr) and x.is_number for x in numbers)
        return whole - sympy.FiniteSet(*numbers) if whole is not None and sure else None
    if text in (r"\mathbb{R}", r"\mathbf{R}"):
        return sympy.S.Reals
    signed = re.fullmatch(r"\\mathbb\{R\}\s*[_^]\s*\{?\s*([+-]|>\s*0|<\s*0)\s*\}?", text)
    if signed:
        return sympy.Interval.open(0, sympy.oo) if signed[1][0] in "+>" else sympy.Interval.open(-sympy.oo, 0)
    if text == r"\emptyset":
        return sympy.S.EmptySet
    found = read(text)
    if found.kind == "tuple" and len(found.parts) == 2:
        ends = [read_whole(part.text) for part in found.parts]
        if all(isinstance(x, sympy.Expr) and (x.is_number or x in (sympy.oo, -sympy.oo)) for x in ends):
            return sympy.Interval(*(_exact(x) for x in ends), found.brackets[0] == "(", found.brackets[1] == ")")
        return None
    value = None if _HARD.search(text) else read_whole(text)
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
    return attempted(lambda: _exact(value.xreplace({unknown: sympy.Symbol("x", real=True)})).as_set(), None)


def unit_vectors(text: str, count: int) -> str:
    """A vector that is written with i, j and k, as a tuple; '' for all else.

    Example:
      >>> unit_vectors("3i - j", 2)
      '(3, -1)'
    """
    import sympy

    if count not in (2, 3) or "j" not in text:
        return ""
    text = re.sub(r"^\\?\w+(?:\{\w+\})?\s*=\s*|\\(?:hat|vec)\s*(?=\{)", "", text)
    value = read_whole(re.sub(r"\{([ijk])\}", r"\1", text))
    letters = [sympy.Symbol(name) for name in "ijk"[:count]]
    if not isinstance(value, sympy.Expr) or not {x.name for x in value.free_symbols} <= set("ijk"):
        return ""
    value = sympy.expand(value.doit().xreplace({x: sympy.Symbol(x.name) for x in value.free_symbols}))
    parts = [value.coeff(letter) for letter in letters]
    whole = sympy.expand(value - sum(part * letter for part, letter in zip(parts, letters, strict=True))) == 0
    return f"({', '.join(map(str, parts))})" if whole else ""


def constant(text: str) -> Any:
    """The value of a text without unknowns; None for any other."""
    value = read_whole(text)
    return value if getattr(value, "is_number", False) else None
