"""The front door is true: its code runs, its files and keys exist."""

from __future__ import annotations

import re

from configs import base
from tests.house import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def test_the_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["out"].advantages.shape == (names["m"],)
    assert bool(names["out"].ok)


def test_files_and_links_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    paths = links + re.findall(r"`((?:configs|notebooks|experiments|docs)/[\w./]+\.\w+)[`:]", README)
    assert len(paths) > 5
    for path in paths:
        assert (REPOSITORY / path).exists(), path


def test_modules_and_make_targets_exist():
    for module in set(re.findall(r"python -m (experiments[\w.]+)", README)):
        assert (REPOSITORY / (module.replace(".", "/") + ".py")).exists(), module
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"make (train|test|slow|bench)\b", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_config_keys_exist():
    config = base.get_config()
    table = README.split("| key | what |")[1].split("\n\n")[0]
    keys = 0
    for row in table.splitlines()[2:]:
        section = ""
        for key in re.findall(r"`([\w.]+)`", row.split("|")[1]):
            prefix, _, name = key.rpartition(".")
            if prefix:
                section = prefix
            elif key in config:  # a key of its own, such as init_from
                keys += 1
                continue
            assert name in config[section], key
            keys += 1
    assert keys >= 12
