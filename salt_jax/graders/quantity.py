r"""Numbers and quantities, read exactly and as a whole or not at all.

``quantity`` knows digits with thousands, decimals, powers of ten, fractions, mixed numbers, repeating decimals, per
cent, money, units and sums of them (3 hours 20 minutes), clock times and numbers in a base. A text with anything else
in it is not a quantity: nothing is picked out of the middle.
"""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from salt_jax.graders.dates import clock as clock_time
from salt_jax.graders.number_words import MULTIPLES, in_digits, multiple
from salt_jax.graders.units import UNITS, unit_at

LONGEST = 400  # characters; a longer text is no quantity
EXPONENT = 5000  # the largest power of ten that is written out
TOLERANCE = Fraction(1, 10**6)  # relative, between a decimal and a value that no decimal writes


class Quantity(NamedTuple):
    """A number and what it counts.

    Attributes:
      value: exact, in the unit's base.
      decimal: whether it was written with a decimal point, so that it may be rounded.
      unit: the base unit ('' without one, '%' for per cent: the value is then not divided by 100), and the word itself.
      word: as it was written; two words of one unit are converted, a unit that is not known is compared by its word.
    """

    value: Fraction
    decimal: bool = False
    unit: str = ""
    word: str = ""


_INTEGER = (  # 1,234,567; 1.234.567; 1 234 567
    r"\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:\.\d{3}){2,}(?![.\d])"
    r"|\d{1,3}(?: \d{3})+(?!\d)|\d+"
)
_DECIMAL = rf"(?:(?:{_INTEGER})(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<plain>{_DECIMAL})"
    r"(?P<repeat>\\overline\s*\{\d+\}|\\bar\s*\{\d+\}|\\dot\s*\{\d\}|\(\d+\)(?!\s*[(\d])|\s*\\ldots)?"
    r"(?P<power>\s*[eE][+-]?\d+(?![\d.a-zA-Z])|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*[+-]?\d+\s*\}|[+-]?\d+))?"
)
_REPEATED = re.compile(r"^(\d*\.\d*?)(\d)\2{2,}$|^(\d*\.\d*?)(\d{2,}?)\4+$")
_TEN = re.compile(r"10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")
_FRAC = re.compile(rf"\\frac\s*\{{\s*(-?)\s*({_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}")
_SLASH = re.compile(r"\s*/\s*(\d[\d,]*)(?![\d.])")
_MONEY = re.compile(r"\\?\$|€|£|¥|₹|Rs\.?|USD(?![a-zA-Z])|EUR(?![a-zA-Z])")
_SYMBOLS = {"USD": "$", "EUR": "€", "Rs": "₹", "Rs.": "₹"}
_MULTIPLE = re.compile(rf"\s+({'|'.join(MULTIPLES)}|dozen)(?![a-zA-Z])")
_JOINED = re.compile(r"\s*(?:,|and\b)?\s*")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*([aApP])?\.?(?:[mM]\.?)?$")
_BASE = re.compile(
    r"(?:0[bxo](?=[0-9A-Fa-f]+_))?\(?\s*([0-9A-Fa-f][0-9A-Fa-f, ]*)\s*\)?\s*(?:_\s*\{?\s*\(?|\(?\s*(?:in )?base)\s*"
    r"(\d{1,2}|[a-z]{3,7})\s*\)?\s*\}?$"
)
def _number(text: str, at: int) -> tuple[Fraction, bool, int] | None:
    """An unsigned number at a place: its value, whether it is a decimal, and where it ends."""
    found = _FRAC.match(text, at)
    if found:
        top, bottom = (Fraction(found[i].replace(",", "").replace(" ", "").rstrip(".") or "0") for i in (2, 3))
        if not bottom:
            return None
        decimal = "." in found[2] or "." in found[3]
        return (-top if found[1] else top) / bottom, decimal, found.end()
    found = _TEN.match(text, at)
    if found and abs(int(found[1] or found[2])) <= EXPONENT:
        return Fraction(10) ** int(found[1] or found[2]), False, found.end()
    found = _NUMBER.match(text, at)
    if not found:
        return None
    plain = found["plain"].replace(",", "").replace(" ", "")
    plain = plain.replace(".", "") if plain.count(".") > 1 else plain  # 3.628.800
    value, decimal = Fraction(Decimal(plain)), "." in plain
    if found["repeat"]:
        if "." not in plain:
            if found["repeat"].startswith("("):  # 3(4) is a product, not a decimal
                return value, decimal, found.end("plain")
            return None
        if "ldots" in found["repeat"]:
            shown = _REPEATED.match(plain)
            if not shown:  # 3.14\ldots goes on otherwise
                return None
            plain, period = (shown[1], shown[2]) if shown[2] else (shown[3], shown[4])
            value, digits = Fraction(Decimal(plain if plain[-1] != "." else plain + "0")), period
        else:
            digits = re.sub(r"\D", "", found["repeat"])
        places = len(plain.partition(".")[2])
        value += Fraction(int(digits), 10**places * (10 ** len(digits) - 1))
        decimal = False
    if found["power"]:
        exponent = int(re.findall(r"[+-]?\d+", found["power"])[-1])
        if abs(exponent) > EXPONENT:
            return None
        value *= Fraction(10) ** exponent
    return value, decimal, found.end()


def _amount(text: str, at: int) -> tuple[Fraction, bool, int] | None:
    """A number, a fraction a/b, or a mixed number."""
    first = _number(text, at)
    if first is None:
        return None
    value, decimal, end = first
    slash = _SLASH.match(text, end)
    if slash and int(slash[1].replace(",", "")):
        return value / int(slash[1].replace(",", "")), decimal, slash.end()
    whole = not decimal and value.denominator == 1 and text[end - 1].isdigit() and "^" not in text[at:end]
    mixed = re.compile(r"\s*(?:(?=\\frac)|\s(?=\d+\s*/\s*\d))").match(text, end) if whole else None
    if mixed:
        part = _FRAC.match(text, mixed.end())
        if part and not part[1]:
            rest = _number(text, mixed.end())
        else:
            rest = None
            ratio = re.compile(r"(\d+)\s*/\s*(\d+)(?!\d)").match(text, mixed.end())
            if ratio and int(ratio[2]):
                rest = Fraction(int(ratio[1]), int(ratio[2])), False, ratio.end()
        if rest and 0 < rest[0] < 1 and not rest[1]:
            return value + rest[0], False, rest[2]
    return value, decimal, end


def _clock(text: str) -> Quantity | None:
    """A time of day."""
    found = _CLOCK.match(text)
    if not found:
        return None
    hour, minute, second = int(found[1]), int(found[2]), int(found[3] or 0)
    half = (found[4] or "").lower()
    if hour > 24 or minute > 59 or second > 59 or (half and not 1 <= hour <= 12):
        return None
    hour = hour % 12 + (12 if half == "p" else 0) if half else hour
    return Quantity(Fraction(3600 * hour + 60 * minute + second), unit=f"clock{'' if half or hour > 12 else '?'}")


def _in_base(digits: str, base: str, sign: int) -> Quantity | None:
    """A number written in a base, which is a number or its name."""
    base = in_digits(base)
    try:
        value = int(re.sub("[, ]", "", digits), int(base))
    except ValueError:  # a digit that the base does not have, or no base
        return None
    return Quantity(Fraction(sign * value), word=digits.lower())


def _sum(text: str, sign: int) -> Quantity | None:
    """An amount, or several in smaller and smaller units of one kind: 3 hours 20 minutes, 5' 7\"."""
    money = _MONEY.match(text)
    at = money.end() if money else 0
    while at < len(text) and text[at] == " ":
        at += 1
    if money and text[at : at + 1] == "-":
        sign, at = -sign, at + 1
    total, decimal, unit, first, last = Fraction(0), False, "", "", Fraction(0)
    if money:
        symbol = _SYMBOLS.get(money[0], money[0].lstrip("\\"))
        unit, first = UNITS[symbol][0], symbol
    while at < len(text):
        amount = _amount(text, at)
        if amount is None:
            return None
        value, point, at = amount
        decimal = decimal or point
        many = _MULTIPLE.match(text, at)
        if many:
            value, at = value * (multiple(many[1]) or 1), many.end()
        found = unit_at(text, at)
        if found and money and found[0] == unit:  # $5 dollars
            at, found = found[3], None
        if found:
            if last and (found[0] != unit or found[1] >= last):
                return None
            unit, first, last = found[0], first or found[2], found[1]
            value, at = value * found[1], found[3]
        elif last:
            return None
        total += value
        joined = _JOINED.match(text, at)
        at = joined.end() if joined else at
        if at < len(text) and not found:
            return None
    return Quantity(sign * total, decimal, unit, first)


@functools.lru_cache(maxsize=1 << 14)
def quantity(text: str) -> Quantity | None:
    r"""The quantity that an undressed text is, as a whole; None where it is not one.

    Example:
      >>> quantity("1,234.50").value, quantity(r"2\frac{1}{2}").value, quantity("0.(3)").value, quantity("3 or 4")
      (Fraction(2469, 2), Fraction(5, 2), Fraction(1, 3), None)
      >>> quantity("3 hours 20 minutes") == quantity("200 minutes")._replace(word="hours")
      True
    """
    text = text.strip()
    if not text or len(text) > LONGEST:
        return None
    if text[0].isalpha():
        timed = clock_time(text)
        text = re.sub(r"^(?:minus|negative)\s+", "-", in_digits(text)) if timed == text else timed
    elif text[-1].isalpha() or " to " in text or " past " in text:
        text = clock_time(text)
    elif "'" in text or '"' in text:
        text = _primes(text)
    if not any(c.isdigit() for c in text):
        return None
    sign = 1
    while text[:1] in ("+", "-"):
        sign, text = (-sign if text[0] == "-" else sign), text[1:].lstrip()
    if sign == 1 and ":" in text:
        return _clock(text)
    prefixed = re.fullmatch(r"0([bxo])([0-9A-Fa-f]+)", text)
    if prefixed:
        return _in_base(prefixed[2], {"b": "2", "o": "8", "x": "16"}[prefixed[1]], sign)
    based = _BASE.match(text)
    if based and (any(c.isdigit() for c in based[1]) or len(based[1]) > 1):  # a_{12} is a term of a sequence
        return _in_base(based[1], based[2], sign)
    return _sum(text, sign)


def _primes(text: str) -> str:
    """5' 7\" in feet and inches; behind degrees, in minutes and seconds of arc."""
    minute, second = (" arcmin ", " arcsec ") if "circ" in text else (" ft ", " in ")
    return re.sub(r"(?<=\d)\s*(?:''|\")", second, re.sub(r"(?<=\d)\s*'(?!')", minute, text)).strip()


def same_number(a: Quantity, b: Quantity) -> bool:
    """Whether two numbers are equal: exactly, or within 1e-6 where a decimal stands for what no decimal writes."""
    if a.value == b.value:
        return True
    if a.decimal == b.decimal or not (a.value and b.value):
        return False
    rounded, exact = (a, b) if a.decimal else (b, a)
    if _no_twos_and_fives(exact.value.denominator) == 1:  # a decimal could have said it
        return False
    return abs(rounded.value - exact.value) <= TOLERANCE * abs(exact.value)


def _no_twos_and_fives(n: int) -> int:
    for prime in (2, 5):
        while n % prime == 0:
            n //= prime
    return n


def equal(answer: Quantity, reference: Quantity) -> bool:
    """Whether an answer is the reference's quantity; a unit may be left out by one of them, but not be another.

    Per cent: 50 % is ½, and the number before the sign counts for the quantity where it is above 1.
    """
    if answer.unit == reference.unit or not (answer.unit and reference.unit):
        if "%" in (answer.unit, reference.unit) and answer.unit != reference.unit:
            per, plain = (answer, reference) if answer.unit == "%" else (reference, answer)
            asked = same_number(per, plain) and (abs(per.value) > 1 or per is reference)  # 25 of 25 %, never ¼ %
            return asked or same_number(per._replace(value=per.value / 100), plain)
        if answer.unit != reference.unit:  # the number as it was written, in its own unit
            with_unit = answer if answer.unit else reference
            size = UNITS.get(with_unit.word, UNITS.get(with_unit.word.lower().rstrip("s"), ("", Fraction(1))))[1]
            if with_unit.unit.startswith("clock"):
                return False
            plain = reference if answer.unit else answer
            return same_number(with_unit._replace(value=with_unit.value / size), plain)
        return same_number(answer, reference)
    if answer.unit.startswith("clock") and reference.unit.startswith("clock"):
        return answer.value == reference.value
    return False
