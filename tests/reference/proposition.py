"""Every completion of a tiny policy and every group of them: finite sums in float64 (docs/theory.md)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from tests.reference import vocab

Prefix = tuple[int, ...]
NextToken = Callable[[Prefix], np.ndarray]  # the distribution of the token after a prefix, (V,)


@dataclasses.dataclass(frozen=True)
class Policy:
    """A hidden state for each prefix that can go on, and the output projection."""

    hidden: dict[Prefix, np.ndarray]  # (H,) each
    lm_head: np.ndarray  # (H, V)
    tokens: int  # at most so many in a completion
    stop: int | None = 0  # the token that ends it; None: all completions have `tokens` tokens

    def next_token(self, *, lm_head: np.ndarray | None = None, temperature: float = 1.0) -> NextToken:
        head = self.lm_head if lm_head is None else lm_head
        return lambda prefix: vocab.probabilities(self.hidden[prefix], head, temperature)

    def ended(self, completion: Prefix) -> bool:
        return self.stop is not None and completion[-1] == self.stop


def random_policy(seed: int, *, vocab_size: int, tokens: int, width: int = 2, stop: int | None = 0) -> Policy:
    rng = np.random.default_rng(seed)
    body = [v for v in range(vocab_size) if v != stop]
    prefixes = [prefix for length in range(tokens) for prefix in itertools.product(body, repeat=length)]
    hidden = {prefix: rng.normal(size=width) for prefix in prefixes}
    return Policy(hidden, rng.normal(size=(width, vocab_size)), tokens, stop)


def nucleus(next_token: NextToken, mass: float) -> NextToken:
    """Top-p: the fewest likeliest tokens that hold `mass`, renormalised."""

    def kept(prefix: Prefix) -> np.ndarray:
        p, out, held = next_token(prefix), np.zeros(len(next_token(prefix))), 0.0
        for v in sorted(range(len(p)), key=lambda v: -p[v]):
            if held < mass:
                out[v] = p[v]
                held += p[v]
        return out / held

    return kept


def completions(policy: Policy) -> list[Prefix]:
    """All of them: they end with the stop token or with their last token (cut off)."""
    done: list[Prefix] = []
    open_: list[Prefix] = [()]
    while open_:
        prefix = open_.pop()
        for v in range(policy.lm_head.shape[1]):
            longer = (*prefix, v)
            (done if v == policy.stop or len(longer) == policy.tokens else open_).append(longer)
    return sorted(done)


def probability(completion: Prefix, next_token: NextToken) -> float:
    out = 1.0
    for t, y in enumerate(completion):
        out *= next_token(completion[:t])[y]
    return float(out)


def feature(
    policy: Policy,
    completion: Prefix,
    softmax: NextToken | None,
    *,
    length_normalize: bool = False,
    mask_stop: bool = False,
) -> np.ndarray:
    """Σ_t (p_t − onehot(y_t)) ⊗ h_t, flat (V·H,); without p where `softmax` is None: the taken-token feature."""
    out = np.zeros((policy.lm_head.shape[1], policy.lm_head.shape[0]))
    counted = 0
    for t, y in enumerate(completion):
        if mask_stop and y == policy.stop:
            continue
        delta = np.zeros(len(out)) if softmax is None else softmax(completion[:t]).copy()
        delta[y] -= 1.0
        out += np.outer(delta, policy.hidden[completion[:t]])
        counted += 1
    return (out / max(counted, 1) if length_normalize else out).ravel()


def drift(policy: Policy, sampler: NextToken, term: Callable[[Prefix, np.ndarray], np.ndarray]) -> np.ndarray:
    """Σ over prefixes of P(prefix) · term(prefix, sampler's p) ⊗ h: a sum over prefixes, not over completions."""
    out = np.zeros((policy.lm_head.shape[1], policy.lm_head.shape[0]))
    for prefix, h in policy.hidden.items():
        out += probability(prefix, sampler) * np.outer(term(prefix, sampler(prefix)), h)
    return out.ravel()


def with_coin(
    chance: np.ndarray, features: np.ndarray, success: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The law of (rollout, reward) where the reward is a coin that ignores the rollout: chance, rewards, features."""
    rewards = np.repeat([0.0, 1.0], len(chance))
    return np.concatenate([chance * (1 - success), chance * success]), rewards, np.concatenate([features] * 2)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Every ordered group of G rollouts drawn independently, n of them."""

    chance: np.ndarray  # (n,)
    rewards: np.ndarray  # (n, G)
    advantages: np.ndarray  # (n, G), r_i − mean
    gram: np.ndarray  # (n, G, G)
    members: np.ndarray  # (n, G), which outcome each is

    @property
    def square(self) -> np.ndarray:
        """N = aᵀKa, (n,)."""
        return np.einsum("ni,nij,nj->n", self.advantages, self.gram, self.advantages)

    @property
    def energies(self) -> np.ndarray:
        """d_i = a_i² K_ii, (n, G)."""
        return self.advantages**2 * np.einsum("nii->ni", self.gram)

    @property
    def signal(self) -> np.ndarray:
        """D > 0: rewards that differ, (n,) bool."""
        return self.rewards.max(axis=1) > self.rewards.min(axis=1)

    def mean(self, values: np.ndarray) -> float:
        return float(self.chance @ values)

    def ratio_of_means(self, weight: np.ndarray | float = 1.0) -> float:
        """E[N] / E[D], each group's advantages times its weight."""
        return self.mean(weight**2 * self.square) / self.mean(weight**2 * self.energies.sum(axis=1))

    def ratios(self) -> np.ndarray:
        """N / D, 0 without a signal."""
        return np.divide(self.square, self.energies.sum(axis=1), out=np.zeros(len(self.chance)), where=self.signal)

    def mean_of_ratios(self) -> float:
        """E[N / D | signal]."""
        return self.mean(self.ratios()) / self.mean(self.signal)


def groups(chance: np.ndarray, rewards: np.ndarray, gram: np.ndarray, size: int) -> Groups:
    """chance (C,), rewards (C,), gram (C, C) of the outcomes of one rollout -> all Cᴳ groups."""
    members = np.indices((len(chance),) * size).reshape(size, -1).T
    drawn = rewards[members]
    blocks = gram[members[:, :, None], members[:, None, :]]
    return Groups(chance[members].prod(axis=1), drawn, drawn - drawn.mean(axis=1, keepdims=True), blocks, members)
