"""The one pytree that carries everything about a batch of rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array

# What some methods of the objective family need to know of a rollout besides; K components or ranks.
EXTRA = {
    "baseline": "(N,) float32, the baseline of the group, found outside: the mean of a larger pool",
    "clusters": "(N,) int32, semantic class of the completion; equal numbers are equal only within a group",
    "components": "(N, K) float32, the parts of the reward, or the relevance of each rank of a list",
    "demonstration": "(N,) bool, true where the completion is the data's and not the policy's",
    "injected": "(N,) bool, true where the rollout was chosen for being right: its advantage is 1",
    "segments": "(N, T) int32, which macro-action or list item a token belongs to; consecutive, from 0",
    "weight": "(N,) float32, multiplies the advantage",
}


@struct.dataclass
class RolloutBatch:
    """N = B·G rollouts of B prompts, groups contiguous: rollout i belongs to prompt i // G.

    Shapes are fixed: the prompt is left-padded to P tokens and the completion right-padded to T tokens.
    Masks come from the sampler's lengths, never from the pad id, so an end-of-sequence token counts as a
    token of the completion.

    Attributes:
      tokens: (N, P+T) int32, prompt then completion.
      prompt_mask: (N, P) bool, true on real prompt tokens.
      completion_mask: (N, T) bool, true on sampled tokens.
      sampler_log_probs: (N, T) float32, nats, under the distribution that was sampled from; 0 where masked.
      rewards: (N,) float32; meaningless where ``rewarded`` is false.
      rewarded: (N,) bool, false where the grader failed.
      valid: (N,) bool, false for rows that only pad the batch to its fixed shape.
      truncated: (N,) bool, true where the completion was cut off at T tokens.
      extra: what the run's methods need besides, by the names of ``EXTRA``; empty where they need nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> rollouts = RolloutBatch(
      ...     tokens=jnp.zeros((4, 5), jnp.int32), prompt_mask=jnp.ones((4, 2), bool),
      ...     completion_mask=jnp.ones((4, 3), bool), sampler_log_probs=jnp.zeros((4, 3)),
      ...     rewards=jnp.ones(4), rewarded=jnp.ones(4, bool), valid=jnp.ones(4, bool),
      ...     truncated=jnp.zeros(4, bool))
      >>> rollouts.num_rollouts, rollouts.prompt_length, rollouts.completions.shape
      (4, 2, (4, 3))
    """

    tokens: Array
    prompt_mask: Array
    completion_mask: Array
    sampler_log_probs: Array
    rewards: Array
    rewarded: Array
    valid: Array
    truncated: Array
    extra: Mapping[str, Array] = struct.field(default_factory=dict)

    @property
    def num_rollouts(self) -> int:
        """N, the number of rows, padding rows included."""
        return self.tokens.shape[0]

    @property
    def prompt_length(self) -> int:
        """P, the padded prompt length in tokens."""
        return self.prompt_mask.shape[1]

    @property
    def prompts(self) -> Array:
        """(N, P) prompt tokens, left-padded."""
        return self.tokens[:, : self.prompt_length]

    @property
    def completions(self) -> Array:
        """(N, T) completion tokens, right-padded."""
        return self.tokens[:, self.prompt_length :]

    @property
    def loss_mask(self) -> Array:
        """(N, T) bool: tokens that may carry a gradient (real token, valid row, graded)."""
        return self.completion_mask & (self.valid & self.rewarded)[:, None]

    def trimmed(self, prompt_length: int, completion_length: int) -> RolloutBatch:
        """Without the first columns of the prompts and the last ones of the completions, where all rows are padding.

        Shapes must be static, so what is cut is not looked at: the caller knows the longest prompt and completion.

        Args:
          prompt_length: columns of the prompts to keep, 1 to P; at least the longest real prompt.
          completion_length: columns of the completions to keep, 1 to T; at least the longest completion.

        Returns:
          The batch with P = ``prompt_length`` and T = ``completion_length``.

        Raises:
          ValueError: if there are fewer columns than asked for, or fewer than one is asked for.

        Example:
          >>> import jax.numpy as jnp
          >>> rollouts = RolloutBatch(
          ...     tokens=jnp.array([[9, 1, 2, 3, 9]]), prompt_mask=jnp.array([[False, True]]),
          ...     completion_mask=jnp.array([[True, True, False]]), sampler_log_probs=jnp.zeros((1, 3)),
          ...     rewards=jnp.ones(1), rewarded=jnp.ones(1, bool), valid=jnp.ones(1, bool),
          ...     truncated=jnp.zeros(1, bool))
          >>> rollouts.trimmed(1, 2).tokens.tolist()
          [[1, 2, 3]]
        """
        there = self.prompt_length, self.completion_mask.shape[1]
        for name, asked, held in zip(("prompt", "completion"), (prompt_length, completion_length), there, strict=True):
            if not 1 <= asked <= held:
                raise ValueError(f"{name}_length = {asked} is not allowed; allowed: 1 to {held}")
        first = self.prompt_length - prompt_length
        return dataclasses.replace(
            self,
            tokens=self.tokens[:, first : self.prompt_length + completion_length],
            prompt_mask=self.prompt_mask[:, first:],
            completion_mask=self.completion_mask[:, :completion_length],
            sampler_log_probs=self.sampler_log_probs[:, :completion_length],
            extra={
                name: value[:, :completion_length] if name == "segments" else value
                for name, value in self.extra.items()
            },
        )


def succeeded(rewards: Any, rewarded: Any, correct_from: float = 1.0) -> Any:
    """Which rollouts succeeded: graded, with a reward of at least ``correct_from``. The only place that says so.

    ``rewards`` are the task's own, before any shaping: a penalty makes no failure of a success. They are float32, so
    the threshold is rounded to float32 too: 0.9 reaches 0.9.

    Args:
      rewards: (...) float32, of NumPy or JAX; not looked at where ``rewarded`` is false.
      rewarded: (...) bool.
      correct_from: config.task.correct_from. 1 fits rewards of 0 and 1 and of −1 and 1.

    Returns:
      (...) bool, of NumPy or JAX as the rewards are.

    Example:
      >>> succeeded(jnp.array([1.0, 0.01, 1.0]), jnp.array([True, True, False])).tolist()
      [True, False, False]
    """
    return (rewards >= np.float32(correct_from)) & rewarded


def bucket_length(longest: int, limit: int, buckets: int) -> int:
    """The least of ``buckets`` evenly spaced lengths up to ``limit`` that holds ``longest`` tokens.

    The lengths are ceil(limit * i / buckets), i = 1 to ``buckets``: a program is compiled for each of them that
    is met, and at most limit / buckets columns of a batch are padding in every row.

    Raises:
      ValueError: if ``longest`` is more than ``limit``, or one of the three is less than 1.

    Example:
      >>> [bucket_length(longest, 64, 4) for longest in (1, 16, 17, 64)]
      [16, 16, 32, 64]
    """
    if not 1 <= longest <= limit or buckets < 1:
        raise ValueError(f"no bucket for {longest} of at most {limit} tokens, {buckets} buckets")
    which = (longest - 1) * buckets // limit + 1
    return -(-limit * which // buckets)


def bundle(tree: Any, size: int) -> Any:
    """Reshapes the leading axis N of every leaf to (N / size, size): consecutive rows stay together.

    Raises:
      ValueError: if ``size`` does not divide N.

    Example:
      >>> import jax.numpy as jnp
      >>> bundle(jnp.arange(4), 2).tolist()
      [[0, 1], [2, 3]]
    """
    rows = jax.tree.leaves(tree)[0].shape[0]
    if size < 1 or rows % size:
        raise ValueError(f"{rows} rows do not divide into bundles of {size}")
    return jax.tree.map(lambda x: jnp.reshape(x, (rows // size, size, *x.shape[1:])), tree)


def unbundle(tree: Any) -> Any:
    """Merges the two leading axes of every leaf: the inverse of ``bundle``.

    Example:
      >>> import jax.numpy as jnp
      >>> unbundle(jnp.array([[0, 1], [2, 3]])).tolist()
      [0, 1, 2, 3]
    """
    return jax.tree.map(lambda x: jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:])), tree)
