"""Orbax checkpoints of parameters, training state and data iterator, written asynchronously and atomically."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from salt_jax.training.state import TrainState


def _rest(state: TrainState) -> dict[str, Any]:
    """The state without its parameters, which are an item of their own: other runs start from them."""
    rest = {
        "step": state.step,
        "opt_state": state.opt_state,
        "entropy_range": state.entropy_range,
        "consumed_prompts": state.consumed_prompts,
        "key": state.key,
    }
    return rest if state.ref_params is None else rest | {"ref_params": state.ref_params}


def _abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings to restore onto: those of this run, not those that were saved."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class Checkpoints:
    """The checkpoints of one phase of a run, a step a folder.

    A save returns when the arrays are on the host; writing goes on in the background, and a folder gets its
    name only when it is whole, so that a killed run never leaves half a checkpoint behind under a step's name.

    Args:
      directory: absolute folder; made when the first checkpoint is saved.
      keep: newest checkpoints kept; None opens another run's folder for reading only.
    """

    def __init__(self, directory: Path, keep: int | None) -> None:
        if keep is None:  # neither cleans up nor deletes anything there
            options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        loudness = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # Orbax warns that what was asked to be read only is read only
        try:
            self._manager = ocp.CheckpointManager(directory, options=options)
        finally:
            logging.set_verbosity(loudness)
        self.directory = directory

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, iterator: Any) -> None:
        """Saves the state and the iterator's position as they are now; waits for an earlier save to end."""
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            state=ocp.args.StandardSave(_rest(state)),
            data=grain.checkpoint.CheckpointSave(iterator),
        )
        self._manager.save(step, args=items, force=True)

    def restore(self, step: int, state: TrainState, iterator: Any) -> TrainState:
        """The saved state, laid out like ``state``; sets ``iterator`` to its saved position."""
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_abstract(state.params)),
            state=ocp.args.StandardRestore(_abstract(_rest(state))),
            data=grain.checkpoint.CheckpointRestore(iterator),
        )
        restored = self._manager.restore(step, args=items)
        # Fresh buffers of JAX's own: what a reader hands out may alias memory that must not be donated.
        params, rest = jax.tree.map(jnp.copy, (restored["params"], restored["state"]))
        return dataclasses.replace(state, params=params, **rest)

    def restore_params(self, step: int, params: Any) -> Any:
        """Only the parameters, laid out like ``params``."""
        items = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params)))
        return jax.tree.map(jnp.copy, self._manager.restore(step, args=items)["params"])

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the manager's threads."""
        self._manager.wait_until_finished()
        self._manager.close()
