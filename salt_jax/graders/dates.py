"""Dates and clock times as a person writes them.

``date`` reads a whole text as a day, a month of a year or a day of a year; ``clock`` gives the digits of a time that is
written in words. What has two readings (3/4/2021) is no date here: such texts are compared as texts.
"""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

from salt_jax.graders.number_words import in_digits

_MONTHS = "january february march april may june july august september october november december".split()
_NUMBERS = {name: i for months in (
    _MONTHS, [m[:3] for m in _MONTHS],
    "januar februar märz april mai juni juli august sept oktober november dezember".split(),
    "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split(),
    "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre".split(),
    "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre".split(),
    "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro".split(),
) for i, name in enumerate(months, 1)}  # fmt: skip
_MONTH = rf"(?P<month>(?i:{'|'.join(sorted(_NUMBERS, key=len, reverse=True))}))\.?"
_WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_WEEKDAY = re.compile(rf"^({'|'.join(f'{d}|{d[:3]}' for d in _WEEKDAYS)})\.?,?\s+(?=.*\d)", re.IGNORECASE)
_DAY, _YEAR = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?P<year>\d{4})"
_FORMS = tuple(re.compile(form + "$") for form in (
    rf"{_MONTH}\s*{_DAY}(?:,?\s+{_YEAR})?",
    rf"(?:the )?{_DAY}\.?\s*(?:of |de )?{_MONTH},?(?:\s*(?:de )?{_YEAR})?",
    rf"{_MONTH},?\s*(?:of )?{_YEAR}",
    r"(?P<year>\d{4})([-/.])(?P<number>\d{1,2})\2(?P<day>\d{1,2})",
    r"(?P<day>\d{1,2})\.\s?(?P<number>\d{1,2})\.\s?(?P<year>\d{4})",
    r"(?:(?P<year>\d{4})\s?[年년]\s?)?(?P<number>\d{1,2})\s?[月월]\s?(?P<day>\d{1,2})\s?[日일号]",
))  # fmt: skip
_SLASHES = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})$")

_HOURS = "one two three four five six seven eight nine ten eleven twelve".split()
_PAST = re.compile(
    rf"(?P<much>half|(?:a )?quarter|\d{{1,2}}(?: minutes?)?) (?P<way>past|to|after|before) "
    rf"(?P<hour>\d{{1,2}}|{'|'.join(_HOURS)})(?P<rest>.*)$",
    re.IGNORECASE,
)
_HOUR = re.compile(rf"({'|'.join(_HOURS)}|\d{{1,2}})\s*(?:o'?clock)?\s*([ap])\.?m\.?$", re.IGNORECASE)
_OCLOCK = re.compile(rf"({'|'.join(_HOURS)}|\d{{1,2}})\s*o'?clock$", re.IGNORECASE)
_PART = re.compile(r"\s*(?:in the (morning|afternoon|evening)|at (night)|(noon|midnight|midday))$", re.IGNORECASE)


class Date(NamedTuple):
    """A day, or as much of it as is said."""

    year: int | None
    month: int
    day: int | None


def date(text: str) -> Date | None:
    """The date that a text is, as a whole; None where it is none, has two readings, or a weekday that is not its own.

    Example:
      >>> date("Friday, March 5th, 2021") == date("2021-03-05") == date("5. 3. 2021") == Date(2021, 3, 5)
      True
      >>> date("3/4/2021"), date("25/4/2021"), date("31 April"), date("Monday, March 5, 2021")
      (None, Date(year=2021, month=4, day=25), None, None)
    """
    if len(text) > 40 or not any(c.isdigit() for c in text):
        return None
    text = text.strip().strip(".").strip()
    weekday = _WEEKDAY.match(text)
    rest = text[weekday.end() :] if weekday else text
    slashes = _SLASHES.match(rest)
    if slashes:
        first, second, year = (int(part) for part in slashes.groups())
        if (first > 12) == (second > 12) and first != second:
            return None
        found = Date(year, second, first) if first > 12 else Date(year, first, second)
    else:
        match = next((m for m in (form.match(rest) for form in _FORMS) if m), None)
        if match is None:
            return None
        parts = match.groupdict()
        named = parts.get("month")
        month = _NUMBERS[named.lower()] if named else int(parts["number"])
        found = Date(_integer(parts.get("year")), month, _integer(parts.get("day")))
    try:
        when = datetime.date(found.year or 2000, found.month, found.day or 1)
    except ValueError:
        return None
    if weekday and found.year and _WEEKDAYS[when.weekday()][:3] != weekday[1][:3].lower():
        return None
    return found


def _integer(text: str | None) -> int | None:
    return int(text) if text else None


def clock(text: str) -> str:
    """A time of day written in words, in digits; any other text as it is.

    Example:
      >>> clock("half past three"), clock("quarter to 5 in the afternoon"), clock("9 AM"), clock("12:00 noon")
      ('3:30', '4:45 pm', '9:00 am', '12:00 pm')
      >>> clock("11:15 at night"), clock("noon"), clock("seven o'clock"), clock("15:30 Uhr"), clock("seven")
      ('11:15 pm', '12:00 pm', '7:00', '15:30', 'seven')
    """
    if len(text) > 60:
        return text
    text = re.sub(r"(?<=\d)\s*(?:Uhr|hours?|hrs?)$", "", text) if ":" in text else text
    lower = re.sub(r"[a-z]+(?:[ -][a-z]+)?(?= minutes| past| to )", _minutes, text.lower())
    if lower in ("noon", "midday", "12 noon"):
        return "12:00 pm"
    if lower in ("midnight", "12 midnight"):
        return "12:00 am"
    half, part = "", _PART.search(text)
    if part:
        word = next(group for group in part.groups() if group).lower()
        half = " am" if word in ("morning", "midnight") else " pm"
        lower = lower[: part.start()].strip()
    past = _PAST.match(lower)
    if past:
        rest = re.fullmatch(r"\s*([ap])\.?m\.?", past["rest"])
        if past["rest"] and not rest:
            return text
        much = {"half": 30, "quarter": 15, "a quarter": 15}.get(past["much"]) or int(past["much"].split()[0])
        back = past["way"] in ("to", "before")
        hour = (_hour(past["hour"]) - back - 1) % 12 + 1
        return f"{hour}:{60 - much if back else much:02}{f' {rest[1]}m' if rest else half}"
    whole = _HOUR.match(lower)
    if whole:
        return f"{_hour(whole[1])}:00 {whole[2]}m"
    named = _OCLOCK.match(lower)
    if named:
        return f"{_hour(named[1])}:00{half}"
    if half and re.fullmatch(r"\d{1,2}(?::\d\d)?|" + "|".join(_HOURS), lower):
        return f"{lower}{half}" if ":" in lower else f"{_hour(lower)}:00{half}"
    return text


def _minutes(m: re.Match[str]) -> str:
    return m[0] if "quarter" in m[0] or "half" in m[0] else in_digits(m[0])


def _hour(text: str) -> int:
    return int(text) if text.isdigit() else _HOURS.index(text) + 1
