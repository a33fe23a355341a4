"""Batches of fixed shape from a source of examples: Grain iterators whose state goes into a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from salt_jax.tasks.lengths import check_not_empty, encode_prompt, encode_solution
from salt_jax.tasks.task import Example, Source
from salt_jax.tasks.tokenizers import Tokenizer

if TYPE_CHECKING:
    import grain  # the step, the sampler and the geometry need none of it: it is imported where batches are made

Batch = dict[str, Any]


def prompt_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    max_prompt_length: int,
    seed: int,
    shuffle: bool = True,
    repeat: bool = True,
    shard: tuple[int, int] = (0, 1),
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
      shard: (index, count), for host ``index`` of ``count``: a batch has rows [index · B / count,
        (index + 1) · B / count) of the B, which only that host encodes. The hosts' rows in their order are
        the rows of one host alone, and a state is good for any number of hosts.

    Returns:
      The Grain iterator, at its beginning.

    Raises:
      ValueError: batch_size or max_prompt_length < 1, seed < 0, a shard whose count does not divide B, an
        empty source; while iterating, a prompt that is too long or empty, naming the limit, its length and
        the example's id.

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

    def collate(examples: Sequence[Example], valid: np.ndarray) -> Batch:
        return _collate_prompts(examples, valid, tokenizer, max_prompt_length)

    return _iterate(source, collate, batch_size, seed, shuffle, repeat, shard)


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
    shard: tuple[int, int] = (0, 1),
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
      shard: (index, count) of the hosts, as for ``prompt_batches``.

    Returns:
      The Grain iterator, at its beginning.

    Raises:
      ValueError: as ``prompt_batches``, also for a solution that is absent or too long.

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

    def collate(examples: Sequence[Example], valid: np.ndarray) -> Batch:
        batch = _collate_prompts(examples, valid, tokenizer, max_prompt_length)
        tokens = np.full((len(examples), max_completion_length), tokenizer.pad_id, np.int32)
        mask = np.zeros((len(examples), max_completion_length), bool)
        for row in np.flatnonzero(valid).tolist():
            ids = encode_solution(examples[row], tokenizer, max_completion_length)
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return batch | {"completion_tokens": tokens, "completion_mask": mask}

    return _iterate(source, collate, batch_size, seed, shuffle, repeat, shard)


def _iterate(
    source: Source,
    collate: Callable[[Sequence[Example], np.ndarray], Batch],
    batch_size: int,
    seed: int,
    shuffle: bool,
    repeat: bool,
    shard: tuple[int, int],
) -> grain.DatasetIterator[Batch]:
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} = {value} is not allowed; allowed: integers >= {least}")
    index, count = shard
    if not (0 <= index < count and batch_size % count == 0):
        raise ValueError(
            f"shard = {shard} is not allowed; allowed: (index, count) with index < count, and a count that divides"
            f" batch_size = {batch_size}"
        )
    check_not_empty(source)
    import grain

    rows = slice(index * batch_size // count, (index + 1) * batch_size // count)

    def collate_shard(examples: Sequence[Example]) -> Batch:
        # Every host reads the whole batch, which is cheap, so that what fills it up is the same everywhere.
        filled = [*examples, *[examples[0]] * (batch_size - len(examples))]
        return collate(filled[rows], (np.arange(batch_size) < len(examples))[rows])

    dataset = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()  # a permutation of its own each epoch, computed from the index: no buffer
    if repeat:
        dataset = dataset.repeat()
    # An endless data set has no remainder, but Grain rounds its length up past what len() can return.
    dataset = dataset.batch(batch_size, drop_remainder=repeat, batch_fn=collate_shard)
    # Reading a batch takes a millisecond or two: threads would only contend with the accelerator's dispatch.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def _collate_prompts(
    examples: Sequence[Example], valid: np.ndarray, tokenizer: Tokenizer, max_prompt_length: int
) -> Batch:
    tokens = np.full((len(examples), max_prompt_length), tokenizer.pad_id, np.int32)
    mask = np.zeros((len(examples), max_prompt_length), bool)
    for row, example in enumerate(examples):
        ids = encode_prompt(example, tokenizer, max_prompt_length)
        tokens[row, max_prompt_length - len(ids) :] = ids
        mask[row, max_prompt_length - len(ids) :] = True
    return {
        "prompt_tokens": tokens,
        "prompt_mask": mask,
        "references": [example.reference for example in examples],
        "ids": [example.id for example in examples],
        "valid": valid,
    }
