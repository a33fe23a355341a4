"""Checkpoints that must not open: one line that names what is wrong, before any tensor is read."""

import contextlib
import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from salt_jax.policy.hf import open_checkpoint
from salt_jax.policy.hf_config import write_config
from salt_jax.policy.hf_tensors import Safetensors
from salt_jax.tasks.paths import LFS
from tests import hf_checkpoints as setup
from tests.hf_checkpoints import TINY

GATE, UP = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
QWEN2 = dataclasses.replace(TINY, qkv_bias=True)
QWEN3 = dataclasses.replace(TINY, qk_norm=True)


@pytest.fixture(autouse=True)
def _no_data_is_read(monkeypatch):
    def read(self, name, index):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Safetensors, "read", read)


def complaint(path, **overrides) -> str:
    with pytest.raises(ValueError) as error:
        open_checkpoint(path, **overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def rename(tensors, name, new):
    tensors[new] = tensors.pop(name)


TENSORS = {
    "missing": (lambda t: t.pop(GATE), f"tensor {GATE} (12, 8) is missing"),
    "missing-head": (lambda t: t.pop("lm_head.weight"), "tensor lm_head.weight (24, 8) is missing"),
    "extra": (
        lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": np.zeros(8, np.float32)}),
        "tensor model.layers.0.self_attn.o_proj.bias (8,) has no place in this model, whose nearest is "
        "model.layers.0.self_attn.o_proj.weight (8, 8)",
    ),
    "extra-layer": (
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.zeros((12, 8), np.float32)}),
        "tensor model.layers.2.mlp.up_proj.weight (12, 8) has no place",
    ),
    "renamed": (
        lambda t: rename(t, GATE, "model.layers.1.mlp.gate.weight"),
        f"tensor {GATE} (12, 8) is missing; there is model.layers.1.mlp.gate.weight (12, 8) instead",
    ),
    "wrong-shape": (
        lambda t: t.update({UP: np.zeros((12, 9), np.float32)}),
        f"tensor {UP} must have shape (12, 8), got (12, 9)",
    ),
    "transposed": (
        lambda t: t.update({UP: np.ascontiguousarray(t[UP].T)}),
        f"tensor {UP} must have shape (12, 8), got (8, 12)",
    ),
    "integers": (
        lambda t: t.update({UP: np.zeros((12, 8), np.int8)}),
        f"tensor {UP} must be one of F32, BF16, F16, got I8",
    ),
    "float8": (
        lambda t: t.update({UP: np.zeros((12, 8), ml_dtypes.float8_e4m3fn)}),
        f"tensor {UP} must be one of F32, BF16, F16, got F8_E4M3",
    ),
}


@pytest.mark.parametrize(("change", "expected"), TENSORS.values(), ids=TENSORS)
def test_a_wrong_tensor_is_named(change, expected, tmp_path):
    tensors = setup.random_tensors(TINY)
    change(tensors)
    assert complaint(setup.write_checkpoint(tmp_path, tensors=tensors)).startswith(f"{tmp_path}: {expected}")


CONFIGS = {
    "mistral": (TINY, {"model_type": "mistral"}, "model_type must be one of llama, qwen2, qwen3, got 'mistral'"),
    "no-type": (TINY, {"model_type": None}, "model_type must be one of llama, qwen2, qwen3, got None"),
    "classifier": (TINY, {"architectures": ["LlamaForSequenceClassification"]}, r"architectures must be \['LlamaFor"),
    "gelu": (TINY, {"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
    "o-bias": (TINY, {"attention_bias": True}, "attention_bias must be false: the decoder has no o_proj.bias"),
    "qwen3-bias": (QWEN3, {"attention_bias": True}, "attention_bias must be false"),
    "mlp-bias": (TINY, {"mlp_bias": True}, "mlp_bias must be false, got True"),
    "quantised": (TINY, {"quantization_config": {"bits": 4}}, "quantization_config must be absent"),
    "partial": (TINY, {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1: whole heads .* got 0.5"),
    "partial-5": (TINY, {"rope_theta": None, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
                  "partial_rotary_factor must be 1"),
    "llama-slides": (TINY, {"sliding_window": 4096}, "layer_types must be 'full_attention' in every layer"),
    "qwen2-slides": (QWEN2, {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
                     r"no sliding window, got \['sliding_attention'\]"),
    "layer-types": (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must be"),
    "dynamic": (TINY, {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
                "rope_type must be one of default, linear, llama3, yarn, got 'dynamic'"),
    "longrope": (TINY, {"rope_scaling": {"rope_type": "longrope"}}, "rope_type must be one of"),
    "mrope": (TINY, {"rope_scaling": {"type": "default", "mrope_section": [1, 1]}}, "'default' has no mrope_section"),
    "no-factor": (TINY, {"rope_scaling": {"type": "linear"}}, "rope_type 'linear' needs factor"),
    "factor-0": (TINY, {"rope_scaling": {"type": "linear", "factor": 0.0}}, "factor must be >= 1, got 0.0"),
    "both-ropes": (TINY, {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 1.0}},
                   "rope_scaling and rope_parameters differ"),
    "no-width": (TINY, {"hidden_size": None}, "hidden_size must be a whole number >= 1, got None"),
    "text": (TINY, {"num_hidden_layers": "2"}, "num_hidden_layers must be a whole number >= 1, got '2'"),
    "heads": (TINY, {"num_key_value_heads": 3}, "num_kv_heads=3 must divide num_heads=2"),
    "eps": (TINY, {"rms_norm_eps": "small"}, "rms_norm_eps must be a number, got 'small'"),
    "stop": (TINY, {"eos_token_id": "</s>"}, "eos_token_id must be a token id or a list of them, got '</s>'"),
    "wrong-layers": (TINY, {"num_hidden_layers": 3}, r"tensor model.layers.2.input_layernorm.weight \(8,\) is missing"),
    "wrong-heads": (TINY, {"head_dim": 8}, r"k_proj.weight must have shape \(8, 8\), got \(4, 8\)"),
    "vocabulary": (TINY, {"vocab_size": 25}, r"model.embed_tokens.weight must have shape \(25, 8\), got \(24, 8\)"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "change", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_a_wrong_config_is_named(config, change, expected, tmp_path):
    raw = {key: value for key, value in (write_config(config) | change).items() if value is not None}
    tensors = setup.random_tensors(config)
    with pytest.raises(ValueError, match=expected) as error:
        open_checkpoint(setup.write_checkpoint(tmp_path, raw, tensors))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_window_that_no_layer_uses_is_fine(tmp_path):
    raw = write_config(QWEN2) | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}
    assert open_checkpoint(setup.write_checkpoint(tmp_path, raw, setup.random_tensors(QWEN2))).config == QWEN2


def test_a_file_that_is_cut_off(tmp_path):
    path = setup.write_checkpoint(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    ends = {name: start + facts["data_offsets"][1] for name, facts in json.loads(whole[8:start]).items()}
    last = max(ends, key=ends.get)
    path.write_bytes(whole[:-1])
    assert complaint(tmp_path) == (
        f"{path} is cut off: tensor {last} ends at byte {len(whole)}, the file at {len(whole) - 1}"
    )
    path.write_bytes(whole[: min(ends.values()) - 1])
    assert f"tensor {min(ends, key=ends.get)} ends" in complaint(tmp_path)
    for size in (0, 7, 8, start - 1):
        path.write_bytes(whole[:size])
        assert "is cut off within its header" in complaint(tmp_path)
    path.write_bytes(whole[:8] + b"x" * (len(whole) - 8))
    assert "is not a safetensors file" in complaint(tmp_path)
    path.write_bytes(whole + b"more")
    assert "is not a safetensors file" in complaint(tmp_path)
    path.write_bytes(LFS + b"/v1\noid sha256:4d7a\nsize 12345\n")
    assert complaint(tmp_path) == f"{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"


@given(at=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_header_is_a_value_error_or_changes_nothing(at, value, cut, tmp_path_factory):
    folder = setup.write_checkpoint(tmp_path_factory.mktemp("damaged"))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[int(at * (header - 1))] = value
    path.write_bytes(content[:header] if cut else content)
    with contextlib.suppress(ValueError):  # anything else fails
        assert open_checkpoint(folder).config == TINY
        assert not cut


@pytest.fixture
def sharded(tmp_path):
    """Two files and their index."""
    tensors = setup.random_tensors(TINY)
    (tmp_path / "config.json").write_text(json.dumps(write_config(TINY)))
    names = {"a.safetensors": list(tensors)[:5], "b.safetensors": list(tensors)[5:]}
    for file, held in names.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in names.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path, index["weight_map"]


def test_a_wrong_index(sharded):
    folder, weight_map = sharded
    path = folder / "model.safetensors.index.json"
    assert open_checkpoint(folder).config == TINY

    def with_map(changed):
        path.write_text(json.dumps({"weight_map": changed}))
        return complaint(folder)

    held = next(name for name, file in weight_map.items() if file == "b.safetensors")
    assert f"holds tensor {held} and a.safetensors does not" in with_map(weight_map | {held: "a.safetensors"})
    without = {name: file for name, file in weight_map.items() if name != held}
    assert f"holds tensor {held} and model.safetensors.index.json for b" in with_map(without)
    missing = with_map(weight_map | {held: "c.safetensors"})
    assert missing == f"{folder}: {path.name} names c.safetensors, which holds {held}, and there is no such file"
    assert "must be in a file of this folder, got '../b" in with_map(weight_map | {held: "../b.safetensors"})
    assert "weight_map must name" in with_map({})
    path.write_text("{")
    assert "is not JSON" in complaint(folder)


def test_a_folder_without_weights(tmp_path):
    folder = setup.write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert complaint(folder) == f"{folder} has no weights: neither model.safetensors nor model.safetensors.index.json"
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin only, which is a pickle; convert it" in complaint(folder)
    assert "save_pretrained" in complaint(folder)


def test_what_is_no_checkpoint(tmp_path):
    assert "does not exist" in complaint(tmp_path / "nowhere")
    assert complaint(tmp_path) == f"{tmp_path} has no config.json"
    (tmp_path / "config.json").write_text("[1]")
    assert "must hold a JSON object, got list" in complaint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": llama}')
    assert "config.json is not JSON" in complaint(tmp_path)
    assert "is not a GGUF file" in complaint(tmp_path / "config.json")
    (tmp_path / "policy.json").write_text('{"config": {"vocab_size": 3}}')
    assert "policy.json: " in complaint(tmp_path)


def test_steps_are_of_workdirs(tmp_path):
    folder = setup.write_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="is not a run's workdir: it has no step 3"):
        open_checkpoint(folder, step=3)
