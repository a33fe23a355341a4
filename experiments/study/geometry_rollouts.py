"""Rollouts of a frozen policy, graded, and the Gram matrices of their gradient features.

Sampling, grading, forward pass and features are those of training; one device, one temperature at a time. The feature
belongs to the distribution that was sampled from, so every batch here is on-policy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from salt_jax import geometry
from salt_jax.collect import generation
from salt_jax.distributed.sharding import make_mesh
from salt_jax.graders import GraderError
from salt_jax.learner.harvest import scores_of
from salt_jax.learner.reweighting import mini_batch_gram
from salt_jax.learner.settings import RunConfig
from salt_jax.learner.state import init_params, make_policy
from salt_jax.policy.logprobs import CompletionScores, completion_scores
from salt_jax.rollout import RolloutBatch
from salt_jax.run import provenance, setup
from salt_jax.spec import ConfigError
from salt_jax.tasks import Task, prompt_batches

FEATURES = ("score_sum", "score_mean", "taken_token", "last_block", "all")
BACKWARD = ("last_block", "all")  # one backward pass a rollout; mean over the rollout's tokens, as 'score_mean'
AT_ONCE = 32  # prompts sampled in one call at most
BACKWARD_AT_ONCE = 16  # rollouts whose backward passes live at once


class Pool(NamedTuple):
    """Rollouts of one policy at one temperature, on the host; row p·N + i is rollout i of prompt p.

    Attributes:
      rollouts: P·N of them.
      hidden: (P·N, T, D) states that predict each token.
      log_normalizer: (P·N, T) of the scaled logits.
      temperature: τ.
      facts: mean reward, entropy in nats a token, tokens a rollout, share that was cut off.
    """

    rollouts: RolloutBatch
    hidden: np.ndarray
    log_normalizer: np.ndarray
    temperature: float
    facts: dict[str, float]


class Frozen:
    """A task and a policy's shape, and what samples, scores and differentiates with any parameters of that shape.

    Args:
      run: the checked configuration; its sampling, task and vocabulary chunk are used.
      task: from ``setup.checked_task``.
      grade: from ``setup.grading``.
      rollouts: N, of each prompt.
    """

    def __init__(self, run: RunConfig, task: Task, grade: setup.Grade, rollouts: int) -> None:
        self.run, self.task, self.rollouts, self._grade = run, task, rollouts, grade
        # Unrolled: a backward pass into the last block must not run through the blocks below it.
        shape = setup.policy_config(run, task)
        self.shape = dataclasses.replace(shape, scan_layers=False, attention="segments", remat="none")
        self.mesh = make_mesh(1, 1, 1)
        self._policy = make_policy(self.shape, self.mesh)
        self._samplers: dict[float, Callable[..., Any]] = {}
        self._assemble = generation.jit_assemble(self.mesh, rollouts)
        self._scores = jax.jit(self._scores_of, static_argnames="temperature")
        self._gram = jax.jit(self._gram_of, static_argnames=("feature", "temperature"))

    def params(self, folder: Path | None, step: int | None) -> Any:
        """Parameters of a run's checkpoint, or of the pretrained model of config.model.path."""
        if folder is None:
            return setup.initial_params(self.run, self.shape, jax.random.key(0), self.mesh)
        assert step is not None
        return setup.params_at(folder, step, setup.abstract_params(self.shape, self.mesh), f"--run={folder}")

    def features_size(self, feature: str, rows: int) -> int:
        """Bytes of the features that must be held for a Gram matrix of so many rows; 0 where they are streamed."""
        if feature not in BACKWARD:
            return 0
        shapes = jax.eval_shape(lambda: init_params(self.shape, jax.random.key(0)))
        layers = sum(x.size for x in jax.tree.leaves(shapes["layers"])) // self.shape.num_layers
        size = layers if feature == "last_block" else sum(x.size for x in jax.tree.leaves(shapes))
        return 4 * rows * size

    def pool(self, params: Any, prompts: int, temperature: float, seed: int) -> Pool:
        """N graded rollouts of each of the first so many training prompts in the order of ``seed``.

        Raises:
          ConfigError: there are fewer prompts.
          GraderError: a reward is missing: a group with a hole is no group of G.
        """
        source, _ = setup.prompts_of(self.run, self.task, "train")
        if prompts > len(source):
            raise ConfigError(f"--prompts={prompts} is more than there is: {len(source)} training problems")
        size = math.gcd(prompts, AT_ONCE)
        batches = prompt_batches(
            source, self.task.tokenizer, batch_size=size, max_prompt_length=self.run.rollouts.max_prompt_length,
            seed=seed,
        )  # fmt: skip
        key = jax.random.fold_in(jax.random.key(seed), 0x67)  # not the keys of training and of evaluation
        parts = [self._sample(params, next(batches), temperature, jax.random.fold_in(key, i))
                 for i in range(prompts // size)]  # fmt: skip
        rollouts = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
        longest = int(rollouts.prompt_mask.sum(axis=1).max()), int(rollouts.completion_mask.sum(axis=1).max())
        rollouts = rollouts.trimmed(max(longest[0], 1), longest[1])
        rows = size * self.rollouts
        scores = [
            jax.device_get(self._scores(params, jax.tree.map(lambda x, i=i: x[i : i + rows], rollouts),
                                        temperature=temperature))
            for i in range(0, rollouts.num_rollouts, rows)
        ]  # fmt: skip
        hidden, log_normalizer, entropy = (np.concatenate(part) for part in zip(*scores, strict=True))
        mask = rollouts.completion_mask
        facts = {
            "reward": float(rollouts.rewards.mean()), "entropy": float(entropy[mask].mean()),
            "tokens": float(mask.sum(axis=1).mean()), "truncated": float(rollouts.truncated.mean()),
        }  # fmt: skip
        return Pool(rollouts, hidden, log_normalizer, temperature, facts)

    def gram(self, params: Any, pool: Pool, feature: str, rows: np.ndarray) -> np.ndarray:
        """K (m, m), float64, of m rows of the pool.

        The sum over tokens is the mean times the length, so 'score_sum' is K_ij L_i L_j of the 'score_mean' K.
        """
        rollouts = jax.tree.map(lambda x: x[rows], pool.rollouts)
        seen = (pool.hidden[rows], pool.log_normalizer[rows])
        base = "score_mean" if feature == "score_sum" else feature
        found = self._gram(params, rollouts, *seen, feature=base, temperature=pool.temperature)
        gram = np.asarray(jax.device_get(found), np.float64)
        if feature == "score_sum":
            lengths = rollouts.completion_mask.sum(axis=1).astype(np.float64)
            gram = gram * lengths[:, None] * lengths[None, :]
        if not np.isfinite(gram).all():
            raise ConfigError(f"the Gram matrix of {feature} is not finite at temperature {pool.temperature:g}")
        return (gram + gram.T) / 2

    def _sample(self, params: Any, batch: Any, temperature: float, key: jax.Array) -> RolloutBatch:
        if temperature not in self._samplers:
            how = dataclasses.replace(self.run.sampling, temperature=temperature)
            self._samplers[temperature] = generation.jit_sampler(
                self._policy, params, self.mesh, group_size=self.rollouts, config=how, tokenizer=self.task.tokenizer
            )
        tokens, mask = batch["prompt_tokens"], batch["prompt_mask"]
        samples = self._samplers[temperature](params, tokens, mask, key)
        grades = generation.grade_samples(self.task, self._grade, samples, list(batch["references"]), self.rollouts)
        if grades.errors.count:
            raise GraderError(f"{grades.errors.count} of {len(grades.rewards)} rewards missing: {grades.errors.first}")
        return jax.device_get(self._assemble(tokens, mask, samples, grades.rewards, grades.rewarded))

    def _at(self, temperature: float, **how: Any) -> RunConfig:
        sampling = dataclasses.replace(self.run.sampling, temperature=temperature)
        settings = dataclasses.replace(self.run.geometry, **how)
        return dataclasses.replace(self.run, sampling=sampling, geometry=settings)

    def _scores_of(self, params: Any, rollouts: RolloutBatch, *, temperature: float) -> Any:
        run = self._at(temperature)
        scores = scores_of(run, self._policy, params, rollouts, group_size=self.rollouts)
        return scores.hidden, scores.log_normalizer, scores.entropy

    def _gram_of(
        self, params: Any, rollouts: RolloutBatch, hidden: Any, log_normalizer: Any, *, feature: str, temperature: float
    ) -> jax.Array:
        at_once = math.gcd(rollouts.num_rollouts, BACKWARD_AT_ONCE)
        if feature == "last_block":
            return self._last_block_gram(params, rollouts, temperature, at_once)
        named = {"score_mean": "lm_head", "all": "per_rollout"}.get(feature, feature)
        run = self._at(temperature, feature=named, length_normalize=True, subset=".", subset_microbatch=at_once)
        nothing = jnp.zeros_like(log_normalizer)
        scores = CompletionScores(nothing, nothing, log_normalizer, hidden)
        return mini_batch_gram(run, self._policy, params, rollouts, scores)

    def _last_block_gram(self, params: Any, rollouts: RolloutBatch, temperature: float, at_once: int) -> jax.Array:
        """Of the last layer's parameters: layers are stacked, so a path alone does not name one of them."""

        def negative_log_likelihood(last: Any, rollout: RolloutBatch) -> jax.Array:
            layers = jax.tree.map(_Stack, params["layers"], last)
            one = jax.tree.map(lambda x: x[None], rollout)
            log_probs = completion_scores(
                nnx.merge(self._policy, params | {"layers": layers}), one, group_size=1, temperature=temperature,
                chunk_size=self.run.learner.vocab_chunk,
            ).log_probs  # fmt: skip
            return -jnp.sum(jnp.where(one.loss_mask, log_probs, 0.0)) / jnp.maximum(jnp.sum(one.loss_mask), 1)

        last = jax.tree.map(lambda x: x[-1], params["layers"])
        return geometry.per_rollout_gram(negative_log_likelihood, last, rollouts, microbatch=at_once)


class _Stack:
    """Layers of which the last is another array: a concatenation would be differentiated, and held, as a whole."""

    def __init__(self, stacked: jax.Array, last: jax.Array) -> None:
        self._stacked, self._last = stacked, last

    __iter__ = None

    def __getitem__(self, layer: int) -> jax.Array:
        return self._last if layer == len(self._stacked) - 1 else self._stacked[layer]


@contextlib.contextmanager
def opened(config: Any, folder: Path | None, rollouts: int) -> Iterator[Frozen]:
    """The task of a configuration, its graders started, and its policy's shape.

    Args:
      config: ConfigDict or nested dict with every key of configs/base.py.
      folder: the run that it is the configuration of; None for a pretrained model.
      rollouts: N, of each prompt.

    Raises:
      ConfigError: wrong input; nothing has been compiled.
    """
    run = setup.parse(config)
    if folder is None and not run.model.path:
        raise ConfigError("config.model.path is empty: name a run with --run, or a configuration of a pretrained model")
    with contextlib.ExitStack() as until:
        data = folder / "data" if folder is not None else None
        if data is None or not data.is_dir():
            data = Path(until.enter_context(tempfile.TemporaryDirectory()))
        date = provenance.first_date(*([] if folder is None else [folder]))
        task = setup.checked_task(run, data, splits=("train",), date=date)
        yield Frozen(run, task, until.enter_context(setup.grading(run, task)), rollouts)


def deal(number: int, *, prompts: int, rollouts: int, group: int, rows: int) -> np.ndarray:
    """Rows of the pool that make mini-batch ``number`` of groups of G: (rows / G, G).

    A prompt's N rollouts are cut into N / G consecutive groups. Mini-batches take the first group of every prompt, then
    the second of every prompt, and so on: as many different prompts as there are, as in training.

    Example:
      >>> deal(0, prompts=2, rollouts=4, group=2, rows=4).tolist()
      [[0, 1], [4, 5]]
      >>> deal(1, prompts=2, rollouts=4, group=2, rows=4).tolist()
      [[2, 3], [6, 7]]
    """
    groups = rows // group
    which = number * groups + np.arange(groups)
    first = (which % prompts) * rollouts + (which // prompts) * group
    return first[:, None] + np.arange(group)
