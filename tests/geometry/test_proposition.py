"""docs/theory.md, exactly: every completion of tiny policies and every group of them, against its formulas."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest

from salt_jax import geometry
from tests.one_program import one_program
from tests.reference import geometry as loops
from tests.reference import proposition as reference
from tests.reference import vocab

EXACT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-13}
SIZES = (2, 3, 4)
POLICIES = {
    "V=3, T=3": reference.random_policy(0, vocab_size=3, tokens=3),
    "V=4, T=2": reference.random_policy(1, vocab_size=4, tokens=2),
}
MAIN = POLICIES["V=3, T=3"]
ZERO_MEAN = ("token sum", "token sum, sampled at 0.6", "length mean, equal lengths")
COMMON_MEAN = (
    "taken-token", "length mean", "length mean, sampled at 0.6", "temperature", "top-p", "off-policy",
    "mask without stop", "truncated dropped",
)  # fmt: skip


class Law(NamedTuple):
    """Of one rollout: the chance of each outcome, its feature, and what the mean feature should be."""

    chance: np.ndarray
    features: np.ndarray
    mean: np.ndarray

    @property
    def gram(self) -> np.ndarray:
        return self.features @ self.features.T


@functools.cache
def law(condition: str, name: str = "V=3, T=3") -> Law:
    """One condition changed alone; its mean by an identity that knows no completion's feature."""
    policy = POLICIES[name]
    if condition == "length mean, equal lengths":
        policy = reference.random_policy(2, vocab_size=3, tokens=2, stop=None)
    everything = reference.completions(policy)
    tau = 0.6 if condition.endswith("sampled at 0.6") else 1.0
    own = policy.next_token(temperature=tau)
    sampler, options, mean = own, {}, np.zeros(policy.lm_head.size)
    softmax: reference.NextToken | None = own
    onehot = np.eye(policy.lm_head.shape[1])

    def differentiated(value):
        """−τ∇ of a function of the sampler's output projection, in the layout of the features."""
        return -tau * vocab.finite_difference(value, policy.lm_head).T.ravel()

    def expectation(of):
        return lambda head: sum(
            reference.probability(o, policy.next_token(lm_head=head, temperature=tau)) * of(o) for o in everything
        )

    if condition == "taken-token":
        softmax, mean = None, reference.drift(policy, sampler, lambda _, p: -p)
    elif condition.startswith("length mean"):
        options, mean = {"length_normalize": True}, differentiated(expectation(lambda o: 1 / len(o)))
    elif condition == "temperature":
        other = softmax = policy.next_token(temperature=0.6)
        mean = reference.drift(policy, sampler, lambda prefix, p: other(prefix) - p)
    elif condition == "top-p":
        sampler = reference.nucleus(own, 0.9)
        mean = reference.drift(policy, sampler, lambda prefix, p: own(prefix) - p)
    elif condition == "off-policy":
        moved = policy.lm_head + np.random.default_rng(5).normal(size=policy.lm_head.shape)
        other = softmax = policy.next_token(lm_head=moved)
        mean = reference.drift(policy, sampler, lambda prefix, p: other(prefix) - p)
    elif condition == "mask without stop":
        options = {"mask_stop": True}
        mean = reference.drift(policy, sampler, lambda _, p: p[policy.stop] * (onehot[policy.stop] - p))
    elif condition == "truncated dropped":
        mean = differentiated(lambda head: np.log(expectation(policy.ended)(head)))
    np.testing.assert_allclose(sum(reference.probability(o, sampler) for o in everything), 1)
    kept = [o for o in everything if condition != "truncated dropped" or policy.ended(o)]
    chance = np.array([reference.probability(o, sampler) for o in kept])
    features = np.array([reference.feature(policy, o, softmax, **options) for o in kept])
    return Law(chance / chance.sum(), features, mean)


def rewards_of(count: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    if kind == "real":
        return rng.normal(size=count)
    return rng.permutation(np.arange(count) % 3 == 0).astype(float)  # a third succeed


class Moments(NamedTuple):
    mean: np.ndarray  # μ = E s
    variance: float  # σ² = Var r
    gamma: np.ndarray  # γ = Cov(r, s)
    weighted: np.ndarray  # E[ε² s]
    energy: float  # A = E[ε² ‖s‖²]
    spread: float  # B = σ² E‖s‖²


def moments(chance: np.ndarray, rewards: np.ndarray, features: np.ndarray) -> Moments:
    epsilon = rewards - chance @ rewards
    norms = np.sum(features**2, axis=1)
    variance = chance @ epsilon**2
    return Moments(
        chance @ features, variance, (chance * epsilon) @ features, (chance * epsilon**2) @ features,
        chance @ (epsilon**2 * norms), variance * (chance @ norms),
    )  # fmt: skip


def pair(x: Moments, g: int) -> float:
    """E[a_i a_j ⟨s_i, s_j⟩], i ≠ j."""
    signal = ((1 - 1 / g) ** 2 + 1 / g**2) * (x.gamma @ x.gamma)
    return signal - 2 * (g - 1) / g**2 * (x.weighted @ x.mean) + (g - 2) / g**2 * x.variance * (x.mean @ x.mean)


def own(x: Moments, g: int) -> float:
    """E[a_i² ‖s_i‖²]."""
    return (1 - 1 / g) ** 2 * (x.energy + x.spread / (g - 1))


def ratio_of_means(x: Moments, g: int) -> float:
    return 1 + (g - 1) * pair(x, g) / own(x, g)


def centred(x: Law) -> Law:
    return Law(x.chance, x.features - x.chance @ x.features, np.zeros_like(x.mean))


# --- the two formulas ---


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("kind", ["binary", "real"])
@pytest.mark.parametrize("condition", ZERO_MEAN + COMMON_MEAN)
def test_both_formulas_for_every_feature(condition, kind, name):
    x = law(condition, name)
    rewards = rewards_of(len(x.chance), kind)
    expected = moments(x.chance, rewards, x.features)
    for g in SIZES:
        all_ = reference.groups(x.chance, rewards, x.gram, g)
        products = all_.advantages[:, :, None] * all_.advantages[:, None, :] * all_.gram
        np.testing.assert_allclose(all_.mean(products[:, 0, 1]), pair(expected, g), **EXACT)
        np.testing.assert_allclose(all_.mean(products[:, 0, 0]), own(expected, g), **EXACT)
        np.testing.assert_allclose(all_.ratio_of_means(), ratio_of_means(expected, g), **EXACT)


@pytest.mark.parametrize("condition", ["token sum", "taken-token"])
def test_the_enumeration_equals_loops(condition):
    """One group after another, one rollout after another; E[N/D] of two rollouts by its closed form, too."""
    x = law(condition, "V=4, T=2")
    rewards, expected = rewards_of(len(x.chance), "real"), {}
    for g in (2, 3):
        total, signal = 0.0, 0.0
        for members in itertools.product(range(len(x.chance)), repeat=g):
            r = [rewards[i] for i in members]
            if max(r) > min(r):
                c = np.array([value - sum(r) / g for value in r])
                weight = float(np.prod([x.chance[i] for i in members]))
                total += weight * loops.effective_sample_size(loops.gram(x.features[list(members)]), c)
                signal += weight
        expected[g] = total / signal
        got = reference.groups(x.chance, rewards, x.gram, g).mean_of_ratios()
        np.testing.assert_allclose(got, expected[g], rtol=1e-10)
    # a = ±(r_1 − r_2)/2, so N/D = 1 − 2⟨s_1, s_2⟩ / (‖s_1‖² + ‖s_2‖²): the rewards only say which pairs count.
    norms, both = np.diag(x.gram), np.outer(x.chance, x.chance) * (rewards[:, None] != rewards[None, :])
    closed = np.sum(both * (1 - 2 * x.gram / (norms[:, None] + norms[None, :]))) / both.sum()
    np.testing.assert_allclose(expected[2], closed, rtol=1e-10)


# --- what has a mean, and what has none ---


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("condition", ZERO_MEAN + COMMON_MEAN)
def test_the_mean_of_a_feature(condition, name):
    x = law(condition, name)
    got = x.chance @ x.features
    np.testing.assert_allclose(got, x.mean, atol=1e-9)  # two of the identities are taken by central differences
    if condition in ZERO_MEAN:
        np.testing.assert_allclose(got, 0, atol=1e-15)
    else:
        assert np.linalg.norm(got) > 1e-2


@pytest.mark.parametrize("condition", ZERO_MEAN + COMMON_MEAN)
def test_without_a_signal_the_mean_alone_decides(condition):
    """Rewards that ignore the rollout: E[N]/E[D] = 1 − ‖μ‖²/E‖s‖² for every G; also of groups weighted by rewards."""
    x = law(condition, "V=4, T=2")
    chance, rewards, features = reference.with_coin(x.chance, x.features, success=0.3)
    mean = x.chance @ x.features
    expected = 1 - mean @ mean / (x.chance @ np.sum(x.features**2, axis=1))
    assert (expected < 1 - 1e-5) == (condition in COMMON_MEAN)
    for g in (2, 3):
        all_ = reference.groups(chance, rewards, features @ features.T, g)
        weight = 1 + all_.rewards.sum(axis=1) ** 2
        np.testing.assert_allclose([all_.ratio_of_means(), all_.ratio_of_means(weight)], expected, **EXACT)


@pytest.mark.parametrize("kind", ["binary", "real"])
@pytest.mark.parametrize("condition", ZERO_MEAN + COMMON_MEAN)
def test_a_common_mean_is_in_d_alone(condition, kind):
    """n_eff = n_eff of s − μ, at least 1, times a factor that stays between its values for G = 2 and G = ∞."""
    x = law(condition)
    rewards, around = rewards_of(len(x.chance), kind), centred(x)
    full, bare = moments(x.chance, rewards, x.features), moments(x.chance, rewards, around.features)
    ends = (bare.energy + bare.spread) / (full.energy + full.spread), bare.energy / full.energy
    for g in SIZES:
        with_mean = reference.groups(x.chance, rewards, x.gram, g)
        without = reference.groups(x.chance, rewards, around.gram, g)
        np.testing.assert_allclose(with_mean.square, without.square, **EXACT)  # Σa = 0, group by group
        factor = own(bare, g) / own(full, g)
        np.testing.assert_allclose(with_mean.ratio_of_means(), without.ratio_of_means() * factor, **EXACT)
        assert without.ratio_of_means() >= 1
        assert min(ends) - 1e-12 <= factor <= max(ends) + 1e-12


# --- zero mean: never below 1, and growing ---


@pytest.mark.parametrize("kind", ["binary", "real"])
@pytest.mark.parametrize("condition", ZERO_MEAN)
def test_zero_mean_is_never_below_one_and_grows_about_linearly(condition, kind):
    x = law(condition)
    rewards = rewards_of(len(x.chance), kind)
    m = moments(x.chance, rewards, x.features)
    gamma = m.gamma @ m.gamma
    enumerated = []
    for g in SIZES:
        enumerated.append(reference.groups(x.chance, rewards, x.gram, g).ratio_of_means())
        closed = 1 + ((g - 1) ** 2 + 1) * gamma / ((g - 1) * m.energy + m.spread)
        np.testing.assert_allclose(enumerated[-1], closed, **EXACT)
    assert 1 < enumerated[0] < enumerated[1] < enumerated[2]
    slope = (ratio_of_means(m, 10**6) - ratio_of_means(m, 10**5)) / (10**6 - 10**5)
    np.testing.assert_allclose(slope, gamma / m.energy, rtol=1e-6)


@pytest.mark.parametrize("g", [2, 3])
def test_groups_of_different_prompts(g):
    """Prompts q, q' add 2 (G−1)² ⟨γ_q, γ_q'⟩ to E[N], of either sign; prompts drawn independently no less than 0."""
    prompts, against = [], []
    for seed, sign in ((0, 1), (0, -1), (3, 1)):  # the second wants the contrary of the first
        policy = reference.random_policy(seed, vocab_size=3, tokens=2)
        everything, next_token = reference.completions(policy), policy.next_token()
        chance = np.array([reference.probability(o, next_token) for o in everything])
        features = np.array([reference.feature(policy, o, next_token) for o in everything])
        rewards = sign * rewards_of(len(chance), "real")
        one = reference.groups(chance, rewards, features @ features.T, g)
        update = np.einsum("ni,nid->nd", one.advantages, features[one.members])
        x = moments(chance, rewards, features)
        prompts.append((one, update, x.gamma))
        against.append((g - 2) * (x.gamma @ x.gamma) / ((g - 1) * x.energy + x.spread))
    excess, energy = np.zeros((3, 3)), np.zeros((3, 3))
    for q, other in itertools.product(range(3), repeat=2):
        (a, update_a, gamma_a), (b, update_b, gamma_b) = prompts[q], prompts[other]
        cross = 2 * a.chance @ (update_a @ update_b.T) @ b.chance  # every pair of groups, one of each prompt
        energy[q, other] = sum(x.mean(x.energies.sum(axis=1)) for x in (a, b))
        excess[q, other] = cross + a.mean(a.square) + b.mean(b.square) - energy[q, other]
        expected = (g - 1) ** 2 * np.sum((gamma_a + gamma_b) ** 2)
        expected -= (g - 1) * (g - 2) / g * (gamma_a @ gamma_a + gamma_b @ gamma_b)
        np.testing.assert_allclose(excess[q, other], expected, **EXACT)
    assert excess.mean() > 0
    assert (excess[0, 1] < -1e-6) == (g > 2)
    np.testing.assert_allclose(excess[0, 1] / energy[0, 1], -against[0], **EXACT)


# --- weights of whole groups ---


def weights(counts: np.ndarray, g: int) -> dict[str, np.ndarray]:
    """Positive functions of the number of successes."""
    rate = counts / g
    deviation = np.sqrt(g * rate * (1 - rate) / (g - 1))
    return {
        "grpo": 1 / (deviation + 1e-6),
        "dynamic sampling": ((counts > 0) & (counts < g)).astype(float),
        **{f"count {n} alone": (counts == n).astype(float) for n in range(1, g)},
        "random": np.random.default_rng(g).uniform(0.01, 1, g + 1)[counts],
    }


@pytest.mark.parametrize("seed", range(3))
def test_binary_rewards_with_any_weight_of_the_count_stay_at_least_one(seed):
    x = law("token sum")
    rewards = (np.random.default_rng(seed).random(len(x.chance)) < 0.4).astype(float)
    p = x.chance @ rewards
    difference = moments(x.chance, rewards, x.features).gamma / (p * (1 - p))  # m_1 − m_0
    for g in SIZES:
        all_ = reference.groups(x.chance, rewards, x.gram, g)
        counts = all_.rewards.sum(axis=1).astype(int)
        energy = all_.energies.sum(axis=1)
        for n in range(1, g):
            here = counts == n
            got = all_.mean(here * (all_.square - energy)) / all_.mean(here)
            bracket = n * (g - n) - (g - n) * (1 - p) ** 2 - n * p**2
            expected = n * (g - n) / g**2 * bracket * (difference @ difference)
            np.testing.assert_allclose(got, expected, **EXACT)
        for name, weight in weights(counts, g).items():
            assert all_.ratio_of_means(weight) > 1, name


def test_with_three_rewards_a_weight_can_bring_it_below_one():
    """So "binary" is needed: here only pairs of the two rewards whose mean features agree are kept."""
    chance, rewards = np.full(3, 1 / 3), np.array([0.0, 1.0, 2.0])
    features = np.array([[1.0], [1.0], [-2.0]])  # mean zero
    all_ = reference.groups(chance, rewards, features @ features.T, 2)
    assert all_.ratio_of_means() > 1
    assert all_.ratio_of_means((all_.rewards.sum(axis=1) == 1).astype(float)) == 0


def test_a_common_mean_can_make_it_fall_with_g():
    """γ = 0, and rewards vary most where the feature is nearest its mean; a centred feature cannot do that."""
    chance, rewards = np.array([0.1, 0.1, 0.4, 0.4]), np.array([-1.0, 1.0, 0.0, 0.0])
    features = np.array([[1.0], [1.0], [3.0], [-1.0]])
    assert moments(chance, rewards, features).gamma == pytest.approx(0)
    grams = [f @ f.T for f in (features, features - chance @ features)]
    falling, flat = ([reference.groups(chance, rewards, k, g).ratio_of_means() for g in SIZES] for k in grams)
    assert 1 > falling[0] > falling[1] > falling[2]
    np.testing.assert_allclose(flat, 1, **EXACT)


# --- the mean of the ratio ---


@pytest.mark.parametrize("condition", ZERO_MEAN + COMMON_MEAN)
def test_how_far_the_two_ratios_can_be_apart(condition):
    """E[N]/E[D] is the mean of N/D weighted by D: |difference| ≤ sd(N/D) · √(1/share − 1), Kish's share of the D."""
    x = law(condition)
    for g in SIZES:
        all_ = reference.groups(x.chance, rewards_of(len(x.chance), "real"), x.gram, g)
        chance, d = all_.chance * all_.signal / all_.mean(all_.signal), all_.energies.sum(axis=1)
        mean = all_.mean_of_ratios()
        deviation = np.sqrt(chance @ (all_.ratios() - mean) ** 2)
        share = (chance @ d) ** 2 / (chance @ d**2)
        gap = abs(all_.ratio_of_means() - mean)
        assert 1e-4 < gap <= deviation * np.sqrt(1 / share - 1)


# --- rewards permuted within a group ---


@pytest.mark.parametrize("seed", range(3))
def test_permuted_rewards_give_one_minus_the_mean_cosine(seed):
    """Exactly, for any features and any rewards: ΣN/ΣD over all permutations = 1 − mean_{i≠j} K_ij / mean_i K_ii."""
    rng = np.random.default_rng(seed)
    features, rewards = rng.normal(size=(4, 3)) + 1.0, rng.normal(size=4)
    k = loops.gram(features)
    c = rewards - rewards.mean()
    square = sum(np.array(o) @ k @ np.array(o) for o in itertools.permutations(c))
    energy = sum(np.array(o) ** 2 @ np.diag(k) for o in itertools.permutations(c))
    off = sum(k[i, j] for i in range(4) for j in range(4) if i != j) / 12
    np.testing.assert_allclose(square / energy, 1 - off / (sum(k[i, i] for i in range(4)) / 4), rtol=1e-12)


@pytest.mark.parametrize("condition", ZERO_MEAN + COMMON_MEAN)
def test_the_estimate_of_the_common_mean_is_unbiased(condition):
    x = law(condition)
    all_ = reference.groups(x.chance, rewards_of(len(x.chance), "real"), x.gram, 3)
    trace = np.einsum("nii->n", all_.gram)
    off = (all_.gram.sum(axis=(1, 2)) - trace) / 6
    mean = x.chance @ x.features
    np.testing.assert_allclose(all_.mean(off), mean @ mean, **EXACT)
    np.testing.assert_allclose(all_.mean(trace / 3), x.chance @ np.sum(x.features**2, axis=1), **EXACT)


# --- the library computes these features and this ratio ---


def batch(policy: reference.Policy):
    """Every completion as one batch: hidden (m, T, H), lm_head, targets, mask."""
    everything = reference.completions(policy)
    shape = (len(everything), policy.tokens)
    hidden = np.full((*shape, policy.lm_head.shape[0]), np.nan)  # what stands behind the end does not matter
    targets, mask = np.full(shape, -1), np.zeros(shape, bool)
    for i, o in enumerate(everything):
        for t, y in enumerate(o):
            hidden[i, t], targets[i, t], mask[i, t] = policy.hidden[o[:t]], y, True
    return [hidden.astype(np.float32), policy.lm_head.astype(np.float32), targets, mask]


def library_gram(condition: str) -> np.ndarray:
    hidden, lm_head, targets, mask = batch(MAIN)
    if condition == "mask without stop":
        mask = mask & (targets != MAIN.stop)
    if condition == "taken-token":
        return one_program(geometry.taken_token_gram)(hidden, lm_head, targets, mask, length_normalize=False)
    temperature = 0.6 if condition == "temperature" else 1.0
    options = {"length_normalize": condition == "length mean", "temperature": temperature}
    return one_program(geometry.lm_head_gram)(hidden, lm_head, targets, mask, **options)


@pytest.mark.parametrize(
    "condition", ["token sum", "length mean", "taken-token", "temperature", "mask without stop"]
)
def test_the_librarys_gram_obeys_the_proposition(condition):
    x, gram = law(condition), np.asarray(library_gram(condition), float)
    np.testing.assert_allclose(gram, x.gram, rtol=1e-4, atol=1e-5)
    rewards = rewards_of(len(x.chance), "binary")
    all_ = reference.groups(x.chance, rewards, gram, 3)
    expected = ratio_of_means(moments(x.chance, rewards, x.features), 3)
    np.testing.assert_allclose(all_.ratio_of_means(), expected, rtol=1e-5)


def test_the_librarys_ratio_is_the_enumerations():
    x = law("token sum")
    all_ = reference.groups(x.chance, rewards_of(len(x.chance), "binary"), x.gram, 4)
    chosen = np.flatnonzero(all_.signal)[:: 50]
    n_eff = one_program(geometry.effective_sample_size)
    got = [float(n_eff(all_.gram[i].astype(np.float32), all_.advantages[i].astype(np.float32))) for i in chosen]
    np.testing.assert_allclose(got, all_.ratios()[chosen], rtol=1e-4, atol=1e-5)
