"""What an accelerator says of this project in a few minutes: one command, stages in order of worth, one table.

    python -m experiments.accelerator --out DIR [--budget 360] [--stages numerics step ...] [--tiny] [--resume FILE]

Each stage runs in a process of its own and has a share of what is left of the budget. An exception, a crash or a stage
past its share is a row of the table, and the other stages go on with the memory of the device to themselves.
DIR/accelerator.json is written anew after every row, DIR/accelerator.md and the same table on the terminal at the end.
``--resume`` takes such a JSON and measures what has no number in it. ``--tiny``: small shapes, to rehearse on a CPU.

Exit status: 0 where every asked stage came to its end and each of its rows has a number, 1 otherwise.

This file imports nothing of JAX: the process that waits must not hold the device. What is measured is in the other
files of this folder. Needs jax, flax, optax, orbax, numpy, rich and ml_collections, and a checkout; no data sets.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from experiments.accelerator.rows import Row, Setting, one_line
from experiments.arguments import local_path

MEMORY_SHARE = "0.92"  # of the device that JAX takes at once: more leaves cuDNN and cuBLAS no room
GRACE = 5.0  # seconds that a process has to end, once its stage has


Measure = Callable[[Setting], Iterator[Any]]  # yields rows, and once a dict: what they were measured on


class Stage(NamedTuple):
    """How a stage is measured, its part of the time, and what XLA is told besides (XLA_FLAGS)."""

    measure: Measure
    weight: float
    flags: str = ""


@dataclasses.dataclass
class Record:
    """What became of a stage: its rows, why it ended early ('' where it did not), seconds, what it was measured on."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    error: str = "not run"
    seconds: float = 0.0
    surroundings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether it came to its end and every row has a number."""
        return not self.error and bool(self.rows) and all(row.measured for row in self.rows)

    def add(self, row: Row) -> None:
        """Adds a row, in the place of one of the same name."""
        self.rows = [old for old in self.rows if old.what != row.what] + [row]


def _measured(name: str, setting: Setting) -> Iterator[Any]:
    """The rows of a stage of this folder, with what they were measured on."""
    import jax  # in the stage's own process only

    from experiments.accelerator import learning, numerics, speed, study
    from experiments.benchmarks import report

    if jax.default_backend() == "cpu" and not setting.tiny:
        raise RuntimeError("there is no accelerator here: on a CPU the command needs --tiny")
    spent: list[float] = []

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("/backend_compile_duration"):
            spent.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    yield report.surroundings()
    yield from {
        "ceilings": speed.ceilings, "numerics": numerics.numerics, "step": speed.step, "geometry": speed.geometry_speed,
        "decode": speed.decode, "learning": learning.learning,
        "study": study.study,
    }[name](setting)  # fmt: skip
    note = f"seconds, {sum(spent):.0f} s in all, some at the same time; {len(spent)} with small ones"
    yield Row("programs that compile for over a second", sum(each > 1.0 for each in spent), note=note)


STAGES = {
    "ceilings": Stage(functools.partial(_measured, "ceilings"), 30),
    "numerics": Stage(functools.partial(_measured, "numerics"), 120),
    "step": Stage(functools.partial(_measured, "step"), 130),
    "geometry": Stage(functools.partial(_measured, "geometry"), 60),
    "decode": Stage(functools.partial(_measured, "decode"), 35),
    "learning": Stage(functools.partial(_measured, "learning"), 25),
    # The same training under the flag that takes atomic additions out of XLA's GPU kernels.
    "deterministic": Stage(functools.partial(_measured, "learning"), 15, "--xla_gpu_deterministic_ops=true"),
    "study": Stage(functools.partial(_measured, "study"), 60),  # last: with what is left
}


def _work(stage: Stage, setting: Setting, told: Connection) -> None:
    """The stage's own process: sends what it yields, then None, or the line of its exception."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {stage.flags}".strip()
    try:
        for said in stage.measure(setting):
            told.send(said)
        told.send(None)
    except Exception as error:
        traceback.print_exc()
        told.send(one_line(error))


def run_stage(
    name: str, stage: Stage, setting: Setting, seconds: float, record: Record, save: Callable[[], None]
) -> None:
    """Runs a stage in a process of its own for at most so many seconds; ``record`` grows, ``save`` after each row."""
    context = multiprocessing.get_context("forkserver")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(stage, setting, told), daemon=True)
    began = time.monotonic()
    process.start()
    told.close()
    said: Any = ()
    record.error = ""
    record.rows = [row for row in record.rows if row.measured]
    while said is not None and not record.error:
        if not heard.poll(max(0.0, began + seconds - time.monotonic())):
            record.error = f"stopped after {seconds:.0f} s, its share of the budget"
            break
        try:
            said = heard.recv()
        except EOFError:
            process.join(GRACE)
            record.error = f"its process ended with exit status {process.exitcode}"
            break
        if isinstance(said, str):
            record.error = said
        elif isinstance(said, dict):
            record.surroundings = said
        elif said is not None:
            record.add(said)
            print(f"[{time.monotonic() - began:6.1f} s] {name}: {' | '.join(cells(said)).strip(' |')}", flush=True)
            save()
    process.join(0.0 if record.error else GRACE)
    process.kill()  # by now it holds the device's memory for nothing
    process.join()
    record.seconds = time.monotonic() - began


def run(
    stages: Mapping[str, Stage], asked: Sequence[str], records: dict[str, Record], *, budget: float, tiny: bool,
    save: Callable[[], None],
) -> None:
    """Runs what is asked and not whole yet, each stage within its share of what is left of ``budget`` seconds."""
    end = time.monotonic() + budget
    todo = [name for name in stages if name in asked and not records.get(name, Record()).whole]
    for i, name in enumerate(todo):
        left = end - time.monotonic()
        share = left * stages[name].weight / sum(stages[other].weight for other in todo[i:])
        record = records.setdefault(name, Record())
        if share < 1.0:
            record.error = "not run: nothing is left of the budget"
        else:
            print(f"{name}: {share:.0f} s of {left:.0f} s", flush=True)
            known = {(of, row.what): row.value for of in records for row in records[of].rows if row.measured}
            run_stage(name, stages[name], Setting(tiny, known, share), share, record, save)  # type: ignore[arg-type]
        if record.error:
            print(f"{name}: {record.error}", flush=True)
        save()


COLUMNS = ("what", "value", "aim", "met", "compile s", "run s", "note")


def cells(row: Row) -> list[str]:
    """A row as the cells of the table."""
    number = lambda x: "" if x is None else f"{x:.3g}" if abs(x) < 1e3 else f"{x:,.0f}"
    aim = "" if row.aim is None else f"{'≥' if row.at_least else '≤'} {number(row.aim)}"
    value = f"{number(row.value)} {row.unit}".strip() if row.measured else "no number"
    return [row.what, value, aim, row.verdict, number(row.compile), number(row.run), row.note]


def table(records: Mapping[str, Record]) -> str:
    """The Markdown table of all stages, and under it what they were measured on."""
    lines = ["| stage | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, record in records.items():
        lines += [f"| {name} | " + " | ".join(cells(row)) + " |" for row in record.rows]
        if record.error:
            lines.append(f"| {name} | the stage | no number | | NO | | | {record.error} |")
    places: dict[str, list[str]] = {}
    for name, record in records.items():
        said = record.surroundings
        if said:
            flat = {**said["hardware"], **said["versions"], **{k: v for k, v in said["settings"].items() if v}}
            flat.pop("load_average", None)
            place = f"{said['date'][:10]}, commit {said['commit']}: {', '.join(f'{k} {v}' for k, v in flat.items())}"
            places.setdefault(place, []).append(name)
    for place, names in places.items():
        lines += ["", f"{', '.join(names)}: {place}"]
    return "\n".join(lines)


def load(file: Path) -> dict[str, Record]:
    """The records of an earlier JSON."""
    found = json.loads(file.read_text())["stages"]
    return {name: Record(**record | {"rows": [Row(**row) for row in record["rows"]]}) for name, record in found.items()}


def write(folder: Path, records: Mapping[str, Record], command: Sequence[str]) -> None:
    """DIR/accelerator.json, whole or not at all."""
    stages = {name: dataclasses.asdict(record) for name, record in records.items()}
    values = {"command": list(command), "stages": stages}
    part = folder / "accelerator.json.part"
    part.write_text(json.dumps(values, indent=1) + "\n")
    part.replace(folder / "accelerator.json")


def main(arguments: Sequence[str] | None = None, stages: Mapping[str, Stage] = STAGES) -> int:
    """Command line; ``stages`` replaces what there is to measure (tests)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="for accelerator.json and .md")
    parser.add_argument("--budget", type=float, default=360.0, help="seconds for all stages together")
    parser.add_argument("--stages", nargs="+", choices=tuple(stages), default=list(stages), help="which, in any order")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a rehearsal on a CPU")
    parser.add_argument("--resume", type=local_path, metavar="FILE", help="an earlier run; what it lacks is measured")
    options = parser.parse_args(arguments)
    if not options.budget > 0:
        parser.error(f"--budget must be > 0 seconds, got {options.budget}")
    try:
        records = load(options.resume) if options.resume else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"--resume {options.resume} cannot be read: {one_line(error)}")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY_SHARE)
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # compile seconds are measured
    command = list(sys.argv if arguments is None else arguments)
    save = lambda: write(options.out, records, command)
    if stages is STAGES:  # imported once, for all of them
        folder = "experiments.accelerator"
        multiprocessing.get_context("forkserver").set_forkserver_preload([f"{folder}.numerics", f"{folder}.study"])
    run(stages, options.stages, records, budget=options.budget, tiny=options.tiny, save=save)
    save()
    found = table(records)
    (options.out / "accelerator.md").write_text(found + "\n")
    print(found, flush=True)
    return 0 if all(name in records and records[name].whole for name in options.stages) else 1

