"""The committed results of the study: one small JSON a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.study import plan

RESULTS = Path("docs/results/runs")


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """All results, by name.

    Raises:
      ValueError: one line: a file that is no result, or whose run has other settings now.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            changes, name = result["changes"], result["name"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a result of a run: {type(error).__name__}: {error}") from None
        if name != path.stem or changes != json.loads(json.dumps(plan.parse(name).changes)):
            raise ValueError(
                f"{path} was made with other settings than {name} has now; move it away to make it again"
            )
        found[name] = result
    return found


def last_accuracy(result: Mapping[str, Any]) -> float:
    """Greedy accuracy after the last step; 0 of a run that stopped itself.

    >>> last_accuracy({"stopped": None, "accuracy": {"0": 0.2, "1200": 0.7}})
    0.7
    """
    return 0.0 if result["stopped"] else float(result["accuracy"][str(plan.STEPS)])
