"""The table of methods in docs/methods.md, made from the code: `python -m experiments.methods --write docs/methods.md`.

Formulas and sources stand here; what a method reads, its defaults, and how a configuration asks for it come from the
tables of salt_jax.objective, from ``ObjectiveConfig`` and from configs/methods.py. A test demands that every entry
of those tables is in this one, and that the page is the one this program writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from configs.methods import METHODS as FORMS
from salt_jax.collect import COLLECTORS
from salt_jax.learner.settings import CollectionConfig
from salt_jax.objective import (
    AGGREGATIONS,
    ESTIMATORS,
    FILTERS,
    KL_ESTIMATORS,
    SURROGATES,
    TOKENS,
    ObjectiveConfig,
)
from salt_jax.objective.composition import readers
from salt_jax.objective.importance import MODES
from salt_jax.tasks.paths import expanded

WRITE = flags.DEFINE_string("write", None, "the page to write; prints it where absent")

# How far a definition was checked against the authors' own code.
RAN, READ, PAPER, SECOND, OURS, MEMORY = (
    "executed", "read", "paper", "secondary source", "derived here", "unconfirmed",
)  # fmt: skip
YES = "yes"
COLLAPSED = "collapsed to the masked mean of a rollout's tokens (`salt/collapsed` = 1)"


class Entry(NamedTuple):
    """One row: what it is, where it comes from, whether official code confirmed it, how it goes with SALT."""

    formula: str
    source: str
    confirmed: str
    salt: str = YES


ESTIMATOR_ROWS = {
    "grpo": Entry("(r − mean) / (std + eps)", "arXiv 2402.03300 eq. 3", RAN),
    "dr_grpo": Entry("r − mean", "arXiv 2503.20783", RAN),
    "rloo": Entry("r − mean of the others", "arXiv 2402.14740", RAN),
    "reinforce_pp": Entry(
        "Σ_{s≥t} γ^{s−t} r_s, whitened over the batch's tokens", "arXiv 2501.03262", RAN, COLLAPSED,
    ),
    "reinforce_pp_baseline": Entry(
        "r − mean, whitened over the batch's tokens", "arXiv 2501.03262", RAN, COLLAPSED,
    ),
    "bnpo": Entry("(r − p) / Beta(p; α, β), α and β by moments of the batch", "arXiv 2506.02864", RAN),
    "gtpo": Entry(
        "δ · (r − mean − γ ⟨H⟩), δ = 0 where ⟨H⟩ > threshold", "arXiv 2508.03772", f"{RAN}; default: {PAPER}",
    ),
    "opmd": Entry("r − mean, or r − τ log mean e^{r/τ}", "Trinity-RFT, arXiv 2505.17826", READ),
    "asymre": Entry("r − (mean + shift)", "arXiv 2506.20520; 2509.24203", READ),
    "raft": Entry("max(r, 0) · weight", "arXiv 2505.02391", READ),
    "given_baseline": Entry("(r − baseline) · weight, both from a larger pool", "arXiv 2510.04996", RAN),
    "darling": Entry(
        "r̃ − mean r̃, r̃ = r · Div, Div = share of others in another class", "arXiv 2509.02534 eqs. 4–6", RAN,
    ),
    "copg": Entry(
        "2G/(n−1) · (R_β − mean R_β), R_β = R − β ln π/π_ref",
        "arXiv 2406.19185 eq. 17", f"{PAPER}; k > 2: {OURS}",
    ),
    "rank_grpo": Entry(
        "per rank: (r_k − mean) / (std + 1e-4)", "arXiv 2510.20150", f"{RAN}; objective: {SECOND}", COLLAPSED,
    ),
}  # fmt: skip
FILTER_ROWS = {
    "pods": Entry("the n of G rollouts with the largest reward variance", "arXiv 2504.13818", PAPER),
    "red_drop": Entry("drops random surplus negatives, mean anew", "arXiv 2509.24203", RAN),
    "informative": Entry("groups with max r ≠ min r", "DAPO, arXiv 2503.14476", READ),
    "not_truncated": Entry(
        "rollouts that ended by themselves", "DAPO's overlong filtering, arXiv 2503.14476", READ,
    ),
    "positive_only": Entry("A > 0", "rejection of the others", OURS),
    "winners": Entry("A > 0; the others count in the denominator", "WAPO, arXiv 2606.16154", READ),
    "d3s": Entry("largest Var(A) in each group, then in the batch; scheduled", "arXiv 2509.22115", SECOND),
}
TOKEN_ROWS = {
    "all": Entry("every token of the completion", "", ""),
    "conflict": Entry(
        "λ_t ∈ {0, 1, 2, 4}: tokens shared by positive and negative rollouts at the ends",
        "GTPO, arXiv 2508.03772", RAN,
    ),
    "d3s": Entry("the top share of tokens by |A|·H; scheduled", "arXiv 2509.22115", SECOND),
}  # fmt: skip
SURROGATE_ROWS = {
    "ppo_clip": Entry(
        "−min(ρA, clip(ρ, 1−lo, 1+hi)A); dual clip: min(·, −cA) for A < 0",
        "arXiv 1707.06347 eq. 7; 1912.09729", RAN,
    ),
    "gspo": Entry("the same with s = exp(mean_t ln ρ)", "arXiv 2507.18071", RAN),
    "gspo_token": Entry("sg(s) · π/sg(π) a token", "arXiv 2507.18071", RAN),
    "cispo": Entry("−sg(clip(ρ)) · A · ln π", "arXiv 2506.13585", f"{RAN}; formula: {SECOND}"),
    "reinforce": Entry("−A ln π", "REINFORCE", RAN),
    "on_policy": Entry("−A π/sg(π): the unified estimator with π_ref = π", "arXiv 2509.04419", RAN),
    "opmd": Entry("−A ln π / (1 + τ)", "Trinity-RFT", READ),
    "rec": Entry("−A · w · M · ln π + regulariser", "REC / RED, arXiv 2509.24203", RAN),
    "clip_cov": Entry(
        "ppo_clip; no gradient on a random few tokens of high covariance", "arXiv 2505.22617", READ,
    ),
    "kl_cov": Entry("−ρA + c |ln ρ| on the few tokens of highest covariance", "arXiv 2505.22617", READ),
    "macro_sum": Entry("ρ_τ = exp(Σ_{t∈τ} ln ρ_t), clipped a macro-action", "arXiv 2410.02743", OURS),
    "macro_mean": Entry(
        "ρ_τ = exp(mean_{t∈τ} ln ρ_t); over list items: Rank-GRPO",
        "arXiv 2410.02743; 2510.20150", f"{OURS}; Rank-GRPO: {RAN}",
    ),
    "lp_reg": Entry(
        "−Aρ, capped; a few unlikely tokens with A < 0: −Aρ + β k3(proxy, π) instead (release), or besides (paper)"
        " β KL(proxy ‖ π), with the current policy's proxy",
        "arXiv 2510.03222", RAN,
    ),
}  # fmt: skip
IMPORTANCE_ROWS = {
    "token": Entry("min(π_old/π_sampler, high)", "TIS, verl", RAN),
    "sequence": Entry("the same of the product over a rollout's tokens", "verl", RAN),
    "token_mask": Entry("the ratio, 0 outside [low, high]", "IcePop", READ),
    "sequence_mask": Entry("the same of the product", "TRL", READ),
}
AGGREGATION_ROWS = {
    "token_mean": Entry("Σ L / Σ mask", "DAPO", RAN),
    "seq_mean_token_mean": Entry("mean over rows of the mean over tokens", "GRPO", RAN),
    "seq_mean_token_sum": Entry("mean over rows of the sum over tokens", "", RAN),
    "dr_grpo": Entry("Σ L / (rows · L_max)", "Dr.GRPO; oat, TRL", RAN),
    "token_sum_norm": Entry("Σ L / L_max; not with several microbatches", "verl's dr_grpo", RAN),
}
KL_ROWS = {
    "k1": Entry("d = ln π − ln π_ref; in the reward only", "Schulman 2020", RAN),
    "k2": Entry("d² / 2", "Schulman 2020", RAN),
    "k3": Entry("e^{−d} + d − 1", "Schulman 2020", RAN),
    "k3_plus": Entry("value of k3, gradient of k2", "verl's k3+", READ),
}
REWARD_ROWS = {
    "objective.overlong_buffer": Entry("− (n − (L_max − L_c)) / L_c, within −1 and 0", "DAPO, arXiv 2503.14476", READ),
    "objective.kl_in = reward": Entry("r − kl_coef · Σ_t k1_t", "REINFORCE++, arXiv 2501.03262", READ),
    "objective.entropy_coef": Entry("L − coef · H", "", RAN),
    "objective.demonstration_coef": Entry(
        "coef · token mean of −ln π over demonstrations", "HPT, arXiv 2509.04419", RAN, "outside",
    ),
    "warm_start.objective = otr": Entry(
        "−mean_j R_j ln π(a_j), a_j ~ softmax(z/κ), R = 1 or β", "One-Token Rollout, arXiv 2509.26313",
        f"{SECOND}; κ = 1.3 and β = −0.1: {MEMORY}", "before it",
    ),
    "warm_start.objective = otr_exact": Entry(
        "its expectation over the vocabulary", "arXiv 2509.26313", f"{SECOND}; κ, β: {MEMORY}", "before it",
    ),
}  # fmt: skip
COLLECTOR_ROWS = {
    "plain": Entry("every prompt of the batch, G rollouts each", "", ""),
    "dynamic": Entry("refills until every group has a signal", "DAPO, arXiv 2503.14476", READ),
    "pods": Entry("more rollouts than the update takes; those of largest reward variance", "arXiv 2504.13818", PAPER),
    "reinforce_ada": Entry(
        "rounds of rollouts until a prompt has both outcomes; baseline of the pool", "arXiv 2510.04996", RAN,
    ),
    "reinforce_ada_est": Entry(
        "N_x ∝ 1/√p̂ within bounds; p̂ from running counts", "arXiv 2510.04996 v3", PAPER,
    ),
    "vade": Entry("prompts of largest p̃(1−p̃)², p̃ ~ Beta", "arXiv 2511.18902", "figure only; λ inferred"),
    "gvm": Entry("n ∝ G/√(p + α/p^{β−1}), after pilots", "arXiv 2505.02391", RAN),
    "aepo": Entry(
        "successes at another temperature replace rows; their advantage is 1",
        "arXiv 2510.08141", f"{READ}; α of the paper: {MEMORY}",
    ),
    "hpt": Entry(
        "a demonstration in place of a group that fails",
        "arXiv 2509.04419", RAN, "yes; a demonstration has no advantage and is outside K",
    ),
}  # fmt: skip

SECTIONS = (
    ("Estimators", "estimator", ESTIMATOR_ROWS, ESTIMATORS),
    ("Filters of rollouts", "filters", FILTER_ROWS, FILTERS),
    ("Tokens", "tokens", TOKEN_ROWS, dict.fromkeys(TOKENS)),
    ("Surrogates", "surrogate", SURROGATE_ROWS, SURROGATES),
    ("Sampler/trainer mismatch", "importance", IMPORTANCE_ROWS, dict.fromkeys(MODES)),
    ("Aggregations", "aggregation", AGGREGATION_ROWS, AGGREGATIONS),
    ("KL to the reference", "kl_estimator", KL_ROWS, KL_ESTIMATORS),
)


def rows(stage: str, table: dict[str, Entry]) -> Iterator[str]:
    """Lines of one stage's table."""
    fields = (*dataclasses.fields(ObjectiveConfig), *dataclasses.fields(CollectionConfig))
    defaults = {field.name: field.default for field in fields}
    read: dict[str, list[str]] = {}
    of_collectors = ((field, "collection", name) for name, method in COLLECTORS.items() for field in method.options)
    for field, where, method in (*readers(), *of_collectors):
        if where == stage:
            read.setdefault(method, []).append(f"{field} = {short(defaults[field])}")
    yield "| name | formula | options and defaults | source | official code | with SALT |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, entry in table.items():
        options = ", ".join(read.get(name, []))
        cells = (f"`{name}`", entry.formula, options, entry.source, entry.confirmed, entry.salt)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def short(value: object) -> str:
    """A default as the page writes it.

    >>> short(0.6931471805599453), short("mean"), short(None)
    ('0.6931', 'mean', 'None')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def page() -> str:
    """The whole of docs/methods.md."""
    lines = [
        "# Methods", "",
        "<!-- made by `python -m experiments.methods --write docs/methods.md`; edit experiments/methods.py -->", "",
        INTRODUCTION, "",
    ]  # fmt: skip
    for title, stage, table, _ in SECTIONS:
        lines += [f"## {title}: `objective.{stage}`", "", *rows(stage, table), ""]
    lines += ["## Where rollouts come from: `collection.method`", "", *rows("collection", COLLECTOR_ROWS), ""]
    lines += [COLLECTION_METRICS, ""]
    lines += ["## Around the loss", "", *rows("other", REWARD_ROWS), "", ARRAYS_ONLY, ""]
    lines += ["## Ready-made forms", "", FORMS_INTRODUCTION, "", "| form | what it sets |", "| --- | --- |"]
    for name, sections in FORMS.items():
        settings = [
            f"{section}.{key} = {short(value)}" for section, values in sections.items() for key, value in values.items()
        ]
        lines.append(f"| `{name}` | {', '.join(settings)} |")
    return "\n".join([*lines, "", CLOSING]) + "\n"


INTRODUCTION = """\
A configuration names one method a stage; SALT, where it is on, sits between the advantages and the tokens:

    rewards → shaping → filters → estimator → advantages → [SALT] → tokens → surrogate · importance → aggregation → + KL

Everything is a pure function on arrays (`salt_jax.objective`), with formula, shapes and edge cases in its docstring.
What ranks or averages over a whole minibatch is decided once, as constants, from the policy before the step; the
surrogate is a sum over rows, so that microbatches change nothing. An option that nothing reads is refused.

A rollout has *succeeded* where the grader's reward, before any shaping, is at least `task.correct_from` (default 1):
for accuracy, the rates of `salt.variant = scaled`, every `collection.method` and DARLING's partition. What compares
rewards with each other (estimators, `informative`, `pods`, the signal of `dynamic`) takes them as they are.
With 0.01 for a wrong answer, as many generators of Reasoning Gym have it, a group of failures is unsolved. DAPO's
1 and −1 need nothing else, and its overlong penalty makes no failure of a success. Reinforce-Ada's release calls a
reward above 0.7 positive: the same for 0 and 1; where graders give what lies between, set `task.correct_from = 0.7`.

"Official code": *executed*: the authors' code was run and agrees with the numbers in the tests; *read*: read, not run;
*paper*: from the text alone; *secondary source*, *unconfirmed*, *derived here*: as they say."""
FORMS_INTRODUCTION = """\
`python -m experiments.train --config=configs/methods.py:FORM --workdir=DIR` runs one on two-digit sums, with SALT;
`--config.salt.enabled=False` without. `FORM-small` is the same path with a small policy, in little time."""
COLLECTION_METRICS = """\
`reward`, `accuracy` and `groups_with_signal` in metrics.jsonl are of the batch that the update sees. Where a method
selects it, `collection/reward_sampled` is the mean over all that the policy drew, which the plots show, and
`collection/rollouts_sampled` what it cost. `collection.method = pods` samples more than the update takes;
`objective.filters = pods` drops rows of a batch that has been paid for."""
ARRAYS_ONLY = """\
Functions on arrays without a place in a configuration: the unified estimator and HPT's whole loss
(`objective.hpt`), CoPG's and GTPO's whole losses, Rank-GRPO's length shaping and its paper's mean over ranks
(`objective.rank_grpo`), macro-actions of random length or by perplexity, their rewards and discounts
(`objective.macro_actions`). Which prompts and how many rollouts: `salt_jax.collect.allocation`. Which data:
[selection.md](selection.md)."""
CLOSING = """\
## What a configuration refuses, and why

| combination | reason |
| --- | --- |
| `surrogate = gspo`, an estimator of one advantage a token | one ratio a rollout credits no token; `gspo_token` does |
| `filters` `positive_only`, `winners`, `d3s`, `tokens = conflict`, the same | they look at a rollout's own advantage |
| `kl_estimator = k1` in the loss | its expected gradient is zero |
| `kl_in = reward` with another estimator than k1 | only k1 is unbiased as a reward |
| `estimator = copg` with `kl_coef` | KL would count twice |
| `aggregation = token_sum_norm` with several microbatches | its denominator is one constant, and does not add up |
| an option that no chosen method reads | it would do nothing |
| `overlong_buffer`, `kl_in = reward` with `bnpo`, `rank_grpo`, `given_baseline` | they take the grader's reward |
| `collection.method` that gives baselines, with an estimator that ignores them | they would do nothing |

Groups without a signal, of a single rollout, without any graded rollout, and missing rewards: tables in the docstrings
of `salt_jax.objective.group_advantages` and of each estimator; `tests/objective/test_stages.py` holds them to it."""


def main(_: list[str]) -> None:
    """Prints or writes the page."""
    if WRITE.value is None:
        print(page(), end="")
    else:
        Path(expanded(WRITE.value)).write_text(page())


if __name__ == "__main__":
    app.run(main)
