"""The decoder as NumPy float64 loops: one row, one token, one head at a time; real tokens only, no padding.

Written from the papers and the Hugging Face layouts: RMSNorm, half-split rotary embeddings, grouped-query
attention (query head h reads key/value head h // (heads / kv_heads)), SwiGLU.
"""

from __future__ import annotations

import math

import numpy as np


def rms_norm(x, scale, eps):
    mean_square = sum(float(value) ** 2 for value in x) / len(x)
    return np.array([float(value) / math.sqrt(mean_square + eps) * s for value, s in zip(x, scale, strict=True)])


def rotate(x, position, theta):
    """The pair (x_i, x_{i + C/2}) turns by position · theta^(−2i/C)."""
    half = len(x) // 2
    out = np.zeros(len(x))
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def softmax(scores):
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def attention(layer, config, normed):
    """Attention outputs (S, heads·C) of S normed tokens."""
    c = config.head_dim
    queries, keys, values = [], [], []
    for position, h in enumerate(normed):
        rows = {name: h @ layer[name] for name in ("q", "k", "v")}
        if config.qkv_bias:
            rows = {name: row + layer[f"{name}_bias"] for name, row in rows.items()}
        heads = {name: [row[i : i + c] for i in range(0, len(row), c)] for name, row in rows.items()}
        if config.qk_norm:
            for name in ("q", "k"):
                scale = layer[f"{name}_norm"]
                heads[name] = [rms_norm(head, scale, config.rms_norm_eps) for head in heads[name]]
        queries.append([rotate(head, position, config.rope_theta) for head in heads["q"]])
        keys.append([rotate(head, position, config.rope_theta) for head in heads["k"]])
        values.append(heads["v"])
    outputs = []
    for position in range(len(normed)):
        row = []
        for head in range(config.num_heads):
            kv = head // (config.num_heads // config.num_kv_heads)
            scores = [
                float(queries[position][head] @ keys[u][kv]) / math.sqrt(c) for u in range(position + 1)
            ]
            row.append(sum(w * values[u][kv] for u, w in enumerate(softmax(scores))))
        outputs.append(np.concatenate(row))
    return outputs


def hidden_states(params, config, tokens):
    """Tokens of one row -> (S, D) after the final norm; row t predicts token t + 1."""
    params = to_float64(params)
    xs = [params["embedding"][token] for token in tokens]
    for index in range(config.num_layers):
        layer = {name: stacked[index] for name, stacked in params["layers"].items()}
        normed = [rms_norm(x, layer["attention_norm"], config.rms_norm_eps) for x in xs]
        mixed = attention(layer, config, normed)
        for t in range(len(xs)):
            xs[t] = xs[t] + mixed[t] @ layer["o"]
            h = rms_norm(xs[t], layer["mlp_norm"], config.rms_norm_eps)
            gate = np.array([z / (1 + math.exp(-z)) for z in h @ layer["gate"]])
            xs[t] = xs[t] + (gate * (h @ layer["up"])) @ layer["down"]
    return np.array([rms_norm(x, params["final_norm"], config.rms_norm_eps) for x in xs])


def head(params, config):
    """(D, V)."""
    return np.asarray(params["embedding"], np.float64).T if config.tied_embeddings else np.float64(params["head"])


def logits(params, config, tokens):
    """Tokens of one row -> (S, V)."""
    return hidden_states(params, config, tokens) @ head(params, config)


def completion_hidden(params, config, prompt, completion):
    """(T, D): the states that predict each completion token; prompt and completion are real tokens."""
    row = [*prompt, *completion]
    return hidden_states(params, config, row[:-1])[len(prompt) - 1 :]


def to_float64(tree):
    if isinstance(tree, dict):
        return {name: to_float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)
