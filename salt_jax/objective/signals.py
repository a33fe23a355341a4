"""What estimators, filters and token choices may look at: one pytree of constants about a batch of rollouts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from salt_jax.rollout import EXTRA, RolloutBatch

Array = jax.Array

# Signals beyond the rollouts themselves, which the trainer makes only where a method needs them.
OPTIONAL = {
    "log_probs": "log-probs of the policy before the step",
    "ref_log_probs": "log-probs of the reference policy",
    "entropy": "entropies of the policy before the step",
    "log_proxy": "log-probs of the sampled tokens under the policy without its unlikely tokens",
    "key": "a PRNG key",
}


@struct.dataclass
class Signals:
    """N = B·G graded rollouts, groups contiguous, and what is known of their tokens; None where nothing needs it.

    Attributes:
      rollouts: the batch, with its rewards and ``extra``.
      log_probs: (N, T) nats, under the policy before the step.
      ref_log_probs: (N, T) nats, under the reference policy.
      entropy: (N, T) nats, of the policy before the step.
      log_proxy: (N, T) nats, of the sampled token among the likely ones (Lp-Reg); very low where it is not one.
      signs: (N,), reward less its group's mean (``Estimate.signs``), where SALT or an entropy term changed advantages.
      key: PRNG key of what is drawn.
      progress: scalar in [0, 1], the share of the run that is done.
      correct_from: the least reward of a success, for ``rollout.succeeded``; static.

    Example:
      >>> from salt_jax.objective.signals import example_rollouts
      >>> Signals(example_rollouts(rewards=[1.0, 0.0])).graded.tolist()
      [True, True]
    """

    rollouts: RolloutBatch
    log_probs: Array | None = None
    ref_log_probs: Array | None = None
    entropy: Array | None = None
    log_proxy: Array | None = None
    signs: Array | None = None
    key: Array | None = None
    progress: Any = 0.0
    correct_from: float = struct.field(pytree_node=False, default=1.0)

    @property
    def graded(self) -> Array:
        """(N,) bool: rows of the policy's own whose reward is known."""
        graded = self.rollouts.rewarded & self.rollouts.valid
        demonstration = self.rollouts.extra.get("demonstration")
        return graded if demonstration is None else graded & ~demonstration

    def known(self, name: str, who: str) -> Array:
        """One of the optional signals.

        Raises:
          ValueError: it is absent, naming who needs it, or has another shape than the completions.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{who} needs {OPTIONAL[name]}: Signals.{name} is None")
        shape = self.rollouts.completion_mask.shape
        if name != "key" and value.shape != shape:
            wanted = f"must have the shape of completion_mask {shape}, got {value.shape}"
            raise ValueError(f"{who}: Signals.{name} {wanted}")
        return value

    def extra(self, name: str, who: str) -> Array:
        """One entry of ``rollouts.extra``.

        Raises:
          ValueError: it is absent, naming who needs it and what it is, or has another number of rows.
        """
        if name not in self.rollouts.extra:
            where = "see RolloutBatch.extra, config.collection"
            raise ValueError(f"{who} needs {name} with the rollouts ({EXTRA[name]}): {where}")
        value, rows = self.rollouts.extra[name], self.rollouts.num_rollouts
        if value.shape[:1] != (rows,):
            raise ValueError(f"{who}: {name} must have {rows} rows ({EXTRA[name]}), got {value.shape}")
        return value


def example_rollouts(rewards: Any, tokens: Any = None, lengths: Any = None, **extra: Any) -> RolloutBatch:
    """A small batch for examples and notebooks: rewards (N,), completions (N, T), their lengths.

    Args:
      rewards: (N,).
      tokens: (N, T) completions; zeros of one token by default.
      lengths: (N,) tokens of each completion; T by default.
      extra: entries of ``RolloutBatch.extra``.

    Returns:
      Rollouts of a prompt of one token, all graded and valid.

    Raises:
      ValueError: rewards that are not (N,), a name that is not in ``EXTRA``.

    Example:
      >>> example_rollouts([1.0, 0.0], tokens=[[3, 4], [3, 0]], lengths=[2, 1]).completion_mask.tolist()
      [[True, True], [True, False]]
    """
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 1:
        raise ValueError(f"rewards must have shape (N,), got {rewards.shape}")
    for name in extra:
        if name not in EXTRA:
            raise ValueError(f"{name!r} is no entry of RolloutBatch.extra; allowed: {', '.join(EXTRA)}")
    n = rewards.shape[0]
    completions = jnp.zeros((n, 1), jnp.int32) if tokens is None else jnp.asarray(tokens, jnp.int32)
    t = completions.shape[1]
    lengths_N = jnp.full(n, t) if lengths is None else jnp.asarray(lengths)
    yes = jnp.ones(n, bool)
    return RolloutBatch(
        tokens=jnp.concatenate([jnp.zeros((n, 1), jnp.int32), completions], axis=1),
        prompt_mask=yes[:, None],
        completion_mask=jnp.arange(t)[None, :] < lengths_N[:, None],
        sampler_log_probs=jnp.zeros((n, t), rewards.dtype),
        rewards=rewards, rewarded=yes, valid=yes, truncated=~yes,
        extra={name: jnp.asarray(value) for name, value in extra.items()},
    )
