"""Stage `numerics`: what a device computes, against float64 NumPy on the host."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.accelerator import reference
from experiments.accelerator.measuring import Program, compile_together, failed, fused, policy_of
from experiments.accelerator.rows import Row, Setting
from salt_jax import geometry, salt
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.logprobs import completion_scores
from salt_jax.policy.sampler import SamplingConfig, sample
from salt_jax.rollout import RolloutBatch
from salt_jax.training.state import init_params, make_policy

# Bounds, with their reasons. u is the rounding of one number: 2^-24 in float32, 2^-9 in bfloat16. With TF32, 2^-11,
# a GPU would miss those of float32.
BOUNDS = {
    # Logits of size 10 as sums of 1,536 products, after two layers: some hundred u.
    "float32 log-probs": 1e-4,  # nats, the largest error
    "float32 gradient": 1e-4,  # ‖error‖ / ‖gradient‖ of the worst parameter
    # About ten roundings on the way to h, and those of h and W: √10 · u · 3, the standard deviation of a logit; twice.
    "bfloat16 log-probs": 4e-2,  # nats, root mean square
    "bfloat16 gradient": 5e-2,  # the same on the way back
    # On the premise that a fused kernel rounds no more than `segments`: its error over that one's. For a gradient the
    # premise is doubtful (docs/accelerators.md); the bound stands.
    "fused": 1.25,
    "float32 Gram": 2e-5,  # ‖error‖_F / ‖K‖_F: some hundred u
    "bfloat16 Gram": 1e-2,  # residuals and features are rounded to bfloat16, products summed in float32
    "sketch": 2e-2,  # of the participation ratio: what experiments/benchmarks/sketch_error.py asks of the sketch
    "projection": 2e-4,  # geometry.subspace.TOLERANCE; eps · λ_1 / gap is 1e-5 here
    "cosine": 0.999,  # of a′ from a bfloat16 Gram and the true a′
    "alpha": 1e-2,
}
GROUP = 2
ADVANTAGES = np.array([1.0, -0.5, 0.75, -1.0])


def numerics(setting: Setting) -> Iterator[Row]:
    """Sampled tokens' log-probs, their gradient, Gram matrices, eigenvectors and a′."""
    rng = np.random.default_rng(0)
    policy = policy_of(setting, num_layers=2, qkv_bias=True, tied_embeddings=True)
    params = jax.jit(functools.partial(_parameters, policy))(jax.random.key(0))
    scene = _Scene(setting, policy, rng)
    grams = _Grams(setting, policy, rng)
    spectra = _spectra(setting, rng)
    lowerings = scene.lowerings(params) | {"Gram matrices": lambda: grams.lower(params["embedding"])}
    for name, (gram, a, eigen) in spectra.items():
        reweight = functools.partial(salt.reweight, config=salt.SaltConfig(eigen=eigen))
        lowerings[name] = lambda reweight=reweight, given=(gram, a): jax.jit(reweight).lower(*given)
    programs = compile_together(lowerings, wait=False)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    yield from scene.rows(programs, params, exact)
    try:
        yield from grams.rows(programs["Gram matrices"], params["embedding"], exact["embedding"].T, rng)
    except Exception as error:
        yield failed("Gram matrices", error)
    for name, (gram, a, _) in spectra.items():
        try:
            yield _eigen_row(name, programs[name], gram, a)
        except Exception as error:
            yield failed(name, error)


def _parameters(policy: TransformerConfig, key: jax.Array) -> Any:
    """Random parameters with biases that are not zero, and logits of standard deviation 3: some tokens are likely."""
    params = init_params(policy, key)
    params["embedding"] *= 3.0
    for i, name in enumerate(("q_bias", "k_bias", "v_bias")):
        like = params["layers"][name]
        params["layers"][name] = jax.random.normal(jax.random.fold_in(key, i), like.shape)
    return params


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


class _Scene:
    """Two prompts of two rollouts, all of different lengths: what is sampled, and then scored in several ways."""

    def __init__(self, setting: Setting, policy: TransformerConfig, rng: np.random.Generator) -> None:
        self.policy, self.unit = policy, 8 if setting.tiny else 128
        unit = self.unit
        self.prompts, self.completions = (unit, unit * 5 // 8), (unit, unit * 3 // 4, unit // 2, 3)
        self.ids = rng.integers(0, policy.vocab_size, (len(self.prompts), unit)).astype(np.int32)
        self.prompt_mask = np.arange(unit)[None] >= unit - np.array(self.prompts)[:, None]
        self.mask = np.arange(unit)[None] < np.array(self.completions)[:, None]
        self.ways = {
            f"{dtype}, {attention}": (dtype, attention)
            for dtype, attention in (("bfloat16", "segments"), ("bfloat16", fused()), ("float32", "segments"))
        }

    def lowerings(self, params: Any) -> dict[str, Any]:
        """The sampler, and log-probs with the loss's gradient in each way."""

        def draw(params: Any) -> Any:
            return sample(
                nnx.merge(make_policy(self.policy), params), jnp.asarray(self.ids), jnp.asarray(self.prompt_mask),
                jax.random.key(1), group_size=GROUP, config=SamplingConfig(max_new_tokens=self.unit),
                stop_ids=(self.policy.vocab_size,), pad_id=0,  # an id that is never drawn
            )  # fmt: skip

        tokens = jax.ShapeDtypeStruct(self.mask.shape, jnp.int32)

        def lower(dtype: str, attention: str) -> Any:
            return jax.jit(functools.partial(self._scored, dtype, attention)).lower(params, tokens)

        ways = {name: functools.partial(lower, *way) for name, way in self.ways.items()}
        return {"sampler": lambda: jax.jit(draw).lower(params)} | ways

    def _scored(self, dtype: str, attention: str, params: Any, drawn: jax.Array) -> Any:
        """Gradient of −Σ A log p / N, and log p, of the drawn tokens (rows, T)."""
        model = make_policy(dataclasses.replace(self.policy, compute_dtype=dtype, attention=attention))
        ones = jnp.ones(len(ADVANTAGES), bool)
        rollouts = RolloutBatch(
            tokens=jnp.concatenate([jnp.asarray(np.repeat(self.ids, GROUP, 0)), drawn], axis=1),
            prompt_mask=jnp.asarray(np.repeat(self.prompt_mask, GROUP, 0)), completion_mask=jnp.asarray(self.mask),
            sampler_log_probs=jnp.zeros(drawn.shape), rewards=jnp.zeros(len(ADVANTAGES)),
            rewarded=ones, valid=ones, truncated=ones,
        )  # fmt: skip

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            found = completion_scores(nnx.merge(model, params), rollouts, group_size=GROUP).log_probs
            kept = jnp.where(rollouts.completion_mask, found, 0.0)
            return -jnp.sum(kept * jnp.asarray(ADVANTAGES, jnp.float32)[:, None]) / self.mask.sum(), found

        return jax.grad(loss, has_aux=True)(params)

    def rows(self, programs: dict[str, Program], params: Any, exact: Any) -> Iterator[Row]:
        """All against the reference; the fused kernel also against `segments`."""
        drawn = jax.device_get(programs["sampler"](params))
        tokens = np.concatenate([np.repeat(self.ids, GROUP, 0), drawn.tokens], 1)
        real = [
            reference.Sequence(tokens[i, self.unit - self.prompts[i // GROUP] : self.unit + length],
                               self.prompts[i // GROUP], weight)
            for i, (length, weight) in enumerate(zip(self.completions, ADVANTAGES, strict=True))
        ]  # fmt: skip
        began = time.perf_counter()
        log_probs, grads = reference.scores(exact, self.policy, real)
        note = f"float64 on the host took {time.perf_counter() - began:.1f} s"
        truth, bound = np.concatenate(log_probs), BOUNDS["bfloat16 log-probs"]
        error = _rms(drawn.log_probs[self.mask] - truth)
        spent = programs["sampler"].seconds
        yield Row("sampler's log-probs, bfloat16", error, "nats, rms", bound, compile=spent, note=note)
        true_grads = jax.device_put(jax.tree.map(lambda x: x.astype(np.float32), grads))
        norm = jnp.linalg.norm
        distance = jax.jit(functools.partial(jax.tree.map, lambda x, y: norm(x - y) / norm(y)))
        plain: dict[str, float] = {}
        for name, (dtype, attention) in self.ways.items():
            try:
                found_grads, found = programs[name](params, jnp.asarray(drawn.tokens))
                found = np.asarray(found, np.float64)[self.mask]
                flat = jax.tree_util.tree_flatten_with_path(distance(found_grads, true_grads))[0]
            except Exception as error:
                yield failed(name, error)
                continue
            path, worst = max(flat, key=lambda leaf: float(leaf[1]))
            errors = {"log-probs": _rms(found - truth), "gradient": float(worst)}
            if dtype == "float32":
                errors["log-probs"] = float(np.abs(found - truth).max())
            for what, value in errors.items():
                kind = f"{dtype} {what}"
                if attention == "segments":
                    plain.setdefault(kind, value)
                aim = BOUNDS[kind] if attention == "segments" else BOUNDS["fused"] * plain.get(kind, BOUNDS[kind])
                unit = "" if what == "gradient" else "nats, rms" if dtype == "bfloat16" else "nats, largest"
                note = jax.tree_util.keystr(path, simple=True, separator="/") if what == "gradient" else ""
                yield Row(f"{what}, {name}", value, unit, aim, compile=programs[name].seconds, note=note)
            if dtype == "bfloat16":
                gap = np.abs(drawn.log_probs[self.mask] - found)
                yield Row(f"sampler against {name}", _rms(gap), "nats, rms", bound, note=f"largest {gap.max():.3f}")


class _Grams:
    """Exact Gram, taken tokens, sketch, and SALT's a′ from them: states with common directions, on-policy tokens."""

    def __init__(self, setting: Setting, policy: TransformerConfig, rng: np.random.Generator) -> None:
        m, t, h = (16 if setting.tiny else 64), 8, policy.d_model
        common = rng.standard_normal((1, 1, h)) + np.repeat(rng.standard_normal((m // 8, 1, h)), 8, 0)
        hidden = (common + rng.standard_normal((m, t, h))) / np.sqrt(3)
        self.hidden = np.asarray(hidden.astype(jnp.bfloat16), np.float32)  # the same numbers in both dtypes
        self.mask = np.arange(t)[None] < rng.integers(2, t + 1, (m, 1))
        self.advantages = rng.choice([-1.0, 1.0], m)

    def lower(self, embedding: jax.Array) -> Any:
        """All of them as one program of (hidden, embedding, targets)."""

        def everything(hidden: jax.Array, embedding: jax.Array, targets: jax.Array) -> dict[str, Any]:
            rest = (embedding.T, targets, jnp.asarray(self.mask))
            exact = functools.partial(geometry.lm_head_gram, route="features")
            found = {
                "float32": exact(hidden, *rest),
                "bfloat16": exact(hidden.astype(jnp.bfloat16), *rest),
                "taken token": geometry.taken_token_gram(hidden, *rest, route="features"),
                "sketch": geometry.sketch_gram(geometry.lm_head_sketch(hidden, *rest, jax.random.key(2))),
            }
            a = jnp.asarray(self.advantages, jnp.float32)
            return {name: (k, salt.reweight(k, a, salt.SaltConfig())) for name, k in found.items()}

        targets = jax.ShapeDtypeStruct(self.mask.shape, jnp.int32)
        return jax.jit(everything).lower(self.hidden, embedding, targets)

    def rows(self, program: Program, embedding: Any, head: np.ndarray, rng: np.random.Generator) -> Iterator[Row]:
        """Against K by pairs of tokens, and a′ from it."""
        hidden = self.hidden.astype(np.float64)
        targets = reference.draw(hidden, head, rng)
        gram, taken = reference.grams(hidden, head, targets, self.mask)
        found = jax.device_get(program(jnp.asarray(self.hidden), embedding, jnp.asarray(targets, jnp.int32)))
        sketched = np.asarray(found["sketch"][0], np.float64)
        for name in [name for name in found if name != "sketch"]:
            true = taken if name == "taken token" else gram
            bound = BOUNDS["bfloat16 Gram" if name == "bfloat16" else "float32 Gram"]
            error = float(np.linalg.norm(found[name][0] - true) / np.linalg.norm(true))
            yield Row(f"Gram, {name}", error, "", bound, compile=program.seconds)
        ratio, of = (np.trace(x) ** 2 / (x * x).sum() for x in (sketched, gram))
        bound = BOUNDS["sketch"]
        yield Row("participation ratio of the sketch, error", abs(ratio / of - 1), "", bound, note=f"of {of:.1f}")
        new, k, alpha = reference.reweight(gram, self.advantages)
        for name in ("float32", "bfloat16"):
            out = found[name][1]
            cosine = float(out.advantages @ new / np.linalg.norm(out.advantages) / np.linalg.norm(new))
            note = f"k {int(out.k)} of {k}, α {float(out.alpha):.4f} of {alpha:.4f}"
            yield Row(f"a′ from {name}, cosine", cosine, "", BOUNDS["cosine"], at_least=True, note=note)
            yield Row(f"α from {name}, error", abs(float(out.alpha) - alpha), "", BOUNDS["alpha"])


def decaying_gram(m: int, rng: np.random.Generator) -> np.ndarray:
    """(m, m) float32 with eigenvalues exp(−j / 15): participation ratio 30, relative gaps of 1/15."""
    turned, _ = np.linalg.qr(rng.standard_normal((m, m)))
    return ((turned * np.exp(-np.arange(m) / 15)) @ turned.T).astype(np.float32)


def _spectra(setting: Setting, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    found: dict[str, tuple[np.ndarray, np.ndarray, str]] = {}
    for m in (64, 128) if setting.tiny else (256, 1024):
        gram, a = decaying_gram(m, rng), rng.choice([-1.0, 1.0], m).astype(np.float32)
        found |= {f"a′, {eigen}, m = {m}": (gram, a, eigen) for eigen in ("full", "iterative")}
    return found


def _eigen_row(name: str, program: Program, gram: np.ndarray, a: np.ndarray) -> Row:
    new, k, _ = reference.reweight(gram.astype(np.float64), a.astype(np.float64))
    out = jax.device_get(program(gram, a))
    note = f"k {int(out.k)} of {k}" + (", fell back on eigh" if out.fallback else "")
    error = float(np.linalg.norm(out.advantages - new) / np.linalg.norm(new))
    return Row(name, error, "", BOUNDS["projection"], compile=program.seconds, note=note)
