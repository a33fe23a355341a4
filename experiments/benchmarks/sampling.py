"""How fast the sampler generates, and how near that is to what the memory allows.

    python -m experiments.benchmarks.sampling [--policy=smollm2-135m] [--prompts=4] [--rollouts=16] [--json=FILE]

Decoding reads every matrix of the policy and every key and value once a token, so memory sets a limit:

    tokens/s  <=  rollouts / (bytes a step / bytes a second)

and with many rollouts arithmetic sets another: 2 operations a number of each matrix and rollout, against the rate of
a large product in the compute dtype. Bytes a step are the matrices in the compute dtype (an untied embedding is only
looked up) and the keys and values of the mean position; bytes a second are measured with a matrix-vector product too
large for any cache. Time a step is that of --new-tokens less that of one token, so that the prompts' forward pass is
not in it. Weights are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.arguments import local_path
from experiments.benchmarks import report
from experiments.benchmarks.salt_overhead import POLICIES as OTHERS
from salt_jax.learner.state import init_params, make_policy
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import SamplingConfig, sample

POLICIES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49_152, "d_model": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64,
        "mlp_dim": 1536, "rope_theta": 1e5,
    },
    **OTHERS,
}  # fmt: skip


def matrix_bytes(policy: TransformerConfig) -> int:
    """Bytes of the matrices that one decoding step reads, in the compute dtype.

    Example:
      >>> matrix_bytes(TransformerConfig(vocab_size=10, d_model=4, num_layers=2, num_heads=2, num_kv_heads=1,
      ...                                head_dim=2, mlp_dim=8))
      1312
    """
    d, c = policy.d_model, policy.head_dim
    attention = d * c * (2 * policy.num_heads + 2 * policy.num_kv_heads)
    layer = attention + 3 * d * policy.mlp_dim
    return (policy.num_layers * layer + d * policy.vocab_size) * jnp.dtype(policy.compute_dtype).itemsize


def cache_bytes(policy: TransformerConfig, sampling: SamplingConfig, options: argparse.Namespace) -> float:
    """Bytes of keys and values that a decoding step reads at the mean position: prompts once a group."""
    stored = jnp.dtype(policy.compute_dtype if sampling.cache_dtype == "compute" else sampling.cache_dtype)
    token = 2 * policy.num_layers * policy.num_kv_heads * policy.head_dim * stored.itemsize
    rows = options.prompts * options.rollouts
    return token * (options.prompts * options.prompt + rows * options.new_tokens / 2)


def read_rate(mebibytes: int, repeats: int) -> float:
    """Bytes a second of the fastest of several products of a large float32 matrix with a vector."""
    columns = 4096
    rows = (mebibytes << 20) // (4 * columns)
    matrix, vector = jnp.ones((rows, columns)), jnp.ones(columns)
    product = jax.jit(jnp.dot)
    return rows * columns * 4 / min(timed(lambda: product(matrix, vector), repeats))


def product_rate(size: int, dtype: str, repeats: int) -> float:
    """Operations a second of the fastest of several products of two large matrices in a dtype."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.dot)
    return 2 * size**3 / min(timed(lambda: product(matrix, matrix), repeats))


def timed(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call, after one that is not counted."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times the sampler and relates it to the memory's limit."""
    shape = POLICIES[options.policy]
    policy_config = TransformerConfig(**shape, compute_dtype=options.dtype, scan_layers=options.scan)
    sampling = SamplingConfig(max_new_tokens=options.new_tokens, cache_dtype=options.cache_dtype)
    policy = make_policy(policy_config)
    params = jax.jit(lambda: init_params(policy_config, jax.random.key(0)))()
    rng = np.random.default_rng(0)
    prompts = jnp.asarray(rng.integers(0, policy_config.vocab_size, (options.prompts, options.prompt)), jnp.int32)
    mask = jnp.ones(prompts.shape, bool)

    def generate(new_tokens: int) -> Callable[[], Any]:
        config = dataclasses.replace(sampling, max_new_tokens=new_tokens)
        run = jax.jit(
            lambda params, key: sample(
                nnx.merge(policy, params), prompts, mask, key, group_size=options.rollouts, config=config,
                stop_ids=(policy_config.vocab_size,), pad_id=0,  # an id that is never drawn: every row runs to the end
            )
        )
        return lambda: run(params, jax.random.key(1))

    whole, first = timed(generate(options.new_tokens), options.repeats), timed(generate(1), options.repeats)
    rows = options.prompts * options.rollouts
    step = (min(whole) - min(first)) / (options.new_tokens - 1)
    rate = read_rate(options.read_mib, 5)
    matrices, cache = matrix_bytes(policy_config), cache_bytes(policy_config, sampling, options)
    least = (matrices + cache) / rate
    operations = 2 * rows * matrices / jnp.dtype(policy_config.compute_dtype).itemsize
    arithmetic = operations / (speed := product_rate(options.product_size, options.dtype, 5))
    return {
        "benchmark": "sampling",
        **report.surroundings(),
        "shapes": {k: getattr(options, k) for k in ("policy", "prompts", "rollouts", "prompt", "new_tokens", "dtype")},
        "seconds": {"whole": report.spread(whole), "first_token": report.spread(first), "step": step},
        "tokens_per_second": {"whole": rows * options.new_tokens / min(whole), "decoding": rows / step},
        "memory": {
            "read_bytes_per_second": rate, "matrix_bytes": matrices, "cache_bytes": cache,
            "limit_tokens_per_second": rows / least, "share_of_limit": least / step,
        },
        "arithmetic": {
            "operations_per_second": speed, "operations_a_step": operations,
            "limit_tokens_per_second": rows / arithmetic, "share_of_limit": arithmetic / step,
        },
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=sorted(POLICIES), default="smollm2-135m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cache-dtype", choices=("compute", "bfloat16"), default="compute")
    parser.add_argument("--scan", action="store_true", help="scan over the layers instead of unrolling them")
    defaults = {"prompts": 4, "rollouts": 16, "prompt": 64, "new-tokens": 64}
    defaults |= {"repeats": 3, "read-mib": 1024, "product-size": 2048}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=local_path)
    options = parser.parse_args(argv)
    for name in defaults:
        least = 2 if name == "new-tokens" else 1
        if getattr(options, name.replace("-", "_")) < least:
            parser.error(f"--{name} must be at least {least}")
    result = measure(options)
    report.print_surroundings(result)
    speed, memory, arithmetic = result["tokens_per_second"], result["memory"], result["arithmetic"]
    rows = [
        ("generating, prompts included", f"{speed['whole']:,.0f} tokens/s"),
        ("decoding alone", f"{speed['decoding']:,.0f} tokens/s"),
        ("limit by memory", f"{memory['limit_tokens_per_second']:,.0f} tokens/s"),
        ("share of it", f"{memory['share_of_limit']:.0%}"),
        ("limit by arithmetic", f"{arithmetic['limit_tokens_per_second']:,.0f} tokens/s"),
        ("share of it", f"{arithmetic['share_of_limit']:.0%}"),
        ("product rate", f"{arithmetic['operations_per_second'] / 1e9:,.0f} G/s"),
        ("read rate", f"{memory['read_bytes_per_second'] / 1e9:.1f} GB/s"),
        ("matrices, caches a step", f"{memory['matrix_bytes'] / 1e6:,.0f} MB, {memory['cache_bytes'] / 1e6:,.1f} MB"),
    ]
    sizes = f"{options.prompts} prompts x {options.rollouts} rollouts, {options.prompt} + {options.new_tokens} tokens"
    report.print_table(f"{options.policy}, {options.dtype}: {sizes}", ("", ""), rows)
    if options.json:
        report.write_json(options.json, result)


if __name__ == "__main__":
    main()
