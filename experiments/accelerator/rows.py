"""A number of the accelerator's table, and what a stage that measures it is told. Imports nothing of JAX."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of a stage.

    Attributes:
      what: its name, unique in the stage.
      value: None where there is none; ``note`` then says why.
      unit: of the value, and of the aim.
      aim: the most it should be, or the least where ``at_least``; None: there is no aim.
      at_least: which of the two.
      compile: seconds of compilation, and ``run``: of one call; None where neither is to the point.
      note: what a reader of the table needs besides.
    """

    what: str
    value: float | None
    unit: str = ""
    aim: float | None = None
    at_least: bool = False
    compile: float | None = None
    run: float | None = None
    note: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a number.

        >>> Row("speed", 2.0).measured, Row("speed", float("nan")).measured
        (True, False)
        """
        return self.value is not None and math.isfinite(self.value)

    @property
    def verdict(self) -> str:
        """'', 'yes' or 'NO': whether the aim is met.

        >>> Row("error", 2.0, aim=1.0).verdict, Row("speed", 2.0, aim=1.0, at_least=True).verdict
        ('NO', 'yes')
        """
        if self.aim is None or self.value is None or not math.isfinite(self.value):
            return "" if self.aim is None else "NO"
        return "yes" if (self.value >= self.aim if self.at_least else self.value <= self.aim) else "NO"


class Setting(NamedTuple):
    """What a stage is told: whether shapes are small, rows that have a number, by (stage, what), and its seconds."""

    tiny: bool
    known: Mapping[tuple[str, str], float]
    seconds: float


def one_line(error: BaseException) -> str:
    """An exception as a cell of a table.

    >>> one_line(ValueError("two\\nlines | and a bar"))
    'ValueError: two lines / and a bar'
    """
    return " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")[:300]
