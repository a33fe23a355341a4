"""The advantages of the objective family as plain Python loops in float64, independent of the JAX code."""

from __future__ import annotations

import itertools
import math

import numpy as np

from tests.reference import objective


def beta_density(p, alpha, beta):
    log_normalizer = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    for x, power in ((p, alpha - 1), (1 - p, beta - 1)):
        if x == 0:
            if power > 0:
                return 0.0
        else:
            log_normalizer -= power * math.log(x)
    return math.exp(-log_normalizer)


def beta_parameters(pass_rates):
    """(a, b, alpha, beta)."""
    n = len(pass_rates)
    if n > 1 and max(pass_rates) == min(pass_rates):
        return 0.0, 0.0, 1.0, 1.0
    mu = math.fsum(pass_rates) / n if n > 1 else 0.0
    var = math.fsum((p - mu) ** 2 for p in pass_rates) / (n - 1) if n > 1 else 1.0
    k = mu * (1 - mu) / var - 1
    a, b = k * mu, k * (1 - mu)
    return a, b, max(1.0, 1 + a / 3), max(1.0, 1 + b / 3)


def bnpo(rewards, rewarded, singleton="zero"):
    members = [[g for g in range(len(row)) if rewarded[b][g]] for b, row in enumerate(rewards)]
    rates = {}
    for b, row in enumerate(rewards):
        if len(members[b]) > 1:
            rates[b] = math.fsum(float(row[g]) for g in members[b]) / len(members[b])
        elif len(members[b]) == 1 and singleton == "reward":
            rates[b] = 0.0
    _, _, alpha, beta = beta_parameters(list(rates.values()))
    result = np.zeros(np.shape(rewards))
    for b, p in rates.items():
        values = [float(rewards[b][g]) for g in members[b]]
        if len(values) > 1 and max(values) == min(values):
            continue
        density = beta_density(p, alpha, beta)
        weight = 1e6 if density < 1e-6 else 1 / density
        for g in members[b]:
            result[b, g] = (float(rewards[b][g]) - p) * weight
    return result


def diversity(clusters, counted):
    result = np.zeros(np.shape(clusters))
    for b, row in enumerate(clusters):
        members = [g for g in range(len(row)) if counted[b][g]]
        for g in members:
            if len(members) > 1:
                result[b, g] = sum(row[j] != row[g] for j in members) / (len(members) - 1)
    return result


def cluster_rewards(
    rewards, clusters, counted, *, floor=0.0, form="multiply", lambda_reward=1.0, lambda_diversity=1.0,
    add_bias=False, correct=None,
):  # fmt: skip
    result = np.zeros(np.shape(rewards))
    apart = diversity(clusters, counted if correct is None else np.logical_and(counted, correct))
    for b, row in enumerate(rewards):
        members = [g for g in range(len(row)) if counted[b][g]]
        for g in members:
            quality = float(row[g]) - (min(float(row[j]) for j in members) if add_bias else 0.0)
            div = max(apart[b, g], floor)
            result[b, g] = quality * div if form == "multiply" else lambda_reward * quality + lambda_diversity * div
    return result


def group_advantages(
    rewards, *, estimator, rewarded, ddof=1, eps=1e-6, singleton="zero", opmd_baseline="mean", tau=1.0,
    asymre_shift=-0.1, baseline=None, weight=None, clusters=None, correct=None, **darling,
):  # fmt: skip
    """As the JAX function of the same name, for all its estimators."""
    if estimator == "bnpo":
        return bnpo(rewards, rewarded, singleton)
    if estimator == "darling":
        options = {name.removeprefix("darling_"): value for name, value in darling.items()}
        shaped = cluster_rewards(rewards, clusters, rewarded, correct=correct, **options)
        return objective.group_advantages(shaped, estimator="dr_grpo", rewarded=rewarded)
    result = np.zeros(np.shape(rewards))
    for b, row in enumerate(rewards):
        members = [g for g in range(len(row)) if rewarded[b][g]]
        values = [float(row[g]) for g in members]
        for g, value in zip(members, values, strict=True):
            alone, equal = len(values) == 1, max(values) == min(values)
            if estimator == "raft":
                result[b, g] = max(value, 0.0)
            elif estimator == "given_baseline":
                factor = 1.0 if weight is None else float(weight[b][g])
                result[b, g] = (value - float(baseline[b][g])) * factor
            elif alone and singleton == "reward":
                result[b, g] = value / (1 + eps) if estimator == "grpo" else value
            elif estimator == "asymre":
                result[b, g] = value - (math.fsum(values) / len(values) + asymre_shift)
            elif equal:
                result[b, g] = 0.0
            elif estimator == "opmd" and opmd_baseline == "mean":
                result[b, g] = value - math.fsum(values) / len(values)
            elif estimator == "opmd":
                powers = math.fsum(math.exp((v - max(values)) / tau) for v in values)
                result[b, g] = value - max(values) - tau * math.log(powers / len(values))
            else:
                one = objective.group_advantages([values], estimator=estimator, ddof=ddof, eps=eps)
                result[b, g] = one[0, members.index(g)]
    return result


def token_returns(rewards, mask, token_rewards=None, gamma=1.0):
    result = np.zeros(np.shape(mask))
    for n, row in enumerate(mask):
        steps = [t for t in range(len(row)) if row[t]]
        following = 0.0
        for t in reversed(steps):
            rho = float(rewards[n]) if t == steps[-1] else 0.0
            rho += 0.0 if token_rewards is None else float(token_rewards[n][t])
            following = rho + gamma * following
            result[n, t] = following
    return result


def whiten(values, mask, variance, eps=1e-8):
    result = np.zeros(np.shape(mask))
    places = list(zip(*np.nonzero(mask), strict=True))
    numbers = [float(values[place]) for place in places]
    if len(numbers) < 2 or max(numbers) == min(numbers):
        return result
    mean = math.fsum(numbers) / len(numbers)
    squares = math.fsum((x - mean) ** 2 for x in numbers)
    scale = squares / (len(numbers) - 1) + eps if variance == "unbiased" else max(squares / len(numbers), eps)
    for place, x in zip(places, numbers, strict=True):
        result[place] = (x - mean) / math.sqrt(scale)
    return result


def conflict_runs(rows, advantages, group_size):
    """rows: lists of tokens without padding. Returns (prefix, suffix) lists."""
    prefix, suffix = [], []
    for runs, step in ((prefix, 1), (suffix, -1)):
        for i, row in enumerate(rows):
            group = range(i // group_size * group_size, (i // group_size + 1) * group_size)
            length = 0
            for offset, token in enumerate(row[::step]):
                meets = [
                    j for j in group
                    if advantages[i] * advantages[j] < 0 and offset < len(rows[j]) and rows[j][::step][offset] == token
                ]  # fmt: skip
                if not meets:
                    break
                length += 1
            runs.append(length)
    return prefix, suffix


def conflict_weights(rows, advantages, group_size, weight=2.0, overlap="multiply"):
    """One list a row, as long as the row."""
    result = []
    for row, advantage, first, last in zip(rows, advantages, *conflict_runs(rows, advantages, group_size), strict=True):
        factor = weight if advantage > 0 else 0.0
        weights = []
        for t in range(len(row)):
            hits = (t < first) + (len(row) - 1 - t < last)
            weights.append(factor ** (min(hits, 1) if overlap == "once" else hits) if hits else 1.0)
        result.append(weights)
    return result


def gtpo_loss(advantages, weights, counts=None):
    """weights: one list a row, without padding."""
    total = 0.0
    for i, row in enumerate(weights):
        if row:
            total -= advantages[i] * math.fsum(row) / len(row) / (1 if counts is None else max(counts[i], 1))
    return total if counts is not None else total / max(sum(1 for row in weights if row), 1)


def largest_variance(values, keep):
    """The largest population variance of any subset of that size, by trying all of them."""
    return max((float(np.var(subset)) for subset in itertools.combinations(values, keep)), default=0.0)
