"""What every benchmark prints and writes: a table, and JSON with the machine, versions and date beside the numbers."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
SETTINGS = ("GLIBC_TUNABLES", "XLA_FLAGS", "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION")  # they change speed


@dataclasses.dataclass(frozen=True)
class Target:
    """A number and the limit it was to keep: `value` None where it was not measured."""

    what: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the limit is kept; None without a value.

        Example:
          >>> Target("overhead", 1.2, 1.1).reached, Target("speed", 8.0, 7.0, at_least=True).reached
          (False, True)
        """
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"reached": self.reached}


def print_targets(targets: Sequence[Target]) -> None:
    """One line a target: the limit, what was measured, and 'reached', 'missed' or 'not measured'."""
    for target in targets:
        sign = "≥" if target.at_least else "≤"
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[target.reached]
        value = "" if target.value is None else f" {target.value:.3g}"
        print(f"target: {target.what} {sign} {target.limit:g}:{value} {verdict}")


def print_surroundings(result: Mapping[str, Any]) -> None:
    """What the numbers were measured on."""
    hardware, settings = result["hardware"], result["settings"]
    print(f"{hardware['cpu']}, {hardware['cores']} cores, load {hardware['load_average']}; {hardware['device']}")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()), "; commit", result["commit"])
    print(f"GLIBC_TUNABLES: {settings['GLIBC_TUNABLES'] or 'not set (glibc.malloc.hugetlb=1 spares page faults)'}")


def extra_bytes(compiled: Any) -> int:
    """What a compiled program allocates on each device besides its arguments: temporaries and results."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError(f"{jax.default_backend()} does not analyse the memory of its programs")
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def available_bytes() -> int | None:
    """Memory that can be taken without swapping, from /proc/meminfo; None where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * found[0] if found else None


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and minimum of repeated times, and how many there were.

    Example:
      >>> spread([3.0, 1.0, 2.0])
      {'median': 2.0, 'min': 1.0, 'runs': 3}
    """
    return {"median": statistics.median(seconds), "min": min(seconds), "runs": len(seconds)}


def cpu_model() -> str:
    """The processor's name, from /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int:
    """Processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit() -> str | None:
    """The checkout's commit, '+changes' after it where files differ from it; None outside git."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def surroundings() -> dict[str, Any]:
    """Hardware, versions, settings that change speed, date and commit."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "hardware": {
            "cpu": cpu_model(),
            "cores": cores(),
            "platform": platform.platform(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        },
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "settings": {name: os.environ.get(name) for name in SETTINGS},
    }


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, the first column to the left and the numbers to the right."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Not a terminal: a file or a pipe, where cut-off columns help nobody.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def write_json(path: str | Path, result: Mapping[str, Any]) -> None:
    """Writes ``result`` to ``path``, and makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
