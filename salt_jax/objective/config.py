"""One configuration of the objective: which estimator, filters, token choices, surrogate, aggregation and KL."""

from __future__ import annotations

import dataclasses
from typing import Any

from salt_jax.objective.composition import check, needs
from salt_jax.objective.surrogates import SurrogateOptions
from salt_jax.objective.token_choices import CHOSEN


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Everything that defines the objective; hashable, so it may be a static argument of jit.

    An option that the chosen methods do not read must keep its default: a setting without effect is refused.

    Attributes:
      estimator: key of ``estimators.ESTIMATORS``.
      ddof: 1 for the sample std, 0 for the population std ('grpo' only).
      eps: added to the std, in units of reward ('grpo' only).
      singleton: advantage of a group with one graded rollout: 'zero', or 'reward' as the releases have it (estimators
        of groups).
      gamma: discount of a token's return, per token ('reinforce_pp' and its baseline form).
      whiten_variance: 'unbiased' or 'biased' variance over the tokens of the batch (the same two).
      gtpo_gamma: reward per nat of mean entropy that 'gtpo' takes off.
      gtpo_threshold: nats of mean entropy above which 'gtpo' drops a rollout; inf drops none.
      gtpo_penalize_degenerate: whether the entropy is also taken off in a group without signal.
      opmd_baseline: 'mean', or 'log_mean_exp' at temperature tau ('opmd').
      tau: temperature in units of reward; estimator 'opmd' (its baseline), surrogate 'opmd' (its scale).
      asymre_shift: added to the mean as a baseline, in units of reward; < 0 raises every advantage ('asymre').
      darling_floor: least diversity a rollout is multiplied with ('darling'); the release has 0.1.
      darling_form: 'multiply' the reward with the diversity, or 'add' them ('darling').
      darling_lambda_reward: weight of the reward where they are added.
      darling_lambda_diversity: weight of the diversity there, in units of reward.
      darling_add_bias: take the group's least reward off first, so that none is negative ('darling').
      darling_partition_correct: diversity among the rollouts that succeeded only ('darling').
      copg_beta: weight of the log-ratio to the reference, reward per nat ('copg').
      rank_reward: 'exp_inf', 'dcg' or 'exp_gamma' ('rank_grpo').
      rank_gamma: base of the discount over ranks ('rank_grpo' with 'exp_gamma').
      overlong_buffer: tokens before the limit in which a penalty grows from 0 to −1 reward; 0: none (DAPO).
      filters: comma-separated keys of ``row_filters.FILTERS``, in their order.
      pods_keep: rollouts a group keeps ('pods').
      d3s_rollouts_first: rollouts a group keeps at the start of the run ('d3s').
      d3s_rollouts_last: the same at its end.
      d3s_batch: share of those that the batch keeps ('d3s').
      tokens: 'all'; 'conflict' weighs tokens as GTPO does; 'd3s' keeps those of large |A|·H.
      gtpo_form: 'paper', or 'release': a row's weights divided by its number of conflicts, and rows of a group summed
        where the aggregation takes their mean ('conflict').
      gtpo_weight: what a conflict token of a positive rollout is multiplied with ('conflict').
      d3s_tokens_first: share of the tokens kept at the start of the run (tokens 'd3s').
      d3s_tokens_last: the same at its end.
      surrogate: key of ``surrogates.SURROGATES``.
      clip_low: lower clip of the ratio, below 1.
      clip_high: upper clip of the ratio, above 1.
      dual_clip: bound > 1 of the ratio where A < 0 ('ppo_clip'); None: none.
      rec_mask: 'none', 'one_side', 'two_side', 'ring', 'gspo_one_side' ('rec').
      rec_weight: 'none', 'importance', 'gspo_importance', 'advantage' ('rec').
      rec_outer_low: outer lower clip of the ring ('rec').
      rec_outer_high: outer upper clip of the ring ('rec').
      rec_temperature: of the weight exp(A / temperature) ('rec').
      rec_regularizer: 'none', 'k2', 'forward_kl' ('rec').
      rec_coef: its weight ('rec').
      clip_cov_fraction: share of the tokens whose gradient is dropped ('clip_cov').
      clip_cov_low: least covariance of a token that may be dropped ('clip_cov').
      clip_cov_high: greatest ('clip_cov').
      kl_cov_fraction: share of the tokens that carry a KL term ('kl_cov').
      kl_cov_coef: its weight, per nat ('kl_cov').
      macro_length: tokens of a macro-action where the rollouts bring no segments ('macro_sum', 'macro_mean').
      lp_reg_form: 'release' or 'paper' ('lp_reg').
      lp_reg_fraction: share of the tokens that may be regularised, the least likely ones ('lp_reg').
      lp_reg_proxy: 'min_p' keeps tokens from a share of the largest probability on, 'fixed' from a probability on
        ('lp_reg').
      lp_reg_kappa: that share or probability ('lp_reg').
      lp_reg_beta: weight of the KL to the proxy ('lp_reg').
      lp_reg_cap: upper bound of the ratio ('lp_reg').
      importance: correction of the sampler's log-probs: 'none', 'token', 'sequence', 'token_mask', 'sequence_mask'.
      importance_low: lower bound of its ratio.
      importance_high: upper bound of its ratio.
      importance_normalize: scale the weights of a minibatch to mean 1.
      demonstration_coef: weight of the loss of demonstrations, where there are any (HPT).
      aggregation: key of ``aggregation.AGGREGATIONS``.
      max_length: completion limit in tokens; needed by aggregations 'dr_grpo', 'token_sum_norm', by overlong_buffer.
      kl_in: 'loss', or 'reward' (k1, taken off the reward).
      kl_estimator: 'k2', 'k3', 'k3_plus' in the loss; 'k1' in the reward.
      kl_coef: weight of KL to the reference, per nat.
      entropy_coef: weight of the entropy bonus, per nat.

    Raises:
      ValueError: one line, naming the field and its allowed values, or why two choices do not go together.

    Example:
      >>> ObjectiveConfig(clip_high=0.28).aggregation
      'token_mean'
      >>> ObjectiveConfig(aggregation="mean")
      Traceback (most recent call last):
      ValueError: aggregation = 'mean' is unknown; allowed: token_mean, seq_mean_token_mean, ...
      >>> ObjectiveConfig(estimator="rloo", copg_beta=0.1)
      Traceback (most recent call last):
      ValueError: copg_beta = 0.1 has no effect here; it belongs to estimator = 'copg'
    """

    estimator: str = "grpo"
    ddof: int = 1
    eps: float = 1e-6
    singleton: str = "zero"
    gamma: float = 1.0
    whiten_variance: str = "unbiased"
    gtpo_gamma: float = 0.1
    gtpo_threshold: float = 0.6931471805599453  # ln 2
    gtpo_penalize_degenerate: bool = True
    opmd_baseline: str = "mean"
    tau: float = 1.0
    asymre_shift: float = -0.1
    darling_floor: float = 0.0
    darling_form: str = "multiply"
    darling_lambda_reward: float = 1.0
    darling_lambda_diversity: float = 1.0
    darling_add_bias: bool = False
    darling_partition_correct: bool = False
    copg_beta: float = 0.06
    rank_reward: str = "exp_inf"
    rank_gamma: float = 2.0
    overlong_buffer: int = 0
    filters: str = ""
    pods_keep: int = 4
    d3s_rollouts_first: int = 4
    d3s_rollouts_last: int = 8
    d3s_batch: float = 1.0
    tokens: str = "all"
    gtpo_form: str = "paper"
    gtpo_weight: float = 2.0
    d3s_tokens_first: float = 0.2
    d3s_tokens_last: float = 1.0
    surrogate: str = "ppo_clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    rec_mask: str = "none"
    rec_weight: str = "none"
    rec_outer_low: float = 0.6
    rec_outer_high: float = 2.0
    rec_temperature: float = 1.0
    rec_regularizer: str = "none"
    rec_coef: float = 0.1
    clip_cov_fraction: float = 2e-4
    clip_cov_low: float = 1.0
    clip_cov_high: float = 5.0
    kl_cov_fraction: float = 2e-4
    kl_cov_coef: float = 1.0
    macro_length: int = 5
    lp_reg_form: str = "release"
    lp_reg_fraction: float = 0.01
    lp_reg_proxy: str = "min_p"
    lp_reg_kappa: float = 0.02
    lp_reg_beta: float = 1.0
    lp_reg_cap: float = 10.0
    importance: str = "none"
    importance_low: float = 0.0
    importance_high: float = 2.0
    importance_normalize: bool = False
    demonstration_coef: float = 1.0
    aggregation: str = "token_mean"
    max_length: int | None = None
    kl_in: str = "loss"
    kl_estimator: str = "k3"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check(self.values(), {field.name: field.default for field in dataclasses.fields(self)})

    def values(self) -> dict[str, Any]:
        """Field → value."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def picked(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The named fields, as keywords.

        Example:
          >>> ObjectiveConfig().picked(("ddof",))
          {'ddof': 1}
        """
        return {name: getattr(self, name) for name in names}

    @property
    def needs(self) -> frozenset[str]:
        """Names of the optional ``Signals`` that the chosen methods read.

        Example:
          >>> sorted(ObjectiveConfig(estimator="copg").needs)
          ['log_probs', 'ref_log_probs']
        """
        return needs(self.values())

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs of the reference policy are needed."""
        return bool(self.kl_coef) or "ref_log_probs" in self.needs

    @property
    def chooses_tokens(self) -> bool:
        """Whether ``choose_tokens`` has anything to decide.

        Example:
          >>> ObjectiveConfig().chooses_tokens, ObjectiveConfig(importance="token").chooses_tokens
          (False, True)
        """
        return self.tokens != "all" or self.surrogate in CHOSEN or self.importance != "none"

    @property
    def surrogate_options(self) -> SurrogateOptions:
        """What the surrogate reads."""
        return SurrogateOptions(**self.picked(tuple(field.name for field in dataclasses.fields(SurrogateOptions))))
