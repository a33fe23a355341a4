"""Runs a part of the study: python -m experiments.study PART --workdir=DIR [--workers=N] [--hours=H] [--dry-run].

PART is rates, contrasts, scaling or exploratory; later ones need the results of earlier ones. Says first how many runs
are missing and how long they take, then makes them side by side, each pinned to a core of its own, and writes
RESULTS/NAME.json for each. A finished run is never repeated; the same command goes on where it was interrupted.
With --hours no run is started that would not be done by then. Exit status 1: a run failed, which its log explains.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.arguments import local_path
from experiments.study import plan
from experiments.study.results import RESULTS, last_accuracy, load

GUESS = 150.0  # seconds of a run on one core, before any has been made


def seconds_of(run: plan.Run, results: Mapping[str, Mapping[str, Any]]) -> float:
    """About how long a run takes: the median of its arm's, else of all that there are."""
    by_arm: dict[str, list[float]] = {}
    for name, result in results.items():
        by_arm.setdefault(plan.parse(name).arm, []).append(result["seconds"])
    everything = [seconds for arm in by_arm.values() for seconds in arm]
    return statistics.median(by_arm.get(run.arm, everything) or [GUESS])


class Workers:
    """Runs side by side: one thread and one core each; the warm start of a seed is made once, by who needs it first."""

    def __init__(
        self, pending: Sequence[plan.Run], options: argparse.Namespace, seconds: Mapping[str, float]
    ) -> None:
        self.pending, self.options, self.seconds = list(pending), options, seconds
        self.failed: list[str] = []
        self.children: set[subprocess.Popen[bytes]] = set()
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._warm = {run.seed: threading.Lock() for run in pending}
        self._end = time.monotonic() + 3600 * options.hours

    def next(self) -> plan.Run | None:
        """The next run that will be done in time."""
        with self._lock:
            if self.ending.is_set() or not self.pending:
                return None
            if time.monotonic() + self.seconds[self.pending[0].name] > self._end:
                return None
            return self.pending.pop(0)

    def work(self, core: int) -> None:
        """Until nothing is left."""
        while (run := self.next()) is not None:
            warm = f"warm-s{run.seed}"
            with self._warm[run.seed]:
                done = (self.options.workdir / warm / "summary.json").exists() or self.child(warm, core)
            if done and self.child(run.name, core):
                print(f"{time.strftime('%H:%M:%S')}  {run.name}  ({len(self.pending)} left)", flush=True)

    def child(self, name: str, core: int) -> bool:
        """One process; False where it failed or was interrupted."""
        log = self.options.workdir / f"{name}.log"
        command = [sys.executable, "-m", "experiments.study.one", name, f"--core={core}"]
        command += [f"--workdir={self.options.workdir}", f"--results={self.options.results}"]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches this process, which passes it on, once
            )
            self.children.add(process)
            if self.ending.is_set():
                process.terminate()
            status = process.wait()
            self.children.discard(process)
        if status and not self.ending.is_set():
            self.failed.append(name)
            print(f"{name} failed with status {status}: {log}", file=sys.stderr, flush=True)
        return status == 0

    def interrupt(self, *_: object) -> None:
        """Ends the children, which save what they have."""
        self.ending.set()
        for process in list(self.children):
            process.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.study", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("part", choices=plan.PARTS)
    parser.add_argument("--workdir", type=local_path, required=True, help="of checkpoints and logs")
    parser.add_argument(
        "--results", type=local_path, default=RESULTS, help=f"of one JSON a run (default {RESULTS})"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="runs side by side")
    parser.add_argument("--hours", type=float, default=24.0, help="no run is started that would end later")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and how long it takes")
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= options.workers <= len(cores):
        parser.error(
            f"--workers must be from 1 to {len(cores)}, the cores of this process, got {options.workers}"
        )
    try:
        results = load(options.results)
        wanted = plan.runs(options.part, {name: last_accuracy(result) for name, result in results.items()})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pending = [run for run in wanted if run.name not in results]
    seconds = {run.name: seconds_of(run, results) for run in pending}
    hours = sum(seconds.values()) / options.workers / 3600
    said = (
        f"{len(wanted)} runs, {len(pending)} missing: about {hours:.1f} hours with {options.workers} workers"
    )
    print(f"{options.part}: {said}", flush=True)
    if options.dry_run:
        print("\n".join(run.name for run in pending))
        return 0
    options.workdir.mkdir(parents=True, exist_ok=True)
    # Runs of an arm compile the same programs.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str((options.workdir / "compiled").absolute())
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    workers = Workers(pending, options, seconds)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, workers.interrupt)
    threads = [threading.Thread(target=workers.work, args=(core,)) for core in cores[: options.workers]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if workers.pending and not workers.ending.is_set():
        print(f"{len(workers.pending)} runs left for the next time", flush=True)
    return 1 if workers.failed or workers.ending.is_set() else 0


if __name__ == "__main__":
    sys.exit(main())
