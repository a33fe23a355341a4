"""HPT: prompts the policy solves train it by reinforcement, the others by a demonstration (arXiv 2509.04419).

One estimator covers both, at every token, with a reference π_ref whose choice names the method:

    gradient = 1_stable · A · ∇π / π_ref          A = R + μ·π_β/π (reward, and closeness to the demonstrator π_β)

===================  ============================  ===========================================================
method               π_ref                         A, 1_stable
===================  ============================  ===========================================================
SFT                  π itself                      A = 1 on tokens of the demonstration
REINFORCE            π itself                      the return or its advantage
PPO, GRPO            π_old, which drew the tokens  the advantage; 0 where the clip binds
offline RL           1                             the return; importance weights left out
===================  ============================  ===========================================================
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.kl import LOG_RATIO_LIMIT
from salt_jax.rollout import succeeded

Array = jax.Array

HPT_FORMS = ("release", "paper")
RATE_TOLERANCE = 1e-6  # a mean of G rewards in float32 may miss the fraction it stands for by some 1e-7


class HptLoss(NamedTuple):
    """Scalars to be minimised: the whole, its reinforcement part and its supervised part (coefficient included)."""

    total: Array
    rl: Array
    sft: Array


def success_rate(rewards: ArrayLike, rewarded: ArrayLike | None = None, correct_from: float = 1.0) -> Array:
    """P, the share of each group's rewarded rollouts that succeeded; NaN for a group without any.

    The paper's mean verifier score, where that is 0 or 1.

    Args:
      rewards: (B, G); may be NaN where the reward is missing.
      rewarded: (B, G) bool, false where the grader failed; None means all true.
      correct_from: the least reward of a success.

    Returns:
      (B,).

    Raises:
      ValueError: rank other than 2, shapes that differ.

    Example:
      >>> success_rate(jnp.array([[1.0, 0.0, 0.0, 0.0]])).tolist()
      [0.25]
    """
    rewards, rewarded = _checked_rewards(rewards, rewarded)
    count_B = jnp.sum(rewarded, axis=1, dtype=rewards.dtype)
    right_B = jnp.sum(succeeded(rewards, rewarded, correct_from), axis=1)
    return jnp.where(count_B > 0, right_B / jnp.maximum(count_B, 1), jnp.nan)


def hpt_gate(success_rate: ArrayLike, gamma: float = 0.0) -> tuple[Array, Array]:
    """(rl, sft): which prompts train by reinforcement, P > γ, and which by their demonstration, P <= γ.

    arXiv 2509.04419: (α, β) = (1, 0) if P > γ else (0, 1). Equality is decided within 1e-6, so that 3/10 in float32
    equals 0.3. P = NaN (no rollout of the group was rewarded): neither.

    Args:
      success_rate: (...) P, share of a prompt's rollouts that succeeded.
      gamma: γ; 0 for Qwen models, 2/8 for LLaMA in the paper (8 rollouts a prompt).

    Returns:
      Two (...) bool.

    Example:
      >>> rl, sft = hpt_gate(jnp.array([0.0, 0.125]))
      >>> rl.tolist(), sft.tolist()
      ([False, True], [True, False])
    """
    rate = jnp.asarray(success_rate)
    edge = gamma + RATE_TOLERANCE
    return rate > edge, rate <= edge


def unified_loss(
    log_probs: ArrayLike,
    reference_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    stable: ArrayLike | None = None,
) -> Array:
    """The unified policy gradient estimator as a loss of each token: −sg(1_stable · A) · exp(log π − sg(log π_ref)).

    arXiv 2509.04419; its instances are in the table of this module. With π_ref = π the value is −A and the gradient
    −A ∇ log π. |log π − log π_ref| is limited to 20 nats, beyond which the gradient is 0.

    Args:
      log_probs: (N, T) nats, with gradient.
      reference_log_probs: (N, T) nats: log π_ref; ``log_probs`` itself for SFT and REINFORCE, 0 for offline RL.
      advantages: (N,) or (N, T).
      mask: (N, T) bool; masked places may hold anything.
      stable: (N, T) bool, false where the token takes no part; None means all true.

    Returns:
      (N, T), 0 where masked or not stable; to be aggregated.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> p = jnp.log(jnp.array([[0.5, 0.25]]))
      >>> jax.grad(lambda p: unified_loss(p, p, jnp.array([1.0]), p < 0).sum())(p).tolist()
      [[-1.0, -1.0]]
    """
    log_probs = jnp.asarray(log_probs)
    shape, dtype = log_probs.shape, jnp.promote_types(log_probs.dtype, jnp.float32)
    if len(shape) != 2:
        raise ValueError(f"log_probs must have shape (N, T), got {shape}")
    for name, array in (("reference_log_probs", reference_log_probs), ("mask", mask), ("stable", stable)):
        if array is not None and jnp.shape(array) != shape:
            raise ValueError(f"{name} must have the shape of log_probs {shape}, got {jnp.shape(array)}")
    if jnp.shape(advantages) not in (shape, shape[:1]):
        raise ValueError(f"advantages must have shape {shape[:1]} or {shape}, got {jnp.shape(advantages)}")
    counted = jnp.asarray(mask).astype(bool)
    if stable is not None:
        counted &= jnp.asarray(stable).astype(bool)

    def keep(x: ArrayLike) -> Array:
        # Garbage is replaced before any arithmetic: a `where` after it would let NaN into the gradient.
        return jnp.where(counted, jnp.asarray(x).astype(dtype), 0)

    advantages = jnp.asarray(advantages)
    weights = jax.lax.stop_gradient(keep(advantages if advantages.ndim == 2 else advantages[:, None]))
    log_ratio = keep(log_probs) - jax.lax.stop_gradient(keep(reference_log_probs))
    return -weights * jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def demonstration_weight(num_demo_tokens: ArrayLike, denominator: ArrayLike, coef: float = 1.0) -> Array:
    """w such that Σ_demo w · (−log π) / max(denominator, 1) = coef · mean over demonstration tokens of −log π.

    For a trainer that divides the sum over all tokens, rollouts and demonstrations, by one denominator, at least 1:
    where all prompts fail there are demonstrations alone, and the denominator of rollouts is 0.

    Args:
      num_demo_tokens: scalar, unmasked tokens of demonstrations in the minibatch.
      denominator: scalar, what the sum is divided by.
      coef: weight of the supervised part; 1 in the release, 0.3 for its 1.5B model.

    Returns:
      Scalar without gradient; finite, and multiplying nothing, without demonstrations.

    Example:
      >>> float(demonstration_weight(4, 16.0, coef=0.5))
      2.0
    """
    denominator = jnp.asarray(denominator)
    denominator = denominator.astype(jnp.promote_types(denominator.dtype, jnp.float32))
    return jax.lax.stop_gradient(coef * jnp.maximum(denominator, 1) / jnp.maximum(jnp.asarray(num_demo_tokens), 1))


def hpt_loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    mask: ArrayLike,
    rewards: ArrayLike,
    demo_log_probs: ArrayLike,
    demo_mask: ArrayLike,
    *,
    gamma: float = 0.0,
    max_length: int | None = None,
    form: str = "release",
    sft_coef: float = 1.0,
    clip: float = 0.2,
    rewarded: ArrayLike | None = None,
    correct_from: float = 1.0,
) -> HptLoss:
    """The whole objective of B prompts of G rollouts and one demonstration each; A = R − mean over the group::

        release   rl  = −Σ A·r / L_max over all tokens of prompts with P > γ (no clip, not divided by their number)
                  sft = sft_coef · mean of −log π over all demonstration tokens of prompts with P <= γ; total = rl + sft
        paper     of one prompt: L_RL = −(1/n) Σ_i Σ_t min(r·A, clip(r, 1 ± clip)·A),  L_SFT = mean_t −log π
                  rl, sft: means over the prompts of each kind; total: mean over all B prompts

    arXiv 2509.04419 and its release. The paper's text says Dr. GRPO where its equation divides A by the standard
    deviation; here A is not divided. The release also adds 0.001 of entropy and skips updates whose gradient norm
    exceeds 80.

    ==========================================  =====================================================
    no prompt of one kind                       its part is 0 (the release: NaN, dropped by a test)
    a prompt without rewarded rollouts          of neither kind
    a missing reward                            A = 0; outside mean and n
    a prompt without signal (all right)         P > γ: reinforcement with A = 0
    masked places, demonstrations not used      may hold anything, NaN included
    ==========================================  =====================================================

    Args:
      log_probs: (B, G, T) nats, with gradient. old_log_probs: (B, G, T) nats. mask: (B, G, T) bool.
      rewards: (B, G) verifier scores in [0, 1].
      demo_log_probs: (B, S) nats of the demonstrations' tokens, with gradient. demo_mask: (B, S) bool.
      gamma: γ, see ``hpt_gate``.
      max_length: L_max, the completion limit in tokens; needed by 'release'.
      form: 'release' or 'paper'.
      sft_coef: weight of the supervised part.
      clip: of the ratio, both sides ('paper').
      rewarded: (B, G) bool, false where the grader failed; None means all true.
      correct_from: the least reward of a success, for P; A takes the rewards as they are.

    Returns:
      HptLoss(total, rl, sft), scalars.

    Raises:
      ValueError: a form that is not known, shapes that do not fit, 'release' without max_length.

    Example:
      >>> solved, demo = jnp.log(jnp.array([[[0.5], [0.5]]])), jnp.log(jnp.array([[0.25]]))
      >>> loss = hpt_loss(solved, solved, solved < 0, jnp.array([[0.0, 0.0]]), demo, demo < 0, max_length=4)
      >>> print(f"{float(loss.total):.4f} {float(loss.sft):.4f}")
      1.3863 1.3863
    """
    if form not in HPT_FORMS:
        raise ValueError(f"form = {form!r} is unknown; allowed: {', '.join(HPT_FORMS)}")
    if form == "release" and (max_length is None or max_length < 1):
        raise ValueError(f"max_length = {max_length!r}: form = 'release' needs the completion limit, an integer >= 1")
    rewards, rewarded = _checked_rewards(rewards, rewarded)
    shape = jnp.shape(log_probs)
    if len(shape) != 3 or shape[:2] != rewards.shape:
        raise ValueError(f"log_probs must have shape (B, G, T) with (B, G) = {rewards.shape}, got {shape}")
    for name, array, wanted in (
        ("old_log_probs", old_log_probs, shape),
        ("mask", mask, shape),
        ("demo_mask", demo_mask, jnp.shape(demo_log_probs)),
    ):
        if jnp.shape(array) != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {jnp.shape(array)}")
    if len(jnp.shape(demo_log_probs)) != 2 or jnp.shape(demo_log_probs)[0] != shape[0]:
        raise ValueError(f"demo_log_probs must have shape ({shape[0]}, S), got {jnp.shape(demo_log_probs)}")

    dtype = jnp.promote_types(jnp.result_type(log_probs), jnp.float32)
    rl_B, sft_B = hpt_gate(success_rate(rewards, rewarded, correct_from), gamma)
    mean_Bx1 = jnp.sum(rewards, axis=1, keepdims=True) / jnp.maximum(jnp.sum(rewarded, axis=1, keepdims=True), 1)
    counted = jnp.asarray(mask).astype(bool) & (rl_B[:, None] & rewarded)[:, :, None]
    demo = jnp.asarray(demo_mask).astype(bool) & sft_B[:, None]

    def keep(x: ArrayLike, where: Array) -> Array:
        return jnp.where(where, jnp.asarray(x).astype(dtype), 0)

    deviation_BxG = jnp.where(rewarded, rewards - mean_Bx1, 0)
    advantages = jax.lax.stop_gradient(deviation_BxG.astype(dtype))[:, :, None]
    log_ratio = keep(log_probs, counted) - jax.lax.stop_gradient(keep(old_log_probs, counted))
    ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    demo_loss_BxS = -keep(demo_log_probs, demo)
    if form == "release" and max_length is not None:
        rl = -jnp.sum(keep(advantages * ratio, counted)) / max_length
        sft = sft_coef * jnp.sum(demo_loss_BxS) / jnp.maximum(jnp.sum(demo), 1)
        return HptLoss(rl + sft, rl, sft)
    above, below = (advantages > 0) & (ratio > 1 + clip), (advantages < 0) & (ratio < 1 - clip)
    # The same as min(rA, clip(r)A), written so that the gradient on a tie is not left to `minimum`.
    bounded = jnp.where(above, 1 + clip, jnp.where(below, 1 - clip, ratio))
    rl_sum_B = -jnp.sum(keep(advantages * bounded, counted), axis=(1, 2)) / jnp.maximum(jnp.sum(rewarded, axis=1), 1)
    sft_sum_B = sft_coef * jnp.sum(demo_loss_BxS, axis=1) / jnp.maximum(jnp.sum(demo, axis=1), 1)
    rl_sum, sft_sum = jnp.sum(rl_sum_B), jnp.sum(sft_sum_B)
    total = (rl_sum + sft_sum) / shape[0]
    return HptLoss(total, rl_sum / jnp.maximum(jnp.sum(rl_B), 1), sft_sum / jnp.maximum(jnp.sum(sft_B), 1))


def _checked_rewards(rewards: ArrayLike, rewarded: ArrayLike | None) -> tuple[Array, Array]:
    """Floats in float32 or wider, 0 where missing; and which are there."""
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have shape (B, G), got {rewards.shape}")
    rewarded = jnp.ones(rewards.shape, bool) if rewarded is None else jnp.asarray(rewarded).astype(bool)
    if rewarded.shape != rewards.shape:
        raise ValueError(f"rewarded must have the shape of rewards {rewards.shape}, got {rewarded.shape}")
    return jnp.where(rewarded, rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32)), 0), rewarded
