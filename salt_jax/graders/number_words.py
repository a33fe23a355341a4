"""English number words in digits: forty-two, two and a half, three quarters, sixty percent, 2.5 million."""

from __future__ import annotations

import re
from fractions import Fraction

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
MULTIPLES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VALUES = {word: i for i, word in enumerate(SMALL)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "twelfth": 12, "hundredth": 100,
}  # fmt: skip
_WORD = "|".join(sorted((*_VALUES, *MULTIPLES), key=len, reverse=True))
_PART = "|".join(sorted((part + "s?" for part in _PARTS if part != "halves"), key=len, reverse=True)) + "|halves"
_GAP = r"(?:[\s-]+|(?<=hundred)\s+and\s+|(?<=thousand)\s+and\s+|(?<=million)\s+and\s+)"
_WHOLE = rf"(?:{_WORD})(?:{_GAP}(?:{_WORD}))*"
_SPELLED = re.compile(
    rf"(?<![a-zA-Z\\-])(?:(?P<whole>{_WHOLE})(?:\s+and\s+(?P<plus>a|an|{_WHOLE})[\s-]+(?P<plus_part>{_PART}))?"
    rf"|(?P<top>{_WHOLE}|a|an)[\s-]+(?P<part>{_PART}))(?![a-zA-Z-])",
    re.IGNORECASE,
)
_THREE_QUARTERS = re.compile(
    rf"(?<![a-zA-Z\\-])({_WHOLE}(?:\s+and\s+{_WHOLE})?)[\s-]+({_PART})(?![a-zA-Z-])", re.IGNORECASE
)


def _whole(words: str) -> int | None:
    """What number words say together; None where they are several numbers: two three."""
    total = current = 0
    before = 1000  # the word before: a number can only follow a multiple, or tens
    for word in re.findall(r"[a-z]+", words.lower()):
        value = 1 if word in ("a", "an") else _VALUES.get(word)
        if word == "and":
            continue
        if value is None and word == "hundred":
            current = (current or 1) * 100
        elif value is None:
            total, current = total + (current or 1) * MULTIPLES[word], 0
        elif before >= 100 or (before in range(20, 100, 10) and 0 < value < 10):
            current += value
        else:
            return None
        before = 1000 if value is None else value
    return total + current


def in_digits(text: str) -> str:
    r"""A text with its number words in digits; fractions in LaTeX.

    Example:
      >>> in_digits("forty-two"), in_digits("three quarters"), in_digits("two and a half hours"), in_digits("everyone")
      ('42', '\\frac{3}{4}', '2\\frac{1}{2} hours', 'everyone')
      >>> in_digits("one hundred and five thousand and two"), in_digits("sixty percent"), in_digits("a half")
      ('105002', '60 percent', '\\frac{1}{2}')
    """
    def digits(m: re.Match[str]) -> str:
        plus = _fraction(m["plus"], m["plus_part"]) if m["plus"] else ""
        whole = _fraction(m["top"], m["part"]) if m["part"] else _whole(m["whole"])
        return m[0] if whole is None or plus is None else f"{whole}{plus}"

    # a part behind a whole is its part: 'three quarters', not 3 and then quarters
    return _SPELLED.sub(digits, _THREE_QUARTERS.sub(lambda m: _fraction(m[1], m[2]) or m[0], text))


def _fraction(top: str, part: str) -> str | None:
    """A number of parts; 'two and three quarters' with a whole before them."""
    name = part.lower()
    bottom = _PARTS.get(name) or _PARTS[name.rstrip("s")]
    words = re.split(r"\s+and\s+", top)
    numbers = [_whole(word) for word in (" and ".join(words[:-1]), words[-1]) if word]
    if None in numbers:
        return None
    return "".join(map(str, numbers[:-1])) + rf"\frac{{{numbers[-1]}}}{{{bottom}}}"


def multiple(word: str) -> Fraction | None:
    """What a word behind a number multiplies it by; None for any other word."""
    found = MULTIPLES.get(word.lower(), {"dozen": 12}.get(word.lower()))
    return None if found is None else Fraction(found)
