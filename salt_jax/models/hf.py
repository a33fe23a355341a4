"""Pretrained models in and out; this file is the way in, and the command.

    python -m salt_jax.models.hf inspect PATH                  what a checkpoint is, and whether a run can use it:
                                                           [--headers]
    python -m salt_jax.models.hf import SRC OUT                to a folder that loads fast, on any number of devices
    python -m salt_jax.models.hf export SRC OUT                to a Hugging Face folder, also from a run's workdir:
                                                           [--checkpoint newest|best|N]

PATH and SRC are what ``open_checkpoint`` takes. ``inspect`` reads every weight once, a block at a time, and says if
one is not finite: as long as the disk takes (a GGUF file is also dequantised); ``--headers`` leaves that out. An error
is one line on stderr and exit status 2; nothing is overwritten.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import sys
import warnings
from collections.abc import Sequence

import jax
from absl import logging

from salt_jax.models import run_steps
from salt_jax.models.hf_export import DTYPES, export, import_checkpoint, write_policy_json
from salt_jax.models.pretrained import Checkpoint, open_checkpoint
from salt_jax.spec import one_line
from salt_jax.tasks.hf_tokenizer import describe_tokenizer
from salt_jax.tasks.paths import expanded

__all__ = ["Checkpoint", "describe", "export", "import_checkpoint", "main", "open_checkpoint", "write_policy_json"]


def describe(checkpoint: Checkpoint) -> str:
    """A checkpoint in a few lines for people."""
    config, facts = checkpoint.config, checkpoint.facts
    kind = (checkpoint.hf_config or {}).get("model_type", "no model of Hugging Face's")
    dtypes = collections.Counter(fact.dtype for fact in facts.values())
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.shapes())
    head = "tied to" if config.tied_embeddings else "apart from"
    more = [name for name in ("qkv_bias", "qk_norm") if getattr(config, name)]
    lines = {
        "path": checkpoint.path,
        "model": f"{kind}: {config.num_layers} layers, width {config.d_model}, {config.num_heads} heads of "
                 f"{config.head_dim} on {config.num_kv_heads} keys and values, mlp {config.mlp_dim}",
        "vocabulary": f"{config.vocab_size}, the output head {head} the embedding",
        "options": ", ".join([*more, f"rms_norm_eps {config.rms_norm_eps:g}"]),
        "rope": f"theta {config.rope_theta:g}, " + (str(config.rope_scaling) if config.rope_scaling else "unscaled"),
        "parameters": f"{sum(math.prod(leaf.shape) for _, leaf in leaves):,}",
        "stored": f"{len(facts)} tensors ({', '.join(f'{n} {dtype}' for dtype, n in dtypes.most_common())}), "
                  f"{sum(fact.nbytes for fact in facts.values()):,} bytes",
        "stop ids": ", ".join(map(str, checkpoint.stop_ids)) or "none",
        **({} if checkpoint.tokenizer_source else {"tokenizer": "the task's"}),
    }  # fmt: skip
    shapes = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
    return "\n".join([*(f"{key:<12}{value}" for key, value in lines.items()), "shapes",
                      *(f"    {name:<24}{shape}" for name, shape in shapes.items())])  # fmt: skip


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Says on stdout what tokenizer a run would get from a checkpoint; ValueError for one that it would refuse."""
    source = checkpoint.tokenizer_source
    if source is None:
        return
    try:
        facts = describe_tokenizer(source, vocab_size=checkpoint.config.vocab_size, stop_ids=checkpoint.stop_ids)
    except ImportError as error:
        facts = f"not looked at: {error}"
    print(f"{'tokenizer':<12}{facts}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m salt_jax.models.hf", description="Pretrained models in and out.")
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="what a checkpoint is, and whether a run can use it")
    look.add_argument("path")
    look.add_argument("--headers", action="store_true", help="leave the weights unread, which may not be finite then")
    to_own = commands.add_parser("import", help="to an Orbax folder")
    to_hugging_face = commands.add_parser("export", help="to a Hugging Face folder")
    for command in (to_own, to_hugging_face):
        command.add_argument("source", help="a Hugging Face or imported folder, a workdir, a GGUF file, or 'smollm2'")
        command.add_argument("out", help="a new folder")
    to_hugging_face.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of every tensor (bfloat16)")
    which = "of a workdir: newest (the default), best by the run's own checkpoint.best_by, or a step"
    to_hugging_face.add_argument("--checkpoint", metavar="WHICH", help=which)
    given = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # Orbax logs what it reads; errors are raised
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is not there
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        return _do(given)


def _do(given: argparse.Namespace) -> int:
    try:
        given.out = expanded(getattr(given, "out", ""))
        if given.command == "inspect":
            checkpoint = open_checkpoint(given.path)
            print(describe(checkpoint))
            check_tokenizer(checkpoint)
            if not given.headers:
                checkpoint.scan()
        elif given.command == "import":
            import_checkpoint(given.source, given.out)
        else:
            step = None if given.checkpoint is None else run_steps.parse_choice(given.checkpoint)
            checkpoint = open_checkpoint(given.source, step=step)
            export(checkpoint.load(), checkpoint.config, given.out, source=checkpoint, dtype=given.dtype)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
