"""Tiny checkpoints: models of transformers with every parameter random, and folders written without torch."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from salt_jax.learner.state import make_policy
from salt_jax.models.hf_config import write_config
from salt_jax.models.hf_tensors import expected_shapes
from salt_jax.policy.layers import TransformerConfig

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

# model type, and what differs from SIZES; head_dim is 4 where it is derived
MODELS = {
    "llama": ("llama", {"rms_norm_eps": 1e-5}),
    "llama-tied-wide-heads": ("llama", {"tie_word_embeddings": True, "head_dim": 6, "rope_theta": 500.0}),
    "llama-one-head-each": ("llama", {"num_key_value_heads": None}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 100.0, "head_dim": 8}),
    "qwen2": ("qwen2", {"rope_theta": 1e6}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2-yarn": ("qwen2", {"rope_scaling": YARN, "rope_theta": 100.0, "hidden_size": 32}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3-tied": ("qwen3", {"head_dim": 6, "tie_word_embeddings": True}),
    "qwen3-yarn": ("qwen3", {"head_dim": 8, "rope_scaling": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7,
                                                                    "truncate": False, "beta_fast": 8.0}}),
}  # fmt: skip


@functools.cache
def torch_model(name: str):
    """The model of transformers, float32: kernels about 1/sqrt(fan-in) large, biases and norms random too."""
    import torch
    import transformers

    kind, changes = MODELS[name]
    changes = json.loads(json.dumps(changes))  # transformers writes into what it is given
    config = transformers.AutoConfig.for_model(kind, **(SIZES | changes), bos_token_id=None, eos_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.3 * noise if "norm" in key else noise * (0.5 if value.ndim == 1 else 0.3))
    return model


def save(model, folder: Path, **settings) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **settings)
    return folder


def torch_logits(model, tokens, mask) -> np.ndarray:
    """Positions count real tokens, as ``generate`` counts them; ``forward`` alone would count padding too."""
    import torch

    mask = torch.from_numpy(np.array(mask))
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        tokens = torch.from_numpy(np.array(tokens)).long()
        return model(tokens, attention_mask=mask.long(), position_ids=positions).logits.float().numpy()


def our_logits(checkpoint, tokens, mask) -> np.ndarray:
    model = nnx.merge(make_policy(checkpoint.config), checkpoint.load())
    return np.asarray(jax.jit(lambda t, m: model(t, m))(jnp.asarray(tokens), jnp.asarray(mask)))


def rows(vocab: int, length: int, padding: int = 5):
    """Two rows of tokens, the second left-padded."""
    tokens = np.random.default_rng(1).integers(0, vocab, (2, length)).astype(np.int32)
    mask = np.ones((2, length), bool)
    mask[1, :padding] = False
    return tokens, mask


TINY = TransformerConfig(vocab_size=24, d_model=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12,
                         tied_embeddings=False)  # fmt: skip


def random_tensors(config: TransformerConfig, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in expected_shapes(config).items()}


def write_checkpoint(folder: Path, raw=None, tensors=None, config=TINY) -> Path:
    """A Hugging Face folder without torch."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(write_config(config) if raw is None else raw))
    save_file(random_tensors(config) if tensors is None else tensors, folder / "model.safetensors")
    return folder
