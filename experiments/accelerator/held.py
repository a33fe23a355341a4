"""What stage `numerics` compares with: inputs, and float64 NumPy results for them, computed beforehand.

    python -m experiments.accelerator.held        # writes reference.npz, on a CPU, in minutes

Results for the full shapes lie in reference.npz, for a rented device should not wait for its host's float64. Those for
`--tiny` are computed when they are asked for. Parameters and hidden states are made anew from their seeds, and a few
entries of each are compared: another generator is an error, not an inaccuracy.
"""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.accelerator import reference
from experiments.accelerator.measuring import policy_of
from experiments.accelerator.rows import Setting
from salt_jax.learner.state import init_params, make_policy
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import SamplingConfig, sample

FILE = Path(__file__).with_name("reference.npz")
GROUP = 2
ADVANTAGES = np.array([1.0, -0.5, 0.75, -1.0])
ENTRIES, CHECKED = 2048, 16  # of each parameter: whose gradient is held, and that are compared
Array = np.ndarray


class Inputs:
    """Two prompts of two rollouts, all of different lengths; states of m rollouts; Gram matrices with known spectra.

    Attributes:
      policy: two layers of Qwen2.5-1.5B's shape. params: its parameters, float32.
      unit: the longest prompt and completion; prompts, completions: tokens of each.
      ids (2, unit) with prompt_mask, left-padded; mask (4, unit) of the completions.
      hidden (m, 8, H) with hidden_mask and advantages (m,): rounded to bfloat16, the same numbers in both dtypes.
      spectra: m → (Gram matrix (m, m) float32, advantages (m,)).
    """

    def __init__(self, setting: Setting) -> None:
        rng = np.random.default_rng(0)
        self.policy = policy_of(setting, num_layers=2, qkv_bias=True, tied_embeddings=True)
        self.params = jax.jit(functools.partial(_parameters, self.policy))(jax.random.key(0))
        self.unit = unit = 8 if setting.tiny else 128
        self.prompts, self.completions = (unit, unit * 5 // 8), (unit, unit * 3 // 4, unit // 2, 3)
        self.ids = rng.integers(0, self.policy.vocab_size, (len(self.prompts), unit)).astype(np.int32)
        self.prompt_mask = np.arange(unit)[None] >= unit - np.array(self.prompts)[:, None]
        self.mask = np.arange(unit)[None] < np.array(self.completions)[:, None]
        m, t, h = (16 if setting.tiny else 64), 8, self.policy.d_model
        common = rng.standard_normal((1, 1, h)) + np.repeat(rng.standard_normal((m // 8, 1, h)), 8, 0)
        hidden = (common + rng.standard_normal((m, t, h))) / np.sqrt(3)
        self.hidden = np.asarray(hidden.astype(jnp.bfloat16), np.float32)
        self.hidden_mask = np.arange(t)[None] < rng.integers(2, t + 1, (m, 1))
        # as many of each sign in a group: what rollouts share cancels, and α is well inside (0, 1)
        self.advantages = np.ravel(rng.permuted(np.tile([-1.0, 1.0], (m // 8, 4)), axis=1))
        self.spectra = {
            m: (decaying_gram(m, rng), rng.choice([-1.0, 1.0], m).astype(np.float32))
            for m in ((64, 128) if setting.tiny else (256, 1024))
        }

    def sampled(self, params: Any) -> Any:
        """``sample`` of the completions; traceable."""
        return sample(
            nnx.merge(make_policy(self.policy), params), jnp.asarray(self.ids), jnp.asarray(self.prompt_mask),
            jax.random.key(1), group_size=GROUP, config=SamplingConfig(max_new_tokens=self.unit),
            stop_ids=(self.policy.vocab_size,), pad_id=0,  # an id that is never drawn
        )  # fmt: skip


def _parameters(policy: TransformerConfig, key: jax.Array) -> Any:
    """Random parameters with biases that are not zero, and logits of standard deviation 3: some tokens are likely."""
    params = init_params(policy, key)
    params["embedding"] *= 3.0
    for i, name in enumerate(("q_bias", "k_bias", "v_bias")):
        like = params["layers"][name]
        params["layers"][name] = jax.random.normal(jax.random.fold_in(key, i), like.shape)
    return params


def decaying_gram(m: int, rng: np.random.Generator) -> Array:
    """(m, m) float32 with eigenvalues exp(−j / 15): participation ratio 30, relative gaps of 1/15."""
    turned, _ = np.linalg.qr(rng.standard_normal((m, m)))
    return ((turned * np.exp(-np.arange(m) / 15)) @ turned.T).astype(np.float32)


def leaves(tree: Any) -> dict[str, Any]:
    """Arrays of a tree of parameters, by their paths."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def compute(inputs: Inputs) -> dict[str, Array]:
    """Float64 results for the inputs, and the tokens they are for, which the policy draws."""
    tokens = np.asarray(jax.jit(inputs.sampled)(inputs.params).tokens)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), inputs.params)
    whole = np.concatenate([np.repeat(inputs.ids, GROUP, 0), tokens], 1)
    real = [
        reference.Sequence(whole[i, inputs.unit - inputs.prompts[i // GROUP] : inputs.unit + length],
                           inputs.prompts[i // GROUP], weight)
        for i, (length, weight) in enumerate(zip(inputs.completions, ADVANTAGES, strict=True))
    ]  # fmt: skip
    log_probs, entropy, grads = reference.scores(exact, inputs.policy, real)
    found = {"tokens": tokens, "log_probs": np.concatenate(log_probs), "entropy": np.concatenate(entropy)}
    rng = np.random.default_rng(1)
    for name, gradient in leaves(grads).items():
        at = rng.choice(gradient.size, min(ENTRIES, gradient.size), replace=False)
        if name == "embedding":  # half of them of tokens that occur, where most of the gradient is
            some = ENTRIES // 2
            at[:some] = rng.choice(np.concatenate([row.tokens for row in real]), some) * gradient.shape[1]
            at[:some] += rng.integers(0, gradient.shape[1], some)
        found[f"entries/{name}"] = at
        found[f"gradient/{name}"] = gradient.ravel()[at]
    hidden, head = inputs.hidden.astype(np.float64), exact["embedding"].T
    found["targets"] = reference.draw(hidden, head, rng).astype(np.int32)
    found["gram"], found["taken"] = reference.grams(hidden, head, found["targets"], inputs.hidden_mask)
    found["salt"], *of_gram = reference.reweight(found["gram"], inputs.advantages)
    found["k, alpha"] = np.array(of_gram)
    for m, (gram, a) in inputs.spectra.items():
        found[f"salt, m = {m}"], k, _ = reference.reweight(gram.astype(np.float64), a.astype(np.float64))
        found[f"k, m = {m}"] = np.array(k)
    return found | checked(inputs)


def checked(inputs: Inputs) -> dict[str, Array]:
    """A few entries of everything that is made from a seed."""
    made = leaves(inputs.params) | {"hidden": inputs.hidden}
    made |= {f"spectrum {m}": gram for m, (gram, _) in inputs.spectra.items()}
    places = {name: np.linspace(0, x.size - 1, CHECKED).astype(np.int64) for name, x in made.items()}
    return {f"made/{name}": np.asarray(jnp.ravel(x)[places[name]]) for name, x in made.items()}


def held(setting: Setting, inputs: Inputs) -> dict[str, Array]:
    """The results: computed where shapes are tiny, else those of the file.

    Raises:
      ValueError: if the inputs are not those that the file was written for.
      OSError: if there is no such file.
    """
    if setting.tiny:
        return compute(inputs)
    again = "python -m experiments.accelerator.held writes it"
    try:
        found = dict(np.load(FILE))
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{FILE} cannot be read ({error}); {again}") from error
    for name, some in checked(inputs).items():
        if name not in found or not np.allclose(some, found[name], rtol=1e-5, atol=1e-6):
            raise ValueError(f"{FILE.name} is of other inputs ({name}); {again}")
    return found


def main() -> None:
    """Writes the file; nothing is held that a rerun would not give."""
    found = compute(Inputs(Setting(tiny=False, known={}, seconds=0.0)))
    small = {name: x.astype(np.float32) if name.startswith(("gradient/", "made/")) else x for name, x in found.items()}
    np.savez_compressed(FILE, **small)  # type: ignore[arg-type]
    print(f"wrote {FILE}, {FILE.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
