"""Where arrays live: one mesh (data, fsdp, tensor) and one table of rules, first match wins."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH = ("data", "fsdp")  # a batch is split over both; parameters over fsdp and tensor

# Path of a leaf (keys joined by '/') -> its axes. Optimizer moments end in the same names as parameters.
# Layer leaves have the layer axis first. The vocabulary axis is not split: the streamed log-prob slices it.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"embedding$", PartitionSpec(None, "fsdp")),
    (r"head$", PartitionSpec("fsdp", None)),
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

    def rule(key_path: Any, _: Any) -> NamedSharding:
        path = path_of(key_path)
        return NamedSharding(mesh, next(spec for pattern, spec in RULES if re.search(pattern, path)))

    return jax.tree_util.tree_map_with_path(rule, tree)
