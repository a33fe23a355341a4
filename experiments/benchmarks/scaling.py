"""How time and memory of the exact Gram and the sketch grow with rollouts m, tokens T, vocabulary V and devices.

    python -m experiments.benchmarks.scaling [--json=FILE] [--plot=docs/scaling.png]

One size grows, the others stay as --base-… says; the chunk of vocabulary columns is fixed. Slopes are least squares on
logarithms: 1 is proportional, 0 constant. All sizes take turns. Memory is what XLA allocates besides the arguments, on
each device (from the compiled program's own `memory_analysis`).

Devices are forced host devices in processes of their own (XLA_FLAGS), the batch split over all of them, or the
vocabulary; they share the cores of this machine, so their memory says something about a mesh, their time does not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from experiments.arguments import local_path
from experiments.benchmarks import figures, report
from salt_jax import geometry
from salt_jax.distributed.layout import Layout
from salt_jax.distributed.sharding import make_mesh

METHODS = ("exact", "sketch")
AXES = ("m", "T", "V")
BASE = {"m": 32, "T": 64, "V": 8192, "H": 128}
SIZES = {"m": (16, 32, 64, 128), "T": (32, 64, 128, 256), "V": (4096, 8192, 16384, 32768)}
SPLITS = ("batch", "vocabulary")
LIMITS = (
    ("exact", "seconds", "T", 1.05),
    ("exact", "bytes", "V", 0.1),
    ("exact", "bytes", "T", 1.05),
    ("sketch", "bytes", "V", 0.1),
)
REPOSITORY = Path(__file__).resolve().parents[2]


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(value) over log(size).

    Example:
      >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
      2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def arrays(m: int, t: int, v: int, h: int) -> tuple[jax.Array, ...]:
    """Hidden states, lm_head, targets and a full mask."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, lm_head = jax.random.normal(keys[0], (m, t, h)), jax.random.normal(keys[1], (h, v)) / h**0.5
    return hidden, lm_head, jax.random.randint(keys[2], (m, t), 0, v), jnp.ones((m, t), bool)


def program(method: str, chunk: int, ranks: tuple[int, int], layout: Layout | None = None) -> Callable[..., jax.Array]:
    """The function of (hidden, lm_head, targets, mask) that is timed."""

    def exact(hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        observed = hidden, lm_head, targets, mask
        return geometry.lm_head_gram(*observed, chunk_size=chunk, route="features", layout=layout)

    def sketch(hidden: jax.Array, lm_head: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        observed = hidden, lm_head, targets, mask
        features = geometry.lm_head_sketch(
            *observed, jax.random.key(1), chunk_size=chunk, rank_vocab=ranks[0], rank_hidden=ranks[1], layout=layout
        )
        return geometry.sketch_gram(features, layout=layout)

    return {"exact": exact, "sketch": sketch}[method]


class Cell:
    """One method at one size."""

    def __init__(self, function: Callable[..., jax.Array], observed: tuple[jax.Array, ...]) -> None:
        self.compiled, self.observed = jax.jit(function).lower(*observed).compile(), observed
        self.bytes = report.extra_bytes(self.compiled)
        self.seconds: list[float] = []
        jax.block_until_ready(self.compiled(*observed))

    def run(self) -> None:
        """One timed run."""
        start = time.perf_counter()
        jax.block_until_ready(self.compiled(*self.observed))
        self.seconds.append(time.perf_counter() - start)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"seconds": report.spread(self.seconds), "bytes": self.bytes}


def growth(
    base: dict[str, int], sizes: dict[str, Sequence[int]], chunk: int, ranks: tuple[int, int], repeats: int
) -> dict[str, Any]:
    """Times and bytes of each method along each axis, and their slopes."""
    found: dict[str, Any] = {}
    for axis in AXES:
        cells = {}
        for size in sizes[axis]:
            shape = base | {axis: size}
            observed = arrays(shape["m"], shape["T"], shape["V"], shape["H"])
            for method in METHODS:
                cells[method, size] = Cell(program(method, chunk, ranks), observed)
        for _ in range(repeats):
            for cell in cells.values():
                cell.run()
        found[axis] = {
            "sizes": list(sizes[axis]),
            **{method: [cells[method, size].record() for size in sizes[axis]] for method in METHODS},
        }
        found[axis]["slopes"] = {
            method: {
                "seconds": slope(sizes[axis], [cell["seconds"]["median"] for cell in found[axis][method]]),
                "bytes": slope(sizes[axis], [cell["bytes"] for cell in found[axis][method]]),
            }
            for method in METHODS
        }
    return found


def on_devices(split: str, base: dict[str, int], chunk: int, ranks: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Each method on a mesh of all devices of this process, and how far it is from a single device."""
    mesh = make_mesh(data=jax.device_count()) if split == "batch" else make_mesh(tensor=jax.device_count())
    layout = Layout(mesh)
    observed = arrays(base["m"], base["T"], base["V"], base["H"])
    at = [NamedSharding(mesh, spec) for spec in (layout.rows, layout.head, layout.rows, layout.rows)]
    placed = tuple(jax.device_put(x, place) for x, place in zip(observed, at, strict=True))
    found: dict[str, Any] = {}
    for method in METHODS:
        cell = Cell(program(method, chunk, ranks, layout), placed)
        for _ in range(repeats):
            cell.run()
        alone, here = jax.jit(program(method, chunk, ranks))(*observed), cell.compiled(*placed)
        difference = np.abs(np.asarray(here) - np.asarray(alone)).max() / np.abs(np.asarray(alone)).max()
        found[method] = cell.record() | {"difference": float(difference)}
    return found


def forced(devices: int, arguments: Sequence[str]) -> dict[str, Any]:
    """``on_devices`` in a process with so many host devices."""
    others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = os.environ | {
        "XLA_FLAGS": f"{others} --xla_force_host_platform_device_count={devices}".strip(), "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")])),
    }  # fmt: skip
    command = [sys.executable, "-m", "experiments.benchmarks.scaling", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{devices} devices: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def targets(result: dict[str, Any]) -> list[report.Target]:
    """The aims."""
    words = {"seconds": "time", "bytes": "memory"}
    found = []
    for method, what, axis, limit in LIMITS:
        value = result["growth"][axis]["slopes"][method][what]
        found.append(report.Target(f"{method}: slope of {words[what]} in {axis}", value, limit))
    for split, by_number in result["devices"].items():
        worst = max((cell[method]["difference"] for cell in by_number.values() for method in METHODS), default=None)
        found.append(report.Target(f"{split} over devices: differs from one device by, relative", worst, 1e-5))
    return found


def print_result(result: dict[str, Any]) -> None:
    """Tables, slopes, targets, and what it was measured on."""
    for axis, grown in result["growth"].items():
        rest = ", ".join(f"{name}={size}" for name, size in result["shapes"].items() if name != axis)
        rows = [
            [
                method,
                *(f"{1e3 * cell['seconds']['median']:.1f} / {cell['bytes'] / 2**20:.1f}" for cell in grown[method]),
                f"{grown['slopes'][method]['seconds']:.2f}", f"{grown['slopes'][method]['bytes']:.2f}",
            ]
            for method in METHODS
        ]  # fmt: skip
        columns = ("ms / MiB", *(f"{axis}={size}" for size in grown["sizes"]), "slope of time", "of memory")
        report.print_table(f"{axis} grows; {rest}", columns, rows)
    for split, by_number in result["devices"].items():
        rows = [
            [
                number, *(f"{1e3 * cell[method]['seconds']['median']:.1f}" for method in METHODS),
                *(f"{cell[method]['bytes'] / 2**20:.1f}" for method in METHODS),
                *(f"{cell[method]['difference']:.1e}" for method in METHODS),
            ]
            for number, cell in by_number.items()
        ]  # fmt: skip
        units = ("ms", "MiB a device", "difference")
        columns = ("devices", *(f"{method} {unit}" for unit in units for method in METHODS))
        report.print_table(f"{split} split over forced host devices", columns, rows)
    report.print_targets(targets(result))
    report.print_surroundings(result)


def plot(path: str | Path, result: dict[str, Any]) -> None:
    """Time and memory along each axis."""
    rows: list[list[figures.Panel]] = [[], []]
    for axis, grown in result["growth"].items():
        for row, (what, label, scale) in enumerate((("seconds", "ms", 1e3), ("bytes", "MiB", 2.0**-20))):
            lines = []
            for i, method in enumerate(METHODS):
                values = [cell[what] if what == "bytes" else cell[what]["median"] for cell in grown[method]]
                lines.append(figures.Line(method, grown["sizes"], [scale * value for value in values], colour=i))
            slopes = ", ".join(f"{method} {grown['slopes'][method][what]:.2f}" for method in METHODS)
            name = "time" if what == "seconds" else "memory"
            rows[row].append(figures.Panel(f"{name} in {axis}\nslope: {slopes}", axis, label, lines))
    for split, by_number in result["devices"].items():
        for row, (what, label, scale) in enumerate((("seconds", "ms", 1e3), ("bytes", "MiB a device", 2.0**-20))):
            lines = []
            for i, method in enumerate(METHODS):
                cells = [cell[method][what] for cell in by_number.values()]
                values = [cell if what == "bytes" else cell["median"] for cell in cells]
                lines.append(figures.Line(method, [int(n) for n in by_number], [scale * v for v in values], colour=i))
            rows[row].append(figures.Panel(f"{split} split", "devices (host, same cores)", label, lines))
    shapes = ", ".join(f"{name} = {size}" for name, size in result["shapes"].items())
    figures.draw(path, "Time and memory of the exact Gram and of the sketch", rows, f"Elsewhere {shapes}.")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    for name, size in BASE.items():
        parser.add_argument(f"--base-{name}", type=int, default=size)
    for axis in AXES:
        parser.add_argument(f"--sizes-{axis}", type=int, nargs="+", default=list(SIZES[axis]), metavar=axis)
    parser.add_argument("--chunk", type=int, default=512, help="vocabulary columns held at once")
    parser.add_argument("--ranks", type=int, nargs=2, default=[128, 32], metavar=("R_V", "R_H"))
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=local_path, help="file to write the result to")
    parser.add_argument("--plot", type=local_path, help="png to draw")
    parser.add_argument("--split", choices=SPLITS, help=argparse.SUPPRESS)  # in the processes of --devices
    options = parser.parse_args(arguments)
    given = vars(options)
    base = {name: given[f"base_{name}"] for name in BASE}
    sizes = {axis: given[f"sizes_{axis}"] for axis in AXES}
    if min(*base.values(), *options.ranks, *options.devices, options.chunk, options.repeats) < 1:
        parser.error("sizes, ranks, --chunk, --devices and --repeats must be at least 1")
    if any(len(set(sizes[axis])) < 2 or min(sizes[axis]) < 1 for axis in AXES):
        parser.error("each --sizes needs at least two different positive numbers, for a slope")
    ranks = options.ranks[0], options.ranks[1]
    if options.split:
        found = on_devices(options.split, base, options.chunk, ranks, options.repeats)
        print(json.dumps(found))
        return found
    result: dict[str, Any] = report.surroundings() | {"shapes": base, "chunk": options.chunk, "ranks": options.ranks}
    result["growth"] = growth(base, sizes, options.chunk, ranks, options.repeats)
    passed = [f"--base-{name}={size}" for name, size in base.items()]
    passed += [f"--chunk={options.chunk}", "--ranks", *map(str, options.ranks), f"--repeats={options.repeats}"]
    result["devices"] = {
        split: {str(n): forced(n, [*passed, f"--split={split}"]) for n in options.devices}
        for split in (SPLITS if options.devices else ())
    }
    result["targets"] = [target.record() for target in targets(result)]
    print_result(result)
    if options.json:
        report.write_json(options.json, result)
    if options.plot:
        plot(options.plot, result)
    return result


if __name__ == "__main__":
    main()
