"""What a sketch loses: K, PR, n_eff, α and a′ from `lm_head_sketch` against the exact Gram, as functions of its ranks.

    python -m experiments.benchmarks.sketch_error [--json=FILE] [--plot=docs/sketch_error.png]

Real rollouts: mini-batches of configs/arithmetic.py (m = 512, V = 17, H = 96) after its warm start and after more steps
of GRPO, by `harvest`, or read from the files it wrote (--data). Synthetic: m = 64 rollouts of up to 16 or 64 tokens,
V = 8192, H = 256, with hidden states whose spectrum falls off, one direction common to all and one to each group, and
tokens drawn from the policy.

Each pair of ranks is tried with several keys; the worst key counts. Beside the library's sketch stands the plain one,
random signs alone on both sides, E[A Aᵀ] = K as well. A rank as large as its dimension projects nothing.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from configs import arithmetic
from experiments.arguments import local_path
from experiments.benchmarks import figures, report
from experiments.benchmarks.harvest import NAMES, Observed, harvest
from salt_jax import geometry, salt
from salt_jax.geometry.sketch import DEFAULT_RANK_HIDDEN, DEFAULT_RANK_VOCAB

RANKS_VOCAB, RANKS_HIDDEN = (8, 12, 128, 256, 512, 1024), (16, 32, 64, 96, 128)
SYNTHETIC = ((64, 16, 8192, 256), (64, 64, 8192, 256))  # more tokens than the kept columns cover in the second
SKETCH, SIGNS = "sketch", "signs alone"
PR_LIMIT, ALPHA_LIMIT, COSINE_LIMIT = 0.02, 0.02, 0.995

Arrays = dict[str, jax.Array]


def synthetic(m: int, t: int, v: int, h: int, *, groups: int = 8, seed: int = 0) -> Observed:
    """Rollouts with anisotropic hidden states, a Zipf-like policy of about two nats, tokens drawn from it."""
    rng = np.random.default_rng(seed)
    groups = groups if m % groups == 0 and m > groups else 1
    spectrum = 1.0 / (1.0 + np.arange(h))
    directions, _ = np.linalg.qr(rng.standard_normal((h, h)))
    shared = rng.standard_normal((groups, 1, h)).repeat(m // groups, axis=0)
    hidden = (rng.standard_normal((m, t, h)) + 0.7 * shared) * (spectrum / np.linalg.norm(spectrum))
    hidden = hidden @ directions.T + 0.5 * rng.standard_normal(h) / h**0.5
    hidden *= h**0.5 / np.linalg.norm(hidden, axis=-1, keepdims=True)
    common = hidden.mean((0, 1))
    common /= np.linalg.norm(common)
    # The common direction carries the unigram frequencies, the others what depends on the context.
    zipf = -np.log1p(rng.permutation(v))
    lm_head = 5.0 / h**0.5 * rng.standard_normal((h, v))
    lm_head += np.outer(common, zipf / (hidden @ common).mean() - common @ lm_head)
    # The greatest of logit + Gumbel noise is drawn from the softmax; rollout by rollout, to hold little.
    targets = np.stack([np.argmax(one @ lm_head + rng.gumbel(size=(t, v)), axis=-1) for one in hidden])
    mask = np.arange(t)[None] < rng.integers(max(t // 2, 1), t + 1, (m, 1))
    rewards = (rng.random((groups, m // groups)) < 0.4).astype(float)
    advantages = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-6)
    floats = {"hidden": hidden, "lm_head": lm_head, "advantages": advantages.reshape(-1)}
    whole = {"targets": targets.astype(np.int32), "mask": mask}
    return {name: array.astype(np.float32) for name, array in floats.items()} | whole


@functools.partial(jax.jit, static_argnums=(2, 3))
def sketched_gram(x: Arrays, key: jax.Array, rank_vocab: int, rank_hidden: int) -> jax.Array:
    """K̂ of the library's sketch."""
    features = geometry.lm_head_sketch(
        x["hidden"], x["lm_head"], x["targets"], x["mask"], key, rank_vocab=rank_vocab, rank_hidden=rank_hidden
    )
    return geometry.sketch_gram(features)


@functools.partial(jax.jit, static_argnums=(2, 3))
def signs_gram(x: Arrays, key: jax.Array, rank_vocab: int, rank_hidden: int) -> jax.Array:
    """K̂ of random signs on both sides, with no (m, V, H) array."""
    h, v = x["lm_head"].shape
    weight_mxT = x["mask"] / jnp.maximum(x["mask"].sum(1, keepdims=True), 1)
    keys = jax.random.split(key)

    def projection(key: jax.Array, n: int, rank: int) -> jax.Array:
        return jnp.eye(n) if rank >= n else jax.random.rademacher(key, (n, rank), jnp.float32) / rank**0.5

    delta = jax.nn.softmax(x["hidden"] @ x["lm_head"]) - jax.nn.one_hot(x["targets"], v)
    delta = (delta * weight_mxT[:, :, None]) @ projection(keys[0], v, rank_vocab)
    hidden = x["hidden"] @ projection(keys[1], h, rank_hidden)
    return geometry.sketch_gram(jnp.einsum("mtv,mth->mvh", delta, hidden).reshape(len(delta), -1))


@jax.jit
def compare(gram: jax.Array, estimate: jax.Array, advantages: jax.Array) -> dict[str, jax.Array]:
    """Errors of an estimate: of K (Frobenius) and PR relative, of n_eff and α absolute, and cosine(a′ of both)."""
    exact, found = (salt.reweight(k, advantages, salt.SaltConfig()) for k in (gram, estimate))
    norms = jnp.linalg.norm(exact.advantages) * jnp.linalg.norm(found.advantages)
    return {
        "gram": jnp.linalg.norm(estimate - gram) / jnp.linalg.norm(gram),
        "participation_ratio": found.participation_ratio / exact.participation_ratio - 1,
        "n_eff": found.n_eff - exact.n_eff,
        "alpha": found.alpha - exact.alpha,
        "cosine": jnp.vdot(exact.advantages, found.advantages) / norms,
    }


def clipped(ranks: Sequence[int], dimension: int) -> list[int]:
    """Distinct ranks, ascending; all that reach the dimension are the dimension.

    Example:
      >>> clipped([8, 64, 128], 17)
      [8, 17]
    """
    return sorted({min(rank, dimension) for rank in ranks})


def measure_case(observed: Observed, ranks: tuple[Sequence[int], Sequence[int]], num_keys: int) -> dict[str, Any]:
    """Every pair of ranks of one mini-batch, by both methods."""
    x = {name: jnp.asarray(value) for name, value in observed.items()}
    gram = geometry.lm_head_gram(x["hidden"], x["lm_head"], x["targets"], x["mask"], route="features")
    exact = salt.reweight(gram, x["advantages"], salt.SaltConfig())
    (m, t, h), v = x["hidden"].shape, x["lm_head"].shape[1]
    methods: dict[str, Callable[..., jax.Array]] = {SKETCH: sketched_gram, SIGNS: signs_gram}
    rows = []
    for method, estimate in methods.items():
        for rank_vocab in clipped(ranks[0], v):
            for rank_hidden in clipped(ranks[1], h):
                estimates = (estimate(x, jax.random.key(i), rank_vocab, rank_hidden) for i in range(num_keys))
                seen = [jax.device_get(compare(gram, found, x["advantages"])) for found in estimates]
                column = {name: [float(one[name]) for one in seen] for name in seen[0]}
                worst = {name: max(map(abs, values)) for name, values in column.items() if name != "cosine"}
                worst["cosine"] = min(column["cosine"])
                within = worst["participation_ratio"] <= PR_LIMIT and worst["alpha"] <= ALPHA_LIMIT
                rows.append({
                    "method": method, "rank_vocab": rank_vocab, "rank_hidden": rank_hidden,
                    "numbers": rank_vocab * rank_hidden, "worst": worst,
                    "mean": {name: statistics.mean(values) for name, values in column.items()},
                    "within": bool(within and worst["cosine"] >= COSINE_LIMIT),
                })  # fmt: skip
    return {
        "shapes": {"m": m, "T": t, "V": v, "H": h, "tokens": int(np.sum(observed["mask"]))},
        "exact": {
            "participation_ratio": float(exact.participation_ratio), "k": int(exact.k), "n_eff": float(exact.n_eff),
            "alpha": float(exact.alpha), "eigengap": float(exact.eigengap),
        },
        "rows": rows,
    }  # fmt: skip


def targets(cases: dict[str, Any]) -> list[report.Target]:
    """The aims for the default ranks, at the worst key."""
    found = []
    for name, case in cases.items():
        v, h = case["shapes"]["V"], case["shapes"]["H"]
        default = min(DEFAULT_RANK_VOCAB, v), min(DEFAULT_RANK_HIDDEN, h)
        for row in case["rows"]:
            if row["method"] == SKETCH and (row["rank_vocab"], row["rank_hidden"]) == default:
                what, worst = f"{name}, default ranks {default[0]} x {default[1]}", row["worst"]
                found.append(report.Target(f"{what}: PR, relative", worst["participation_ratio"], PR_LIMIT))
                found.append(report.Target(f"{what}: |Δα|", worst["alpha"], ALPHA_LIMIT))
                found.append(report.Target(f"{what}: cosine(a′)", worst["cosine"], COSINE_LIMIT, at_least=True))
    return found


def print_case(name: str, case: dict[str, Any]) -> None:
    """The table of one case."""
    shapes, exact = case["shapes"], case["exact"]
    sizes = ", ".join(f"{letter}={size}" for letter, size in shapes.items())
    report.print_table(
        f"{name}: {sizes}; exact PR {exact['participation_ratio']:.1f}, n_eff {exact['n_eff']:.2f}, "
        f"α {exact['alpha']:.2f}; worst of the keys",
        ("method", "r_v x r_h", "numbers", "K", "PR", "n_eff", "α", "cosine(a′)", "within"),
        [
            [
                row["method"], f"{row['rank_vocab']} x {row['rank_hidden']}", str(row["numbers"]),
                *(f"{row['worst'][what]:.4f}" for what in ("gram", "participation_ratio", "n_eff", "alpha", "cosine")),
                "yes" if row["within"] else "no",
            ]
            for row in case["rows"]
        ],
    )  # fmt: skip


def plot(path: str | Path, cases: dict[str, Any], num_keys: int) -> None:
    """Errors over rank_hidden, a line for each rank_vocab."""
    quantities = (
        ("gram", "relative error of K", None),
        ("participation_ratio", "relative error of PR", (PR_LIMIT, "2 %")),
        ("cosine", "1 − cosine(a′)", (1 - COSINE_LIMIT, "0.005")),
    )
    rows = []
    for name, case in cases.items():
        panels, ranks = [], sorted({row["rank_vocab"] for row in case["rows"]})
        for quantity, label, limit in quantities:
            lines = []
            for method in (SKETCH, SIGNS):
                for i, rank in enumerate(ranks):
                    kept = [row for row in case["rows"] if (row["method"], row["rank_vocab"]) == (method, rank)]
                    worst = [row["worst"][quantity] for row in kept]
                    lines.append(figures.Line(
                        f"r_v = {rank}" + (" (all)" if rank == case["shapes"]["V"] else "")
                        + (", signs alone" if method == SIGNS else ""),
                        [row["rank_hidden"] for row in kept],
                        [1 - value for value in worst] if quantity == "cosine" else worst,
                        colour=i, dashed=method == SIGNS,
                    ))  # fmt: skip
            panels.append(figures.Panel(name, "r_h", label, lines, limit, floor=1e-5))
        rows.append(panels)
    caption = (
        f"Worst of {num_keys} keys. Solid: the library's sketch (kept tokens and directions, signs for the rest); "
        "dotted: random signs alone.\nDashed: the limits that the default ranks are chosen for; bottom: 1e-5 or less."
    )
    figures.draw(path, "What a sketch of the Gram matrix loses", rows, caption)


def load(file: Path) -> Observed:
    """Arrays that `harvest` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in NAMES}


def main(arguments: Sequence[str] | None = None, config: config_dict.ConfigDict | None = None) -> dict[str, Any]:
    """Command line; ``config`` replaces the arithmetic configuration (tests)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, nargs="*", default=[0, 100, 400], help="steps of GRPO before a batch")
    parser.add_argument("--data", type=local_path, nargs="*", help="files of `harvest`, in place of training now")
    parser.add_argument(
        "--synthetic", type=int, nargs=4, action="append", metavar=("M", "T", "V", "H"), help="may be repeated"
    )
    parser.add_argument("--ranks-vocab", type=int, nargs="+", default=list(RANKS_VOCAB))
    parser.add_argument("--ranks-hidden", type=int, nargs="+", default=list(RANKS_HIDDEN))
    parser.add_argument("--keys", type=int, default=8)
    parser.add_argument("--json", type=local_path, help="file to write the result to")
    parser.add_argument("--plot", type=local_path, help="png to draw")
    options = parser.parse_args(arguments)
    synthetics = options.synthetic or SYNTHETIC
    if min(*options.ranks_vocab, *options.ranks_hidden, options.keys, *(n for shape in synthetics for n in shape)) < 1:
        parser.error("ranks, sizes and --keys must be at least 1")
    batches: dict[str, Observed] = {}
    if options.data is not None:
        batches |= {file.stem: load(file) for file in options.data}
    else:
        found = harvest(config or arithmetic.get_config(), options.steps)
        batches |= {f"arithmetic, after {n} steps": observed for n, observed in found}
    batches |= {f"synthetic, {shape[0]} x {shape[1]}": synthetic(*shape) for shape in synthetics}
    result, cases = report.surroundings(), {}
    for name, observed in batches.items():
        # The ranks that suit a vocabulary of 17 tell nothing of one of 8192.
        ranks = [rank for rank in options.ranks_vocab if 64 * rank >= observed["lm_head"].shape[1]]
        cases[name] = measure_case(observed, (ranks or options.ranks_vocab, options.ranks_hidden), options.keys)
        print_case(name, cases[name])
    kept = targets(cases)
    report.print_targets(kept)
    report.print_surroundings(result)
    result |= {"keys": options.keys, "cases": cases, "targets": [target.record() for target in kept]}
    if options.json:
        report.write_json(options.json, result)
    if options.plot:
        plot(options.plot, cases, options.keys)
    return result


if __name__ == "__main__":
    main()
