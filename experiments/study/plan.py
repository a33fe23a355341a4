"""The study as data: arms, seeds, learning rates and group sizes, and the six contrasts written down beforehand.

A run is named by what distinguishes it, 'salt-g16-r0.0003-s1', and its configuration is configs/arithmetic.py with
``changes``: nothing else differs between arms. What is tested, and why in this way: docs/results/README.md.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import arithmetic
from salt_jax.spec import ConfigError

STEPS = 1200
ROLLOUTS = 512  # a step, whatever G
GROUP = 16
RATES = (1e-4, 3e-4, 9e-4)
RATE_SEEDS = (101, 102)  # on which an arm's learning rate is chosen; never among SEEDS
SEEDS = tuple(range(1, 13))
SCALING_GROUPS = (2, 4, 16, 64, 256)
SCALING_SEEDS = SEEDS[:4]
EXPLORATORY_SEEDS = SEEDS[:3]

# What an arm changes. α is 1 in `scaled`: a common factor of a mini-batch does nothing under Adam but where it is 0,
# and what the control must act on is 1 − p of each group.
ARMS: dict[str, dict[str, Any]] = {
    "grpo": {"salt.enabled": False},
    "salt": {},
    "scaled": {"salt.variant": "scaled", "salt.alpha_min": 1.0},
    "positive_only": {"salt.variant": "positive_only"},
    "natural": {"salt.variant": "natural"},
    "natural_positive": {"salt.variant": "natural_positive"},
    "permuted": {"salt.variant": "permuted"},
}

# At the learning rate of the arm after the colon; 3 seeds, no test: leads, not results.
EXPLORATORY: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: ("salt", {"salt.variant": name})
        for name in (
            "residual_only", "signed", "no_projection", "random_projection", "fixed_alpha", "pr_alpha", "entropy_alpha",
            "matched_random", "update_norm_matched", "amplify", "complement", "soft_filter",
        )
    },
    "salt_group": ("salt", {"salt.scope": "group"}),
    "salt_unit4": ("salt", {"salt.scope": "4"}),
    "salt_sum": ("salt", {"salt.length_normalize": False}),
    "salt_taken": ("salt", {"salt.feature": "taken_token"}),
    "salt_taken_unit4": ("salt", {"salt.feature": "taken_token", "salt.scope": "4"}),
    "natural_group": ("natural", {"salt.variant": "natural", "salt.scope": "group"}),
    "natural_positive_rho03": ("natural_positive", {"salt.variant": "natural_positive", "salt.rho": 0.3}),
    "natural_positive_rho3": ("natural_positive", {"salt.variant": "natural_positive", "salt.rho": 3.0}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Contrast:
    """arm − against, greedy accuracy after the last step, paired by seed.

    claimed: the sign that the method's own claim gives it.  expected: what the trials before the study suggested.
    """

    arm: str
    against: str
    claimed: str
    expected: str


CONTRASTS = (
    Contrast("salt", "grpo", "+", "-"),
    Contrast("salt", "scaled", "+", "-"),
    Contrast("positive_only", "grpo", "0", "+"),
    Contrast("natural", "grpo", "+", "+"),
    Contrast("natural_positive", "positive_only", "+", "0"),
    Contrast("salt", "permuted", "+", "+"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the study; ``name`` is a file's name and is read back by ``parse``.

    >>> Run("salt", 3e-4, 1).name
    'salt-g16-r0.0003-s1'
    >>> parse(Run("salt", 3e-4, 1).name) == Run("salt", 3e-4, 1)
    True
    """

    arm: str
    rate: float
    seed: int
    group: int = GROUP

    @property
    def name(self) -> str:
        """What distinguishes it."""
        return f"{self.arm}-g{self.group}-r{self.rate:g}-s{self.seed}"

    @property
    def changes(self) -> dict[str, Any]:
        """Keys of configs/arithmetic.py that differ, without those that all runs share."""
        arm = ARMS[self.arm] if self.arm in ARMS else EXPLORATORY[self.arm][1]
        return arm | {
            "seed": self.seed, "optimizer.learning_rate": self.rate, "sampling.rollouts_per_prompt": self.group,
            "sampling.prompts_per_step": ROLLOUTS // self.group,
        }  # fmt: skip


# How often a run looks and saves; no influence on what it learns.
SHARED: dict[str, Any] = {
    "steps": STEPS, "evaluation.every": 200, "checkpoint.every": 300, "checkpoint.keep": 1,
    "logging.tensorboard": False, "logging.print_every": 200,
}  # fmt: skip
# Of the evaluation of the last policy at temperature 1.
SAMPLED: dict[str, Any] = {"evaluation.samples": 8, "evaluation.temperature": 1.0, "evaluation.problems": 500}


def parse(name: str) -> Run:
    """The run of that name.

    Raises:
      ConfigError: one line: the name is of no run.
    """
    match = re.fullmatch(r"(\w+)-g(\d+)-r([\d.e-]+)-s(\d+)", name)
    try:
        if match and (match[1] in ARMS or match[1] in EXPLORATORY):
            run = Run(match[1], float(match[3]), int(match[4]), int(match[2]))
            if run.name == name and run.group and ROLLOUTS % run.group == 0:
                return run
    except ValueError:
        pass
    raise ConfigError(
        f"{name!r} names no run; write ARM-gG-rRATE-sSEED, as salt-g16-r0.0003-s1, with G a divisor of 512"
    )


def config_of(run: Run, warm: Path) -> ConfigDict:
    """configs/arithmetic.py with the run's changes, from the policy of the warm start in ``warm``."""
    config = _changed(SHARED | run.changes)
    config.warm_start.steps = 0
    config.init_from = os.path.relpath(warm)
    return config


def warm_config(seed: int) -> ConfigDict:
    """The supervised phase alone: where all runs of a seed start."""
    return _changed(SHARED | {"steps": 0, "seed": seed})


def _changed(changes: Mapping[str, Any]) -> ConfigDict:
    config = arithmetic.get_config()
    config.update_from_flattened_dict(dict(changes))
    return config


def rate_runs() -> list[Run]:
    """Every arm at every rate, on seeds of their own."""
    return [Run(arm, rate, seed) for seed in RATE_SEEDS for arm in ARMS for rate in RATES]


def chosen_rates(accuracy: Mapping[str, float]) -> dict[str, float]:
    """The learning rate of each arm: the highest mean accuracy over RATE_SEEDS, of equal ones the lower rate.

    Args:
      accuracy: of a run's name, after its last step; a run that stopped itself counts as 0.

    Raises:
      ConfigError: runs are missing, with the first of them.
    """
    missing = [run.name for run in rate_runs() if run.name not in accuracy]
    if missing:
        raise ConfigError(
            f"learning rates are not chosen yet: {len(missing)} runs of 'rates' are missing, as {missing[0]}"
        )

    def mean(arm: str, rate: float) -> float:
        return sum(accuracy[Run(arm, rate, seed).name] for seed in RATE_SEEDS) / len(RATE_SEEDS)

    return {arm: max(RATES, key=lambda rate: (mean(arm, rate), -rate)) for arm in ARMS}


def contrast_runs(rates: Mapping[str, float]) -> list[Run]:
    """The arms of the six contrasts, a seed at a time: what is cut short has whole pairs."""
    return [Run(arm, rates[arm], seed) for seed in SEEDS for arm in ARMS]


def scaling_arms(accuracy: Mapping[str, float], rates: Mapping[str, float]) -> tuple[str, ...]:
    """GRPO, SALT, positive_only, and the better of natural and natural_positive over the seeds of the contrasts."""

    def mean(arm: str) -> float:
        return sum(accuracy[Run(arm, rates[arm], seed).name] for seed in SEEDS) / len(SEEDS)

    return ("grpo", "salt", "positive_only", max(("natural", "natural_positive"), key=mean))


def scaling_runs(rates: Mapping[str, float], arms: Iterable[str]) -> list[Run]:
    """G at a fixed number of rollouts a step; G = 16 is shared with the contrasts."""
    return [
        Run(arm, rates[arm], seed, group)
        for seed in SCALING_SEEDS
        for group in SCALING_GROUPS
        for arm in arms
    ]


def exploratory_runs(rates: Mapping[str, float]) -> list[Run]:
    """Ablations, controls, other units and features."""
    return [
        Run(arm, rates[like], seed) for seed in EXPLORATORY_SEEDS for arm, (like, _) in EXPLORATORY.items()
    ]


def runs(part: str, accuracy: Mapping[str, float]) -> Sequence[Run]:
    """The runs of a part of the study, in order; later parts need what earlier ones found.

    Raises:
      ConfigError: one line: an earlier part is not done.
    """
    if part == "rates":
        return rate_runs()
    rates = chosen_rates(accuracy)
    if part == "contrasts":
        return contrast_runs(rates)
    if part == "exploratory":
        return exploratory_runs(rates)
    missing = [run.name for run in contrast_runs(rates) if run.name not in accuracy]
    if missing:
        raise ConfigError(
            f"the best geometric arm is not known yet: {len(missing)} runs of 'contrasts' are missing, as {missing[0]}"
        )
    return scaling_runs(rates, scaling_arms(accuracy, rates))


PARTS = ("rates", "contrasts", "scaling", "exploratory")
