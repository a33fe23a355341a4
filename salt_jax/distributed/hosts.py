"""Many processes, one run: the same command on every host, and JAX's multi-controller runtime between them.

Every process runs the whole program on the same data and takes the same decisions; device arrays are global, a process
holds the parts on its own devices. What only one host can see (grades of its rollouts, a signal, a file) goes to all by
``gather``. With one process, which is the default, every function here is the identity or next to nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from salt_jax.distributed.hosts_start import end_process, initialize_from_environment
from salt_jax.distributed.sharding import batch_sharding
from salt_jax.spec import ConfigError

__all__ = [
    "agree", "check_mesh", "count", "end_process", "explain", "fetch", "fetch_local", "first_to_all",
    "gather", "index", "initialize_from_environment", "largest", "lead", "local_rows", "put", "together",
]  # fmt: skip

T = TypeVar("T")
LEAST_MESSAGE = 1 << 10  # bytes; messages are padded to powers of two, so that few programs are compiled
# What JAX, gloo, NCCL and Orbax say when another process is gone; compared in lower case.
GONE = (
    "gloo", "connection reset by peer", "connection closed by peer", "socket closed", "broken pipe", "heartbeat",
    "coordination service", "coordination_service", "barrier", "another task died", "tasks are unhealthy", "nccl",
    "remote process exited",
)  # fmt: skip
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")  # how the runtime's messages begin
_PATH = re.compile(r"\S*[/\\]\S*")


def count() -> int:
    """Processes of this run."""
    return jax.process_count()


def index() -> int:
    """Number of this process, from 0."""
    return jax.process_index()


def lead() -> bool:
    """Whether this process writes files and speaks to people: process 0."""
    return jax.process_index() == 0


def put(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole, as global arrays; like ``jax.device_put``.

    No process looks at another's values: that they are equal is the caller's to see to. Leaves that are spread over
    processes already are left as they are.

    Args:
      tree: NumPy arrays, numbers, or arrays of this process's devices.
      shardings: a tree of shardings like it, or a prefix of one.

    Example:
      >>> from salt_jax.distributed.sharding import make_mesh, replicated
      >>> put({"a": np.arange(2)}, replicated(make_mesh()))["a"].tolist()
      [0, 1]
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(_put, tree, jax.tree.broadcast(shardings, tree))


def _put(x: Any, sharding: Any) -> jax.Array:
    if isinstance(x, jax.Array):
        if not x.is_fully_addressable:
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    host = np.asarray(jax.device_get(x))
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    return jax.make_array_from_callback(host.shape, sharding, lambda where: host[where])


def fetch(tree: Any) -> Any:
    """Whole NumPy arrays on every process; all processes must call it alike.

    Example:
      >>> fetch({"a": jax.numpy.arange(2)})["a"].tolist()
      [0, 1]
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return jax.device_get(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Which rows of a batch of so many lie on this process's devices, ascending.

    Example:
      >>> from salt_jax.distributed.sharding import make_mesh
      >>> local_rows(make_mesh(), 3).tolist()
      [0, 1, 2]
    """
    if jax.process_count() == 1:
        return np.arange(rows)
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,))
    return np.unique(np.concatenate([np.arange(rows)[where] for where in places.values()]))  # type: ignore[index]


def fetch_local(tree: Any) -> Any:
    """The ``local_rows`` of arrays with a batch's leading axis, as NumPy; nothing goes between processes."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def mine(x: jax.Array) -> np.ndarray:
        parts = {shard.index[0].indices(x.shape[0])[0]: shard.data for shard in x.addressable_shards}
        return np.concatenate([jax.device_get(part) for _, part in sorted(parts.items())])

    return jax.tree.map(mine, tree)


def gather(value: Any) -> list[Any]:
    """An object that JSON can carry, of each process, in their order, on all; all must call it alike.

    For small things: every device holds the messages of all processes, each padded to the longest.

    Example:
      >>> gather({"reward": 0.5})
      [{'reward': 0.5}]
    """
    if jax.process_count() == 1:
        return [value]
    message = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with jax.transfer_guard("allow"):  # a few bytes, for their own sake
        sizes = multihost_utils.process_allgather(np.int32(message.size))
        messages = multihost_utils.process_allgather(_padded(message, int(sizes.max())))
    return [json.loads(row[:size].tobytes()) for row, size in zip(messages, sizes.tolist(), strict=True)]


def _padded(message: np.ndarray, size: int) -> np.ndarray:
    padded = np.zeros(max(LEAST_MESSAGE, 1 << (size - 1).bit_length()), np.uint8)
    padded[: message.size] = message
    return padded


def largest(number: int) -> int:
    """The largest of the processes' numbers, on all; all must call it alike. One small collective operation."""
    if jax.process_count() == 1:
        return number
    with jax.transfer_guard("allow"):
        return int(multihost_utils.process_allgather(np.int32(number)).max())


def first_to_all(value: T) -> T:
    """Process 0's object, which JSON can carry, on all; all must call it alike. The others' are not looked at."""
    if jax.process_count() == 1:
        return value
    message = np.frombuffer(json.dumps(value).encode() if lead() else b"", np.uint8)
    with jax.transfer_guard("allow"):  # a few bytes, for their own sake
        size = int(multihost_utils.broadcast_one_to_all(np.int32(message.size)))
        found = multihost_utils.broadcast_one_to_all(_padded(message, size))
    return json.loads(np.asarray(found)[:size].tobytes())


def agree(check: Callable[[], T]) -> T:
    """What ``check`` returns, once it has passed on every process: no process goes on where another cannot.

    Raises:
      ConfigError: on all processes, if it does on one; the message names the process unless it is the same on all.
    """
    if jax.process_count() == 1:
        return check()
    found: Any = None
    message: str | None = None
    try:
        found = check()
    except ConfigError as error:
        message = str(error)
    if (said := together(gather(message))) is not None:
        raise ConfigError(said)
    return found


def together(messages: Sequence[str | None]) -> str | None:
    """One line of what went wrong on some processes; None where nothing did.

    Example:
      >>> together([None, None]), together(["no file", "no file"]), together([None, "no file"])
      (None, 'no file', 'process 1 of 2: no file')
    """
    failed = [(i, message) for i, message in enumerate(messages) if message is not None]
    if not failed:
        return None
    number, first = failed[0]
    same = len(failed) == len(messages) and len({message for _, message in failed}) == 1
    return first if same else f"process {number} of {len(messages)}: {first}"


def check_mesh(mesh: Mesh) -> None:
    """That a mesh uses every device of every process, and that the devices that share a row share a process.

    Raises:
      ConfigError: naming config.mesh and both numbers.
    """
    processes = jax.process_count()
    if processes == 1:
        return
    there, asked = jax.device_count(), " x ".join(str(n) for n in mesh.shape.values())
    if mesh.size != there:
        raise ConfigError(f"config.mesh asks for {asked} = {mesh.size} devices; {processes} processes have {there}")
    check_rows([{device.process_index for device in row} for row in mesh.devices.reshape(-1, mesh.shape["tensor"])])


def check_rows(owners: Sequence[set[int]]) -> None:
    """That each row of a batch lies on the devices of one process: it is graded once, where it was sampled.

    Args:
      owners: of each part of the batch, the processes whose devices hold it.

    Raises:
      ConfigError: naming two processes.

    Example:
      >>> check_rows([{0}, {0}, {1}, {1}])
    """
    shared = next((sorted(found) for found in owners if len(found) > 1), None)
    if shared:
        names = ", ".join(map(str, shared[:4])) + (", …" if len(shared) > 4 else "")
        raise ConfigError(
            f"config.mesh.tensor splits a rollout over processes {names}; allowed: a divisor of the devices of one"
            " process (split parameters over config.mesh.fsdp instead)"
        )


def explain(error: BaseException) -> str | None:
    """One line where an error, or what it was raised from, means that another process is gone; else None.

    Then ``end_process(1, line)``: an exit in good order would wait for the one that is gone.
    """
    if jax.process_count() == 1 or (text := gone(error)) is None:
        return None
    return f"process {index()} of {count()}: another process of this run is gone ({text}); start all again to resume"


def gone(error: BaseException | None) -> str | None:
    """What the runtime says in an error or its causes of a process that is gone, in one line; None if nothing.

    Only the runtime's own errors count, which are JaxRuntimeError or, with a status in front, Python's plain ones;
    and no path in them.

    Example:
      >>> gone(ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"))
      'UNKNOWN: Gloo AllGather failed: Connection closed by peer'
      >>> gone(ValueError("UNKNOWN: Error reading /runs/gloo/3")), gone(ValueError("no task 'barrier'"))
      (None, None)
    """
    while error is not None:
        text = " ".join(str(error).split())
        plain = type(error) in (ValueError, RuntimeError) and _STATUS.match(text)
        if plain or isinstance(error, jax.errors.JaxRuntimeError):
            words = _PATH.sub("", text).lower()
            if any(sign in words for sign in GONE):
                return text[:160]
        error = error.__cause__
    return None
