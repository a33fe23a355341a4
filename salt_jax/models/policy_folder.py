"""Folders of this project's own that hold a policy: an imported checkpoint, or a training run.

    policy.json    the configuration, and where the parameters first came from
    source/        that checkpoint's config.json, generation_config.json and tokenizer, where there was one
    params/                            parameters of an imported checkpoint (Orbax)
    checkpoints/train/<step>/params/   parameters of a run (Orbax, written by ``training``)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from salt_jax.models import run_steps
from salt_jax.models.hf_config import ROPE
from salt_jax.models.hf_tensors import TensorFacts, abstract_params, on_default_device
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.rope import RopeScaling
from salt_jax.tasks.json_values import FLAG, OBJECT, SIZE, TEXT, check_values, need, number, read_json, shown

POLICY, SOURCE, PARAMS = "policy.json", "source", "params"

_SIZES = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
_FLAGS = ("qkv_bias", "qk_norm", "tied_embeddings", "scan_layers")
_KEYS = (
    dict.fromkeys(_SIZES, SIZE) | dict.fromkeys(_FLAGS, FLAG)
    | dict.fromkeys(("compute_dtype", "attention", "remat"), TEXT)
    | {"rope_theta": number(above=0.0), "rms_norm_eps": number(0.0), "rope_scaling": OBJECT}
)  # fmt: skip


def policy_text(config: TransformerConfig, source: str | None) -> str:
    """The content of policy.json; ``source`` is the path that the parameters were imported from, if any."""
    return json.dumps({"config": dataclasses.asdict(config), "source": source}, indent=2) + "\n"


def read_policy(folder: Path) -> tuple[TransformerConfig, str | None]:
    """What ``policy_text`` was given.

    Raises:
      ValueError: naming the file and the key.
    """
    raw, path = read_json(folder / POLICY), str(folder / POLICY)
    if not isinstance(raw.get("config"), dict):
        raise ValueError(f"{path}: config must be an object, got {shown(raw.get('config'))}")
    source = check_values(raw, {"source": TEXT}, path).get("source")
    values = _known(raw["config"], _KEYS, path, "config.")
    for key in _SIZES:
        need(values, _KEYS, key, path)
    kinds = {name: kind for name, kind in ROPE.items() if name in RopeScaling.__dataclass_fields__}
    rope = _known(values.get("rope_scaling", {}), {"kind": TEXT} | kinds, path, "config.rope_scaling.")
    try:
        if "rope_scaling" in values:
            values["rope_scaling"] = RopeScaling(rope.pop("kind", ""), rope.pop("factor", 0.0), **rope)
        return TransformerConfig(**values), source
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _known(raw: dict[str, Any], kinds: dict[str, Any], path: str, under: str) -> dict[str, Any]:
    if unknown := [key for key in raw if key not in kinds]:
        raise ValueError(f"{path}: {under}{shown(unknown[0])[1:-1]} is no key; allowed: {', '.join(kinds)}")
    return check_values(raw, kinds, path, under)


def find_params(folder: Path, step: int | str | None) -> Path:
    """The Orbax folder of parameters: an imported checkpoint's, or a run's at ``step`` (``run_steps.choose``).

    Raises:
      ValueError: if there is none, naming the steps that there are, or if its files are not as they were written.
    """
    if (folder / PARAMS).is_dir():
        if (folder / run_steps.STEPS).is_dir():
            both = f"{PARAMS}/, of an imported checkpoint, and {run_steps.STEPS}/, of a run"
            raise ValueError(f"{folder} has {both}: keep one")
        if step is not None:
            raise ValueError(f"{folder} is an imported checkpoint: it has no step {step}")
        return folder / PARAMS
    steps = folder / run_steps.STEPS
    if not steps.is_dir():
        raise ValueError(
            f"{folder} has {POLICY} but neither {PARAMS}/ nor {run_steps.STEPS}/: no parameters were saved yet"
        )
    found = run_steps.choose(folder, run_steps.NEWEST if step is None else step, warnings.warn)
    return steps / str(found) / PARAMS


def stored_facts(params: Path, config: TransformerConfig) -> dict[str, TensorFacts]:
    """Shapes and dtypes of saved parameters, once they are known to be those of ``config``.

    Raises:
      ValueError: naming the parameter and both shapes.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(params).item_metadata
    if metadata is None:
        raise ValueError(f"{params} is not an Orbax folder of parameters")
    found = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _flat(metadata.tree).items()}

    def compare(name: str, expected: tuple[int, ...] | None) -> None:
        shape = found[name][0] if name in found else "missing"
        if shape != expected:
            raise ValueError(f"{params}: parameter {name} must be {expected or 'absent'}, got {shape}")

    layers, width, head = config.num_layers, config.d_model, config.head_dim
    compare("embedding", (config.vocab_size, width))  # all sizes first: of any other, shapes can be past every limit
    compare("layers/down", (layers, config.mlp_dim, width))
    compare("layers/k", (layers, width, config.num_kv_heads * head))
    compare("layers/q", (layers, width, config.num_heads * head))
    shapes = abstract_params(config)
    expected = {name: leaf.shape for name, leaf in _flat(shapes).items()}
    for name in sorted(expected.keys() | found.keys()):
        compare(name, expected.get(name))
    return {
        name: TensorFacts(shape, dtype, leaf.size * jnp.dtype(dtype).itemsize)
        for (name, leaf), (shape, dtype) in zip(_flat(shapes).items(), (found[k] for k in _flat(shapes)), strict=True)
    }


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def save(params: Any, folder: Path) -> None:
    """Writes parameters as ``restore`` reads them."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, params)


def restore(folder: Path, shapes: Any, shardings: Any | None) -> Any:
    """Saved parameters in float32, each device reading its own part.

    Args:
      folder: what ``find_params`` found.
      shapes: their shapes and dtypes.
      shardings: a tree like them; None puts everything on the default device.

    Raises:
      ValueError: naming the first parameter that is not finite.
    """
    shardings = on_default_device(shapes) if shardings is None else shardings
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    with ocp.StandardCheckpointer() as checkpointer:
        params = jax.tree.map(jnp.copy, checkpointer.restore(folder, abstract))  # buffers of JAX's own, see training
    with jax.transfer_guard("allow"):
        for name, finite in _flat(_all_finite(params)).items():
            if not finite:
                raise ValueError(f"{folder}: parameter {name} has values that are not finite, NaN or infinite")
    return params


@jax.jit
def _all_finite(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that exists whole or not at all: what is yielded is renamed to it at the end.

    Raises:
      ValueError: if ``folder`` is there already and is not an empty folder.
    """
    check_new(folder)
    folder = folder.absolute()
    writing = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    writing.mkdir(parents=True)
    try:
        yield writing
        writing.rename(folder)  # over an empty folder, too
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise


def check_new(folder: Path) -> None:
    """Raises ValueError where ``new_folder`` would overwrite something."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise ValueError(f"{folder} is there already; name a folder that is not")
