"""The float64 reference of `experiments.accelerator` against finite differences and the loops of tests/reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments.accelerator import reference
from salt_jax.policy.layers import TransformerConfig
from tests.reference import transformer


def _small() -> tuple[TransformerConfig, dict[str, Any], list[reference.Sequence]]:
    c = TransformerConfig(vocab_size=7, d_model=6, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=5)
    rng = np.random.default_rng(0)
    shapes = {
        "attention_norm": (6,), "mlp_norm": (6,), "q": (6, 16), "k": (6, 8), "v": (6, 8), "o": (16, 6),
        "q_bias": (16,), "k_bias": (8,), "v_bias": (8,), "gate": (6, 5), "up": (6, 5), "down": (5, 6),
    }  # fmt: skip
    layers = {name: rng.standard_normal((2, *shape)) for name, shape in shapes.items()}
    params = {"embedding": rng.standard_normal((7, 6)), "final_norm": rng.standard_normal(6), "layers": layers}
    rows = [reference.Sequence(np.array([1, 4, 2, 6]), 2, 1.5), reference.Sequence(np.array([3, 3, 0]), 1, -1.0)]
    return c, params, rows


def test_the_reference_gradient_is_that_of_finite_differences():
    c, params, rows = _small()
    grads = reference.scores(params, c, rows)[2]

    def loss() -> float:
        found = reference.scores(params, c, rows)[0]
        return -sum(row.weight * x.sum() for row, x in zip(rows, found, strict=True)) / sum(map(len, found))

    rng, step = np.random.default_rng(1), 1e-6
    pairs = [(params[n], grads[n]) for n in ("embedding", "final_norm")]
    pairs += [(params["layers"][n], grads["layers"][n]) for n in params["layers"]]
    for value, gradient in pairs:  # each parameter along a random direction
        direction, start = rng.standard_normal(value.shape), value.copy()
        ends = []
        for sign in (1, -1):
            value[...] = start + sign * step * direction
            ends.append(loss())
        value[...] = start
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), np.sum(gradient * direction), rtol=1e-6, atol=1e-8)


def test_the_reference_log_probs_are_those_of_the_loops():
    c, params, rows = _small()
    c = TransformerConfig(**vars(c) | {"qkv_bias": True})
    for row, found, entropy in zip(rows, *reference.scores(params, c, rows)[:2], strict=True):
        logits = transformer.logits(params, c, row.tokens.tolist())
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected = [log_p[t - 1, row.tokens[t]] for t in range(row.prompt, len(row.tokens))]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        at = range(row.prompt - 1, len(row.tokens) - 1)
        expected = [-sum(math.exp(x) * x for x in log_p[t]) for t in at]
        np.testing.assert_allclose(entropy, expected, rtol=1e-12)
