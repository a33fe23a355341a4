"""The objective as plain Python loops in float64, written from the formulas and independent of the JAX code."""

from __future__ import annotations

import math

import numpy as np


def group_advantages(rewards, *, estimator="grpo", ddof=1, eps=1e-6, rewarded=None):
    rewards = np.asarray(rewards, np.float64)
    result = np.zeros(rewards.shape)
    for b in range(rewards.shape[0]):
        members = [g for g in range(rewards.shape[1]) if rewarded is None or rewarded[b][g]]
        values = [float(rewards[b, g]) for g in members]
        if len(values) < 2 or max(values) == min(values):
            continue
        mean = math.fsum(values) / len(values)
        for g, value in zip(members, values, strict=True):
            if estimator == "grpo":
                variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - ddof)
                result[b, g] = (value - mean) / (math.sqrt(variance) + eps)
            elif estimator == "dr_grpo":
                result[b, g] = value - mean
            elif estimator == "rloo":
                others = list(values)
                others.remove(value)
                result[b, g] = value - math.fsum(others) / len(others)
            else:
                raise AssertionError(estimator)
    return result


def kl(name, log_prob, ref_log_prob):
    d = log_prob - ref_log_prob
    if name == "k1":
        return d
    if name == "k2":
        return 0.5 * d * d
    return math.expm1(min(-d, 20.0)) - min(-d, 20.0)


def token_loss(log_prob, old, advantage, clip_low, clip_high):
    ratio = math.exp(max(-20.0, min(20.0, log_prob - old)))
    clipped = max(1 - clip_low, min(1 + clip_high, ratio))
    return -min(ratio * advantage, clipped * advantage), ratio


def policy_loss(
    log_probs,
    old_log_probs,
    advantages,
    mask,
    *,
    clip_low=0.2,
    clip_high=0.2,
    aggregation="token_mean",
    max_length=None,
    ref_log_probs=None,
    kl_estimator="k3",
    kl_coef=0.0,
    entropy=None,
    entropy_coef=0.0,
):
    """Returns (sum, denominator, metrics), metrics being already divided."""
    num_rows, num_columns = np.shape(log_probs)
    per_row, lengths = [], []
    tokens = {
        "ratio_mean": [],
        "approx_kl": [],
        "clip_fraction_low": [],
        "clip_fraction_high": [],
        "kl_ref": [],
    }
    for n in range(num_rows):
        row = []
        for t in range(num_columns):
            if not mask[n][t]:
                continue
            advantage = float(advantages[n] if np.ndim(advantages) == 1 else advantages[n][t])
            new, old = float(log_probs[n][t]), float(old_log_probs[n][t])
            value, ratio = token_loss(new, old, advantage, clip_low, clip_high)
            if ref_log_probs is not None:
                tokens["kl_ref"].append(kl(kl_estimator, new, float(ref_log_probs[n][t])))
                value += kl_coef * tokens["kl_ref"][-1]
            if entropy is not None:
                value -= entropy_coef * float(entropy[n][t])
            row.append(value)
            tokens["ratio_mean"].append(ratio)
            tokens["approx_kl"].append(kl("k3", old, new))
            tokens["clip_fraction_low"].append(float(advantage < 0 and ratio < 1 - clip_low))
            tokens["clip_fraction_high"].append(float(advantage > 0 and ratio > 1 + clip_high))
        per_row.append(row)
        lengths.append(len(row))
    nonempty = sum(1 for length in lengths if length)
    if aggregation == "token_mean":
        total, denominator = sum(map(math.fsum, per_row)), sum(lengths)
    elif aggregation == "seq_mean_token_mean":
        total, denominator = sum(math.fsum(row) / len(row) for row in per_row if row), nonempty
    elif aggregation == "seq_mean_token_sum":
        total, denominator = sum(map(math.fsum, per_row)), nonempty
    elif aggregation == "token_sum_norm":
        total, denominator = sum(map(math.fsum, per_row)), max_length
    else:
        total, denominator = sum(map(math.fsum, per_row)), num_rows * max_length
    metrics = {name: float(np.mean(values)) if values else 0.0 for name, values in tokens.items()}
    metrics["ratio_max"] = max(tokens["ratio_mean"], default=0.0)
    if ref_log_probs is None:
        del metrics["kl_ref"]
    return total, denominator, metrics
