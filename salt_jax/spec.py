"""What every room may say about a wrong setting. Imports nothing of this project."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot run: one line naming the key and what is allowed.

    Example:
      >>> raise ConfigError("config.steps = -1 is not allowed; allowed: integers >= 0")
      Traceback (most recent call last):
      salt_jax.spec.ConfigError: config.steps = -1 is not allowed; allowed: integers >= 0
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, longest: int | None = None) -> str:
    """A text for an error: what is not printable is written as an escape, the middle of a long text is left out.

    Example:
      >>> one_line("a\\nb \\x1b[2J"), one_line("0123456789", longest=5)
      ('a\\\\nb \\\\x1b[2J', '01...89')
    """
    if longest is not None and len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-(longest // 2) :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
