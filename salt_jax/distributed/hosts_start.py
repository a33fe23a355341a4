"""How a process of many finds the others, and how it ends when one of them is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NoReturn

import jax

from salt_jax.spec import ConfigError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Seconds until a process that says nothing is taken for dead: longer than a host stalls, shorter than anyone waits.
HEARTBEAT = "SALT_JAX_HEARTBEAT_SECONDS", 60
# Seconds until all processes must have come: hosts of a large slice start minutes apart.
STARTING = "SALT_JAX_START_SECONDS", 300
# Seconds that a process which is done waits for the others.
ENDING = 60
CLUSTERS = {"slurm": "Slurm", "ompi": "Open MPI", "k8s": "Kubernetes", "tpu": "TPU machines"}
ALONE = ("", 1, 0)
OWN = f"{COUNT}=1 makes a process a run of its own"


def initialize_from_environment(environment: Mapping[str, str] | None = None) -> str | None:
    """Joins the other processes of the run, where the environment says that there are some.

    Call it before anything touches a device. In this order: JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, set by hand; a Slurm step or an Open MPI job of several tasks; a Kubernetes
    indexed job, where the package ``kubernetes`` is installed; a Cloud TPU machine, of a slice or alone.
    JAX_NUM_PROCESSES=1 keeps a process to itself, wherever it runs. Whom it waits for is said on stderr.

    Args:
      environment: for tests; os.environ by default.

    Returns:
      A sentence for people; None for one process.

    Raises:
      ConfigError: variables that are set in part or are no numbers, a coordinator's port that is taken, or that cannot
        be reached in SALT_JAX_START_SECONDS. A process that is missing by then, or one whose number another has, ends
        this one with one line, by ``end_process``.
    """
    environment = os.environ if environment is None else environment
    heartbeat, starting = (_number(environment, name, 5, default) for name, default in (HEARTBEAT, STARTING))
    given = by_hand(environment)
    found: dict[str, Any]
    if given == ALONE:
        return None
    if given is not None:
        address, processes, number = given
        how, found = "named by hand", {
            "coordinator_address": address, "num_processes": processes, "process_id": number,
            "cluster_detection_method": "deactivate",
        }  # fmt: skip
    else:
        name = cluster(environment)
        if name is None:
            return None
        how, found = CLUSTERS[name], {"cluster_detection_method": None if name == "tpu" else name}
    who, others = waiting(environment)
    print(f"{who} waits up to {starting} s for the others at {others}; {OWN}", file=sys.stderr, flush=True)
    if given is not None:
        _wait_for(address, starting) if number else _check_free(address)
    _STATE["who"] = who
    _end_with_one_line_on_abort()
    # JAX's own answer to SIGTERM takes it from whoever sends it before ours is there, and tells nobody
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _words_kept(starting):
            jax.distributed.initialize(
                **found, initialization_timeout=starting, heartbeat_timeout_seconds=heartbeat,
                shutdown_timeout_seconds=ENDING,
            )  # fmt: skip
    except Exception as error:  # whatever a detection or the runtime throws: one line
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"this process could not join the others ({how}): {line}; {OWN}") from None
    index, count = jax.process_index(), jax.process_count()
    _STATE["who"] = f"process {index} of {count}"
    if count == 1:
        return None
    return f"process {index} of {count}{'' if given is None else f', coordinator {address}'} ({how})"


def waiting(environment: Mapping[str, str]) -> tuple[str, str]:
    """Who this process is, and where the others are, as far as the environment says.

    Example:
      >>> waiting({ADDRESS: "10.0.0.1:1234", COUNT: "2", INDEX: "1"})
      ('process 1 of 2', '10.0.0.1:1234 (JAX_NUM_PROCESSES = 2)')
    """
    index, count, place = {
        None: (INDEX, COUNT, ADDRESS),
        "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NODELIST"),
        "ompi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ""),
    }.get(None if by_hand(environment) else cluster(environment), ("", "", ""))
    where = environment.get(place) or CLUSTERS.get(cluster(environment) or "", "")
    if count not in environment:
        return "this process", where
    who = f"process {environment.get(index, '?')} of {environment[count]}"
    return who, f"{where} ({count} = {environment[count]})"


def by_hand(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(coordinator, processes, number of this one) as our variables have them; None where a cluster is to say.

    Raises:
      ConfigError: set in part, no number, or a number that is too large.

    Example:
      >>> by_hand({ADDRESS: "10.0.0.1:1234", COUNT: "2", INDEX: "1"})
      ('10.0.0.1:1234', 2, 1)
      >>> by_hand({COUNT: "1"}) == ALONE
      True
    """
    if COUNT in environment and _number(environment, COUNT, 1) == 1:
        return ALONE
    names = (ADDRESS, COUNT, INDEX)
    missing = [name for name in names if not environment.get(name)]
    if len(missing) == 3 or (missing == [COUNT, INDEX] and cluster(environment)):
        return None  # a cluster says how many, and may be told where
    if missing:
        there = " and ".join(name for name in names if name not in missing)
        raise ConfigError(f"{there} without {' and '.join(missing)}; a run of several processes needs all three")
    address, processes = environment[ADDRESS], _number(environment, COUNT, 1)
    number = _number(environment, INDEX, 0)
    if number >= processes:
        allowed = f"allowed: 0 to {processes - 1}"
        raise ConfigError(f"{INDEX} = {number} is not allowed with {COUNT} = {processes}; {allowed}")
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ConfigError(f"{ADDRESS} = {address!r} is not allowed; allowed: host:port of process 0")
    return address, processes, number


def cluster(environment: Mapping[str, str]) -> str | None:
    """Which key of ``CLUSTERS`` the environment is, by JAX's names; None for one process.

    Example:
      >>> cluster({"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
      ...          "SLURM_LOCALID": "0"})
      'slurm'
    """
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in slurm):
        return "slurm" if _number(environment, "SLURM_NTASKS", 1) > 1 else None
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return "ompi" if _number(environment, "OMPI_COMM_WORLD_SIZE", 1) > 1 else None
    # an indexed job is also how people start runs that have nothing to do with each other: the package tells
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys() and find_spec("kubernetes"):
        return "k8s"
    if environment.get("JAX_PLATFORMS") and "tpu" not in environment["JAX_PLATFORMS"]:
        return None
    workers = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    # JAX sets the first of these where it finds chips, and the second is how a machine says that it stands alone
    on_tpu = "TPU_ML_PLATFORM" in environment and "TPU_SKIP_MDS_QUERY" not in environment
    return "tpu" if "," in workers or (on_tpu and not workers) else None


def _number(environment: Mapping[str, str], name: str, least: int, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} = {text!r} is not allowed; allowed: integers >= {least}")
    return int(text)


def _wait_for(address: str, seconds: int) -> None:
    """Returns once something listens at an address: JAX itself would end this process with a stack trace."""
    host, _, port = address.rpartition(":")
    until, last = time.monotonic() + seconds, "nothing answered"
    while time.monotonic() < until:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            last = str(error)
            time.sleep(0.2)
    raise ConfigError(f"{ADDRESS} = {address!r} was not reached in {seconds} s: {last}; is process 0 there? {OWN}")


def _check_free(address: str) -> None:
    """ConfigError if something listens at process 0's port already: both would be told of others, each of some."""
    port = int(address.rpartition(":")[2])
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=5):
        raise ConfigError(
            f"{ADDRESS} = {address!r} is taken on this host: by another process with {INDEX} = 0, or by another run;"
            " every process needs a number of its own, every run a port of its own"
        )


@contextlib.contextmanager
def _words_kept(seconds: int) -> Iterator[None]:
    """What is written to stderr, also by C++, is held back until a start has succeeded: of one that fails JAX's runtime
    writes a stack trace, which ``_why`` makes a line of."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as words:
        kept = os.dup(2)
        os.dup2(words.fileno(), 2)
        _STATE["start"] = kept, words.fileno(), seconds
        try:
            yield
        except BaseException:
            os.ftruncate(words.fileno(), 0)  # the error says it
            raise
        finally:
            del _STATE["start"]
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            os.write(2, _read(words.fileno()))


def _read(file: int) -> bytes:
    return os.pread(file, 1 << 20, 0)


def _why(words: str, seconds: int) -> str:
    """What kept a run from starting, from what JAX's runtime says of it.

    Example:
      >>> _why("ALREADY_EXISTS: Aborted connect attempt as there is a request from a newer incarnation.", 300)
      'two processes have the same number, and each needs its own (JAX_PROCESS_ID)'
    """
    if "newer incarnation" in words or "from the same task" in words:
        return f"two processes have the same number, and each needs its own ({INDEX})"
    return f"not all processes of the run came within {seconds} s, or one ended"


def end_process(status: int, line: str) -> NoReturn:
    """Ends this process at once with one line on stderr.

    An exit in good order would wait for processes that are gone, and the others would wait for this one.
    """
    if _ENDING.acquire(timeout=5):  # one line, whoever comes first; the other waits for the end
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())
    os._exit(status)


def _end_with_one_line_on_abort() -> None:
    """JAX's runtime calls abort() when another process is gone: then this one ends with a line and status 1.

    Python's own signal handlers run between two instructions of the main thread, which abort() does not wait for; so
    it is C's ``signal`` that is given a function.
    """
    def on_abort(number: int) -> None:
        why = "JAX has ended it, as it does when another process of the run is gone (its words are above)"
        if "start" in _STATE:
            kept, words, seconds = _STATE["start"]
            os.dup2(kept, 2)
            why = f"{_why(_read(words).decode(errors='replace'), seconds)} ({OWN})"
        end_process(1, f"{_STATE['who']} is stopped: {why}; start all again to resume")

    _STATE["handler"] = handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)  # kept: C does not
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


_ENDING = threading.Lock()
_STATE: dict[str, Any] = {}
