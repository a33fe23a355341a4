"""What a configuration may combine: every refusal is one line that says why."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from salt_jax.objective import (
    AGGREGATIONS,
    ESTIMATORS,
    FILTERS,
    SURROGATES,
    ObjectiveConfig,
    SurrogateOptions,
)
from salt_jax.objective.advantages import AdvantageOptions
from salt_jax.objective.composition import ALWAYS, SURROGATE_FIELDS, UNDER, readers
from salt_jax.objective.token_choices import CHOSEN

DEFAULTS = {field.name: field.default for field in dataclasses.fields(ObjectiveConfig)}
# a value other than the default, within the allowed ones, for every option of a method
OTHERS = {
    "gtpo_penalize_degenerate": False, "darling_form": "add", "darling_lambda_reward": 2.0,
    "darling_lambda_diversity": 2.0, "darling_partition_correct": True,
    "ddof": 0, "eps": 1e-4, "clip_low": 0.1, "clip_high": 0.3, "singleton": "reward", "gamma": 0.9,
    "whiten_variance": "biased", "gtpo_gamma": 0.2, "gtpo_threshold": 1.0,
    "opmd_baseline": "log_mean_exp", "tau": 0.5, "asymre_shift": -0.2, "darling_floor": 0.1, "darling_add_bias": True,
    "copg_beta": 0.1, "rank_reward": "dcg", "rank_gamma": 3.0, "pods_keep": 2, "d3s_rollouts_first": 2,
    "d3s_rollouts_last": 3, "d3s_batch": 0.5, "gtpo_form": "release",
    "gtpo_weight": 3.0, "d3s_tokens_first": 0.5, "d3s_tokens_last": 0.9,
    "dual_clip": 3.0, "rec_mask": "ring", "rec_weight": "importance", "rec_outer_low": 0.7, "rec_outer_high": 3.0,
    "rec_temperature": 2.0, "rec_regularizer": "k2", "rec_coef": 0.2, "clip_cov_fraction": 0.1, "clip_cov_low": 0.5,
    "clip_cov_high": 6.0, "kl_cov_fraction": 0.1, "kl_cov_coef": 0.5, "macro_length": 3, "lp_reg_form": "paper",
    "lp_reg_fraction": 0.1, "lp_reg_proxy": "fixed", "lp_reg_kappa": 0.1,
    "lp_reg_beta": 0.5, "lp_reg_cap": 5.0, "importance_low": 0.5,
    "importance_high": 3.0, "importance_normalize": True,
}  # fmt: skip


def test_every_field_is_either_always_read_or_has_a_reader():
    read = {field for field, _, _ in readers()}
    assert read | ALWAYS == set(DEFAULTS)
    assert set(OTHERS) == read - ALWAYS
    assert set(SURROGATE_FIELDS) == set(SURROGATES) >= set(CHOSEN)


@pytest.mark.parametrize("field", OTHERS)
def test_an_option_that_nothing_reads_is_refused_and_one_that_something_reads_is_not(field):
    with pytest.raises(ValueError, match=f"^{field} = .* has no effect here; it belongs to ") as error:
        ObjectiveConfig(**{"estimator": "raft", "surrogate": "reinforce", field: OTHERS[field]})  # they read nothing
    assert "\n" not in str(error.value)
    for stage, method in {(stage, method) for name, stage, method in readers() if name == field}:
        settings = {field: OTHERS[field], stage: method}
        if field in UNDER:
            parent, values = UNDER[field]
            with pytest.raises(ValueError, match=f"^{field} = .* has no effect here; it belongs to {parent} = "):
                ObjectiveConfig(**settings)
            settings |= {parent: values[0]}
        if field == "tau" and stage == "estimator":
            with pytest.raises(ValueError, match=r"^tau = 0.5 has no effect here"):
                ObjectiveConfig(**settings)
            settings |= {"opmd_baseline": "log_mean_exp"}
        kept = ObjectiveConfig(**settings)
        assert getattr(kept, field) == OTHERS[field]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "ppo"}, "estimator = 'ppo' is unknown; allowed: grpo, dr_grpo, rloo, "),
        ({"surrogate": "ppo"}, "surrogate = 'ppo' is unknown; allowed: ppo_clip, "),
        ({"filters": "pods,pods"}, "filters = 'pods,pods': 'pods' is there twice"),
        ({"filters": "dapo"}, "filters = 'dapo': 'dapo' is unknown; allowed: pods, "),
        ({"tokens": "some"}, "tokens = 'some' is unknown; allowed: all, conflict, d3s"),
        ({"importance": "tis"}, "importance = 'tis' is unknown; allowed: none, token, sequence, "),
        ({"estimator": "reinforce_pp", "surrogate": "gspo"}, "surrogate = 'gspo' has one ratio a rollout, and "),
        ({"estimator": "reinforce_pp", "filters": "d3s"}, "filters = 'd3s': 'd3s' needs one advantage a rollout"),
        ({"estimator": "rank_grpo", "filters": "positive_only"}, "filters = 'positive_only': "),
        ({"estimator": "rank_grpo", "tokens": "conflict"}, "tokens = 'conflict' needs one advantage a rollout"),
        ({"kl_estimator": "k1"}, "kl_estimator = 'k1' has zero expected gradient in a loss"),
        ({"kl_in": "reward"}, "kl_estimator = 'k3' is not allowed with kl_in = 'reward'; allowed: k1"),
        ({"kl_in": "both"}, "kl_in = 'both' is unknown; allowed: loss, reward"),
        ({"estimator": "copg", "kl_coef": 0.1}, "kl_coef = 0.1 with estimator = 'copg' would count KL twice"),
        ({"aggregation": "dr_grpo"}, "aggregation = 'dr_grpo' needs max_length"),
        ({"aggregation": "token_sum_norm"}, "aggregation = 'token_sum_norm' needs max_length"),
        ({"overlong_buffer": 4}, "overlong_buffer = 4 needs max_length"),
        ({"overlong_buffer": 4, "max_length": 3}, "overlong_buffer = 4 needs max_length"),
        ({"gtpo_threshold": 0.0}, "gtpo_threshold = 0.0 is not allowed; allowed: numbers > 0"),
        ({"gamma": float("nan")}, "gamma = nan is not allowed"),
        ({"importance": "token", "importance_low": 3.0}, "importance_low = 3.0 is not allowed"),
        ({"surrogate": "clip_cov", "clip_cov_low": 9.0}, "clip_cov_high = 5.0 is not allowed"),
        ({"estimator": "bnpo", "overlong_buffer": 1, "max_length": 4}, "overlong_buffer = 1 changes the reward, "),
        ({"estimator": "given_baseline", "kl_in": "reward", "kl_estimator": "k1", "kl_coef": 0.1}, "kl_in = 'reward' "),
        ({"dual_clip": 1.0}, "dual_clip = 1.0 is not allowed"),
        ({"surrogate": "macro_sum", "macro_length": 0}, "macro_length = 0 is not allowed"),
    ],
)  # fmt: skip
def test_refusals(options, message):
    with pytest.raises(ValueError) as error:
        ObjectiveConfig(**options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_rest_is_allowed():
    for estimator, surrogate, aggregation in itertools.product(ESTIMATORS, SURROGATES, AGGREGATIONS):
        if not (ESTIMATORS[estimator].per_token and surrogate == "gspo"):
            config = ObjectiveConfig(
                estimator=estimator, surrogate=surrogate, aggregation=aggregation, max_length=4
            )
            assert hash(config) == hash(dataclasses.replace(config))


def test_defaults_agree_with_those_of_the_functions_that_read_them():
    for options in (SurrogateOptions, AdvantageOptions):
        for field in dataclasses.fields(options):
            if field.name != "macro_length":  # a configuration has one; the function may be given segments instead
                assert DEFAULTS[field.name] == field.default, field.name


def test_needs_are_those_of_all_choices():
    config = ObjectiveConfig(
        estimator="gtpo", filters="red_drop", surrogate="lp_reg", importance="token", kl_in="reward",
        kl_estimator="k1", kl_coef=0.1,
    )  # fmt: skip
    assert config.needs == {"entropy", "key", "log_probs", "log_proxy", "ref_log_probs"}
    assert config.needs_reference
    assert not ObjectiveConfig().needs_reference
    assert not ObjectiveConfig().needs
    assert set(FILTERS) >= {"pods", "d3s"}
