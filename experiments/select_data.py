"""Selects examples of an instruction set by their gradients under a proxy model (docs/selection.md).

    python -m experiments.select_data --data=FILE --model=MODEL --out=NEW.jsonl [--method=spice] [--k=64] [--pool=128]

FILE has an example a row, .jsonl (.gz), .json, .csv or .parquet: a prompt and a response, or `messages` that end with
the assistant's. MODEL is a Hugging Face or imported folder, a GGUF file, 'smollm2', or a run's workdir. From each pool
of --pool examples (shuffled by --seed; 0: all in one) --k are picked, of a smaller last one as large a share.
NEW.jsonl gets a line a pick: index (row of FILE, from 0), pool, rank, score and what else the method knows. Nothing is
written before all is done; wrong input is one line and exit status 2.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments.arguments import local_path
from experiments.cli import BAD_INPUT, INTERRUPTED
from experiments.select_proxy import FEATURES, Proxy
from experiments.select_rows import encode, read_items
from salt_jax import selection
from salt_jax.models.hf import open_checkpoint
from salt_jax.run import setup
from salt_jax.run.workdir import CONFIG, write_atomically
from salt_jax.spec import ConfigError
from salt_jax.tasks import Tokenizer

METHODS = ("spice", "vendi", "gvendi", "greats", "less")
NEED_VALIDATION = ("greats", "less")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked as far as it can be without reading anything large.

    Raises:
      ConfigError: one line.
    """
    parser = _Parser(prog="python -m experiments.select_data", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="the instruction set")
    add("--model", required=True, help="the proxy whose gradients are compared")
    add("--out", required=True, type=local_path, help="a new .jsonl file")
    add("--step", type=int, help="of a workdir; its last by default")
    add("--method", choices=METHODS, default="spice")
    add("--features", choices=FEATURES[:-1], help="what gradients are of (lm_head)")
    add("--subset", default="^final_norm$", help="parameters of --features=per_rollout, a regular expression")
    add("--k", type=int, default=64, help="examples picked from each pool")
    add("--pool", type=int, default=128, help="examples of a pool; 0: all in one")
    add("--validation", help="examples like those that matter, for greats and less; for less with a column subtask")
    add("--prompt", default="prompt", help="column of the prompt: text, or messages")
    add("--response", default="response", help="column of the response")
    add("--alpha", type=float, default=1.0, help="of spice")
    add("--penalty", type=float, default=0.1, help="of spice, for conflict")
    add("--omega", type=float, help="of spice: end before a gain below omega times the first")
    add("--learning_rate", type=float, default=1e-3, help="of greats")
    add("--max_prompt", type=int, default=256, help="tokens")
    add("--max_response", type=int, default=256, help="tokens, the end token included")
    add("--on_long", choices=("error", "skip"), default="error", help="what becomes of longer ones")
    add("--chat", action=argparse.BooleanOptionalAction, default=True, help="use the model's chat template")
    add("--batch", type=int, default=8, help="examples whose forward (or backward) pass lives at once")
    add("--seed", type=int, default=0, help="of the pools, the random choice compared with, and the sketch")
    flags = parser.parse_args(arguments)
    for name, least in (("k", 1), ("pool", 0), ("max_prompt", 1), ("max_response", 1), ("batch", 1), ("seed", 0)):
        if getattr(flags, name) < least:
            raise ConfigError(f"--{name}={getattr(flags, name)} is not allowed; allowed: integers >= {least}")
    if flags.pool and flags.k > flags.pool:
        raise ConfigError(f"--k={flags.k} is more than a pool has: --pool={flags.pool}")
    if flags.method in NEED_VALIDATION and flags.validation is None:
        raise ConfigError(f"--method={flags.method} needs --validation=FILE")
    _check_effect(parser, flags)
    if flags.method == "vendi" and flags.features:
        raise ConfigError("--method=vendi compares hidden states: --features is for the others; see --method=gvendi")
    try:
        re.compile(flags.subset)
    except re.error as error:
        raise ConfigError(f"--subset={flags.subset!r} is no regular expression: {error}") from None
    if flags.out.exists() or not flags.out.absolute().parent.is_dir():
        what = "is there already" if flags.out.exists() else "has no folder to be in"
        raise ConfigError(f"--out={flags.out} {what}; name a new file in a folder that exists")
    settings = {"alpha": flags.alpha, "penalty": flags.penalty, "omega": flags.omega}
    jax.eval_shape(lambda: selection.spice(jnp.eye(1), 1, **settings))  # its own checks, nothing is compiled
    flags.features = "hidden" if flags.method == "vendi" else flags.features or FEATURES[0]
    return flags


# flag -> the methods, or the features, that read it
READERS = {
    "validation": ("method", NEED_VALIDATION), "alpha": ("method", ("spice",)), "penalty": ("method", ("spice",)),
    "omega": ("method", ("spice",)), "learning_rate": ("method", ("greats",)),
    "subset": ("features", ("per_rollout",)),
}  # fmt: skip


def _check_effect(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """A flag that nothing reads keeps its default."""
    for name, (by, those) in READERS.items():
        value = getattr(flags, name)
        if value != parser.get_default(name) and getattr(flags, by) not in those:
            readers = " or ".join(f"--{by}={one}" for one in those)
            raise ConfigError(f"--{name}={value} has no effect here; it belongs to {readers}")


def tokenizer_of(checkpoint: Any, chat: bool) -> Tokenizer:
    """The checkpoint's tokenizer: its own, or that of the task that a run began on with random parameters."""
    if checkpoint.tokenizer_source is None:
        if not (checkpoint.path / CONFIG).is_file():
            raise ConfigError(f"--model={checkpoint.path} has no tokenizer, and is no run with a task that has one")
        run = setup.parse(json.loads((checkpoint.path / CONFIG).read_text()))
        data = checkpoint.path / "data"
        with tempfile.TemporaryDirectory() as scratch:  # nothing is written to a run
            return setup.make_task(run, data if data.is_dir() else Path(scratch), None).tokenizer
    from salt_jax.tasks.hf_tokenizer import load_tokenizer  # needs an extra

    return load_tokenizer(
        checkpoint.tokenizer_source, vocab_size=checkpoint.config.vocab_size, stop_ids=checkpoint.stop_ids, chat=chat
    )


@functools.partial(jax.jit, static_argnames="k")
def pick_spice(gram: jax.Array, k: int, **settings: Any) -> dict[str, jax.Array]:
    """Columns of the k picks."""
    found = selection.spice(gram, k, **settings)
    return {"index": found.order, "score": found.scores, "gain": found.gains, "conflict": found.conflicts}


@functools.partial(jax.jit, static_argnames="k")
def pick_diverse(gram: jax.Array, k: int) -> dict[str, jax.Array]:
    """The same, by the cosines of a Gram matrix."""
    kernel, there = selection.normalize_kernel(gram)
    found = selection.vendi_greedy(kernel, k, valid=there)
    return {"index": found.order, "score": found.scores}


@functools.partial(jax.jit, static_argnames="k")
def pick_greats(gram: jax.Array, towards: jax.Array, learning_rate: float, k: int) -> dict[str, jax.Array]:
    """The same; towards (n, v)."""
    found = selection.greats(gram, towards, learning_rate, k)
    return {"index": found.order, "score": found.scores}


@functools.partial(jax.jit, static_argnames="k")
def pick_less(gram: jax.Array, mask: jax.Array, k: int) -> dict[str, jax.Array]:
    """The same; the last v of the Gram's rows are validation examples, mask (s, v) says of which subtask."""
    n = gram.shape[0] - mask.shape[1]
    cosines = selection.normalize_kernel(gram)[0][:n, n:]
    products = jnp.broadcast_to(cosines[None, :, None], (1, n, *mask.shape))
    influence = selection.influence_of_products(products, jnp.ones(1), validation_mask=mask)
    score, index = jax.lax.top_k(influence.scores, k)
    return {"index": index, "score": score}


@jax.jit
def vendi(gram: jax.Array, chosen: jax.Array) -> jax.Array:
    """Vendi score (q = 1) of the chosen rows of a Gram matrix, by their cosines."""
    kernel, there = selection.normalize_kernel(gram)
    return selection.vendi_score(kernel, valid=there & chosen)


def pick(gram: np.ndarray, n: int, k: int, subtasks: Sequence[str], flags: argparse.Namespace) -> list[dict[str, Any]]:
    """k picks of the first n rows of a Gram matrix, in order; the rows behind them are the validation examples."""
    if flags.method == "spice":
        columns = pick_spice(gram, k, alpha=flags.alpha, penalty=flags.penalty, omega=flags.omega)
    elif flags.method == "greats":
        columns = pick_greats(gram[:n, :n], gram[:n, n:], flags.learning_rate, k)
    elif flags.method == "less":
        mask = np.array([[name == subtask for subtask in subtasks] for name in sorted(set(subtasks))])
        columns = pick_less(gram, mask, k)
    else:
        columns = pick_diverse(gram, k)
    rows = zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)
    return [row for row in (dict(zip(columns, values, strict=True)) for values in rows) if row["index"] >= 0]


def select(flags: argparse.Namespace) -> str:
    """Reads, checks, selects and writes; returns the summary."""
    began = time.perf_counter()
    items = read_items("--data", flags.data, flags.prompt, flags.response)
    judges = read_items("--validation", flags.validation, flags.prompt, flags.response) if flags.validation else []
    with setup.naming("--chat: ", setup.OF_TOKENIZER, otherwise="--model: "):
        checkpoint = open_checkpoint(flags.model, step=flags.step, scan_layers=True)
        tokenizer = tokenizer_of(checkpoint, flags.chat)
    paths = [setup.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(checkpoint.shapes())]
    if flags.features == "per_rollout" and not any(re.search(flags.subset, path) for path in paths):
        raise ConfigError(f"--subset={flags.subset!r} matches none of {', '.join(paths)}")
    kept, encoded, skipped = encode([*items, *judges], tokenizer, flags.max_prompt, flags.max_response, flags.on_long)
    train = [i for i in kept if i < len(items)]
    behind = list(range(len(train), len(kept)))  # rows of `encoded` that are for validation
    if not train or (judges and not behind):
        raise ConfigError(f"--on_long=skip leaves no row of --{'validation' if train else 'data'}")
    size = min(flags.pool or len(train), len(train))
    if flags.k > size:
        raise ConfigError(f"--k={flags.k} is more than there is: {size} examples")
    how = {"features": flags.features, "subset": flags.subset, "batch": flags.batch, "seed": flags.seed}
    proxy = Proxy(checkpoint.config, checkpoint.load(), **how)
    subtasks = [judges[kept[row] - len(items)].subtask for row in behind]

    rng = np.random.default_rng(flags.seed)
    shuffled = rng.permutation(len(train)) if size < len(train) else np.arange(len(train))
    out: list[dict[str, Any]] = []
    scores: list[tuple[float, ...]] = []
    for number, start in enumerate(range(0, len(train), size)):
        pool = shuffled[start : start + size].tolist()
        wanted = math.ceil(flags.k * len(pool) / size)
        rows = pool + behind
        filled = rows + rows[:1] * (-(-(size + len(behind)) // flags.batch) * flags.batch - len(rows))  # one shape
        gram = np.asarray(proxy.gram(jax.tree.map(lambda x, rows=filled: x[np.array(rows)], encoded)))
        gram = gram[: len(rows), : len(rows)]
        if not np.isfinite(gram).all():
            raise ConfigError(f"gradients of pool {number} are not finite; is --model={flags.model} a trained model?")
        picks = pick(gram, len(pool), wanted, subtasks, flags)
        chance = rng.choice(len(pool), len(picks), replace=False)
        ours = [row["index"] for row in picks]
        scores.append(tuple(float(vendi(gram, np.isin(np.arange(len(gram)), rows))) for rows in (ours, chance)))
        for rank, row in enumerate(picks):
            index = train[pool[row["index"]]]
            place = {"index": index, "pool": number, "rank": rank, "score": row["score"]}
            out.append(place | {name: value for name, value in row.items() if name not in place})
    write_atomically(flags.out, "".join(json.dumps(row) + "\n" for row in out))
    mean, chance_mean = np.mean(scores, axis=0)
    more = f" ({skipped} too long were left out)" if skipped else ""
    pools = f"{len(scores)} pools" if len(scores) > 1 else "one pool"
    return (
        f"{flags.method} on {flags.features}: {len(out)} of {len(train)} examples{more} in {pools}; Vendi score of the"
        f" selection {mean:.2f}, of a random choice {chance_mean:.2f}; {time.perf_counter() - began:.0f} s; {flags.out}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    logging.set_verbosity(logging.ERROR)
    try:
        print(select(parse(arguments)))
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
