"""Writing a policy's parameters: as a Hugging Face folder, or as a folder of this project's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from salt_jax.models import gguf, policy_folder
from salt_jax.models.hf_config import GENERATION, read_config, same_model, write_config
from salt_jax.models.hf_tensors import INDEX, WEIGHTS, Place, abstract_params, check_finite, places
from salt_jax.models.pretrained import Checkpoint, open_checkpoint
from salt_jax.policy.layers import TransformerConfig
from salt_jax.tasks.tokenizer_files import copy_tokenizer, gguf_tokenizer

DTYPES = ("bfloat16", "float32")


def export(
    params: Any,
    config: TransformerConfig,
    folder: str | Path,
    *,
    source: str | Path | Checkpoint | None = None,
    tokenizer: str | Path | None = None,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a folder that ``transformers.AutoModelForCausalLM.from_pretrained`` and vLLM load.

    The folder appears whole or not at all. Tensors are gathered one by one, and at most one file's worth of them is
    on the host. Where there are several processes, all must call this and the first one writes.

    Args:
      params: the decoder's, wherever they lie.
      config: theirs.
      folder: a new one, or an empty one.
      source: the checkpoint that the parameters began as: its config.json (but for the dtype),
        generation_config.json and tokenizer are carried over, a GGUF file's as a tokenizer.json. None writes
        config.json from ``config``.
      tokenizer: a folder whose tokenizer files are taken instead of the source's.
      dtype: 'bfloat16' or 'float32', of every tensor.
      max_shard_bytes: of a file; more makes several and an index. A larger tensor has a file to itself.

    Raises:
      ValueError: if ``folder`` holds something, ``params`` do not fit ``config``, ``config`` is not the source's, or a
        tensor is not finite, or would not be in ``dtype``.
    """
    from ml_dtypes import bfloat16

    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise ImportError("safetensors files need the extra 'hf': pip install 'salt-jax[hf]'") from None
    folder = Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    if source is not None and not isinstance(source, Checkpoint):
        source = open_checkpoint(source)
    texts = _configs(config, source, dtype)
    tensors = _tensors(params, config)
    number = np.dtype(bfloat16 if dtype == "bfloat16" else np.float32)
    files = _plan({name: int(np.prod(place.tensor_shape)) * number.itemsize for name, (_, place, _) in tensors.items()},
                  max_shard_bytes)  # fmt: skip
    policy_folder.check_new(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{folder} is new")  # before the first process makes it
    if jax.process_index() > 0:
        for leaf, _, layer in tensors.values():  # each gather is a step of all processes
            _gather(leaf, layer)
        multihost_utils.sync_global_devices(f"{folder} is written")
        return
    with policy_folder.new_folder(folder) as writing:
        for file, names in files.items():
            # metadata: what transformers looks for to know that kernels are (out, in)
            held = {name: _tensor(*tensors[name], number) for name in names}
            for name, tensor in held.items():
                check_finite(tensor, name, str(folder), f" in {dtype}")
            save_file(held, writing / file, {"format": "pt"})
            (writing / file).chmod(writing.stat().st_mode & 0o666)  # safetensors makes it the owner's alone
        if list(files) != [WEIGHTS]:
            sizes = sum(int(np.prod(place.tensor_shape)) * number.itemsize for _, place, _ in tensors.values())
            weight_map = {name: file for file, names in files.items() for name in names}
            _write_json(writing / INDEX, {"metadata": {"total_size": sizes}, "weight_map": weight_map})
        for name, content in texts.items():
            _write_json(writing / name, content)
        _copy_tokenizer(Path(tokenizer) if tokenizer else source.tokenizer_source if source else None, writing)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{folder} is written")


def _configs(config: TransformerConfig, source: Checkpoint | None, dtype: str) -> dict[str, Mapping[str, Any]]:
    """config.json and, where it is known, generation_config.json."""
    raw = dict(write_config(config) if source is None or source.hf_config is None else source.hf_config)
    if source is not None and (difference := same_model(config, read_config(raw, str(source.path)))):
        raise ValueError(f"these parameters are not of {source.path}: {difference} there")
    # transformers 5 writes dtype; torch_dtype is what came before it, and what both read
    raw |= dict.fromkeys([key for key in ("dtype", "torch_dtype") if key in raw] or ["torch_dtype"], dtype)
    generation = source.generation_config if source is not None else {}
    return {"config.json": raw} | ({GENERATION: generation} if generation else {})


def _tensors(params: Any, config: TransformerConfig) -> dict[str, tuple[Any, Place, int | None]]:
    """By name: the parameter, its place, and the layer; embedding first, then layer by layer."""
    shapes = abstract_params(config)
    given, expected = jax.tree.structure(params), jax.tree.structure(shapes)
    if str(given) != str(expected):
        raise ValueError(f"params must be a tree {expected}, got {given}")
    for (path, leaf), shape in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shapes), strict=True):
        if leaf.shape != shape.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"params: {name} must have shape {shape.shape}, got {leaf.shape}")
    layout = places(config)
    outer = {key: (params[key], layout[key], None) for key in layout if key != "layers"}
    found: dict[str, tuple[Any, Place, int | None]] = {outer["embedding"][1].names[0]: outer.pop("embedding")}
    for i in range(config.num_layers):
        for key, place in layout["layers"].items():
            found[place.names[i]] = (params["layers"][key], place, i)
    return found | {place.names[0]: (leaf, place, None) for leaf, place, _ in outer.values()}


def _plan(sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """Files and their tensors, in order, none over ``limit`` bytes unless one tensor is.

    >>> _plan({"a": 2, "b": 2, "c": 3}, 4)
    {'model-00001-of-00002.safetensors': ['a', 'b'], 'model-00002-of-00002.safetensors': ['c']}
    """
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards)}


@jax.jit
def _one_layer(leaf: jax.Array, layer: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)


def _gather(leaf: Any, layer: int | None) -> np.ndarray:
    """A parameter, or one layer of it, on the host."""
    if isinstance(leaf, np.ndarray):
        return leaf if layer is None else leaf[layer]
    with jax.transfer_guard("allow"):  # the layer's number
        one = leaf if layer is None else _one_layer(leaf, np.int32(layer))
    if not one.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(one, tiled=True))
    return jax.device_get(one)


def _tensor(leaf: Any, place: Place, layer: int | None, dtype: np.dtype) -> np.ndarray:
    """The tensor as it is stored. NumPy rounds: XLA would flush the smallest bfloat16 numbers to zero on CPU."""
    array = _gather(leaf, layer)
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is found next
        return np.ascontiguousarray(array.T if place.transposed else array, dtype)


def write_policy_json(folder: str | Path, config: TransformerConfig, source: Checkpoint | None) -> None:
    """Makes ``folder`` one that ``open_checkpoint`` reads: policy.json, and source/ for what is not parameters.

    Called again with the same config it changes nothing. On several processes the first one writes.

    Args:
      folder: of a run, or of a checkpoint that is imported.
      config: of its parameters.
      source: the checkpoint that they begin as; None for random parameters.

    Raises:
      ValueError: if the folder holds another policy.json.
    """
    if jax.process_index() > 0:
        return
    path = Path(folder) / policy_folder.POLICY
    if path.exists():
        if policy_folder.read_policy(path.parent)[0] != config:
            raise ValueError(f"{path} is of another policy; name another folder")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / policy_folder.SOURCE
    if source is not None and source.hf_config is not None and not beside.exists():
        with policy_folder.new_folder(beside) as writing:
            _write_json(writing / "config.json", source.hf_config)
            _write_json(writing / GENERATION, source.generation_config)
            _copy_tokenizer(source.tokenizer_source, writing, with_gguf=True)
    writing = path.with_name(f".writing-{path.name}")
    writing.write_text(policy_folder.policy_text(config, None if source is None else str(source.path.absolute())))
    writing.replace(path)  # last, so that a folder with policy.json is whole


def import_checkpoint(source: str | Path, folder: str | Path) -> None:
    """Writes a checkpoint as a folder of this project's own, which loads faster and on any number of devices.

    Args:
      source: what ``open_checkpoint`` takes.
      folder: a new one, or an empty one.

    Raises:
      ValueError: for a source that cannot be read, or a folder that holds something.
    """
    policy_folder.check_new(Path(folder))
    checkpoint = open_checkpoint(source)  # its numbers are looked at as they are read
    with policy_folder.new_folder(Path(folder)) as writing:
        policy_folder.save(checkpoint.load(), writing / policy_folder.PARAMS)
        write_policy_json(writing, checkpoint.config, checkpoint)


def _copy_tokenizer(source: Path | None, target: Path, *, with_gguf: bool = False) -> None:
    if source is None:
        return
    if source.is_file():
        if with_gguf:
            gguf.copy_metadata(source, target / gguf.TOKENIZER)
        elif gguf.has_tokenizer(source):
            gguf_tokenizer(source).save_pretrained(target)
        return
    copy_tokenizer(source, target)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
