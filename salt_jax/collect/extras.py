"""Entries of ``RolloutBatch.extra`` that every way to collect can bring: classes, list items, parts of the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from salt_jax.graders import Grader
from salt_jax.learner.settings import CollectionConfig
from salt_jax.policy.sampler import Samples
from salt_jax.tasks import Tokenizer

CLUSTERS = ("text", "answer")
SEGMENTS = ("", "newline")


def of_rollouts(
    settings: CollectionConfig,
    tokenizer: Tokenizer,
    group_size: int,
    texts: Sequence[str],
    answers: Sequence[str | None],
    components: np.ndarray | None,
    samples: Samples,
) -> dict[str, np.ndarray]:
    """What config.collection asks for, of N rollouts in groups; 'components' wherever the grader gives some.

    Args:
      settings: ``clusters`` and ``segments`` are used.
      tokenizer: says which tokens hold a newline.
      group_size: G.
      texts: N completions. answers: N answers, None where there is none.
      components: (N, K) float32; None or K = 0 where the grader gives none. What is missing becomes 0.
      samples: tokens (N, T) and lengths (N,) are used, for segments alone.

    Returns:
      name → (N, …) array.
    """
    found: dict[str, np.ndarray] = {}
    if settings.clusters:
        found["clusters"] = clusters(settings.clusters, group_size, texts, answers)
    if settings.segments:
        found["segments"] = newline_segments(tokenizer, np.asarray(samples.tokens), np.asarray(samples.lengths))
    if components is not None and components.shape[1]:
        found["components"] = np.nan_to_num(components, nan=0.0)
    return found


def clusters(how: str, group_size: int, texts: Sequence[str], answers: Sequence[str | None]) -> np.ndarray:
    """(N,) int32 semantic classes, equal within a group where completions mean the same.

    Args:
      how: 'text': the same text, white space at its ends aside. 'answer': the same answer found by the grader, the
        same text where it found none. 'package.module:function': function(texts of a group) -> a label each.
      group_size: G.
      texts: N completions. answers: N answers or None.

    Raises:
      ValueError: a function that does not give one label a text.

    Example:
      >>> clusters("answer", 2, ["1+1=2", "2", "a", "b"], ["2", "2", None, None]).tolist()
      [0, 0, 0, 1]
    """
    labels = []
    for first in range(0, len(texts), group_size):
        group = [text.strip() for text in texts[first : first + group_size]]
        named: Sequence[Any] = group
        if how == "answer":
            of_group = answers[first : first + group_size]
            named = [("text", t) if a is None else ("answer", a) for t, a in zip(group, of_group, strict=True)]
        elif how != "text":
            named = list(cluster_function(how)(list(texts[first : first + group_size])))
            if len(named) != len(group):
                gave = f"{len(named)} labels for {len(group)} texts"
                raise ValueError(f"config.collection.clusters = {how!r} gave {gave}")
        numbers: dict[Any, int] = {}
        labels += [numbers.setdefault(name, len(numbers)) for name in named]
    return np.asarray(labels, np.int32)


def cluster_function(how: str) -> Callable[[list[str]], Sequence[Any]]:
    """The function behind 'package.module:function'.

    Raises:
      ValueError: a path of another form, or one that leads nowhere.
    """
    return Grader(how).function()  # type: ignore[return-value]


def newline_segments(tokenizer: Tokenizer, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N, T) int32: how many tokens with a newline come before, so that a newline ends the item it stands in.

    Items are numbered from 0 without gaps: a token with several newlines ends one item. Tokens past a completion's
    length carry its last number.

    Args:
      tokenizer: decodes one token at a time.
      tokens: (N, T). lengths: (N,).
    """
    known = {i: "\n" in tokenizer.decode([i]) for i in np.unique(tokens).tolist()}
    there = np.arange(tokens.shape[1])[None] < lengths[:, None]
    breaks = np.vectorize(known.__getitem__, otypes=[bool])(tokens) & there
    return (np.cumsum(breaks, axis=1) - breaks).astype(np.int32)
