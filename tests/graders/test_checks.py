"""Tests of programs, read: which check something, which check nothing, and which no program passes."""

from __future__ import annotations

import json

import pytest

from salt_jax.graders.checks import Needs, read_tests
from salt_jax.graders.code import parse_reference

UNIT = "import unittest\nclass TestF(unittest.TestCase):\n    def test_one(self):\n        self.assertEqual(f(1), 2)\n"
# Tests of f, or (name, entry point): what is said against them.
NOTHING = {
    "f(1) == 2": "no assertion in them runs",
    "f(1)": "no assertion in them runs",
    "print(f(1) == 2)": "no assertion in them runs",
    "x = f(1) == 2": "no assertion in them runs",
    "# assert f(1) == 2": "no assertion in them runs",
    "'''\nassert f(1) == 2\n'''": "no assertion in them runs",
    "pass": "no assertion in them runs",
    "def test_f():\n    assert f(1) == 2": "nobody calls test_f",
    "class TestF:\n    def test_one(self):\n        assert f(1) == 2": "nobody calls TestF|nobody calls test_one",
    UNIT: "nobody calls",
    UNIT + "unittest.main(exit=False)": "nobody calls",
    UNIT + "unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(TestF))": "nobody calls",
    UNIT + "if __name__ == '__main__':\n    unittest.main()": "nobody calls",
    "async def test_f():\n    assert f(1) == 2\ntest_f()": "nobody calls test_f",
    "def test_f():\n    assert f(1) == 2\n    yield\ntest_f()": "nobody calls test_f",
    "def test_f():\n    return\n    assert f(1) == 2\ntest_f()": "no assertion in them runs",
    "def check(candidate):\n    candidate(1) == 2": "no assertion in them runs",
    "def check(candidate):\n    assert True": "their assertions hold for any program",
    "def check(candidate):\n    assert 1 == 1": "nothing of the program reaches",
    "def check(candidate):\n    assert (candidate(1) == 2, 'two')": "their assertions hold for any program",
    "def check(candidate):\n    def inner():\n        assert candidate(1) == 2": "nobody calls inner",
    "def check(candidate):\n    yield\n    assert candidate(1) == 2": "nobody calls check",
    "async def check(candidate):\n    assert candidate(1) == 2": "nobody calls check",
    "check = lambda candidate: candidate(1) == 2": "check is no function with assertions",
    "check = lambda g: g(1) == 2\ncheck(f)": "check is no function with assertions",
    "assert (f(1) == 2, 'two')": "their assertions hold for any program",
    "assert [f(1) == 2]": "their assertions hold for any program",
    "assert True\nf(1)": "their assertions hold for any program",
    "assert f'{f(1) == 2}'": "their assertions hold for any program",
    "assert not False, f(1)": "their assertions hold for any program",
    "assert f(1) == 2 or True": "their assertions hold for any program",
    "if False:\n    assert f(1) == 2": "no assertion in them runs",
    "if 0:\n    pass\nelif None:\n    assert f(1) == 2": "no assertion in them runs",
    "while False:\n    assert f(1) == 2": "no assertion in them runs",
    "for x in []:\n    assert f(x) == 2": "no assertion in them runs",
    "for x, y in {}.items():\n    assert f(x) == y": "no assertion in them runs",
    "for x in range(0):\n    assert f(x) == 2": "no assertion in them runs",
    "assert (f(x) == 2 for x in range(3))": "their assertions hold for any program",
    "if __name__ == '__main__':\n    assert f(1) == 2": "no assertion in them runs",
    "if '__main__' == __name__ and f:\n    assert f(1) == 2": "no assertion in them runs",
    "try:\n    assert f(1) == 2\nexcept:\n    pass": "handlers take the errors",
    "try:\n    assert f(1) == 2\nexcept AssertionError:\n    print('wrong')": "handlers take the errors",
    "try:\n    assert f(1) == 2\nexcept (ValueError, Exception) as e:\n    print(e)": "handlers take the errors",
    "import contextlib\nwith contextlib.suppress(AssertionError):\n    assert f(1) == 2": "handlers take the errors",
    "def g():\n    try:\n        assert f(1) == 2\n    finally:\n        return\ng()": "handlers take the errors",
    "assert ''.join(['A', 'B']) == 'AB'\nf(1)": "nothing of the program reaches",
    "x = 3\nassert x == 3\nf(2)": "nothing of the program reaches",
    "def g(x):\n    assert x == 3\ng(3)\nf(1)": "nothing of the program reaches",
}
NEVER = {
    "assert f(1) = 2": "the tests cannot be read as Python: .*line 1",
    "assert f(1) == 2\nreturn": "the tests cannot be read as Python: return outside a function \\(line 2\\)",
    "import nowhere_to_be_found\nassert f(1) == 2": "the tests import 'nowhere_to_be_found', which is not installed",
    "from nowhere_to_be_found.a import b\nassert f(1) == 2": "import 'nowhere_to_be_found.a', which is not installed",
    "from collections import Nothing\nassert f(1) == 2": "import 'Nothing', which 'collections' does not have",
    "from . import a\nassert f(1) == 2": "import relatively",
    "def check(candidate):\n    import nowhere_to_be_found\n    assert candidate(1) == 2": "is not installed",
    "def g():\n    import nowhere_to_be_found\n    assert f(1) == 2\ng()": "is not installed",
    "def f(x):\n    return 2\nassert f(1) == 2": "the tests define 'f' themselves",
    "f = lambda x: 2\nassert f(1) == 2": "the tests define 'f' themselves",
    "def check(candidate, more):\n    assert candidate(1) == more": "does not take the function alone",
    "def check():\n    assert f(1) == 2": "does not take the function alone",
    "assert g(1) == 2": "the tests never use 'f', which is the entry point",
    "assert f(1) == 2\nassert False": "no program passes the tests: line 2 always fails",
    "assert f(1) == 2\nraise ValueError": "no program passes the tests: line 2 always fails",
    "assert f(1) == 2\nimport sys\nsys.exit(0)": "no program passes the tests: line 3 ends it",
}
CHECKED = [
    "assert f(1) == 2",
    "assert f(1)",
    "assert (f(1)) == 2, 'two'",
    "assert not f(1)",
    "x = f(1)\nassert x == 2",
    "x = [1]\nf(x)\nassert x == [2]",
    "x, y = f(1), 2\nassert x == y",
    "for x, y in [(1, 2)]:\n    assert f(x) == y",
    "cases = {1: 2}\nfor x in cases:\n    out = f(x)\n    if out != cases[x]:\n        raise AssertionError(out)",
    "ok = True\nif f(1) != 2:\n    ok = False\nassert ok",
    "if f(1) == 2:\n    pass\nelse:\n    assert False, 'wrong'",
    "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    raise AssertionError",
    "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass",
    "try:\n    assert f(1) == 2\nexcept AssertionError:\n    raise",
    "try:\n    assert f(1) == 2\nexcept AssertionError as e:\n    print(e)\n    raise SystemExit(1)",
    "try:\n    x = f(1)\nexcept Exception:\n    x = None\nassert x == 2",
    "def test_f():\n    assert f(1) == 2\ntest_f()",
    "def test_f():\n    assert f(1) == 2\nfor t in (test_f,):\n    t()",
    "def test_f():\n    assert f(1) == 2\n"
    "for name, t in list(globals().items()):\n    if name.startswith('test'):\n        t()",
    "def test_f():\n    assert f(1) == 2\nif True:\n    test_f()",
    "async def test_f():\n    assert f(1) == 2\nimport asyncio\nasyncio.run(test_f())",
    "def cases():\n    assert f(1) == 2\n    yield\nlist(cases())",
    "class T:\n    def test_one(self):\n        assert f(1) == 2\nT().test_one()",
    UNIT + "TestF('test_one').test_one()",
    UNIT + "r = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(TestF))\n"
    "assert r.wasSuccessful()",
    "import unittest\nunittest.TestCase().assertEqual(f(1), 2)",
    "import numpy as np\nnp.testing.assert_allclose(f(1), 2)",
    "from numpy.testing import assert_equal\nassert_equal(f(1), 2)",
    "import io, contextlib\nout = io.StringIO()\n"
    "with contextlib.redirect_stdout(out):\n    f(1)\nassert out.getvalue() == '2'",
    "def same(a, b):\n    if a != b:\n        raise ValueError\nsame(f(1), 2)",
    "def same(a, b):\n    assert a == b\nsame(f(1), 2)",
    "import sys\nif f(1) != 2:\n    sys.exit(1)",
    "exec('assert f(1) == 2')",
    "import functools\nf = functools.cache(f)\nassert f(1) == 2",
    "def unused():\n    import nowhere_to_be_found\nfor x in range(3):\n    assert f(x) == 2",
    "assert eval('f(1)') == 2",
    "from program import f\nassert f(1) == 2",
    "assert f.__doc__\nassert True",
    "def check(candidate):\n    assert candidate(1) == 2",
    "def check (candidate) :\n    assert candidate(1) == 2",
    "def  check(\n    candidate,\n    more=1,\n):\n    assert candidate(1) == 2",
    "def check(*candidates):\n    assert candidates[0](1) == 2",
    "def check(f):\n    for x in range(3):\n        assert f(x) == x + 1",
    "def check(candidate):\n    assert f(1) == 2",
    "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)",
    "METADATA = {}\ndef check(candidate):\n    assert True, 'good for debugging'\n    assert candidate(1) == 2",
    "def assertion(out, exp, atol):\n    exact = out == exp\n    assert exact\n"
    "def check(candidate):\n    inputs = [[1]]\n    results = [2]\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)",
    "match f(1):\n    case 2:\n        pass\n    case _:\n        raise AssertionError",
    "try:\n    import nowhere_to_be_found\nexcept ImportError:\n    pass\nassert f(1) == 2",
]


def reference(tests: str) -> str:
    return json.dumps({"tests": tests, "entry_point": "f"})


@pytest.mark.parametrize("tests", NOTHING)
def test_tests_that_check_nothing(tests):
    with pytest.raises(ValueError, match=f"the tests check nothing: .*({NOTHING[tests]})") as caught:
        parse_reference(reference(tests))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tests", NEVER)
def test_tests_that_no_program_passes(tests):
    with pytest.raises(ValueError, match=NEVER[tests]) as caught:
        parse_reference(reference(tests))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tests", CHECKED)
def test_tests_that_check_something(tests):
    parse_reference(reference(tests))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"entry_point": "Solution().f"}, "entry_point = 'Solution\\(\\).f' is no name of a function"),
        ({"entry_point": ""}, "is no name of a function"),
        ({"setup": "x = (1\n"}, "the setup cannot be read as Python: .*line 1"),
        ({"setup": "import nowhere_to_be_found"}, "is not installed"),
        ({"tests": ["assert f(1) == 2", "assert f(1"]}, "the tests cannot be read as Python"),
        ({"tests": "def check(g):\n    assert g(1) == 2", "entry_point": None}, "nobody calls check; set entry_point"),
        ({"tests": "assert ''.join(['A']) == 'A'", "entry_point": None}, "nothing of the program reaches"),
    ],
)
def test_other_fields(more, message):
    with pytest.raises(ValueError, match=message):
        parse_reference(json.dumps({"tests": "assert f(1) == 2", "entry_point": "f", **more}))


def test_a_program_that_is_called_like_a_check_is_none():
    for name in ("check_order", "validate", "verify_all", "is_valid"):
        with pytest.raises(ValueError, match="no assertion in them runs"):
            read_tests("", [f"{name}(1) == 2"], name, [])
        assert read_tests("", [f"assert {name}(1) == 2"], name, []).wanted == (name,)
    with pytest.raises(ValueError, match="no assertion in them runs"):
        read_tests("", ["s = Stack()\ns.validate(1) == 2"], "Stack", [])


def test_what_the_tests_want():
    setup = "from typing import List\nroot = Node(1)\nroot.left = Node(2)\n"
    found = read_tests(setup, ["assert height(root) == 2", "assert height(leaf) == len([1])"], None, [])
    assert found == Needs(("Node", "height", "leaf"), "from typing import List", "\n".join(setup.split("\n")[1:]), None)
    later = "def equal(a):\n    return g(a) == f(a)\n"  # runs before the program: it only asks for it when it is called
    assert read_tests(later, ["assert equal(1)"], None, []) == Needs(("f", "g"), later, "", None)
    assert read_tests("", ["def check(c):\n    assert c(1) == g(2)"], "f", []) == Needs(("f", "g"), "", "", "f")


def test_line_ends_and_depths():
    setup = "import math\r\nx = f(1)\r\n"
    assert read_tests(setup, ["assert x"], "f", []) == Needs(("f",), "import math", "x = f(1)\n", None)
    parse_reference(reference("assert f(1) == 2\r\nassert f(2) == 3\r\n"))
    parse_reference(reference("assert f(1) == 0" + " + 1" * 2_000))
    deep = "if f(0):\n    pass\n" + "elif f(1):\n    pass\n" * 3_000 + "assert f(2)"
    with pytest.raises(ValueError, match=r"nested too deeply|cannot be read as Python") as caught:
        parse_reference(reference(deep))
    assert not isinstance(caught.value, RecursionError)


def test_only_what_the_sandbox_can_read_is_installed(tmp_path, monkeypatch):
    (tmp_path / "beside_the_run.py").write_text("raise RuntimeError('a row imports nothing')")
    monkeypatch.syspath_prepend(tmp_path)
    tests = ["import beside_the_run\nassert f(1) == 2"]
    with pytest.raises(ValueError, match="not installed"):
        parse_reference(reference(tests[0]))
    assert read_tests("", tests, "f", [str(tmp_path)]).wanted == ("f",)
