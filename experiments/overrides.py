"""What --config.KEY=VALUE says, and how it changes a configuration."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from salt_jax.run.config import unknown_key
from salt_jax.spec import ConfigError
from salt_jax.tasks import TASKS
from salt_jax.tasks.paths import expanded

_KEY = re.compile(r"--?(no)?config\.(.*)", re.DOTALL)
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def split(argv: Sequence[str]) -> tuple[list[str], dict[str, str | bool]]:
    """The arguments that are no override, and key → value of those that are; of a key given twice the last counts.

    A value follows '=', or is the next argument unless that is a flag. Without one, ``--config.KEY`` is True and
    ``--noconfig.KEY`` False.

    Raises:
      ConfigError: a value behind ``--noconfig``, a dictionary given whole behind a key of it, which it would undo.

    Example:
      >>> split(["train", "--config=a.py", "--config.salt.rho=2", "--config.steps", "3", "--noconfig.salt.enabled"])
      (['train', '--config=a.py'], {'salt.rho': '2', 'steps': '3', 'salt.enabled': False})
    """
    rest: list[str] = []
    found: dict[str, str | bool] = {}
    todo = list(argv)
    while todo:
        argument = todo.pop(0)
        if argument == "--":
            return [*rest, argument, *todo], found
        name, equals, text = argument.partition("=")
        if (match := _KEY.fullmatch(name)) is None:
            rest.append(argument)
            continue
        no, key = match.groups()
        value: str | bool = text if equals else no is None
        if no and equals:
            raise ConfigError(f"{name} takes no value; write --config.{key}={text}")
        if not no and not equals and todo and not re.match(r"-[^\d.]", todo[0]):
            value = todo.pop(0)
        for earlier in found:
            if earlier.startswith(f"{key}."):
                raise ConfigError(f"--config.{key} would undo --config.{earlier} before it; put it first")
        found.pop(key, None)
        found[key] = value
    return rest, found


def apply(config: ConfigDict, overrides: Mapping[str, str | bool]) -> None:
    """Sets keys of a configuration, which stays locked.

    The value that a key has now says how its text is read: an integer, a number, true or false, a text as it stands.
    ``None`` is None for every key. Where it says nothing (None, lists, new keys), a Python literal is read, else a
    text. A text that does not fit stays a text, which ``parse`` refuses with what is allowed. ``config.task`` and
    ``config.model.template`` take new keys: the task and the template say which there are.

    Raises:
      ConfigError: an unknown key, a section given as a value, none or null for None.

    Example:
      >>> config = ConfigDict({"steps": 3, "model": {"template": {}}})
      >>> apply(config, {"steps": "5", "model.template.enable_thinking": "False"})
      >>> config.to_dict()
      {'model': {'template': {'enable_thinking': False}}, 'steps': 5}
    """
    for key, value in overrides.items():
        section, last, kind = _find(config, key)
        name = f"config.{key}"
        if isinstance(value, bool) and kind not in (bool, object):
            raise ConfigError(f"{name} needs a value; write --{name}=VALUE")
        new = value if isinstance(value, bool) else _read(name, value, kind, _open(key))
        try:
            with section.unlocked(), section.ignore_type():
                section[last] = new
        except (TypeError, ValueError, AttributeError) as error:  # of a dictionary's keys
            raise ConfigError(f"{name} = {value!r} is not allowed: {' '.join(str(error).split())}") from None
    config.lock()


def expand_paths(config: ConfigDict) -> None:
    """Writes the home folder for ~ in the keys that name folders; a task's own are read so when it is made.

    Raises:
      ConfigError: the key and the path that will not do.
    """
    for name, section, key in (("model.path", config.get("model"), "path"), ("init_from", config, "init_from")):
        if isinstance(section, ConfigDict) and isinstance(section.get(key), str):
            try:
                section[key] = expanded(section[key])
            except ValueError as error:
                raise ConfigError(f"config.{name}: {error}") from None


def _open(key: str) -> bool:
    """Whether a task or a chat template is what knows the keys in a section, or whether a key is allowed there."""
    return f"{key}.".startswith(("task.", "model.template."))


def _find(config: ConfigDict, key: str) -> tuple[ConfigDict, str, type]:
    """The section that holds a key, the key's last part, and the type of its value; object where that is open."""
    *path, last = key.split(".")
    section, name = config, f"config.{key}"
    for i, part in enumerate(path):
        here = ".".join(path[: i + 1])
        if part and _open(here) and section.get(part) is None:
            with section.unlocked(), section.ignore_type():
                section[part] = ConfigDict()
        if part not in section:
            raise ConfigError(unknown_key(name, sorted(section.keys())))
        if not isinstance(section[part], ConfigDict):
            raise ConfigError(f"{name} is not a key: config.{here} is a value, {section[part]!r}, and no section")
        section = section[part]
    if last in section:
        kind = section.get_type(last)
        return section, last, object if kind in (type(None), tuple, list) else kind
    if not (last and _open(key)):
        raise ConfigError(unknown_key(name, sorted(section.keys())))
    task = config.task.get("name") if path == ["task"] else None
    parameters = inspect.signature(TASKS[task]).parameters if isinstance(task, str) and task in TASKS else {}
    default = parameters[last].default if last in parameters else None
    return section, last, object if default in (None, inspect.Parameter.empty) else type(default)


def _read(name: str, text: str, kind: type, whole: bool) -> Any:
    if text == "None":
        return None
    if kind is str:
        return text
    if text.lower() in ("none", "null"):
        raise ConfigError(f"{name} = {text!r} is not allowed; for no value write --{name}=None")
    if issubclass(kind, ConfigDict):
        value = _literal(text)
        if not whole:
            raise ConfigError(f"{name} is a section; set its keys, --{name}.KEY=VALUE")
        if not isinstance(value, dict):
            forms = f"--{name}.KEY=VALUE, or a dictionary in quotes, --{name}=\"{{'KEY': VALUE}}\""
            raise ConfigError(f"{name} = {text!r} is not allowed; allowed: {forms}")
        return value
    if kind is object and text.lower() in ("yes", "no", "on", "off"):
        raise ConfigError(f"{name} = {text!r} is not allowed; allowed: True, False, or the text in quotes")
    readers: dict[type, Callable[[str], Any]] = {int: int, float: float, bool: lambda text: BOOLEANS[text.lower()]}
    try:
        return readers.get(kind, _literal)(text)
    except (ValueError, KeyError):
        return text


def _literal(text: str) -> Any:
    """A Python literal, true and false in any case; else the text.

    Example:
      >>> [_literal(text) for text in ("3", "true", "('a', 'b')", "a/b.jsonl", "'3'")]
      [3, True, ('a', 'b'), 'a/b.jsonl', '3']
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
