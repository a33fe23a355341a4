"""Seconds per whole training step (sample, reward on the host, update), SALT off and on, at the peers' shape.

    python -m experiments.benchmarks.step_time [--steps=30] [--json=FILE] [--peer NAME PYTHON SCRIPT]...

8 prompts x 8 rollouts, prompt 32, completion 64 tokens; Qwen2-like, 2 layers, width 128, 4 heads, 2 key/value
heads, MLP 384, vocabulary 512, tied, float32: 459,904 parameters; Adam 3e-3, one update a step; the reward is the
share of characters below code point 128. The two arms take turns step by step, so that both see the same machine.

``--peer``, which may be repeated, runs another library's script with its own interpreter, in turns with this one (ours,
each peer, ours, …), and prints the ratios of medians. The script prints "steady SECONDS s/step"; it gets the number of
steps as argument, and BETA=0 in its environment, for no KL term.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import statistics
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import config_dict

from configs import base
from experiments.arguments import local_path
from experiments.benchmarks import arms, report
from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.learner.state import TrainState, init_params, init_state, make_optimizer, make_policy
from salt_jax.learner.step import jit_train_step, sampling_key
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import sample
from salt_jax.rollout import RolloutBatch
from salt_jax.run import config as training_config

VOCABULARY = 512  # pad 0, end 1, start 2, then characters: token = 3 + code point
PARAMETERS = 459_904
PAD, STOP, FIRST_CHARACTER = 0, 1, 3


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


def make_arm(config: config_dict.ConfigDict, *, salt: bool) -> arms.Arm:
    """An arm at the shape of ``config``, with the peers' vocabulary, prompts and reward."""
    config = config.copy_and_resolve_references()
    config.salt.enabled = salt
    run = training_config.parse(config)
    shape = TransformerConfig(**(vars(run.policy) | {"vocab_size": VOCABULARY}))
    policy, optimizer = make_policy(shape), make_optimizer(run.optimizer, run.steps)
    state, mesh = init_state(init_params(shape, jax.random.key(0)), optimizer, jax.random.key(1)), make_mesh()
    state = jax.device_put(state, tree_shardings(state, mesh))
    rng, group_size = np.random.default_rng(0), run.rollouts.rollouts_per_prompt

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

    def sample_batch(state: TrainState) -> Any:
        size = run.rollouts
        return generate(state, *random_prompts(rng, size.prompts_per_step, size.max_prompt_length))

    def grade(sampled: tuple[RolloutBatch, jax.Array]) -> RolloutBatch:
        rollouts, lengths = sampled
        rewards = reward(np.asarray(rollouts.completions), np.asarray(lengths))
        return dataclasses.replace(rollouts, rewards=jnp.asarray(rewards))

    return arms.Arm(run, state, sample_batch, grade, jit_train_step(run, policy, optimizer, mesh, state))


class Peer(NamedTuple):
    """Another library's benchmark script, and the Python that has the library."""

    name: str
    python: str
    script: str


def peer_seconds(peer: Peer, steps: int) -> float:
    """Median seconds per step that a peer's script reports of itself, on CPU and without a KL term."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "BETA": "0"}
    environment.pop("PYTHONPATH", None)  # the peer has packages of its own
    done = subprocess.run(
        [peer.python, peer.script, str(steps)], env=environment, capture_output=True, text=True
    )
    found = re.search(r"steady ([0-9.]+) s/step", done.stdout)
    if not found:
        raise RuntimeError(f"{peer.script} printed no 'steady SECONDS s/step': {(done.stderr or done.stdout)[-500:]}")
    return float(found[1])


def measure(
    config: config_dict.ConfigDict, steps: int, rounds: int = 1, peers: Sequence[Peer] = ()
) -> dict[str, Any]:
    """Times ``steps`` steps of both arms in turns, in ``rounds`` parts with a run of every peer after each."""
    pair = {name: make_arm(config, salt=name == "on") for name in ("off", "on")}
    compile_seconds = {name: arm.warm_up() for name, arm in pair.items()}
    per_round = max(steps // rounds, 1)
    peer_medians: dict[str, list[float]] = {peer.name: [] for peer in peers}
    ratios: dict[str, dict[str, list[float]]] = {peer.name: {name: [] for name in pair} for peer in peers}
    for i in range(rounds):
        arms.take_turns(pair, per_round)
        now = {name: statistics.median(arm.seconds["step"][i * per_round :]) for name, arm in pair.items()}
        for peer in peers:
            peer_medians[peer.name].append(peer_seconds(peer, max(per_round, 4)))
            for name in pair:
                ratios[peer.name][name].append(now[name] / peer_medians[peer.name][-1])
    run = pair["off"].run
    result: dict[str, Any] = {
        "shapes": {
            "parameters": pair["off"].parameters,
            "prompts": run.rollouts.prompts_per_step,
            "rollouts_per_prompt": run.rollouts.rollouts_per_prompt,
            "prompt_tokens": run.rollouts.max_prompt_length,
            "completion_tokens": run.sampling.max_new_tokens,
            "vocabulary": VOCABULARY,
            **{k: v for k, v in vars(run.policy).items() if k != "vocab_size"},
        },
        "salt": {
            name: {
                "seconds": arm.spreads(),
                "first_two_steps": compile_seconds[name],
                "mean_length": statistics.mean(seen["completion_length"] for seen in arm.metrics),
                "reward": [arm.metrics[0]["reward"], arm.metrics[-1]["reward"]],
            }
            for name, arm in pair.items()
        },
    }
    medians = arms.medians(pair)
    result["on_over_off"] = medians["on"] / medians["off"]
    result["peers"] = {}
    for peer in peers:
        whole = statistics.median(peer_medians[peer.name])
        result["peers"][peer.name] = {
            "script": os.path.basename(peer.script),
            "median": whole,
            "medians": peer_medians[peer.name],
            "ours_over_peer": {name: medians[name] / whole for name in pair},
            "by_round": ratios[peer.name],
        }
    return result


def targets(result: dict[str, Any]) -> list[report.Target]:
    """The aims: at most half a peer's step with SALT off, 0.65 of it with SALT on."""
    return [
        report.Target(f"ours, SALT {name}, over {peer}", measured["ours_over_peer"][name], limit)
        for peer, measured in result["peers"].items()
        for name, limit in (("off", 0.5), ("on", 0.65))
    ]


def print_result(result: dict[str, Any]) -> None:
    """The table, then what it was measured on."""
    measured = result["salt"]

    def cell(name: str, part: str, statistic: str) -> str:
        return f"{1e3 * measured[name]['seconds'][part][statistic]:.1f}"

    rows = [[part, *(cell(n, part, s) for n in ("off", "on") for s in ("median", "min"))] for part in arms.PARTS]
    report.print_table(
        f"milliseconds per step, {result['shapes']['parameters']:,} parameters",
        ("part", "off median", "off min", "on median", "on min"),
        rows,
    )
    print(f"SALT on / off, medians of whole steps: {result['on_over_off']:.3f}")
    for peer, seen in result["peers"].items():
        print(f"{peer} ({seen['script']}): {1e3 * seen['median']:.1f} ms per step (runs: {seen['medians']})")
        for name, ratio in seen["ours_over_peer"].items():
            rounds = ", ".join(f"{r:.2f}" for r in seen["by_round"][name])
            print(f"ours, SALT {name}, over {peer}: {ratio:.2f} (round by round {rounds})")
    report.print_targets(targets(result))
    report.print_surroundings(result)


def main(arguments: Sequence[str] | None = None, config: config_dict.ConfigDict | None = None) -> dict[str, Any]:
    """Command line; ``config`` replaces the peers' shape (tests)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each arm")
    parser.add_argument("--json", type=local_path, help="file to write the result to")
    parser.add_argument(
        "--peer", nargs=3, action="append", default=[], metavar=("NAME", "PYTHON", "SCRIPT"),
        help="another library, run in turns with ours; may be repeated",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="turns with the peers")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.rounds < 1:
        parser.error("--steps and --rounds must be at least 1")
    peers = [Peer(*peer) for peer in options.peer]
    if len({peer.name for peer in peers}) < len(peers):
        parser.error("each --peer needs a NAME of its own")
    rounds = options.rounds if peers else 1
    result = report.surroundings() | measure(config or peers_config(), options.steps, rounds, peers)
    if config is None and result["shapes"]["parameters"] != PARAMETERS:
        raise AssertionError(f"{result['shapes']['parameters']} parameters, the peers have {PARAMETERS}")
    print_result(result)
    result["targets"] = [target.record() for target in targets(result)]
    if options.json:
        report.write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
