"""Answers to multiple-choice questions, and plain texts as answers to vote on."""

from __future__ import annotations

import re

from salt_jax.graders.letters import (
    BOLD,
    BOLDED,
    BOX,
    BOXED,
    LETTER,
    Claim,
    concluded,
    denied,
    one,
    plain,
    ruled_out,
    said,
    several,
)
from salt_jax.graders.verdict import GraderError, Verdict

_THOUGHT = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_EMPTY = re.compile(rf"{BOX}[^\w{BOX}{BOXED}]*{BOXED}")
_INNER = re.compile(rf"{BOX}([^{BOX}{BOXED}]*){BOXED}")
_JOINED = re.compile(r"[\s,;/&]*(?:(?:and|or|und|oder|et|ou|y|o|и|или|和|或)\b[^.]{0,20})?", re.IGNORECASE)
_NAMED = (
    r"(?:(?:the )?(?:final |correct )*(?:answer|option|choice|letter|antwort|réponse|respuesta|risposta|"
    r"resposta|opción|ответ|вариант|"
    r"选项|答案|正解|答え|답)(?: is)?[:.]?(?![^\W_])[ \n]?)?"
)
_ALONE = re.compile(
    rf"(?:[-–—•+→] |[→✓✅☑✔] ?)*(?:(?:no|yes)[,:] )?(?P<named>{_NAMED}){LETTER}(?:,? (?:I (?:think|believe|"
    rf"guess)|probably|"
    rf"definitely|of course)| です| 입니다)?[.,;:!]* ?[✓✅☑✔]*", re.IGNORECASE
)
_SEVERAL = re.compile(
    r"(?:[Bb]oth |[Ee]ither )?\(?[A-Z]\b\)?(?:(?:[ ,;/&()]|and|or|und|oder|maybe|possibly|perhaps)+[A-Z]\b\)?)+[.!]?"
)
_CONTENT = re.compile(rf"{_NAMED}{_NAMED}{LETTER}", re.IGNORECASE)
# what may follow in a box
_AFTER = re.compile(
    r" ?$| ?[.:] ?(?=\D|$)| [-–—] |,? (?:because|since|as|for|not)\b|, [A-Za-z]{2}| \([^\W\d_]{2}"
)
_ANOTHER = re.compile(r"[,;\n] ?\(?[A-Z] ?[).:]")
_OTHERS = re.compile(r"^(?:and|or|und|oder|et|ou) |(?:^| )\(?[A-Z][).:] ")
_OPTION = re.compile(
    rf"(?:[-•+] )?{_NAMED}{LETTER}(?P<mark>[.:]| [-–—](?= )|(?<=[)\]{BOLDED}])) ?(?P<words>[^\n]*)", re.IGNORECASE
)
_REFUSED = re.compile(
    r"(?:no|nope|not|wrong|incorrect|false|错|不)(?=$|[.,;:!])|(?:is |was )not\b|(?:is |was )?(?:wrong|incorrect|"
    r"false)\b", re.IGNORECASE
)
# goes on with a letter
_NAME = re.compile(
    r"\b(?:fig|figs|eq|cf|vs|sec|ch|no|vit|mr|mrs|dr|prof|st|[a-z]|\d+)\.$", re.IGNORECASE
)
_NEGATED = re.compile(
    r"(?:\b(?:not|never|nicht|pas|не|no|não|non)|n't|不是?)\W{0,3}(?:(?:the|option|answer|be) )?$", re.IGNORECASE
)
_WITH = re.compile(r" ?(?:,|/|&|and|or) ?\(?[A-Z]\b")
_TURN = re.compile(
    r"[.!?\n]|\b(?:so|thus|therefore|hence|but|however|yet|though|although|finally|because|since|which|now|then|not)\b|[所因但不]",
    re.IGNORECASE,
)
_IN_BOLD = re.compile(rf"(?P<open>{BOLD})(?P<letter>[^\W\d_])(?P<close>{BOLDED})")
# Here the text thinks again: what comes before counts only where nothing is said after, and after 'No' not at all.
_AGAIN = re.compile(
    rf"(?:^|(?<=[.!?;:,…\n—–){BOXED}]) ?)(?:(?:oh|but|hmm+|so|ah|no)[,.… ]+){{0,3}}"
    r"(?:(?P<no>no(?=[,:.—–!])|scratch that|i (?:was wrong|made a mistake|take that back)|nein\b|нет|不对)|"
    r"wait|hmm+|actually|correction|on (?:second thought|reflection)|oops|sorry|edit(?=:)|(?:my|a) (?:mistake|"
    r"bad|error)(?=[,:.—])|or rather|i mean(?:t)?(?= )|strike that|let me reconsider|korrektur|moment|等等)\b[,:.…! ]*"
    r"(?P<wrong>(?:no\b(?=[,:.!—–]|$)|(?:(?:that|this|it)(?:'s| is| was) )?(?:wrong|incorrect|not right|"
    r"not correct|a mistake)\b))?[,:.…! —–]*",
    re.IGNORECASE,
)  # fmt: skip


def exact_answer(completion: str, reference: str) -> Verdict:
    """``exact_match``, with the text itself as the answer of a majority vote.

    Example:
      >>> exact_answer(" 46\\n", "46")
      Verdict(reward=1.0, answer='46', components=None)
    """
    answer = completion.strip()
    return Verdict(float(answer == reference.strip()), answer or None)


def find_choice(text: str, choices: str = "ABCD") -> str | None:
    r"""The choice that a text settles on; None where it settles on none.

    The first of these that there is decides alone; of several of a kind, the last.

    =====  ======================================================================  =============================
    order  evidence                                                                note
    =====  ======================================================================  =============================
    1      ``\boxed{B}``, ``\boxed{\text{(B)}~24}``, ``\boxed{B. Paris}``          empty boxes do not count
    2      ``<answer>B</answer>``
    3      ``Answer: B``, ``the answer is (B)``, ``I choose B``, ``B is correct``  in many languages
           a last line that is only ``B``, ``(B).``, ``**Option B**``
    4      ``it is B``, ``hence B``, ``this leaves B``, ``not A but B``            also a last sentence only ``B``
    5      ``B. Paris``, ``(B) Paris``: the only line of that kind                 the first or the last line
    6      ``**B**``, the only letter in bold
    =====  ======================================================================  =============================

    Letters count in any dress, full-width too; small ones in brackets, in a box or where nothing follows them.
    Look-alikes of other alphabets do not. Nothing is settled by a claim that is denied, asked, doubted or made under
    a condition, by several letters (``A and C``, ``A, C``), or by a letter that is no choice. 'A' before a word is an
    article, 'I' a pronoun. What comes before 'Wait' or 'Correction' counts only where nothing is said after it, and
    a box only up to there. A thought, ``<think>…</think>``, counts only where nothing follows it and it calls a letter
    the answer; one that is cut off, only with that letter in a box. The options' own texts are not known here: without
    a letter there is no answer.

    Example:
      >>> find_choice("Answer: A. No: the answer is (C)."), find_choice("The answer is A dog.")
      ('C', None)
      >>> find_choice(r"It is \boxed{\textbf{(D)}~24}."), find_choice("The answer is A or B.")
      ('D', None)
    """
    thoughts = list(_THOUGHT.finditer(text))
    if not thoughts:
        return _settled(text, choices) or None
    last = thoughts[-1]
    if last[0].startswith("</"):
        after = text[last.end() :]
        if any(c.isalnum() for c in after):
            return _settled(after, choices) or None
        start = thoughts[-2].end() if len(thoughts) > 1 else 0
        return _thought(text[start : last.start()], choices, cut=False)
    return _thought(text[last.end() :], choices, cut=True)


def _thought(text: str, choices: str, *, cut: bool) -> str | None:
    """What a thought calls the answer; where it is cut off, only a box."""
    for part, taken_back in _parts(plain(text)):
        claims = [(at, letter) for at, letter in said(part, choices) if not cut or part[at - 1 : at] == BOX]
        if claims or taken_back:
            return max(claims)[1] or None if claims else None
    return None


def _settled(text: str, choices: str) -> str | None:
    """The letter of the surest evidence; '' or None where there is none."""
    text = plain(text)
    text = _EMPTY.sub("", _EMPTY.sub("", text))  # once more for what is empty in a box
    boxes = list(_INNER.finditer(text))
    if boxes:
        return _boxed(text, boxes, choices)
    tags = list(_TAG.finditer(text))
    for tag, end in zip(reversed(tags), [len(text), *(tag.start() for tag in reversed(tags))], strict=False):
        inside = text[tag.end() : end].strip()
        if not tag[1] and inside:
            return _content(inside, choices)
    for part, taken_back in _parts(text):
        found = _stated(part, choices)
        if found is not None or taken_back:
            return found
    return _listed(text, choices)


def _parts(text: str) -> list[tuple[str, bool]]:
    """The text between its second thoughts, the last first, and whether what stands before each is taken back."""
    again = [m for m in _AGAIN.finditer(text) if not (m["no"] and text[max(0, m.start() - 1) : m.start()] in "?:,")]
    starts = [0, *(m.end() for m in again)]
    ends = [*(m.start() for m in again), len(text)]
    taken_back = [False, *(bool(m["no"] or m["wrong"]) for m in again)]
    return [(text[a:b], back) for a, b, back in zip(starts, ends, taken_back, strict=True)][::-1]


def _boxed(text: str, boxes: list[re.Match[str]], choices: str) -> str | None:
    last = boxes[-1]
    found = _content(last[1], choices)
    if len(boxes) > 1 and _JOINED.fullmatch(text, boxes[-2].end(), last.start()):
        found = found if _content(boxes[-2][1], choices) == found else ""
    before, after = text[max(0, last.start() - 40) : last.start()], text[last.end() :].lstrip(BOXED)
    if _NEGATED.search(before) or re.match(r" ?\?", after) or denied(after[:200]) or several(after[:200], found or ""):
        found = ""
    *thoughts, (at_once, _) = _parts(after)
    for part, taken_back in thoughts:
        later = _stated(part, choices)
        if later is not None or taken_back:
            return later
    if found is None and not re.search(r"[^\W\d_]", last[1]):  # a value, and behind it perhaps whose value it is
        return _stated(at_once, choices)
    return found


def _content(text: str, choices: str) -> str | None:
    """The letter that a box or a tag holds."""
    text = text.strip(" \n.,;:!")
    match = _CONTENT.match(text)
    if match and (match["close"].strip() or _AFTER.match(text, match.end())):
        return "" if _ANOTHER.search(text, match.end()) else one(text + "\n", match, choices)
    return _stated(text, choices)


def _stated(text: str, choices: str) -> str | None:
    """What a text says at the end of its last line, or last before; '' where it says that nothing is settled."""
    text = text.strip()
    lines = text.rsplit("\n", 2)
    claims = [*said(text, choices), *_alone(lines[-1], lines[-2] if len(lines) > 1 else "", len(text), choices)]
    if not claims:
        sentences = re.split(r"(?<=[.!?]) ", lines[-1])[-2:]
        last = _alone(sentences[-1], sentences[0], len(text), choices) if len(sentences) > 1 else []
        claims = [*concluded(text, choices), *([] if _NAME.search(sentences[0]) else last)]
    claims.sort()
    if len(claims) > 1 and claims[-1][1] != claims[-2][1]:
        turn = _TURN.search(text, claims[-2][0], claims[-1][0])
        return claims[-1][1] if turn else ""  # 'the answer is A and the answer is C'
    return claims[-1][1] if claims else None


def _alone(text: str, before: str, at: int, choices: str) -> list[Claim]:
    """The claim of a line or sentence that is only a letter, unless the one before it is only another."""
    if _SEVERAL.fullmatch(text.strip()):
        return [(at, "")]
    match, other = _ALONE.fullmatch(text.strip()), _ALONE.fullmatch(before.strip())
    whole = match and match.end("close") - match.start("letter") == len(text.strip(" .,;:!"))
    letter = one(match.string + "\n" * bool(whole), match, choices) if match else None
    if match is None or letter is None:
        return []
    again = other and "answer" not in match["named"].lower()  # 'Answer: A', and later 'Answer: C'
    return [(at, "" if again and other and other["letter"].upper() != letter else letter)]


def _listed(text: str, choices: str) -> str | None:
    """The letter of the only line that begins as an option; else the only one in bold."""
    lines = text.split("\n")
    alone = [match for line in lines if (match := _ALONE.fullmatch(line))]
    options = [match for line in lines if (match := _OPTION.match(line)) and match["words"]]
    if not options and len(alone) == 1 and len(lines) > 1 and alone[0].string == lines[0]:
        return one(lines[0] + "\n", alone[0], choices) if re.match(r"[^\Wa-z_]", lines[1]) else None
    if len(options) == 1 and options[0].string in (lines[0], lines[-1]) and _is_option(options[0]):
        return one(options[0].string, options[0], choices)
    bold = list(_IN_BOLD.finditer(text))
    letters = {
        one(text, match, choices)
        for match in bold
        if not ruled_out(text, match.start()) and not _WITH.match(text, match.end())
    }  # fmt: skip
    return letters.pop() if len(letters) == 1 and len({match["letter"] for match in bold}) == 1 else None


def _is_option(line: re.Match[str]) -> bool:
    """Whether a line is an option with its text, 'B. Paris', and says nothing of it, as 'B fails' or 'B: wrong' do."""
    letter, words = line["letter"], line["words"]
    if (letter == "I" or letter.islower()) and not line["close"]:
        return False
    if "?" in words or _REFUSED.match(words) or _OTHERS.search(words):
        return False
    bracket = not line["mark"] and not line["open"]  # 'b) paris', where '(b) paris' may go on as a sentence
    return bool(line["mark"] == "." or bracket or re.match(r"(?:the|an?) |[^a-z,;/&]", words))


def multiple_choice(completion: str, reference: str, *, choices: str = "ABCD") -> Verdict:
    """1.0 if the choice that a completion settles on is the reference, else 0.0; see ``find_choice``.

    Args:
      completion: what the policy wrote.
      reference: one letter of ``choices``.
      choices: the letters there are, upper case.

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
