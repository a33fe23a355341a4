"""What goes together: every combination is either allowed, with a defined meaning, or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from salt_jax.objective.advantages import AdvantageOptions
from salt_jax.objective.aggregation import AGGREGATIONS, NEED_MAX_LENGTH
from salt_jax.objective.estimators import ESTIMATORS
from salt_jax.objective.importance import MODES
from salt_jax.objective.kl import check_loss_kl_estimator
from salt_jax.objective.row_filters import FILTERS, names_of
from salt_jax.objective.surrogates import ONE_RATIO, SURROGATES, SurrogateOptions
from salt_jax.objective.token_choices import CHOSEN, TOKEN_FILTERS, TOKEN_WEIGHTS, TOKENS

# Fields of the configuration that a surrogate reads, besides those of the tokens it chooses (``CHOSEN``).
CLIPS = ("clip_low", "clip_high")
SURROGATE_FIELDS: dict[str, tuple[str, ...]] = {
    "ppo_clip": (*CLIPS, "dual_clip"),
    "gspo": CLIPS,
    "gspo_token": CLIPS,
    "cispo": CLIPS,
    "reinforce": (),
    "on_policy": (),
    "opmd": ("tau",),
    "rec": (
        *CLIPS, "rec_mask", "rec_weight", "rec_outer_low", "rec_outer_high", "rec_temperature", "rec_regularizer",
        "rec_coef",
    ),
    "clip_cov": CLIPS,
    "kl_cov": ("kl_cov_coef",),
    "macro_sum": (*CLIPS, "macro_length"),
    "macro_mean": (*CLIPS, "macro_length"),
    "lp_reg": ("lp_reg_form", "lp_reg_proxy", "lp_reg_kappa", "lp_reg_beta", "lp_reg_cap"),
}  # fmt: skip
# Options that a method reads under another of its options alone: field -> (that one, its values).
UNDER: dict[str, tuple[str, tuple[str, ...]]] = {
    "rec_temperature": ("rec_weight", ("advantage",)),
    "rec_coef": ("rec_regularizer", ("k2", "forward_kl")),
    "rec_outer_low": ("rec_mask", ("ring",)),
    "rec_outer_high": ("rec_mask", ("ring",)),
    "darling_lambda_reward": ("darling_form", ("add",)),
    "darling_lambda_diversity": ("darling_form", ("add",)),
    "rank_gamma": ("rank_reward", ("exp_gamma",)),
}
# Read whatever is chosen.
ALWAYS = {
    "aggregation", "max_length", "kl_in", "kl_estimator", "kl_coef", "entropy_coef", "filters",
    "tokens", "surrogate", "estimator", "overlong_buffer", "importance", "demonstration_coef",
}  # fmt: skip
IMPORTANCE_FIELDS = ("importance_low", "importance_high", "importance_normalize")


def readers() -> Iterator[tuple[str, str, str]]:
    """(field, stage, method): every option of a method, and the choice that makes it count.

    Example:
      >>> ("copg_beta", "estimator", "copg") in list(readers())
      True
    """
    for name, estimator in ESTIMATORS.items():
        yield from ((field, "estimator", name) for field in estimator.options)
    for name, row_filter in FILTERS.items():
        yield from ((field, "filters", name) for field in row_filter.options)
    for name, choice in (TOKEN_WEIGHTS | TOKEN_FILTERS).items():
        yield from ((field, "tokens", name) for field in choice.options)
    for name, fields in SURROGATE_FIELDS.items():
        chosen = CHOSEN[name].options if name in CHOSEN else ()
        yield from ((field, "surrogate", name) for field in dict.fromkeys((*fields, *chosen)))
    for name in MODES:
        yield from ((field, "importance", name) for field in IMPORTANCE_FIELDS)


def check(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises a one-line ValueError: an unknown name, an option that nothing reads, two choices that do not fit."""
    _check_names(values)
    _check_ranges(values)
    chosen = {
        "estimator": (values["estimator"],), "surrogate": (values["surrogate"],), "tokens": (values["tokens"],),
        "filters": names_of(values["filters"]), "importance": (values["importance"],),
    }  # fmt: skip
    owners: dict[str, list[tuple[str, str]]] = {}
    for field, stage, method in readers():
        owners.setdefault(field, []).append((stage, method))
    for field, those in owners.items():
        idle = field not in ALWAYS and values[field] != defaults[field]
        if idle and not any(method in chosen[stage] for stage, method in those):
            where = " or ".join(f"{stage} = {method!r}" for stage, method in those)
            raise ValueError(f"{field} = {values[field]!r} has no effect here; it belongs to {where}")
    for field, (parent, allowed) in UNDER.items():
        if values[field] != defaults[field] and values[parent] not in allowed:
            where = " or ".join(f"{parent} = {value!r}" for value in allowed)
            raise ValueError(f"{field} = {values[field]!r} has no effect here; it belongs to {where}")
    if values["tau"] != defaults["tau"] and values["surrogate"] != "opmd" and values["opmd_baseline"] == "mean":
        given = f"tau = {values['tau']!r} has no effect here"
        raise ValueError(f"{given}; it belongs to opmd_baseline = 'log_mean_exp' or surrogate = 'opmd'")
    _check_levels(values, chosen["filters"])
    _check_shaping(values)
    _check_kl(values)
    for options in (SurrogateOptions, AdvantageOptions):  # they check their own
        options(**{field: values[field] for field in options.__dataclass_fields__})


def _check_names(values: Mapping[str, Any]) -> None:
    tables: dict[str, Any] = {
        "estimator": ESTIMATORS, "surrogate": SURROGATES, "aggregation": AGGREGATIONS, "tokens": TOKENS,
        "importance": ("none", *MODES), "kl_in": ("loss", "reward"),
        "gtpo_form": ("paper", "release"), "whiten_variance": ("unbiased", "biased"),
        "lp_reg_proxy": ("min_p", "fixed"), "rank_reward": ("exp_inf", "dcg", "exp_gamma"),
    }  # fmt: skip
    for field, allowed in tables.items():
        if values[field] not in allowed:
            raise ValueError(f"{field} = {values[field]!r} is unknown; allowed: {', '.join(allowed)}")


def _check_ranges(values: Mapping[str, Any]) -> None:
    finite, share = "finite numbers", "numbers in (0, 1]"
    low = values["importance_low"]
    rules = {
        "gamma": (0 < values["gamma"] <= 1, share),
        "gtpo_gamma": (abs(values["gtpo_gamma"]) < float("inf"), finite),
        "gtpo_threshold": (values["gtpo_threshold"] > 0, "numbers > 0; inf drops no rollout"),
        "copg_beta": (0 <= values["copg_beta"] < float("inf"), "finite numbers >= 0"),
        "rank_gamma": (values["rank_gamma"] >= 1, "numbers >= 1"),
        "overlong_buffer": (values["overlong_buffer"] >= 0, "integers >= 0"),
        "pods_keep": (values["pods_keep"] >= 1, "integers >= 1"),
        "d3s_rollouts_first": (values["d3s_rollouts_first"] >= 1, "integers >= 1"),
        "d3s_rollouts_last": (values["d3s_rollouts_last"] >= 1, "integers >= 1"),
        "d3s_batch": (0 < values["d3s_batch"] <= 1, share),
        "d3s_tokens_first": (0 < values["d3s_tokens_first"] <= 1, share),
        "d3s_tokens_last": (0 < values["d3s_tokens_last"] <= 1, share),
        "gtpo_weight": (0 <= values["gtpo_weight"] < float("inf"), "finite numbers >= 0"),
        "clip_cov_fraction": (0 < values["clip_cov_fraction"] <= 1, share),
        "clip_cov_high": (values["clip_cov_high"] >= values["clip_cov_low"], "numbers >= clip_cov_low"),
        "kl_cov_fraction": (0 < values["kl_cov_fraction"] <= 1, share),
        "lp_reg_fraction": (0 < values["lp_reg_fraction"] <= 1, share),
        "lp_reg_kappa": (0 < values["lp_reg_kappa"] < 1, "numbers in (0, 1)"),
        "importance_low": (0 <= low <= values["importance_high"], "numbers from 0 to importance_high"),
        "importance_high": (values["importance_high"] > 0, "numbers > 0"),
        "demonstration_coef": (0 <= values["demonstration_coef"] < float("inf"), "finite numbers >= 0"),
        "kl_coef": (0 <= values["kl_coef"] < float("inf"), "finite numbers >= 0"),
        "entropy_coef": (abs(values["entropy_coef"]) < float("inf"), finite),
    }
    for field, (holds, allowed) in rules.items():
        if not holds:
            raise ValueError(f"{field} = {values[field]!r} is not allowed; allowed: {allowed}")
    limit = values["max_length"]
    if limit is not None and not limit >= 1:
        raise ValueError(f"max_length = {limit!r} is not allowed; allowed: None or an integer >= 1")
    for field in NEED_MAX_LENGTH:
        if values["aggregation"] == field and limit is None:
            raise ValueError(
                f"aggregation = {field!r} needs max_length, the completion limit in tokens (an integer >= 1)"
            )
    if values["overlong_buffer"] and (limit is None or values["overlong_buffer"] > limit):
        given = f"overlong_buffer = {values['overlong_buffer']} needs max_length, the completion limit in tokens"
        raise ValueError(f"{given} (config.sampling.max_new_tokens), of at least as many: it is {limit}")


def _check_levels(values: Mapping[str, Any], filters: tuple[str, ...]) -> None:
    estimator = values["estimator"]
    if not ESTIMATORS[estimator].per_token:
        return
    why = f"estimator = {estimator!r} has one advantage a token"
    if values["surrogate"] in ONE_RATIO:
        raise ValueError(
            f"surrogate = {values['surrogate']!r} has one ratio a rollout, and {why}; use 'gspo_token'"
        )
    for name in filters:
        if not FILTERS[name].any_level:
            raise ValueError(f"filters = {values['filters']!r}: {name!r} needs one advantage a rollout, and {why}")
    if values["tokens"] in TOKEN_WEIGHTS and not TOKEN_WEIGHTS[values["tokens"]].any_level:
        raise ValueError(f"tokens = {values['tokens']!r} needs one advantage a rollout, and {why}")


def _check_shaping(values: Mapping[str, Any]) -> None:
    estimator = values["estimator"]
    penalty, kl = values["overlong_buffer"], values["kl_coef"] and values["kl_in"] == "reward"
    if not ESTIMATORS[estimator].shaped and (penalty or kl):
        what = f"overlong_buffer = {penalty}" if penalty else "kl_in = 'reward'"
        raise ValueError(f"{what} changes the reward, which estimator = {estimator!r} takes as the grader gave it")


def _check_kl(values: Mapping[str, Any]) -> None:
    name, place = values["kl_estimator"], values["kl_in"]
    if place == "loss":
        check_loss_kl_estimator(name)
    elif name != "k1":
        raise ValueError(f"kl_estimator = {name!r} is not allowed with kl_in = 'reward'; allowed: k1")
    if values["kl_coef"] and values["estimator"] == "copg":
        given = f"kl_coef = {values['kl_coef']!r}"
        raise ValueError(f"{given} with estimator = 'copg' would count KL twice; its own weight is copg_beta")


def needs(values: Mapping[str, Any]) -> frozenset[str]:
    """Names of the optional ``Signals`` that the chosen methods read."""
    found: set[str] = set(ESTIMATORS[values["estimator"]].needs)
    for name in names_of(values["filters"]):
        found |= set(FILTERS[name].needs)
    for name in (values["tokens"],):
        if name in TOKEN_WEIGHTS | TOKEN_FILTERS:
            found |= set((TOKEN_WEIGHTS | TOKEN_FILTERS)[name].needs)
    if values["surrogate"] in CHOSEN:
        found |= set(CHOSEN[values["surrogate"]].needs)
    if values["importance"] != "none":
        found.add("log_probs")
    if values["kl_in"] == "reward" and values["kl_coef"]:
        found |= {"log_probs", "ref_log_probs"}
    return frozenset(found)
