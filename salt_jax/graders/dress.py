r"""What an answer is dressed in, taken off where one reading is left: Unicode, markup, words around it.

``undressed`` gives a text in plain LaTeX: ASCII digits and signs, no spacing commands, no bold or colour, no delimiters
around the whole, no 'The answer is' before it and no full stop behind it. What it does not know it leaves.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata

LONGEST = 2000  # characters; a longer text stays in its dress
SIGNS = {
    "−": "-", "–": "-", "‒": "-", "―": "-", "➖": "-",
    "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ",
    "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "⩽": r"\le ", "⩾": r"\ge ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "±": r"\pm ", "∓": r"\mp ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "⁄": "/", "∕": "/", "٫": ".", "٬": ",", "،": ",", "、": ",", "。": ".",
    "“": '"', "”": '"', "’": "'", "‘": "'", "\u200b": "", "\u2060": "", "\ufeff": "", "…": r"\ldots ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "∖": r"\setminus ",
    "¬": r"\neg ", "′": "'", "″": "''", "⊥": r"\perp ", "⟂": r"\perp ", "∃": r"\exists ", "∀": r"\forall ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "∨": r"\lor ", "∧": r"\land ",
} | dict(zip("αβγδεθλμρστφω", (
    rf"\{name} " for name in "alpha beta gamma delta epsilon theta lambda mu rho sigma tau phi omega".split()
), strict=True))  # fmt: skip
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_RAISED, _LOWERED = (re.compile(f"[{''.join(of)}]+") for of in (RAISED, LOWERED))
_ROOT = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?|[a-zA-Z]|\(([^()]*)\))")
_SPACING = re.compile(
    r"\\(?:left|right)\s*\.|\\(?:displaystyle|textstyle|scriptstyle|left|right|middle|[bB]igg?[lrm]?|limits|"
    r"tiny|small|large|Large|LARGE|huge|Huge|normalsize|bf|rm|it|cal|quad|qquad|hfill|hline)(?![a-zA-Z])"
    r"|(?<!\\)(?:\\\\)*\\[!;:>, ]|\\hspace\{[^{}]*\}|\\vspace\{[^{}]*\}|\\phantom\{[^{}]*\}"
    r"|\\math(?:open|close|ord|bin|rel)\{\}"
)
_WRAP = re.compile(
    r"\\(text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm|mbox|"
    r"underline|emph|operatorname|boxed|fbox|ensuremath|pmb|bold|cancel)\*?\s*\{"
)
_COLOUR = re.compile(r"\\(?:text|)color(?:box)?\s*(?:\[[^\]]*\])?\{[^{}]*\}")
_ARGUMENT = r"\\[a-zA-Z]+(?:\{[^{}]*\})?|[a-zA-Z\d]"
_FRACTION = re.compile(rf"\\[dtc]?(frac|binom)(?![a-zA-Z])\s*({_ARGUMENT})?")
_BELOW = re.compile(rf"(\\(?:frac|binom)\{{[^{{}}]*\}})\s*({_ARGUMENT})")
_AROUND = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"), ("`", "`"), ('"', '"'))
_WORDS = re.compile(
    r"^(?:(?:so|thus|hence|therefore|finally|and|then)\b[,:]?\s*)?(?:the\s+|my\s+|our\s+)?"
    r"(?:final\s+|correct\s+|exact\s+)?"
    r"(?:answer|result|solution|value|ans)\b\s*(?:is|are|=|:|equals)?\s*:?\s*"
    r"|^(?:so|thus|hence|therefore|finally)\b[,:]?\s*", re.IGNORECASE
)  # fmt: skip
_CHOOSE = re.compile(r"(?<![a-zA-Z\\}])C\s*_\s*\{?\s*(\d+)\s*\}?\s*\^\s*\{?\s*(\d+)\s*\}?|^(\d+)\s*C\s*(\d+)(?!\d)")
_PLAIN_POWER = re.compile(r"\^\s*(?:\((-?[\w.]+(?:/\d+)?)\)|(?=\d\d)(\d+))")
_PLAIN_ROOT = re.compile(r"(?<![\\a-zA-Z])sqrt\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+))")
_NAKED = re.compile(r"(?<![\\a-zA-Z{])(log|ln|sin|cos|tan|pi)(?![a-zA-Z])")
_LONG = {
    "leqq": r"\le", "geqq": r"\ge", "lvert": "|", "rvert": "|", "vert": "|",
    "leqslant": r"\le", "geqslant": r"\ge",
    "leq": r"\le", "geq": r"\ge", "neq": r"\ne", "varnothing": r"\emptyset",
    "dots": r"\ldots", "cdots": r"\ldots", "infin": r"\infty", "wedge": r"\land", "vee": r"\lor", "lnot": r"\neg",
    "backslash": r"\setminus", "colon": ":",
    "lg": r"\log_{10}", "bigcup": r"\cup", "bigcap": r"\cap",
    "Longrightarrow": r"\to", "rightarrow": r"\to", "Rightarrow": r"\to", "implies": r"\to",
    "lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}",
}  # fmt: skip
_WRITTEN = (  # words with a sign, and idle ones
    (r"^(?:all )?(?:real )?numbers? (?=(?:strictly )?(?:greater|more|less|at least|at most|between))", ""),
    (r"^(?:strictly )?(?:greater|more) than or equal to\s+|^at least\s+", r"x \ge "),
    (r"^(?:strictly )?less than or equal to\s+|^at most\s+", r"x \le "),
    (r"^(?:strictly )?(?:greater|more) than\s+", "x > "),
    (r"^(?:strictly )?(?:less|fewer) than\s+", "x < "),
    (r"(?:the set of )?all real numbers|all reals|every real number|^all real [a-z]$", r"\mathbb{R}"),
    (r"\bis (?:at least|greater than or equal to)\b", r"\ge"),
    (r"\bis (?:at most|less than or equal to)\b", r"\le"),
    (r"\bis (?:greater|more) than\b", ">"),
    (r"\bis less than\b", "<"),
    (r"^the (?:point|line|interval|set|(?:value|number|solution)s? (?:is|are))\b:?\s*", ""),
    (r"^(?:all )?(?:real )?(?:numbers? |values? of )?[a-z] "
     r"(?:with|such that|where|for which) (?=.*(?:[<>]|\\[lg]e))", ""),
    (r"^(?:approximately|approx\.?|about|roughly|exactly|just)\s+(?=[-+\d.$\\])", ""),
    (r"(?<=\d)\s+(?:tall|long|wide|high|deep|old|away|apart|each|in (?:total|all|length|height|width))$", ""),
    (r"^(\d+)\s+(?:in|out of)\s+(\d+)$", r"\frac{\1}{\2}"),
    (r"(?<=\d)\s+(?:more|additional|extra|full|whole)\s+(?=[a-z])", " "),
    (r"^infinity$", r"\infty"),
    (r"(?<=\d)\s*:\s*(?=\d)", ":"),
    (r",?\s+(?:for|where) (?:some|any|all|every|an?) (?:arbitrary |real )*(?:constant|number)s? [a-z]$", ""),
    (r"(?<![a-zA-Z}])\{(\w+)\}(?=\s*_)", r"\1"),
    (r"^plus or minus\s+", r"\pm "),
    (r"^(?:minus|negative)\s+(?=[\d\\])", "-"),
    (r"^(\d+)\s+to\s+(\d+)$", r"\1:\2"),
    (r"(?<=\d)\s*[個个人本枚つ개명]$", ""),
    (r"(?<=\d)\s*(?:\^\s*\{?\s*)?(?:st|nd|rd|th)\b\}?", ""),
    (r"^\\approx\s*", ""),
    (r"\+\s*\\infty", r"\infty"),
    (r"\s*\\tag\s*\{[^{}]*\}$", ""),
)
_SAME = tuple((re.compile(pattern, re.IGNORECASE), re.sub(r"\\(?!\d)", r"\\\\", sign)) for pattern, sign in _WRITTEN)
_TAG = re.compile(r"</?(?:b|i|u|em|strong|span|font|p|br|sup|sub|code|math)\b[^<>]*>", re.IGNORECASE)


def ascii_form(text: str) -> str:
    """Unicode's digits, signs, powers, fractions and roots as ASCII and LaTeX commands.

    Example:
      >>> ascii_form("２½ − ٣"), ascii_form("√2"), ascii_form("x²")
      ('2\\\\frac{1}{2} - 3', '\\\\sqrt{2}', 'x^{2}')
    """
    if text.isascii():
        return text
    text = _RAISED.sub(lambda m: "^{" + "".join(RAISED[c] for c in m[0]) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + "".join(LOWERED[c] for c in m[0]) + "}", text)
    name = {"√": r"\sqrt{", "∛": r"\sqrt[3]{", "∜": r"\sqrt[4]{"}
    text = _ROOT.sub(lambda m: name[m[1]] + (m[3] if m[3] is not None else m[2]) + "}", text)
    text = re.sub(r"(?<=\d)[–—](?=\d)", r" \\ldots ", text)  # a range
    out = []
    for c in text:
        if c in SIGNS:
            out.append(SIGNS[c])
        elif c.isascii():
            out.append(c)
        elif unicodedata.category(c) == "Nd":
            out.append(str(unicodedata.digit(c)))
        elif unicodedata.category(c) == "No" and "⁄" in unicodedata.normalize("NFKC", c):
            top, _, bottom = unicodedata.normalize("NFKC", c).partition("⁄")
            out.append(rf"\frac{{{top}}}{{{bottom}}}")
        else:
            out.append(unicodedata.normalize("NFKC", c))
    found = "".join(out)
    return "".join(SIGNS.get(c, c) for c in found)


def closing(text: str, opened: int) -> int:
    """Where the brace that opens at ``opened`` closes; −1 where it does not.

    Example:
      >>> closing("a{b{c}}", 1)
      6
    """
    depth = 0
    for i in range(opened, len(text)):
        if text[i] in "{}" and (i == 0 or text[i - 1] != "\\"):
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return i
    return -1


def _unwrapped(text: str) -> str:
    """Without commands that only say how something looks; words in \\text keep a space around them."""
    while match := _WRAP.search(text):
        end = closing(text, match.end() - 1)
        if end < 0:
            return text
        inside = text[match.end() : end]
        words = match[1].startswith("text") or match[1] in ("mbox", "operatorname", "mathrm")
        space = " " if words and len(inside) > 1 else ""
        text = text[: match.start()] + space + inside + space + text[end + 1 :]
    return text


def _fractions(text: str) -> str:
    r"""\dfrac, \tfrac, \frac12 and \frac\pi3 as \frac{1}{2}; \binom and \sqrt in the same way."""
    text = _FRACTION.sub(lambda m: rf"\{m[1]}{{{m[2]}}}" if m[2] else rf"\{m[1]}", text)
    text = _BELOW.sub(r"\1{\2}", text)
    return re.sub(r"\\sqrt\s*(\d|[a-zA-Z])", r"\\sqrt{\1}", text)


@functools.lru_cache(maxsize=1 << 14)
def undressed(text: str) -> str:
    r"""A text in plain LaTeX.

    Example:
      >>> undressed(r"\text{The answer is } **$\dfrac12$**."), undressed(r"\textcolor{red}{1{,}250}")
      ('\\frac{1}{2}', '1,250')
    """
    if len(text) > LONGEST:
        return re.sub(r"\s+", " ", text).strip()
    text = ascii_form(html.unescape(text) if "&" in text and ";" in text else text)
    if "<" in text:
        text = re.sub(r"<(su[pb])>([^<>]*)</\1>", lambda m: ("^" if m[1] == "sup" else "_") + "{" + m[2] + "}", text)
        text = _TAG.sub("", text)
    text = _NAKED.sub(r"\\\1", text)
    if "\\" in text:
        text = re.sub(r"(?<=\d)(?:\\[,!; ]|,\\!)(?=\d{3}(?!\d))", ",", text)
        text = re.sub(r"\\(?:text|mathrm)\s*\{\s*([eE,.])\s*\}", r"\1", text)
        text = _SPACING.sub(" ", _COLOUR.sub("", text)).replace(r"\%", "%")
        text = re.sub(r"(^|\\in\s*)\\mathbf\s*\{\s*([RZNQ])\s*\}", r"\1\\mathbb{\2}", text)
        text = re.sub(r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}", _fractions(_unwrapped(text)))
        text = re.sub(r"(?<=\})\s*-\s*(?=\\\{)", r" \\setminus ", text)  # \mathbb{R} - \{0\}
        text = re.sub(r"\\([a-zA-Z]+)", lambda m: _LONG.get(m[1], m[0]), text)
        text = re.sub(r"\\cr(?![a-zA-Z])", r"\\\\", text)
        text = re.sub(r"\\(overline|dot)\s*(\d)", r"\\\1{\2}", text)
        text = re.sub(r"(?<!\d)\.(?=\\overline)", "0.", text)
        text = _NAKED.sub(r"\\\1", re.sub(r"\\overline\s*\{\s*(\d+)\s*\}(?=\s*_)", r"\1", text))
        text = re.sub(r"\.(\d*)\\dot\s*\{(\d)\}(\d*)\\dot\s*\{(\d)\}", r".\1\\overline{\2\3\4}", text)
        text = re.sub(r"\\overline\s*\{\s*([A-Z]{2,})\s*\}", r"\1", text)  # a segment
        text = re.sub(r"\\(?:overline|bar)\s*\{?\s*([A-Z])\s*\}?(?![A-Z])", r"\1^c", text)  # a complement
        text = re.sub(r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}", text)
    if "C" in text:
        text = _CHOOSE.sub(lambda m: rf"\binom{{{m[1] or m[3]}}}{{{m[2] or m[4]}}}", text)
    if text.count("$") > 1:
        text = re.sub(r"\$([^$]*\\[^$]*)\$", r"\1", text)
    if "'" in text:
        text = re.sub(r"(?<=\d)'(?=\d{3}(?!\d))", ",", text)  # 1'234
    if "mapsto" in text:
        text = re.sub(r"^([a-zA-Z])\s*:\s*([a-zA-Z])\s*\\mapsto", r"\1(\2) =", text)
    if "{" in text:
        text = re.sub(r"(^|=)\s*\{([^{}]*[,;][^{}]*)\}$", r"\1 \\{\2\\}", text)  # {1; 2} is a set
    text = _PLAIN_POWER.sub(lambda m: f"^{{{m[1] or m[2]}}}", text)
    text = _PLAIN_ROOT.sub(lambda m: rf"\sqrt{{{next(part for part in m.groups() if part is not None)}}}", text)
    for plain, sign in (("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne "), ("...", r"\ldots ")):
        text = text.replace(plain, sign)
    text = re.sub(r"(?<=\d)\{,\}(?=\d{1,2}(?!\d)|\d{4,}(?!\d))", ".", text)  # 0{,}25
    text = text.replace("{,}", ",").replace("{.}", ".").replace("{:}", ":").replace("~", " ")
    while True:
        before = text
        text = re.sub(r"\s+", " ", text).strip().rstrip("\\").strip()
        while text.endswith((" ,", " ;", " :")):
            text = text[:-2]
        if text.endswith((".", ",", ";", ":")) and not text.endswith(("..", r"\.")):
            text = text[:-1]
        for start, end in _AROUND:
            inside = text[len(start) : len(text) - len(end)]
            around = len(text) > len(start) + len(end) and text.startswith(start) and text.endswith(end)
            if around and start not in inside:
                text = inside
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        words = _WORDS.match(text)
        if words and words.end() < len(text):
            text = text[words.end() :]
        if text.startswith("=") and not text.startswith("=="):
            text = text[1:]
        for pattern, sign in _SAME:
            text = pattern.sub(sign, text)
        if text == before:
            return text
