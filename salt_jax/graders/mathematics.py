"""Mathematical answers, by Math-Verify (extra `math`): a correct answer is one that Math-Verify verifies.

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

from salt_jax.graders.extract import last_boxed
from salt_jax.graders.verdict import GraderError, Verdict

TAIL = 4000  # characters from the end in which an answer without a box is looked for; the search is quadratic
SHORT = 200  # characters of an answer whose parse is kept
PLAIN = 200  # operations of an answer that is brought to a normal form; a longer one stays as it was parsed
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARKED = re.compile(r"\$|\\\(|\\\[")


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


@functools.cache
def _configs() -> tuple[Any, ...]:
    library = _library()
    return library.LatexExtractionConfig(boxed_match_priority=0), library.ExprExtractionConfig()


def _parse(text: str) -> list[Any]:
    return _library().parse(text, _configs(), parsing_timeout=None)


@functools.lru_cache(maxsize=1 << 14)
def _parse_short(content: str) -> tuple[Any, ...]:
    return tuple(_parse(f"\\boxed{{{content}}}"))


def _parse_box(content: str) -> tuple[Any, ...]:
    """What Math-Verify reads in a box. Parsing is most of the work, and right answers are often the same text."""
    if len(content) > SHORT:
        return _parse_short.__wrapped__(content)
    return _parse_short(content) if content.strip() else ()


@functools.lru_cache(maxsize=1 << 12)
def _parse_reference(reference: str) -> tuple[Any, ...]:
    """What Math-Verify reads in a plain answer, or one in '$…$' or a box."""
    box = last_boxed(reference)
    plain = box is None and not _MARKED.search(reference)
    parsed = tuple(_parse(reference)) if box is None and not plain else _parse_box((box or reference).strip())
    if not any(not isinstance(value, str) for value in parsed):
        raise ValueError(f"the reference {reference[:100]!r} has no mathematical value")
    return parsed


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


def math_equal(
    completion: str, reference: str, *, boxed_only: bool = False, last_number: bool = False
) -> Verdict:
    r"""1.0 if the completion's answer is mathematically the reference, else 0.0.

    Where the completion has a box, its last ``\boxed{…}`` is the answer. Else Math-Verify looks for one in the last
    4,000 characters: after 'final answer is', then after 'answer', then the last LaTeX, then the last number or
    expression. Text inside and after a chain of thought is treated alike.

    ======================================  =================  ======
    completion                              reference          reward
    ======================================  =================  ======
    ``so $\boxed{\frac12}$``                ``0.5``            1
    ``The answer is 1,234.``                ``1234``           1
    ``\boxed{3/4}``                         ``1/4``            0, and 1 with last_number
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
      ValueError: a reference that cannot be parsed.
    """
    gold = _parse_reference(reference)
    box = last_boxed(completion)
    if box is not None:
        found = _parse_box(box)
    else:
        found = () if boxed_only else tuple(_parse(completion[-TAIL:]))
    answer = normal_form(found[0]) if found else None
    # Not symmetric: the reference's form decides, so that 3 answers 'x=3' and 'x=3' answers 3, but 3 not '2x=6'.
    correct = bool(found) and _library().verify(list(gold), list(found), timeout_seconds=None, raise_on_error=True)
    if not correct and last_number:
        numbers = _last(completion), _last(reference)
        correct = numbers[0] is not None and numbers[0] == numbers[1]
    return Verdict(float(correct), answer)


_last = last_number  # the function, which an argument of the same name hides
