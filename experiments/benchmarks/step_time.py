"""Seconds per whole training step (sample, reward on the host, update), SALT off and on, at the peers' shape.

    python -m experiments.benchmarks.step_time [--steps=30] [--json=FILE] [--tunix PYTHON SCRIPT]

8 prompts x 8 rollouts, prompt 32, completion 64 tokens; Qwen2-like, 2 layers, width 128, 4 heads, 2 key/value
heads, MLP 384, vocabulary 512, tied, float32: 459,904 parameters; Adam 3e-3, one update a step; the reward is the
share of characters below code point 128. The two arms take turns step by step, so that both see the same machine.

``--tunix`` runs a peer's script with its own interpreter, in turns with this one (ours, peer, ours, peer), and
prints the ratio of medians. The script prints "steady SECONDS s/step"; it gets the number of steps as argument.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import config_dict

from configs import base
from experiments.benchmarks import report
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import sample
from salt_jax.rollout import RolloutBatch
from salt_jax.training import config as training_config
from salt_jax.training.sharding import make_mesh, tree_shardings
from salt_jax.training.state import TrainState, init_params, init_state, make_optimizer, make_policy
from salt_jax.training.step import jit_train_step, sampling_key

VOCABULARY = 512  # pad 0, end 1, start 2, then characters: token = 3 + code point
PARAMETERS = 459_904
PAD, STOP, FIRST_CHARACTER = 0, 1, 3
PARTS = ("sample", "reward", "update", "step")


def peers_config() -> config_dict.ConfigDict:
    """configs/base.py at the shape of the peers' scripts."""
    c = base.get_config()
    c.policy.update(d_model=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=384)
    c.policy.update(qkv_bias=True, tied_embeddings=True, scan_layers=False)
    c.sampling.update(prompts_per_step=8, rollouts_per_prompt=8, max_prompt_length=32, max_new_tokens=64)
    c.optimizer.update(learning_rate=3e-3, clip_norm=0.0)
    c.salt.update(scope="mini_batch", feature="lm_head")
    return c


def random_prompts(rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, P) prompts of random lower-case letters, one shorter than the limit, left-padded; and their mask."""
    letters = rng.integers(ord("a"), ord("z") + 1, (batch, length - 1)) + FIRST_CHARACTER
    prompts = np.pad(letters, ((0, 0), (1, 0)), constant_values=PAD).astype(np.int32)
    return prompts, prompts != PAD


def reward(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N,) share of the characters of each completion below code point 128, from its text, as the peers grade.

    Example:
      >>> reward(np.array([[3 + 65, 3 + 200, 1, 0]]), np.array([3])).tolist()
      [0.5]
    """
    texts = [
        "".join(chr(t - FIRST_CHARACTER) for t in row[:length] if t >= FIRST_CHARACTER)
        for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)
    ]
    return np.array([np.mean([ord(c) < 128 for c in text]) if text else 0.0 for text in texts], np.float32)


class Arm:
    """One training run that is timed: its state, and its jitted sampler and update."""

    def __init__(self, config: config_dict.ConfigDict, *, salt: bool) -> None:
        config = config.copy_and_resolve_references()
        config.salt.enabled = salt
        self.run = run = training_config.parse(config)
        shape = TransformerConfig(**(vars(run.policy) | {"vocab_size": VOCABULARY}))
        policy, optimizer = make_policy(shape), make_optimizer(run.optimizer, run.steps)
        state, mesh = init_state(init_params(shape, jax.random.key(0)), optimizer, jax.random.key(1)), make_mesh()
        self.state: TrainState = jax.device_put(state, tree_shardings(state, mesh))
        self.update = jit_train_step(run, policy, optimizer, mesh, self.state)
        self.rng = np.random.default_rng(0)
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.lengths: list[float] = []
        self.rewards: list[float] = []
        group_size = run.rollouts.rollouts_per_prompt

        @jax.jit
        def generate(state: TrainState, prompts: jax.Array, mask: jax.Array) -> tuple[RolloutBatch, jax.Array]:
            """Ungraded rollouts and the completions' lengths."""
            samples = sample(
                nnx.merge(policy, state.params), prompts, mask, sampling_key(state),
                group_size=group_size, config=run.sampling, stop_ids=(STOP,), pad_id=PAD,
            )  # fmt: skip
            prompts, mask = (jnp.repeat(x, group_size, axis=0, total_repeat_length=run.rows) for x in (prompts, mask))
            rollouts = RolloutBatch(
                tokens=jnp.concatenate([prompts, samples.tokens], axis=1),
                prompt_mask=mask,
                completion_mask=samples.mask,
                sampler_log_probs=samples.log_probs,
                rewards=jnp.zeros(run.rows),
                rewarded=jnp.ones(run.rows, bool),
                valid=jnp.ones(run.rows, bool),
                truncated=samples.truncated,
            )
            return rollouts, samples.lengths

        self.generate = generate

    @property
    def parameters(self) -> int:
        """How many numbers the policy has."""
        return sum(x.size for x in jax.tree.leaves(self.state.params))

    def step(self) -> None:
        """One whole step; its times are kept."""
        shape = self.run.rollouts
        prompts, mask = random_prompts(self.rng, shape.prompts_per_step, shape.max_prompt_length)
        start = time.perf_counter()
        rollouts, lengths = jax.block_until_ready(self.generate(self.state, prompts, mask))
        sampled = time.perf_counter()
        rewards = reward(np.asarray(rollouts.completions), np.asarray(lengths))
        graded = time.perf_counter()
        rollouts = rollouts.replace(rewards=jnp.asarray(rewards))
        self.state, metrics = jax.block_until_ready(self.update(self.state, rollouts))
        end = time.perf_counter()
        for part, seconds in zip(PARTS, (sampled - start, graded - sampled, end - graded, end - start), strict=True):
            self.seconds[part].append(seconds)
        self.lengths.append(float(np.mean(np.asarray(lengths))))
        self.rewards.append(float(metrics["reward"]))

    def warm_up(self, steps: int = 2) -> float:
        """Steps that are not counted: the first compiles. Returns the seconds it took."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        for times in self.seconds.values():
            times.clear()
        return time.perf_counter() - start


def peer_seconds(python: str, script: str, steps: int) -> float:
    """Median seconds per step that a peer's script reports of itself, on CPU and without a KL term."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "BETA": "0"}
    environment.pop("PYTHONPATH", None)  # the peer has packages of its own
    done = subprocess.run([python, script, str(steps)], env=environment, capture_output=True, text=True)
    found = re.search(r"steady ([0-9.]+) s/step", done.stdout)
    if not found:
        raise RuntimeError(f"{script} printed no 'steady SECONDS s/step': {(done.stderr or done.stdout)[-500:]}")
    return float(found[1])


def measure(
    config: config_dict.ConfigDict, steps: int, rounds: int = 1, peer: Sequence[str] | None = None
) -> dict[str, Any]:
    """Times ``steps`` steps of both arms in turns, in ``rounds`` parts with the peer's run after each."""
    arms = {name: Arm(config, salt=name == "on") for name in ("off", "on")}
    compile_seconds = {name: arm.warm_up() for name, arm in arms.items()}
    per_round = max(steps // rounds, 1)
    peer_medians: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(rounds):
        for _ in range(per_round):
            for arm in arms.values():
                arm.step()
        if peer:
            peer_medians.append(peer_seconds(peer[0], peer[1], max(per_round, 4)))
            for name, arm in arms.items():
                ratios[name].append(statistics.median(arm.seconds["step"][i * per_round :]) / peer_medians[-1])
    result: dict[str, Any] = {
        "shapes": {
            "parameters": arms["off"].parameters,
            "prompts": arms["off"].run.rollouts.prompts_per_step,
            "rollouts_per_prompt": arms["off"].run.rollouts.rollouts_per_prompt,
            "prompt_tokens": arms["off"].run.rollouts.max_prompt_length,
            "completion_tokens": arms["off"].run.sampling.max_new_tokens,
            "vocabulary": VOCABULARY,
            **{k: v for k, v in vars(arms["off"].run.policy).items() if k != "vocab_size"},
        },
        "salt": {
            name: {
                "seconds": {part: report.spread(times) for part, times in arm.seconds.items()},
                "first_two_steps": compile_seconds[name],
                "mean_length": statistics.mean(arm.lengths),
                "reward": [arm.rewards[0], arm.rewards[-1]],
            }
            for name, arm in arms.items()
        },
    }
    medians = {name: statistics.median(arm.seconds["step"]) for name, arm in arms.items()}
    result["on_over_off"] = medians["on"] / medians["off"]
    if peer:
        whole = statistics.median(peer_medians)
        result["peer"] = {
            "script": os.path.basename(peer[1]),
            "median": whole,
            "medians": peer_medians,
            "ours_over_peer": {name: medians[name] / whole for name in arms},
            "by_round": ratios,
        }
    return result


def print_result(result: dict[str, Any]) -> None:
    """The table, then what it was measured on."""
    arms, settings = result["salt"], result["settings"]

    def cell(name: str, part: str, statistic: str) -> str:
        return f"{1e3 * arms[name]['seconds'][part][statistic]:.1f}"

    rows = [[part, *(cell(n, part, s) for n in ("off", "on") for s in ("median", "min"))] for part in PARTS]
    report.print_table(
        f"milliseconds per step, {result['shapes']['parameters']:,} parameters",
        ("part", "off median", "off min", "on median", "on min"),
        rows,
    )
    print(f"SALT on / off, medians of whole steps: {result['on_over_off']:.3f}")
    if "peer" in result:
        peer = result["peer"]
        print(f"{peer['script']}: {1e3 * peer['median']:.1f} ms per step (runs: {peer['medians']})")
        for name, ratio in peer["ours_over_peer"].items():
            rounds = ", ".join(f"{r:.2f}" for r in peer["by_round"][name])
            print(f"ours, SALT {name}, over the peer: {ratio:.2f} (round by round {rounds})")
    hardware, versions = result["hardware"], result["versions"]
    print(f"{hardware['cpu']}, {hardware['cores']} cores, load {hardware['load_average']}; {hardware['device']}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()), "; commit", result["commit"])
    print(f"GLIBC_TUNABLES: {settings['GLIBC_TUNABLES'] or 'not set (glibc.malloc.hugetlb=1 spares page faults)'}")


def main(arguments: Sequence[str] | None = None, config: config_dict.ConfigDict | None = None) -> dict[str, Any]:
    """Command line; ``config`` replaces the peers' shape (tests)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each arm")
    parser.add_argument("--json", help="file to write the result to")
    parser.add_argument("--tunix", nargs=2, metavar=("PYTHON", "SCRIPT"), help="a peer to run in turns with ours")
    parser.add_argument("--rounds", type=int, default=3, help="turns with the peer")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.rounds < 1:
        parser.error("--steps and --rounds must be at least 1")
    rounds = options.rounds if options.tunix else 1
    result = report.surroundings() | measure(config or peers_config(), options.steps, rounds, options.tunix)
    if config is None and result["shapes"]["parameters"] != PARAMETERS:
        raise AssertionError(f"{result['shapes']['parameters']} parameters, the peers have {PARAMETERS}")
    print_result(result)
    if options.json:
        report.write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
