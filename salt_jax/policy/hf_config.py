"""Hugging Face's config.json to ``TransformerConfig`` and back, for the architectures that the decoder is.

What the decoder does not compute is refused, never ignored: a checkpoint that opens is computed as its authors do.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.rope import KINDS, RopeScaling

# How the parameters are used; everything else in a TransformerConfig is what the checkpoint says.
OVERRIDES = ("compute_dtype", "scan_layers", "attention", "remat")

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Keys of rope_parameters (transformers 5) or rope_scaling (before it) that each kind reads.
_ROPE_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
             "mscale_all_dim", "truncate"),
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ValueError: if there is none, naming the file and the line.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}") from None
    except ValueError as error:  # bad JSON and bad UTF-8
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


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
    if kind not in ARCHITECTURES:
        raise ValueError(f"{where}: model_type must be one of {', '.join(ARCHITECTURES)}, got {kind!r}")
    _refuse(raw, kind, where)
    width, heads = _size(raw, "hidden_size", where), _size(raw, "num_attention_heads", where)
    head_dim = raw.get("head_dim") or (128 if kind == "qwen3" else width // heads)
    theta, scaling = _rope(raw, where)
    try:
        return TransformerConfig(
            vocab_size=_size(raw, "vocab_size", where),
            d_model=width,
            num_layers=_size(raw, "num_hidden_layers", where),
            num_heads=heads,
            num_kv_heads=_size(raw, "num_key_value_heads", where, default=heads),
            head_dim=_size({"head_dim": head_dim}, "head_dim", where),
            mlp_dim=_size(raw, "intermediate_size", where),
            rope_theta=theta,
            rope_scaling=scaling,
            rms_norm_eps=_number(raw.get("rms_norm_eps", 1e-6), "rms_norm_eps", where),
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            **overrides,
        )
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(where) else f"{where}: {message}") from None


def _size(raw: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}: {key} must be a whole number >= 1, got {value!r}")
    return value


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {key} must be a number, got {value!r}")
    return float(value)


def _refuse(raw: Mapping[str, Any], kind: str, where: str) -> None:
    """Raises for what the decoder has no place for."""
    wanted = [ARCHITECTURES[kind]]
    rope = {**(raw.get("rope_parameters") or {}), **(raw.get("rope_scaling") or {})}
    only: tuple[tuple[str, Any, Callable[[Any], bool], str], ...] = (
        ("architectures", raw.get("architectures"), lambda v: not v or v == wanted, f"{wanted}"),
        ("hidden_act", raw.get("hidden_act", "silu"), lambda v: v == "silu", "'silu'"),
        # its fourth bias, on the attention's output, has no parameter here; Qwen2's three have, whatever the key says
        ("attention_bias", raw.get("attention_bias"), lambda v: not v or kind == "qwen2",
         "false: the decoder has no o_proj.bias"),
        ("mlp_bias", raw.get("mlp_bias"), lambda v: not v, "false"),
        ("quantization_config", raw.get("quantization_config"), lambda v: not v, "absent: dequantise first"),
        ("partial_rotary_factor", raw.get("partial_rotary_factor", rope.get("partial_rotary_factor")),
         lambda v: v is None or v == 1, "1: whole heads are rotated"),
        ("layer_types", _sliding_layers(raw), lambda v: not v, "'full_attention' in every layer: no sliding window"),
    )  # fmt: skip
    for key, value, fits, allowed in only:
        if not fits(value):
            raise ValueError(f"{where}: {key} must be {allowed}, got {value!r}")


def _sliding_layers(raw: Mapping[str, Any]) -> list[str]:
    """The kinds of layers other than full attention, from layer_types or from the keys that came before it."""
    if raw.get("layer_types"):
        return sorted(set(raw["layer_types"]) - {"full_attention"})
    slides = raw.get("sliding_window") is not None
    if raw["model_type"] in ("qwen2", "qwen3"):  # there layers from max_window_layers on slide, if any
        slides = slides and bool(raw.get("use_sliding_window"))
        slides = slides and raw.get("max_window_layers", 28) < (raw.get("num_hidden_layers") or 0)
    return ["sliding_attention"] if slides else []


def _rope(raw: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from rope_parameters (transformers 5) or rope_theta and rope_scaling."""
    old, new = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
    if old and new and old != new:
        raise ValueError(f"{where}: rope_scaling and rope_parameters differ; keep one")
    rope = old or new
    if not isinstance(rope, dict):
        raise ValueError(f"{where}: rope_parameters must be an object, got {rope!r}")
    theta = _number(rope.get("rope_theta", raw.get("rope_theta", 10_000.0)), "rope_theta", where)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" and kind not in KINDS:
        raise ValueError(f"{where}: rope_type must be one of default, {', '.join(KINDS)}, got {kind!r}")
    values = {key: value for key, value in rope.items() if value is not None}
    for key in ("rope_theta", "rope_type", "type", "partial_rotary_factor"):
        values.pop(key, None)
    known = _ROPE_KEYS.get(kind, ())
    if unknown := sorted(values.keys() - set(known)):
        its = ", ".join(known) or "nothing more"
        raise ValueError(f"{where}: rope_type {kind!r} has no {unknown[0]}; it has {its}")
    if kind == "default":
        return theta, None
    if "original_max_position_embeddings" in known:  # as transformers: the top level's, the object's, the longest
        outer, longest = raw.get("original_max_position_embeddings"), raw.get("max_position_embeddings")
        original = outer or values.get("original_max_position_embeddings", longest)
        values["original_max_position_embeddings"] = original
    if "factor" not in values:
        raise ValueError(f"{where}: rope_type {kind!r} needs factor")
    try:
        return theta, RopeScaling(kind, **values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


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


def read_stop_ids(raw: Mapping[str, Any], generation: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The ids that end a generation: generation_config.json's eos_token_id, else config.json's; () if neither has any.

    Example:
      >>> read_stop_ids({"eos_token_id": 2}, {"eos_token_id": [7, 2]}, "here"), read_stop_ids({}, {}, "here")
      ((7, 2), ())
    """
    ids = generation.get("eos_token_id")
    ids = raw.get("eos_token_id") if ids is None else ids
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    for value in ids:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{where}: eos_token_id must be a token id or a list of them, got {value!r}")
    return tuple(ids)
