"""Trains a policy: python -m experiments.train --config=configs/arithmetic.py --workdir=DIR [--config.KEY=VALUE …].

Writes DIR/metrics.jsonl (one JSON object a step), evaluations.jsonl, TensorBoard events, checkpoints,
summary.json, reward.png and geometry.png. The same command resumes a run that was interrupted;
more steps (--config.steps) go on with one that has ended, where config.optimizer.schedule is constant. Data, model and
grader that are not what they were at its start are refused, but for what --allow names.
Exit status: 0 done, 2 wrong input (nothing written), 1 the run stopped itself (one line says why), 130 or 143
interrupted by SIGINT or SIGTERM, saved. The same command on every host makes one run (docs/many_hosts.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from experiments import cli, plot
from salt_jax.distributed import hosts
from salt_jax.run.loop import train
from salt_jax.run.preemption import watching

ALLOW = flags.DEFINE_list(
    "allow", [], "What a resumed run may be made from though it is not as it was, by name: task.train,grader."
)


def main() -> None:
    """Runs the training, draws its plots and prints what it did."""
    folder = Path(str(cli.WORKDIR.value))
    train(cli.CONFIG.value, folder, allow=ALLOW.value)
    if not hosts.lead():
        return
    with watching():  # a signal that comes now waits a second for the plots
        plot.draw([folder], folder)
    plot.print_table([folder])
    print(f"plots: {folder / 'reward.png'}, {folder / 'geometry.png'}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
