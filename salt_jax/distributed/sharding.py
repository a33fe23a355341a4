"""Where arrays live: one mesh (data, fsdp, tensor) and one table of rules, first match wins."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from salt_jax.distributed.layout import Layout

BATCH = ("data", "fsdp")  # a batch is split over both; parameters over fsdp and tensor

# Path of a leaf (keys joined by '/') -> its axes. Optimizer moments end in the same names as parameters.
# Layer leaves have the layer axis first. The vocabulary is split over tensor: salt_jax/vocab/streaming.py and geometry/
# compute on each part by hand (``layout``).
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"embedding$", PartitionSpec("tensor", "fsdp")),
    (r"head$", PartitionSpec("fsdp", "tensor")),
    (r"layers/(q|k|v|gate|up)$", PartitionSpec(None, "fsdp", "tensor")),
    (r"layers/(o|down)$", PartitionSpec(None, "tensor", "fsdp")),
    (r"layers/[qkv]_bias$", PartitionSpec(None, "tensor")),
    (r"", PartitionSpec()),
)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first data·fsdp·tensor devices; jit decides the layout of intermediates.

    Raises:
      ValueError: if there are fewer devices, naming both numbers.

    Example:
      >>> dict(make_mesh().shape)
      {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    count = data * fsdp * tensor
    if count > jax.device_count():
        there = jax.device_count()
        raise ValueError(f"config.mesh asks for {data} x {fsdp} x {tensor} = {count} devices; there are {there}")
    auto = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), auto, devices=jax.devices()[:count])


def vocabulary_axis(mesh: Mesh, vocab_size: int) -> str | None:
    """'tensor', or None where it does not divide the vocabulary: then every device holds all of it."""
    return "tensor" if vocab_size % mesh.shape["tensor"] == 0 else None


def layout(mesh: Mesh, vocab_size: int) -> Layout | None:
    """The mesh as the log-prob and the geometry use it; None where there is one device and nothing to split.

    Example:
      >>> layout(make_mesh(), 100) is None
      True
    """
    if mesh.size == 1:
        return None
    return Layout(mesh, batch=BATCH, vocab=vocabulary_axis(mesh, vocab_size), width="fsdp")


def path_of(key_path: Any) -> str:
    """A pytree key path as keys joined by '/'."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of NamedShardings for parameters, optimizer state or a whole training state, from ``RULES``."""

    def rule(key_path: Any, leaf: Any) -> NamedSharding:
        path = path_of(key_path)
        spec = next(spec for pattern, spec in RULES if re.search(pattern, path))
        at = {r"embedding$": 0, r"head$": 1}
        for axis in (axis for pattern, axis in at.items() if re.search(pattern, path)):  # the vocabulary's
            spec = PartitionSpec(*spec[:axis], vocabulary_axis(mesh, leaf.shape[axis]), *spec[axis + 1 :])
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(rule, tree)
