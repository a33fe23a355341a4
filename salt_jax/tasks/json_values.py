"""JSON objects that others wrote: read from a file, and every value that is used checked, in one place.

A value that will not do is one line that names the file, the key, what it holds and what is allowed. null is as absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from salt_jax.tasks.paths import LFS, LFS_HINT

LONGEST = 60  # characters of a value in a message: it can be a whole file
LARGEST = 10**15  # of whole numbers, far above any size or id: what is larger is a slip, and long in messages


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a byte order mark before it is skipped.

    Raises:
      ValueError: if there is none, naming the file and the line.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} cannot be read: it is no regular file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if content.startswith(LFS):
        raise ValueError(f"{path} {LFS_HINT}")
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path} is not JSON: nested too deeply") from None
    except ValueError as error:  # bad JSON and bad UTF-8
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def shown(value: Any) -> str:
    """A value for a message, on one line; the middle of a long one is left out.

    >>> shown("silu"), shown("a" * 99)[:35]
    ("'silu'", "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aa")
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        return f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"


class _Allowed(ValueError):
    """What is allowed, where it is more than the kind's own words."""


class Kind(NamedTuple):
    """What a key may hold: in words, and a function to the value that is used, or a ValueError or TypeError."""

    allowed: str
    read: Callable[[Any], Any]


def check_values(raw: Mapping[str, Any], kinds: Mapping[str, Kind], where: str, under: str = "") -> dict[str, Any]:
    """The values of the keys that ``kinds`` has, where they are there and not null; other keys are left alone.

    Args:
      raw: the object.
      kinds: key -> what it may hold.
      where: what messages call the object.
      under: the key that holds the object in its file, with a dot behind it, for messages.

    Raises:
      ValueError: for the first that will not do.

    Example:
      >>> check_values({"hidden_size": 2048.0, "other": 1}, {"hidden_size": SIZE}, "config.json")
      {'hidden_size': 2048}
      >>> check_values({"hidden_size": "2048"}, {"hidden_size": SIZE}, "config.json")
      Traceback (most recent call last):
      ValueError: config.json: hidden_size must be a whole number >= 1, got '2048'
    """
    found = {}
    for key, kind in kinds.items():
        if raw.get(key) is None:
            continue
        try:
            found[key] = kind.read(raw[key])
        except (ValueError, TypeError, OverflowError) as error:
            allowed = error if isinstance(error, _Allowed) else kind.allowed
            raise ValueError(f"{where}: {under}{key} must be {allowed}, got {shown(raw[key])}") from None
    return found


def need(values: Mapping[str, Any], kinds: Mapping[str, Kind], key: str, where: str) -> Any:
    """The value of a key that must be there; ValueError otherwise.

    >>> need({}, {"hidden_size": SIZE}, "hidden_size", "config.json")
    Traceback (most recent call last):
    ValueError: config.json: hidden_size must be a whole number >= 1, got None
    """
    if key not in values:
        raise ValueError(f"{where}: {key} must be {kinds[key].allowed}, got None")
    return values[key]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not math.isfinite(found := float(value)):
        raise ValueError
    return found


def number(least: float | None = None, *, above: float | None = None) -> Kind:
    """A finite number >= ``least`` or > ``above``, as a float; a text that looks like one is none."""

    def read(value: Any) -> float:
        found = _number(value)
        if (least is not None and found < least) or (above is not None and found <= above):
            raise ValueError
        return found

    bound = f" >= {least:g}" if least is not None else f" > {above:g}" if above is not None else ""
    return Kind(f"a finite number{bound}", read)


def whole(least: int | None = None) -> Kind:
    """A whole number >= ``least``; 2048.0 is one, as JSON has one kind of number."""

    def read(value: Any) -> int:
        found = _number(value)
        if found != int(found) or (least is not None and found < least):
            raise ValueError
        if abs(found) > LARGEST:
            raise _Allowed(f"a whole number up to {LARGEST:.0e}")
        return int(value)

    return Kind("a whole number" + ("" if least is None else f" >= {least}"), read)


def of_type(kind: type, allowed: str) -> Kind:
    """A value of one of Python's own types."""

    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return Kind(allowed, read)


def list_of(kind: Kind, allowed: str, *, or_one: bool = False) -> Kind:
    """A list of what ``kind`` reads; with ``or_one`` also such a value by itself, which is a list of one."""

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list):
            if not or_one:
                raise TypeError
            value = [value]
        return [kind.read(item) for item in value]

    return Kind(allowed, read)


SIZE = whole(1)
NUMBER = number()
FLAG = of_type(bool, "true or false")
TEXT = of_type(str, "a text")
TEXTS = list_of(TEXT, "a list of texts")
OBJECT = of_type(dict, "an object")
TOKEN_IDS = list_of(whole(0), "a token id or a list of them", or_one=True)
