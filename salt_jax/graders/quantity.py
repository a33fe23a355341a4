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


def _units() -> dict[str, tuple[str, Fraction]]:
    """Word → (base unit, size in it)."""
    table = {
        "m": "mm 1/1000,cm 1/100,dm 1/10,m 1,km 1000,millimeter 1/1000,centimeter 1/100,meter 1,metre 1,kilometer 1000,"
             "kilometre 1000,centimetre 1/100,millimetre 1/1000",
        "ft": "in 1/12,inch 1/12,inche 1/12,ft 1,foot 1,feet 1,yd 3,yard 3,mi 5280,mile 5280",
        "s": "ms 1/1000,s 1,sec 1,second 1,min 60,minute 60,h 3600,hr 3600,hour 3600,day 86400,week 604800",
        "month": "month 1,year 12,yr 12",
        "g": "mg 1/1000,g 1,gram 1,kg 1000,kilogram 1000,tonne 1000000",
        "lb": "oz 1/16,ounce 1/16,lb 1,pound 1",
        "L": "mL 1/1000,ml 1/1000,milliliter 1/1000,L 1,l 1,liter 1,litre 1",
        "mm2": "mm^2 1,cm^2 100,m^2 1000000,km^2 1000000000000",
        "in2": "in^2 1,ft^2 144,yd^2 1296,mi^2 4014489600",
        "in3": "in^3 1,ft^3 1728,yd^3 46656",
        "mm3": "mm^3 1,cm^3 1000,m^3 1000000000",
        "km/h": "km/h 1,km/hr 1,kmph 1,m/s 18/5",
        "mi/h": "mph 1,mi/h 1,mile per hour 1",
        "$": "$ 1,dollar 1,usd 1,cent 1/100,¢ 1/100",
        "€": "€ 1,euro 1,eur 1",
        "£": "£ 1,gbp 1,pound sterling 1",
        "¥": "¥ 1,yen 1,yuan 1",
        "₹": "₹ 1,rupee 1",
        "unit": "unit 1,unit^2 1,unit^3 1",
        "deg": "^\\circ 1,degree 1,deg 1",
        "%": "% 1,percent 1,per cent 1,percentage point 1",
    }  # fmt: skip
    found = {}
    for base, words in table.items():
        for word in words.split(","):
            name, _, size = word.rpartition(" ")
            found[name] = (base, Fraction(size))
    return found


UNITS = _units()
_SHORT = {
    "centimeter": "cm", "meter": "m", "kilometer": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft",
    "mile": "mi", "yard": "yd", "hour": "h", "second": "s", "centimetre": "cm", "metre": "m", "kilometre": "km",
    "millimeter": "mm",
}  # fmt: skip
_INTEGER = r"\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+"
_DECIMAL = rf"(?:(?:{_INTEGER})(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<plain>{_DECIMAL})"
    r"(?P<repeat>\\overline\s*\{\d+\}|\\bar\s*\{\d+\}|\\dot\s*\{\d\}|\(\d+\)(?!\s*[(\d]))?"
    r"(?P<power>\s*[eE][+-]?\d+(?![\d.a-zA-Z])|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*[+-]?\d+\s*\}|[+-]?\d+))?"
)
_TEN = re.compile(r"10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")
_FRAC = re.compile(rf"\\frac\s*\{{\s*(-?)\s*({_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}")
_SLASH = re.compile(r"\s*/\s*(\d[\d,]*)(?![\d.])")
_MONEY = re.compile(r"\\?\$|€|£|¥|₹|Rs\.?|USD(?![a-zA-Z])|EUR(?![a-zA-Z])")
_SYMBOLS = {"USD": "$", "EUR": "€", "Rs": "₹", "Rs.": "₹"}
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*([aApP])?\.?(?:[mM]\.?)?$")
_BASE = re.compile(
    r"\(?\s*([0-9A-Fa-f][0-9A-Fa-f, ]*)\s*\)?\s*(?:_\s*\{?|\(?\s*(?:in )?base)\s*"
    r"(\d{1,2}|ten|two|eight|sixteen)\s*[})]?$"
)
_BASES = {"ten": 10, "two": 2, "eight": 8, "sixteen": 16}
_WORD = re.compile(
    r"\s*(?P<word>[%€£¥₹¢]|percent(?:age points?)?|per cent|(?:square|cubic) [a-zA-Z]+|\^\s*\{?\s*\\circ\s*\}?"
    r"|[a-zA-Z]+(?:\s*/\s*[a-zA-Z]+)?(?:\s+(?:per|of|sterling)\s+[a-zA-Z]+)?(?:\s*\^\s*\{?[23]\}?)?)"
)
# Words behind a number that are no unit: they join, or they make another number of it.
_NOT_UNITS = frozenset(
    "and or to mod if for when pi sqrt log ln sin cos tan over minus plus times hundred thousand million billion "
    "trillion dozen score pair half halve third quarter fourth fifth sixth seventh eighth ninth tenth hundredth "
    "thousandth squared cubed factorial double twice less more fewer below".split()
)


_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " \
    "seventeen eighteen nineteen twenty".split()
_WORDED = {word: str(i) for i, word in enumerate(_SMALL)} | {"noon": "12:00 pm", "midnight": "12:00 am"}


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
    value, decimal = Fraction(Decimal(plain)), "." in plain
    if found["repeat"]:
        if "." not in plain:
            if found["repeat"].startswith("("):  # 3(4) is a product, not a decimal
                return value, decimal, found.end("plain")
            return None
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


def _unit(text: str, at: int) -> tuple[str, Fraction, str, int] | None:
    """A unit at a place: its base, its size, the word, and where it ends; a word that is not known is its own base."""
    found = _WORD.match(text, at)
    if not found:
        return None
    word = re.sub(r"\s*([/^])\s*", r"\1", re.sub(r"\s+", " ", re.sub(r"[{}]", "", found["word"])))
    word = "^\\circ" if "circ" in word else word
    for long, power in (("square ", "^2"), ("cubic ", "^3")):
        if word.startswith(long):
            word = _SHORT.get(word[len(long) :].rstrip("s"), word[len(long) :].rstrip("s")) + power
    word = re.sub(r"^(\w+?)s? per (\w+)$", lambda m: f"{_SHORT.get(m[1], m[1])}/{_SHORT.get(m[2], m[2])}", word)
    for name in (word, word.lower(), word.rstrip("s"), word.lower().rstrip("s"), re.sub(r"ies$", "y", word.lower())):
        if name in UNITS:
            return *UNITS[name], word, found.end()
    if {word.lower(), word.lower().rstrip("s")} & _NOT_UNITS or len(word.split("^")[0]) < 3:  # a symbol
        return None
    return "=" + word.lower().rstrip("s"), Fraction(1), word, found.end()


@functools.lru_cache(maxsize=1 << 14)
def quantity(text: str) -> Quantity | None:
    r"""The quantity that an undressed text is, as a whole; None where it is not one.

    Example:
      >>> quantity("1,234.50").value, quantity(r"2\frac{1}{2}").value, quantity("0.(3)").value, quantity("3 or 4")
      (Fraction(2469, 2), Fraction(5, 2), Fraction(1, 3), None)
      >>> quantity("3 hours 20 minutes") == quantity("200 minutes")._replace(word="hours")
      True
    """
    text = _WORDED.get(text.strip().lower(), text.strip())
    text = re.sub(r"^(\d{1,2})\s*o'?clock$", r"\1:00", text)
    if not text or len(text) > LONGEST or not any(c.isdigit() for c in text):
        return None
    sign = 1
    while text[:1] in ("+", "-"):
        sign, text = (-sign if text[0] == "-" else sign), text[1:].lstrip()
    clock = _CLOCK.match(text)
    if clock and sign == 1:
        hour, minute, second = int(clock[1]), int(clock[2]), int(clock[3] or 0)
        half = (clock[4] or "").lower()
        if hour > 24 or minute > 59 or second > 59 or (half and not 1 <= hour <= 12):
            return None
        hour = hour % 12 + (12 if half == "p" else 0) if half else hour
        return Quantity(Fraction(3600 * hour + 60 * minute + second), unit=f"clock{'' if half or hour > 12 else '?'}")
    based = _BASE.match(text)
    if based and (any(c.isdigit() for c in based[1]) or len(based[1]) > 1):  # a_{12} is a term of a sequence
        base = _BASES.get(based[2]) or int(based[2])
        try:
            return Quantity(Fraction(sign * int(re.sub("[, ]", "", based[1]), base)), word=based[1].lower())
        except ValueError:  # a digit that the base does not have, or no base
            return None
    money = _MONEY.match(text)
    at = money.end() if money else 0
    while at < len(text) and text[at] == " ":
        at += 1
    if money and text[at : at + 1] == "-":
        sign, at = -sign, at + 1
    total, decimal, unit, first = Fraction(0), False, "", ""
    if money:
        symbol = _SYMBOLS.get(money[0], money[0].lstrip("\\"))
        unit, first = UNITS[symbol][0], symbol
    parts = 0
    while at < len(text):
        amount = _amount(text, at)
        if amount is None:
            return None
        value, point, at = amount
        decimal, parts = decimal or point, parts + 1
        found = None if money else _unit(text, at)
        if found:
            if parts > 1 and found[0] != unit:
                return None
            unit, first = found[0], first or found[2]
            value, at = value * found[1], found[3]
        elif parts > 1:
            return None
        elif money:
            word = _unit(text, at)  # $5 million is none; $5 dollars is
            if word and word[0] == unit:
                at = word[3]
        total += value
        joined = re.compile(r"\s*(?:,|and\b)?\s*").match(text, at)
        at = joined.end() if joined else at
        if at < len(text) and not found:
            return None
    return Quantity(sign * total, decimal, unit, first)


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

    Per cent: 50 % is ½, and the number before the sign counts for the quantity.
    """
    if answer.unit == reference.unit or not (answer.unit and reference.unit):
        if "%" in (answer.unit, reference.unit) and answer.unit != reference.unit:
            per, plain = (answer, reference) if answer.unit == "%" else (reference, answer)
            return same_number(per._replace(value=per.value / 100), plain) or same_number(per, plain)
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
