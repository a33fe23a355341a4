"""Gram matrices of an instruction set's gradients under a proxy model, for experiments.select_data."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.select_rows import Encoded
from salt_jax import geometry, vocab
from salt_jax.learner.state import make_policy
from salt_jax.policy.layers import TransformerConfig

# Gradients of the output head, exact or sketched, or of some parameters; or no gradient, but the mean hidden state.
FEATURES = ("lm_head", "lm_head_sketch", "per_rollout", "hidden")


class Proxy:
    """The model, and what it makes of rows; each shape of rows is compiled once.

    Gradients are of a response's mean negative log-likelihood.

    Args:
      config: of the policy.
      params: its parameters.
      features: one of FEATURES.
      subset: a regular expression, the parameters of 'per_rollout'.
      batch: rows whose forward (or backward) pass lives at once.
      seed: of 'lm_head_sketch'.
    """

    def __init__(
        self, config: TransformerConfig, params: Any, *, features: str, subset: str, batch: int, seed: int
    ) -> None:
        self._params, self._batch, self._features = params, batch, features
        model = functools.partial(nnx.merge, make_policy(config))

        def hidden_of(params: Any, rows: Any) -> jax.Array:
            return model(params).completion_hidden(rows.prompts, rows.prompt_mask, rows.targets[:, None])[:, 0]

        def loss(params: Any, row: Any) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], row)
            scores = vocab.token_log_probs(hidden_of(params, one), model(params).lm_head, one.targets)
            return -jnp.sum(jnp.where(one.mask, scores.log_probs, 0.0)) / jnp.maximum(jnp.sum(one.mask), 1)

        def gram_of(params: Any, rows: Any, hidden: Any) -> jax.Array:
            if features == "per_rollout":
                chosen = lambda path: re.search(subset, path) is not None
                return geometry.per_rollout_gram(loss, params, rows, where=chosen, microbatch=batch)
            if features == "hidden":
                kept = jnp.where(rows.mask[:, :, None], hidden.astype(jnp.float32), 0.0)
                return geometry.sketch_gram(jnp.sum(kept, axis=1) / jnp.sum(rows.mask, axis=1)[:, None])
            seen = (hidden, model(params).lm_head, rows.targets, rows.mask)
            if features == "lm_head":
                return geometry.lm_head_gram(*seen)
            return geometry.sketch_gram(geometry.lm_head_sketch(*seen, jax.random.key(seed)))

        self._hidden, self._gram = jax.jit(hidden_of), jax.jit(gram_of)

    def gram(self, rows: Encoded) -> jax.Array:
        """(n, n) of n rows; the batch divides n."""
        if self._features == "per_rollout":
            return self._gram(self._params, rows, None)
        starts = range(0, len(rows.targets), self._batch)
        parts = [
            self._hidden(self._params, jax.tree.map(lambda x, i=i: x[i : i + self._batch], rows)) for i in starts
        ]
        return self._gram(self._params, rows, jnp.concatenate(parts))
