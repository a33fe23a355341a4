"""Rows of an instruction set: read, checked and encoded to arrays of one shape, for experiments.select_data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from salt_jax.tasks import Tokenizer
from salt_jax.tasks.records import read_rows
from salt_jax.tasks.tokenizers import Prompt

MESSAGES = "messages"  # read where a row has no prompt: the last must be the assistant's


@dataclasses.dataclass(frozen=True)
class Item:
    """One example: its prompt and response, where it stands, and the subtask that it is of ('' for none)."""

    prompt: Prompt
    response: str
    where: str
    subtask: str = ""


class Encoded(NamedTuple):
    """n examples: prompts (n, P) left-padded, prompt_mask (n, P), targets (n, T) right-padded, mask (n, T)."""

    prompts: np.ndarray
    prompt_mask: np.ndarray
    targets: np.ndarray
    mask: np.ndarray


def read_items(flag: str, path: str, prompt: str, response: str) -> list[Item]:
    """Every row of a file.

    Args:
      flag: that named the file, for errors.
      path: see ``salt_jax.tasks.records.read_rows``.
      prompt: column of a text or of messages.
      response: column of a text.

    Raises:
      ValueError: one line with the file, the row and what is wrong.
    """
    items = []
    for row in read_rows(path, setting=flag):
        subtask = row.optional_text("subtask")
        if row.column(prompt) is None and row.column(MESSAGES) is not None:
            messages = row.prompt(MESSAGES)
            if isinstance(messages, str) or len(messages) < 2 or messages[-1]["role"] != "assistant":
                raise row.error(f"{MESSAGES!r} must end with the assistant's answer to what precedes it")
            items.append(Item(messages[:-1], messages[-1]["content"], row.where, subtask))
            continue
        items.append(Item(row.prompt(prompt), row.text(response, numbers=True), row.where, subtask))
    return items


def encode(
    items: Sequence[Item], tokenizer: Tokenizer, max_prompt: int, max_response: int, on_long: str
) -> tuple[list[int], Encoded, int]:
    """Items as arrays, padded to the longest of them.

    Args:
      items: examples.
      tokenizer: the model's; responses get its end token.
      max_prompt: limit in tokens.
      max_response: limit in tokens, the end token included.
      on_long: 'error' refuses what is longer, 'skip' leaves it out.

    Returns:
      Indices of the items that were kept, their arrays, and how many were left out.

    Raises:
      ValueError: naming the row: too long (and by how much), empty, or refused by the tokenizer.
    """
    kept, prompts, responses = [], [], []
    for i, item in enumerate(items):
        try:
            prompt = tokenizer.encode_prompt(item.prompt)
            response = [*tokenizer.encode(item.response), tokenizer.eos_id]
        except ValueError as error:
            raise ValueError(f"{item.where}: {error}") from None
        if not prompt:
            raise ValueError(f"{item.where}: the prompt has no tokens")
        long = [
            f"{item.where}: the {name} has {length} tokens, --max_{name} = {limit}; raise it, or --on_long=skip"
            for name, length, limit in (
                ("prompt", len(prompt), max_prompt), ("response", len(response), max_response)
            )
            if length > limit
        ]  # fmt: skip
        if long and on_long == "error":
            raise ValueError(long[0])
        if not long:
            kept.append(i)
            prompts.append(prompt)
            responses.append(response)
    shapes = [(len(kept), max(map(len, rows), default=1)) for rows in (prompts, responses)]
    tokens = [np.full(shape, tokenizer.pad_id, np.int32) for shape in shapes]
    masks = [np.zeros(shape, bool) for shape in shapes]
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        tokens[0][row, shapes[0][1] - len(prompt) :] = prompt
        masks[0][row, shapes[0][1] - len(prompt) :] = True
        tokens[1][row, : len(response)] = response
        masks[1][row, : len(response)] = True
    return kept, Encoded(tokens[0], masks[0], tokens[1], masks[1]), len(items) - len(kept)
