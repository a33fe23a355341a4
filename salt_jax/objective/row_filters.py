"""Which rollouts take part: the filters a configuration can name, before and after the advantages.

A filter before the estimator decides whose rewards count; one after it looks at the advantages. Both return (N,)
bool. Dropped rows leave the loss, and SALT does not see them. They leave its denominator too, but for ``red_drop`` and
``winners``, whose releases count their tokens there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from salt_jax.objective import filters
from salt_jax.objective.estimators import Group

Array = jax.Array


class Filter(NamedTuple):
    """One filter.

    Attributes:
      function: (Group, advantages (N,) or None, **options) -> (N,) bool, true where the rollout is kept.
      before: whether it runs before the estimator, without advantages.
      options: fields of ``ObjectiveConfig`` that it reads.
      needs: optional ``Signals`` it reads.
      in_denominator: whether dropped rows still count in the denominator of the loss, with advantage 0.
      any_level: whether it works with one advantage a token.
    """

    function: Callable[..., Array]
    before: bool = False
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    in_denominator: bool = False
    any_level: bool = True


def _pods(group: Group, advantages: None, *, pods_keep: int) -> Array:
    return filters.pods(group.rows(group.rewards), pods_keep, rewarded=group.rows(group.counted)).reshape(-1)


def _red_drop(group: Group, advantages: None) -> Array:
    key = group.signals.known("key", "filter 'red_drop'")
    return filters.red_drop(group.rows(group.rewards), key, rewarded=group.rows(group.counted)).reshape(-1)


def _informative(group: Group, advantages: Array | None) -> Array:
    raw = group.signals.rollouts.rewards  # DAPO looks at correctness: a penalty must not pass for a signal
    kept = filters.informative_groups(group.rows(raw), rewarded=group.rows(group.counted))
    return jnp.repeat(kept, group.size, total_repeat_length=group.rewards.shape[0])


def _not_truncated(group: Group, advantages: Array | None) -> Array:
    return filters.not_truncated(group.signals.rollouts.truncated)


def _positive_only(group: Group, advantages: Array) -> Array:
    return filters.positive_only(advantages)


def _d3s(
    group: Group, advantages: Array, *, d3s_rollouts_first: int, d3s_rollouts_last: int, d3s_batch: float
) -> Array:
    kept = filters.d3s_schedule(group.signals.progress, d3s_rollouts_first, d3s_rollouts_last)
    num_groups = jnp.sum(jnp.any(group.rows(group.counted), axis=1))
    intra = filters.whole_part(jnp.clip(kept, 1, group.size))
    batch = jnp.maximum(filters.whole_part(d3s_batch * intra * num_groups), 1)
    return filters.d3s_rollouts(
        group.rows(advantages), intra, batch, counted=group.rows(group.counted)
    ).reshape(-1)


FILTERS: dict[str, Filter] = {
    "pods": Filter(_pods, before=True, options=("pods_keep",)),
    "red_drop": Filter(_red_drop, before=True, needs=("key",), in_denominator=True),
    "informative": Filter(_informative),
    "not_truncated": Filter(_not_truncated),
    "positive_only": Filter(_positive_only, any_level=False),
    "winners": Filter(_positive_only, in_denominator=True, any_level=False),
    "d3s": Filter(_d3s, options=("d3s_rollouts_first", "d3s_rollouts_last", "d3s_batch"), any_level=False),
}


def names_of(filters: str) -> tuple[str, ...]:
    """The filters of a comma-separated list, in its order.

    Raises:
      ValueError: an unknown or repeated name.

    Example:
      >>> names_of("pods,not_truncated")
      ('pods', 'not_truncated')
      >>> names_of("dapo")
      Traceback (most recent call last):
      ValueError: filters = 'dapo': 'dapo' is unknown; allowed: pods, red_drop, informative, not_truncated, ...
    """
    names = tuple(name.strip() for name in filters.split(",") if name.strip())
    for name in names:
        if name not in FILTERS:
            raise ValueError(f"filters = {filters!r}: {name!r} is unknown; allowed: {', '.join(FILTERS)}")
        if names.count(name) > 1:
            raise ValueError(f"filters = {filters!r}: {name!r} is there twice")
    return names
