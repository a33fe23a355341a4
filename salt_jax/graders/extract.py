"""Where an answer stands in a text: what the graders of this room share."""

from __future__ import annotations

import re
from collections.abc import Callable

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""What stands inside the last ``\boxed{…}`` or ``\fbox{…}`` whose braces match; None where there is none.

    Example:
      >>> last_boxed(r"so \boxed{1} or $\boxed{\frac{3}{4}}$ or \boxed{cut")
      '\\frac{3}{4}'
    """
    opened: list[int | None] = []  # where the content of each open brace starts; None where it is no box's
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        brace = match[0]
        if brace == "}":
            start = opened.pop() if opened else None
            if start is not None and (best is None or start > best[0]):
                best = start, match.start()
        elif brace.endswith("{") and brace != "\\{":
            opened.append(None if brace == "{" else match.end())
    return text[best[0] : best[1]].strip() if best else None


def last_tag(text: str) -> str | None:
    """What stands inside the last ``<answer>…</answer>``; None where there is none.

    Example:
      >>> last_tag("<answer>1</answer> no, <answer> 2 </answer>")
      '2'
    """
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() if end >= 0 and start >= 0 else None


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
      >>> last_number("4 - 1 is 3."), last_number("1,234.50 apples"), last_number("10-3")
      ('3', '1234.50', '3')
    """
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return found[-1].replace(",", "") if found else None


# How a setting `extract` names them.
EXTRACT: dict[str, Callable[[str], str | None]] = {
    "tag": last_tag,
    "boxed": last_boxed,
    "last_line": last_line,
    "last_number": last_number,
    "text": whole_text,
}
