"""Export: transformers computes the same from it, what was imported comes out bit for bit, nothing is half written."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.learner.state import init_params
from salt_jax.models import hf, hf_export
from salt_jax.models.hf import export, open_checkpoint
from salt_jax.models.hf_config import write_config
from salt_jax.policy.rope import RopeScaling
from tests import hf_checkpoints as setup
from tests.hf_checkpoints import TINY


def tensors_of(folder) -> dict[str, tuple[str, bytes]]:
    """Every tensor's dtype and bytes."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            assert file.metadata()["format"] == "pt"
            for name in file.keys():
                part = file.get_slice(name)
                assert name not in found
                found[name] = (part.get_dtype(), part[:].tobytes())
    return found


def reloaded(folder, dtype="float32"):
    import torch

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not any(report.values()), report  # nothing missing, unexpected or mismatched
    return model.eval()


@pytest.mark.torch
@pytest.mark.parametrize("name", ["llama-llama3", "llama-tied-wide-heads", "qwen2-yarn", "qwen3"])
@pytest.mark.parametrize("with_source", [True, False], ids=["source", "no-source"])
def test_transformers_computes_the_same_from_an_export(name, with_source, tmp_path):
    model = setup.torch_model(name)
    source = open_checkpoint(setup.save(model, tmp_path / "in"))
    folder = tmp_path / "out"
    export(source.load(), source.config, folder, source=source if with_source else None, dtype="float32")
    again = reloaded(folder)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key].numpy(), value.numpy())
    tokens, mask = setup.rows(40, 48)
    np.testing.assert_array_equal(setup.torch_logits(again, tokens, mask), setup.torch_logits(model, tokens, mask))
    assert open_checkpoint(folder).config == source.config


def every_bfloat16(shape) -> np.ndarray:
    """All finite numbers of bfloat16: zeros of both signs, the smallest, the largest."""
    bits = np.resize(np.arange(2**16, dtype=np.uint16), shape).view(ml_dtypes.bfloat16)
    return np.where(np.isfinite(bits.astype(np.float32)), bits, ml_dtypes.bfloat16(0))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_bfloat16_comes_out_bit_for_bit(tied, tmp_path):
    config = dataclasses.replace(TINY, vocab_size=2**13, qkv_bias=True, tied_embeddings=tied)
    tensors = setup.random_tensors(config, ml_dtypes.bfloat16)
    tensors["model.embed_tokens.weight"] = every_bfloat16((2**13, 8))
    source = tmp_path / "in"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(write_config(config) | {"torch_dtype": "bfloat16", "note": "ours"}))
    (source / "generation_config.json").write_text('{"eos_token_id": [3, 4], "temperature": 0.7}')
    (source / "tokenizer.json").write_text('{"a": "ü"}')
    (source / "modeling.py").write_text("raise SystemExit")
    names = list(tensors)
    for file, held in {"model-a.safetensors": names[:9], "model-b.safetensors": names[9:]}.items():
        save_file({name: tensors[name] for name in held}, source / file, {"format": "pt"})
    weight_map = dict.fromkeys(names[:9], "model-a.safetensors") | dict.fromkeys(names[9:], "model-b.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    checkpoint = open_checkpoint(source)
    export(checkpoint.load(), checkpoint.config, tmp_path / "out", source=checkpoint)
    assert tensors_of(tmp_path / "out") == tensors_of(source)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((source / name).read_text())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_float32_rounds_to_nearest_even_in_bfloat16(tmp_path):
    params = init_params(TINY, jax.random.key(0))
    params["final_norm"] = jnp.asarray([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8] * 2, jnp.float32)
    export(params, TINY, tmp_path / "out")
    raw = tensors_of(tmp_path / "out")["model.norm.weight"]
    found = np.frombuffer(raw[1], ml_dtypes.bfloat16).astype(np.float32)[:4]
    assert (raw[0], found.tolist()) == ("BF16", [1.0, 1 + 2**-6, 1 + 2**-7, -1.0])


@pytest.mark.parametrize("limit", [1, 2000, 4096])
def test_shards_hold_at_most_their_limit(limit, tmp_path):
    params = init_params(TINY, jax.random.key(0))
    export(params, TINY, tmp_path / "whole", dtype="float32")
    export(params, TINY, tmp_path / "parts", dtype="float32", max_shard_bytes=limit)
    assert tensors_of(tmp_path / "parts") == tensors_of(tmp_path / "whole")
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for path in files:
        with safe_open(path, framework="numpy") as file:
            sizes = [file.get_slice(name)[:].nbytes for name in file.keys()]
            assert set(file.keys()) == {name for name, held in index["weight_map"].items() if held == path.name}
        assert sum(sizes) <= limit or len(sizes) == 1
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total


@pytest.mark.torch
def test_transformers_reads_shards(tmp_path):
    params = init_params(TINY, jax.random.key(0))
    export(params, TINY, tmp_path / "parts", dtype="float32", max_shard_bytes=2000)
    again = reloaded(tmp_path / "parts")
    np.testing.assert_array_equal(again.lm_head.weight.detach().numpy(), np.asarray(params["head"]).T)


@pytest.mark.mesh
def test_sharded_parameters_are_gathered_tensor_by_tensor(tmp_path, monkeypatch, no_transfers):
    params = init_params(TINY, jax.random.key(0))
    export(params, TINY, tmp_path / "one")
    split = jax.device_put(params, tree_shardings(params, make_mesh(2, 2, 2)))
    gathered = []
    plain = hf_export._gather

    def counted(leaf, layer):
        gathered.append(plain(leaf, layer))
        return gathered[-1]

    monkeypatch.setattr(hf_export, "_gather", counted)
    with no_transfers():
        export(split, TINY, tmp_path / "eight")
    assert tensors_of(tmp_path / "eight") == tensors_of(tmp_path / "one")
    assert len(gathered) == len(tensors_of(tmp_path / "one"))
    assert max(array.nbytes for array in gathered) == params["embedding"].nbytes


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path, monkeypatch):
    params = init_params(TINY, jax.random.key(0))
    folder = tmp_path / "out"
    folder.mkdir()
    export(params, TINY, folder)  # an empty folder will do
    before = tensors_of(folder)
    with pytest.raises(ValueError, match="is there already; name a folder that is not"):
        export(params, TINY, folder)
    assert tensors_of(folder) == before

    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(hf_export, "_write_json", fails)
    with pytest.raises(OSError, match="disk full"):
        export(params, TINY, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_does_not_fit_is_one_line(tmp_path):
    params = init_params(TINY, jax.random.key(0))
    other = dataclasses.replace(TINY, rope_theta=5e5)
    source = setup.write_checkpoint(tmp_path / "in", config=other)
    with pytest.raises(ValueError, match=r"not of .*in: rope_theta is 10000.0 and 500000.0 there"):
        export(params, TINY, tmp_path / "out", source=source)
    with pytest.raises(ValueError, match="params must be a tree"):
        export({"embedding": params["embedding"]}, TINY, tmp_path / "out")
    wider = dataclasses.replace(TINY, mlp_dim=16)
    with pytest.raises(ValueError, match=r"layers/down must have shape \(2, 16, 8\), got \(2, 12, 8\)"):
        export(params, wider, tmp_path / "out")
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float32, got 'float16'"):
        export(params, TINY, tmp_path / "out", dtype="float16")
    with pytest.raises(ValueError, match="max_shard_bytes must be at least 1"):
        export(params, TINY, tmp_path / "out", max_shard_bytes=0)
    both = dataclasses.replace(TINY, qk_norm=True, qkv_bias=True)
    with pytest.raises(ValueError, match="qk_norm with qkv_bias"):
        export(init_params(both, jax.random.key(0)), both, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 2.0),
        RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),
        RopeScaling("yarn", 4.0, 64, mscale=1.0, mscale_all_dim=0.5, truncate=False),
    ],
    ids=lambda scaling: scaling.kind,
)
def test_a_config_of_our_own_making_is_read_by_transformers(scaling, tmp_path):
    config = dataclasses.replace(TINY, rope_scaling=scaling, rope_theta=1e5)
    export(init_params(config, jax.random.key(0)), config, tmp_path / "out")
    raw = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert raw.rope_parameters["rope_type"] == scaling.kind
    assert raw.rope_parameters["factor"] == scaling.factor
    assert raw.rope_parameters["rope_theta"] == 1e5
    assert str(raw.dtype).removeprefix("torch.") == "bfloat16"  # a string where torch is not installed
    assert open_checkpoint(tmp_path / "out").config == config


def test_a_tokenizer_of_the_callers(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    params = init_params(TINY, jax.random.key(0))
    hf.export(params, TINY, tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_what_bfloat16_cannot_hold_is_refused(tmp_path):
    """Its largest number is 3.3895e38; half a step further rounds to infinity."""
    params = jax.tree.map(np.array, open_checkpoint(setup.write_checkpoint(tmp_path / "in")).load())
    params["layers"]["up"][1, 0, 0] = 3.4e38
    export(params, TINY, tmp_path / "float32", dtype="float32")
    with pytest.raises(ValueError, match=r"tensor model.layers.1.mlp.up_proj.weight is not finite in bfloat16: 0 NaN"):
        export(params, TINY, tmp_path / "out")
    params["final_norm"][2] = np.nan
    with pytest.raises(ValueError, match="model.norm.weight is not finite in float32: 1 NaN and 0 infinite of 8"):
        export(params, TINY, tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()


def test_a_byte_order_mark_is_not_exported(tmp_path):
    source = setup.write_checkpoint(tmp_path / "in")
    for name in ("tokenizer_config.json", "merges.txt", "chat_template.jinja"):
        (source / name).write_bytes(b"\xef\xbb\xbf{}")
    checkpoint = open_checkpoint(source)
    export(checkpoint.load(), TINY, tmp_path / "out", source=checkpoint)
    for name in ("tokenizer_config.json", "merges.txt", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == b"{}"
