"""Does a pod hold the training step? The real step compiled for real TPU topologies, on a machine without a TPU.

    python -m experiments.benchmarks.tpu_aot [--plan NAME ...] [--salt off exact sketch] [--response=1024] [--json=FILE]

Needs libtpu (`pip install -c constraints.txt -e '.[tpu]'`) and no TPU. Arguments are shapes: no parameter exists, and
nothing runs. What XLA's compiler for the chip says is printed: memory of one device, and what the devices send.

Memory is that of one device. Arguments (parameters, AdamW's two moments, the batch) and temporaries are allocated
side by side; the peak is the most that is alive at once. A program that does not fit is refused by the compiler, with
its own line. Collectives are read from the compiled text (`collectives.py`): bytes of their outputs on one device in
one step. No seconds per step: nothing here has run on a TPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh
from ml_collections import config_dict

from configs import base
from experiments.arguments import local_path
from experiments.benchmarks import report
from experiments.benchmarks.collectives import Collective, collectives, totals
from salt_jax.learner.reweighting import first_basis
from salt_jax.learner.state import TrainState, init_params, init_state, make_optimizer, make_policy
from salt_jax.learner.step import jit_train_step
from salt_jax.policy.layers import TransformerConfig
from salt_jax.rollout import RolloutBatch
from salt_jax.run import config as training_config

NO_LIBTPU = 2
AXES = ("data", "fsdp", "tensor")
GIB = 2**30
HBM = {"v5e": 16, "v5p": 95}  # GB of one chip, as its vendor states it; the compiler keeps some of it
ARMS = {"off": None, "exact": "lm_head", "sketch": "lm_head_sketch"}
GROUP = 8

# libtpu looks for the machine it is on; these say that there is none to look for.
NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

SEVEN = dict(num_layers=28, d_model=3584, num_heads=28, num_kv_heads=4, head_dim=128, mlp_dim=18944, qkv_bias=True)
SMALL = dict(num_layers=28, d_model=1536, num_heads=12, num_kv_heads=2, head_dim=128, mlp_dim=8960, qkv_bias=True)
TINY = dict(num_layers=2, d_model=256, num_heads=4, num_kv_heads=2, head_dim=128, mlp_dim=512, qkv_bias=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A policy on a topology.

    Attributes:
      topology: as libtpu names it.
      mesh: devices along (data, fsdp, tensor); tensor divides the key/value heads, and all devices are used.
      policy: keys of config.policy, and the vocabulary.
      rollouts: m, of one optimizer step, in groups of 8; data x fsdp divides the m / 8 prompts.
      tokens: completion and prompt tokens of one device in one microbatch, at most: what chooses how many there are.
      prompt, response: tokens.
    """

    topology: str
    mesh: tuple[int, int, int]
    policy: dict[str, Any]
    vocabulary: int
    rollouts: int = 256
    tokens: int = 10_240
    prompt: int = 1024
    response: int = 1024

    @property
    def shards(self) -> int:
        """Parts that a batch is split into."""
        return self.mesh[0] * self.mesh[1]

    def microbatches(self) -> int:
        """The fewest that keep a device's part of a microbatch within ``tokens``, or one rollout a device.

        >>> PLANS["7b-v5p"].microbatches(), dataclasses.replace(PLANS["7b-v5p"], response=8192).microbatches()
        (1, 8)
        """
        rows = self.rollouts // self.shards
        for parts in range(1, rows + 1):
            here = rows // parts
            prompts = math.ceil(here / math.gcd(here, GROUP))
            if rows % parts == 0 and here * self.response + prompts * self.prompt <= self.tokens:
                return parts
        return rows


PLANS = {
    "7b-v5p": Plan("v5p:4x4x4", (1, 16, 4), SEVEN | {"tied_embeddings": False}, 152_064, tokens=20_480),
    # tensor <= 4 leaves 64 parts of a batch, and each holds a whole group: 512 rollouts
    "7b-v5e": Plan("v5e:16x16", (1, 64, 4), SEVEN | {"tied_embeddings": False}, 152_064, 512),
    "1.5b-v5e": Plan("v5e:4x4", (1, 8, 2), SMALL | {"tied_embeddings": True}, 151_936, tokens=40_960),
    "tiny": Plan("v5e:2x2", (1, 2, 2), TINY | {"tied_embeddings": True}, 1024, 32, prompt=128, response=128),
}
DEFAULT_PLANS = tuple(name for name in PLANS if name != "tiny")


class NoLibtpuError(RuntimeError):
    """libtpu, the TPU compiler, is not installed."""


def topology_mesh(plan: Plan) -> Mesh:
    """The plan's mesh over devices that are described, not there.

    Raises:
      NoLibtpuError: libtpu cannot be imported.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise NoLibtpuError("libtpu is not installed: pip install -c constraints.txt -e '.[tpu]' (no TPU is needed)")
    for name, value in NO_MACHINE.items():
        os.environ.setdefault(name, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=plan.topology)
    try:
        return topologies.make_mesh(topology, plan.mesh, AXES)
    except NotImplementedError:  # a physical axis of the torus has to be split between two axes of the mesh
        devices = mesh_utils.create_device_mesh(plan.mesh, topology.devices, allow_split_physical_axes=True)
        return Mesh(devices, AXES)


def plan_config(plan: Plan, arm: str) -> config_dict.ConfigDict:
    """configs/base.py at the plan's shape: bfloat16 products, scanned layers, AdamW, one optimizer step a batch."""
    c = base.get_config()
    c.policy.update(plan.policy | {"compute_dtype": "bfloat16", "scan_layers": True})
    c.policy.update(attention="splash", remat="full")
    c.sampling.update(prompts_per_step=plan.rollouts // GROUP, rollouts_per_prompt=GROUP)
    c.sampling.update(max_prompt_length=plan.prompt, max_new_tokens=plan.response)
    c.learner.microbatches = plan.microbatches()
    c.evaluation.batch_size = c.warm_start.batch_size = plan.rollouts  # not compiled here, but checked
    c.mesh.update(dict(zip(AXES, plan.mesh, strict=True)))
    c.salt.enabled = ARMS[arm] is not None
    c.salt.feature = ARMS[arm] or c.salt.feature
    return c


def abstract_rollouts(n: int, prompt: int, response: int) -> RolloutBatch:
    """Shapes and dtypes of a rollout batch."""

    def of(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((n, *shape), dtype)

    return RolloutBatch(
        tokens=of(jnp.int32, prompt + response),
        prompt_mask=of(jnp.bool_, prompt),
        completion_mask=of(jnp.bool_, response),
        sampler_log_probs=of(jnp.float32, response),
        rewards=of(jnp.float32),
        rewarded=of(jnp.bool_),
        valid=of(jnp.bool_),
        truncated=of(jnp.bool_),
    )


def abstract_state(run: training_config.RunConfig, shape: TransformerConfig, optimizer: Any) -> TrainState:
    """Shapes and dtypes of a training state: nothing of a 7B policy is ever allocated."""

    def state(key: jax.Array) -> TrainState:
        return init_state(init_params(shape, key), optimizer, key, sketch_basis=first_basis(run))

    return jax.eval_shape(state, jax.random.key(0))


def lower_step(plan: Plan, config: config_dict.ConfigDict, mesh: Mesh) -> tuple[Any, int]:
    """The real train step traced and lowered for the mesh, and how many parameters it trains."""
    run = training_config.parse(config)
    shape = TransformerConfig(**(vars(run.policy) | {"vocab_size": plan.vocabulary}))
    optimizer = make_optimizer(run.optimizer, run.steps)
    state = abstract_state(run, shape, optimizer)
    step = jit_train_step(run, make_policy(shape, mesh), optimizer, mesh, state)
    rollouts = abstract_rollouts(run.rows, plan.prompt, plan.response)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    return step.lower(state, rollouts), parameters  # type: ignore[attr-defined]


def memory(compiled: Any) -> dict[str, int]:
    """Bytes on one device, as the compiler's own memory analysis has them."""
    said = compiled.memory_analysis()
    return {
        "arguments": said.argument_size_in_bytes,
        "outputs": said.output_size_in_bytes,
        "aliased": said.alias_size_in_bytes,  # outputs that lie where a donated argument lay
        "temporaries": said.temp_size_in_bytes,
        "code": said.generated_code_size_in_bytes,
        "peak": said.peak_memory_in_bytes,
    }


def compile_arm(plan: Plan, arm: str, config: config_dict.ConfigDict, hlo: Path | None = None) -> dict[str, Any]:
    """Compiles one arm; ``fits`` is the compiler's verdict, and ``error`` its line where it refuses for memory."""
    mesh = topology_mesh(plan)
    start = time.perf_counter()
    lowered, parameters = lower_step(plan, config, mesh)
    result: dict[str, Any] = {"salt": arm, "parameters": parameters, "lower_seconds": time.perf_counter() - start}
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = str(error).strip().splitlines()[0]
        return result | {"fits": False, "error": line, "compile_seconds": time.perf_counter() - start}
    result |= {"fits": True, "compile_seconds": time.perf_counter() - start, "memory": memory(compiled)}
    text = compiled.as_text()
    if hlo is not None:
        hlo.parent.mkdir(parents=True, exist_ok=True)
        hlo.write_text(text)
    found = collectives(text)
    result["collectives"] = totals(found)
    result["largest_collectives"] = largest_collectives(found)
    return result


def largest_collectives(found: Sequence[Collective], most: int = 8) -> list[dict[str, Any]]:
    """The collectives that move most in one step."""
    order = sorted(found, key=lambda one: -one.bytes * one.trips)[:most]
    return [{k: v for k, v in one._asdict().items() if k != "computation"} for one in order]


def gib(size: float) -> str:
    """Bytes as GiB.

    >>> gib(3 * 2**30)
    '3.00'
    """
    return f"{size / GIB:.2f}"


def print_results(result: dict[str, Any]) -> None:
    """Two tables a plan, memory and collectives, and under them what the numbers are."""
    for name, plan in result["plans"].items():
        mesh = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, plan["mesh"], strict=True))
        title = (
            f"{name}: {plan['arms'][0]['parameters']:,} parameters, {plan['topology']}, {mesh}; "
            f"m = {plan['rollouts']}, prompt {plan['prompt']}, response {plan['response']}, "
            f"microbatches {plan['microbatches']}"
        )
        chip = f"GiB on one device; the chip has {HBM[plan['topology'].partition(':')[0]]} GB"
        held = ("arguments", "temporaries", "peak")
        rows = []
        for arm in plan["arms"]:
            there = arm.get("memory")
            sizes = [gib(there[key]) for key in held] if there else ["-"] * len(held)
            total = gib(there["arguments"] + there["temporaries"]) if there else "-"
            fits = "yes" if arm["fits"] else "no"
            rows.append([arm["salt"], fits, *sizes[:2], total, sizes[2], f"{arm['compile_seconds']:.0f}"])
        columns = ("SALT", "fits", "arguments", "temporaries", "sum", "peak", "compile, s")
        report.print_table(f"{title}\n{chip}", columns, rows)
        fitting = [arm for arm in plan["arms"] if arm["fits"]]
        if fitting:
            kinds = sorted({kind for arm in fitting for kind in arm["collectives"]})
            rows = [[kind, *(_sent(arm["collectives"].get(kind)) for arm in fitting)] for kind in kinds]
            rows.append(["all", *(_sent(_sum(arm["collectives"].values())) for arm in fitting)])
            report.print_table("GiB of collectives' outputs on one device in one step", ("kind", *(
                f"SALT {arm['salt']}" for arm in fitting)), rows)  # fmt: skip
        for arm in plan["arms"]:
            if not arm["fits"]:
                print(f"{name}, SALT {arm['salt']}: {arm['error']}")
    print("a collective in a loop counts as often as the loop runs; > where the compiled text does not say how often")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()), "; commit", result["commit"])


def _sent(total: dict[str, Any] | None) -> str:
    return "-" if total is None else ("" if total["trips_known"] else "> ") + gib(total["bytes"])


def _sum(all_totals: Iterable[dict[str, Any]]) -> dict[str, Any]:
    rows = list(all_totals)
    return {"bytes": sum(row["bytes"] for row in rows), "trips_known": all(row["trips_known"] for row in rows)}


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--plan", nargs="+", choices=tuple(PLANS), default=list(DEFAULT_PLANS), help="which to compile")
    parser.add_argument("--salt", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="SALT off, or its feature")
    parser.add_argument("--rollouts", type=int, help="m; default: the plan's")
    parser.add_argument("--prompt", type=int, help="tokens; default: the plan's")
    parser.add_argument("--response", type=int, help="tokens; default: the plan's; the paper has 8192")
    parser.add_argument("--microbatches", type=int, help="default: the fewest that keep a device within its tokens")
    parser.add_argument("--attention", default="splash", help="config.policy.attention")
    parser.add_argument("--remat", default="full", help="config.policy.remat")
    parser.add_argument("--json", type=local_path, help="file to write the result to, after each compilation")
    parser.add_argument("--hlo", type=local_path, help="folder to write the compiled text to")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 where everything compiled or was refused for memory, 2 where nothing can be compiled."""
    options = parse_options(arguments)
    jax.config.update("jax_platforms", "cpu")  # what is installed to compile with must not be started
    result = report.surroundings() | {"plans": {}}
    try:
        for name in options.plan:
            given = {key: getattr(options, key) for key in ("rollouts", "prompt", "response")}
            plan = dataclasses.replace(PLANS[name], **{key: v for key, v in given.items() if v is not None})
            topology_mesh(plan)  # before the first of many minutes
            result["versions"]["libtpu"] = importlib.metadata.version("libtpu")
            described = dataclasses.asdict(plan) | {"arms": []}
            result["plans"][name] = described
            for arm in options.salt:
                config = plan_config(plan, arm)
                config.learner.microbatches = options.microbatches or config.learner.microbatches
                config.policy.update(attention=options.attention, remat=options.remat)
                described["microbatches"] = config.learner.microbatches
                described["policy"] = config.policy.to_dict()
                hlo = options.hlo / f"{name}-{arm}.txt" if options.hlo else None
                print(f"compiling {name}, SALT {arm} ...", flush=True)
                described["arms"].append(compile_arm(plan, arm, config, hlo))
                if options.json:
                    report.write_json(options.json, result)
    except (NoLibtpuError, training_config.ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_LIBTPU
    print_results(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
