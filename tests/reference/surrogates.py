"""The surrogates as plain Python loops in float64, written from the formulas and independent of the JAX code.

`at` are the log-probabilities at which what is a constant (a weight, a mask, a stop-gradient) is evaluated: with `at`
fixed and `log_probs` moved, finite differences of these losses are the gradients that the surrogates must have.
"""

from __future__ import annotations

import math

import numpy as np

LIMIT = 20.0


def clipped(ratio, advantage, low, high):
    return -min(ratio * advantage, max(1 - low, min(1 + high, ratio)) * advantage)


def token_ratio(new, old):
    return math.exp(max(-LIMIT, min(LIMIT, new - old)))


def one_side(ratio, advantage, low, high):
    return (advantage >= 0 and ratio <= 1 + high) or (advantage <= 0 and ratio >= 1 - low)


def rec_kept(kind, ratio, sequence, advantage, low, high, outer_low, outer_high):
    inside = 1 - low <= ratio <= 1 + high
    if kind == "none":
        return True
    if kind == "one_side":
        return one_side(ratio, advantage, low, high)
    if kind == "gspo_one_side":
        return one_side(sequence, advantage, low, high)
    if kind == "two_side":
        return inside
    assert kind == "ring"
    far = (advantage >= 0 and ratio <= 1 - outer_low) or (advantage <= 0 and ratio >= 1 + outer_high)
    return inside or far


def rec_factor(kind, ratio, sequence, advantage, temperature):
    factors = {"none": 1.0, "importance": ratio, "gspo_importance": sequence}
    return math.exp(min(advantage / temperature, LIMIT)) if kind == "advantage" else factors[kind]


def mean_log_ratio(new, old, tokens):
    return math.fsum(new[t] - old[t] for t in tokens) / max(len(tokens), 1)


def token_losses(
    name,
    log_probs,
    old_log_probs,
    advantages,
    mask,
    options,
    *,
    at=None,
    chosen=None,
    segments=None,
    log_proxy=None,
    kept_log_mass=None,
):
    """(losses, ratios, clipped_low, clipped_high), all (N, T), 0 where masked; `options` is a SurrogateOptions."""
    log_probs, old = np.asarray(log_probs, np.float64), np.asarray(old_log_probs, np.float64)
    at = log_probs if at is None else np.asarray(at, np.float64)
    low, high = options.clip_low, options.clip_high
    losses, ratios, belows, aboves = (np.zeros(log_probs.shape) for _ in range(4))
    for n in range(log_probs.shape[0]):
        row = [t for t in range(log_probs.shape[1]) if mask[n][t]]
        sequence = math.exp(min(mean_log_ratio(log_probs[n], old[n], row), 10.0))
        sequence_at = math.exp(min(mean_log_ratio(at[n], old[n], row), 10.0))
        for t in row:
            new, advantage = log_probs[n, t], float(advantages[n][t])
            ratio, ratio_at = token_ratio(new, old[n, t]), token_ratio(at[n, t], old[n, t])
            below = above = False
            if name in ("ppo_clip", "clip_cov", "gspo", "gspo_token", "macro_sum", "macro_mean"):
                if name == "gspo":
                    ratio = sequence
                elif name == "gspo_token":
                    moved = min(mean_log_ratio(at[n], old[n], row), 10.0) + new - at[n, t]
                    ratio = math.exp(min(moved, 10.0))
                elif name.startswith("macro"):
                    same = [s for s in row if segments[n][s] == segments[n][t]]
                    total = math.fsum(log_probs[n, s] - old[n, s] for s in same)
                    total = total / len(same) if name == "macro_mean" else total
                    ratio = math.exp(max(-LIMIT, min(LIMIT, total)))
                loss = clipped(ratio, advantage, low, high)
                if name == "ppo_clip" and options.dual_clip is not None and advantage < 0:
                    loss = min(loss, -options.dual_clip * advantage)
                below, above = advantage < 0 and ratio < 1 - low, advantage > 0 and ratio > 1 + high
                if name == "clip_cov" and chosen[n][t]:
                    loss = 0.0
            elif name == "cispo":
                loss = -max(1 - low, min(1 + high, ratio_at)) * advantage * new
                below, above = ratio < 1 - low, ratio > 1 + high
            elif name == "reinforce":
                loss = -advantage * new
            elif name == "on_policy":
                ratio = math.exp(new - at[n, t])
                loss = -advantage * ratio
            elif name == "opmd":
                loss = -advantage * new / (1 + options.tau)
            elif name == "rec":
                outer = options.rec_outer_low, options.rec_outer_high
                kept = rec_kept(options.rec_mask, ratio_at, sequence_at, advantage, low, high, *outer)
                factor = rec_factor(options.rec_weight, ratio_at, sequence_at, advantage, options.rec_temperature)
                loss = -advantage * factor * new if kept else 0.0
                if options.rec_regularizer == "k2":
                    loss += options.rec_coef * (new - old[n, t]) ** 2
                elif options.rec_regularizer == "forward_kl":
                    loss -= options.rec_coef * new
                if "gspo" in options.rec_mask + options.rec_weight:
                    ratio = sequence
                below, above = not kept and ratio < 1, not kept and ratio >= 1
            elif name == "kl_cov":
                loss = -advantage * ratio + options.kl_cov_coef * abs(new - old[n, t]) * bool(chosen[n][t])
            else:
                assert name == "lp_reg"
                cap, capped = options.lp_reg_cap, min(ratio, options.lp_reg_cap)
                if options.lp_reg_form == "paper":
                    loss, above = -advantage * capped, ratio > cap
                    loss -= options.lp_reg_beta * kept_log_mass[n][t] if chosen[n][t] else 0.0
                elif chosen[n][t]:
                    x = min(log_proxy[n][t] - new, LIMIT)
                    loss = -advantage * ratio + options.lp_reg_beta * min(math.expm1(x) - x, 10.0)
                else:
                    loss = max(-advantage * ratio, -advantage * capped)
                    above = advantage > 0 and ratio > cap
            losses[n, t], ratios[n, t], belows[n, t], aboves[n, t] = loss, ratio, below, above
    return losses, ratios, belows, aboves


def weighted_sum(losses, mask, aggregation, weights=None, max_length=None):
    """(sum, denominator) of per-token losses, by loops."""
    total, nonempty, tokens = 0.0, 0, 0
    for n, row in enumerate(np.asarray(mask, bool)):
        places = np.flatnonzero(row)
        nonempty, tokens = nonempty + bool(len(places)), tokens + len(places)
        part = math.fsum(losses[n][t] * (1.0 if weights is None else weights[n][t]) for t in places)
        total += part / max(len(places), 1) if aggregation == "seq_mean_token_mean" else part
    denominators = {
        "token_mean": tokens,
        "seq_mean_token_mean": nonempty,
        "seq_mean_token_sum": nonempty,
        "dr_grpo": len(mask) * (max_length or 0),
        "token_sum_norm": max_length,
    }
    return total, denominators[aggregation]
