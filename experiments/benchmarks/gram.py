"""Time and extra memory of every route to the Gram matrix of LM-head features, beside what the LM head itself costs.

    python -m experiments.benchmarks.gram [--cases m16 m64 short memory] [--torch PYTHON] [--json=FILE]

Rows: the exact routes of `geometry.lm_head_gram`, the sketch, dense features by vmap(grad), the LM head's own forward
and backward pass on the same tokens, and the authors' release emulated in PyTorch (`release`, in a process of its own
with as many threads; left out, and said so, without torch). Rows of one case take turns, one run each, so that all see
the same machine. float32, full products.

Memory of a JAX row is what XLA allocates besides the arguments (temporaries and result, from the compiled program's
own `memory_analysis`: exact, no sampling). Of the release: growth of the process's peak resident set.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.arguments import local_path
from experiments.benchmarks import release, report
from salt_jax import geometry, vocab

CASES = {
    "m16": (16, 64, 8192, 256),
    "m64": (64, 64, 8192, 256),
    "short": (64, 4, 8192, 256),  # completions so short that token pairs are cheaper
    "memory": (64, 64, 32768, 512),
}
AUTO, FEATURES, PAIRS = "exact, auto", "exact, features", "exact, pairs"
SHARED = "exact, auto, log-sum-exp given"  # what a train step has: its own forward pass made it
SKETCH, DENSE = "sketch, default ranks", "dense vmap(grad)"
CHUNKED_HEAD, PLAIN_HEAD = "LM head fwd+bwd, chunked", "LM head fwd+bwd, plain softmax"
RELEASE = {form: f"release in torch, grad of {form}" for form in release.FORMS}
EXACT = (AUTO, FEATURES, SHARED, PAIRS, DENSE, *RELEASE.values())  # rows whose K must agree

Arrays = dict[str, jax.Array]


def inputs(m: int, t: int, v: int, h: int) -> Arrays:
    """Hidden states (m, T, H), lm_head (H, V), tokens drawn from the policy (m, T), a full mask, log_normalizer."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (m, t, h))
    lm_head = jax.random.normal(keys[1], (h, v)) * (2.0 / h**0.5)

    def draw(rollout: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jax.random.categorical(rollout[1], rollout[0] @ lm_head)

    targets = jax.lax.map(draw, (hidden, jax.random.split(keys[2], m)))
    normalizer = vocab.token_log_probs(hidden, lm_head, targets).log_normalizer
    mask = jnp.ones((m, t), bool)
    return {"hidden": hidden, "lm_head": lm_head, "targets": targets, "mask": mask, "log_normalizer": normalizer}


def programs() -> dict[str, Callable[[Arrays], Any]]:
    """Row -> function of the arrays, to be jitted."""

    def exact(route: str, shared: bool = False) -> Callable[[Arrays], jax.Array]:
        def run(x: Arrays) -> jax.Array:
            normalizer = x["log_normalizer"] if shared else None
            observed = (x["hidden"], x["lm_head"], x["targets"], x["mask"])
            return geometry.lm_head_gram(*observed, route=route, log_normalizer=normalizer)

        return run

    def sketch(x: Arrays) -> jax.Array:
        observed = (x["hidden"], x["lm_head"], x["targets"], x["mask"])
        return geometry.sketch_gram(geometry.lm_head_sketch(*observed, jax.random.key(1)))

    def dense(x: Arrays) -> jax.Array:
        def loss(lm_head: jax.Array, rollout: tuple[jax.Array, jax.Array]) -> jax.Array:
            hidden, targets = rollout
            log_p = jax.nn.log_softmax(jnp.matmul(hidden, lm_head, precision="highest"))
            return -jnp.take_along_axis(log_p, targets[:, None], axis=1).mean()

        return geometry.per_rollout_gram(loss, x["lm_head"], (x["hidden"], x["targets"]))

    def chunked(x: Arrays) -> Any:
        def loss(hidden: jax.Array, lm_head: jax.Array) -> jax.Array:
            return -vocab.token_log_probs(hidden, lm_head, x["targets"]).log_probs.mean()

        return jax.grad(loss, argnums=(0, 1))(x["hidden"], x["lm_head"])

    def plain(x: Arrays) -> Any:
        def loss(hidden: jax.Array, lm_head: jax.Array) -> jax.Array:
            log_p = jax.nn.log_softmax(hidden.reshape(-1, hidden.shape[-1]) @ lm_head)
            return -jnp.take_along_axis(log_p, x["targets"].reshape(-1, 1), axis=1).mean()

        return jax.grad(loss, argnums=(0, 1))(x["hidden"], x["lm_head"])

    return {
        AUTO: exact("auto"), FEATURES: exact("features"), SHARED: exact("auto", shared=True),
        PAIRS: exact("pairs"), SKETCH: sketch, DENSE: dense, CHUNKED_HEAD: chunked, PLAIN_HEAD: plain,
    }  # fmt: skip


@dataclasses.dataclass
class Row:
    """What was measured of one route: seconds, bytes besides the arguments, K where the row gives one, or why not."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    bytes: int | None = None
    gram: np.ndarray | None = None
    skipped: str = ""
    run: Callable[[], float] | None = None  # one run more; its seconds
    torch: dict[str, Any] | None = None  # its version and threads

    def fits(self, need: int) -> bool:
        """Whether so many bytes are there; says so where they are not."""
        available = report.available_bytes()
        if available is None or need <= 0.9 * available:
            return True
        self.skipped = f"needs {need / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are available"
        return False


def compiled_row(function: Callable[[Arrays], Any], arrays: Arrays) -> Row:
    """A JAX program."""
    row = Row()
    compiled = jax.jit(function).lower(arrays).compile()
    row.bytes = report.extra_bytes(compiled)

    def run() -> float:
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(arrays))
        seconds = time.perf_counter() - start
        if isinstance(result, jax.Array):
            row.gram = np.asarray(result)
        return seconds

    if row.fits(row.bytes):
        row.run = run
    return row


def release_row(arrays: Arrays, form: str, python: str, folder: Path) -> tuple[Row, subprocess.Popen[str]]:
    """The release in a process of its own, which waits for its turns."""
    row, (h, v), m = Row(), arrays["lm_head"].shape, arrays["targets"].shape[0]
    file, result = folder / "inputs.npz", folder / f"gram_{form}.npy"
    if not file.exists():
        names = ("hidden", "lm_head", "targets", "mask")
        np.savez(file, allow_pickle=False, **{name: np.asarray(arrays[name]) for name in names})
    command = [python, release.__file__, str(file), str(result), f"--form={form}", f"--threads={report.cores()}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # its own packages
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )

    def run() -> float:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            child.stdin.write("run\n")
            child.stdin.flush()
            told = json.loads(child.stdout.readline())
        except (OSError, ValueError):  # it ended: it says why
            row.skipped = (child.stderr.read().strip().splitlines() or [f"exit status {child.wait()}"])[-1]
            row.run = None
            return 0.0
        row.gram = np.load(result, allow_pickle=False)
        row.bytes, row.torch = told["bytes"], {"version": told["torch"], "threads": told["threads"]}
        return told["seconds"]

    # Features twice while they are stacked, and logits four times over.
    if row.fits(4 * v * (2 * m * h + 4 * arrays["targets"].size)):
        row.run = run
    return row, child


def take_turns(rows: dict[str, Row], repeats: int, budget: float) -> None:
    """A first run of each row that is not counted, then rounds of one run each, until ``budget`` seconds are spent."""
    for row in rows.values():
        seconds = row.run() if row.run else 0.0
        if seconds > budget / 4:  # that one run is all there is time for
            row.seconds, row.run = [seconds], None
    began = time.perf_counter()
    for _ in range(repeats):
        for row in rows.values():
            if row.run and not (row.seconds and time.perf_counter() - began > budget):
                row.seconds.append(row.run())


def measure_case(
    shape: tuple[int, int, int, int], repeats: int, budget: float, python: str | None
) -> dict[str, Any]:
    """All rows of one case, as JSON."""
    arrays = inputs(*shape)
    rows = {name: compiled_row(function, arrays) for name, function in programs().items()}
    children = []
    with tempfile.TemporaryDirectory() as folder:
        for form, name in RELEASE.items():
            rows[name] = Row(skipped="--no-release")
            if python:
                rows[name], child = release_row(arrays, form, python, Path(folder))
                children.append(child)
        try:
            take_turns(rows, repeats, budget)
        finally:
            for child in children:
                child.kill()
                child.communicate()
    reference = rows[FEATURES].gram
    assert reference is not None
    result: dict[str, Any] = {}
    for name, row in rows.items():
        difference = None
        if row.gram is not None:
            difference = float(np.abs(row.gram - reference).max() / np.abs(reference).max())
        result[name] = {
            "seconds": report.spread(row.seconds) if row.seconds else None,
            "bytes": row.bytes,
            "difference": difference,  # largest of |K - K of the features route|, over the largest |K|
            "skipped": row.skipped or None,
            **({"torch": row.torch} if row.torch else {}),
        }
    m, t, v, h = shape
    shapes = {"m": m, "T": t, "V": v, "H": h, "dense_feature_bytes": 4 * m * v * h}
    exact = [row["difference"] for name, row in result.items() if name in EXACT and row["difference"] is not None]
    return {"shapes": shapes, "rows": result, "exact_difference": max(exact)}


def targets(cases: dict[str, Any]) -> list[report.Target]:
    """The aims, with what was measured."""

    def median(case: str, row: str) -> float | None:
        spread = cases[case]["rows"][row]["seconds"] if case in cases else None
        return spread["median"] if spread else None

    def ratio(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a / b

    found = []
    for case, limit in (("m16", 7.0), ("m64", 20.0)):
        for name in RELEASE.values():
            if case in cases:
                value = ratio(median(case, name), median(case, FEATURES))
                found.append(report.Target(f"{case}: {name} / {FEATURES}", value, limit, at_least=True))
    for case, measured in cases.items():
        for head in (CHUNKED_HEAD, PLAIN_HEAD):
            for row in (AUTO, SHARED):
                found.append(
                    report.Target(f"{case}: {row} / {head}", ratio(median(case, row), median(case, head)), 1.0)
                )
        if case == "memory":
            dense = measured["shapes"]["dense_feature_bytes"]
            for row in (AUTO, FEATURES):
                share = measured["rows"][row]["bytes"] / dense
                found.append(report.Target(f"memory: extra memory of {row} / dense features", share, 0.1))
        found.append(report.Target(f"{case}: exact routes differ by, relative", measured["exact_difference"], 1e-4))
    return found


def print_case(name: str, case: dict[str, Any]) -> None:
    """The table of one case."""
    shapes, head = case["shapes"], case["rows"][CHUNKED_HEAD]["seconds"]
    rows = []
    for row, measured in case["rows"].items():
        seconds, size, difference = measured["seconds"], measured["bytes"], measured["difference"]
        if measured["skipped"] or seconds is None:
            rows.append([row, "left out", "", "", "", ""])
            continue
        over = seconds["median"] / head["median"] if head else float("nan")
        rows.append([
            row, f"{1e3 * seconds['median']:.1f}", f"{1e3 * seconds['min']:.1f} ({seconds['runs']})", f"{over:.2f}",
            f"{size / 2**20:.1f}", "" if difference is None else f"{difference:.1e}",
        ])  # fmt: skip
    report.print_table(
        f"{name}: m={shapes['m']}, T={shapes['T']}, V={shapes['V']}, H={shapes['H']}; dense features "
        f"{shapes['dense_feature_bytes'] / 2**20:.0f} MiB",
        ("route", "median ms", "min ms (runs)", "over chunked head", "extra MiB", "relative difference"),
        rows,
    )
    for row, measured in case["rows"].items():
        if measured["skipped"]:
            print(f"{row} left out: {measured['skipped']}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--cases", nargs="*", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--shape", nargs=4, type=int, action="append", default=[], metavar=("M", "T", "V", "H"))
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each row at most")
    parser.add_argument("--budget", type=float, default=180.0, help="seconds of rounds after which no new run starts")
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="a Python that has torch")
    parser.add_argument("--no-release", action="store_true", help="leave the PyTorch rows out")
    parser.add_argument("--json", type=local_path, help="file to write the result to")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or any(size < 1 for shape in options.shape for size in shape):
        parser.error("--repeats and the sizes of --shape must be at least 1")
    wanted = {name: CASES[name] for name in options.cases}
    wanted |= {"x".join(map(str, shape)): tuple(shape) for shape in options.shape}
    result, cases = report.surroundings(), {}
    for name, shape in wanted.items():
        python = None if options.no_release else options.torch
        cases[name] = measure_case(shape, options.repeats, options.budget, python)
        print_case(name, cases[name])
    kept = targets(cases)
    report.print_targets(kept)
    report.print_surroundings(result)
    result |= {"cases": cases, "targets": [target.record() for target in kept]}
    result["memory"] = "JAX: temporaries and result of the compiled program; torch: growth of the peak resident set"
    if options.json:
        report.write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
