"""Imported models against transformers: logits, greedy generation, settings of config.json."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from salt_jax.learner.state import init_params, make_policy
from salt_jax.models.hf import open_checkpoint
from salt_jax.models.hf_config import read_config, write_config
from salt_jax.models.hf_tensors import abstract_params
from salt_jax.policy.rope import RopeScaling
from salt_jax.policy.sampler import SamplingConfig, sample
from tests import hf_checkpoints as setup
from tests.hf_checkpoints import MODELS, TINY

models = pytest.mark.parametrize("name", MODELS)


@pytest.mark.torch
@models
def test_logits_equal_transformers(name, tmp_path):
    """48 positions are three times the trained length of the scaled ones; the second row is left-padded."""
    model = setup.torch_model(name)
    checkpoint = open_checkpoint(setup.save(model, tmp_path))
    tokens, mask = setup.rows(40, 48)
    found, expected = setup.our_logits(checkpoint, tokens, mask), setup.torch_logits(model, tokens, mask)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found[mask], expected[mask], rtol=0, atol=1e-4)  # 2.5e-5 is the most seen


@pytest.mark.torch
@pytest.mark.parametrize("name", ["llama-llama3", "qwen2-yarn", "qwen3-tied"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # transformers on generation settings
def test_64_greedy_tokens_equal_transformers(name, tmp_path):
    import torch

    model = setup.torch_model(name)
    checkpoint = open_checkpoint(setup.save(model, tmp_path))
    prompts, mask = setup.rows(40, 9, padding=4)
    policy = nnx.merge(make_policy(checkpoint.config), checkpoint.load())
    draw = jax.jit(
        lambda p, m: sample(policy, p, m, jax.random.key(0), group_size=1, stop_ids=(40,), pad_id=0,
                            config=SamplingConfig(max_new_tokens=64, temperature=0.0))
    )  # fmt: skip
    ours = np.asarray(draw(jnp.asarray(prompts), jnp.asarray(mask)).tokens)
    theirs = model.generate(
        torch.from_numpy(prompts).long(), attention_mask=torch.from_numpy(mask).long(), do_sample=False,
        max_new_tokens=64, pad_token_id=0,
    )  # fmt: skip
    assert len(np.unique(ours)) > 4  # not one token over and over
    np.testing.assert_array_equal(ours, theirs.numpy()[:, prompts.shape[1] :])


@pytest.mark.torch
@models
def test_shapes_are_those_of_training(name, tmp_path):
    checkpoint = open_checkpoint(setup.save(setup.torch_model(name), tmp_path))
    params = jax.eval_shape(lambda: init_params(checkpoint.config, jax.random.key(0)))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), checkpoint.shapes()) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )


@pytest.mark.torch
def test_shards_are_one_model(tmp_path):
    model = setup.torch_model("qwen3")
    whole = open_checkpoint(setup.save(model, tmp_path / "whole")).load()
    sharded = setup.save(model, tmp_path / "sharded", max_shard_size="5KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    jax.tree.map(np.testing.assert_array_equal, whole, open_checkpoint(sharded).load())


def test_bfloat16_and_float16_files(tmp_path):
    import ml_dtypes

    for dtype in (ml_dtypes.bfloat16, np.float16):
        tensors = setup.random_tensors(TINY, dtype)
        params = open_checkpoint(setup.write_checkpoint(tmp_path / np.dtype(dtype).name, tensors=tensors)).load()
        assert params["layers"]["q"].dtype == jnp.float32
        np.testing.assert_array_equal(
            params["layers"]["q"][1].T, tensors["model.layers.1.self_attn.q_proj.weight"].astype(np.float32)
        )


def test_overrides_choose_how_and_not_what(tmp_path):
    folder = setup.write_checkpoint(tmp_path)
    given = {"compute_dtype": "bfloat16", "scan_layers": False, "attention": "xla", "remat": "full"}
    config = open_checkpoint(folder, **given).config
    assert {name: getattr(config, name) for name in given} == given
    assert dataclasses.replace(config, **{name: getattr(TINY, name) for name in given}) == TINY
    assert isinstance(hash(config), int)
    with pytest.raises(ValueError, match="num_layers is the checkpoint's own"):
        open_checkpoint(folder, num_layers=1)
    with pytest.raises(ValueError, match="remat must be one of"):
        open_checkpoint(folder, remat="some")


def test_parameters_may_be_donated(tmp_path):
    """Training donates its state; replicas are read once, and each must be a buffer of its own all the same."""
    checkpoint = open_checkpoint(setup.write_checkpoint(tmp_path))
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    replicated = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), checkpoint.shapes())
    params = checkpoint.load(replicated)
    expected = jax.tree.map(lambda x: np.array(x) + 1, params)
    changed = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(params)
    for leaf, want in zip(jax.tree.leaves(changed), jax.tree.leaves(expected), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, want)


def test_loading_is_allowed_where_implicit_transfers_are_not(tmp_path, no_transfers):
    checkpoint = open_checkpoint(setup.write_checkpoint(tmp_path))
    with no_transfers():
        checkpoint.load()


# What is published of each, and its number of parameters.
PUBLISHED = {
    "SmolLM2-135M": (134_515_008, {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5, "rope_theta": 100000, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
        "hidden_act": "silu", "pretraining_tp": 1, "rope_interleaved": False}),
    "Llama-3.2-1B": (1_235_814_400, {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
        "rope_theta": 500000.0, "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3"}}),
    "Qwen2.5-0.5B": (494_032_768, {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21}),
    "Qwen2.5-7B": (7_615_616_512, {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
        "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28}),
    "Qwen3-0.6B": (596_049_920, {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "tie_word_embeddings": True, "rope_theta": 1000000, "attention_bias": False, "use_sliding_window": False,
        "sliding_window": None, "max_window_layers": 28}),
}  # fmt: skip


@pytest.mark.parametrize(("parameters", "raw"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_models_have_their_number_of_parameters(parameters, raw):
    config = read_config(raw, "config.json")
    assert sum(x.size for x in jax.tree.leaves(abstract_params(config))) == parameters
    assert read_config(write_config(config), "config.json") == config


@pytest.mark.parametrize(
    ("config", "generation", "stop_ids"),
    [
        (3, None, (3,)),
        ([3, 4], None, (3, 4)),
        (3, 5, (5,)),
        (3, [5, 6], (5, 6)),
        (3, {}, (3,)),
        (None, None, ()),
    ],
)
def test_stop_ids(config, generation, stop_ids, tmp_path):
    folder = setup.write_checkpoint(tmp_path, raw=write_config(TINY) | {"eos_token_id": config})
    if generation is not None:
        content = generation if isinstance(generation, dict) else {"eos_token_id": generation}
        (folder / "generation_config.json").write_text(json.dumps(content))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.stop_ids == stop_ids
    assert checkpoint.tokenizer_source == folder


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    tied = dataclasses.replace(TINY, tied_embeddings=True)
    tensors = setup.random_tensors(tied)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    params = open_checkpoint(setup.write_checkpoint(tmp_path / "same", tensors=tensors, config=tied)).load()
    assert "head" not in params
    tensors["lm_head.weight"][-1, -1] += 1e-6
    other = open_checkpoint(setup.write_checkpoint(tmp_path / "other", tensors=tensors, config=tied))
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true but lm_head.weight is not model.embed_tokens"):
        other.load()


def test_the_rotary_buffers_of_old_files_are_known(tmp_path):
    tensors = setup.random_tensors(TINY) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    assert open_checkpoint(setup.write_checkpoint(tmp_path, tensors=tensors)).config == TINY


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({}, 10_000.0, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, 5e5, RopeScaling("linear", 2)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, None),
        ({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
         1e6, RopeScaling("yarn", 4.0, 32)),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 9.0, "factor": 2.0, "beta_fast": 16,
                              "attention_factor": None}, "max_position_embeddings": 128},
         9.0, RopeScaling("yarn", 2.0, 128, beta_fast=16)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
         5e5, RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)),
    ],
)  # fmt: skip
def test_rope_of_both_spellings(rope, theta, scaling):
    raw = write_config(TINY) | {"rope_theta": None}
    del raw["rope_theta"]
    config = read_config(raw | rope, "config.json")
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)
    assert read_config(write_config(config), "config.json") == config
