"""Would the tests notice? ``make mutants`` breaks the code, one line at a time, and runs the tests that must fail then.

    python -m tests.mutants [-n WORKERS] [--only TEXT]

The mutants are those of drawn.toml, drawn by draw.py, and of written.toml; entries.py says what an entry is. All of it
happens in copies of the checkout. The command fails where a mutant survives, a text is not there once, or a named test
fails without any mutation.
"""

from __future__ import annotations

import argparse
import compileall
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.entries import LISTS, Mutant, mutated, places, read

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 90  # seconds for the tests of one mutant: a loop without end is noticed, too
NOTICED = (1, 2, None)  # pytest's exit status: a test failed, a module cannot be imported; None: time was up


def copy_checkout(to: Path) -> None:
    """What git tracks or would; compiled files are held to be valid by content, for two writes may have one time."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in (name for name in names if (REPOSITORY / name).is_file()):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, to / name)
    compileall.compile_dir(to / "salt_jax", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)


def run_tests(tests: Iterable[str], root: Path, programs: Path, limit: float | None = None) -> tuple[int | None, str]:
    """Pytest's exit status, None where time was up; and what it printed."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs)}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"  # mutants share most of what they compile
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests], cwd=root,
        env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        said = process.communicate(timeout=limit)[0]
        return process.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def survivors_of(todo: list[Mutant], folder: Path, workers: int) -> list[Mutant]:
    """Runs the tests of every mutant, in so many copies of folder/0 at once."""
    left, taking, survivors = iter(todo), threading.Lock(), list[Mutant]()

    def work(root: Path) -> None:
        found = places(root)
        while True:
            with taking:
                mutant = next(left, None)
            if mutant is None:
                return
            (path, text), began = mutated(mutant, found), time.monotonic()
            before = path.read_text()
            path.write_text(text)
            status, said = run_tests(mutant.tests, root, folder / "programs", LIMIT)
            path.write_text(before)
            if status not in NOTICED:
                survivors.append(mutant)
            word = "killed  " if status in NOTICED else "SURVIVES" if status == 0 else f"{said}\nstatus {status}"
            print(f"{word} {time.monotonic() - began:4.0f} s  {mutant.label}", flush=True)

    roots = [folder / str(i) for i in range(workers)]
    for root in roots[1:]:
        shutil.copytree(roots[0], root)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, roots))
    return survivors


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, default=2, metavar="WORKERS", help="copies that are worked in at once")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose line has this in it: 'drawn 7 '")
    options = parser.parse_args()
    mutants = [mutant for name in LISTS for mutant in read(name) if options.only in mutant.label]
    todo = [mutant for mutant in mutants if not mutant.equivalent]
    with tempfile.TemporaryDirectory(prefix="salt-jax-mutants-") as name:
        folder, began = Path(name), time.monotonic()
        copy_checkout(folder / "0")
        found = places(folder / "0")
        for mutant in mutants:
            mutated(mutant, found)
        if not todo:
            sys.exit("error: no mutant to run")
        tests = sorted({test for mutant in todo for test in mutant.tests})
        status, said = run_tests(tests, folder / "0", folder / "programs")
        if status != 0:
            sys.exit(f"{said}\nerror: the named tests must pass before anything is broken")
        print(f"{len(tests)} tests pass without mutation, in {time.monotonic() - began:.0f} s", flush=True)
        survivors = survivors_of(todo, folder, options.n)
    for name in LISTS:
        run, equivalent = (sum(m.of == name and bool(m.equivalent) == same for m in mutants) for same in (False, True))
        lost = sum(mutant.of == name for mutant in survivors)
        print(f"{name}: {run + equivalent} mutants, {run - lost} killed, {equivalent} equivalent, {lost} survive")
    if survivors:
        sys.exit("\n".join(["error: no test notices", *(mutant.label for mutant in survivors)]))


if __name__ == "__main__":
    main()
