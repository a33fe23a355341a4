"""Mathematical answers: read as a whole, numbers exactly, the rest by Math-Verify (extra `math`).

An answer and its reference are undressed (``dress``), taken apart (``structure``) and compared part by part (``leaf``):
quantities exactly (``quantity``), everything else as Math-Verify's grammar reads it, from its first character to its
last (``values``). What cannot be read so is compared as a text. Nothing is picked out of the middle of an answer.
"""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from fractions import Fraction

from salt_jax.graders.compare import assigned, same
from salt_jax.graders.dress import undressed
from salt_jax.graders.extract import answer_text, last_boxes
from salt_jax.graders.leaf import equation, is_wordy, leaf, same_families
from salt_jax.graders.quantity import equal, quantity
from salt_jax.graders.structure import Node, is_symbol, read
from salt_jax.graders.units import UNITS
from salt_jax.graders.values import attempted, constant, library, normal_form, read_whole, unit_vectors
from salt_jax.graders.verdict import Verdict

WRITTEN = 400  # digits of a number in an answer's normal form
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_YES = re.compile(r"^(?:yes|no|true|false)\b[,.;:]", re.IGNORECASE)
_INDIAN = re.compile(r"^(?:Rs\.?|₹)?\s*-?\d{1,2}(?:,\d{2})+,\d{3}$")
_BELOW = re.compile(r"^\\binom\{([^{}]+)\}\{([^{}]+)\}$")
_COMMA = re.compile(r"^(-?(?:\d{1,3}(?:[. ]\d{3})+|\d+)),((?!\d{3}(?!\d))\d+|\d*\(\d+\))(?=$|\s|[€$%])")


def last_number(text: str) -> Fraction | None:
    """The last number written in digits, without its thousands separators; None where there is none.

    Example:
      >>> last_number("3/4 of 1,000.50"), last_number("none")
      (Fraction(2001, 2), None)
    """
    found = _NUMBER.findall(text)
    # by way of Decimal, which has no limit of digits
    return Fraction(Decimal(found[-1].replace(",", "").rstrip("."))) if found else None


@functools.lru_cache(maxsize=1 << 12)
def _reference(text: str) -> Node:
    found = _chained(read(undressed(text)))
    nothing = text.strip().lower() in ("nan", "null", "n/a")
    cut = found.text.count("\\begin") != found.text.count("\\end")
    if nothing or cut or (not re.search(r"[^\W_]", found.text) and not found.parts and found.kind != "set"):
        raise ValueError(f"the reference {text[:100]!r} has no mathematical value")
    return found


def _chained(node: Node) -> Node:
    r"""The value of a chain whose sides are equal, 1 - \frac{1}{6} = \frac{5}{6}; another node as it is."""
    if r"\approx" not in node.text and node.kind != "equation":
        return node
    pieces = re.split(r"((?<![<>!:\\])=(?!=)|\\approx(?![a-zA-Z]))", node.text)
    sides, signs = [piece.strip() for piece in pieces[::2]], pieces[1::2]
    if not signs:  # P(1, 2)
        return node
    named = is_symbol(sides[0]) and signs[0] == "="
    if named:
        sides, signs = sides[1:], signs[1:]
    if len(sides) < 2 or not all(sides):
        return node
    for side, sign, following in zip(sides, signs, sides[1:], strict=False):
        numbers = _is_number(side) and _is_number(following)
        if named and not numbers and quantity(sides[-1]):  # AB = 2r = 10
            continue
        if not (numbers and _near(side, following, sign == "=")) and not leaf(side, following):
            return node
    rounded = [
        i for i, sign in enumerate(signs)
        if sign != "=" or (_is_number(sides[i]) and not leaf(sides[i], sides[i + 1]))
    ]  # fmt: skip
    return read(sides[rounded[0]] if rounded else sides[-1])


def _is_number(text: str) -> bool:
    return quantity(text) is not None or constant(text) is not None


def _near(exact: str, rounded: str, equals: bool) -> bool:
    """Whether one number is about another: within 1 %; behind an equals sign, to all the decimals that are shown."""
    import sympy  # type: ignore[import-untyped]

    numbers = quantity(exact), quantity(rounded)
    a, b = (
        complex(number.value / (100 if number.unit == "%" else 1) if number else sympy.N(constant(text).doit()))
        for number, text in zip(numbers, (exact, rounded), strict=True)
    )
    places = re.fullmatch(r"-?\d*\.(\d+)", rounded)
    if equals:
        return places is not None and abs(a - b) <= 0.5000001 * 10.0 ** -len(places[1]) <= 0.01 * abs(a)
    return abs(a - b) <= 0.01 * abs(a)


def _in_other_dress(completion: str, text: str, gold: Node) -> bool:
    """Whether an answer is the reference in a form that only the reference's own form tells: all its boxes for a list,
    'No, it is not' for no, 12,34,567 or 0,5 for a number, a binomial or i, j, k for a vector, '5 and 1/8' for 5 1/8.
    """
    plain = undressed(text)
    if gold.kind in ("list", "set"):
        boxes = last_boxes(completion, len(gold.parts))
        if len(boxes) > 1:
            return same(read(", ".join(undressed(box) for box in boxes)), gold, leaf, equation)
    if re.match(rf"^{re.escape(plain.casefold())}\b[,.;:]", gold.text.casefold()) and _YES.match(gold.text):
        return True
    decided = re.match(r"^(yes|no|true|false)\b[,.;:]", plain.casefold())  # No, it is not
    if decided and decided[1] == gold.text.casefold():
        return True
    for one, other in ((plain, gold.text), (gold.text, plain)):
        if _INDIAN.match(one) and quantity(other):  # 12,34,567, where a number is asked for
            return leaf(one.replace(",", ""), other)
    below = _BELOW.match(plain)
    if below and gold.kind in ("tuple", "matrix"):  # \binom{5}{-12}, as a vector
        return same(read(f"({below[1]}, {below[2]})"), gold, leaf, equation)
    if gold.kind in ("tuple", "matrix") and (vector := unit_vectors(plain, len(gold.parts))):
        return same(read(vector), gold, leaf, equation)
    mixed = re.match(r"^(\d+) and (?:an? )?(\\frac.*|\d+/\d+)$", plain)
    if mixed and same(read(f"{mixed[1]} {mixed[2]}"), gold, leaf, equation):
        return True
    number = quantity(gold.text)
    comma = re.sub(r"^(-?0),(?=\d)", r"\1.", plain)
    comma = _COMMA.sub(lambda m: f"{m[1].replace('.', '').replace(' ', '')}.{m[2]}", comma)
    return bool(number and (number.decimal or "(" in comma) and "," in text and same(read(comma), gold, leaf, equation))


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
        written = found.value / 100 if found.unit == "%" else found.value / size
        return str(written) if max(abs(written.numerator), written.denominator) < 10**WRITTEN else node.text
    value = None if is_wordy(node.text) else read_whole(node.text)
    return node.text if value is None else attempted(lambda: normal_form(value), node.text)


def math_equal(
    completion: str, reference: str, *, boxed_only: bool = False, last_number: bool = False
) -> Verdict:
    r"""1.0 if the completion's answer is mathematically the reference, else 0.0.

    Where the completion has a box, its last ``\boxed{…}`` that is not empty is the answer, with those that 'and' joins
    to it; a box within a chain of thought counts only where nothing follows the thought and it is called the answer.
    Without a box: what an ``<answer>`` holds, what follows '####' or 'the answer is', the last expression of the last
    sentence that has one. A text that was cut off in its thought or its box has no answer. All of the answer must be
    the reference: a unit may be left out, and a name before the value ('x = 3'); nothing else may.

    ======================================  ==========================  ======
    completion                              reference                   reward
    ======================================  ==========================  ======
    ``so $\boxed{\frac12}$``                ``0.5``                     1
    ``The answer is 1,234.``                ``1234``                    1
    ``He needs 3 h 20 min.``                ``200 minutes``             1
    ``\boxed{2, 1}``                        ``\{1, 2\}``                1
    ``\boxed{(2, 1)}``                      ``(1, 2)``                  0
    ``\boxed{x > 3}``                       ``(3, \infty)``             1
    ``\boxed{5k + 3}``                      ``n \equiv 3 \pmod 5``      1
    ``\boxed{3 \text{ or } 4}``             ``3``                       0
    ``It is not 3.``                        ``3``                       0
    ``\boxed{3/4}``                         ``1/4``                     0, and 1 with last_number
    ``\boxed{x^2-1=0}``                     ``0``                       0
    ``The answer is 42.`` (boxed_only)      ``42``                      0
    anything without an answer              ``42``                      0, answer None
    anything                                no mathematics              missing
    ======================================  ==========================  ======

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
    library()
    gold = _reference(answer_text(reference, boxed_only=True) or reference)
    text = answer_text(completion, boxed_only=boxed_only)
    correct, answer = False, None
    if text is not None and text.strip():
        found = _chained(read(undressed(text)))
        correct = (
            same(found, gold, leaf, equation)
            or _in_other_dress(completion, text, gold)
            or same_families(found.text, gold.text)
        )
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
