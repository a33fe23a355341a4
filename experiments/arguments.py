"""Arguments of the commands that read theirs with argparse."""

from __future__ import annotations

import argparse
from pathlib import Path

from salt_jax.tasks.paths import expanded


def local_path(text: str) -> Path:
    """The ``type`` of an argument that names a file or folder of this machine, perhaps in the home folder, ~.

    Example:
      >>> local_path("~/a.json") == Path.home() / "a.json"
      True
    """
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
