"""The simulation of few surprising tokens: against every group of its policy, against loops, and in docs/theory.md."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from experiments.study import rare_tokens
from tests.house import REPOSITORY
from tests.reference import geometry as loops
from tests.reference import proposition as reference


def rare_policy(positions: int, p: float) -> reference.Policy:
    """The policy of `rare_tokens`: the state says the position, token 1 has probability p at each."""
    prefixes = [prefix for n in range(positions) for prefix in itertools.product((0, 1), repeat=n)]
    hidden = {prefix: np.eye(positions)[len(prefix)] for prefix in prefixes}
    head = np.tile([np.log((1 - p) / p), 0.0], (positions, 1))
    return reference.Policy(hidden, head, positions, stop=None)


def rare_groups(positions: int, p: float, size: int) -> reference.Groups:
    policy = rare_policy(positions, p)
    everything, own_ = reference.completions(policy), policy.next_token()
    chance = np.array([reference.probability(o, own_) for o in everything])
    features = np.array([reference.feature(policy, o, own_) for o in everything])
    chance, rewards, features = reference.with_coin(chance, features)
    return reference.groups(chance, rewards, features @ features.T, size)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("positions", [1, 2])
def test_rare_tokens_the_ratio_of_means_is_one_and_the_mean_ratio_is_not(positions, size):
    p = 0.01
    all_ = rare_groups(positions, p, size)
    np.testing.assert_allclose(all_.ratio_of_means(), 1, rtol=1e-9)
    assert all_.mean_of_ratios() < 0.1
    alpha = all_.mean(all_.signal * np.clip(1 - all_.ratios(), 0, 1)) / all_.mean(all_.signal)
    assert alpha > (1 - p) ** (size * positions)  # a unit without a rare token has n_eff = 0
    certain = rare_groups(positions, 0.5, size)  # the same with tokens of even odds
    assert certain.mean_of_ratios() > 0.7


@pytest.mark.parametrize("positions", [1, 2])
def test_the_simulation_equals_the_enumeration(positions):
    p, size = 0.1, 3
    all_ = rare_groups(positions, p, size)
    got = rare_tokens.summary(*rare_tokens.simulate(0, 40_000, size, positions, p))
    alpha = all_.mean(all_.signal * np.clip(1 - all_.ratios(), 0, 1)) / all_.mean(all_.signal)
    assert abs(got["ratio"] - 1) < 5 * got["error"] < 0.1
    assert abs(got["n_eff"] - all_.mean_of_ratios()) < 5 * got["n_eff_error"] < 0.02
    assert abs(got["alpha"] - alpha) < 0.02


def test_the_simulation_of_drawn_units_equals_loops():
    p = 0.3
    rewards, rare = rare_tokens.sample(np.random.default_rng(1), 12, 4, 3, p)
    n, d = rare_tokens.squares(rewards, rare, p)
    got, ratios, alphas, totals, shares = rare_tokens.summary(n, d), [], [], [], []
    for r, taken in zip(rewards, rare, strict=True):
        if max(r) == min(r):
            continue
        c = np.array([value - sum(r) / 4 for value in r])
        scores = np.array([[float(b) - p for b in row] for row in taken])
        energies = [c[i] ** 2 * sum(scores[i] ** 2) for i in range(4)]
        ratios.append(loops.effective_sample_size(loops.gram(scores), c))
        alphas.append(min(max(1 - ratios[-1], 0.0), 1.0))
        totals.append(sum(energies))
        shares.append(sum(energies) ** 2 / sum(e**2 for e in energies) / 4)
    units = len(ratios)
    expected = {
        "ratio": sum(x * t for x, t in zip(ratios, totals, strict=True)) / sum(totals),
        "n_eff": sum(ratios) / units, "alpha": sum(alphas) / units,
        "share_in": sum(shares) / units, "share_over": sum(totals) ** 2 / sum(t**2 for t in totals) / units,
    }  # fmt: skip
    np.testing.assert_allclose([got[name] for name in expected], list(expected.values()), rtol=1e-12)


def test_blocks_make_as_many_units_as_asked_and_no_two_alike():
    units = rare_tokens.BLOCK + 1
    n, d = rare_tokens.simulate(0, units, 64, 4, 0.5)  # 64 equal coins do not happen
    assert (n.shape, d.shape) == ((units,), (units, 64))
    assert n[-1] != n[0]


def test_the_document_shows_what_the_simulation_prints(capsys):
    rare_tokens.main([])
    assert capsys.readouterr().out.strip() in (REPOSITORY / "docs/theory.md").read_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (text, "--positions must be at least 1, --rollouts 2, --units 100, --seed 0")
        for text in ("--positions 3 0", "--rollouts 2 1", "--units 99", "--seed -1")
    ]
    + [(f"--probability {p}", f"--probability must be in (0, 1), got {p}") for p in ("0.0", "1.0", "nan")],
)
def test_the_simulation_refuses(wrong, message, capsys):
    with pytest.raises(SystemExit):
        rare_tokens.main(wrong.split())
    assert message in capsys.readouterr().err
