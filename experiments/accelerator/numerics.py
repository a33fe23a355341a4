"""Stage `numerics`: what a device computes, against float64 NumPy results that are held (`held`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.accelerator.held import ADVANTAGES, GROUP, Inputs, held, leaves
from experiments.accelerator.measuring import Program, compile_together, failed, fused
from experiments.accelerator.rows import Row, Setting
from salt_jax import geometry, salt
from salt_jax.learner.state import make_policy
from salt_jax.policy.logprobs import completion_scores
from salt_jax.rollout import RolloutBatch

# Bounds, with their reasons. u is the rounding of one number: 2^-24 in float32, 2^-9 in bfloat16. With TF32, 2^-11,
# a GPU would miss those of float32.
BOUNDS = {
    # Logits of size 10 as sums of 1,536 products, after two layers: some hundred u.
    "float32 log-probs": 1e-4,  # nats, the largest error
    # An entropy is a mean of log-probs of size up to 25, whose errors are theirs.
    "float32 entropy": 1e-4,  # nats, the largest error
    "float32 gradient": 1e-4,  # ‖error‖ / ‖gradient‖ of the worst parameter
    # About ten roundings on the way to h, and those of h and W: √10 · u · 3, the standard deviation of a logit; twice.
    "bfloat16 log-probs": 4e-2,  # nats, root mean square
    "bfloat16 entropy": 4e-2,  # nats, root mean square
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
Array = np.ndarray


def numerics(setting: Setting) -> Iterator[Row]:
    """Log-probs, entropies and their gradient, the sampler's log-probs, Gram matrices, eigenvectors and a′."""
    inputs = Inputs(setting)
    ways = {
        f"{dtype}, {attention}": (dtype, attention)
        for dtype, attention in (("bfloat16", "segments"), ("bfloat16", fused()), ("float32", "segments"))
    }
    tokens = jax.ShapeDtypeStruct(inputs.mask.shape, jnp.int32)
    targets = jax.ShapeDtypeStruct(inputs.hidden_mask.shape, jnp.int32)
    lowerings: dict[str, Any] = {
        name: lambda way=way: jax.jit(functools.partial(_scored, inputs, *way)).lower(inputs.params, tokens)
        for name, way in ways.items()
    }
    lowerings["sampler"] = lambda: jax.jit(inputs.sampled).lower(inputs.params)
    lowerings["geometry"] = lambda: jax.jit(functools.partial(_geometry, inputs)).lower(
        inputs.hidden, inputs.params["embedding"], targets, inputs.spectra
    )
    programs = compile_together(lowerings, wait=False)
    true = held(setting, inputs)
    drawn = None
    try:
        drawn = jax.device_get(programs["sampler"](inputs.params))
    except Exception as error:
        yield failed("sampler", error)
    plain: dict[str, float] = {}
    for name, (dtype, attention) in ways.items():
        try:
            for row in _score_rows(name, dtype, attention, programs[name], inputs, true, drawn):
                kind = f"{dtype} {row.what.partition(',')[0]}"
                if attention == "segments":
                    plain.setdefault(kind, row.value or 0.0)
                elif attention == "cudnn" and kind in BOUNDS:
                    row = dataclasses.replace(row, aim=BOUNDS["fused"] * plain.get(kind, BOUNDS[kind]))
                yield row
        except Exception as error:
            yield failed(name, error)
    try:
        yield from _geometry_rows(programs["geometry"], inputs, true)
    except Exception as error:
        yield failed("Gram matrices and eigenvectors", error)


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _scored(inputs: Inputs, dtype: str, attention: str, params: Any, drawn: jax.Array) -> Any:
    """Gradient of −Σ A log p / N, and log p and entropy, of the drawn tokens (rows, T)."""
    model = make_policy(dataclasses.replace(inputs.policy, compute_dtype=dtype, attention=attention))
    ones = jnp.ones(len(ADVANTAGES), bool)
    rollouts = RolloutBatch(
        tokens=jnp.concatenate([jnp.asarray(np.repeat(inputs.ids, GROUP, 0)), drawn], axis=1),
        prompt_mask=jnp.asarray(np.repeat(inputs.prompt_mask, GROUP, 0)), completion_mask=jnp.asarray(inputs.mask),
        sampler_log_probs=jnp.zeros(drawn.shape), rewards=jnp.zeros(len(ADVANTAGES)),
        rewarded=ones, valid=ones, truncated=ones,
    )  # fmt: skip

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        found = completion_scores(nnx.merge(model, params), rollouts, group_size=GROUP)
        kept = jnp.where(rollouts.completion_mask, found.log_probs, 0.0)
        weighted = jnp.sum(kept * jnp.asarray(ADVANTAGES, jnp.float32)[:, None])
        return -weighted / inputs.mask.sum(), (found.log_probs, found.entropy)

    return jax.grad(loss, has_aux=True)(params)


def _score_rows(
    name: str, dtype: str, attention: str, program: Program, inputs: Inputs, true: dict[str, Array], drawn: Any
) -> Iterator[Row]:
    """One way against what is held, and the sampler's log-probs against its own."""
    gradient, found = program(inputs.params, jnp.asarray(true["tokens"]))
    found = [np.asarray(x, np.float64)[inputs.mask] for x in found]
    size, unit = (_rms, "nats, rms") if dtype == "bfloat16" else (lambda x: float(np.abs(x).max()), "nats, largest")
    for what, one, of in zip(("log-probs", "entropy"), found, (true["log_probs"], true["entropy"]), strict=True):
        yield Row(f"{what}, {name}", size(one - of), unit, BOUNDS[f"{dtype} {what}"], compile=program.seconds)
    errors = {}
    for path, leaf in leaves(gradient).items():
        of = true[f"gradient/{path}"].astype(np.float64)
        some = np.asarray(jnp.ravel(leaf)[true[f"entries/{path}"]], np.float64)
        errors[path] = float(np.linalg.norm(some - of) / np.linalg.norm(of))
    worst = max(errors, key=errors.__getitem__)
    yield Row(f"gradient, {name}", errors[worst], "", BOUNDS[f"{dtype} gradient"], compile=program.seconds, note=worst)
    if dtype == "bfloat16" and drawn is not None:
        again = np.asarray(program(inputs.params, jnp.asarray(drawn.tokens))[1][0])
        gap = np.abs(drawn.log_probs - again)[inputs.mask]
        note = f"largest {gap.max():.3f}"
        yield Row(f"sampler against {name}", _rms(gap), "nats, rms", BOUNDS["bfloat16 log-probs"], note=note)


def _geometry(
    inputs: Inputs, hidden: jax.Array, embedding: jax.Array, targets: jax.Array, spectra: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Exact Gram, taken tokens and sketch, SALT's a′ from each; a′ by all eigenvectors and by iteration."""
    rest = (embedding.T, targets, jnp.asarray(inputs.hidden_mask))
    exact = functools.partial(geometry.lm_head_gram, route="features")
    found = {
        "float32": exact(hidden, *rest),
        "bfloat16": exact(hidden.astype(jnp.bfloat16), *rest),
        "taken token": geometry.taken_token_gram(hidden, *rest, route="features"),
        "sketch": geometry.sketch_gram(geometry.lm_head_sketch(hidden, *rest, jax.random.key(2))),
    }
    a = jnp.asarray(inputs.advantages, jnp.float32)
    grams = {name: (k, salt.reweight(k, a, salt.SaltConfig())) for name, k in found.items()}
    return grams, {
        f"a′, {eigen}, m = {m}": salt.reweight(gram, a, salt.SaltConfig(eigen=eigen))
        for m, (gram, a) in spectra.items() for eigen in ("full", "iterative")
    }  # fmt: skip


def _geometry_rows(program: Program, inputs: Inputs, true: dict[str, Array]) -> Iterator[Row]:
    given = jnp.asarray(inputs.hidden), inputs.params["embedding"], jnp.asarray(true["targets"]), inputs.spectra
    found, eigen = jax.device_get(program(*given))
    sketched = np.asarray(found["sketch"][0], np.float64)
    for name in [name for name in found if name != "sketch"]:
        of = true["taken" if name == "taken token" else "gram"]
        bound = BOUNDS["bfloat16 Gram" if name == "bfloat16" else "float32 Gram"]
        error = float(np.linalg.norm(found[name][0] - of) / np.linalg.norm(of))
        yield Row(f"Gram, {name}", error, "", bound, compile=program.seconds)
    ratio, of = (np.trace(x) ** 2 / (x * x).sum() for x in (sketched, true["gram"]))
    bound = BOUNDS["sketch"]
    yield Row("participation ratio of the sketch, error", abs(ratio / of - 1), "", bound, note=f"of {of:.1f}")
    new, (k, alpha) = true["salt"], true["k, alpha"]
    for name in ("float32", "bfloat16"):
        out = found[name][1]
        cosine = float(out.advantages @ new / np.linalg.norm(out.advantages) / np.linalg.norm(new))
        note = f"k {int(out.k)} of {int(k)}, α {float(out.alpha):.4f} of {alpha:.4f}"
        yield Row(f"a′ from {name}, cosine", cosine, "", BOUNDS["cosine"], at_least=True, note=note)
        yield Row(f"α from {name}, error", abs(float(out.alpha) - alpha), "", BOUNDS["alpha"])
    for name, out in eigen.items():
        m = name.partition("m = ")[2]
        new = true[f"salt, m = {m}"]
        note = f"k {int(out.k)} of {int(true[f'k, m = {m}'])}" + (", fell back on eigh" if out.fallback else "")
        error = float(np.linalg.norm(out.advantages - new) / np.linalg.norm(new))
        yield Row(name, error, "", BOUNDS["projection"], compile=program.seconds, note=note)
