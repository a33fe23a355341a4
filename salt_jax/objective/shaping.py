"""Reward shaping: what is added to, taken from or multiplied with rewards before advantages are formed."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array

CLUSTER_FORMS = ("multiply", "add")


def overlong_penalty(lengths: ArrayLike, max_length: int, buffer: int, *, floor: bool = True) -> Array:
    """DAPO's soft overlong punishment (arXiv 2503.14476), to be added to the reward.

    With n tokens, L = max_length and c = buffer::

        0                  n <= L − c
        (L − c − n)/c      L − c < n <= L
        −1                 L < n               the released verl code goes on falling: floor = False

    A buffer of 0 leaves a step: 0 up to L, −1 beyond (also without the floor, where no slope exists).

    Args:
      lengths: any shape, tokens of each completion.
      max_length: L, tokens; 20480 in DAPO.
      buffer: c, tokens, from 0 to max_length; 4096 in DAPO.
      floor: whether −1 is the least.

    Returns:
      Penalties of lengths' shape, in units of reward, float32 or wider.

    Raises:
      ValueError: max_length < 1, or buffer outside 0 … max_length.

    Example:
      >>> overlong_penalty(jnp.array([1, 16384, 18432, 20480, 20481]), 20480, 4096).tolist()
      [0.0, 0.0, -0.5, -1.0, -1.0]
    """
    if not max_length >= 1:
        raise ValueError(f"max_length = {max_length!r} is not allowed; allowed: integers >= 1")
    if not 0 <= buffer <= max_length:
        raise ValueError(f"buffer = {buffer!r} is not allowed; allowed: integers from 0 to max_length = {max_length}")
    lengths = jnp.asarray(lengths)
    dtype = jnp.promote_types(jnp.result_type(float) if lengths.dtype.kind in "iub" else lengths.dtype, jnp.float32)
    # Whole tokens are subtracted first, so that no length loses digits.
    over = (lengths - (max_length - buffer)).astype(dtype)
    if not buffer:
        return jnp.where(over > 0, -1.0, 0.0).astype(dtype)
    penalty = jnp.where(over > 0, -over / buffer, 0)
    return jnp.maximum(penalty, -1) if floor else penalty


def kl_in_reward(
    rewards: ArrayLike,
    log_probs: ArrayLike,
    ref_log_probs: ArrayLike,
    mask: ArrayLike,
    coef: float,
    clip: float | None = None,
) -> Array:
    """KL to the reference as a part of the reward: r − coef·Σ_t (log p − log p_ref), k1 summed over the completion.

    k1 is what belongs into a reward: its mean over rollouts is the KL divergence of whole completions. No gradient
    flows through the result.

    ==========================================  ==========================================================
    masked position                             takes no part, whatever it holds
    empty completion                            r, clipped
    a missing reward                            whatever it was: the advantages ignore it
    ==========================================  ==========================================================

    Args:
      rewards: (N,).
      log_probs: (N, T) nats, under the policy that sampled.
      ref_log_probs: (N, T) nats, under the reference.
      mask: (N, T) bool.
      coef: in units of reward per nat; 0.01 in OpenRLHF.
      clip: rewards are clipped to ±clip before the KL is subtracted, as OpenRLHF does with 10; None for no clip.

    Returns:
      (N,) shaped rewards.

    Raises:
      ValueError: a negative coef or clip, or shapes that do not fit.

    Example:
      >>> kl_in_reward(jnp.array([1.0]), jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -2.5]]), jnp.ones((1, 2)), 0.1)
      Array([0.9], dtype=float32)
    """
    if not 0 <= coef < math.inf:
        raise ValueError(f"coef = {coef!r} is not allowed; allowed: finite numbers >= 0")
    if clip is not None and not clip >= 0:
        raise ValueError(f"clip = {clip!r} is not allowed; allowed: None or numbers >= 0")
    rewards, log_probs, ref_log_probs = jnp.asarray(rewards), jnp.asarray(log_probs), jnp.asarray(ref_log_probs)
    mask = jnp.asarray(mask).astype(bool)
    if mask.ndim != 2 or log_probs.shape != mask.shape or ref_log_probs.shape != mask.shape:
        raise ValueError(
            f"log_probs {log_probs.shape} and ref_log_probs {ref_log_probs.shape} "
            f"must have the shape (N, T) of mask {mask.shape}"
        )
    if rewards.shape != mask.shape[:1]:
        raise ValueError(f"rewards must have shape (N,) = {mask.shape[:1]}, got {rewards.shape}")
    rewards = rewards.astype(jnp.promote_types(jnp.result_type(rewards, log_probs), jnp.float32))
    k1 = jnp.where(mask, log_probs, 0).astype(rewards.dtype) - jnp.where(mask, ref_log_probs, 0)
    if clip is not None:
        rewards = jnp.clip(rewards, -clip, clip)
    return jax.lax.stop_gradient(rewards - coef * jnp.sum(k1, axis=1))


def diversity(clusters: ArrayLike, counted: ArrayLike | None = None) -> Array:
    """Share of the other rollouts of the group that are in another cluster (DARLING, arXiv 2509.02534).

    Div_i = (n − size of i's cluster)/(n − 1), in [0, 1], over the n counted rollouts of the group.

    ==================================  ==================================================================
    one counted rollout, or none        0 (the release divides by 0)
    all in one cluster                  0
    not counted                         0, and outside n and the clusters
    ==================================  ==================================================================

    Args:
      clusters: (B, G) integers; equal numbers are equal only within a group.
      counted: (B, G) bool; None means all.

    Returns:
      (B, G) diversities, float32 or wider.

    Raises:
      ValueError: rank other than 2, or shapes that differ.

    Example:
      >>> diversity(jnp.array([[0, 0, 1, 2]])).round(3).tolist()
      [[0.667..., 0.667..., 1.0, 1.0]]
    """
    clusters = jnp.asarray(clusters)
    if clusters.ndim != 2:
        raise ValueError(f"clusters must have shape (B, G), got {clusters.shape}")
    counted = jnp.ones(clusters.shape, bool) if counted is None else jnp.asarray(counted).astype(bool)
    if counted.shape != clusters.shape:
        raise ValueError(f"counted must have the shape of clusters {clusters.shape}, got {counted.shape}")
    dtype = jnp.result_type(float)
    other_BxGxG = (clusters[:, :, None] != clusters[:, None, :]) & counted[:, None, :]
    others = jnp.maximum(jnp.sum(counted, axis=1, keepdims=True) - 1, 1).astype(dtype)
    return jnp.where(counted, jnp.sum(other_BxGxG, axis=2).astype(dtype) / others, 0)


def cluster_rewards(
    rewards: ArrayLike,
    clusters: ArrayLike,
    counted: ArrayLike | None = None,
    *,
    floor: float = 0.0,
    form: str = "multiply",
    lambda_reward: float = 1.0,
    lambda_diversity: float = 1.0,
    add_bias: bool = False,
    correct: ArrayLike | None = None,
) -> Array:
    """DARLING's shaped rewards (arXiv 2509.02534, eq. 4–6): quality times diversity.

    With Div of ``diversity`` and D = max(Div, floor)::

        multiply     r·D                                         the paper's
        add          lambda_reward·r + lambda_diversity·D        an option of the release

    Multiplying a negative reward punishes a diverse mistake more: use rewards >= 0, or ``add_bias``.

    ==================================  ==================================================================
    one counted rollout                 Div = 0, D = floor
    all in one cluster                  D = floor
    not counted                         0; may be NaN
    floor = 0 with correct              a single correct rollout gets r·0: the release's floor is 0.1
    ==================================  ==================================================================

    Args:
      rewards: (B, G).
      clusters: (B, G) integers.
      counted: (B, G) bool, false where the reward is missing; None means all.
      floor: least diversity; 0 in the paper, 0.1 in the release.
      form: 'multiply' or 'add'.
      lambda_reward: weight of r in the form 'add'.
      lambda_diversity: weight of D in the form 'add', in units of reward.
      add_bias: subtracts the least counted reward of the group first.
      correct: (B, G) bool, rollouts that Div is taken among, the others get D = floor; None means all. The release's
        ``partition_correct`` takes those with r > 0.

    Returns:
      (B, G) shaped rewards.

    Raises:
      ValueError: an unknown form, or shapes that do not fit.

    Example:
      >>> cluster_rewards(jnp.array([[1., 0., 1., 1.]]), jnp.array([[0, 0, 1, 2]])).round(3).tolist()
      [[0.667..., 0.0, 1.0, 1.0]]
    """
    if form not in CLUSTER_FORMS:
        raise ValueError(f"form = {form!r} is unknown; allowed: {', '.join(CLUSTER_FORMS)}")
    rewards = jnp.asarray(rewards)
    rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
    counted = jnp.ones(rewards.shape, bool) if counted is None else jnp.asarray(counted).astype(bool)
    if jnp.shape(clusters) != rewards.shape:
        raise ValueError(f"clusters must have the shape of rewards {rewards.shape}, got {jnp.shape(clusters)}")
    rewards = jnp.where(counted, rewards, 0)
    apart = diversity(clusters, counted if correct is None else counted & jnp.asarray(correct).astype(bool))
    apart = jnp.maximum(apart.astype(rewards.dtype), floor)
    if add_bias:
        lowest = jnp.min(rewards, axis=1, keepdims=True, initial=jnp.inf, where=counted)
        rewards = jnp.where(counted, rewards - lowest, 0)
    shaped = rewards * apart if form == "multiply" else lambda_reward * rewards + lambda_diversity * apart
    return jnp.where(counted, shaped, 0)
