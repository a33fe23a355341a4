"""A pretrained model in miniature: a fast tokenizer of a few words, and a Hugging Face folder with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import transformers

from salt_jax.models.hf import export
from salt_jax.policy.layers import TransformerConfig
from salt_jax.tasks.hf_tokenizer import PretrainedTokenizer
from tests.training_setup import policy_and_params

SPECIAL = ("<pad>", "<end>", "<user>", "<system>", "<assistant>")
WORDS = (*SPECIAL, "one", "two", "plus", " ", "?", "<other-end>")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if loud is defined and loud %}?{% endif %}"
)
CONFIG = TransformerConfig(
    vocab_size=len(WORDS), d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=12,
    tied_embeddings=False,
)  # fmt: skip


def fast_tokenizer(template: str | None = TEMPLATE, words: int = len(WORDS), **special: str | None) -> Any:
    """A tokenizer of WORDS, and of more where more are wanted, as transformers makes it, without files."""
    vocabulary = [*WORDS, *(f"w{i}" for i in range(words - len(WORDS)))]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([word for word in WORDS if word.startswith("<")])
    named = {"eos_token": "<end>", "pad_token": "<pad>"} | special
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    fast.chat_template = template
    return fast


def model_folder(folder: Path, config: TransformerConfig = CONFIG) -> Path:
    """Writes config.json, safetensors (float32) and the tokenizer to a new folder, and returns it."""
    export(policy_and_params(config)[1], config, folder, dtype="float32")
    PretrainedTokenizer(fast_tokenizer()).save(folder)
    return folder
