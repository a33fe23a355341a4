"""Breaks runs at random: python -m experiments.fault_campaign --config=FILE --workdir=DIR [--trials=N] [--kinds=A,B].

First the run is made once undisturbed (DIR/reference). Then every trial starts or resumes a run like it and breaks it
in one of --kinds; a run that reaches its end is compared with the reference bit for bit, and the next trial begins a
new one. Prints one line a kind and writes DIR/campaign.json. Exit status 1 if a resume failed, a bit differed, more
than config.checkpoint.every steps were lost where that is promised, or an exception went unhandled.

    kill, kill_saving, kill_evaluating   SIGKILL at any moment, during a save, during an evaluation
    terminate                            SIGTERM or SIGINT: saved, status 143 or 130, nothing lost
    corrupt                              SIGKILL, then a random file of the newest checkpoint is damaged
    full_disk                            the folder is on a tmpfs with random room left; needs the right to mount
    kill_grader                          a grading worker dies; only for tasks that are graded in workers
"""

from __future__ import annotations

import collections
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.fault_kinds import KINDS, LIMIT, Place, SmallDisk
from experiments.fault_runs import Ended, Started, differences, fork_server, lost
from salt_jax.run.workdir import write_atomically
from salt_jax.spec import ConfigError

TRIALS = flags.DEFINE_integer("trials", 20, "Faults to inject.", lower_bound=1)
KINDS_FLAG = flags.DEFINE_list("kinds", ["kill"], f"Out of {', '.join(KINDS)}, full_disk; they take turns.")
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.", lower_bound=0)

BROKEN = {"terminate": (143, 130)}  # exit status of a run that was broken; else -9, and what a full disk gives
REPORT = "campaign.json"


class Campaign:
    """Runs, breaks and compares.

    Args:
      arguments: of the command, without --workdir.
      folder: of the campaign.
      every: config.checkpoint.every and config.evaluation.every.
      seed: of the moments.
      console: where each trial is told.
    """

    def __init__(
        self, arguments: list[str], folder: Path, every: tuple[int, int], seed: int, console: Console
    ) -> None:
        self.arguments, self.folder, self.console = arguments, folder, console
        self.every, self.evaluations = every
        self.rng, self.context = random.Random(seed), fork_server()
        self.trials: list[dict[str, Any]] = []
        self.runs = 0  # folders begun
        self.current: Path | None = None  # an unfinished run, to be resumed
        self.seconds = 0.0

    @property
    def reference(self) -> Path:
        """The undisturbed run."""
        return self.folder / "reference"

    def start(self, folder: Path) -> Started:
        """Starts or resumes a run."""
        return Started(self.context, self.arguments, folder, folder.with_suffix(".log"))

    def make_reference(self) -> None:
        """The undisturbed run; ConfigError with its last line where it fails."""
        ended = self.start(self.reference).end(LIMIT)
        if ended.status != 0:
            last = (ended.text.strip().splitlines() or ["nothing was printed"])[-1]
            raise ConfigError(f"the undisturbed run ended with status {ended.status}: {last}")
        timed = self.start(self.folder / "timed")  # what it compiles is cached now, where a cache is set
        ended = timed.end(LIMIT)
        self.seconds = 0.8 * timed.seconds  # a resumed run has less to do
        self.judge("reference", None, ended, self.folder / "timed")

    def note(self, kind: str, **found: Any) -> dict[str, Any]:
        """Keeps a trial and tells it in a line."""
        row = {"trial": len(self.trials), "kind": kind, "run": str(self.current and self.current.name)} | found
        self.trials.append(row)
        self.console.print("  ".join(f"{key} {value}" for key, value in row.items()), highlight=False, soft_wrap=True)
        return row

    def judge(self, kind: str, row: dict[str, Any] | None, ended: Ended, folder: Path) -> None:
        """Looks at a run that went to its end, and removes it where nothing is wrong with it."""
        row = self.note(kind) if row is None else row
        row["tracebacks"] = row.get("tracebacks", 0) + ended.tracebacks
        if ended.status != 0:
            row["failed"] = (ended.text.strip().splitlines() or [""])[-1]
            return
        if kind != "kill_grader":  # a reward is missing: another run, not a broken one
            row["differs"] = differences(self.reference, folder)
        if not row.get("differs"):
            shutil.rmtree(folder)

    def trial(self, kind: str) -> None:
        """Breaks a run once; runs that end before they are broken are compared, and others begun in their place."""
        while True:
            if self.current is None:
                self.runs += 1
                self.current = self.folder / f"run{self.runs}"
            run = self.start(self.current)
            ended = KINDS[kind](run, Place(self.current, self.seconds, self.evaluations), self.rng)
            whole = ended is None or (ended.status == 0 and kind != "kill_grader")
            if not whole:
                break
            self.judge("finished", None, ended or run.end(LIMIT), self.current)
            self.current = None
        assert ended is not None
        allowed = BROKEN.get(kind, (0,) if kind == "kill_grader" else (-9,))
        row = self.note(kind, status=ended.status, resumed=dict(ended.resumed), lost=lost(self.current))
        row["tracebacks"] = ended.tracebacks
        outside = not (self.current / "checkpoints").exists() or (self.current / "summary.json").exists()
        early = ended.status in (-15, -2, 130) and outside
        if ended.status not in allowed and not early:  # before a run begins and after it, a signal ends Python at once
            row["failed"] = (ended.text.strip().splitlines() or [""])[-1]
        if kind == "kill_grader":
            self.judge(kind, row, ended, self.current)
            self.current = None

    def full_disk(self) -> None:
        """A run on a small disk stops with one line; given room, it goes on to the reference's end."""
        self.finish()
        self.runs += 1
        self.current = self.folder / f"run{self.runs}"
        size = sum(path.stat().st_size for path in self.reference.rglob("*") if path.is_file())
        disk = SmallDisk(self.current, max(4 * size >> 20, 64))
        try:
            inside = self.current / "run"
            free = self.rng.choice((0, self.rng.randrange(1 << 16), self.rng.randrange(size)))
            disk.leave(free)
            log = self.current.with_suffix(".log")
            ended = Started(self.context, self.arguments, inside, log).end(LIMIT)
            row = self.note("full_disk", free=free, status=ended.status, lost=lost(inside))
            row["tracebacks"] = ended.tracebacks
            lines = [line for line in ended.text.splitlines() if line.startswith("error: ")]
            if ended.status not in (0, 1, 2) or (ended.status and len(lines) != 1):
                row["failed"] = (ended.text.strip().splitlines() or [""])[-1]
            row["said"] = lines[-1:] or None
            if ended.status:  # the same command while it is still full: one line again
                still = Started(self.context, self.arguments, inside, log).end(LIMIT)
                row["tracebacks"] += still.tracebacks
                if still.status not in (0, 1, 2):
                    row["failed"] = (still.text.strip().splitlines() or [""])[-1]
            disk.clear()
            again = Started(self.context, self.arguments, inside, log).end(LIMIT)
            self.judge("full_disk", row, again, inside)
        finally:
            disk.close()
            self.current = None

    def finish(self) -> None:
        """Lets the run in hand go to its end."""
        if self.current is not None:
            self.judge("finished", None, self.start(self.current).end(LIMIT), self.current)
            self.current = None

    def wrong(self, row: dict[str, Any]) -> bool:
        """Whether a trial broke a promise."""
        promised = {"kill": self.every, "kill_saving": self.every, "kill_evaluating": self.every, "terminate": 0}
        too_many = row.get("lost", 0) > promised.get(row["kind"], sys.maxsize)
        return bool(row.get("failed") or row.get("differs") or row.get("tracebacks") or too_many)


def summary(campaign: Campaign) -> Table:
    """One line a kind."""
    table = Table("kind", "trials", "lost steps: mean", "most", "failed", "runs that differ", "tracebacks")
    kinds: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in campaign.trials:
        kinds[row["kind"]].append(row)
    for kind, rows in kinds.items():
        gone = [row["lost"] for row in rows if "lost" in row]
        mean, most = (f"{sum(gone) / len(gone):.2f}", str(max(gone))) if gone else ("-", "-")
        counts = (sum(bool(row.get(key)) for row in rows) for key in ("failed", "differs"))
        printed = sum(row.get("tracebacks", 0) for row in rows)
        table.add_row(kind, str(len(rows)), mean, most, *map(str, counts), str(printed))
    return table


def main() -> None:
    """Makes the reference, injects the faults, prints and writes what came of them."""
    config, folder, console = cli.CONFIG.value, Path(str(cli.WORKDIR.value)).absolute(), Console(width=140)
    kinds = KINDS_FLAG.value or [""]
    for kind in kinds:
        if kind not in {*KINDS, "full_disk"}:
            raise ConfigError(f"--kinds={kind} is unknown; allowed: {', '.join(KINDS)}, full_disk")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--workdir={folder} is not empty; name another folder")
    arguments = [a for a in sys.argv[1:] if a.lstrip("-").startswith("config")]
    if not all("=" in argument for argument in arguments):
        raise ConfigError("write --config=FILE and --config.KEY=VALUE with an equals sign")
    folder.mkdir(parents=True, exist_ok=True)
    every = config.checkpoint.every, config.evaluation.every or config.steps
    campaign = Campaign(arguments, folder, every, SEED.value, console)
    began = time.monotonic()
    campaign.make_reference()
    for number in range(TRIALS.value):
        kind = kinds[number % len(kinds)]
        campaign.full_disk() if kind == "full_disk" else campaign.trial(kind)
    campaign.finish()
    bad = [row for row in campaign.trials if campaign.wrong(row)]
    report = {
        "arguments": arguments, "trials": campaign.trials, "wrong": len(bad), "seconds": time.monotonic() - began,
        "reference_seconds": campaign.seconds,
    }  # fmt: skip
    write_atomically(folder / REPORT, json.dumps(report, indent=2) + "\n")
    console.print(summary(campaign))
    console.print(f"{len(bad)} trials broke a promise; all of them: {folder / REPORT}", highlight=False, soft_wrap=True)
    if bad:
        raise CampaignError(f"{len(bad)} of {len(campaign.trials)} trials broke a promise, the first: {bad[0]}")


class CampaignError(RuntimeError):
    """A fault did what it must not; the message holds the first trial."""


if __name__ == "__main__":
    try:
        sys.exit(cli.run(main, resumes=False))
    except CampaignError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(cli.STOPPED)
