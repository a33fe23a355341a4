"""Answers to multiple-choice questions, and plain texts as answers to vote on."""

from __future__ import annotations

import functools
import re

from salt_jax.graders.extract import last_boxed
from salt_jax.graders.verdict import GraderError, Verdict

LONGEST = 1000  # characters of a box in which a letter alone on a line is looked for; the search is quadratic
REASONS = ("as", "because", "due", "for", "since", "so", "which", "with")  # after 'A' the letter, never the article


def exact_answer(completion: str, reference: str) -> Verdict:
    """``exact_match``, with the text itself as the answer of a majority vote.

    Example:
      >>> exact_answer(" 46\\n", "46")
      Verdict(reward=1.0, answer='46', components=None)
    """
    answer = completion.strip()
    return Verdict(float(answer == reference.strip()), answer or None)


@functools.lru_cache(maxsize=64)
def _patterns(choices: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    letter = f"[{re.escape(choices)}]"
    # A letter that nothing continues: not the B of Bob, B-flat or B's. Possessive, so that a long run of spaces is
    # gone through once: giving one back never helps, as no letter begins with it.
    dressed = rf"(?:\*\*|\$|\\text\{{|\\mathrm\{{|\\textbf\{{|[(\[]|\s)*+({letter})(?![\w'’]|-\w)"
    said = re.compile(rf"\b(?i:answer|choice|option)(?:\s++is|\s*+:)?+(?:\s*+\*\*)?+\s*+:?+{dressed}")
    marked = re.compile(rf"\*\*[(\[]?({letter})[)\].:]?\*\*")
    alone = re.compile(rf"^\W*(?:\\text\{{)?({letter})[\W]*$", re.MULTILINE)
    return said, marked, alone


def find_choice(text: str, choices: str = "ABCD") -> str | None:
    r"""The choice that a text settles on; None where it settles on none.

    ===============================================  ====================================================
    form                                             note
    ===============================================  ====================================================
    ``\boxed{B}``, ``\boxed{\text{(B)}}``            the last box, if there is any, decides alone
    ``Answer: B``, ``the answer is (B)``             also 'choice' and 'option'
    ``**B**``, ``**(B)**``
    ``B`` or ``(B).`` alone on the last line
    ===============================================  ====================================================

    Of several, the one furthest on in the text counts. 'A' followed by a word, as in 'the answer is A dog', is an
    article, unless that word begins a reason ('because').

    Example:
      >>> find_choice("Answer: A. No: the answer is (C)."), find_choice("The answer is A dog.")
      ('C', None)
    """
    said, marked, alone = _patterns(choices)
    box = last_boxed(text)
    if box is not None:
        match = alone.search(box) if len(box) <= LONGEST else None
        match = match or re.match(rf"\W*(?:\\text\{{)?\(?([{re.escape(choices)}])\s*[).:}}]", box)
        return match[1] if match else None
    found = [(match.start(1), match[1]) for match in said.finditer(text) if not _article(text, match)]
    found += [(match.start(1), match[1]) for match in marked.finditer(text)]
    last = text.rstrip().rpartition("\n")
    match = alone.search(last[2])
    if match:
        found.append((len(text), match[1]))
    return max(found)[1] if found else None


def _article(text: str, match: re.Match[str]) -> bool:
    """Whether the letter is a word of its own: 'the answer is A dog', 'the option I like'."""
    word = re.match(r"[ \t]+([a-z]+)", text[match.end(1) : match.end(1) + 40])
    return bool(match[1] in "AI" and word and word[1] not in REASONS)


def multiple_choice(completion: str, reference: str, *, choices: str = "ABCD") -> Verdict:
    """1.0 if the choice that a completion settles on is the reference, else 0.0; see ``find_choice``.

    Args:
      completion: what the policy wrote.
      reference: one letter of ``choices``.
      choices: the letters there are, upper case; in completions, too, only upper case counts.

    Returns:
      ``Verdict`` with the letter as the answer.

    Raises:
      GraderError: choices that are no distinct upper-case letters.
      ValueError: a reference that is none of them.

    Example:
      >>> multiple_choice("It is warm, so the answer is **B**.", "B")
      Verdict(reward=1.0, answer='B', components=None)
    """
    if not choices.isalpha() or not choices.isupper() or len(set(choices)) != len(choices):
        raise GraderError(f"choices = {choices!r} are not allowed; allowed: distinct upper-case letters")
    if reference.strip() not in list(choices):
        raise ValueError(f"the reference {reference[:100]!r} is none of {', '.join(choices)}")
    answer = find_choice(completion, choices)
    return Verdict(float(answer == reference.strip()), answer)


def check_reference(reference: str, *, choices: str | None = None) -> None:
    """ValueError for a reference that is none of the choices; where none are given (``exact_answer``), any will do."""
    if choices is not None:
        multiple_choice("", reference, choices=choices)
