"""The next B prompts, G rollouts each: nothing leaves the device but tokens and lengths."""

from __future__ import annotations

from typing import Any

from salt_jax.collect import extras, generation
from salt_jax.collect.turn import Memory, Turn
from salt_jax.distributed import hosts
from salt_jax.rollout import RolloutBatch


def collect(turn: Turn, data: Any, memory: Memory) -> tuple[RolloutBatch, Memory]:
    """Samples, grades and assembles; the update pays for the longest row, not for the limit."""
    batch, run = next(data), turn.run
    prompts, mask = batch["prompt_tokens"], batch["prompt_mask"]
    samples = turn.sample(prompts, mask, draw=None, rollouts=turn.group_size)
    lengths = hosts.fetch(samples.lengths)
    grades, texts = turn.grade(samples, batch["references"])
    trimmed = generation.batch_lengths(run, mask, lengths)
    answers = grades.answers or (None,) * len(texts)
    wanted = hosts.fetch(samples) if run.collection.segments else samples
    extra = extras.of_rollouts(
        run.collection, turn.engine.task.tokenizer, turn.group_size, texts, answers, grades.components, wanted
    )
    turn.note_clusters(extra)
    turn.count(len(prompts), lengths)
    turn.by_source(batch["ids"], grades.rewards, grades.rewarded)
    assemble = turn.engine.assembler(turn.group_size)
    return assemble(prompts, mask, samples, grades.rewards, grades.rewarded, trimmed, None, extra), memory
