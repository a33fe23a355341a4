r"""How a text says a letter: ``plain`` takes the markup off, ``said`` and ``concluded`` find what is claimed.

A claim is a pair: where its letter stands, and the letter. The letter is '' where the claim settles on nothing: on
several letters, 'both', 'none', or a letter that is no choice.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator

BOX, BOXED = "\x02", "\x03"  # what plain puts around the content of a box
BOLD, BOLDED = "\x0e", "\x0f"  # and around a letter that stands alone in bold
Claim = tuple[int, str]
MOST = 50  # claims of one form that are looked at, from the end

# --- plain text ---

_SIGNS = {ord(c): None for c in f"{BOX}{BOXED}{BOLD}{BOLDED}\u200b\u200e\u200f\u2060\ufe0f\ufeff"} | str.maketrans(
    "\u00a0\u3000\t\r’‘“”„«»【】「」『』。؟،؛、～", "    ''\"\"\"\"\"()()()" + ".?,;,~"
)
_SIGNS |= {start + i: 65 + i for start in (0x1F150, 0x1F170) for i in range(26)}  # white on black: 🅐 🅰
_STYLED = re.compile("[\uff01-\uff5e\u2460-\u24ff\U0001d400-\U0001d7ff\U0001f100-\U0001f14f]")  # Ｄ Ⓓ 𝐃, never Cyrillic
_HTML = re.compile(r"<(/?)(b|strong|br|p|div|li|i|u|em|span|font|code)\b[^<>]{0,200}>", re.IGNORECASE)
_STRUCK = re.compile(  # what is crossed out
    r"~~[^~\n]{1,200}~~|<(s|del|strike)>[^<>]{0,200}</\1>|\\(?:[bx]?cancel|sout|st)\{[^{}]{0,200}\}", re.IGNORECASE
)
_BRACES = re.compile(
    r"(?P<line>\\\\)|(?P<box>\\[bf]box(?:ed)?\s*\{|\\boxed\s*\{)"
    r"|(?P<bold>\\(?:textbf|mathbf|boldsymbol|bm|bold|pmb)\s*\{)"
    r"|(?P<wrap>\\(?:text(?:it|rm|sf|tt|normal|up)?|math(?:rm|sf|it|tt|cal)|mbox|underline|emph|operatorname\*?|"
    r"ensuremath)\s*\{)"
    r"|(?P<none>\\(?:text)?color(?:box)?\s*\{[^{}]*\}|\\(?:displaystyle|textstyle|left|right|bf|rm|[lL]arge|LARGE|[hH]uge)(?![a-zA-Z]))"
    r"|(?P<space>\\[,;:! ]|~|\\q?quad(?![a-zA-Z]))|(?P<math>\\[()\[\]]|\$\$?)"
    r"|(?P<arrow>\\(?:implies|[Rr]ightarrow|to)(?![a-zA-Z]))|(?P<tick>\\checkmark(?![a-zA-Z]))"
    r"|(?P<sign>\\[{}$%&#_])|(?P<other>\{)|(?P<end>\})"
)
_AS = {"line": "\n", "none": "", "space": " ", "math": "$", "arrow": "→", "tick": "✓"}
_IN_BOLD = re.compile(r"(?<![\w*])(?:\*{2,3}|__) ?[(\[\"$]?([^\W\d_])[)\]\"$]?[.:]? ?(?:\*{2,3}|__)(?!\w)")
_IN_MATH = re.compile(r"\$ ?[(\[]?([A-Z])[)\]]?([.:]?) ?\$")
_QUOTED = re.compile(r"(?<![\w*\"'`])([\"'`*])[(\[]?([^\W\d_])[)\]]?\1(?![\w*\"'`])")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_SEAM = re.compile(rf"(?<=[{_CJK}])(?=[A-Za-z(\[{BOLD}])|(?<=[A-Za-z)\]{BOLDED}])(?=[{_CJK}])")


_WRITTEN = (  # what else stands for a letter in its dress
    (re.compile(r"\[\[\s*([A-Z])\s*\]\]"), r"(\1)"),
    (re.compile(r"\\boxed\s+([A-Z])(?![A-Za-z])"), r"\\boxed{\1}"),
    (re.compile(r"^\s*(?:final|response)\s*:\s*(?=\(?[A-Z]\b)", re.IGNORECASE | re.MULTILINE), "Answer: "),
    (re.compile(r"(?<=\b[A-Z])\)?\s*[✗✘❌✖]"), " is wrong"),
)


def plain(text: str) -> str:
    r"""A text without LaTeX, Markdown and HTML, of single spaces; full-width and styled letters as ASCII.

    Look-alikes of other alphabets stay what they are: a Cyrillic В may be the third choice or the second.

    Example:
      >>> plain(r"**Answer：** $\mathrm{D}$  24"), plain(r"\boxed{\text{Ｄ}}") == BOX + "D" + BOXED
      ('Answer: (D) 24', True)
    """
    text = html.unescape(text) if "&" in text and ";" in text else text
    for written, meant in _WRITTEN:
        text = written.sub(meant, text)
    text = _STYLED.sub(lambda m: unicodedata.normalize("NFKC", m[0]), text.translate(_SIGNS))
    text = _STRUCK.sub(" ", text).replace("->", "→")
    text = _HTML.sub(lambda m: {"b": "**", "strong": "**", "br": "\n", "p": "\n", "div": "\n", "li": "\n"}.get(
        m[2].lower(), ""), text)  # fmt: skip
    text = re.sub(r"[^\S\n]+", " ", _without_braces(text))
    text = re.sub(r"^(?: ?[#>]+(?= ))+ ?", "", re.sub(r" ?\n[ \n]*", "\n", text), flags=re.MULTILINE)
    text = _IN_MATH.sub(r"(\1)\2", _IN_BOLD.sub(rf"{BOLD}\1{BOLDED}", text))
    text = _QUOTED.sub(r"(\2)", re.sub(r"^\* ", "- ", text, flags=re.MULTILINE))
    return _SEAM.sub(" ", re.sub(r"\*\*+|__+|[`$]", "", text)).strip()


def _without_braces(text: str) -> str:
    """A box keeps its marks if its braces match; other commands that only say how something looks go."""
    out: list[str] = []
    opened: list[tuple[int, str]] = []  # where in `out` the brace is, and what closes it
    at = 0
    for match in _BRACES.finditer(text):
        out.append(text[at : match.start()])
        at, kind = match.end(), match.lastgroup or ""
        if kind == "end":
            out.append(opened.pop()[1] if opened else "")
        elif kind in ("box", "bold", "wrap", "other"):
            start, end = {"box": (BOX, BOXED), "bold": ("**", "**")}.get(kind, ("", ""))
            opened.append((len(out), end))
            out.append(start)
        else:
            out.append(_AS.get(kind, match[0][1:]))
    for index, end in opened:
        if end == BOXED:
            out[index] = r"\boxed{"  # cut off: no box, and no letter after 'the answer is'
    return "".join(out) + text[at:]


# --- one letter ---

_OPEN, _CLOSE = rf"[(\[{{{BOLD}{BOX}]", rf"[)\]}}{BOLDED}{BOXED}]"
# a letter that nothing continues: not the B of Bob, B-flat or B's
LETTER = rf"(?P<open>{_OPEN}?) ?(?P<letter>[^\W\d_])(?P<close> ?{_CLOSE}|)(?![\w'\u0300-\u036f]|[-‐]\w)"
_NOUNS = (
    r"(?:option|choice|answer|letter|statement|alternativ[ea]|antwort|buchstabe|réponse|lettre|opción|opção|"
    r"letra|вариант|选项|選項)"
)
_NOUN = rf"(?:(?:the |die |la |el )?(?:correct |right )?{_NOUNS} ?:? ?)?"
_FORMULA = re.compile(r"-(?!-)| ?(?:[=+^_<>°#%*\\∪∩×·≠≈]|[/|~-](?=[\w(]))")
_JOIN = re.compile(
    r"[)\]]?(?: ?[,;/|&、:] ?| ?(?:…|\.\.\.?) ?|\. ?(?=[A-Z]\)?(?:[.,;]|$))| ?[-–—] ?| ?(?=[(\[])| ?→ ?|"
    r" (?=[A-Z](?!\w))| \(?(?:and|or|and/or|und|oder|et|ou|y|o|e|и|или|"
    r"plus|to|through|bis|nor|then|as well as|together with|along with) |[.…]{1,3} (?:[Oo]r|Also|And) |"
    r" ?(?:和|或|与|と|か|와|과|및|또는|이나|أو|و) ?)"
    r"(?:(?:and|or|also|maybe|possibly|perhaps|probably|then|alternatively|otherwise|either|option|choice|"
    r"answer|und|oder|is it|no,) ){0,3}"
    rf"{_OPEN}?(?P<other>[A-Z]|[IVX]{{2,4}}|[a-z](?= ?[)\]])) ?{_CLOSE}?(?![\w'’]|[-‐]\w)(?P<word> [a-z]+)?"
)
_PLURAL = frozenset((
    "are were both together have must can and or only because "
    "since as for fit match hold work apply too also rather instead"
).split())
_EITHER = re.compile(r" ?[/|&、+]| \(?(?:or|oder|ou|или) ")
_IS_RIGHT = re.compile(r"(?: the)? (?:correct|right|best|answer)\b")
_REASONS = frozenset((
    "as because due for since so which with and but or if not rather instead over while whereas although though denn "
    "weil car porque"
).split())
_DENIED = re.compile(
    r" ?(?:(?:is|was|would be|are|seems|looks)(?: also| clearly| simply)? (?:not|wrong|incorrect|false|out|"
    r"ruled|impossible|excluded|"
    r"eliminated|tempting|unlikely)|isn't|wasn't|cannot|can't|could|might|may|ist (?:falsch|nicht)|est faux)\b"
    r"| ?(?:不|错|では|じゃ|は(?:違|間違)|[가이] 아[니닙닌])"
)
_UNSURE = re.compile(r"[ ,(]{0,2}(?:if|unless|only if|provided|otherwise|wenn|falls)\b")
_ASKED = re.compile(r"[^.!?\n]{0,80}\?(?! ?(?:yes|right|correct|indeed)\b)", re.IGNORECASE)


def several(rest: str, letter: str, *, dressed: bool = True) -> bool:
    """Whether what follows a letter adds another to it: ', C', ' or C', '/C', but not ', C is wrong' or ', I think'."""
    join = _JOIN.match(rest)
    if re.match(r" ?→", rest):
        return True
    if not join or join["other"].upper() == letter.upper() or (dressed and re.match(r" [A-Z]", join[0])):
        return False  # the last: '(E) I and III only'
    word = (join["word"] or "").strip()
    return not word or word in _PLURAL or bool(_EITHER.match(rest) or _IS_RIGHT.match(rest, join.end("word")))


def denied(rest: str) -> bool:
    """Whether what follows a letter takes it back at once: ' is wrong', ' if x > 0'."""
    return bool(_DENIED.match(rest) or _UNSURE.match(rest))


def one(text: str, match: re.Match[str], choices: str) -> str | None:
    """The letter of a match; '' where it is not the only one, or no choice; None where it is no claim at all."""
    letter, end = match["letter"], match.end("close")
    dressed = bool(match["close"].strip())
    rest = text[end : end + 200]
    if letter.upper() == letter.lower() or denied(rest) or _ASKED.match(rest):
        return None  # the first: a word of one sign, as 是
    if several(rest, letter, dressed=dressed):
        return ""
    if not dressed:
        word = re.match(r" ([^\W\d_]+)", rest)
        if _FORMULA.match(rest):
            return None
        if letter in "AIaei" and word and word[1].isascii() and word[1] not in _REASONS:
            return None  # an article, a pronoun
        cut = not rest and re.search(r"\w ?$", text[max(0, match.start("letter") - 3) : match.start("letter")])
        if letter.islower() and (letter in "ei" or (cut and letter == "a") or not re.match(r" ?[.,;!\n)]|$", rest)):
            return None  # a variable, a constant, or a text cut off after an article
    if letter.upper() in choices and letter.upper() not in "I" or letter in choices:
        return letter.upper()
    return "" if letter.isupper() else None


# --- what is said ---

_FILL = (
    r"(?:,? ?(?:therefore|thus|hence|clearly|indeed|most likely|likely|probably|definitely|certainly|simply|"
    r"actually|then|"
    r"also|now|only|still|just|given by|I think|I believe|donc|daher)\b,?){0,2}"
)
_ANSWERS = (
    r"(?:answers?|ans|choice|option|selection|letter|guess|pick|(?:correct|right|best) (?:one|statement)|"
    r"antwort|lösung|réponse|reponse|"
    r"respuesta|risposta|resposta|opción|opção|antwoord|odpowiedź|cevap|ответ|вариант|ответом|richtig|korrekt|"
    r"đáp án|उत्तर|"
    r"正确选项|答案|答え|答|正解|正答|回答|정답|답|الجواب|الإجابة|الاجابة|الخيار)"
)
_AFTER_NOUN = (
    r"(?: (?:correcta|correcte|correct|correta|corretta|finale?|choice|option|key|letter|left|remaining|الصحيحة|"
    r"الصحيح|النهائية))?"
)
_TO = r"(?: (?:to|for|of|among|from|here|in)\b[^.!?;:\n]{0,80}?|,[^.,!?;:\n]{1,30},)?"
_IS = (
    r"(?:is|must be|should be|has to be|would be|will be|can only be|could only be|turns out to be|remains|"
    r"lautet|ist|wäre|est(?: la)?|es(?: la)?|é(?: a)?|è(?: la)?|"
    r"هو|هي|là|jest|это|является)"
)
_LINK = (
    rf"(?:[\"']? ?[:=→]|\.?:| [-–—](?= )|{_TO} {_IS}\b|"
    r" ?(?:应该?|應該?)?(?:是|为|為|选|選)(?:择|擇)?| ?(?:は|が|은|는))"
)
_MODAL = (
    r"(?:'d|'ll|'m)?(?: (?:would|will|shall|should|must|have to|am|are|can|can only|finally|therefore|thus|"
    r"hence|then|now|so)){0,3}"
)
_CHOOSE = (
    rf"(?:\b(?:I|we|let's|let us|you){_MODAL} (?:choose|pick|select|chose|go with|going with|went with|opt for|"
    rf"vote for|"
    r"settle on|settle for|say|answer|mark|meant?)|(?:^|(?<=[.!:\n] )|(?<=\n)|(?<=so ))(?:choose|pick|select|"
    r"go with|going with|mark)|"
    r"\b(?:ich (?:wähle|nehme)|je choisis|elijo|escojo|scelgo|escolho|выбираю)|[选選](?:择|擇)?)"
)
_END = (
    r"(?= ?(?:[.,;:!?\n(/&]|$|[-–—] |です|だ|입니다| (?:because|since|as|for|due|which|not|rather|over|and|or|und|"
    r"oder|et|ou|и|или|here|denn|weil|car)\b))"
)
_SAID = tuple(re.compile(pattern, re.IGNORECASE) for pattern in (
    rf"(?<![^\W{_CJK}]){_ANSWERS}{_AFTER_NOUN}{_LINK}{_FILL} ?:?[ \n]?(?:- )?{_NOUN}{LETTER}",
    rf"{_CHOOSE}(?::? |:|(?<=[选選择擇])){_NOUN}{LETTER}{_END}",
    rf"(?:^|(?<=[.!\n(])) ?(?:(?:my|the|final|selected) )?(?:solution|soluci[oó]n|result|conclusion|verdict|key|"
    rf"correct|guess) ?: ?{_NOUN}{LETTER}{_END}",
    rf"(?:^|(?<=[.!\n( ]))(?:答案|正解|解答)\)? ?{_NOUN}{LETTER}{_END}",
    rf"\bchang\w+ (?:my|the) answer(?: from [^.\n]{{1,20}})? to {_NOUN}{LETTER}{_END}",
    rf"\b(?:ist die(?: richtige| korrekte)? antwort|ist)(?= \(?\w\)? (?:richtig|korrekt)\b|"
    rf"(?<=antwort)) {_NOUN}{LETTER}",
))  # fmt: skip
_SETTLED = re.compile(  # 'Answer: both', which settles on nothing
    rf"\b{_ANSWERS}{_AFTER_NOUN}{_LINK}{_FILL} ?(?:both|neither|either|none|all|"
    rf"(?-i:[A-J]{{2,5}}))\b(?! ?\?)", re.IGNORECASE
)
_RIGHT = re.compile(
    rf"{LETTER}(?: (?:is|must be|has to be|should be|ist|est|es|é|è)(?: (?:indeed|therefore|thus|clearly|"
    rf"definitely|also|die|der|das|the|la|le|el|il|our|my|only|one|"
    r"most)){0,4} (?:correct|right|best|answer|(?:choice|option) (?:that|we)|richtige?|correcte?|juste|bonne|"
    r"correct[ao]|corrett[ao]|corret[ao]|"
    r"respuesta|réponse|antwort|ответ)"
    r"(?: (?:answer|choice|option|one|statement|antwort|réponse|respuesta))?(?: correct[ao]e?)?(?= ?(?:[.,;:!)\n]|$)|"
    r" (?:because|since|as|for|and|so|here|due|to the|too|weil|car|porque)\b)|"
    r" ?(?:[-–—]|это)? (?:верный|правильный|верно|правильно)|"
    r" ?(?:选项|选項|项|項|は|が|이|가|를)?(?:是|为)? ?(?:正确|正確|对的|正しい|正解|정답|맞|を選)(?!吗|ば|な))",
    re.IGNORECASE,
)  # fmt: skip
_THE_ANSWER = re.compile(r"answer|best|choice|option|antwort|réponse|respuesta|ответ|正解|정답|答案", re.IGNORECASE)
_BEHIND = re.compile(rf"\b[A-Z][)\]{BOLDED}]? ?(?:and|or|und|oder|[,/&])? ?$")  # a letter, and the next
_LEAD = re.compile(
    r"(?:^|[.,;:!\n(—]|\b(?:option|choice|answer|statement|alternative|only|so|thus|hence|therefore|and|but|"
    r"because|since|that|think|believe|say|means|although|though|yet|while|whereas|clearly|antwort|réponse|opción|"
    r"respuesta|вариант|ответ)|[选選]项|项|選択肢|所以|因此) ?$",
    re.IGNORECASE,
)
_THEREFORE = (
    r"(?:so|hence|thus|therefore|consequently|finally|(?:most likely|probably|definitely|clearly|certainly|"
    r"obviously|by elimination|"
    r"by exclusion|in conclusion|ultimately)|also(?=:)|daher|somit|folglich|donc|luego|por (?:lo )?tanto|quindi|"
    r"portanto|значит|"
    r"следовательно|поэтому|所以|因此|故|よって|したがって|따라서)"
)
_INSTEAD = r"(?:but|rather|instead|sondern|mais|sino|ma|mas|а|но|而是)"
_CONCLUDED = tuple(re.compile(pattern, re.IGNORECASE) for pattern in (
    rf"(?:\b(?:it|that|this|which)(?:'s|{_TO[:-1]}? {_IS}\b)|\bc'est|\bes ist|\bdas ist|\bes la|\bè la|"
    rf"\bэто){_FILL}:? {_NOUN}{LETTER}{_END}",
    rf"\b(?:corresponds to|matches|points to|i\.e\.,?|namely) (?:the )?(?:option|choice|answer|letter) {LETTER}{_END}",
    rf"\b(?:which|this|that) (?:corresponds to|matches) {_NOUN}{LETTER}{_END}",
    rf"\b(?:leaves|leaving|left with|leave)(?: us)?(?: with)?(?: only| just)? {_NOUN}{LETTER}{_END}",
    rf"\bI (?:think|believe|guess|am sure)(?: that)? {_NOUN}{LETTER}{_END}",
    rf"\bonly {_NOUN}{LETTER}(?= (?:remains|is left|fits|works|matches|survives|is possible|holds|satisfies)\b)",
    rf"(?<![^\W{_CJK}]){_THEREFORE}[,:]? {_NOUN}{LETTER}{_END}",
    rf"(?<!\w)(?P<instead>{_INSTEAD}) {_NOUN}{LETTER}{_END}",
))  # fmt: skip

# --- what takes a claim back ---

_BOUND = re.compile(
    r"[.!?;:\n,()—–]|\b(?:so|thus|therefore|hence|but|because|since|and|which|however|then|denn|aber|also|donc|"
    r"mais|car|pero|"
    r"porque|но|поэтому)\b|所以|因此|但"
)
_NOT = re.compile(
    r"\b(?:not|never|cannot|neither|nor|hardly|wrong|incorrect|false|doubt|deny|nobody|no one|unlikely|except|"
    r"other than|anything but|"
    r"far from|nicht|keine?|falsch\w*|ne|pas|jamais|nunca|não|non|не|нет|неверно|might|may|could(?! only)|"
    r"perhaps|maybe|possibly|thought|initially|"
    r"originally|at first|some|many|people|students?|he|she|they|someone|says|claims|argues|believes|thinks|"
    r"tempt\w*|otherwise|whether|unclear|unsure)\b|n't|[不非没錯错]|ない|아니|ليس|"
    r"\b(?:other|another|second|first|previous|common|typical|popular|alternative|example|sample) ?$",
    re.IGNORECASE,
)
_SURE = re.compile(
    r"\b(?:no|without(?: any| a)?) doubt|\bnot only\b|\bif (?:i (?:had|have) to|forced|pressed)\b", re.IGNORECASE
)
_IF = re.compile(
    r"\b(?:if|unless|suppose|assuming|were|had|wenn|falls|si|если|seems? that if)\b|如果|假如|もし", re.IGNORECASE
)
_SO = re.compile(rf"[.!?;\n]|\b{_THEREFORE}\b|\bbut\b|\bbecause\b", re.IGNORECASE)
_DENIAL = re.compile(r"\b(?:not|nicht|pas|no|не|non|não)\b|n't|不", re.IGNORECASE)
_OUT = re.compile(r"\b(?:rul\w+ out|eliminat|exclud|reject|discard|dismiss)", re.IGNORECASE)
_ALL_BUT = re.compile(r"\b(?:all|anything|nothing|none|any|every\w*) $", re.IGNORECASE)


def _last(pattern: re.Pattern[str], text: str) -> Iterable[re.Match[str]]:
    """The last matches: of many claims only those at the end can count, and no text may take long."""
    return deque(pattern.finditer(text), maxlen=MOST)


def ruled_out(text: str, start: int) -> bool:
    """Whether what stands before ``start`` in its clause denies what follows, supposes it or rules it out."""
    return doubted(text, start) or bool(_OUT.search(_BOUND.split(text[max(0, start - 160) : start])[-1]))


def doubted(text: str, start: int) -> bool:
    """Whether what stands before ``start`` in its clause denies what follows, or only supposes it."""
    before = _SURE.sub("", text[max(0, start - 160) : start])
    return bool(_NOT.search(_BOUND.split(before)[-1]) or _IF.search(_SO.split(before)[-1]))


def said(text: str, choices: str) -> Iterator[Claim]:
    """The claims that call a letter the answer or the choice.

    Example:
      >>> list(said("The answer is not A. The answer is (B), not C.", "ABC"))
      [(36, 'B')]
    """
    for pattern in _SAID:
        for match in _last(pattern, text):
            letter = None if doubted(text, match.start()) else one(text, match, choices)
            if letter is not None:
                yield match.start("letter"), letter
    right = [(match, letter) for match in _last(_RIGHT, text) if (letter := _right(text, match, choices))]
    statements = {letter for match, letter in right if not _THE_ANSWER.search(match[0])}
    for match, letter in right:  # 'A is correct and B is correct' names no answer, 'C is the answer' does
        others = " also " in match[0] or (len(statements) > 1 and not _THE_ANSWER.search(match[0]))
        yield match.start("letter"), "" if others else letter
    yield from ((match.end(), "") for match in _last(_SETTLED, text) if not doubted(text, match.start()))


def _right(text: str, match: re.Match[str], choices: str) -> str | None:
    """The letter that is called right, where it begins its clause: not the B of 'vitamin B is right'."""
    before, rest = text[max(0, match.start() - 40) : match.start()], text[match.end() : match.end() + 100]
    letter = match["letter"]
    bare = (letter.islower() or letter == "I") and not match["close"]
    if bare or letter.upper() not in choices or not _LEAD.search(before) or _BEHIND.search(before):
        return None
    unsure = doubted(text, match.start()) or _UNSURE.match(rest) or _ASKED.match(rest)
    return None if unsure else letter.upper()


def concluded(text: str, choices: str) -> Iterator[Claim]:
    """The claims that only end in a letter: 'it is C', 'this leaves C', 'hence C', 'not A but C'.

    Example:
      >>> list(concluded("It is not A but C.", "ABC"))
      [(16, 'C')]
    """
    for pattern in _CONCLUDED:
        for match in _last(pattern, text):
            before = text[max(0, match.start() - 80) : match.start()]
            if match.groupdict().get("instead"):
                wrong = not _DENIAL.search(re.split(r"[.!?;\n]", before)[-1]) or bool(_ALL_BUT.search(before))
            else:
                follows = _BOUND.match(text, match.start())
                wrong = bool(_IF.search(_SO.split(before)[-1])) if follows else doubted(text, match.start())
            letter = None if wrong else one(text, match, choices)
            if letter is not None:
                yield match.start("letter"), letter
