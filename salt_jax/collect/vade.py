"""VADE (arXiv 2511.18902): B prompts chosen out of all by Thompson sampling of what they would teach; G rollouts each.

There is no epoch: a prompt comes as often as it is chosen. ``allocation.vade`` has the formulas and what is inferred.
"""

from __future__ import annotations

from typing import Any

from salt_jax.collect import allocation
from salt_jax.collect.turn import Engine, Memory, Turn
from salt_jax.rollout import RolloutBatch
from salt_jax.tasks import prompt_batches


def start(engine: Engine) -> Memory:
    """A uniform posterior for every problem."""
    state = allocation.VadeState.start(len(engine.source))
    return {"alpha": state.alpha, "beta": state.beta}


def collect(turn: Turn, data: Any, memory: Memory) -> tuple[RolloutBatch, Memory]:
    """Chooses, samples, and updates the posteriors with what was found."""
    settings, limits, engine = turn.settings, turn.run.rollouts, turn.engine
    state = allocation.VadeState(memory["alpha"], memory["beta"])
    chosen = allocation.select(state, turn.random(), limits.prompts_per_step)
    batch = next(prompt_batches(
        [engine.source[i] for i in chosen.tolist()], engine.task.tokenizer, batch_size=len(chosen),
        max_prompt_length=limits.max_prompt_length, seed=0, shuffle=False, repeat=False,
    ))
    groups = turn.groups(batch, draw=0)
    right, graded = turn.succeeded(groups).sum(axis=1), groups.rewarded.sum(axis=1)
    gain = allocation.expected_gain(state)
    state = allocation.update(
        state, chosen, right, graded, decay_selected=settings.decay_selected, decay_others=settings.decay_others
    )
    turn.note(
        expected_gain=float(gain[chosen].mean()), expected_gain_of_all=float(gain.mean()),
        problems_known=float(((state.alpha + state.beta) > 1).mean()),
    )
    return turn.finish(groups), {"alpha": state.alpha, "beta": state.beta}
