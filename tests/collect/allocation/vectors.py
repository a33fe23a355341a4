"""The blocks of selection_vectors.txt, read as 'name = value' lines."""

from __future__ import annotations

import ast
from pathlib import Path


def block(golden: Path, number: int) -> dict[str, str]:
    """The lines of '== number …', name → text of the value; a case's own lines are named 'case/name'."""
    parts = (golden / "selection_vectors.txt").read_text().split("\n== ")
    text = next(part for part in parts if part.lstrip("= \n").startswith(f"{number} "))
    found: dict[str, str] = {}
    case = ""
    for line in text.splitlines()[1:]:
        head, colon, _ = line.strip().partition(":")
        if colon and "=" not in head and line.strip().startswith(("balanced", "pos-mode")):
            case = head
            found[case] = line.strip().partition(":")[2].strip()
            continue
        name, equals, value = line.strip().rpartition(" = ")
        if equals:
            found[f"{case}/{name}" if case and name in ("r", "p_hat", "A", "A=r-p_hat", "v3 Seq weighted A/p_hat")
                  else name] = value
    return found


def numbers(text: str) -> list[float]:
    """'[1, 2.5]' or '0.5'."""
    value = ast.literal_eval(text.split(" sum ")[0])
    return value if isinstance(value, list) else [value]
