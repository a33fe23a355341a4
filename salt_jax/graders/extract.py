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


_ANSWER = r"(?:answer|antwort|réponse|respuesta|risposta|resposta|ответ|答案|答え|答|정답|الجواب|الإجابة)"
_FOUND = r"(?:result|solution|value|lösung|ergebnis|résultat|solución)"
_VERB = r"(?:is|are|ist|lautet|est|es|equals)\b"
_LINK = rf"(?:\s*\*\*)?(?:\s+{_VERB}|\s*(?:是|为|は|هو|هي)|\s*[:：=])"  # without one, 'answer' does not say what it is
_IS = rf"{_LINK}(?:\s*\*\*)?\s*[:：=]?\s*(?:(?:also|therefore|thus|donc)\b)?\s*(?=(?P<rest>[^\n]+))"
# What may stand before an answer, the surest first.
_SAID = tuple(
    re.compile(word + _IS, re.IGNORECASE) for word in (rf"(?:final|endgültige|finale) {_ANSWER}", _ANSWER, _FOUND)
)
_LATEX = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_ONE = r"(?:\$\$.+?\$\$|\$[^$\n]+?\$|\\\(.+?\\\)|\\\[.+?\\\])"
_SEVERAL = re.compile(rf"{_ONE}(?:\s*(?:,|and|or|und|oder|et|ou|и|или|y|o)\s*{_ONE})*")
_END = re.compile(r"(?<=[^\s.])[.。](?:\s|$)|(?<=。)|[;!?](?:\s|$)|,?\s+(?:because|since|which|as|where|so|but)\s")


def answer_text(text: str, *, boxed_only: bool = False) -> str | None:
    r"""The part of a completion that is its answer; None where there is none.

    The last box that is not empty and stands after the last chain of thought; else what is said after it; else the last
    box within it.

    Example:
      >>> answer_text(r"<think>\boxed{7}</think> The answer is 8."), answer_text(r"\boxed{42}, in \boxed{}.")
      ('8', '42')
      >>> answer_text("it is 3, not 4"), answer_text("none")
      ('4', None)
    """
    _, thought, after = text.rpartition("</think>")
    box = _full_box(after)
    if box is not None:
        return box
    unfinished = not thought and "<think>" in text
    said = None if boxed_only or unfinished else _said(after)
    if said is None and thought:  # nothing behind the thought: a box within it that is called the answer
        found = re.search(r"(?i)answer[^.\n]*(\\boxed.*)$", _, re.DOTALL)
        return _full_box(found[1]) if found else None
    return said


def last_boxes(text: str, count: int) -> list[str]:
    r"""The last boxes of a text's last paragraph with one, in their order; at most so many.

    Example:
      >>> last_boxes(r"so \boxed{1} and \boxed{2}", 3)
      ['1', '2']
    """
    for paragraph in reversed(text.split("\n\n")):
        found: list[str] = []
        while len(found) <= count and (box := last_boxed(paragraph)) is not None:
            found.insert(0, box)
            paragraph = paragraph[: max(paragraph.rfind("\\boxed"), paragraph.rfind("\\fbox"))]
        if found:
            return found
    return []


def _full_box(text: str) -> str | None:
    while (box := last_boxed(text)) is not None:
        if box.strip():
            return box
        text = text[: max(text.rfind("\\boxed"), text.rfind("\\fbox"))]
    return None


def _said(text: str) -> str | None:
    """An answer without a box."""
    tag = last_tag(text)
    if tag:
        return tag
    marked = text.rfind("####")
    if marked >= 0 and text[marked + 4 :].strip():
        return text[marked + 4 :].strip().splitlines()[0]
    for pattern in _SAID:
        said = list(pattern.finditer(text))
        if not said:
            continue
        rest = said[-1]["rest"].strip().strip("*_").strip()
        several = _SEVERAL.match(rest)
        if several:
            return ", ".join(next(part for part in found if part) for found in _LATEX.findall(several[0]))
        end = _END.search(rest)
        rest = (rest[: end.start()] if end else rest).strip().strip("*_").strip()
        rest = re.sub(r"\s*\((?!base)[^()]*[a-z]{3}[^()]*\)$", "", rest)
        if rest:
            return rest
    latex = list(_LATEX.finditer(text))
    if latex:
        return next(part for part in latex[-1].groups() if part)
    return last_number(text)


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
