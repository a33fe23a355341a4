"""The factory of each task but the mixture, which is made of these."""

from __future__ import annotations

from collections.abc import Callable

from salt_jax.tasks.aime import make_aime
from salt_jax.tasks.arithmetic import make_arithmetic
from salt_jax.tasks.dapo_math import make_dapo_math
from salt_jax.tasks.gpqa import make_gpqa
from salt_jax.tasks.gsm8k import make_gsm8k
from salt_jax.tasks.gym import make_reasoning_gym
from salt_jax.tasks.humaneval import make_humaneval
from salt_jax.tasks.jsonl import make_jsonl
from salt_jax.tasks.math import make_math
from salt_jax.tasks.mbpp import make_mbpp
from salt_jax.tasks.task import Task

SINGLE_TASKS: dict[str, Callable[..., Task]] = {
    "arithmetic": make_arithmetic,
    "gsm8k": make_gsm8k,
    "math": make_math,
    "dapo_math": make_dapo_math,
    "aime": make_aime,
    "gpqa": make_gpqa,
    "humaneval": make_humaneval,
    "mbpp": make_mbpp,
    "reasoning_gym": make_reasoning_gym,
    "jsonl": make_jsonl,
}
