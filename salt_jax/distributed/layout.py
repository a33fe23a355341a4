"""How a batch of rollouts and an output projection lie on a device mesh, for what is computed by hand on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of the mesh axes that split rollouts, the vocabulary and the hidden width of the output projection.

    A function that takes a layout computes under `jax.shard_map`: each device works on its own rollouts and its
    own part of the vocabulary, and what they exchange is written out in the code, not left to the compiler.
    Hashable, hence static under jit. Axes of size 1 may be named; None or () where nothing is split.

    Attributes:
      mesh: the devices.
      batch: axes that split the rollouts (or tokens), the first outermost.
      vocab: the axis that splits the V columns of lm_head (H, V), or None.
      width: the axis that splits the H rows of lm_head where it is stored, or None; gathered before use.

    Raises:
      ValueError: an axis that the mesh does not have, or one that is both a batch and the vocabulary axis.

    >>> layout = Layout(jax.make_mesh((1, 1), ("data", "tensor")), batch=("data",), vocab="tensor", width=None)
    >>> layout.batch_shards, layout.vocab_shards
    (1, 1)
    """

    mesh: Mesh
    batch: tuple[str, ...] = ("data", "fsdp")
    vocab: str | None = "tensor"
    width: str | None = "fsdp"

    def __post_init__(self) -> None:
        for name in (*self.batch, *self._single):
            if name not in self.mesh.shape:
                raise ValueError(f"layout: {name!r} is not an axis of the mesh {dict(self.mesh.shape)}")
        if self.vocab in self.batch or (self.vocab is not None and self.vocab == self.width):
            raise ValueError(f"layout: the vocabulary axis {self.vocab!r} must split nothing else")

    @property
    def _single(self) -> list[str]:
        return [name for name in (self.vocab, self.width) if name is not None]

    @property
    def batch_shards(self) -> int:
        """Parts that the rollouts are split into."""
        return math.prod(self.mesh.shape[name] for name in self.batch)

    @property
    def vocab_shards(self) -> int:
        """Parts that the vocabulary is split into."""
        return 1 if self.vocab is None else self.mesh.shape[self.vocab]

    @property
    def width_shards(self) -> int:
        """Parts that the hidden width of lm_head is stored in."""
        return 1 if self.width is None else self.mesh.shape[self.width]

    @property
    def rows(self) -> PartitionSpec:
        """The spec of an array whose leading axis is rollouts or tokens."""
        return PartitionSpec(self.batch)

    @property
    def head(self) -> PartitionSpec:
        """The spec of lm_head (H, V)."""
        return PartitionSpec(self.width, self.vocab)

    def check(self, rows: tuple[str, int], lm_head: tuple[int, ...]) -> None:
        """ValueError unless the mesh divides rows = (what they are, how many) and lm_head's (H, V)."""
        shape = dict(self.mesh.shape)
        name, count = rows
        if count % self.batch_shards:
            raise ValueError(
                f"mesh {shape} splits {name} over {self.batch}: {self.batch_shards} must divide {count}"
            )
        if lm_head[1] % self.vocab_shards:
            raise ValueError(
                f"mesh {shape} splits the vocabulary over {self.vocab!r}: {self.vocab_shards} must divide V of "
                f"lm_head (H, V) = {lm_head}"
            )
        if lm_head[0] % self.width_shards:
            raise ValueError(
                f"mesh {shape} splits the width over {self.width!r}: {self.width_shards} must divide H of "
                f"lm_head (H, V) = {lm_head}"
            )

    def everywhere(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Under jit: the function computed whole on every device, without a word between them."""
        spec = PartitionSpec()
        return jax.shard_map(function, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False)

    def replicate(self, arrays: Any) -> Any:
        """Under jit: the arrays, whole on every device."""
        return jax.lax.with_sharding_constraint(arrays, NamedSharding(self.mesh, PartitionSpec()))

    def gather_width(self, lm_head: jax.Array) -> jax.Array:
        """Inside shard_map: this device's (H / width, V / vocab) -> (H, V / vocab)."""
        if self.width_shards == 1:
            return lm_head
        return jax.lax.all_gather(lm_head, self.width, axis=0, tiled=True)

    def reduce_head(self, gradient: jax.Array) -> jax.Array:
        """Inside shard_map: each device's part of a sum (H, V / vocab) -> its own (H / width, V / vocab) of it."""
        others = tuple(name for name in self.batch if name != self.width)
        if self.width_shards > 1 and self.width in self.batch:
            gradient = jax.lax.psum_scatter(gradient, self.width, scatter_dimension=0, tiled=True)
        elif self.width_shards > 1:
            size = gradient.shape[0] // self.width_shards
            start = jax.lax.axis_index(self.width) * size
            gradient = jax.lax.dynamic_slice_in_dim(gradient, start, size, axis=0)
        return jax.lax.psum(gradient, others) if others else gradient

    def sum_vocab(self, value: jax.Array) -> jax.Array:
        """Inside shard_map: the sum over the parts of the vocabulary."""
        return value if self.vocab_shards == 1 else jax.lax.psum(value, self.vocab)

    def max_vocab(self, value: jax.Array) -> jax.Array:
        """Inside shard_map: the maximum over the parts of the vocabulary."""
        return value if self.vocab_shards == 1 else jax.lax.pmax(value, self.vocab)

    def vocab_offset(self, columns: int) -> int | jax.Array:
        """Inside shard_map: the id of the first of this device's ``columns`` columns."""
        return 0 if self.vocab_shards == 1 else jax.lax.axis_index(self.vocab) * columns
