"""Which files are the code behind an import path."""

from __future__ import annotations

from salt_jax.run.code_fingerprints import of_module

OURS = "salt_jax.graders/{}.py"


def files(module: str) -> set[str]:
    return set(of_module(module)[0])


def test_what_a_grader_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = {
        "own/__init__.py": "", "own/a.py": "from .sub import b\nimport own.c, numpy\n", "own/c.py": "", "own/d.py": "",
        "own/sub/__init__.py": "", "own/sub/b.py": "def f():\n    from .. import e\n    from ..f import g\n",
        "own/e.py": "import sympy", "own/f.py": "(", "numpy.py": "",
        "top.py": "from salt_jax.graders.choice import f\nimport salt_jax.run.loop, own.d",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    code, outermost = of_module("own.a")
    assert set(code) == {f"own/{name}.py" for name in "acef"} | {"own.sub/__init__.py", "own.sub/b.py"}
    assert outermost == {"own", "numpy", "sympy"}
    assert files("top") == {
        "/top.py", "own/d.py", *(OURS.format(name) for name in ("choice", "letters", "verdict"))
    }  # fmt: skip


def test_a_grader_is_not_all_graders():
    assert files("salt_jax.graders.verdict") == {OURS.format("verdict")}
    mathematics = files("salt_jax.graders.mathematics")
    assert {OURS.format(name) for name in ("mathematics", "extract", "structure", "verdict")} <= mathematics
    assert OURS.format("code") not in mathematics


def test_what_has_no_file_beside_it():
    assert files("sysconfig") == {"/sysconfig.py"}  # beside it is the standard library
    assert files("absent_module") == {"absent_module"}
    assert files("sys") == {"sys"}
