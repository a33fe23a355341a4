"""A run's collection: a way to collect, its data and its memory, which a checkpoint saves together."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from salt_jax.collect.turn import Collected, Engine, Memory, Method, Turn
from salt_jax.learner.state import TrainState
from salt_jax.tasks import prompt_batches, solution_batches


class Collection:
    """Collects the rollouts of one step after another.

    ``saved`` goes into the checkpoint: the Grain iterator alone for a way that remembers nothing and takes its
    prompts in order, else this object, whose state is that of the iterator and the memory.

    Args:
      engine: of the run.
      method: from ``COLLECTORS``.
    """

    def __init__(self, engine: Engine, method: Method) -> None:
        self.engine, self.method = engine, method
        self.memory: Memory = method.start(engine)
        self.data = data_of(engine, method)

    def __call__(self, state: TrainState, step: int) -> Collected:
        """The rollouts of a step, from the parameters before it.

        Raises:
          CollectionError: there are none to be had. Whatever is raised, by ``Engine.poll`` too: data and memory are
            those before the step again, so that they can be saved with the state before it.
        """
        turn = Turn(self.engine, state, step)
        before = None if self.data is None else self.data.get_state()
        try:
            rollouts, self.memory = self.method.collect(turn, self.data, self.memory)
        except BaseException:
            if self.data is not None:
                self.data.set_state(before)
            raise
        return Collected(rollouts, turn.metrics, turn.tokens, turn.grading_seconds)

    @property
    def saved(self) -> Any:
        """What a checkpoint saves as 'data'."""
        return self if self.memory or self.data is None else self.data

    def get_state(self) -> bytes:
        """Position of the data and memory, as JSON."""
        position = None if self.data is None else self.data.get_state()
        return json.dumps({"data": position, "memory": packed(self.memory)}).encode()

    def set_state(self, state: bytes) -> None:
        """Goes on from ``get_state``.

        Raises:
          ValueError: the state of another way to collect, or of another data set.
        """
        saved = json.loads(state)
        memory = unpacked(saved["memory"])
        if {name: x.shape for name, x in memory.items()} != {name: x.shape for name, x in self.memory.items()}:
            raise ValueError("this checkpoint's collection remembers something else than this run's")
        self.memory = memory
        if self.data is not None:
            self.data.set_state(saved["data"])

    def start_prefetch(self) -> None:
        """Nothing: batches are read when they are asked for."""


def data_of(engine: Engine, method: Method) -> Any:
    """The iterator that a way takes its batches from; None where it chooses among the source itself."""
    run = engine.run
    if method.data == "source":
        return None
    options: dict[str, Any] = {
        "batch_size": distinct_prompts(run) if method.shared else run.rollouts.prompts_per_step,
        "max_prompt_length": run.rollouts.max_prompt_length, "seed": run.seed,
    }
    if method.data == "solutions":
        options["max_completion_length"] = run.sampling.max_new_tokens
        return solution_batches(engine.source, engine.task.tokenizer, **options)
    return prompt_batches(engine.source, engine.task.tokenizer, **options)


def distinct_prompts(run: Any) -> int:
    """Prompts that share the slots of a step; by default half as many as there are slots."""
    return run.collection.distinct_prompts or max(run.rollouts.prompts_per_step // 2, 1)


def packed(memory: Memory) -> dict[str, Any]:
    """Arrays as JSON, bit for bit.

    Example:
      >>> unpacked(packed({"a": np.array([0.1, 2.0])}))["a"].tolist()
      [0.1, 2.0]
    """
    return {
        name: {"shape": list(x.shape), "float64": base64.b64encode(x.astype("<f8").tobytes()).decode()}
        for name, x in memory.items()
    }


def unpacked(saved: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of ``packed``."""
    return {
        name: np.frombuffer(base64.b64decode(x["float64"]), "<f8").reshape(x["shape"]).astype(np.float64)
        for name, x in saved.items()
    }
