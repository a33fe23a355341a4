"""A mixture: several tasks trained on at once, in proportion to their weights."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from salt_jax.graders import Grader, Verifier
from salt_jax.tasks.factories import SINGLE_TASKS
from salt_jax.tasks.references import ON_BAD_REFERENCE
from salt_jax.tasks.settings import check_choice, check_integer, plain
from salt_jax.tasks.task import Example, Source, Task
from salt_jax.tasks.tokenizers import Tokenizer

LONGEST_EPOCH = 10_000_000  # two index arrays of 8 bytes each
OURS = ("task", "weight")


@dataclasses.dataclass(frozen=True)
class _Mixed:
    """Examples of several sources in a fixed order: ``part`` and ``item`` (L,) say which."""

    names: Sequence[str]
    sources: Sequence[Source]
    part: np.ndarray
    item: np.ndarray

    @property
    def parts(self) -> dict[str, Source]:
        """The sources by name, each as it is."""
        return dict(zip(self.names, self.sources, strict=True))

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Example:
        part = int(self.part[index])
        example, name = self.sources[part][int(self.item[index])], self.names[part]
        reference = json.dumps([name, example.reference])
        return dataclasses.replace(example, reference=reference, id=f"{name}/{example.id}")


def mix(sizes: Sequence[int], weights: Sequence[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of an epoch: parts in proportion to their weights, at every point of the epoch.

    Its length L is the least at which every example occurs at least once: part p has c_p ≈ L · w_p / Σ w
    places, spread evenly, and L is such that c_p ≥ n_p for all. A part with more places than examples goes
    through them again and again, each pass in an order of its own; within a part no example occurs two times
    more than another.

    Args:
      sizes: n, examples of each part, ≥ 1.
      weights: w, > 0; only their ratios count.
      seed: of the orders within the parts.

    Returns:
      part, item: (L,) int each.

    Raises:
      ValueError: an epoch of more than 10,000,000 examples.

    Example:
      >>> part, item = mix([4, 2], [2.0, 1.0], seed=0)
      >>> part.tolist(), sorted(item[part == 0].tolist())
      ([0, 1, 0, 0, 1, 0], [0, 1, 2, 3])
    """
    largest = max(weights)
    shares = [weight / largest / math.fsum(w / largest for w in weights) for weight in weights]
    length = max(n / share if share else math.inf for n, share in zip(sizes, shares, strict=True))
    if length > LONGEST_EPOCH:
        raise ValueError(
            f"parts: these weights make an epoch of {length:.3g} examples; allowed: {LONGEST_EPOCH:,}"
        )
    # A little less than the quotient is rounded up to: 3 / (1/3) is not quite 9.
    counts = [max(n, math.ceil(length * share - 1e-6)) for n, share in zip(sizes, shares, strict=True)]
    parts, items, times = [], [], []
    for p, (n, count) in enumerate(zip(sizes, counts, strict=True)):
        passes = math.ceil(count / n)
        order = np.random.default_rng([seed, p]).permuted(np.tile(np.arange(n), (passes, 1)), axis=1)
        parts.append(np.full(count, p))
        items.append(order.ravel()[:count])
        times.append((np.arange(count) + 0.5) / count)
    along = np.argsort(np.concatenate(times), kind="stable")
    return np.concatenate(parts)[along], np.concatenate(items)[along]


def make_mixture(
    data_dir: str | os.PathLike[str],
    parts: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_bad_reference: str = "error",
    tokenizer: Tokenizer | None = None,
) -> Task:
    """Several tasks as one: a weighted mixture to train on, all test splits one after the other.

    A part that has no train split (AIME, say) is only tested on, one without a test split only trained on.
    ``prompt_batches`` shuffles an epoch of the mixture as it does any other source, so that a batch has the
    parts in proportion to the weights on average.

    Args:
      data_dir: folder of data sets, for the parts that have some there.
      parts: name → {'task': a task's name, 'weight': > 0, 1 where it is left out, and that task's own settings}.
      seed: of the orders within the parts, ≥ 0.
      on_bad_reference: 'error', or 'skip' to leave out rows whose reference cannot be graded by (``references``); a
        part may have its own.
      tokenizer: the model's, which all parts share.

    Returns:
      A task whose ids begin with the part's name; a reference is JSON, [part, reference].

    Raises:
      ValueError: a part that will not do, its key named; weights that make too long an epoch.
    """
    check_integer(0, seed=seed)
    check_choice(ON_BAD_REFERENCE, on_bad_reference=on_bad_reference)
    sections = plain("parts", {} if parts is None else parts)
    if not sections:
        raise ValueError("parts is empty; set parts.NAME.task, parts.NAME.weight and that task's settings")
    made, weights = {}, {}
    for name, section in sorted(sections.items()):  # as a ConfigDict has them: the order is part of the data
        made[name], weights[name] = _make_part(name, section, data_dir, on_bad_reference, tokenizer)
    first = next(iter(made.values()))
    for name, task in made.items():
        if task.tokenizer is not first.tokenizer and repr(task.tokenizer) != repr(first.tokenizer):
            raise ValueError(f"parts.{name} has another tokenizer than the first part: set config.model.path")
    graders = {}
    for name, task in made.items():
        grader = as_grader(f"parts.{name}", task.verifier)
        graders[name] = {"path": grader.path, "arguments": dict(grader.arguments)}
    sources = {}
    for split in ("train", "test"):
        names = [name for name, task in made.items() if split in task.sources]
        if names:
            inner = [made[name].sources[split] for name in names]
            sizes = [len(source) for source in inner]
            if split == "train":
                part, item = mix(sizes, [weights[name] for name in names], seed)
            else:
                part = np.repeat(np.arange(len(names)), sizes)
                item = np.concatenate([np.arange(size) for size in sizes])
            sources[split] = _Mixed(names, inner, part, item)
    left_out: dict[str, list[str]] = {}
    for task in made.values():
        for split, lines in task.left_out.items():
            left_out.setdefault(split, []).extend(lines)
    grader = Grader("salt_jax.graders.custom:by_name", graders)
    return Task("mixture", first.tokenizer, sources, grader, left_out)


def _make_part(
    name: str, section: Any, data_dir: str | os.PathLike[str], on_bad_reference: str, tokenizer: Tokenizer | None
) -> tuple[Task, float]:
    where = f"parts.{name}"
    settings = plain(where, section)
    if not name or "/" in name:
        raise ValueError(f"parts has the name {name!r}; allowed: names without '/'")
    if settings.get("task") not in SINGLE_TASKS:
        raise ValueError(
            f"{where}.task = {settings.get('task')!r} is unknown; allowed: {', '.join(SINGLE_TASKS)}"
        )
    weight = settings.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"{where}.weight = {weight!r} is not allowed; allowed: numbers > 0")
    factory = SINGLE_TASKS[settings["task"]]
    allowed = [key for key in inspect.signature(factory).parameters if key not in ("data_dir", "tokenizer")]
    given = {"on_bad_reference": on_bad_reference} if "on_bad_reference" in allowed else {}
    own = given | {key: value for key, value in settings.items() if key not in OURS}
    for key in own:
        if key not in allowed:
            raise ValueError(f"{where}.{key} is not a key; allowed: {', '.join([*OURS, *allowed])}")
    try:
        return factory(data_dir, **own, tokenizer=tokenizer), float(weight)
    except ValueError as error:
        if tokenizer is None and str(error).startswith("task "):
            raise
        raise ValueError(f"{where}.{error}") from None


def as_grader(where: str, verifier: Verifier) -> Grader:
    """A verifier by import path: itself, or that of a function that a module has under its own name.

    Example:
      >>> from salt_jax.graders import exact_match
      >>> as_grader("parts.sums", exact_match).path
      'salt_jax.graders.verdict:exact_match'
    """
    if isinstance(verifier, Grader):
        return verifier
    module, name = getattr(verifier, "__module__", ""), getattr(verifier, "__qualname__", "")
    if not module or getattr(importlib.import_module(module), name, None) is not verifier:
        raise ValueError(f"{where}: a verifier of a mixture must be a function of a module, got {verifier!r}")
    return Grader(f"{module}:{name}")
