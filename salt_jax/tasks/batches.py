"""Batches of fixed shape from a source of examples: Grain iterators whose state goes into a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from salt_jax.tasks.task import Example, Source
from salt_jax.tasks.tokenizers import Tokenizer

Batch = dict[str, Any]


def check_prompt_lengths(source: Source, tokenizer: Tokenizer, max_prompt_length: int) -> int:
    """Encodes every prompt of a split, so that one too long is found before anything compiles.

    Args:
      source: the split's examples (10,000 short ones take about half a second).
      tokenizer: encodes the prompts.
      max_prompt_length: limit in tokens.

    Returns:
      The length of the longest prompt, in tokens.

    Raises:
      ValueError: at the first prompt that is too long or empty, naming the limit, its length and its id.

    Example:
      >>> from salt_jax.tasks import CharTokenizer
      >>> check_prompt_lengths([Example("1+1=", "2", "2", "train/0")], CharTokenizer("12+="), 3)
      Traceback (most recent call last):
      ValueError: max_prompt_length = 3 but the prompt of example 'train/0' has 4 tokens
    """
    return max(
        (len(_encode_prompt(source[i], tokenizer, max_prompt_length)) for i in range(len(source))), default=0
    )


def check_solution_lengths(source: Source, tokenizer: Tokenizer, max_completion_length: int) -> int:
    """The same for solutions, each with its end token.

    Args:
      source: the split's examples.
      tokenizer: encodes the solutions.
      max_completion_length: limit in tokens, the end token included.

    Returns:
      The length of the longest solution with its end token, in tokens.

    Raises:
      ValueError: at the first solution that is too long, naming the limit, its length and its id.

    Example:
      >>> from salt_jax.tasks import CharTokenizer
      >>> check_solution_lengths([Example("1+1=", "2", "2", "train/0")], CharTokenizer("12+="), 2)
      2
    """
    return max(
        (len(_encode_solution(source[i], tokenizer, max_completion_length)) for i in range(len(source))),
        default=0,
    )


def prompt_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    max_prompt_length: int,
    seed: int,
    shuffle: bool = True,
    repeat: bool = True,
) -> grain.DatasetIterator[Batch]:
    """An iterator over batches of B prompts, left-padded to P = max_prompt_length tokens.

    A batch is a dict: ``prompt_tokens`` (B, P) int32 · ``prompt_mask`` (B, P) bool, true on prompt tokens ·
    ``references`` list of B str · ``ids`` list of B str · ``valid`` (B,) bool, false on rows that repeat the
    batch's first example to fill the last batch (only with repeat=False).

    With shuffle every epoch has its own order, a function of the seed and the epoch. With repeat epochs
    follow each other without a seam: no example is dropped, and a batch may end one epoch and begin the next.

    The state (``get_state``, ``set_state``, or ``grain.checkpoint.CheckpointSave`` in an Orbax composite) is
    the number of batches consumed: restore it into an iterator made with the same arguments.

    Args:
      source: examples.
      tokenizer: encodes the prompts; no special token is added.
      batch_size: B, prompts a batch.
      max_prompt_length: P, in tokens; see ``check_prompt_lengths`` to check a whole split up front.
      seed: of the shuffle, ≥ 0.
      shuffle: false keeps the source's order.
      repeat: false ends after one epoch.

    Returns:
      The Grain iterator, at its beginning.

    Raises:
      ValueError: batch_size or max_prompt_length < 1, seed < 0, an empty source; while iterating, a prompt
        that is too long or empty, naming the limit, its length and the example's id.

    Example:
      >>> from salt_jax.tasks import CharTokenizer
      >>> examples = [Example("1+1=", "2", "2", "train/0"), Example("1=", "1", "1", "train/1")]
      >>> batches = prompt_batches(
      ...     examples, CharTokenizer("12+="), batch_size=2, max_prompt_length=4, seed=0, shuffle=False)
      >>> batch = next(batches)
      >>> batch["prompt_tokens"].tolist(), batch["references"]
      ([[3, 5, 3, 6], [0, 0, 3, 6]], ['2', '1'])
      >>> batches.get_state()
      {'next_index': 1}
    """
    if max_prompt_length < 1:
        raise ValueError(f"max_prompt_length = {max_prompt_length} is not allowed; allowed: integers >= 1")

    def collate(examples: Sequence[Example]) -> Batch:
        return _collate_prompts(examples, tokenizer, batch_size, max_prompt_length)

    return _iterate(source, collate, batch_size, seed, shuffle, repeat)


def solution_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    max_prompt_length: int,
    max_completion_length: int,
    seed: int,
    shuffle: bool = True,
    repeat: bool = True,
) -> grain.DatasetIterator[Batch]:
    """``prompt_batches`` with the examples' own solutions, for a supervised warm start.

    The batch has in addition ``completion_tokens`` (B, T) int32, the solution and an end token, right-padded
    to T = max_completion_length · ``completion_mask`` (B, T) bool, true on both (false on filler rows).

    Args:
      source: examples.
      tokenizer: encodes prompts and solutions.
      batch_size: B, examples a batch.
      max_prompt_length: P, in tokens.
      max_completion_length: T, in tokens, the end token included.
      seed: of the shuffle, ≥ 0.
      shuffle: false keeps the source's order.
      repeat: false ends after one epoch.

    Returns:
      The Grain iterator, at its beginning.

    Raises:
      ValueError: as ``prompt_batches``, also for a solution that is too long.

    Example:
      >>> from salt_jax.tasks import CharTokenizer
      >>> batch = next(solution_batches(
      ...     [Example("1+1=", "2", "2", "train/0")], CharTokenizer("12+="),
      ...     batch_size=1, max_prompt_length=4, max_completion_length=3, seed=0))
      >>> batch["completion_tokens"].tolist(), batch["completion_mask"].tolist()
      ([[4, 2, 0]], [[True, True, False]])
    """
    for name, limit in (
        ("max_prompt_length", max_prompt_length),
        ("max_completion_length", max_completion_length),
    ):
        if limit < 1:
            raise ValueError(f"{name} = {limit} is not allowed; allowed: integers >= 1")

    def collate(examples: Sequence[Example]) -> Batch:
        batch = _collate_prompts(examples, tokenizer, batch_size, max_prompt_length)
        tokens = np.full((batch_size, max_completion_length), tokenizer.pad_id, np.int32)
        mask = np.zeros((batch_size, max_completion_length), bool)
        for row, example in enumerate(examples):
            ids = _encode_solution(example, tokenizer, max_completion_length)
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return batch | {"completion_tokens": tokens, "completion_mask": mask}

    return _iterate(source, collate, batch_size, seed, shuffle, repeat)


def _iterate(
    source: Source,
    collate: Callable[[Sequence[Example]], Batch],
    batch_size: int,
    seed: int,
    shuffle: bool,
    repeat: bool,
) -> grain.DatasetIterator[Batch]:
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} = {value} is not allowed; allowed: integers >= {least}")
    if not len(source):
        raise ValueError("the source of examples is empty")
    dataset = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()  # a permutation of its own each epoch, computed from the index: no buffer
    if repeat:
        dataset = dataset.repeat()
    # An endless data set has no remainder, but Grain rounds its length up past what len() can return.
    dataset = dataset.batch(batch_size, drop_remainder=repeat, batch_fn=collate)
    # Reading a batch takes a millisecond or two: threads would only contend with the accelerator's dispatch.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def _collate_prompts(
    examples: Sequence[Example], tokenizer: Tokenizer, batch_size: int, max_prompt_length: int
) -> Batch:
    filled = [*examples, *[examples[0]] * (batch_size - len(examples))]
    tokens = np.full((batch_size, max_prompt_length), tokenizer.pad_id, np.int32)
    mask = np.zeros((batch_size, max_prompt_length), bool)
    for row, example in enumerate(filled):
        ids = _encode_prompt(example, tokenizer, max_prompt_length)
        tokens[row, max_prompt_length - len(ids) :] = ids
        mask[row, max_prompt_length - len(ids) :] = True
    return {
        "prompt_tokens": tokens,
        "prompt_mask": mask,
        "references": [example.reference for example in filled],
        "ids": [example.id for example in filled],
        "valid": np.arange(batch_size) < len(examples),
    }


def _encode_prompt(example: Example, tokenizer: Tokenizer, limit: int) -> list[int]:
    ids = tokenizer.encode_prompt(example.prompt)
    if not ids:
        raise ValueError(f"the prompt of example {example.id!r} has no tokens")
    if len(ids) > limit:
        raise ValueError(
            f"max_prompt_length = {limit} but the prompt of example {example.id!r} has {len(ids)} tokens"
        )
    return ids


def _encode_solution(example: Example, tokenizer: Tokenizer, limit: int) -> list[int]:
    ids = [*tokenizer.encode(example.solution), tokenizer.eos_id]
    if len(ids) > limit:
        raise ValueError(
            f"max_completion_length = {limit} but the solution of example {example.id!r} has {len(ids)} tokens"
            " with its end token"
        )
    return ids
