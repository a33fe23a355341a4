"""Float64 NumPy references of stage `numerics`: a decoder and its gradient, the Gram matrix, SALT.

Written from the formulas: one row at a time, real tokens only, no padding, no chunks, gradients by hand. Parameters
are those of `salt_jax.policy.transformer` in float64, the head tied to the embedding.
Shape letters: S tokens of a row, D width, C head width, V vocabulary, N tokens that are predicted, m rollouts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Tree = dict[str, Any]


class Sequence(NamedTuple):
    """One rollout: ids (S,), how many of them are the prompt, and what its log-probs are multiplied with."""

    tokens: Array
    prompt: int
    weight: float


def rms(x: Array, scale: Array, eps: float) -> tuple[Array, Array]:
    """x / √(mean x² + eps) · scale over the last axis, and 1 / √(…)."""
    inverse = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * inverse * scale, inverse


def rms_back(g: Array, x: Array, scale: Array, inverse: Array) -> tuple[Array, Array]:
    """The gradient in x and in scale, of g in the output."""
    gs = g * scale
    return inverse * (gs - x * inverse**2 * (gs * x).mean(-1, keepdims=True)), (g * x * inverse).sum(0)


def turn(x: Array, theta: float, sign: float) -> Array:
    """Rotary embedding of x (S, heads, C) by its positions (sign 1), or its transpose (sign −1)."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None, None] * theta ** (-np.arange(half) / half)
    cos, sin, a, b = np.cos(angle), sign * np.sin(angle), x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(q: Array, k: Array, v: Array) -> tuple[Array, list[Array]]:
    """Causal grouped-query attention: q (S, heads, C), k and v (S, kv heads, C) -> (S, heads, C), weights a head."""
    share, hidden = q.shape[1] // k.shape[1], np.triu(np.ones((len(q), len(q)), bool), 1)
    out, weights = np.empty_like(q), []
    for h in range(q.shape[1]):
        scores = np.where(hidden, -np.inf, q[:, h] @ k[:, h // share].T / np.sqrt(q.shape[2]))
        p = np.exp(scores - scores.max(-1, keepdims=True))
        weights.append(p / p.sum(-1, keepdims=True))
        out[:, h] = weights[h] @ v[:, h // share]
    return out, weights


def attention_back(g: Array, q: Array, k: Array, v: Array, weights: list[Array]) -> tuple[Array, Array, Array]:
    """Gradients in q, k and v, of g (S, heads, C) in the output."""
    share, gq, gk, gv = q.shape[1] // k.shape[1], np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
    for h, p in enumerate(weights):
        gp = g[:, h] @ v[:, h // share].T
        gs = p * (gp - (gp * p).sum(-1, keepdims=True)) / np.sqrt(q.shape[2])
        gv[:, h // share] += p.T @ g[:, h]
        gq[:, h] = gs @ k[:, h // share]
        gk[:, h // share] += gs.T @ q[:, h]
    return gq, gk, gv


def block(p: Tree, c: Any, x: Array) -> tuple[Array, tuple[Any, ...]]:
    """One layer over a row x (S, D), and what its gradient needs."""
    h, inverse_a = rms(x, p["attention_norm"], c.rms_norm_eps)
    q, k, v = (np.reshape(h @ p[n] + p.get(f"{n}_bias", 0.0), (len(x), -1, c.head_dim)) for n in "qkv")
    q, k = turn(q, c.rope_theta, 1), turn(k, c.rope_theta, 1)
    out, weights = attention(q, k, v)
    y = x + out.reshape(len(x), -1) @ p["o"]
    n, inverse_m = rms(y, p["mlp_norm"], c.rms_norm_eps)
    gate, up = n @ p["gate"], n @ p["up"]
    sigmoid = 1 / (1 + np.exp(-gate))
    z = y + (gate * sigmoid * up) @ p["down"]
    return z, (x, h, inverse_a, q, k, v, out, weights, y, n, inverse_m, gate, up, sigmoid)


def block_back(p: Tree, c: Any, g: Array, kept: tuple[Any, ...], grads: Tree) -> Array:
    """The gradient in the layer's input, of g (S, D) in its output; those of its parameters are added to ``grads``."""
    x, h, inverse_a, q, k, v, out, weights, y, n, inverse_m, gate, up, sigmoid = kept
    gz = g @ p["down"].T
    grads["down"] += (gate * sigmoid * up).T @ g
    g_up, g_gate = gz * gate * sigmoid, gz * up * sigmoid * (1 + gate * (1 - sigmoid))
    grads["up"] += n.T @ g_up
    grads["gate"] += n.T @ g_gate
    back, scale = rms_back(g_up @ p["up"].T + g_gate @ p["gate"].T, y, p["mlp_norm"], inverse_m)
    grads["mlp_norm"] += scale
    gy = g + back
    grads["o"] += out.reshape(len(x), -1).T @ gy
    gq, gk, gv = attention_back((gy @ p["o"].T).reshape(out.shape), q, k, v, weights)
    gh = np.zeros_like(h)
    for name, part in (("q", turn(gq, c.rope_theta, -1)), ("k", turn(gk, c.rope_theta, -1)), ("v", gv)):
        flat = part.reshape(len(x), -1)
        grads[name] += h.T @ flat
        if f"{name}_bias" in grads:
            grads[f"{name}_bias"] += flat.sum(0)
        gh += flat @ p[name].T
    back, scale = rms_back(gh, x, p["attention_norm"], inverse_a)
    grads["attention_norm"] += scale
    return gy + back


def scores(params: Tree, c: Any, rows: list[Sequence]) -> tuple[list[Array], list[Array], Tree]:
    """Log-probs and entropies of each row's completion, and the gradient of −Σ weight · log p / N in the parameters.

    Args:
      params: 'embedding' (V, D), 'final_norm' (D,), 'layers': arrays stacked over layers.
      c: a ``TransformerConfig``. rows: the rollouts, N tokens of completions in all.
    """
    embedding, layers = params["embedding"], params["layers"]
    of = [{name: value[i] for name, value in layers.items()} for i in range(c.num_layers)]
    xs, kept = [embedding[row.tokens] for row in rows], [[] for _ in rows]  # type: ignore[var-annotated]
    for r in range(len(rows)):
        for p in of:
            xs[r], needed = block(p, c, xs[r])
            kept[r].append(needed)
    at = [slice(row.prompt - 1, len(row.tokens) - 1) for row in rows]
    normed = [rms(x, params["final_norm"], c.rms_norm_eps) for x in xs]
    hidden = np.concatenate([n[0][s] for n, s in zip(normed, at, strict=True)])
    targets = np.concatenate([row.tokens[row.prompt :] for row in rows])
    log_p = log_softmax(hidden @ embedding.T)
    taken = log_p[np.arange(len(targets)), targets]
    lengths = [len(row.tokens) - row.prompt for row in rows]
    each = np.repeat([row.weight for row in rows], lengths) / len(targets)
    delta = np.exp(log_p)
    entropy = -(delta * log_p).sum(-1)
    delta[np.arange(len(targets)), targets] -= 1
    delta *= each[:, None]
    grads = {"embedding": delta.T @ hidden, "final_norm": np.zeros_like(params["final_norm"])}
    grads["layers"] = {name: np.zeros_like(value) for name, value in layers.items()}
    g_hidden = np.split(delta @ embedding, np.cumsum(lengths)[:-1])
    for r, row in enumerate(rows):
        g = np.zeros_like(xs[r])
        g[at[r]] = g_hidden[r]
        g, scale = rms_back(g, xs[r], params["final_norm"], normed[r][1])
        grads["final_norm"] += scale
        for i in reversed(range(c.num_layers)):
            g = block_back(of[i], c, g, kept[r][i], {name: value[i] for name, value in grads["layers"].items()})
        np.add.at(grads["embedding"], row.tokens, g)
    taken, entropy = (np.split(x, np.cumsum(lengths)[:-1]) for x in (taken, entropy))
    return taken, entropy, grads


def log_softmax(z: Array) -> Array:
    """Over the last axis."""
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def draw(hidden: Array, head: Array, rng: np.random.Generator) -> Array:
    """Tokens of the policy's own distribution: hidden (..., H), head (H, V) -> (...)."""
    running = np.exp(log_softmax(hidden @ head)).cumsum(-1)
    return (running > rng.random(running.shape[:-1])[..., None] * running[..., -1:]).argmax(-1)


def grams(hidden: Array, head: Array, targets: Array, mask: Array) -> tuple[Array, Array]:
    """K of the features (1/|o_i|) Σ_t (p − onehot) ⊗ h (m, m), and of those without their softmax term.

    By pairs of tokens: K_ij = Σ_tu ⟨δ_it, δ_ju⟩ ⟨h_it, h_ju⟩. hidden (m, T, H), targets and mask (m, T).
    """
    m, t, h = hidden.shape
    flat, ids = hidden.reshape(-1, h), targets.reshape(-1)
    weight = (mask / mask.sum(1, keepdims=True)).reshape(-1)
    delta = np.exp(log_softmax(flat @ head))
    delta[np.arange(m * t), ids] -= 1
    delta *= weight[:, None]
    inner = flat @ flat.T
    same = (ids[:, None] == ids[None]) * np.outer(weight, weight)
    return tuple((part * inner).reshape(m, t, m, t).sum((1, 3)) for part in (delta @ delta.T, same))  # type: ignore[return-value]


def reweight(gram: Array, a: Array) -> tuple[Array, int, float]:
    """a′ = P a + α P⊥[a]₊, k = round(PR) and α = 1 − n_eff within [0, 1] (arXiv 2606.05800, Eq. 12–18)."""
    k = max(int(np.round(np.trace(gram) ** 2 / (gram * gram).sum())), 1)
    vectors = np.linalg.eigh(gram)[1][:, ::-1][:, :k]
    alpha = float(np.clip(1 - a @ gram @ a / (a**2 @ np.diag(gram)), 0, 1))
    plus = np.maximum(a, 0)
    return vectors @ (vectors.T @ a) + alpha * (plus - vectors @ (vectors.T @ plus)), k, alpha
