"""Log-probabilities, entropies and hidden states of completions under a policy, without an (N, T, V) array."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from salt_jax.policy.transformer import Decoder
from salt_jax.rollout import RolloutBatch
from salt_jax.vocab import DEFAULT_CHUNK, token_log_probs

Array = jax.Array


class CompletionScores(NamedTuple):
    """What one forward pass says about N completions of T tokens; D is the hidden width.

    Attributes:
      log_probs: (N, T) float32 nats, of each completion token under the policy at the given temperature.
      entropy: (N, T) float32 nats, of the distribution each token was drawn from.
      log_normalizer: (N, T) float32, log-sum-exp of the scaled logits; no gradient.
      hidden: (N, T, D), the states that predict each token; None where they were dropped to save memory.
    """

    log_probs: Array
    entropy: Array
    log_normalizer: Array
    hidden: Array | None


def completion_scores(
    model: Decoder,
    rollouts: RolloutBatch,
    *,
    group_size: int,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK,
) -> CompletionScores:
    """Scores the completions of a batch of rollouts; each group's prompt is processed once.

    log π(y_t | prompt, y_<t) with z = W h / τ, the distribution the sampler draws from when no filter is on.

    Args:
      model: the policy.
      rollouts: N rollouts, groups contiguous.
      group_size: how many consecutive rows share their prompt; divides N.
      temperature: τ > 0, as in sampling.
      chunk_size: vocabulary columns held at once.

    Returns:
      ``CompletionScores``; values on masked tokens are meaningless.

    Raises:
      ValueError: if ``group_size`` does not divide the number of rollouts, or as ``token_log_probs`` raises.
    """
    n = rollouts.num_rollouts
    if n % group_size:
        raise ValueError(f"group_size={group_size} must divide the number of rollouts, {n}")
    completions = jnp.reshape(rollouts.completions, (n // group_size, group_size, -1))
    hidden = model.completion_hidden(
        rollouts.prompts[::group_size], rollouts.prompt_mask[::group_size], completions
    )
    hidden = jnp.reshape(hidden, (n, completions.shape[2], hidden.shape[-1]))
    scores = token_log_probs(
        hidden, model.lm_head, rollouts.completions, temperature=temperature, chunk_size=chunk_size
    )
    return CompletionScores(scores.log_probs, scores.entropy, scores.log_normalizer, hidden)
