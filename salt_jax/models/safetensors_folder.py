"""The tensors of a Hugging Face folder: which of its files are the model, and reading them."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from salt_jax.models.hf_tensors import INDEX, WEIGHTS, Index, TensorFacts
from salt_jax.spec import one_line
from salt_jax.tasks.json_values import OBJECT, check_values, read_json, shown
from salt_jax.tasks.paths import check_pointer

ADAPTER = "adapter_config.json"
# Weights in formats that are not read, as they lie beside those that are.
OTHERS = ("*.safetensors", "pytorch_model*.bin", "consolidated*.pth", "*.gguf", "*.h5", "*.msgpack")
_SAID: dict[Any, Any] = {}  # a run opens its folder several times
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")


class Safetensors:
    """The tensors of a Hugging Face folder: one file, or shards and their index.

    Args:
      folder: with model.safetensors or model.safetensors.index.json. Headers are read here, data by ``read``.

    Raises:
      ImportError: without the extra 'hf'.
      ValueError: naming the file, and the tensor where one is to blame.
    """

    DTYPES = ("F32", "BF16", "F16")

    def __init__(self, folder: Path) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise ImportError("safetensors files need the extra 'hf': pip install 'salt-jax[hf]'") from None
        self._files: dict[str, Any] = {}
        self.facts: dict[str, TensorFacts] = {}
        for file, names in _files(folder).items():
            path = folder / file
            if not path.is_file():
                if names is None:
                    what = "is a link to a file that is not there" if path.is_symlink() else "is not a file"
                    raise ValueError(f"{path} {what}")
                raise ValueError(
                    f"{folder}: {INDEX} names {file}, which holds {one_line(names[0])}, and there is no such file"
                )
            _check_file(path)
            try:
                handle = safe_open(path, framework="numpy")
            except SafetensorError as error:
                raise ValueError(f"{path} is not a safetensors file: {error}") from None
            stored = list(handle.keys())
            if names is not None and set(names) != set(stored):
                name = one_line(min(set(names) ^ set(stored)))
                says, lacks = (INDEX, file) if name in map(one_line, names) else (file, f"{INDEX} for {file}")
                raise ValueError(f"{folder}: {says} holds tensor {name} and {lacks} does not")
            for name in stored:
                part = handle.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                bits = int(re.sub(r"^[A-Z]+(\d+).*", r"\1", dtype)) if dtype != "BOOL" else 8
                self.facts[name] = TensorFacts(shape, dtype, int(np.prod(shape)) * bits // 8)
                self._files[name] = handle

    def read(self, name: str, index: Index) -> np.ndarray:
        """The slice of a tensor, in the dtype of the file."""
        return self._files[name].get_slice(name)[index]


def _files(folder: Path) -> dict[str, list[str] | None]:
    """The folder's files, with the tensors that the index says each has; None where there is no index.

    Where programs that read such folders disagree on which files are the model, it is refused; other files with
    weights that are left unread are named in a warning.
    """
    if (folder / ADAPTER).exists():
        raise ValueError(f"{folder} has {ADAPTER}: an adapter is not applied; merge it into the model, or move it away")
    there = sorted({path.name for pattern in OTHERS for path in folder.glob(pattern)})
    files = _indexed(folder) if (folder / INDEX).exists() else {}
    if os.path.lexists(folder / WEIGHTS) and WEIGHTS not in files:
        if others := list(files) or [name for name in there if _SHARD.fullmatch(name)]:
            these = f"{INDEX} with {shown(others[0])}" if files else shown(others[0])
            raise ValueError(f"{folder} has {WEIGHTS} and also {these}: keep those that are the model")
        files = {WEIGHTS: None}
    unread = [name for name in there if name not in files]
    if not files:
        raise ValueError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}{_instead(folder, unread)}")
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        read = WEIGHTS if WEIGHTS in files else f"what {INDEX} names"
        text = f"{folder}: {read} is read; {unread[0]}{more} is not"
        warnings.warn_explicit(text, UserWarning, "salt_jax", 0, registry=_SAID)  # one line: no source is shown
    return files


def _indexed(folder: Path) -> dict[str, list[str] | None]:
    raw = check_values(read_json(folder / INDEX), {"weight_map": OBJECT}, str(folder / INDEX))
    if not raw.get("weight_map"):
        raise ValueError(f"{folder / INDEX}: weight_map must name the file of every tensor")
    files: dict[str, list[str] | None] = {}
    for name, file in raw["weight_map"].items():
        if not isinstance(file, str) or Path(file).name != file or not file.isprintable():
            what = f"tensor {one_line(name)} must be in a file of this folder, got {shown(file)}"
            raise ValueError(f"{folder / INDEX}: {what}")
        files.setdefault(file, []).append(name)  # type: ignore[union-attr]
    return files


def _instead(folder: Path, others: list[str]) -> str:
    """What to do with a folder whose weights are none that can be read."""
    pickles = [name for name in others if name.endswith((".bin", ".pth"))]
    for name in others:
        if name.endswith(".gguf"):
            return f"; there is {name}: name the file itself, {folder / name}"
        if _SHARD.fullmatch(name):
            return f"; there is {name}: a model in several files needs {INDEX}"
        if name.endswith(".safetensors"):
            return f"; there is {name}: if that is the model, name it {WEIGHTS}"
    if pickles:
        how = "transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        return f"; its weights are in {pickles[0]} only, which is a pickle; convert it where it is trusted: {how}"
    return f"; there is {others[0]}, which is not read" if others else ""


def _check_file(path: Path) -> None:
    """That a file is as long as its header says; the library's own complaint names no tensor."""
    check_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is not a safetensors file, or is cut off within its header ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            ends = {name: 8 + length + facts["data_offsets"][1] for name, facts in header.items()
                    if name != "__metadata__"}  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"{path} is not a safetensors file: {error!r} in its header") from None
    for name, end in sorted(ends.items(), key=lambda item: item[1]):
        if end > size:
            raise ValueError(f"{path} is cut off: tensor {one_line(name)} ends at byte {end}, the file at {size}")
