"""Where few tokens are surprising, the mean of n_eff is far below the ratio of means, which is 1 (docs/theory.md).

    python -m experiments.study.rare_tokens [--positions 1 10 100] [--rollouts 2 8 32] [--probability 0.01]

A unit is one group of G rollouts. At each of T positions the policy takes one of two tokens, the rare one with
probability p, independently. The hidden states of the positions are orthonormal, so the on-policy token-sum score is
s_it = b_it − p (b_it = 1 where rollout i took the rare token; a constant factor √2 left out). The rewards are fair
coins that ignore the tokens. So E[s] = 0 and Cov(r, s) = 0: E[N] / E[D] = 1 exactly, whatever T, p and G. Units of
equal rewards have no signal and are left out, as in `geometry_summary`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import numpy as np

BLOCK = 1000  # units drawn at once: bounds memory
HEADER = """\
| T | G | rare a unit, GTp | none: (1 − p)^GT | ΣN / ΣD ± s.e. | mean n_eff | mean α | Kish in a unit | over units |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def sample(
    rng: np.random.Generator, units: int, rollouts: int, positions: int, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards (U, G) of 0 and 1; where the rare token was taken (U, G, T), bool."""
    return rng.integers(0, 2, (units, rollouts)), rng.random((units, rollouts, positions)) < probability


def squares(rewards: np.ndarray, rare: np.ndarray, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the units with signal: N = ‖Σ_i a_i s_i‖² (u,), d_i = a_i² ‖s_i‖² (u, G).

    >>> N, d = squares(np.array([[1, 0], [1, 1]]), np.array([[[True], [False]], [[True], [True]]]), 0.5)
    >>> N.tolist(), d.tolist()  # a = (1/2, −1/2), s = (1/2, −1/2); the second unit has no signal
    ([0.25], [[0.0625, 0.0625]])
    """
    signal = rewards.max(axis=1) > rewards.min(axis=1)
    rewards, scores = rewards[signal], rare[signal] - probability
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    updates = np.einsum("ug,ugt->ut", advantages, scores)
    return (updates**2).sum(axis=1), advantages**2 * (scores**2).sum(axis=2)


def simulate(seed: int, units: int, rollouts: int, positions: int, probability: float) -> list[np.ndarray]:
    """N (u,) and d (u, G) of so many units, drawn in blocks."""
    rng, sizes = np.random.default_rng(seed), [min(BLOCK, units - start) for start in range(0, units, BLOCK)]
    parts = [squares(*sample(rng, size, rollouts, positions, probability), probability) for size in sizes]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def kish(d: np.ndarray) -> np.ndarray:
    """(Σd)² / Σd² over the last axis: how many of its entries carry the sum.

    >>> kish(np.array([[1.0, 1.0], [1.0, 0.0]])).tolist()
    [2.0, 1.0]
    """
    return d.sum(axis=-1) ** 2 / (d**2).sum(axis=-1)


def summary(n: np.ndarray, d: np.ndarray) -> dict[str, float]:
    """What a row of the table shows, of N (u,) and d (u, G); Kish's counts as shares of G and of u."""
    total, units, n_eff, ratio = d.sum(axis=1), len(n), n / d.sum(axis=1), n.sum() / d.sum()
    return {
        "ratio": float(ratio),
        "error": float(np.sqrt(((n - ratio * total) ** 2).sum()) / total.sum()),
        "n_eff": float(n_eff.mean()),
        "n_eff_error": float(n_eff.std() / units**0.5),
        "alpha": float(np.clip(1 - n_eff, 0, 1).mean()),
        "share_in": float(kish(d).mean()) / d.shape[1],
        "share_over": float(kish(total)) / units,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (("positions", [1, 10, 100], "T; rows"), ("rollouts", [2, 8, 32], "G; rows")):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default, help=text)
    parser.add_argument("--probability", type=float, default=0.01, help="p, of the rare token")
    parser.add_argument("--units", type=int, default=10_000, help="units drawn for each row")
    parser.add_argument("--seed", type=int, default=0, help="of NumPy's generator")
    args = parser.parse_args(argv)
    if min(args.positions) < 1 or min(args.rollouts) < 2 or args.units < 100 or args.seed < 0:
        parser.error("--positions must be at least 1, --rollouts 2, --units 100, --seed 0")
    if not 0 < (p := args.probability) < 1:
        parser.error(f"--probability must be in (0, 1), got {p}")
    print(HEADER)
    for positions, rollouts in itertools.product(args.positions, args.rollouts):
        x = summary(*simulate(args.seed, args.units, rollouts, positions, p))
        tokens, rest = rollouts * positions, ("n_eff", "alpha", "share_in", "share_over")
        cells = [f"{positions} | {rollouts} | {tokens * p:g} | {(1 - p) ** tokens:.2f}"]
        cells += [f"{x['ratio']:.3f} ± {x['error']:.3f}", *(f"{x[name]:.2f}" for name in rest)]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
