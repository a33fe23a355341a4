"""Hugging Face's config.json to ``TransformerConfig`` and back, for the architectures that the decoder is.

What the decoder does not compute is refused, never ignored: a checkpoint that opens is computed as its authors do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.rope import KINDS, RopeScaling
from salt_jax.tasks.json_values import (
    FLAG,
    NUMBER,
    OBJECT,
    SIZE,
    TEXT,
    TEXTS,
    TOKEN_IDS,
    check_values,
    list_of,
    need,
    number,
    shown,
    whole,
)  # fmt: skip

# How the parameters are used; everything else in a TransformerConfig is what the checkpoint says.
OVERRIDES = ("compute_dtype", "scan_layers", "attention", "remat")

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
GENERATION = "generation_config.json"

# Every key of config.json that is read; others change nothing that the three architectures compute.
_KEYS = {
    "model_type": TEXT, "architectures": list_of(TEXT, "a list of texts", or_one=True), "hidden_act": TEXT,
    "vocab_size": SIZE, "hidden_size": SIZE, "intermediate_size": SIZE, "num_hidden_layers": SIZE,
    "num_attention_heads": SIZE, "num_key_value_heads": SIZE, "head_dim": SIZE,
    "rms_norm_eps": number(0.0), "tie_word_embeddings": FLAG, "attention_bias": FLAG, "mlp_bias": FLAG,
    "quantization_config": OBJECT, "compression_config": OBJECT, "torch_dtype": TEXT, "dtype": TEXT,
    "layer_types": TEXTS, "sliding_window": whole(), "use_sliding_window": FLAG, "max_window_layers": whole(0),
    "partial_rotary_factor": NUMBER, "rope_theta": number(above=0.0), "rope_scaling": OBJECT, "rope_parameters": OBJECT,
    "max_position_embeddings": SIZE, "original_max_position_embeddings": SIZE, "eos_token_id": TOKEN_IDS,
    **dict.fromkeys(("bos_token_id", "pad_token_id"), list_of(whole(), "a token id", or_one=True)),  # of the tokenizer
}  # fmt: skip

# Keys of rope_parameters (transformers 5) or rope_scaling (before it).
ROPE = {
    "rope_type": TEXT, "type": TEXT, "rope_theta": number(above=0.0), "partial_rotary_factor": NUMBER,
    "factor": NUMBER, "original_max_position_embeddings": SIZE,
    "low_freq_factor": NUMBER, "high_freq_factor": NUMBER, "beta_fast": NUMBER, "beta_slow": NUMBER,
    "attention_factor": number(0.0), "mscale": number(0.0), "mscale_all_dim": number(0.0), "truncate": FLAG,
}  # fmt: skip
_ROPE_OF_ALL = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# Those that each kind reads besides.
_ROPE_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
             "mscale_all_dim", "truncate"),
}  # fmt: skip
# Those that stand there in published files and that no kind computes with: a note on the training, lengths.
_ROPE_FACTORS = ("factor", "attn_factor", "extrapolation_factor")  # 1 says nothing, where a kind does not read it
_ROPE_NOTES = ("finetuned", "original_max_position_embeddings", "max_position_embeddings")


def read_config(raw: Mapping[str, Any], where: str, **overrides: Any) -> TransformerConfig:
    """The configuration that config.json describes.

    Args:
      raw: its object, in the spelling of transformers 4 or 5.
      where: what messages call it.
      **overrides: any of ``OVERRIDES``.

    Raises:
      ValueError: naming the key, what it holds and what is allowed.

    Example:
      >>> tiny = dict(model_type="qwen2", vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
      ...             intermediate_size=16, tie_word_embeddings=True)
      >>> config = read_config(tiny, "config.json", compute_dtype="bfloat16")
      >>> config.head_dim, config.qkv_bias, config.rope_theta, config.compute_dtype
      (4, True, 10000.0, 'bfloat16')
    """
    if unknown := sorted(overrides.keys() - set(OVERRIDES)):
        raise ValueError(f"{unknown[0]} is the checkpoint's own; what can be chosen is {', '.join(OVERRIDES)}")
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ValueError(f"{where}: model_type must be one of {', '.join(ARCHITECTURES)}, got {shown(kind)}")
    values = check_values(raw, _KEYS, where)
    rope, of = _rope_object(values, where)
    _refuse(values, rope, where)

    def size(key: str) -> int:
        return need(values, _KEYS, key, where)

    width, heads, layers = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
    on = values.get("num_key_value_heads", heads)
    if heads % on:
        raise ValueError(f"{where}: num_key_value_heads must divide num_attention_heads, got {on} and {heads}")
    head_dim = values.get("head_dim") or (128 if kind == "qwen3" else width // heads)
    if head_dim < 1 or head_dim % 2:
        raise ValueError(f"{where}: head_dim must be even and >= 2, got {head_dim}")
    theta, scaling = _rope(values, rope, where, of)
    config = TransformerConfig(
        vocab_size=size("vocab_size"), d_model=width, num_layers=layers, num_heads=heads, num_kv_heads=on,
        head_dim=head_dim, mlp_dim=size("intermediate_size"), rope_theta=theta, rope_scaling=scaling,
        rms_norm_eps=values.get("rms_norm_eps", 1e-6), qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3",
        tied_embeddings=values.get("tie_word_embeddings", False),
    )  # fmt: skip
    try:
        return dataclasses.replace(config, **overrides)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _refuse(values: Mapping[str, Any], rope: Mapping[str, Any], where: str) -> None:
    """Raises for what the decoder has no place for."""
    kind = values["model_type"]
    wanted = [ARCHITECTURES[kind]]
    for key in ("quantization_config", "compression_config"):
        if values.get(key):
            raise ValueError(f"{where}: {key} must be absent: dequantise first, got {shown(values[key])}")
    # the fourth bias of attention_bias, on its output, has no parameter here; Qwen2's three have, whatever the key says
    biased = values.get("attention_bias", False) and kind != "qwen2"
    partial = [given["partial_rotary_factor"] for given in (values, rope) if given.get("partial_rotary_factor", 1) != 1]
    sliding = _sliding_layers(values)
    for key, value, fits, allowed in (
        ("architectures", values.get("architectures"), values.get("architectures") in (None, [], wanted), f"{wanted}"),
        ("hidden_act", values.get("hidden_act"), values.get("hidden_act", "silu") in ("silu", "swish"), "'silu'"),
        ("attention_bias", biased, not biased, "false: the decoder has no o_proj.bias"),
        ("mlp_bias", True, not values.get("mlp_bias", False), "false"),
        ("partial_rotary_factor", max(partial, default=1), not partial, "1: whole heads are rotated"),
        ("layer_types", sliding, not sliding, "'full_attention' in every layer: no sliding window"),
    ):
        if not fits:
            raise ValueError(f"{where}: {key} must be {allowed}, got {shown(value)}")


def _sliding_layers(values: Mapping[str, Any]) -> list[str]:
    """The kinds of layers other than full attention, from layer_types or from the keys that came before it."""
    if values.get("layer_types"):
        return sorted(set(values["layer_types"]) - {"full_attention"})
    slides = "sliding_window" in values and values.get("use_sliding_window", values["model_type"] == "llama")
    if values["model_type"] in ("qwen2", "qwen3"):  # there layers from max_window_layers on slide, if any
        slides = slides and values.get("max_window_layers", 28) < values.get("num_hidden_layers", 0)
    return ["sliding_attention"] if slides else []


def _rope_object(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """What rope_parameters (transformers 5) or rope_scaling holds, rope_type always among it, and which of the two."""
    found = {}
    for key in ("rope_scaling", "rope_parameters"):
        raw = values.get(key) or {}
        rope = {k: v for k, v in raw.items() if v is not None} | check_values(raw, ROPE, where, f"{key}.")
        older = rope.pop("type", "default")
        if rope.setdefault("rope_type", older) != older and "type" in raw and raw["type"] is not None:
            both = f"{shown(rope['rope_type'])} and {shown(older)}"
            raise ValueError(f"{where}: {key}.rope_type and {key}.type differ, {both}; keep one")
        found[key] = rope
    old, new = found["rope_scaling"], found["rope_parameters"]
    if values.get("rope_scaling") and values.get("rope_parameters"):
        theta = ("rope_theta",)
        if {k: v for k, v in old.items() if k not in theta} != {k: v for k, v in new.items() if k not in theta}:
            raise ValueError(f"{where}: rope_scaling and rope_parameters differ; keep one")
    used = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    thetas = [rope["rope_theta"] for rope in (values, old, new) if "rope_theta" in rope]
    if len(set(thetas)) > 1:
        raise ValueError(f"{where}: rope_theta stands twice and differs, {thetas[0]:g} and {thetas[-1]:g}; keep one")
    return found[used] | ({"rope_theta": thetas[0]} if thetas else {}), used


def _rope(
    values: Mapping[str, Any], rope: Mapping[str, Any], where: str, of: str
) -> tuple[float, RopeScaling | None]:
    """Base and scaling."""
    theta, kind = rope.get("rope_theta", 10_000.0), rope["rope_type"]
    if kind != "default" and kind not in KINDS:
        raise ValueError(f"{where}: {of}: rope_type must be one of default, {', '.join(KINDS)}, got {shown(kind)}")
    known = _ROPE_KEYS.get(kind, ())
    neutral = {key for key in _ROPE_FACTORS if key not in known and rope.get(key) == 1}
    if unknown := sorted(rope.keys() - {*known, *_ROPE_OF_ALL, *_ROPE_NOTES, *neutral}):
        its = ", ".join(known) or "nothing more"
        raise ValueError(f"{where}: {of}: rope_type {kind!r} has no {_name(unknown[0])}; it has {its}")
    if kind == "default":
        return theta, None
    given = {key: rope[key] for key in known if key in rope}
    key = "original_max_position_embeddings"
    if key in known:  # as transformers: the top level's, the object's, the longest
        if values.get(key, rope.get(key)) != rope.get(key, values.get(key)):
            raise ValueError(f"{where}: {key} is {values[key]}, and {rope[key]} in {of}; keep one")
        given[key] = values.get(key, rope.get(key, values.get("max_position_embeddings")))
    if "factor" not in given:
        raise ValueError(f"{where}: {of}: rope_type {kind!r} needs factor")
    try:
        scaling = RopeScaling(kind, **given)
    except ValueError as error:
        raise ValueError(f"{where}: {of}: {error}") from None
    try:
        scaling.multipliers(2, theta)  # logarithms and quotients of what the file holds
    except (ValueError, ArithmeticError) as error:
        holds = f"rope_theta {theta:g} and {shown(given)}"
        raise ValueError(f"{where}: {of}: no frequencies can be computed of {holds}: {error}") from None
    return theta, scaling


def _name(key: str) -> str:
    return key if key.isprintable() else shown(key)


def write_config(config: TransformerConfig) -> dict[str, Any]:
    """A config.json for parameters that came without one; the inverse of ``read_config``.

    q/k norms make a qwen3, biases a qwen2, neither a llama: what their code computes is what ``config`` says.
    max_position_embeddings is written where a scaling tells it, and is else the reader's default.

    Raises:
      ValueError: for q/k norms and biases together, which no such architecture has.

    Example:
      >>> config = TransformerConfig(vocab_size=16, d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4,
      ...                            mlp_dim=16, qk_norm=True)
      >>> write_config(config)["model_type"], read_config(write_config(config), "config.json") == config
      ('qwen3', True)
    """
    if config.qk_norm and config.qkv_bias:
        raise ValueError("qk_norm with qkv_bias is no architecture of Hugging Face's: it cannot be exported")
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    raw |= {"attention_bias": False, "mlp_bias": False} if kind == "llama" else {"use_sliding_window": False}
    if scaling := config.rope_scaling:
        given = {key: getattr(scaling, key) for key in _ROPE_KEYS[scaling.kind]}
        raw["rope_scaling"] = {"rope_type": scaling.kind} | {k: v for k, v in given.items() if v is not None}
        if scaling.original_max_position_embeddings:
            raw["max_position_embeddings"] = int(scaling.factor * scaling.original_max_position_embeddings)
    return raw


def same_model(a: TransformerConfig, b: TransformerConfig) -> str | None:
    """The first field, ``OVERRIDES`` aside, in which two configurations differ, for a message; None if none does."""
    for field in dataclasses.fields(a):
        mine, theirs = getattr(a, field.name), getattr(b, field.name)
        if field.name not in OVERRIDES and mine != theirs:
            return f"{field.name} is {mine!r} and {theirs!r}"
    return None


def read_stop_ids(folder: Path, raw: Mapping[str, Any], generation: Mapping[str, Any], vocab: int) -> tuple[int, ...]:
    """The ids that end a generation: generation_config.json's eos_token_id, else config.json's; () if neither has any.

    Args:
      folder: of the two files, or the GGUF file, for messages.
      raw: what config.json holds.
      generation: what generation_config.json holds.
      vocab: the ids of the model are below it.

    Raises:
      ValueError: for what is no id, or an id that the model does not have, naming the file.

    Example:
      >>> read_stop_ids(Path("a"), {"eos_token_id": 2}, {"eos_token_id": [7, 2]}, 8)
      (7, 2)
      >>> read_stop_ids(Path("a"), {"eos_token_id": 8}, {}, 8)
      Traceback (most recent call last):
      ValueError: a/config.json: eos_token_id 8 is outside the model's vocabulary of 8: ids are 0 to 7
    """
    for name, content in ((GENERATION, generation), ("config.json", raw)):
        where = str(folder if folder.is_file() else folder / name)
        ids = check_values(content, {"eos_token_id": TOKEN_IDS}, where).get("eos_token_id")
        if outside := [i for i in ids or () if i >= vocab]:
            ids_are = f"ids are 0 to {vocab - 1}"
            raise ValueError(
                f"{where}: eos_token_id {outside[0]} is outside the model's vocabulary of {vocab}: {ids_are}"
            )
        if ids:
            return tuple(ids)
    return ()
