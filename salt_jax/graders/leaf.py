"""Whether one part of an answer is one part of the reference: quantities, dates, names, texts, values, families."""

from __future__ import annotations

import re
from typing import Any

from salt_jax.graders.compare import same
from salt_jax.graders.dates import date
from salt_jax.graders.families import counted, families, is_modular, same_family
from salt_jax.graders.quantity import equal, quantity
from salt_jax.graders.structure import read
from salt_jax.graders.values import attempted, read_whole, real_set, same_value

_REAL = re.compile(r"[<>]|\\(?:le|ge|cup|cap|setminus|mathbb)(?![a-zA-Z])")
_MARKS = re.compile(r"[\s{}.,!?'\"()-]")
_NAMED = re.compile(r"^(?:m?\\(angle|triangle)\s*)?([A-Z]{2,4})$")
_TRIG = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_WORDY = re.compile(r"(?<![\\a-zA-Z])(?!arc)[a-zA-Z]{4,}|(?<![\\a-zA-Z])[a-zA-Z]{2,} [a-zA-Z]{2,}")
_RATIO = re.compile(r"(?<=[\w}]) ?: ?(?=[\w\\])")
_DEFINED = re.compile(r"^([a-zA-Z]'*)\s*\(\s*([a-z])\s*\)\s*=")
_HOURS = re.compile(r"^(\d{1,2})\s*h\s*(\d{2})$")
_BUILT = re.compile(
    r"^\\\{\s*(?:([a-z])\s*(?:\\mid|\||:)\s*\1\s*=\s*(.*)|(.*?)\s*(?:\\mid|\||:)\s*([a-z]\s*\\in.*))\\\}$"
)
_TITLE = re.compile(r"^(?:(?:an?|the|it|this|mr|mrs|ms|dr|prof)\b\.?\s+)+")
_KIND = re.compile(r"\s+(?:function|triangle|number|integer|matrix|angle|sequence)$")
_DAYS = re.compile(r"\b(mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)\.?$", re.IGNORECASE)
_TWO = re.compile(r"^(\d+)\s*:\s*(\d+)$")
_LETTER = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])")
_BOTH = (  # in both texts, or in none
    re.compile("="), re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])"), re.compile("'"),
    re.compile(r"\^\s*\{?\s*(?:T|\\top|\*|c|\\dagger)(?![a-zA-Z])"),
)  # fmt: skip
_NEVER = re.compile(r"\\(?:approx|equiv|sim|to|mid|in|not)(?![a-zA-Z])")  # no part of a value
_HARD_TO_EXPAND = re.compile(r"\)\s*\^\s*\{?\s*(?:\d\d|[7-9])")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{\w+\}")
_EMPTY = re.compile(
    r"(?:there (?:is|are|exists?) )?no (?:real |such |integer |possible )*(?:solutions?|values?|numbers?|integers?)"
    r"(?: exists?| for [a-z])?|(?:it )?(?:does|do) not exist|none(?: exists?)?|dne"
    r"|(?:the )?empty set|\\emptyset|\\{\s*\\}"
)
_PREDICATE = re.compile(
    r"^(?:it|this|that|the (?!opposite|other|rest|reverse|negation)[\w-]+)\s+(?:is|are|was|were)\s+(?:an? |the )?(.+)$"
)
_UNIT = re.compile(
    r"^(.*?[\w})\]])\s+((?:(?:square|cubic) )?[a-zA-Z]+(?:\s*/\s*[a-zA-Z]+|\s+per\s+[a-zA-Z]+)?"
    r"(?:\s*\^\s*\{?[23]\}?)?)$"
)


def leaf(answer: str, reference: str) -> bool:
    """Whether a part of an answer is that part of the reference."""
    if (":" in answer) != (":" in reference):  # 8:27 is 8/27, but 5:30 is not 1/6
        ratio, other = (answer, reference) if ":" in answer else (reference, answer)
        two = _TWO.match(ratio)
        if two and other.replace(" ", "") in (rf"\frac{{{two[1]}}}{{{two[2]}}}", f"{two[1]}/{two[2]}"):
            return True
        if two and len(two[2]) != 2 and "\\pi" not in other:
            answer, reference = (_TWO.sub(r"\\frac{\1}{\2}", text) for text in (answer, reference))
    numbers = quantity(answer), quantity(reference)
    if numbers[1] and numbers[1].unit.startswith("clock") and (hours := _HOURS.match(answer)):  # 18h30
        numbers = quantity(f"{hours[1]}:{hours[2]}"), numbers[1]
    if numbers[0] and numbers[1]:
        return equal(numbers[0], numbers[1])
    if _RATIO.search(answer) and _RATIO.search(reference):
        return _same_ratio(answer, reference)
    days = date(answer), date(reference)
    if days[0] and days[1]:
        return days[0] == days[1]
    named = _NAMED.match(answer), _NAMED.match(reference)
    if named[0] and named[1]:
        return _same_name(named[0], named[1])
    (answer, of_answer), (reference, of_reference) = _without_unit(answer), _without_unit(reference)
    if of_answer and of_reference and of_answer != of_reference:
        return False
    if _same_text(answer, reference):
        return True
    if _REAL.search(answer + reference):
        letters = [set(_LETTER.findall(text.replace(r"\mathbb{R}", ""))) - {"e"} for text in (answer, reference)]
        if all(letters) and not letters[0] & letters[1]:  # x > 3 is not y > 3
            return False
        one = all(len(of) < 2 for of in letters)
        sets = (real_set(answer), real_set(reference)) if one else (None, None)
        if sets[0] is not None and sets[1] is not None:
            return bool(sets[0] == sets[1])
    if any(bool(sign.search(answer)) != bool(sign.search(reference)) for sign in _BOTH):
        return False
    if _NEVER.search(answer + reference):
        return False
    if _other_letters(answer, reference) or named[0] or named[1]:
        return False
    if any(is_wordy(text) for text in (answer, reference)):
        return False  # words are no product of letters
    answer, reference = _radians(answer, reference), _radians(reference, answer)
    values = _value(answer), _value(reference)
    if values[0] is None or values[1] is None:
        return False
    rounded = ("." in answer) != ("." in reference)
    return bool(attempted(lambda: same_value(*values, rounded), False))  # what cannot be compared is not equal


def _other_letters(answer: str, reference: str) -> bool:
    """Whether two texts have the same letters but for their case: E is not e, \\Delta is not \\delta."""
    names = [set(re.findall(r"\\[a-zA-Z]+|(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])", text)) for text in (answer, reference)]
    folded = [{name.lower() for name in of} for of in names]
    return names[0] != names[1] and folded[0] == folded[1]


def _day(short: re.Match[str]) -> str:
    """A weekday that is cut short, in full."""
    days = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    return next(day for day in days if day.startswith(short[1].lower()[:3]))


def is_wordy(text: str) -> bool:
    """Whether a text has words in it, which are no product of letters."""
    return bool(_WORDY.search(_ENVIRONMENT.sub("", text)))


def _value(text: str) -> Any:
    """What a text is worth: a plain number exactly, all else as the grammar reads it."""
    import sympy  # type: ignore[import-untyped]

    number = quantity(text)
    if number is None or number.unit not in ("", "%"):
        return read_whole(text)
    value = number.value / (100 if number.unit else 1)
    return sympy.Rational(value.numerator, value.denominator)


def _radians(text: str, other: str) -> str:
    """Degrees as radians: within trigonometric functions, and where the other text is in neither but has a π."""
    measured = _TRIG.search(text) or (r"\pi" in other and "circ" not in other)
    return re.sub(r"\^\s*\{?\s*\\circ\s*\}?", r"\\cdot\\frac{\\pi}{180}", text) if measured else text


def _same_ratio(answer: str, reference: str) -> bool:
    """Whether two ratios, 3:4:5, are proportional, in order."""
    parts = [[read_whole(part.strip()) for part in _RATIO.split(text)] for text in (answer, reference)]
    if len(parts[0]) != len(parts[1]) or not all(getattr(x, "is_number", False) for x in (*parts[0], *parts[1])):
        return answer.replace(" ", "") == reference.replace(" ", "")
    first = [part[0] for part in parts]
    if 0 in (*parts[0], *parts[1]):
        return all(same_value(x, y, False) for x, y in zip(*parts, strict=True))
    return all(same_value(x * first[1], y * first[0], False) for x, y in zip(*parts, strict=True))


def _same_name(a: re.Match[str], b: re.Match[str]) -> bool:
    """Whether names of points say the same: a triangle in any order, a segment and an angle also backwards."""
    (kind, x), (other, y) = a.groups(), b.groups()
    if kind and other and kind != other:
        return False
    if "triangle" in (kind, other):
        return sorted(x) == sorted(y)
    return x == y or (x == y[::-1] and (len(x) == 2 or "angle" in (kind, other)))


def _without_unit(text: str) -> tuple[str, str]:
    """A text, and the unit behind it that it is left without; '' where there is none that is known."""
    found = _UNIT.match(text)
    one = quantity(f"1 {found[2]}") if found else None
    known = one is not None and one.unit and not one.unit.startswith("=")
    return (found[1], f"{one.value} {one.unit}") if found and one and known else (text, "")


def _same_text(answer: str, reference: str) -> bool:
    """Whether two texts are the same but for spaces, and words also but for capitals and marks."""
    bare = [re.sub(r"\{(\w)\}", r"\1", text.replace(" ", "")) for text in (answer, reference)]
    if bare[0] == bare[1]:
        return bool(answer.strip())
    if all(_EMPTY.fullmatch(text.strip().lower()) for text in (answer, reference)):
        return True
    options = [re.match(r"^\(([A-H])\)\s+(.*)$", text) for text in (answer, reference)]  # (C) 24
    if options[0] and not options[1]:
        if (reference.strip() == options[0][1] and quantity(options[0][2])) or leaf(options[0][2], reference):
            return True
    if options[1] and not options[0]:
        return answer.strip("() ") == options[1][1] or leaf(answer, options[1][2])
    told = _PREDICATE.match(answer.casefold())  # the function is odd
    if told and not re.search(r"\d", reference) and _same_text(told[1], reference):
        return True
    if answer.lstrip().startswith("-") != reference.lstrip().startswith("-"):
        return False
    words = [_MARKS.sub("", _DAYS.sub(_day, _TITLE.sub("", text.casefold()))) for text in (answer, reference)]
    if words[0] != words[1]:  # an odd function is odd
        words = [_MARKS.sub("", _KIND.sub("", _TITLE.sub("", text.casefold()))) for text in (answer, reference)]
    return words[0] == words[1] and len(words[0]) > 1 and words[0].isalpha()


def equation(answer: str, reference: str) -> bool:
    """Whether two equations say the same: their sides' differences are multiples of each other."""
    import sympy

    defined = _DEFINED.match(answer), _DEFINED.match(reference)
    if defined[0] and defined[1] and defined[0][1] == defined[1][1] and defined[0][2] != defined[1][2]:  # f(t) for f(x)
        letters = [set(_LETTER.findall(text.partition("=")[2])) for text in (answer, reference)]
        if defined[0][2] not in letters[0] or defined[1][2] in letters[0]:
            return False
        answer = re.sub(rf"(?<![a-zA-Z\\]){defined[0][2]}(?![a-zA-Z])", defined[1][2], answer)
        return same(read(answer), read(reference), leaf, equation)
    if any(_HARD_TO_EXPAND.search(text) for text in (answer, reference)):
        return answer.replace(" ", "") == reference.replace(" ", "")
    differ = _other_letters(answer, reference) or answer.count("'") != reference.count("'")
    sides_of = []
    for text in (answer, reference):
        sides = [read_whole(side.strip()) for side in re.split(r"(?<![<>!:\\\\])=(?!=)", text)]
        if len(sides) != 2 or not all(isinstance(side, sympy.Expr) for side in sides):
            return answer.replace(" ", "") == reference.replace(" ", "")
        sides_of.append((sides[0], sides[1]))
    return not differ and bool(attempted(lambda: _multiples(*sides_of), False))


def _multiples(*equations: tuple[Any, Any]) -> bool:
    """Whether the differences of two equations' sides are multiples of each other."""
    import sympy

    a, b = (sympy.expand(sympy.fraction(sympy.together(x.doit() - y.doit()))[0]) for x, y in equations)
    if a == 0 or b == 0:
        return bool(a == b)
    ratio = sympy.simplify(a / b)
    return bool(ratio.is_number and ratio != 0)


def same_families(answer: str, reference: str) -> bool:
    """Whether both are numbers that an integer counts, and the same ones."""
    built = [_BUILT.match(text) for text in (answer, reference)]  # \\{x : x = 2k, k ∈ ℤ\\}
    answer, reference = (
        (found[2] or f"{found[3]}, {found[4]}").strip() if found else text
        for found, text in zip(built, (answer, reference), strict=True)
    )
    texts = counted(answer), counted(reference)
    if not (texts[0][1] or texts[1][1]) and not (is_modular(answer) or is_modular(reference)):
        return False
    if is_modular(answer) and reference.isdigit():  # the remainder is 2 (mod 7)
        found = families(answer, "", read_whole)
        return found is not None and found[1] == (int(reference),) and answer.startswith(reference)
    both = [families(text, letter or "*", read_whole) for text, letter in texts]
    if both[0] is None or both[1] is None:
        return _renamed(texts)
    return same_family(both[0], both[1])


def _renamed(texts: tuple[tuple[str, str], tuple[str, str]]) -> bool:
    """Whether two texts are equal but for the letter that counts in each."""
    (answer, x), (reference, y) = texts
    if not (x and y) or (x != y and re.search(rf"(?<![a-zA-Z\\]){y}(?![a-zA-Z])", answer)):
        return False
    renamed = re.sub(rf"(?<![a-zA-Z\\]){x}(?![a-zA-Z])", y, answer)
    return same(read(renamed), read(reference), leaf, equation)
