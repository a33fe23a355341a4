"""Where an answer stands in a text: what the graders of this room share."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from salt_jax.graders.said import last_tag, said

_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\w))?")
_BARE = re.compile(r"\\boxed\s+(-?\d+(?:\.\d+)?|[^\s$.{}\\]+)")
_CUT = re.compile(r"\\(?:boxed|fbox)\s*\{(?!\s*\})")  # a box that never closes: the text was cut off in it
_JOINED = re.compile(r"[\s$]*(?:,|&|,?\s*(?:and|or|und|oder|et|ou|y|o))[\s$]*")
_TAKEN_BACK = re.compile(r"\b(?:not|instead|wrong|incorrect)\b|n't\b", re.IGNORECASE)
_BEFORE = re.compile(r"(?:^|[=\s$(])(-|not\s+)\$?$")
_AFTER = re.compile(
    r"(\$?(?:_\{?\w{1,7}\}?|\^(?!\s*\{?\s*\\circ).{1,20}|\.\d+|\s*\\?%|\s*[/+*]\s*\d.{0,20}"
    r"|\s*\\(?:cdot|times)\b.{1,20}))"
)
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


class Box(NamedTuple):
    """A box: where it starts and ends in the text, and what stands in it."""

    start: int
    end: int
    inside: str


def found_boxes(text: str) -> list[Box]:
    """Each box whose braces match and that is in no other, in order; where there is none, what a bare one holds."""
    opened: list[re.Match[str] | None] = []  # the open braces; None where it is no box's
    found: list[Box] = []
    for match in _BRACES.finditer(text):
        brace = match[0]
        if brace == "}":
            box = opened.pop() if opened else None
            if box is not None:
                while found and found[-1].start > box.start():  # a box within this one
                    found.pop()
                found.append(Box(box.start(), match.end(), text[box.end() : match.start()].strip()))
        elif brace.endswith("{") and brace != "\\{":
            opened.append(None if brace == "{" else match)
    return found or [Box(match.start(), match.end(), match[1]) for match in _BARE.finditer(text)]


def boxes(text: str) -> list[str]:
    r"""What stands inside each ``\boxed{…}`` or ``\fbox{…}``, see ``found_boxes``.

    Example:
      >>> boxes(r"so \boxed{1} or $\boxed{\frac{3}{4}}$ or \boxed{cut")
      ['1', '\\frac{3}{4}']
      >>> boxes(r"\boxed{\boxed{12}+1}"), boxes(r"$\boxed 7$")
      (['\\boxed{12}+1'], ['7'])
    """
    return [box.inside for box in found_boxes(text)]


def last_boxed(text: str) -> str | None:
    r"""What stands inside the last ``\boxed{…}`` or ``\fbox{…}`` whose braces match; None where there is none.

    Example:
      >>> last_boxed(r"so \boxed{1} or $\boxed{\frac{3}{4}}$ or \boxed{cut")
      '\\frac{3}{4}'
    """
    found = boxes(text)
    return found[-1] if found else None


def answer_text(text: str, *, boxed_only: bool = False) -> str | None:
    r"""The part of a completion that is its answer; None where there is none.

    The last box that is not empty and stands after the last chain of thought; else what is said after it. A box within
    the thought counts only where nothing stands behind it, and what was cut off in its thought or box is no answer.

    Example:
      >>> answer_text(r"<think>\boxed{7}</think> The answer is 8."), answer_text(r"\boxed{42}, in \boxed{}.")
      ('8', '42')
      >>> answer_text("it is 3, not 4"), answer_text("none")
      ('3', None)
    """
    thought, closed, after = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return None  # cut off before an answer
    box = _full_box(after)
    if box is not None:
        return box
    if closed and not after.strip():  # a box within the thought that is called the answer
        found = re.search(r"(?i)answer(?:(?!\bnot\b)[^.\n])*(\\boxed.*)$", thought, re.DOTALL)
        return _full_box(found[1]) if found else None
    if boxed_only or _CUT.search(after):
        return None
    return said(after)


def last_boxes(text: str, count: int) -> list[str]:
    r"""All boxes of a text, or those of its last paragraph with one, if they are so many; else none.

    None too where something is taken back before them.

    Example:
      >>> last_boxes(r"so \boxed{1} and \boxed{2}", 2), last_boxes(r"not \boxed{1} but \boxed{2}", 2)
      (['1', '2'], [])
    """
    last = next((part for part in reversed(text.split("\n\n")) if found_boxes(part)), "")
    for part in (text, last):
        found = found_boxes(part)
        if len(found) == count and not _TAKEN_BACK.search(part[max(0, found[0].start - 20) : found[-1].start]):
            return [box.inside for box in found]
    return []


def _full_box(text: str) -> str | None:
    """The last box that is not empty, with what belongs to it: a sign before, a power behind, boxes joined to it."""
    found = [box for box in found_boxes(text) if box.inside]
    if not found:
        return None
    first, inside = found[-1], found[-1].inside
    for box in reversed(found[:-1]):
        if not _JOINED.fullmatch(text[box.end : first.start]):
            break
        first, inside = box, f"{box.inside}, {inside}"
    before, after = _BEFORE.search(text[: first.start][-40:]), _AFTER.match(text, found[-1].end)
    return (before[1] if before else "") + inside + (after[1].replace("$", " ") if after else "")


def last_line(text: str) -> str | None:
    """The last line that is not empty, without white space around it; None where there is none.

    Example:
      >>> last_line("so\\n 46 \\n\\n")
      '46'
    """
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def whole_text(text: str) -> str | None:
    """The text without white space around it; None where nothing is left.

    Example:
      >>> whole_text(" 46\\n"), whole_text(" ")
      ('46', None)
    """
    return text.strip() or None


def last_number(text: str) -> str | None:
    """The last number written in digits, without thousands' commas; None where there is none.

    For models too small to keep to a format. It is lenient: a wrong text that ends in the right number passes.

    Example:
      >>> last_number("4 - 1 is 3."), last_number("1,234.50 apples"), last_number("10-3"), last_number("5e3")
      ('3', '1234.50', '3', '5000')
    """
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    number = found[-1].replace(",", "") if found else None
    return number if number is None or "e" not in number.lower() else f"{Decimal(number):f}"


# How a setting `extract` names them.
EXTRACT: dict[str, Callable[[str], str | None]] = {
    "tag": last_tag,
    "boxed": last_boxed,
    "last_line": last_line,
    "last_number": last_number,
    "text": whole_text,
}
