"""Where SALT's share of a step goes: each part alone, on one real mini-batch of the arithmetic configuration.

    python -m experiments.benchmarks.parts [--repeats=60] [--json=FILE]

Parts are compiled and timed one by one, so they do not add up to what a step costs more: in a step they share cores
with what else is ready, and what waits for them waits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from configs import arithmetic
from experiments.arguments import local_path
from experiments.benchmarks import report
from experiments.benchmarks.harvest import harvest
from salt_jax import geometry, salt, vocab


def programs(seen: dict[str, Any], group_size: int, rank_hidden: int) -> dict[str, Callable[[], Any]]:
    """Name -> the part, compiled, with its arguments bound."""
    hidden, lm_head, targets, mask, advantages = (jnp.asarray(seen[name]) for name in seen)
    out = vocab.token_log_probs(hidden, lm_head, targets)
    gram = geometry.lm_head_gram(hidden, lm_head, targets, mask, log_normalizer=out.log_normalizer)
    key, (width, size) = jax.random.key(0), lm_head.shape
    heavy = geometry.heavy_tokens(targets, mask, size, geometry.sketch.DEFAULT_RANK_VOCAB)
    basis = geometry.start_basis(width, rank_hidden) if rank_hidden < width else None
    sketch = geometry.Sketch(key, heavy, basis, rank_hidden=rank_hidden)

    def sketched(hidden: jax.Array, lm_head: jax.Array) -> jax.Array:
        _, projected = vocab.projected_log_probs(
            hidden, lm_head, targets, key, heavy, num_signs=geometry.num_signs(sketch.rank_vocab, size)
        )
        return geometry.sketch_gram(geometry.rollout_sketches(hidden, projected, mask, sketch))

    def reweight(eigen: str) -> Callable[..., Any]:
        return lambda gram, a: salt.reweight(gram, a, salt.SaltConfig(eigen=eigen))

    parts: dict[str, tuple[Callable[..., Any], tuple[jax.Array, ...]]] = {
        "log-probs (the step's own)": (lambda h, w: vocab.token_log_probs(h, w, targets), (hidden, lm_head)),
        "log-probs, sketch and its Gram": (sketched, (hidden, lm_head)),
        "exact Gram, log-sum-exp given": (
            lambda h, w: geometry.lm_head_gram(h, w, targets, mask, log_normalizer=out.log_normalizer),
            (hidden, lm_head),
        ),
        "reweight, eigenvectors iterated": (reweight("auto"), (gram, advantages)),
        "reweight, full eigh": (reweight("full"), (gram, advantages)),
        "metrics": (
            lambda gram, a: geometry.geometry_summary(gram, a, group_size=group_size, reweighted=0.5 * a),
            (gram, advantages),
        ),
    }

    def bind(function: Callable[..., Any], arguments: tuple[jax.Array, ...]) -> Callable[[], Any]:
        compiled = jax.jit(function)
        return lambda: compiled(*arguments)

    return {name: bind(*part) for name, part in parts.items()}


def main(arguments: Sequence[str] | None = None, config: config_dict.ConfigDict | None = None) -> dict[str, Any]:
    """Command line; ``config`` replaces the arithmetic configuration (tests)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--repeats", type=int, default=60, help="timed runs of each part")
    parser.add_argument("--json", type=local_path, help="file to write the result to")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    config = config or arithmetic.get_config()
    ((_, seen),) = harvest(config, [0])
    m, t, h = seen["hidden"].shape
    parts = programs(seen, config.sampling.rollouts_per_prompt, config.salt.rank_hidden)
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        jax.block_until_ready(part())
    for _ in range(options.repeats):
        for name, part in parts.items():
            start = time.perf_counter()
            jax.block_until_ready(part())
            seconds[name].append(time.perf_counter() - start)
    result = report.surroundings() | {
        "shapes": {"rollouts": m, "tokens": t, "width": h, "vocabulary": seen["lm_head"].shape[1]},
        "seconds": {name: report.spread(times) for name, times in seconds.items()},
    }
    rows = [[name, f"{1e3 * s['median']:.2f}", f"{1e3 * s['min']:.2f}"] for name, s in result["seconds"].items()]
    title = f"milliseconds alone: m={m}, T={t}, V={seen['lm_head'].shape[1]}, H={h}"
    report.print_table(title, ("part", "median", "min"), rows)
    report.print_surroundings(result)
    if options.json:
        report.write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
