"""Checkpoints that must not open: one line that names what is wrong, before any tensor is read."""

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from salt_jax.models import hf_tensors
from salt_jax.models.hf import open_checkpoint
from salt_jax.models.hf_config import _KEYS, ROPE, read_config, read_stop_ids, same_model, write_config
from salt_jax.models.hf_tensors import TensorFacts, check, expected_shapes
from salt_jax.models.policy_folder import policy_text, read_policy
from salt_jax.models.safetensors_folder import Safetensors
from salt_jax.policy.rope import RopeScaling
from salt_jax.tasks.paths import LFS
from tests import hf_checkpoints as setup
from tests.hf_checkpoints import TINY

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
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
    "heads": (TINY, {"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads, got 3 and 2"),
    "no-heads": (TINY, {"num_attention_heads": 16, "head_dim": None}, "head_dim must be even and >= 2, got 0"),
    "eps": (TINY, {"rms_norm_eps": "small"}, "rms_norm_eps must be a finite number >= 0, got 'small'"),
    "eps-text": (TINY, {"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a finite number >= 0, got '1e-6'"),
    "eps-nan": (TINY, {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number >= 0, got nan"),
    "theta-0": (TINY, {"rope_theta": 0}, "rope_theta must be a finite number > 0, got 0"),
    "half-a-layer": (TINY, {"num_hidden_layers": 2.5}, "num_hidden_layers must be a whole number >= 1, got 2.5"),
    "true-heads": (TINY, {"num_attention_heads": True}, "num_attention_heads must be a whole number >= 1, got True"),
    "type-list": (TINY, {"model_type": ["llama"]}, r"model_type must be one of .*, got \['llama'\]"),
    "architectures": (TINY, {"architectures": {"a": 1}}, "architectures must be a list of texts, got {'a': 1}"),
    "act-object": (TINY, {"hidden_act": {"name": "silu"}}, "hidden_act must be a text, got {'name'"),
    "tied-text": (TINY, {"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, got 'false'"),
    "window-text": (QWEN2, {"use_sliding_window": "no"}, "use_sliding_window must be true or false, got 'no'"),
    "max-window": (QWEN2, {"max_window_layers": "28"}, "max_window_layers must be a whole number >= 0, got '28'"),
    "window": (TINY, {"sliding_window": [4096]}, r"sliding_window must be a whole number, got \[4096\]"),
    "layer-text": (QWEN3, {"layer_types": "full_attention"}, "layer_types must be a list of texts, got 'full_att"),
    "layer-lists": (QWEN3, {"layer_types": [["full_attention"]]}, "layer_types must be a list of texts, got"),
    "quant-text": (TINY, {"quantization_config": "int8"}, "quantization_config must be an object, got 'int8'"),
    "dtype": (TINY, {"torch_dtype": 16}, "torch_dtype must be a text, got 16"),
    "rope-text": (TINY, {"rope_scaling": "linear"}, "rope_scaling must be an object, got 'linear'"),
    "rope-list": (TINY, {"rope_scaling": [2.0]}, r"rope_scaling must be an object, got \[2.0\]"),
    "rope-number": (TINY, {"rope_parameters": 2.0}, "rope_parameters must be an object, got 2.0"),
    "rope-type": (TINY, {"rope_scaling": {"rope_type": []}}, r"rope_scaling.rope_type must be a text, got \[\]"),
    "rope-factor": (TINY, {"rope_parameters": {"type": "linear", "factor": "2"}},
                    "rope_parameters.factor must be a finite number, got '2'"),
    "rope-types": (TINY, {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2.0}},
                   "rope_scaling.rope_type and rope_scaling.type differ, 'default' and 'linear'; keep one"),
    "rope-unknown": (TINY, {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_slow": 1.0}},
                     "rope_type 'linear' has no beta_slow; it has factor"),
    "default-factor": (TINY, {"rope_scaling": {"type": "default", "factor": 2.0}}, "rope_type 'default' has no factor"),
    "rope-by-kind": (TINY, {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
                     "rope_type 'default' has no full_attention"),
    "two-thetas": (TINY, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
                   "rope_theta stands twice and differs, 10000 and 500000; keep one"),
    "two-lengths": (TINY, {"original_max_position_embeddings": 64, "rope_scaling": YARN},
                    "original_max_position_embeddings is 64, and 32 in rope_scaling; keep one"),
    "no-logarithm": (TINY, {"rope_theta": 1.0, "rope_scaling": YARN}, "no frequencies can be computed of rope_theta 1"),
    "stop-text": (TINY, {"eos_token_id": [2, "</s>"]}, "eos_token_id must be a token id or a list of them, got"),
    "stop-outside": (TINY, {"eos_token_id": [2, 24]},
                     "config.json: eos_token_id 24 is outside the model's vocabulary of 24: ids are 0 to 23"),
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


HARMLESS = {
    "swish": (TINY, {"hidden_act": "swish"}),
    "architectures-text": (TINY, {"architectures": "LlamaForCausalLM"}),
    "architectures-none": (TINY, {"architectures": []}),
    "whole-floats": (TINY, {"hidden_size": 8.0, "num_hidden_layers": 2.0, "eos_token_id": 2.0}),
    "nulls": (TINY, dict.fromkeys(("rope_scaling", "rope_parameters", "layer_types", "sliding_window", "mlp_bias",
                                   "attention_bias", "quantization_config", "max_window_layers", "torch_dtype"))),
    "window-off": (TINY, {"sliding_window": 4096, "use_sliding_window": False}),
    "max-window-null": (QWEN2, {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": None}),
    "default-rope": (TINY, {"rope_scaling": {"rope_type": "default"}}),
    "default-length": (TINY, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                  "original_max_position_embeddings": 64}}),
    "default-factor": (TINY, {"rope_scaling": {"type": "default", "factor": 1.0, "attn_factor": 1}}),
    "null-in-rope": (TINY, {"rope_scaling": {"rope_type": None, "type": "default", "factor": None}}),
    "of-others": (TINY, {"_name_or_path": 3, "transformers_version": None, "use_cache": True, "pretraining_tp": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("config", "change"), HARMLESS.values(), ids=HARMLESS)
def test_harmless_variants_open(config, change, tmp_path):
    folder = setup.write_checkpoint(tmp_path, write_config(config) | change, setup.random_tensors(config))
    assert open_checkpoint(folder).config == config


def test_yarn_of_every_spelling():
    """A note of YaRN's authors, both names of the kind, the length outside and inside, both objects of two versions."""
    scaling = RopeScaling("yarn", 4.0, 32)
    inner = {"factor": 4.0, "original_max_position_embeddings": 32}
    for change in (
        {"rope_scaling": {"type": "yarn", "finetuned": True, **inner}},
        {"rope_scaling": {"type": "yarn", "rope_type": "yarn", **inner}},
        {"rope_scaling": {"type": "yarn", "factor": 4}, "original_max_position_embeddings": 32.0},
        {"rope_scaling": {"type": "yarn", **inner}, "original_max_position_embeddings": 32},
        {"rope_scaling": YARN, "rope_parameters": {"rope_type": "yarn", **inner, "rope_theta": 1e4}},
    ):
        config = read_config(write_config(TINY) | change, "config.json")
        assert config == dataclasses.replace(TINY, rope_scaling=scaling), change


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_a_byte_order_mark_is_skipped(name, sharded):
    folder, _ = sharded
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + (path.read_bytes() if path.exists() else b'{"eos_token_id": 5}'))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == TINY
    assert checkpoint.stop_ids == ((5,) if name == "generation_config.json" else ())


WILD = (
    None, True, False, "x", "", "2", "a\nb", 0, -1, 0.5, 1.0, 2, 1e308, 10**12, 10**400, math.nan, math.inf, [], [1],
    ["full_attention"], [None], [[]], {}, {"a": 1}, {"rope_type": []}, {"type": "yarn", "factor": 1e308},
)  # fmt: skip


def refusal(function) -> str:
    """'' where ``function`` passes, else its ValueError; whatever else it raises fails the test."""
    try:
        function()
    except ValueError as error:
        return str(error)
    return ""


class Headers:
    """The headers of TINY's checkpoint."""

    facts = {name: TensorFacts(shape, "F32", 0) for name, shape in expected_shapes(TINY).items()}


def test_a_config_of_wild_values_is_one_line_or_opens():
    """Every key, every value of a dozen types: whatever else would be raised fails this test."""
    yarn = write_config(TINY) | {"rope_scaling": YARN}
    changed = [(key, yarn | {key: value}) for key in _KEYS for value in WILD]
    changed += [(key, yarn | {"rope_scaling": YARN | {key: value}}) for key in ROPE for value in WILD]
    refused = collections.Counter()

    def use(raw):
        config = read_config(raw, "here")
        if same_model(config, dataclasses.replace(TINY, rope_scaling=config.rope_scaling)):
            check(Headers, config, "here")
        read_stop_ids(Path("here"), raw, {}, config.vocab_size)

    for key, raw in changed:
        said = refusal(lambda raw=raw: use(raw))
        assert re.match(r"(here(/config.json)?: [ -~]{1,250})?$", said), (key, said)
        refused[key] += bool(said)
    assert set(refused) == {*_KEYS, *ROPE}  # each is looked at
    assert len(changed) - refused.total() > 100


@pytest.mark.parametrize("value", WILD, ids=lambda value: repr(value)[:12])
def test_a_generation_config_of_wild_values(value, tmp_path):
    folder = setup.write_checkpoint(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    if value in (None, [], [1], 0, 1.0, 2) and not isinstance(value, bool):
        expected = {None: (), 0: (0,), 1.0: (1,), 2: (2,)}[value] if not isinstance(value, list) else tuple(value)
        assert open_checkpoint(folder).stop_ids == expected
    else:
        assert complaint(folder).startswith(f"{folder}/generation_config.json: eos_token_id ")


# what no machine holds: each must be found by the headers, before anything of its size is made
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("num_hidden_layers", "has 1000000000000 layers, the tensors are of 2: tensor model.layers.2.input_layernorm"),
        ("vocab_size", r"model.embed_tokens.weight must have shape \(1000000000000, 8\), got \(24, 8\)"),
        ("hidden_size", "model.embed_tokens.weight must have shape"),
        ("intermediate_size", "mlp.down_proj.weight must have shape"),
        ("num_attention_heads", "q_proj.weight must have shape"),
        ("head_dim", "k_proj.weight must have shape"),
    ],
)
def test_a_size_that_cannot_be(key, expected, tmp_path, monkeypatch):
    folder = setup.write_checkpoint(tmp_path, write_config(TINY) | {key: 10**12})

    def allocated(config):
        raise AssertionError("shapes were made of it")

    monkeypatch.setattr(hf_tensors, "abstract_params", allocated)
    with pytest.raises(ValueError, match=expected):
        open_checkpoint(folder)


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


FILES = {  # files beside the model's, whether the model is in shards: what is said
    "whole-and-shards": (["model.safetensors"], True, "has model.safetensors and also model.safetensors.index.json"),
    "shards-unindexed": (["model-00001-of-00002.safetensors"], False, "and also 'model-00001-of-00002.s"),
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], False, "adapter_config.json: an adapter is not"),
    "shard-too-many": (["c.safetensors"], True, ".index.json names is read; c.safetensors is not"),
    "original": (["consolidated.safetensors"], False, "model.safetensors is read; consolidated.safetensors is not"),
    "pickle": (["pytorch_model.bin"], False, "model.safetensors is read; pytorch_model.bin is not"),
    "many": (["a.gguf", "pytorch_model-00001-of-00002.bin", "tf_model.h5"], True, "is read; a.gguf and 2 more is not"),
}


@pytest.mark.parametrize(("names", "in_shards", "expected"), FILES.values(), ids=FILES)
def test_files_beside_the_model(names, in_shards, expected, tmp_path, request):
    folder = request.getfixturevalue("sharded")[0] if in_shards else setup.write_checkpoint(tmp_path)
    assert open_checkpoint(folder).config == TINY  # nothing is said of the model's own
    for name in (*names, "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"{}")
    if " is not" in expected and "adapter" not in expected:
        with pytest.warns(UserWarning, match=re.escape(expected)):
            assert open_checkpoint(folder).config == TINY
    else:
        assert expected in complaint(folder)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.gguf"], "has no weights: .*; there is a.gguf: name the file itself, .*/a.gguf"),
        (["model-00001-of-00002.safetensors"], "has no weights: .* a model in several files needs .*index.json$"),
        (["merged.safetensors"], "has no weights: .*; there is merged.safetensors: if that is the mo"),
    ],
)
def test_weights_under_another_name(names, expected, tmp_path):
    folder = setup.write_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"")
    assert re.search(expected, complaint(folder))


def test_weights_that_are_no_file(tmp_path):
    path = setup.write_checkpoint(tmp_path) / "model.safetensors"
    path.unlink()
    path.symlink_to(tmp_path / "blobs" / "gone")
    assert complaint(tmp_path) == f"{path} is a link to a file that is not there"
    path.unlink()
    path.mkdir()
    assert complaint(tmp_path) == f"{path} is not a file"


def test_a_folder_that_is_two_models(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"")
    (tmp_path / "b.gguf").write_bytes(b"")
    assert complaint(tmp_path) == f"{tmp_path} has no config.json; name a GGUF file itself: {tmp_path}/a.gguf or " + (
        f"{tmp_path}/b.gguf"
    )
    (tmp_path / "policy.json").write_text(policy_text(TINY, None))
    for name in ("params", "checkpoints/train"):
        (tmp_path / name).mkdir(parents=True)
    assert "has params/, of an imported checkpoint, and checkpoints/train/, of a run: keep one" in complaint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "has policy.json and model.safetensors: keep one" in complaint(tmp_path)


def test_a_policy_of_wild_values_is_one_line_or_is_read(tmp_path):
    config = dataclasses.asdict(dataclasses.replace(TINY, rope_scaling=RopeScaling("yarn", 4.0, 32)))
    path = tmp_path / "policy.json"
    refused = collections.Counter()
    for key, value in itertools.product([*config, *config["rope_scaling"]], WILD):
        inner = key in config["rope_scaling"]
        raw = config | ({"rope_scaling": config["rope_scaling"] | {key: value}} if inner else {key: value})
        path.write_text(json.dumps({"config": raw, "source": None}))
        said = refusal(lambda: read_policy(tmp_path))
        assert re.match(rf"({path}: [ -~]{{1,250}})?$", said), (key, said)
        refused[key] += bool(said)
    assert set(refused) == {*config, *config["rope_scaling"]}
    path.write_text(json.dumps({"config": config | {"width": 3}}))
    assert "policy.json: config.width is no key; allowed: vocab_size, " in complaint(tmp_path)


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
