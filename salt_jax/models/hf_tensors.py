"""Hugging Face's tensors and the decoder's parameters: names, shapes, and reading only what a device needs.

A tensor of a checkpoint is one layer's, its kernels (out, in); a parameter is all layers', its kernels (in, out).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.transformer import Decoder
from salt_jax.spec import one_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"
BUFFERS = ".rotary_emb.inv_freq"  # of old files, which are computed here

# A parameter of the decoder -> its tensor, {} the layer.
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "layers/attention_norm": "model.layers.{}.input_layernorm.weight",
    "layers/q": "model.layers.{}.self_attn.q_proj.weight",
    "layers/k": "model.layers.{}.self_attn.k_proj.weight",
    "layers/v": "model.layers.{}.self_attn.v_proj.weight",
    "layers/o": "model.layers.{}.self_attn.o_proj.weight",
    "layers/q_bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/k_bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/v_bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers/k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "layers/mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/up": "model.layers.{}.mlp.up_proj.weight",
    "layers/down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": HEAD,
}

_LAYER = re.compile(r"(?<=^model\.layers)\.(\d{1,9})\.")

Index = tuple[slice, ...]


class TensorFacts(NamedTuple):
    """What a header says of a tensor: its shape, its type's name there, and its bytes on disk."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class Tensors(Protocol):
    """A file or folder of tensors in Hugging Face's names and layouts."""

    @property
    def facts(self) -> Mapping[str, TensorFacts]:
        """By name."""
        ...

    def read(self, name: str, index: Index) -> np.ndarray:
        """The slice of a tensor, and nothing else of it."""
        ...


def abstract_params(config: TransformerConfig) -> Any:
    """Shapes and dtypes of the decoder's parameters, the tree that training starts from; nothing is allocated.

    Example:
      >>> config = TransformerConfig(vocab_size=16, d_model=8, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4,
      ...                            mlp_dim=16)
      >>> abstract_params(config)["layers"]["k"].shape
      (3, 8, 4)
    """
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))))


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter lies in a checkpoint: one tensor, or one a layer; transposed where it is a kernel."""

    names: tuple[str, ...]
    stacked: bool
    transposed: bool
    shape: tuple[int, ...]  # the parameter's

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Of each of its tensors."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def places(config: TransformerConfig) -> Any:
    """The tree of parameters with a ``Place`` at each leaf."""

    def place(key_path: Any, leaf: Any) -> Place:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        stacked = path.startswith("layers/")
        names = tuple(NAMES[path].format(i) for i in range(config.num_layers)) if stacked else (NAMES[path],)
        transposed = len(leaf.shape) - stacked == 2 and path != "embedding"
        return Place(names, stacked, transposed, leaf.shape)

    return jax.tree_util.tree_map_with_path(place, abstract_params(config))


def expected_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint of ``config`` and its shape."""
    leaves = jax.tree.leaves(places(config))
    return {name: place.tensor_shape for place in leaves for name in place.names}


def check(tensors: Tensors, config: TransformerConfig, where: str, dtypes: tuple[str, ...] | None = None) -> None:
    """That the headers hold what ``config`` needs and nothing else.

    Two kinds of extra tensors are known: inv_freq buffers of old files, which are the rotary frequencies that
    ``config`` gives too, and lm_head.weight beside tied embeddings, which ``load`` compares with them.

    Args:
      tensors: their headers are read, their data is not.
      config: what the checkpoint's configuration says; of any sizes, which cost nothing before they are found right.
      where: what messages call it.
      dtypes: those that can be read; None for any.

    Raises:
      ValueError: for the first tensor that is missing, unexpected, of another shape or of another dtype.
    """
    found = tensors.facts
    strange = [name for name in found if _LAYER.sub(".{}.", name) not in NAMES.values()]
    _compare(found, _outline(config), strange, where, dtypes)
    numbers = {int(match[1]) for match in map(_LAYER.search, found) if match}
    layers = next(i for i in itertools.count() if i not in numbers)
    if config.num_layers > layers:
        missing = f"tensor {NAMES['layers/attention_norm'].format(layers)} ({config.d_model},) is missing"
        raise ValueError(
            f"{where}: the configuration has {config.num_layers} layers, the tensors are of {layers}: {missing}"
        )
    expected = expected_shapes(config)
    if config.tied_embeddings and HEAD in found:
        expected[HEAD] = (config.vocab_size, config.d_model)
    extra = [name for name in found if name not in expected and not name.endswith(BUFFERS)]
    _compare(found, expected, extra, where, dtypes)
    if extra:
        near = difflib.get_close_matches(extra[0], expected, 1, cutoff=0.0)[0]
        raise ValueError(
            f"{where}: tensor {one_line(extra[0])} {found[extra[0]].shape} has no place in this model, whose nearest "
            f"is {near} {expected[near]}"
        )


def _outline(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Tensors in whose shapes all sizes stand, but for the number of layers."""
    width, layer = config.d_model, "model.layers.0."
    return {
        NAMES["embedding"]: (config.vocab_size, width),
        layer + "self_attn.k_proj.weight": (config.num_kv_heads * config.head_dim, width),
        layer + "self_attn.q_proj.weight": (config.num_heads * config.head_dim, width),
        layer + "mlp.down_proj.weight": (width, config.mlp_dim),
    }


def _compare(found: Mapping[str, TensorFacts], expected: Mapping[str, tuple[int, ...]], extra: list[str], where: str,
             dtypes: tuple[str, ...] | None) -> None:  # fmt: skip
    for name, shape in expected.items():
        if name not in found:
            others = difflib.get_close_matches(name, extra, 1, cutoff=0.0)
            hint = "".join(f"; there is {one_line(other)} {found[other].shape} instead" for other in others)
            raise ValueError(f"{where}: tensor {name} {shape} is missing{hint}")
        if found[name].shape != shape:
            raise ValueError(f"{where}: tensor {name} must have shape {shape}, got {found[name].shape}")
        if dtypes and found[name].dtype not in dtypes:
            raise ValueError(f"{where}: tensor {name} must be one of {', '.join(dtypes)}, got {found[name].dtype}")


def check_finite(values: np.ndarray, name: str, where: str, why: str = "") -> None:
    """ValueError if there is NaN or infinity among the values of a tensor, saying how many.

    >>> check_finite(np.array([1.0, np.nan, np.inf, np.nan]), "model.norm.weight", "folder")
    Traceback (most recent call last):
    ValueError: folder: tensor model.norm.weight is not finite: 2 NaN and 1 infinite of 4 numbers
    """
    if bad := values.size - np.count_nonzero(np.isfinite(values)):
        nan = np.count_nonzero(np.isnan(values))
        counts = f"{nan} NaN and {bad - nan} infinite of {values.size:,} numbers"
        raise ValueError(f"{where}: tensor {one_line(name)} is not finite{why}: {counts}")


def scan(tensors: Tensors, where: str, numbers: int = 1 << 24) -> None:
    """Reads every number once, a block of so many at a time, and keeps none.

    Raises:
      ValueError: naming the first tensor that is not finite.
    """
    for name, fact in tensors.facts.items():
        if not fact.shape or name.endswith(BUFFERS):
            continue
        rows = max(1, numbers // max(1, math.prod(fact.shape[1:])))
        for start in range(0, fact.shape[0], rows):
            block = (slice(start, min(start + rows, fact.shape[0])), *(slice(0, size) for size in fact.shape[1:]))
            check_finite(tensors.read(name, block).astype(np.float32), name, where)


def on_default_device(tree: Any) -> Any:
    """The sharding of every leaf where none is asked for: all of it on the device that jax_default_device names."""
    default = jax.device_put(np.float32(0)).sharding
    return jax.tree.map(lambda _: default, tree)


def load(tensors: Tensors, config: TransformerConfig, shardings: Any | None, where: str) -> Any:
    """The parameters in float32, each device's part read by itself.

    One parameter's parts for this process's devices are on the host at a time.

    Args:
      tensors: what ``check`` has seen.
      config: the same.
      shardings: a tree like the parameters; None puts everything on the default device.
      where: what messages call the checkpoint.

    Raises:
      ValueError: if embeddings are tied and a stored lm_head.weight is another matrix, or a tensor is not finite.
    """
    if config.tied_embeddings and HEAD in tensors.facts:
        _check_tied(tensors, config, where)
    layout = places(config)
    shardings = on_default_device(layout) if shardings is None else shardings
    with jax.transfer_guard("allow"):  # this is what it is for
        return jax.tree.map(lambda place, sharding: _load_leaf(tensors, place, sharding, where), layout, shardings)


def _load_leaf(tensors: Tensors, place: Place, sharding: jax.sharding.Sharding, where: str) -> jax.Array:
    @functools.cache  # replicas share what is read
    def part(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        index = tuple(slice(*pair) for pair in bounds)
        names, inner = (place.names[index[0]], index[1:]) if place.stacked else (place.names, index)
        out = np.empty([stop - start for start, stop in bounds], np.float32)
        for layer, name in zip(out if place.stacked else [out], names, strict=True):
            tensor = tensors.read(name, inner[::-1] if place.transposed else inner)
            layer[...] = tensor.T if place.transposed else tensor
            check_finite(layer, name, where)
        return out

    def callback(index: Index | None) -> np.ndarray:
        assert index is not None  # it is only for arrays without elements
        return part(tuple(s.indices(size)[:2] for s, size in zip(index, place.shape, strict=True)))

    return jax.make_array_from_callback(place.shape, sharding, callback, dtype=np.float32)


def _check_tied(tensors: Tensors, config: TransformerConfig, where: str, rows: int = 4096) -> None:
    for start in range(0, config.vocab_size, rows):
        index = (slice(start, min(start + rows, config.vocab_size)), slice(0, config.d_model))
        embedding, head = (tensors.read(name, index).astype(np.float32) for name in (NAMES["embedding"], HEAD))
        if not np.array_equal(embedding.view(np.uint32), head.view(np.uint32)):
            raise ValueError(
                f"{where}: tie_word_embeddings is true but {HEAD} is not {NAMES['embedding']}; drop one of them"
            )
