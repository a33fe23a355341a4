"""Which program a completion answers with: every table's program is run, and its f(1) is to be 2."""

from __future__ import annotations

import textwrap

import pytest

from salt_jax.graders.blocks import blocks
from salt_jax.graders.names import program
from salt_jax.graders.solution import extract_program, pieces

RIGHT = "def f(x):\n    return x + 1\n"
WRONG = "def f(x):\n    return x + 5\n"
HELPER = "from typing import List\n\n\ndef one() -> int:\n    return 1\n\n\n"
PREFIX = HELPER + 'def f(x: int) -> int:\n    """Adds one."""\n'
BARE = "from typing import List\n\n\ndef f(x: int) -> int:\n"


def value(completion: str, prefix: str = "", wanted: tuple[str, ...] = ()) -> object:
    """f(1) of the completion's program."""
    place: dict[str, object] = {"__name__": "program"}
    for text in pieces(completion, prefix, "f", wanted):
        exec(compile(text, "<program>", "exec"), place)
    return place["f"](1)  # type: ignore[operator]


def fenced(text: str, language: str = "python", fence: str = "```") -> str:
    text = text if text.endswith("\n") else text + "\n"
    return f"{fence}{language}\n{text}{fence}\n"


LISTED = textwrap.indent(fenced(RIGHT), "   ")
PROGRAMS = {
    "bare": RIGHT,
    "byte order mark": "\ufeff" + RIGHT,
    "byte order mark before a fence": "\ufeff" + fenced(RIGHT),
    "line ends of Windows": fenced(RIGHT).replace("\n", "\r\n"),
    "line ends of old": RIGHT.replace("\n", "\r"),
    "prose around a fence": f"Here it is.\n\n{fenced(RIGHT)}\nIt adds one.",
    "prose around bare code": f"Here it is:\n\n{RIGHT}\nThis function adds one.",
    "prose in two languages after bare code": f"{RIGHT}\nC'est tout.\n\n1. It's short.\n2. It's fast.",
    "no opening fence": f"{RIGHT}```",
    "no opening fence, prose before": f"Sure, here:\n\n{RIGHT}```\nIt adds one.",
    "no opening fence, prose after": f"{RIGHT}```\n\nIt adds one.",
    "no opening fence, usage after": f"{RIGHT}```\nUsage:\n{fenced('print(f(3))')}",
    "no closing fence": f"```python\n{RIGHT}",
    "no closing fence, prose after": f"```python\n{RIGHT}\nThis adds one to x.",
    "no closing fence, another block": f"```python\n{WRONG}\nBetter:\n\n{fenced(RIGHT)}",
    "tildes": fenced(RIGHT, fence="~~~"),
    "tildes around backticks": '~~~python\ndef f(x):\n    """Like\n\n```\nthis\n```\n    """\n    return x + 1\n~~~',
    "four backticks": '````python\ndef f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n````',
    "nested fences": f"````markdown\nText\n{fenced(RIGHT)}````\n",
    "nested fences of one length": f"```markdown\n{fenced(RIGHT)}```\n",
    "numbered list": f"1. Write it:\n\n{LISTED}\n2. Done.",
    "list mark on its line": f"- {textwrap.indent(fenced(RIGHT), '  ').lstrip()}",
    "list with a tab": textwrap.indent(fenced("def f(x):\n\treturn x + 1\n"), "\t"),
    "indented fence, code that is not": f"   ```python\n{RIGHT}   ```",
    "quotation": textwrap.indent(fenced(RIGHT), "> "),
    "behind text on its line": f"Here is the code: ```python\n{RIGHT}```",
    "closed behind code": f"```python\n{RIGHT.rstrip()}```\nThat is it.",
    "on one line": "```python f = lambda x: x + 1```",
    "docstring with a fence": fenced(
        'def f(x):\n    """Adds.\n\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n'
    ),
    "docstring with a fence of Python": fenced(
        'def f(x):\n    """Adds.\n\n    ```python\n    f(1)\n    ```\n    """\n    return x + 1\n'
    ),
    "docstring with a fence, in a list": "1. So:\n"
    + textwrap.indent(fenced('def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n'), "   "),
    "usage after": f"{fenced(RIGHT)}Usage:\n{fenced('print(f(3))  # 4')}",
    "tests after": fenced(RIGHT)
    + "\n"
    + fenced("assert f(3) == 4")
    + "\n"
    + fenced("def test_f():\n    assert f(1) == 2"),
    "output after": f"{fenced(RIGHT)}Output:\n{fenced('2', '')}",
    "text after": f"{fenced(RIGHT)}{fenced('f = 3', 'text')}",
    "shell after": f"{fenced(RIGHT)}{fenced('pip install x', 'bash')}",
    "shell before": f"{fenced('pip install x', 'bash')}{fenced(RIGHT)}",
    "other language after": f"{fenced(RIGHT)}{fenced('function f(x) { return x + 1; }', 'javascript')}",
    "called text": fenced(RIGHT, "text"),
    "helper before": fenced("def one():\n    return 1") + fenced("def f(x):\n    return x + one()"),
    "helper behind": fenced("def f(x):\n    return x + one()") + fenced("def one():\n    return 1"),
    "helper with usage": fenced("def one():\n    return 1\nprint(f(3))") + fenced("def f(x):\n    return x + one()"),
    "helper of a helper": "".join(
        fenced(text)
        for text in ("ONE = 1\n", "def one():\n    return ONE\n", "def f(x):\n    return x + one()\n", "f(2)\n")
    ),
    "import in a block of its own": fenced("import math") + fenced("def f(x):\n    return x + math.ceil(0.5)"),
    "alternatives": f"{fenced(WRONG)}Better:\n{fenced(RIGHT)}",
    "alternatives, the last cut off": f"{fenced(RIGHT)}Better:\n```python\ndef f(x):\n    return (x +",
    "alternatives, the last a head": f"{fenced(RIGHT)}So with\n{fenced('def f(x): ...')}it is done.",
    "alternatives, the last with a mistake": f"{fenced(RIGHT)}or\n{fenced('def f(x) return x')}",
    "main": fenced(RIGHT + "\nif __name__ == '__main__':\n    print(f(1), input())\n"),
    "thought before": f"<think>\n{fenced(WRONG)}</think>\n{fenced(RIGHT)}",
    "thought before a bare program": f"<think>\n{fenced(WRONG)}</think>\n\n{RIGHT}",
    "thought alone": f"<think>\n{fenced(RIGHT)}</think>\nI am done.",
    "thought, then usage": f"<think>\n{fenced(RIGHT)}</think>\n{fenced('print(f(1))')}",
    "thought that does not end": f"<think>\n{fenced(RIGHT)}",
    "the end of a thought in a text": fenced(RIGHT + "END = '</think>'\n"),
    "html": '<pre><code class="python">def f(x):\n    return x + 1 if x &lt; 9 else x &amp; 1\n</code></pre>',
    "html without pre": f"Use <code>f</code>:\n<code>\n{RIGHT}</code>",
    "answer tag": f"<answer>\n{RIGHT}</answer>",
    "answer tag around a fence": f"<answer>\n{fenced(RIGHT)}</answer>",
    "class with f as its attribute, and f": fenced("class A:\n    def f(self, x):\n        return x + 5\n\n\n" + RIGHT),
    "marks that are code by chance": f"[BEGIN]\n{RIGHT}[DONE]\n",
    "a word before, and a list": f"python\n- add\n\n{RIGHT}\nO(1)\n```",
    "hard spaces": fenced(RIGHT.replace("    ", "\u00a0" * 4)),
    "usage that imports it": fenced(RIGHT) + fenced("from solution import f\nprint(f(3))"),
    "imported": fenced("from operator import neg as f0\nf = lambda x: 1 - f0(x)\n"),
    "lambda": fenced("f = lambda x: x + 1\n"),
    "decorated": fenced("import functools\n\n\n@functools.cache\n" + RIGHT),
    "under a condition": fenced("if True:\n    def f(x):\n        return x + 1\n"),
}
LABELS = ("py", "Python", "python3", "py3", "Py", "PYTHON3.11", "ipython", " python", "")
for label in (*LABELS, "{.python}", "{.python .numberLines}", "python title=f.py"):
    PROGRAMS[f"label {label!r}"] = fenced(RIGHT, label)
WRONG_PROGRAMS = {
    "a correction that is wrong": f"{fenced(RIGHT)}No:\n{fenced(WRONG)}",
    "wrong, with the right one in thought": f"<think>\n{fenced(RIGHT)}</think>\n{fenced(WRONG)}",
    "wrong, with the right one in another language's block before": f"{fenced(RIGHT, 'text')}{fenced(WRONG)}",
    "wrong, the right one in its docstring": fenced(
        'def f(x):\n    """\n    ```python\n    def f(x):\n        return x + 1\n    ```\n    """\n    return x + 5\n'
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_of_a_completion(name):
    assert value(PROGRAMS[name]) == 2


@pytest.mark.parametrize("name", WRONG_PROGRAMS)
def test_a_wrong_answer_stays_one(name):
    assert value(WRONG_PROGRAMS[name]) == 6


BODIES = {
    "as asked": "    return x + one()\n",
    "without its indentation": "return x + one()",
    "its first line without": "y = x\n    y += one()\n    return y\n",
    "of two lines without": "y = x\nfor _ in range(1):\n    y += one()\nreturn y",
    "in a fence": fenced("    return x + one()\n"),
    "in a fence, without": fenced("return x + one()\n"),
    "closing fence": "    return x + one()\n```",
    "closing fence, then prose": "    return x + one()\n```\n\nIt adds one.",
    "then prose": "    return x + one()\n\nThis adds one to x.",
    "without, then prose": "return x + one()\n\nThis adds one to x.",
    "then usage": "    return x + one()\n\n\nprint(f(2))\n",
    "then usage in a block": f"{fenced('    return x + one()')}{fenced('print(f(2))')}",
    "then another function": "    return x + two() - one()\n\n\ndef two():\n    return 2\n",
    "the whole function": fenced("def f(x: List) -> int:\n    return x + one()\n"),
    "the whole function, then usage": fenced("def f(x: List):\n    return x + 1") + fenced("f(2)"),
    "after a thought": f"<think>\n{fenced('    return x + 5')}</think>\n    return x + one()\n",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_continues_the_prompt(name):
    assert value(BODIES[name], PREFIX) == 2


def test_a_function_may_be_imported():
    assert pieces(fenced("from math import gcd\n"), "", "gcd") == ["from math import gcd\n"]


@pytest.mark.parametrize(
    "body", ["    return x + 1\n", "return x + 1", fenced("def f(x: List) -> int:\n    return x + 1\n")]
)
def test_a_prompt_that_is_no_program_by_itself(body):
    assert value(body, BARE) == 2


def test_names_beside_the_entry_point():
    """Of a tree task: the tests use Node, too."""
    node, both = "class Node:\n    pass\n", "class Node:\n    pass\n\n\n" + RIGHT
    assert pieces(f"{fenced(both)}{fenced(node)}", "", None, ["f", "Node"]) == [both]
    assert pieces(f"{fenced(node)}{fenced(RIGHT)}", "", None, ["f", "Node"]) == ["class Node:\n    pass\n", RIGHT]
    assert pieces(fenced("Node = f = 1\n"), "", "f", ["Node"]) == ["Node = f = 1\n"]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("x = 1", "x = 1"),
        ("    return 1", "    return 1"),
        ("```python\na\n```\n```py\nb\n```", "b\n"),
        ("```python\na\n```\n```\nb\n```", "a\n"),
        ("```\na\n```\n```text\nb\n```", "a\n"),
        ("```python\ncut off", "cut off"),
        ("text\n  ```python\n  a\n  ```", "a\n"),
        ("```json\n{}\n```", "```json\n{}\n```"),
        ("```python\n```", "```python\n```"),
        ("I do not know.", "I do not know."),
        ("", ""),
        ("<think>", "<think>"),
    ],
)
def test_where_nothing_is_known_of_the_program(completion, text):
    assert extract_program(completion) == text


LARGE = {
    "one run": "`" * 1_000_000,
    "lines of fences": "```\n" * 250_000,
    "openings": "```python\n" * 100_000,
    "small blocks": "```\na\n```\n" * 100_000,
    "lines of tildes and fences": "~~~\n```\n" * 120_000,
    "pairs": "``x" * 300_000,
    "tags": "<code>" * 150_000,
    "brackets": "(" * 1_000_000,
    "words": "word " * 200_000,
    "lines of words": "word\n" * 100_000,
    "blank": "\n" * 1_000_000,
    "marks": "- " * 500_000 + "```",
    "definitions": "def f(x:\n" * 100_000,
    "statements": "x = 1\n" * 30_000 + "then prose\n" * 10,
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_a_million_characters(name, prefix):
    """Which would take hours were anything gone through once for each of its parts."""
    assert pieces(LARGE[name], prefix, "f")


def test_blocks_are_counted_from_the_end():
    found = blocks("```\na\n```\n" * 300 + "```\nb\n```\n", lambda text: True)
    assert len(found) == 100
    assert found[-1].text == "b\n"


@pytest.mark.parametrize(
    "text",
    ["return 1", "if x:\n    return 1", "try:\n    pass\nexcept E:\n    yield 1", "await x", "x = 1\0", "'\ud800'",
     "(" * 100_000, "x = yield", "for x in y:\n    return", "match x:\n    case 1:\n        return"],
)  # fmt: skip
def test_no_programs(text):
    with pytest.raises(SyntaxError):
        program(text)


def test_names_of_a_program():
    text = "import a.b, c as d\nG: int = e\ndef f(x, *y):\n    global h\n    h = [i for i in x] + z\nclass K(B): q = r"
    found = program(text)
    assert found.bound == {"a", "d", "G", "f", "h", "K"}
    assert found.free == {"e", "z", "B", "r"}
