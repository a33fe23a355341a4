"""Units: their base and their size in it, and how a text says one."""

from __future__ import annotations

import re
from fractions import Fraction


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
        "m/s^2": "m/s^2 1",
        "mi/h": "mph 1,mi/h 1,mile per hour 1",
        "$": "$ 1,dollar 1,usd 1,cent 1/100,¢ 1/100",
        "€": "€ 1,euro 1,eur 1",
        "£": "£ 1,gbp 1,pound sterling 1",
        "¥": "¥ 1,yen 1,yuan 1",
        "₹": "₹ 1,rupee 1",
        "unit": "unit 1,unit^2 1,unit^3 1",
        "deg": "^\\circ 1,degree 1,deg 1,arcmin 1/60,arcsec 1/3600",
        "rad": "radian 1,rad 1",
        "degC": "^\\circC 1,degree celsius 1,celsius 1",
        "degF": "^\\circF 1,degree fahrenheit 1,fahrenheit 1",
        "C": "C 1,coulomb 1", "J": "J 1,joule 1,kJ 1000", "N": "N 1,newton 1", "W": "W 1,watt 1,kW 1000",
        "V": "V 1,volt 1", "A": "A 1,ampere 1", "Hz": "Hz 1,hertz 1,kHz 1000", "Pa": "Pa 1,pascal 1,kPa 1000",
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
_WORD = re.compile(
    r"\s*(?P<word>[%€£¥₹¢]|percent(?:age points?)?|per cent|(?:square|cubic|sq\.?|cu\.?) [a-zA-Z]+"
    r"|\^\s*\{?\s*\\circ\s*\}?(?:\s*[CF](?![a-zA-Z]))?|degrees? (?:Celsius|celsius|Fahrenheit|fahrenheit)"
    r"|[a-zA-Z]+\s+[a-zA-Z]\s*\^\s*\{?-\d\}?"
    r"|[a-zA-Z]+(?:\s*/\s*[a-zA-Z]+)?(?:\s+(?:per|of|sterling)\s+[a-zA-Z]+)?(?:\s*\^\s*\{?[23]\}?)?)"
)
_MANY = frozenset("people children men women mice sheep fish deer feet teeth geese oxen".split())
_POWERS = (("square ", "^2"), ("cubic ", "^3"), ("sq ", "^2"), ("cu ", "^3"), ("sq. ", "^2"), ("cu. ", "^3"))
# Words behind a number that are no unit: they join, or they make another number of it.
NOT_UNITS = frozenset(
    "and or to mod if for when pi sqrt log ln sin cos tan over minus plus times hundred thousand million billion "
    "trillion dozen score pair half halve third quarter fourth fifth sixth seventh eighth ninth tenth hundredth "
    "thousandth squared cubed factorial double twice less more fewer below has was does as gross "
    "dozens hundreds thousands millions billions halves".split()
)


def unit_at(text: str, at: int) -> tuple[str, Fraction, str, int] | None:
    """A unit at a place: its base, its size, the word, and where it ends; a word that is not known is its own base."""
    found = _WORD.match(text, at)
    if not found:
        return None
    word = re.sub(r"\s*([/^])\s*", r"\1", re.sub(r"\s+", " ", re.sub(r"[{}]", "", found["word"])))
    if "circ" in word:
        word = "^\\circ" + (word[-1] if word[-1] in "CF" else "")
    for long, power in _POWERS:
        if word.startswith(long):
            word = _SHORT.get(word[len(long) :].rstrip("s"), word[len(long) :].rstrip("s")) + power
    word = re.sub(r"^(\w+?)s? per (\w+)$", lambda m: f"{_SHORT.get(m[1], m[1])}/{_SHORT.get(m[2], m[2])}", word)
    word = re.sub(r"^(\w+) (\w)\^-(\d)$", lambda m: f"{m[1]}/{m[2]}" + (f"^{m[3]}" if m[3] != "1" else ""), word)
    lower = word.lower() if len(word) > 1 else word
    singular = word.rstrip("s"), lower.rstrip("s"), re.sub(r"ies$", "y", lower), re.sub(r"s(?= )", "", lower)
    for name in (word, lower, *singular):
        if name in UNITS:
            return *UNITS[name], word, found.end()
    name = word.lower().split("^")[0]
    many = (name.endswith("s") and not name.endswith(("ss", "us", "is", "ths"))) or name in _MANY or " of " in name
    if {name, name.rstrip("s")} & NOT_UNITS or len(name) < 3 or not many:  # a symbol, or another word
        return None
    return "=" + word.lower().rstrip("s"), Fraction(1), word, found.end()
