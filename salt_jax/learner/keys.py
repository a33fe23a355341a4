"""The streams of a step's random key: what draws from which. Stream 5 chooses prompts (``collect.turn``)."""

from __future__ import annotations

import jax

from salt_jax.learner.state import TrainState

Array = jax.Array


def salt_key(state: TrainState) -> Array:
    """What SALT's random variants draw from in this step; the sampler uses stream 0."""
    return jax.random.fold_in(state.step_key(), 1)


def sketch_key(state: TrainState) -> Array:
    """What the random projection of this step's sketch is made from."""
    return jax.random.fold_in(state.step_key(), 2)


def estimate_key(state: TrainState) -> Array:
    """What filters and estimators draw from in this step."""
    return jax.random.fold_in(state.step_key(), 3)


def token_key(state: TrainState) -> Array:
    """What token choices draw from in this step."""
    return jax.random.fold_in(state.step_key(), 4)


def sampling_key(state: TrainState) -> Array:
    """What the sampler draws from in this step."""
    return jax.random.fold_in(state.step_key(), 0)
