r"""An answer that stands in no box: what a completion says is its answer, or the last mathematics that it writes.

The order: an ``<answer>``, what follows '####', what follows 'the answer is' (of several languages), and else the last
expression of the last sentence that has one. An expression is taken whole, with its signs, units and joining words, so
that a part of it never stands for all of it.
"""

from __future__ import annotations

import re

from salt_jax.graders.dress import ascii_form
from salt_jax.graders.number_words import in_digits
from salt_jax.graders.units import NOT_UNITS, UNITS

LONGEST = 1000  # characters of a sentence, from its end
_ANSWER = r"(?:answer|antwort|réponse|respuesta|risposta|resposta|ответ|答案|答え|答|정답|الجواب|الإجابة|उत्तर)"
_FOUND = r"(?:result|solution|value|lösung|ergebnis|résultat|solución)"
_VERB = r"(?:is|are|ist|lautet|est|es|equals|है)\b"
_LINK = rf"(?:\s*\*\*)?(?:\s+{_VERB}|\s*(?:是|为|は|는|은|هو|هي)|\s*[:：=])"  # without one, nothing is said
_IS = rf"{_LINK}(?:\s*\*\*)?\s*[:：=]?\s*(?:(?:also|therefore|thus|donc)\b)?\s*(?=(?P<rest>[^\n]{{1,600}}))"
# What may stand before an answer, the surest first.
_SAID = tuple(
    re.compile(word + _IS, re.IGNORECASE) for word in (rf"(?:final|endgültige|finale) {_ANSWER}", _ANSWER, _FOUND)
)
_ONE = r"(?:\$\$.+?\$\$|\$[^$\n]+?\$|\\\(.+?\\\)|\\\[.+?\\\])"
_SEVERAL = re.compile(rf"{_ONE}(?:\s*(?:,|and|or|und|oder|et|ou|и|или|y|o)\s*{_ONE})*")
_LATEX = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_END = re.compile(
    r"(?<=[^\s.])[.。।](?:\s|$)|(?<=。)|(?<=[a-z])!(?:\s|$)|[;?](?:\s|$)|,?\s+(?:because|since|which|as|where|so|but)\s"
    r"|\s*(?:です|である|になります|となります|입니다|이다|है|हैं)"
)
_SENTENCE = re.compile(r"(?:(?<=[.?。？])|(?<=[a-z]!))(?:\*\*)?(?:\s+|$)|(?<=[。？])|\n+")
_TOKEN = re.compile(
    r"(?P<latex>\$\$.+?\$\$|\$[^$\n]+?\$|\\\(.+?\\\)|\\\[.+?\\\])"
    r"|(?P<number>\d(?:[a-zA-Z\d^]|[.,:'](?=\d))*|\.\d+)"
    r"|(?P<word>[^\W\d_²³¹⁴]+(?:\.[^\W\d_]\.)?)"
    r"|(?P<dots>\.\.\.|…)"
    r"|(?P<sign>\\?[-+*/^=<>≤≥≠±∓×÷·(){}\[\]|%‰&°√∞∪∩∈∖∅¬∧∨~$€£¥₹−–_'²³⁴⁻¹]|(?<=[\w)])!|\\[a-zA-Z]+)"
    r"|(?P<comma>[,;:])|(?P<other>\S)"
)
_JOINING = frozenset("and or to in out of base".split())
_INSIDE = frozenset("sqrt pi log ln sin cos tan mod arcsin arccos arctan".split()) | frozenset(
    "january february march april may june july august september october november december jan feb mar apr jun jul aug "
    "sep sept oct nov dec".split()
)
_BEHIND = frozenset(  # what belongs to a number before it
    "am pm a.m p.m uhr noon midnight morning afternoon evening night".split()
) | (NOT_UNITS - {"for", "when", "if", "more", "less", "fewer", "below"})
_LIMITING = re.compile(r"\b(at least|at most|more than|less than|fewer than|over|under)\s*$")
_DENIED = re.compile(  # in the clause before an expression: it is no answer
    r"(?:\b(?:not|never|no|nor|neither|cannot|except|instead|rather|wrong|incorrect|false|anything but|other than|"
    r"far from|unlike|without)\b|n't\b)[^,;:]*$",
    re.IGNORECASE,
)
_CHANGED = re.compile(  # directly before one: it is a part of another number
    r"\b(?:or|maybe|perhaps|possibly|either|twice|double|triple|half|thrice|plus|times|by|power|mod|modulo|"
    r"the (?:opposite|negative)|(?:half|root|opposite|reciprocal|inverse|third|quarter|logarithm|log|sine|cosine|"
    r"square|cube|power|double|negative|factorial|percent|part|multiple) of)\s*$",
    re.IGNORECASE,
)
_GOES_ON = re.compile(  # directly behind one: the same
    r"^\s*(?:squared|cubed|factorial|and a |or (?:maybe |perhaps |even )?(?:\w+\b)|to the power|[&/^!*+]|\.\d|[‰→≈])"
    r"|^[^\s.,;:!?)\]}'\"*$。、]",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"\s*\((?:see|the|since|because|from|by|as|step|part|rounded|using|after)\b", re.IGNORECASE)
_OTHER = re.compile(r"\b(?:opposite|other|rest|reverse)\b", re.IGNORECASE)
_GAVE_UP = re.compile(
    r"\b(?:(?:can(?:not|'t|\s?not)|could(?: not|n't)|unable to|did(?: not|n't)) (?:solve|find|answer|"
    r"determine|compute)|that I can find|do(?: not|n't) know|no idea|I'm sorry|give up)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(r"\b(?:or|could|might|maybe|perhaps|possibly|unless)\b", re.IGNORECASE)
_SURE = re.compile(r"[\dπ√∞∅∩∪∈¬∧∨≤≥]|\\[a-zA-Z]|\w\s*[=<>+]\s*\w")
_COPULA = re.compile(r"^.*\b(?:is|are|was|were|equals|be)\s+(.*?)[.!]*$", re.DOTALL)
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


def last_tag(text: str) -> str | None:
    """What stands inside the last ``<answer>…</answer>``, in any case; of one that is not closed if there is no other.

    None where there is none.

    Example:
      >>> last_tag("<answer>1</answer> no, <Answer> 2 </Answer>"), last_tag("<answer>42")
      ('2', '42')
    """
    lower = text.lower()
    end = lower.rfind("</answer>")
    start = lower.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0:
        return text[start + len("<answer>") : end].strip()
    opened = lower.rfind("<answer>")
    return (text[opened + len("<answer>") :].strip() or None) if opened >= 0 else None


def said(text: str) -> str | None:
    """The answer that a text without a box says; None where there is none.

    Example:
      >>> said("The answer is 3 m, because it is."), said("So he waits 3 h 20 min for it."), said("x = 2 or x = 3")
      ('3 m', '3 h 20 min', 'x = 2 or x = 3')
      >>> said("It is 3, not 4."), said("Is it 3?"), said("The winner was **Maria**.")
      ('3', None, 'Maria')
    """
    tag = last_tag(text)
    if tag:
        return tag
    marked = text.rfind("####")
    if marked >= 0 and text[marked + 4 :].strip():
        return text[marked + 4 :].strip().splitlines()[0]
    for pattern in _SAID:
        for found in reversed(list(pattern.finditer(text))):
            rest = _rest(found["rest"])
            if rest:
                return rest
    text = re.sub(r"([.,;])\s*(\\\]|\$\$|\\\))", r" \2\1", text)  # a stop within displayed mathematics
    plain = re.sub(r"(?i)\bplus or minus\s", r"\\pm ", ascii_form(text))
    plain = re.sub(r"(?i)\b(?:minus|negative)\s+(?=[\d.\\$])", "-", plain)
    decided = re.match(r"\s*(yes|no)\b[,.]", text, re.IGNORECASE)
    spelled = re.sub(r"(?i)\b(?:minus|negative)\s+(?=\d)", "-", in_digits(plain[-LONGEST:]))
    return _in_sentences(plain) or _in_sentences(spelled) or (decided[1] if decided else None)


def _in_sentences(text: str) -> str | None:
    """What the last sentence says that says something, and is no question."""
    sentences = [part for part in _SENTENCE.split(text) if part and part.strip()]
    if not sentences or _GAVE_UP.search(" ".join(sentences[-2:])) or re.search(r"(?:[=+]|\\cdot|\\times)\s*$", text):
        return None
    if last_expression(sentences[-1]) is None and re.search(r"[a-z]$", text.strip()):  # cut off within a sentence
        return None
    for sentence in reversed(sentences):
        if sentence.rstrip().endswith(("?", "？")):
            continue
        bold = _BOLD.findall(sentence)
        expression = last_expression(sentence)
        if bold and (expression is None or sentence.rfind(bold[-1]) > sentence.rfind(expression)):
            return bold[-1].strip()
        if expression is not None:
            return expression
        told = _COPULA.match(sentence.strip())
        short = told is not None and bool(re.search(r"\d", told[1])) and len(told[1].split()) <= 8
        if told and short and not _DENIED.search(told[0][: told.start(1)]):
            return told[1].strip()
    if re.match(r"\s*(yes|no)\b[,.]", text, re.IGNORECASE):
        return None
    told = _COPULA.match(sentences[-1].strip()) if sentences else None  # in words
    before = told and sentences[-1].strip()[: told.start(1)]
    if not told or not before or _DENIED.search(before) or _OTHER.search(before):
        return None
    return told[1].strip() if len(told[1].split()) <= 6 else None


def _rest(rest: str) -> str:
    """What is said to be the answer, without the reason that follows; '' for a question."""
    rest = rest.strip().strip("*_").strip()
    several = _SEVERAL.match(rest)
    if several and re.match(r"\s*(?:$|[.,;:!?](?:\s|$)|[a-z]|\*\*)", rest[several.end() :]):
        if _GOES_ON.search(rest[several.end() :]) or re.match(r"\W*or\b", rest[several.end() :], re.IGNORECASE):
            return rest
        behind = rest[several.end() :].split()
        parts = [next(part for part in found if part) for found in _LATEX.findall(several[0])]
        word = behind[0].rstrip(".,;:") if behind else ""
        unit = len(parts) == 1 and (word in UNITS or word.rstrip("s") in UNITS or word.lower() in NOT_UNITS)
        if unit and word not in _JOINING:
            return rf"{parts[0]} \text{{ {word}}}"
        return ", ".join(parts)
    end = _END.search(rest)
    if end and end[0].strip() == "?":
        return ""
    following = rest[end.end() :].lstrip() if end else ""
    if end and (re.match(r"(?i)or\b", following) or (";" in end[0] and re.match(r"[-\d$\\]", following))):
        return rest  # 3; 4
    if end and end[0].strip(", ") in ("but", "where", "as", "so", "since") and _HEDGE.search(following):
        return rest
    rest = (rest[: end.start()] if end else rest).strip().strip("*_").strip()
    bracket = re.search(r"\s*\((?!base|mod)[^()]*[a-z]{3}[^()]*\)$", rest)
    words = bracket is not None and not re.search(r"\d", bracket[0]) and in_digits(bracket[0]) == bracket[0]
    plain = bracket is not None and (words or _ASIDE.match(bracket[0]))
    return rest[: bracket.start()] if bracket and plain and not _HEDGE.search(bracket[0]) else rest


def last_expression(sentence: str) -> str | None:
    """The last mathematical expression of a sentence, whole; None where there is none.

    A run of numbers, signs, single letters, LaTeX, units behind numbers, and words such as 'and' between them. One
    that 'not' or 'at least' stands before is no answer by itself.

    Example:
      >>> last_expression("There are 2 598 960 hands"), last_expression("He leaves at 9:05 AM with $2$ bags")
      ('2 598 960', '2')
      >>> last_expression("The set is (-1, 1) - {0}."), last_expression("It is at least 40")
      ('(-1, 1) - {0}', 'at least 40')
    """
    sentence = sentence[-LONGEST:].strip().strip("*_#> ").rstrip("。!").strip()
    sentence = sentence[:-1] if sentence.endswith(".") and not sentence.endswith("..") else sentence
    tokens = list(_TOKEN.finditer(sentence))
    runs: list[Tokens] = [[]]
    for i, token in enumerate(tokens):
        if _belongs(tokens, i, runs[-1]):
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    for run in reversed(runs):
        run = _trimmed(run)
        if not run:
            continue
        start, end = run[0].start(), run[-1].end()
        text = sentence[start:end]
        if not _SURE.search(text):
            continue
        text = _LATEX.sub(lambda m: next(part for part in m.groups() if part), _alike(text))
        if _DENIED.search(sentence[:start]):
            continue
        glued = re.search(r"[^\s\w(\[{\"'*$:=,;.。、，：]$", sentence[:start])  # 5→4
        if glued or _CHANGED.search(sentence[:start]) or _GOES_ON.search(sentence[end:]):
            return sentence  # all of it
        limit = _LIMITING.search(sentence[:start])
        return f"{limit[0].strip()} {text}" if limit else text
    return None


Tokens = list[re.Match[str]]


def _belongs(tokens: Tokens, i: int, run: Tokens) -> bool:
    """Whether a token goes on the expression of the tokens before it, or begins one."""
    kind = tokens[i].lastgroup
    if kind in ("latex", "number", "sign", "dots"):
        return True
    if kind != "word":
        return kind == "comma" and bool(run)
    following = tokens[i + 1] if i + 1 < len(tokens) else None
    return _joins(tokens[i][0], run, following) or _counts(tokens[i][0], run, following) or (
        _letter(tokens[i][0], run, following)
    )


def _joins(text: str, run: Tokens, following: re.Match[str] | None) -> bool:
    """Whether a word joins two parts of an expression: 3 and 4, 2 to 3, 1 out of 6, 2A in base 16."""
    word = text.lower()
    if word not in _JOINING or not run or following is None:
        return False
    if following.lastgroup in ("number", "latex", "sign") or following[0].lower() in ("base", "of"):
        return True
    return word in ("and", "or") and len(following[0]) == 1


def _counts(text: str, run: Tokens, following: re.Match[str] | None) -> bool:
    """Whether a word says what a number counts, or is the name of a function or a month."""
    word = text.lower().rstrip(".")
    if word in _INSIDE:
        return word != "may" or text[0] == "M"
    if not run:
        return False
    last = run[-1]
    if last.lastgroup == "word":
        return (word == "per" and last[0].rstrip("s") in UNITS) or last[0] == "per"
    if last.lastgroup not in ("number", "latex") and last[0] not in ")}%!°²³":
        return False
    if word == "in":  # 5 ft 7 in
        inches = following is None or following.lastgroup == "word"
        return inches and len([token for token in run if token.lastgroup == "number"]) > 1
    known = text in UNITS or word in UNITS or word.rstrip("s") in UNITS or word in _BEHIND or text in "年月日号년월일"
    return known and word not in _JOINING


def _letter(text: str, run: Tokens, following: re.Match[str] | None) -> bool:
    """Whether a word is a letter of mathematics, or two capitals: not the article, not 'I'."""
    if not (text.isascii() or "Α" <= text <= "ω") or len(text) > 2 or (len(text) == 2 and not text.isupper()):
        return False
    beside = [token for token in (run[-1] if run else None, following) if token is not None]
    return text not in ("a", "I", "A") or any(token.lastgroup == "sign" for token in beside)


def _trimmed(run: Tokens) -> Tokens:
    """Without joining words, commas and lone signs at its ends."""
    joining = ("and", "or", "to", "of", "–", "*", "=")
    while run and (run[-1].lastgroup == "comma" or run[-1][0] in (*joining, "-", "(")):
        run = run[:-1]
    while run and (run[0].lastgroup == "comma" or run[0][0] in (*joining, ")", "/", "'", "_")):
        run = run[1:]
    for first, last in ("()", "[]"):  # a bracket that closes what opened before the expression
        if run and run[-1][0] == last and sum(t[0].count(first) - t[0].count(last) for t in run) < 0:
            run = run[:-1]
        if run and run[0][0] == first and sum(t[0].count(first) - t[0].count(last) for t in run) > 0:
            run = run[1:]
    return run


def _alike(text: str) -> str:
    """The last of several pieces between commas where it is no piece of the same list: 'n = 5, 12' is 12."""
    pieces = re.split(r",\s+", text)
    if len(pieces) < 2 or re.search(r"[(\[{∈]|\\in|(?i:[a-z]{3} \d)", text):
        return text
    kinds = [bool(re.search(r"[=<>≤≥≠]", piece)) for piece in pieces]
    return text if len(set(kinds)) == 1 or kinds[0] and not any(kinds[1:]) and len(pieces) > 2 else pieces[-1]
