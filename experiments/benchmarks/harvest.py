"""What the geometry sees of real rollouts: hidden states, targets, mask and advantages of single rollout batches.

    python -m experiments.benchmarks.harvest --out FOLDER [--steps 0 100 400]

Trains the arithmetic configuration (GRPO, SALT off) from its warm start by the library's own functions, and writes
FOLDER/step_N.npz for each N: hidden (m, T, H), lm_head (H, V), targets (m, T), mask (m, T), advantages (m,), of one
rollout batch sampled from the policy after N steps. `experiments.benchmarks.sketch_error` reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from ml_collections import config_dict

from configs import arithmetic
from experiments.arguments import local_path
from experiments.benchmarks.arms import TaskRun
from salt_jax.objective.objective import advantages
from salt_jax.policy.logprobs import completion_scores

Observed = dict[str, np.ndarray]
NAMES = ("hidden", "lm_head", "targets", "mask", "advantages")


def harvest(config: config_dict.ConfigDict, steps: Sequence[int]) -> Iterator[tuple[int, Observed]]:
    """(N, what the geometry sees after N steps) for each N of ``steps``, ascending."""
    with TaskRun(config) as session:
        arm, done = session.arm(session.warm_started(), variant={"enabled": False}), 0
        for n in sorted(steps):
            while done < n:
                arm.step()
                done += 1
            rollouts = arm.grade(arm.sample(arm.state))
            model = nnx.merge(session.policy, arm.state.params)
            group_size = arm.run.rollouts.rollouts_per_prompt
            hidden = completion_scores(model, rollouts, group_size=group_size).hidden
            seen = (
                hidden,
                model.lm_head,
                rollouts.completions,
                rollouts.loss_mask,
                advantages(rollouts.rewards, group_size, arm.run.objective, rewarded=rollouts.rewarded),
            )
            yield n, {name: np.asarray(x) for name, x in zip(NAMES, jax.device_get(seen), strict=True)}


def main(arguments: Sequence[str] | None = None, config: config_dict.ConfigDict | None = None) -> None:
    """Command line; ``config`` replaces the arithmetic configuration (tests)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=local_path, required=True, help="folder for step_N.npz")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 100, 400], help="training steps before a batch")
    options = parser.parse_args(arguments)
    if min(options.steps) < 0:
        parser.error("--steps must not be negative")
    options.out.mkdir(parents=True, exist_ok=True)
    for n, observed in harvest(config or arithmetic.get_config(), options.steps):
        np.savez_compressed(options.out / f"step_{n}.npz", allow_pickle=False, **observed)
        shapes = ", ".join(f"{name} {x.shape}" for name, x in observed.items())
        print(f"after {n} steps: {shapes}; {int(observed['mask'].sum())} tokens")


if __name__ == "__main__":
    main()
