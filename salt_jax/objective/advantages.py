"""Group-relative advantages: a rollout is compared with the other rollouts of its own prompt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from salt_jax.objective.beta_normalization import bnpo_advantages
from salt_jax.objective.shaping import CLUSTER_FORMS, cluster_rewards

Array = jax.Array

SINGLETONS = ("zero", "reward")
OPMD_BASELINES = ("mean", "log_mean_exp")


@dataclasses.dataclass(frozen=True)
class AdvantageOptions:
    """Numbers and names that estimators read, each a keyword of ``group_advantages``; hashable.

    Attributes:
      ddof: 1 divides the variance by n − 1, 0 by n. Read by ``grpo``.
      eps: added to the standard deviation, in units of reward. Read by ``grpo``.
      singleton: advantage of a group with one rewarded entry: 'zero', or 'reward', where its mean counts as 0 and
        its std as 1, as in the releases: r/(1 + eps) for ``grpo`` (verl), r for ``dr_grpo`` and ``rloo`` (verl),
        ``opmd`` and ``asymre`` (Trinity-RFT), the weight at p = 0 times r for ``bnpo``.
      opmd_baseline: 'mean', or 'log_mean_exp' for tau·log mean exp(r/tau). Read by ``opmd``.
      tau: temperature of that baseline, in units of reward. Read by ``opmd``.
      asymre_shift: added to the mean to make the baseline, in units of reward. Read by ``asymre``.
      darling_floor: least diversity, in [0, 1]; 0.1 in the released code. Read by ``darling``, as all that follow.
      darling_form: 'multiply' for r·Div, 'add' for lambda_reward·r + lambda_diversity·Div.
      darling_lambda_reward: weight of r in the form 'add'.
      darling_lambda_diversity: weight of Div in the form 'add', in units of reward.
      darling_add_bias: subtracts the least reward of the group first, so that no reward is negative.

    Raises:
      ValueError: one line, naming the option and its allowed values.

    Example:
      >>> AdvantageOptions(opmd_baseline="median")
      Traceback (most recent call last):
      ValueError: opmd_baseline = 'median' is unknown; allowed: mean, log_mean_exp
    """

    ddof: int = 1
    eps: float = 1e-6
    singleton: str = "zero"
    opmd_baseline: str = "mean"
    tau: float = 1.0
    asymre_shift: float = -0.1
    darling_floor: float = 0.0
    darling_form: str = "multiply"
    darling_lambda_reward: float = 1.0
    darling_lambda_diversity: float = 1.0
    darling_add_bias: bool = False

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise ValueError(
                f"ddof = {self.ddof!r} is not allowed; allowed: 0 (population std), 1 (sample std)"
            )
        for name, allowed in (
            ("singleton", SINGLETONS),
            ("opmd_baseline", OPMD_BASELINES),
            ("darling_form", CLUSTER_FORMS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = {getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps = {self.eps!r} is not allowed; allowed: finite numbers >= 0")
        if not 0 <= self.tau < math.inf or (self.tau == 0 and self.opmd_baseline == "log_mean_exp"):
            raise ValueError(
                f"tau = {self.tau!r} is not allowed; allowed: finite numbers > 0, and 0 with opmd_baseline = 'mean'"
            )
        if not 0 <= self.darling_floor <= 1:
            raise ValueError(
                f"darling_floor = {self.darling_floor!r} is not allowed; allowed: numbers from 0 to 1"
            )
        for name in ("asymre_shift", "darling_lambda_reward", "darling_lambda_diversity"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)!r} is not allowed; allowed: finite numbers")
        if not isinstance(self.darling_add_bias, bool):
            raise ValueError(f"darling_add_bias = {self.darling_add_bias!r} is not allowed; allowed: True, False")


class Groups(NamedTuple):
    """What an estimator is given: B groups of G rollouts.

    Attributes:
      rewards: (B, G), 0 where missing.
      rewarded: (B, G) bool.
      num: (B, 1), rewarded entries of each group, n.
      deviation: (B, G), rewards minus the group's mean, 0 where missing.
      extra: the arrays given by name, each (B, G), 0 where the reward is missing.
    """

    rewards: Array
    rewarded: Array
    num: Array
    deviation: Array
    extra: dict[str, Array]


def _grpo(groups: Groups, options: AdvantageOptions) -> Array:
    """(r − mean) / (std + eps), DeepSeekMath (arXiv 2402.03300) eq. 3 with the std of verl and TRL."""
    squares_Bx1 = jnp.sum(groups.deviation**2, axis=1, keepdims=True)
    variance_Bx1 = squares_Bx1 / jnp.maximum(groups.num - options.ddof, 1)
    scale_Bx1 = jnp.where(groups.num == 1, 1, jnp.sqrt(variance_Bx1)) + options.eps
    # eps = 0 in a degenerate group would be 0/0; the result is overwritten by 0, but jax_debug_nans sees it.
    return groups.deviation / jnp.where(scale_Bx1 > 0, scale_Bx1, 1)


def _dr_grpo(groups: Groups, options: AdvantageOptions) -> Array:
    """r − mean, "Understanding R1-Zero-like training" (arXiv 2503.20783)."""
    return groups.deviation


def _rloo(groups: Groups, options: AdvantageOptions) -> Array:
    """r_i − mean of the others = n/(n−1)·(r_i − mean), arXiv 2402.14740."""
    return groups.deviation * groups.num / jnp.maximum(groups.num - 1, 1)


def _bnpo(groups: Groups, options: AdvantageOptions) -> Array:
    """Deviations over a Beta density of the pass rate (arXiv 2506.02864)."""
    return bnpo_advantages(groups.rewards, groups.rewarded, singleton=options.singleton)


def _opmd(groups: Groups, options: AdvantageOptions) -> Array:
    """r − mean, or r − tau·log mean exp(r/tau), the baselines of Trinity-RFT's OPMD."""
    if options.opmd_baseline == "mean":
        return groups.deviation
    # In deviations: the mean, and with it the singletons' convention, has been taken out already.
    highest_Bx1 = jnp.max(groups.deviation, axis=1, keepdims=True, initial=-jnp.inf, where=groups.rewarded)
    highest_Bx1 = jnp.where(groups.num > 1, highest_Bx1, 0)
    powers = jnp.exp(jnp.where(groups.rewarded, groups.deviation - highest_Bx1, -jnp.inf) / options.tau)
    mean_Bx1 = jnp.sum(powers, axis=1, keepdims=True) / jnp.maximum(groups.num, 1)
    above_Bx1 = highest_Bx1 + options.tau * jnp.log(jnp.where(groups.num > 1, mean_Bx1, 1))
    return groups.deviation - above_Bx1


def _asymre(groups: Groups, options: AdvantageOptions) -> Array:
    """r − (mean + shift), the baseline of Trinity-RFT's AsymRE."""
    shift = jnp.asarray(options.asymre_shift, groups.rewards.dtype)
    released = (groups.num == 1) & (options.singleton == "reward")
    # Where all are equal the mean's rounding would show beside the shift: there the deviation is 0.
    return jnp.where(_degenerate(groups), 0, groups.deviation) - jnp.where(released, 0, shift)


def _raft(groups: Groups, options: AdvantageOptions) -> Array:
    """max(r, 0), without a baseline (the release of GVM-RAFT, arXiv 2505.02391)."""
    return jnp.maximum(groups.rewards, 0)


def _given_baseline(groups: Groups, options: AdvantageOptions) -> Array:
    """(r − baseline)·weight with both from outside (Reinforce-Ada, arXiv 2510.04996; GVM)."""
    advantages = groups.rewards - groups.extra["baseline"]
    return advantages * groups.extra["weight"] if "weight" in groups.extra else advantages


def _darling(groups: Groups, options: AdvantageOptions) -> Array:
    """r̃ − mean r̃ with r̃ the reward times its diversity (DARLING, arXiv 2509.02534 eq. 4–6)."""
    shaped = cluster_rewards(
        groups.rewards,
        groups.extra["clusters"],
        groups.rewarded,
        floor=options.darling_floor,
        form=options.darling_form,
        lambda_reward=options.darling_lambda_reward,
        lambda_diversity=options.darling_lambda_diversity,
        add_bias=options.darling_add_bias,
        correct=groups.extra.get("correct"),
    )
    groups = _groups(shaped, groups.rewarded, {}, "zero")
    # What counts as equal here is r̃: equal rewards of unlike rollouts are a signal.
    return jnp.where(_degenerate(groups), 0, groups.deviation)


ESTIMATORS: dict[str, Callable[[Groups, AdvantageOptions], Array]] = {
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
    "rloo": _rloo,
    "bnpo": _bnpo,
    "opmd": _opmd,
    "asymre": _asymre,
    "raft": _raft,
    "given_baseline": _given_baseline,
    "darling": _darling,
}
# Those that say themselves what a group of equal rewards, or of one, gets; the others give it exactly 0.
OWN_DEGENERATE = frozenset({"asymre", "raft", "given_baseline", "darling"})
NEEDS = {"given_baseline": ("baseline",), "darling": ("clusters",)}  # arrays it cannot do without
ACCEPTS = {"given_baseline": ("weight",), "darling": ("correct",)}  # arrays it also reads
WITH_SINGLETON = ("grpo", "dr_grpo", "rloo", "bnpo", "opmd", "asymre")  # those that read the option singleton


# Estimators of salt_jax.objective.ESTIMATORS that are not functions of (B, G) rewards.
MORE_THAN_REWARDS = ("reinforce_pp", "reinforce_pp_baseline", "gtpo", "copg", "rank_grpo")


def check_advantage_options(estimator: str, ddof: int = 1, eps: float = 1e-6, **options: Any) -> None:
    """Raises a one-line ValueError that names the option and what it allows.

    Args:
      estimator: key of ``ESTIMATORS``.
      ddof: as in ``AdvantageOptions``.
      eps: as in ``AdvantageOptions``.
      **options: further fields of ``AdvantageOptions``.

    Raises:
      ValueError: a value that is not allowed.

    Example:
      >>> check_advantage_options("grpo", ddof=1, eps=1e-6)
      >>> check_advantage_options("ppo", ddof=1, eps=1e-6)
      Traceback (most recent call last):
      ValueError: estimator = 'ppo' is unknown; allowed: grpo, dr_grpo, rloo, bnpo, opmd, asymre, raft, ...
    """
    if estimator in MORE_THAN_REWARDS:
        raise ValueError(
            f"estimator = {estimator!r} looks at more than the rewards of a group: call salt_jax.objective.estimate"
        )
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator = {estimator!r} is unknown; allowed: {', '.join(ESTIMATORS)}")
    checked = AdvantageOptions(ddof=ddof, eps=eps, **options)
    if checked.singleton != "zero" and estimator not in WITH_SINGLETON:
        raise ValueError(
            f"singleton = {checked.singleton!r} means nothing to estimator = {estimator!r}; "
            f"allowed with: {', '.join(WITH_SINGLETON)}"
        )


def _groups(rewards: Array, rewarded: Array, extra: dict[str, Array], singleton: str) -> Groups:
    """Statistics of (B, G) rewards; garbage at missing places is replaced before any arithmetic."""
    rewards = jnp.where(rewarded, rewards, 0)
    count_Bx1 = jnp.sum(rewarded, axis=1, keepdims=True, dtype=rewards.dtype)
    mean_Bx1 = jnp.sum(rewards, axis=1, keepdims=True) / jnp.maximum(count_Bx1, 1)
    if singleton == "reward":
        mean_Bx1 = jnp.where(count_Bx1 == 1, 0, mean_Bx1)
    deviation = jnp.where(rewarded, rewards - mean_Bx1, 0)
    return Groups(rewards, rewarded, count_Bx1, deviation, extra)


def _degenerate(groups: Groups) -> Array:
    """(B, 1): two or more rewarded entries, all equal. Not a test of the std, which float32 rarely makes 0."""
    highest_Bx1 = jnp.max(groups.rewards, axis=1, keepdims=True, initial=-jnp.inf, where=groups.rewarded)
    lowest_Bx1 = jnp.min(groups.rewards, axis=1, keepdims=True, initial=jnp.inf, where=groups.rewarded)
    return (groups.num != 1) & ((groups.num == 0) | (highest_Bx1 == lowest_Bx1))


def group_advantages(
    rewards: ArrayLike,
    *,
    estimator: str = "grpo",
    ddof: int = 1,
    eps: float = 1e-6,
    rewarded: ArrayLike | None = None,
    baseline: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    correct: ArrayLike | None = None,
    **options: Any,
) -> Array:
    """Advantages of B groups of G rollouts.

    With n, mean and std over the rewarded entries of a group::

        grpo             (r − mean) / (std_ddof + eps)      arXiv 2402.03300, eq. 3; sample std as in verl and TRL;
                                                            ddof = 0 is the std form of REC (arXiv 2509.24203)
        dr_grpo           r − mean                          arXiv 2503.20783
        rloo              r − mean of the other rewards     arXiv 2402.14740
        bnpo             (r − mean) / Beta density of mean  arXiv 2506.02864, see ``bnpo_advantages``
        opmd              r − mean, or r − tau·log mean exp(r/tau); the loss is scaled by 1/(1 + tau) elsewhere
        asymre            r − (mean + asymre_shift)         these two as in Trinity-RFT
        raft              max(r, 0)                         release of GVM-RAFT, arXiv 2505.02391
        given_baseline   (r − baseline)·weight              Reinforce-Ada, arXiv 2510.04996
        darling           r̃ − mean r̃, r̃ = r·diversity        arXiv 2509.02534, see ``cluster_rewards``

    ==========================================  ==========================================================
    a group whose rewarded entries are equal    exactly 0 (max == min, not std == 0: in float32 ten rewards
                                                of 0.1 have a std of 1e-8, which over eps becomes an
                                                advantage of −0.007); but −asymre_shift for ``asymre``, and
                                                ``raft`` and ``given_baseline`` look at no other rollout;
                                                for ``darling`` it is the r̃ that have to be equal
    one rewarded entry                          the same; r, or r/(1 + eps), with singleton = 'reward'
    a missing reward (``rewarded`` false)       exactly 0; outside mean, std and n; may be NaN, and so may
                                                baseline and weight there
    none rewarded                               exactly 0
    a NaN among the rewarded entries            NaN for its group, and for ``bnpo`` for all: not hidden
    ==========================================  ==========================================================

    Args:
      rewards: (B, G), any real dtype; computed in float32 or wider.
      estimator: key of ``ESTIMATORS``.
      ddof: 1 divides the variance by n − 1, 0 by n. Used by ``grpo`` only.
      eps: added to the standard deviation, in units of reward. Used by ``grpo`` only.
      rewarded: (B, G) bool, false where the grader failed; None means all true.
      baseline: (B, G), in units of reward; needed by ``given_baseline``.
      weight: (B, G) or None for 1; ``given_baseline`` only.
      clusters: (B, G) integers, equal where two rollouts of a group mean the same; needed by ``darling``.
      correct: (B, G) bool or None, rollouts that ``darling`` alone compares with each other; None means all.
      **options: further fields of ``AdvantageOptions``.

    Returns:
      (B, G) advantages, dimensionless for ``grpo``, in units of reward otherwise.

    Raises:
      ValueError: unknown estimator, rank other than 2, shapes that differ, an option that is not allowed, an array
        that is missing or that the estimator does not read.

    Example:
      >>> import jax.numpy as jnp
      >>> group_advantages(jnp.array([[1., 0., 0., 1.], [1., 1., 1., 1.]]), estimator="dr_grpo").tolist()
      [[0.5, -0.5, -0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]
    """
    check_advantage_options(estimator, ddof, eps, **options)
    rewards = jnp.asarray(rewards)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have shape (B, G), got {rewards.shape}")
    rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
    rewarded = jnp.ones(rewards.shape, bool) if rewarded is None else jnp.asarray(rewarded).astype(bool)
    given: dict[str, Array] = {}
    arrays = (("baseline", baseline), ("weight", weight), ("clusters", clusters), ("correct", correct))
    for name, value in arrays:
        if value is not None:
            given[name] = jnp.asarray(value)
        if value is None and name in NEEDS.get(estimator, ()):
            raise ValueError(f"estimator = {estimator!r} needs {name}, got None")
        if value is not None and name not in NEEDS.get(estimator, ()) + ACCEPTS.get(estimator, ()):
            raise ValueError(f"{name} means nothing to estimator = {estimator!r}; allowed: None")
    for name, array in (("rewarded", rewarded), *given.items()):
        if array.shape != rewards.shape:
            raise ValueError(f"{name} must have the shape of rewards {rewards.shape}, got {array.shape}")
    if "clusters" in given and not jnp.issubdtype(given["clusters"].dtype, jnp.integer):
        raise ValueError(f"clusters must be integers, got {given['clusters'].dtype}")
    extra = {name: jnp.where(rewarded, x, 0) for name, x in given.items()}

    all_options = AdvantageOptions(ddof=ddof, eps=eps, **options)
    groups = _groups(rewards, rewarded, extra, all_options.singleton)
    advantages = ESTIMATORS[estimator](groups, all_options)
    known = rewarded
    if estimator not in OWN_DEGENERATE:
        lonely_Bx1 = (groups.num == 1) & (all_options.singleton == "zero")
        known = rewarded & ~(_degenerate(groups) | lonely_Bx1)
    return jnp.where(known, advantages, 0)
