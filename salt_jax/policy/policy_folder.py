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

from salt_jax.policy import run_steps
from salt_jax.policy.hf_config import read_json
from salt_jax.policy.hf_tensors import TensorFacts, on_default_device
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.rope import RopeScaling

POLICY, SOURCE, PARAMS = "policy.json", "source", "params"


def policy_text(config: TransformerConfig, source: str | None) -> str:
    """The content of policy.json; ``source`` is the path that the parameters were imported from, if any."""
    return json.dumps({"config": dataclasses.asdict(config), "source": source}, indent=2) + "\n"


def read_policy(folder: Path) -> tuple[TransformerConfig, str | None]:
    """What ``policy_text`` was given.

    Raises:
      ValueError: naming the file and the key.
    """
    raw, path = read_json(folder / POLICY), folder / POLICY
    values = raw.get("config")
    if not isinstance(values, dict):
        raise ValueError(f"{path}: config must be an object, got {values!r}")
    try:
        if values.get("rope_scaling") is not None:
            values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
        return TransformerConfig(**values), raw.get("source")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def find_params(folder: Path, step: int | str | None) -> Path:
    """The Orbax folder of parameters: an imported checkpoint's, or a run's at ``step`` (``run_steps.choose``).

    Raises:
      ValueError: if there is none, naming the steps that there are, or if its files are not as they were written.
    """
    if (folder / PARAMS).is_dir():
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


def stored_facts(params: Path, shapes: Any) -> dict[str, TensorFacts]:
    """Shapes and dtypes of saved parameters, once they are known to be those of ``shapes``.

    Raises:
      ValueError: naming the parameter and both shapes.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(params).item_metadata
    if metadata is None:
        raise ValueError(f"{params} is not an Orbax folder of parameters")
    found = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _flat(metadata.tree).items()}
    expected = {name: leaf.shape for name, leaf in _flat(shapes).items()}
    for name in sorted(expected.keys() | found.keys()):
        shape = found[name][0] if name in found else "missing"
        if shape != expected.get(name):
            raise ValueError(f"{params}: parameter {name} must be {expected.get(name, 'absent')}, got {shape}")
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
    """
    shardings = on_default_device(shapes) if shardings is None else shardings
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.map(jnp.copy, checkpointer.restore(folder, abstract))  # buffers of JAX's own, see training


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
