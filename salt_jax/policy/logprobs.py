"""Log-probabilities, entropies and hidden states of completions under a policy, without an (N, T, V) array."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from salt_jax.distributed.layout import Layout
from salt_jax.geometry import Sketch, hidden_moment, num_signs, rollout_sketches
from salt_jax.policy.transformer import Decoder
from salt_jax.rollout import RolloutBatch
from salt_jax.vocab import DEFAULT_CHUNK, projected_log_probs, token_log_probs
from salt_jax.vocab.kept import KeptRule, kept_log_mass, log_proxy

Array = jax.Array


class CompletionScores(NamedTuple):
    """What one forward pass says about N completions of T tokens; D is the hidden width.

    Attributes:
      log_probs: (N, T) float32 nats, of each completion token under the policy at the given temperature.
      entropy: (N, T) float32 nats, of the distribution each token was drawn from.
      log_normalizer: (N, T) float32, log-sum-exp of the scaled logits; no gradient.
      hidden: (N, T, D), the states that predict each token; None where they were dropped to save memory.
      sketch: (N, r) float32, sketched LM-head gradient features; None unless asked for. No gradient.
      moment: (D, e) float32, ``geometry.hidden_moment`` of these rollouts and the sketch's basis; None without one.
      kept_log_mass: (N, T) float32 nats, log Σ p over what a rule keeps, with gradient; None unless asked for.
      log_proxy: (N, T) float32 nats, of each token under what is kept, renormalised; −1e4 where it is not kept; None
        unless asked for. No gradient.
    """

    log_probs: Array
    entropy: Array
    log_normalizer: Array
    hidden: Array | None
    sketch: Array | None = None
    moment: Array | None = None
    kept_log_mass: Array | None = None
    log_proxy: Array | None = None


def completion_scores(
    model: Decoder,
    rollouts: RolloutBatch,
    *,
    group_size: int,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK,
    layout: Layout | None = None,
    sketch: Sketch | None = None,
    kept: KeptRule | None = None,
) -> CompletionScores:
    """Scores the completions of a batch of rollouts; each group's prompt is processed once.

    log π(y_t | prompt, y_<t) with z = W h / τ, the distribution the sampler draws from when no filter is on.

    Args:
      model: the policy.
      rollouts: N rollouts, groups contiguous.
      group_size: how many consecutive rows share their prompt; divides N.
      temperature: τ > 0, as in sampling.
      chunk_size: vocabulary columns held at once.
      layout: where rollouts and the output projection lie on a mesh; None leaves it to jit.
      sketch: also project each rollout's gradient feature (``geometry.lm_head_sketch``), from the same logits.
      kept: also the mass of the tokens that this rule keeps, and the tokens' log-probabilities among them.

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
    head, targets = model.lm_head, rollouts.completions
    if sketch is None:
        scores = token_log_probs(
            hidden, head, targets, temperature=temperature, chunk_size=chunk_size, layout=layout
        )
        found = CompletionScores(*scores, hidden)
    else:
        found = _with_sketch(hidden, head, rollouts, sketch, temperature, chunk_size, layout)
    if kept is None:
        return found
    mass = kept_log_mass(hidden, head, kept, temperature=temperature, chunk_size=chunk_size, layout=layout)
    return found._replace(kept_log_mass=mass.log_mass, log_proxy=log_proxy(found.log_probs, mass))


def _with_sketch(
    hidden: Array, head: Array, rollouts: RolloutBatch, sketch: Sketch, temperature: float, chunk_size: int,
    layout: Layout | None,
) -> CompletionScores:
    """Scores, sketched features and moment of N completions, from one stream of logits."""
    scores, projected = projected_log_probs(
        hidden, head, rollouts.completions, sketch.key, sketch.heavy,
        num_signs=num_signs(sketch.rank_vocab, head.shape[1]),
        temperature=temperature, chunk_size=chunk_size, layout=layout,
    )
    mask, moment = rollouts.loss_mask, None
    features = rollout_sketches(hidden, projected, mask, sketch)
    if sketch.basis is not None:
        moment = hidden_moment(hidden, mask, sketch.basis, length_normalize=sketch.length_normalize)
    return CompletionScores(*scores, hidden, features, moment)
