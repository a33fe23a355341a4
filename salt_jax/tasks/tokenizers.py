"""Tokenizers: text to ids and back. A policy sees ids only; text is for graders and people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

# A text, or the messages of a conversation: ({"role": "user", "content": "1+1=?"},).
Prompt = str | tuple[Mapping[str, str], ...]
UNREADABLE = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """What a task needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; all ids are in [0, vocab_size)."""

    @property
    def pad_id(self) -> int:
        """Fills rows up to their fixed length; masks never depend on it."""

    @property
    def bos_id(self) -> int:
        """Begins a sequence, for tasks that want it."""

    @property
    def eos_id(self) -> int:
        """Ends a completion."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a completion when sampled; contains eos_id."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ids."""

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a whole prompt as the policy gets it: in its chat template, where it has one."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first stop id."""


class CharTokenizer:
    """One id a character: 0 pad, 1 begin, 2 end, then the alphabet in order.

    ``decode(encode(text)) == text`` for every text over the alphabet, also with the end id and anything
    after it appended. Other ids that are not characters (pad or begin inside a completion, ids of a
    vocabulary padded beyond ``vocab_size``) decode to U+FFFD, so that no grader takes them for nothing.

    Args:
      alphabet: distinct characters.

    Raises:
      ValueError: an empty alphabet, a repeated character, or U+FFFD in it.

    Example:
      >>> tokenizer = CharTokenizer("0123456789+=")
      >>> tokenizer.encode("1+2="), tokenizer.vocab_size
      ([4, 13, 5, 14], 15)
      >>> tokenizer.decode([6, tokenizer.eos_id, tokenizer.pad_id])
      '3'
    """

    pad_id = 0
    bos_id = 1
    eos_id = 2

    def __init__(self, alphabet: str) -> None:
        if not alphabet or len(set(alphabet)) != len(alphabet) or UNREADABLE in alphabet:
            raise ValueError(
                f"alphabet = {alphabet!r} must be distinct characters, at least one, without U+FFFD"
            )
        self.alphabet = alphabet
        self._id_of = {character: i for i, character in enumerate(alphabet, start=self.eos_id + 1)}
        self._text_of = {i: character for character, i in self._id_of.items()}

    def __repr__(self) -> str:
        return f"CharTokenizer({self.alphabet!r})"

    @property
    def vocab_size(self) -> int:
        """Number of ids, the three special ones included."""
        return len(self.alphabet) + self.eos_id + 1

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a completion when sampled."""
        return (self.eos_id,)

    def encode(self, text: str) -> list[int]:
        """Ids of the characters; no special id is added.

        Raises:
          ValueError: a character outside the alphabet, naming it and its position.

        Example:
          >>> CharTokenizer("ab").encode("bac")
          Traceback (most recent call last):
          ValueError: character 'c' at position 2 of 'bac' is not in the alphabet 'ab'
        """
        try:
            return [self._id_of[character] for character in text]
        except KeyError:
            position, character = next((i, c) for i, c in enumerate(text) if c not in self._id_of)
            raise ValueError(
                f"character {character!r} at position {position} of {text!r} is not in the alphabet"
                f" {self.alphabet!r}"
            ) from None

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a text; there is no chat template.

        Raises:
          ValueError: messages, or a character outside the alphabet.
        """
        if not isinstance(prompt, str):
            raise ValueError("a prompt of messages needs a tokenizer with a chat template")
        return self.encode(prompt)

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first stop id; ids that are no characters become U+FFFD.

        Example:
          >>> CharTokenizer("ab").decode([3, 4, 2, 3])
          'ab'
        """
        text = []
        for i in np.asarray(ids).tolist():
            if i in self.stop_ids:
                break
            text.append(self._text_of.get(i, UNREADABLE))
        return "".join(text)
