"""Held-out evaluation: n samples a problem, graded, kept problem by problem, and summed up with intervals.

``collect`` samples and grades, ``summarize`` gives avg@n, pass@k and maj@n, ``compare`` sets two policies against each
other on the same problems; ``write_problems`` keeps the texts. The statistics are in evaluate_scores.py.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from salt_jax.evaluation.problems import ProblemResult, read_problems, write_problems
from salt_jax.evaluation.scores import (
    Comparison,
    bootstrap_interval,
    majority_vote,
    paired_bootstrap,
    pass_at_k,
)
from salt_jax.graders import Grades
from salt_jax.policy.sampler import Samples
from salt_jax.tasks import Task

__all__ = [
    "Comparison",
    "Estimate",
    "Evaluation",
    "ProblemResult",
    "collect",
    "compare",
    "decode_completions",
    "evaluate",
    "read_problems",
    "summarize",
    "write_problems",
]

Batch = Mapping[str, Any]


class Estimate(NamedTuple):
    """A mean over problems with its bootstrap interval.

    Attributes:
      value: NaN over no problem.
      low: NaN with fewer than two problems.
      high: the same.
      problems: how many it is over.
    """

    value: float
    low: float
    high: float
    problems: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result over a set of problems.

    Attributes:
      average: avg@n: mean over problems of the share of correct samples; problems without a graded one left out.
      pass_at: k → pass@k, over the problems with at least k graded samples.
      majority: maj@n, over the problems with a graded sample; where none of them has an answer the vote is wrong.
        None where the grader found no answer in any sample of any problem.
      reward: mean over problems of their graded samples' mean reward; NaN where none is graded.
      problems: problems attempted.
      samples: samples drawn.
      missing: samples whose grader failed; they are in none of the above.
      truncated: share of the samples that were cut off.
      length: mean of the samples, in tokens.
    """

    average: Estimate
    pass_at: Mapping[int, Estimate]
    majority: Estimate | None
    reward: float
    problems: int
    samples: int
    missing: int
    truncated: float
    length: float

    @property
    def accuracy(self) -> float:
        """The value of ``average``."""
        return self.average.value

    def to_record(self) -> dict[str, float | int | None]:
        """Flat, for JSON: 'accuracy', 'accuracy_low', …, 'pass@8', …, 'majority', …; None for what is undefined."""
        estimates = {"accuracy": self.average} | {f"pass@{k}": value for k, value in self.pass_at.items()}
        undefined = Estimate(math.nan, math.nan, math.nan, 0)
        record: dict[str, float | int | None] = {}
        for name, estimate in (estimates | {"majority": self.majority or undefined}).items():
            for field, value in zip(("", "_low", "_high", "_problems"), estimate, strict=True):
                record[name + field] = value
        for name in ("reward", "problems", "samples", "missing", "truncated", "length"):
            record[name] = getattr(self, name)
        return {name: None if value is not None and math.isnan(value) else value for name, value in record.items()}


def decode_completions(task: Task, samples: Samples) -> list[str]:
    """Texts of N completions, for graders and people; token ids go to the host once."""
    tokens, lengths = jax.device_get((samples.tokens, samples.lengths))
    return [task.tokenizer.decode(row[:length].tolist()) for row, length in zip(tokens, lengths, strict=True)]


def collect(
    generate: Callable[[Any, Any, int], Samples],
    batches: Iterable[Batch],
    decode: Callable[[Samples], Sequence[str]],
    grade: Callable[[Sequence[str], Sequence[str]], Grades],
    *,
    samples: int = 1,
    prompts: Mapping[str, str] | None = None,
) -> list[ProblemResult]:
    """Samples and grades every problem; a call's completions are graded while the next ones are generated.

    Args:
      generate: (prompt_tokens (B, P), prompt_mask (B, P), round) -> Samples of B·g rows, groups contiguous. Called
        ceil(samples / g) times a batch; what the last call has too many is dropped. ``round`` counts all calls from 0,
        for the random key: with one key for several batches, problems in the same row would share their luck.
      batches: from ``prompt_batches`` with repeat=False; filler rows are neither graded nor kept.
      decode: Samples of N rows -> N texts.
      grade: (texts, references) -> Grades, such as ``Task.grade``.
      samples: n, samples a problem.
      prompts: id → text to keep beside the completions.

    Returns:
      One result a problem, in the batches' order.

    Raises:
      ValueError: samples < 1, no problem, an id that comes twice or has no text in ``prompts``, or a callable that
        returns another number of rows than it should.
    """
    if samples < 1:
        raise ValueError(f"samples = {samples} is not allowed; allowed: integers >= 1")
    references: dict[str, str] = {}
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for batch, part, group, used, first in _one_ahead(_calls(generate, batches, samples)):
        valid = np.flatnonzero(batch["valid"]).tolist()
        for i in valid if first else ():
            if batch["ids"][i] in references:
                raise ValueError(f"problem {batch['ids'][i]!r} comes twice in the batches")
            references[batch["ids"][i]] = batch["references"][i]
        kept = [(batch["ids"][i], i * group + j) for i in valid for j in range(used)]
        every_text = decode(part)
        all_lengths, truncated = jax.device_get((part.lengths, part.truncated))
        _same_rows("decode", len(every_text), len(all_lengths))
        grades = grade([every_text[row] for _, row in kept], [references[name] for name, _ in kept])
        _same_rows("grade", len(grades.rewards), len(kept))
        found = grades.answers or (None,) * len(kept)
        for (name, row), value, ok, answer in zip(kept, grades.rewards, grades.rewarded, found, strict=True):
            # math.nan itself, not another NaN, so that equal results compare equal
            reward = float(np.float32(value)) if ok else math.nan
            sample = every_text[row], reward, bool(ok), bool(truncated[row]), int(all_lengths[row]), answer
            rows.setdefault(name, []).append(sample)
    if not rows:
        raise ValueError("no problem to evaluate: batches is empty")
    if prompts is not None and (unknown := [i for i in rows if i not in prompts]):
        raise ValueError(f"prompts has no text for {len(unknown)} of {len(rows)} problems: {unknown[0]!r}, …")
    results = []
    for name, drawn in rows.items():
        texts, rewards, rewarded, cut, lengths, answers = zip(*drawn, strict=True)
        prompt = prompts[name] if prompts is not None else ""
        results.append(ProblemResult(name, references[name], texts, rewards, rewarded, cut, lengths, answers, prompt))
    return results


def _calls(
    generate: Callable[[Any, Any, int], Samples], batches: Iterable[Batch], samples: int
) -> Iterator[tuple[Batch, Samples, int, int, bool]]:
    """(batch, its samples, rows a problem, of them to keep, whether it is the batch's first call)."""
    rounds = itertools.count()
    for batch in batches:
        done = 0
        while done < samples:
            part = generate(batch["prompt_tokens"], batch["prompt_mask"], next(rounds))
            group, rest = divmod(part.tokens.shape[0], len(batch["ids"]))
            if rest or not group:
                raise ValueError(f"generate returned {part.tokens.shape[0]} rows for {len(batch['ids'])} prompts")
            yield batch, part, group, min(group, samples - done), done == 0
            done += group


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each once the next has been made: JAX computes it while this one is used."""
    for previous, following in itertools.pairwise(itertools.chain(items, [None])):
        del following
        yield previous


def _same_rows(name: str, returned: int, expected: int) -> None:
    if returned != expected:
        raise ValueError(f"{name} returned {returned} rows for {expected} completions")


def summarize(
    results: Sequence[ProblemResult],
    *,
    ks: Sequence[int] = (1,),
    correct_from: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """avg@n, pass@k and maj@n over problems, each with a bootstrap interval.

    Args:
      results: one a problem.
      ks: of pass@k.
      correct_from: the least reward of a correct sample; partial credit counts in ``reward`` alone.
      level: of the intervals.
      seed: of the bootstrap.

    Returns:
      ``Evaluation``.

    Raises:
      ValueError: no result, or a k that is less than 1 or more than every problem's samples.

    Example:
      >>> result = ProblemResult("a", "7", ("7", "8"), (1.0, 0.0), (True, True), (False, False), (2, 2), ("7", "8"))
      >>> evaluation = summarize([result, dataclasses.replace(result, id="b")], ks=(1, 2))
      >>> evaluation.accuracy, evaluation.pass_at[2].value, evaluation.majority.value
      (0.5, 1.0, 0.5)
    """
    if not results:
        raise ValueError("no problem to evaluate: results is empty")
    most = max(len(result.texts) for result in results)
    for k in ks:
        if not 1 <= k <= most:
            raise ValueError(f"pass@{k} is not possible with {most} samples of a problem; allowed: 1 to {most}")
    estimate = functools.partial(_estimate, level=level, seed=seed)
    graded = [result for result in results if result.graded]
    n = np.array([result.graded for result in graded], np.int64)
    c = np.array([result.correct(correct_from) for result in graded], np.int64)
    votes = [majority_vote(r.answers, r.rewards, r.rewarded, correct_from=correct_from) for r in graded]
    answered = any(vote is not None for vote in votes)
    rewards = [float(np.mean([x for x, ok in zip(r.rewards, r.rewarded, strict=True) if ok])) for r in graded]
    lengths = [length for result in results for length in result.lengths]
    return Evaluation(
        average=estimate(c / n),
        pass_at={k: estimate(pass_at_k(n[n >= k], c[n >= k], k)) for k in ks},
        majority=estimate(np.array([vote or 0.0 for vote in votes])) if answered else None,
        reward=float(np.mean(rewards)) if rewards else math.nan,
        problems=len(results),
        samples=len(lengths),
        missing=len(lengths) - int(n.sum()),
        truncated=sum(sum(result.truncated) for result in results) / len(lengths),
        length=sum(lengths) / len(lengths),
    )


def by_part(results: Iterable[ProblemResult]) -> dict[str, list[ProblemResult]]:
    """The results of a mixture by part: ids are 'part/…'. Benchmarks of different sizes are averaged over these.

    Example:
      >>> one = ProblemResult("sums/test/0", "7", ("7",), (1.0,), (True,), (False,), (2,), ("7",))
      >>> {name: len(part) for name, part in by_part([one, dataclasses.replace(one, id="words/test/0")]).items()}
      {'sums': 1, 'words': 1}
    """
    parts: dict[str, list[ProblemResult]] = {}
    for result in results:
        parts.setdefault(result.id.partition("/")[0], []).append(result)
    return parts


def _estimate(values: np.ndarray, *, level: float, seed: int) -> Estimate:
    if not values.size:
        return Estimate(math.nan, math.nan, math.nan, 0)
    return Estimate(float(values.mean()), *bootstrap_interval(values, level=level, seed=seed), values.size)


def evaluate(
    generate: Callable[[Any, Any], Samples],
    batches: Iterable[Batch],
    task: Task,
    *,
    correct_from: float = 1.0,
) -> Evaluation:
    """Accuracy of one completion a problem (avg@1): ``collect`` and ``summarize``.

    Args:
      generate: (prompt_tokens (B, P), prompt_mask (B, P)) -> Samples of B rows.
      batches: from ``prompt_batches`` with repeat=False; filler rows are not counted.
      task: decodes and grades.
      correct_from: the least reward of a correct completion.

    Returns:
      The result over all problems.

    Raises:
      ValueError: if ``batches`` is empty.
    """
    decode = functools.partial(decode_completions, task)
    results = collect(lambda prompts, mask, _: generate(prompts, mask), batches, decode, task.grade)
    return summarize(results, correct_from=correct_from)


def compare(
    results: Sequence[ProblemResult],
    baseline: Sequence[ProblemResult],
    *,
    correct_from: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Accuracy of one policy less another's on the same problems, see ``paired_bootstrap``.

    Args:
      results: one a problem.
      baseline: the same problems under the other policy, in any order.
      correct_from: the least reward of a correct sample.
      level: of the interval.
      seed: of the bootstrap.

    Raises:
      ValueError: problems that only one of the two has, naming some.
    """
    ours, theirs = ({r.id: r.accuracy(correct_from) for r in side} for side in (results, baseline))
    return paired_bootstrap(ours, theirs, level=level, seed=seed)
