"""Every numeric case of the objective family is the business of some test, by its name."""

from __future__ import annotations

import re

from tests.house import REPOSITORY
from tests.objective.golden_methods import cases


def test_every_case_is_named_by_a_test(golden):
    names = list(cases(golden))
    assert len(names) == 47
    texts = "\n".join(path.read_text() for path in sorted((REPOSITORY / "tests").rglob("test_*.py")))
    missing = [name for name in names if f'"{name}"' not in texts]
    assert not missing


def test_every_block_of_the_selection_vectors_is_read(golden):
    lines = (golden / "selection_vectors.txt").read_text().splitlines()
    blocks = [line.split()[1] for line in lines if line.startswith("== ")]
    assert blocks == [str(number) for number in range(1, 13)]
    texts = "\n".join(path.read_text() for path in sorted((REPOSITORY / "tests").rglob("test_*.py")))
    assert all(re.search(rf"block\(golden, {number}\)|== {number} [A-Z]", texts) for number in blocks)
