"""Graders that hand on to others: a user's own function of a row, and one grader a part of a mixture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from salt_jax.graders.verdict import Grader, Verdict


def call_user(
    completion: str, reference: str, *, path: str, arguments: Mapping[str, Any] | None = None
) -> float | Verdict:
    """A user's function, called as function(completion, row, **arguments).

    Args:
      completion: what the policy wrote.
      reference: the row of the data set, as JSON.
      path: 'package.module:function'.
      arguments: further arguments of the function.

    Returns:
      What the function returns: a finite number or a ``Verdict``.
    """
    return Grader(path).function()(completion, json.loads(reference), **(arguments or {}))


def by_name(completion: str, reference: str, /, **graders: Mapping[str, Any]) -> float | Verdict:
    """The grader of the part of a mixture that a problem comes from.

    Args:
      completion: what the policy wrote.
      reference: JSON, [part, reference].
      **graders: part → {'path': 'package.module:function', 'arguments': {…}}.

    Returns:
      What that grader returns.

    Raises:
      ValueError: a part without a grader.

    Example:
      >>> sums = {"path": "salt_jax.graders.verdict:exact_match", "arguments": {}}
      >>> by_name("46", '["sums", "46"]', sums=sums)
      1.0
    """
    name, own = json.loads(reference)
    if name not in graders:
        raise ValueError(f"part {name!r} has no grader; there are {', '.join(graders)}")
    return Grader(graders[name]["path"], graders[name]["arguments"])(completion, own)


def check_reference(
    reference: str, *, path: str | None = None, arguments: Mapping[str, Any] | None = None, **_: Any
) -> None:
    """What the module of a user's function says of a row, by a function check_reference(row, **arguments) of its own.

    The parts of a mixture are checked when they are made.

    Raises:
      ValueError: what that function raises.
    """
    own = Grader(path, arguments or {}).reference_check() if isinstance(path, str) else None
    if own is not None:
        own(json.loads(reference))
