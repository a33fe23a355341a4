"""Ways to break a run: each breaks one that is under way, or its folder, at a random moment."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.fault_runs import Ended, Started, sealed, steps

LIMIT = 600.0  # seconds after which a run counts as hanging


class Place(NamedTuple):
    """Where a fault happens: the run's folder, about how long a whole run takes, its steps between evaluations."""

    folder: Path
    seconds: float
    every: int


Fault = Callable[[Started, Place, random.Random], Ended | None]  # None: the run ended before it could be broken


def kill(run: Started, place: Place, rng: random.Random) -> Ended | None:
    """SIGKILL at any moment: one in four also while the run starts, the others once it has done a step or resumed."""
    wait(run, place, rng)
    return broken(run, signal.SIGKILL)


def wait(run: Started, place: Place, rng: random.Random) -> None:
    """Until a random moment of a run, or its end."""
    begun = 0.0
    if rng.random() > 0.25:
        run.until(lambda: run.printed, LIMIT)
        begun = run.seconds
    moment = begun + rng.uniform(0.0, place.seconds - min(begun, place.seconds / 2))
    run.until(lambda: run.seconds > moment, LIMIT)


def kill_saving(run: Started, place: Place, rng: random.Random) -> Ended | None:
    """SIGKILL while a checkpoint is being written: the first, second or third that is seen."""
    seen: set[Path] = set()
    wanted, moment = rng.randint(1, 3), rng.uniform(0.0, 0.03)

    def saving() -> bool:
        seen.update((place.folder / "checkpoints").glob("*/*.orbax-checkpoint-tmp*"))
        return len(seen) >= wanted

    if not run.until(saving, LIMIT):
        return None
    until = run.seconds + moment  # also later in it, and just after
    run.until(lambda: run.seconds > until, LIMIT)
    return broken(run, signal.SIGKILL)


def broken(run: Started, signum: int) -> Ended | None:
    """Sends a signal, and waits for the end; None where that had come before."""
    if not run.alive:
        return None
    run.signal(signum)
    return run.end()


def kill_evaluating(run: Started, place: Place, rng: random.Random) -> Ended | None:
    """SIGKILL between the record of a step whose evaluation is due and that evaluation."""
    moment = rng.uniform(0.0, 0.3)

    def evaluating() -> bool:
        done = max(steps(place.folder / "metrics.jsonl"), default=0)
        return done > 0 and done % place.every == 0 and done not in steps(place.folder / "evaluations.jsonl")

    if not run.until(evaluating, LIMIT):
        return None
    until = run.seconds + moment
    run.until(lambda: run.seconds > until, LIMIT)
    return broken(run, signal.SIGKILL)


def terminate(run: Started, place: Place, rng: random.Random) -> Ended | None:
    """SIGTERM or SIGINT at any moment, as a scheduler or a person sends it."""
    wait(run, place, rng)
    return broken(run, rng.choice((signal.SIGTERM, signal.SIGINT)))


def corrupt(run: Started, place: Place, rng: random.Random) -> Ended | None:
    """SIGKILL once there are two checkpoints to choose from, then a random file of the newest is damaged."""
    phase = place.folder / "checkpoints" / "train"
    moment = rng.uniform(0.0, place.seconds / 2)

    def two() -> bool:
        count = len(list(phase.glob("*/manifest.json"))) if phase.is_dir() else 0
        return count >= 2 and run.seconds > moment

    if not run.until(two, LIMIT):
        return None
    ended = broken(run, signal.SIGKILL)
    if ended is not None and len(list(phase.glob("*/manifest.json"))) >= 2:
        damage(rng.choice(sorted(p for p in (phase / str(sealed(phase))).rglob("*") if p.is_file())), rng)
    return ended


def damage(path: Path, rng: random.Random) -> str:
    """Deletes a file, cuts it, adds to it, or turns one of its bits; says which."""
    size = path.stat().st_size
    how = rng.choice(("deleted", "cut", "longer", "flipped") if size else ("deleted", "longer"))
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        os.truncate(path, rng.randrange(size))
    elif how == "longer":
        with path.open("ab") as file:
            file.write(rng.randbytes(rng.randint(1, 64)))
    else:
        with path.open("r+b") as file:
            at = rng.randrange(size)
            file.seek(at)
            byte = file.read(1)[0] ^ (1 << rng.randrange(8))
            file.seek(at)
            file.write(bytes([byte]))
    return how


def kill_grader(run: Started, place: Place, rng: random.Random) -> Ended | None:
    """SIGKILL for a random grading worker; the run goes on without that reward, and with a new worker."""
    moment = rng.uniform(0.0, place.seconds)
    if not run.until(lambda: run.seconds > moment and bool(workers(run)), LIMIT):
        return None
    for pid in rng.sample(sorted(workers(run)), 1):
        os.kill(pid, signal.SIGKILL)
    return run.end()


def workers(run: Started) -> list[int]:
    """Process ids of the run's grading workers."""
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
    if not children.exists():
        return []
    found = []
    for pid in children.read_text().split():
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and b"salt_jax.graders.worker" in command.read_bytes():
            found.append(int(pid))
    return found


KINDS: dict[str, Fault] = {
    "kill": kill,
    "kill_saving": kill_saving,
    "kill_evaluating": kill_evaluating,
    "terminate": terminate,
    "corrupt": corrupt,
    "kill_grader": kill_grader,
}  # 'full_disk' has a folder of its own: ``full_disk``


class SmallDisk:
    """A tmpfs of some MiB on a folder; OSError where this process may not mount one.

    Args:
      folder: made if absent.
      mib: its size.
    """

    def __init__(self, folder: Path, mib: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.filler = folder, folder / "filler"
        mount = shutil.which("mount")
        if mount is None:
            raise OSError("there is no mount command")
        command = [mount, "-t", "tmpfs", "-o", f"size={mib}m", "salt-jax-faults", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip() or "mount failed")

    def leave(self, free: int) -> None:
        """Fills it up to so many free bytes."""
        there = shutil.disk_usage(self.folder).free
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(there - free, 1))

    def clear(self) -> None:
        """Gives the space back."""
        self.filler.unlink()

    def close(self) -> None:
        """Unmounts it."""
        subprocess.run([shutil.which("umount") or "umount", str(self.folder)], check=True)
