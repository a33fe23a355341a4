"""Lengths in tokens: checked for whole splits before anything compiles, and again row by row in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from salt_jax.tasks.task import Example, Source
from salt_jax.tasks.tokenizers import Tokenizer

ON_LONG = ("error", "skip")  # what becomes of a prompt over the limit


@dataclasses.dataclass(frozen=True)
class _View:
    """Some examples of a source, in its order."""

    source: Source
    kept: Sequence[int]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Example:
        return self.source[self.kept[index]]


def check_prompt_lengths(source: Source, tokenizer: Tokenizer, max_prompt_length: int) -> int:
    """Encodes every prompt of a split, so that one too long is found before anything compiles.

    Args:
      source: the split's examples (10,000 short ones take about half a second).
      tokenizer: encodes the prompts.
      max_prompt_length: limit in tokens.

    Returns:
      The length of the longest prompt, in tokens.

    Raises:
      ValueError: at the first prompt that is too long or empty, naming the limit, its length and its id; an
        empty source.

    Example:
      >>> from salt_jax.tasks import CharTokenizer
      >>> check_prompt_lengths([Example("1+1=", "2", "2", "train/0")], CharTokenizer("12+="), 3)
      Traceback (most recent call last):
      ValueError: max_prompt_length = 3 but the prompt of example 'train/0' has 4 tokens
    """
    check_not_empty(source)
    return max(len(encode_prompt(source[i], tokenizer, max_prompt_length)) for i in range(len(source)))


def check_solution_lengths(source: Source, tokenizer: Tokenizer, max_completion_length: int) -> int:
    """The same for solutions, each with its end token.

    Args:
      source: the split's examples.
      tokenizer: encodes the solutions.
      max_completion_length: limit in tokens, the end token included.

    Returns:
      The length of the longest solution with its end token, in tokens.

    Raises:
      ValueError: at the first solution that is absent or too long, naming its id; an empty source.

    Example:
      >>> from salt_jax.tasks import CharTokenizer
      >>> check_solution_lengths([Example("1+1=", "2", "2", "train/0")], CharTokenizer("12+="), 2)
      2
    """
    check_not_empty(source)
    return max(len(encode_solution(source[i], tokenizer, max_completion_length)) for i in range(len(source)))


def fitting(
    source: Source, tokenizer: Tokenizer, max_prompt_length: int, *, on_long: str = "skip"
) -> tuple[Source, int]:
    """The examples whose prompts fit, and how many do not; every prompt is encoded once.

    Args:
      source: a split's examples.
      tokenizer: encodes the prompts.
      max_prompt_length: limit in tokens.
      on_long: 'skip' leaves longer prompts out; 'error' refuses them, as ``check_prompt_lengths``.

    Returns:
      A view of the source in its order, at random access, or the source itself where all fit; the number of
      prompts left out.

    Raises:
      ValueError: no prompt fits; a prompt without tokens; an empty source.

    Example:
      >>> from salt_jax.tasks import CharTokenizer
      >>> examples = [Example("1+1=", "2", "2", "train/0"), Example("1=", "1", "1", "train/1")]
      >>> fits, skipped = fitting(examples, CharTokenizer("12+="), 3)
      >>> fits[0].id, len(fits), skipped
      ('train/1', 1, 1)
    """
    if on_long not in ON_LONG:
        raise ValueError(f"on_long = {on_long!r} is not allowed; allowed: {', '.join(map(repr, ON_LONG))}")
    if on_long == "error":
        check_prompt_lengths(source, tokenizer, max_prompt_length)
        return source, 0
    check_not_empty(source)
    lengths = [len(_ids_of_prompt(source[i], tokenizer)) for i in range(len(source))]
    kept = [i for i, length in enumerate(lengths) if length <= max_prompt_length]
    if not kept:
        raise ValueError(
            f"max_prompt_length = {max_prompt_length} leaves none of the {len(source)} prompts; the shortest has"
            f" {min(lengths)} tokens"
        )
    skipped = len(source) - len(kept)
    return (_View(source, kept), skipped) if skipped else (source, 0)


def check_not_empty(source: Source) -> None:
    """ValueError for a source without examples."""
    if not len(source):
        raise ValueError("the source of examples is empty")


def encode_prompt(example: Example, tokenizer: Tokenizer, limit: int) -> list[int]:
    """Ids of an example's prompt.

    Raises:
      ValueError: no token, or more than the limit.
    """
    ids = _ids_of_prompt(example, tokenizer)
    if len(ids) > limit:
        raise ValueError(
            f"max_prompt_length = {limit} but the prompt of example {example.id!r} has {len(ids)} tokens"
        )
    return ids


def encode_solution(example: Example, tokenizer: Tokenizer, limit: int) -> list[int]:
    """Ids of an example's solution and the end token.

    Raises:
      ValueError: no solution, or more tokens than the limit.
    """
    if not example.solution:
        raise ValueError(f"example {example.id!r} has no solution: warm_start.steps needs one")
    ids = [*tokenizer.encode(example.solution), tokenizer.eos_id]
    if len(ids) > limit:
        raise ValueError(
            f"max_completion_length = {limit} but the solution of example {example.id!r} has {len(ids)} tokens"
            " with its end token"
        )
    return ids


def _ids_of_prompt(example: Example, tokenizer: Tokenizer) -> list[int]:
    try:
        ids = tokenizer.encode_prompt(example.prompt)
    except ValueError as error:
        raise ValueError(f"the prompt of example {example.id!r}: {error}") from None
    if not ids:
        raise ValueError(f"the prompt of example {example.id!r} has no tokens")
    return ids
