"""GRPO against GRPO + SALT from one warm start and seed: python -m experiments.compare --config=FILE --workdir=DIR.

Runs DIR/warm_start (the supervised phase alone), then DIR/grpo and DIR/salt from its policy, alike but for
config.salt.enabled, overlays them in DIR/reward.png and DIR/geometry.png and prints one table. This is what
`make train` does. The same command resumes where it was interrupted; a finished arm is not run again.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import cli, plot
from experiments.train import ALLOW
from salt_jax.distributed import hosts
from salt_jax.run.config import parse
from salt_jax.run.loop import train
from salt_jax.run.provenance import made_from
from salt_jax.run.setup import check, may_change
from salt_jax.run.workdir import check_workdir
from salt_jax.spec import ConfigError

ARMS = {"grpo": False, "salt": True}  # folder -> config.salt.enabled


def plan(config: Any, folder: Path) -> dict[Path, Any]:
    """The runs in order, each with its configuration; the arms differ in ``salt.enabled`` alone."""
    if config.init_from:
        raise ConfigError("config.init_from must be '' here: both arms start from the warm start in --workdir")
    warm = copy.deepcopy(config)
    warm.steps = 0
    runs = {folder / "warm_start": warm}
    for name, enabled in ARMS.items():
        arm = copy.deepcopy(config)
        arm.warm_start.steps = 0
        arm.init_from = os.path.relpath(folder / "warm_start")  # however --workdir was written
        arm.salt.enabled = enabled
        runs[folder / name] = arm
    return runs


def main() -> None:
    """Checks all three runs, then makes them."""
    folder = Path(str(cli.WORKDIR.value))
    if (folder / "config.json").exists():
        raise ConfigError(f"--workdir={folder} holds a run; name another folder")
    runs = plan(cli.CONFIG.value, folder)
    check(runs[folder / "warm_start"], folder / "warm_start", allow=ALLOW.value)  # all but what distinguishes the arms
    for path, config in runs.items():
        run = parse(config)
        check_workdir(path.absolute(), config.to_dict(), may_change(run, path.absolute(), made_from(path.absolute())))
    console = Console()
    for path, config in runs.items():
        console.rule(path.name)
        train(config, path, console, allow=ALLOW.value)
    if not hosts.lead():
        return
    arms = [folder / name for name in ARMS]
    plot.draw(arms, folder)
    plot.print_table(arms)
    console.print(f"plots: {folder / 'reward.png'}, {folder / 'geometry.png'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
