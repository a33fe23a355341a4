"""VADE (arXiv 2511.18902): which prompts to train on, by Thompson sampling of what each would teach.

Each prompt has decayed counts (α, β) of right and wrong rollouts. From the framework figure and its caption;
unconfirmed: the decays λ₁ = 0.2 and λ₂ = 0.999 are inferred from the figure's worked numbers, the start α = β = 0 is
assumed, and the closed form ``expected_gain`` is derived here.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

NEAREST = 1e-12  # a success rate is kept this far from 0 and 1


@dataclasses.dataclass(frozen=True)
class VadeState:
    """Decayed counts of n prompts.

    Attributes:
      alpha: (n,) float64 ≥ 0, right rollouts. beta: (n,) float64 ≥ 0, wrong rollouts.

    Example:
      >>> VadeState.start(2).alpha.tolist()
      [0.0, 0.0]
    """

    alpha: np.ndarray
    beta: np.ndarray

    @classmethod
    def start(cls, prompts: int) -> VadeState:
        """No rollout yet: a uniform posterior for every prompt."""
        return cls(np.zeros(prompts), np.zeros(prompts))


def information_gain(p: ArrayLike) -> np.ndarray:
    """I = p (1 − p)², largest at p = 1/3, where it is 4/27.

    Example:
      >>> information_gain([0.0, 0.5, 1.0]).tolist()
      [0.0, 0.125, 0.0]
    """
    p = np.asarray(p, np.float64)
    return p * (1 - p) ** 2


def expected_gain(state: VadeState) -> np.ndarray:
    """E[I] over Beta(a, b), a = α + 1, b = β + 1, s = a + b: a b (b + 1) / (s (s + 1) (s + 2)). Derived here.

    Example:
      >>> expected_gain(VadeState.start(1)).round(6).tolist()
      [0.083333]
    """
    a, b = state.alpha + 1, state.beta + 1
    s = a + b
    return a * b * (b + 1) / (s * (s + 1) * (s + 2))


def select(state: VadeState, rng: np.random.Generator | None, batch: int) -> np.ndarray:
    """The prompts of the next step: p̃ ~ Beta(α + 1, β + 1) for each, and the B largest I(p̃).

    Args:
      state: of n prompts.
      rng: draws p̃; None takes ``expected_gain`` in place of a draw.
      batch: B; more than n takes all.

    Returns:
      (min(B, n),) int64 indices, the largest gain first; ties by the lower index.

    Raises:
      ValueError: batch < 1.

    Example:
      >>> select(VadeState(np.array([0.0, 3.0, 9.0]), np.array([9.0, 6.0, 0.0])), None, 2).tolist()
      [1, 0]
    """
    if batch < 1:
        raise ValueError(f"batch = {batch} is not allowed; allowed: integers >= 1")
    if rng is None:
        gains = expected_gain(state)
    else:
        drawn = rng.beta(state.alpha + 1, state.beta + 1)
        gains = information_gain(np.clip(drawn, NEAREST, 1 - NEAREST))
    return np.argsort(-gains, kind="stable")[:batch]


def update(
    state: VadeState,
    selected: ArrayLike,
    correct: ArrayLike,
    rollouts: ArrayLike,
    *,
    decay_selected: float = 0.2,
    decay_others: float = 0.999,
) -> VadeState:
    """Selected: α ← λ₁α + r, β ← λ₁β + (G − r). Others: α ← λ₂α, β ← λ₂β, towards the uniform posterior.

    Args:
      state: of n prompts.
      selected: (B,) indices, each at most once.
      correct: (B,) r, right rollouts of each; may be fractional.
      rollouts: (B,) or one number, G: rollouts graded.
      decay_selected: λ₁ in [0, 1]. decay_others: λ₂ in [0, 1].

    Raises:
      ValueError: a prompt twice, r outside [0, G], a decay outside [0, 1].

    Example:
      >>> after = update(VadeState(np.array([2.7, 9.0]), np.array([5.3, 0.2])), [0], [4], 8)
      >>> after.alpha.round(4).tolist(), after.beta.round(4).tolist()
      ([4.54, 8.991], [5.06, 0.1998])
    """
    selected, r = np.asarray(selected), np.asarray(correct, np.float64)
    g = np.broadcast_to(np.asarray(rollouts, np.float64), r.shape)
    for name, value in (("decay_selected", decay_selected), ("decay_others", decay_others)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} = {value} is not allowed; allowed: numbers in [0, 1]")
    if len(np.unique(selected)) != selected.size:
        raise ValueError(f"selected = {selected.tolist()} names a prompt twice")
    if selected.shape != r.shape or r.ndim != 1:
        raise ValueError(f"selected {selected.shape} and correct {r.shape} must have one shape (B,)")
    if selected.size and not (0 <= selected.min() and selected.max() < state.alpha.size):
        raise ValueError(f"selected = {selected.tolist()} must be in [0, {state.alpha.size})")
    if not ((r >= 0) & (r <= g)).all():  # also of NaN
        raise ValueError(f"correct = {r.tolist()} must be between 0 and rollouts = {g.tolist()}")
    alpha, beta = decay_others * state.alpha, decay_others * state.beta
    alpha[selected] = decay_selected * state.alpha[selected] + r
    beta[selected] = decay_selected * state.beta[selected] + (g - r)
    return VadeState(alpha, beta)
