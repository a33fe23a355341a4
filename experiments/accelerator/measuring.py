"""What the stages share: programs compiled with their seconds, calls timed, a failure as a row.

Weights are random, in the shape of Qwen2.5-1.5B. A stage is a generator of rows, most telling first, so that one that
is stopped has said most of what it had to say. What cannot be computed (a kernel that is not there, memory) is a row
without a number, and the stage goes on.
"""

from __future__ import annotations

import concurrent.futures
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments.accelerator.rows import Row, Setting, one_line
from experiments.benchmarks.salt_overhead import POLICIES
from salt_jax.policy.layers import TransformerConfig

WHOLE, COPY = "bf16 product", "copy"  # rows of stage 'ceilings' that others are compared with
GIB = 2**30


class Program:
    """A program that is compiled in a thread; what cannot be traced or compiled raises where it is used.

    Attributes:
      seconds: what its compilation took, beside those of others; None until it is there.
    """

    def __init__(self, name: str, lower: Callable[[], Any], pool: concurrent.futures.Executor) -> None:
        self.seconds: float | None = None
        self._found: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            self._found = pool.submit(self._compile, name, lower())
        except Exception as error:  # of the tracing: a kernel that this library does not have
            self._found.set_exception(error)

    def _compile(self, name: str, lowered: Any) -> Any:
        began = time.perf_counter()
        found = lowered.compile()
        self.seconds = time.perf_counter() - began
        print(f"compiled {name}: {self.seconds:.1f} s", flush=True)
        return found

    @property
    def compiled(self) -> Any:
        """The compiled program, once it is there."""
        return self._found.result()

    def __call__(self, *arguments: Any) -> Any:
        """Runs it."""
        return self.compiled(*arguments)


def compile_together(lowerings: Mapping[str, Callable[[], Any]], *, wait: bool = True) -> dict[str, Program]:
    """Programs traced one after the other, the first most wanted, and compiled side by side.

    Args:
      lowerings: name → function that traces: returns what ``jax.jit(…).lower(…)`` does.
      wait: for all of them, so that none is compiled while another is timed.
    """
    pool = concurrent.futures.ThreadPoolExecutor(len(lowerings))
    programs = {name: Program(name, lower, pool) for name, lower in lowerings.items()}
    pool.shutdown(wait=wait)
    return programs


def seconds(program: Callable[..., Any], *arguments: Any, least: float = 0.2, most: int = 50) -> float:
    """Seconds of a call: of as many in a row as take ``least`` seconds, after two that are not counted."""
    jax.block_until_ready(program(*arguments))
    began = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    repeats = min(max(round(least / (time.perf_counter() - began)), 1), most)
    began = time.perf_counter()
    for _ in range(repeats):
        result = program(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / repeats


def failed(what: str, error: Exception) -> Row:
    """A row without a number."""
    traceback.print_exc()
    return Row(what, None, note=one_line(error))


def policy_of(setting: Setting, **changed: Any) -> TransformerConfig:
    """The policy's shape, bfloat16, with what is changed."""
    shape = POLICIES["tiny" if setting.tiny else "qwen2.5-1.5b"]
    return TransformerConfig(**shape | {"compute_dtype": "bfloat16", **changed})


def fused() -> str:
    """The fused attention of this backend, or what stands for it in a rehearsal."""
    return "cudnn" if jax.default_backend() == "gpu" else "xla"
