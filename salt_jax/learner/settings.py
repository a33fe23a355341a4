"""The typed form of a run's configuration: one frozen dataclass a section. Defaults are in configs/base.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from salt_jax.objective import ObjectiveConfig
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import SamplingConfig
from salt_jax.salt import SaltConfig


def named(prefix: str, keys: Iterable[str], message: str, otherwise: str) -> str:
    """A message with the whole key: ``prefix`` where it begins with one of its ``keys``, else ``otherwise``.

    Example:
      >>> named("config.sampling.", ["top_p"], "top_p must be in (0, 1]", "config.task: ")
      'config.sampling.top_p must be in (0, 1]'
      >>> named("config.", ["model.chat"], "model/config.json is not JSON", "config.model.path: ")
      'config.model.path: model/config.json is not JSON'
      >>> named("config.sampling.", ["top_p"], "the prompt of example 'a/0' is empty", "config.task: ")
      "config.task: the prompt of example 'a/0' is empty"
    """
    begins = re.match(r"(\w+)(\.\w+)*", message)
    return f"{prefix if begins and {begins[0], begins[1]} & set(keys) else otherwise}{message}"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The pretrained model a run starts from, and how its tokenizer writes prompts."""

    path: str
    chat: bool
    system: str
    template: Mapping


@dataclasses.dataclass(frozen=True)
class GradingConfig:
    """The workers that grade completions, for tasks whose verifier needs them."""

    workers: int
    deadline: float
    memory_mib: int


@dataclasses.dataclass(frozen=True)
class RolloutsConfig:
    """Shape of a rollout batch: B prompts, G rollouts each, P prompt tokens; how it is generated."""

    prompts_per_step: int
    rollouts_per_prompt: int
    max_prompt_length: int
    on_long_prompt: str
    wave_mib: int | None


@dataclasses.dataclass(frozen=True)
class CollectionConfig:
    """How the rollouts of a step come to be: ``salt_jax.collect``; the keys are explained in configs/base.py.

    The defaults are those of configs/base.py: an option that the chosen method does not read must keep its own.
    """

    method: str = "plain"
    clusters: str = ""
    segments: str = ""
    max_batches: int = 10
    on_exhausted: str = "error"
    sampled_rollouts: int | None = None
    round_rollouts: int | None = None
    max_rounds: int = 4
    exit_rule: str = "balance"
    positives: int = 1
    pool_weight: str = "one"
    distinct_prompts: int | None = None
    min_slots: int = 1
    max_slots: int = 4
    count_decay: float = 0.9
    prior_positive: float = 1.0
    prior_negative: float = 1.0
    rate_eps: float = 0.01
    decay_selected: float = 0.2
    decay_others: float = 0.999
    pilots: int = 8
    gvm_alpha: float = 1e-3
    gvm_beta: float = 2.0
    entropy_target: float = 0.5
    temperature_high: float = 1.2
    temperature_low: float = 0.8
    max_injected: int = 60
    inject_above: float = 0.05
    hpt_gate: float = 0.0


@dataclasses.dataclass(frozen=True)
class GeometryConfig:
    """Whether SALT is on, and how the Gram matrix is made; ``scope`` is as in configs/base.py.

    Of what: the rollouts that ``objective.filters`` leave, by the policy before the step.
    """

    enabled: bool
    feature: str
    scope: str
    length_normalize: bool
    vocab_chunk: int | None
    memory_mib: int | None
    route: str
    rank_vocab: int
    rank_hidden: int
    subset: str
    subset_microbatch: int
    measure_every: int


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """How a rollout batch becomes optimizer steps. SALT of all of them uses the Gram from before the first."""

    minibatches: int
    epochs: int
    microbatches: int
    vocab_chunk: int
    length_buckets: int
    prompt_buckets: int


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule and gradient clipping."""

    learning_rate: float
    warmup_steps: int
    schedule: str
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """The supervised phase before the first rollout; the ``otr_`` fields are those of ``objective.otr``."""

    steps: int
    batch_size: int
    learning_rate: float
    objective: str
    otr_samples: int
    otr_temperature: float
    otr_beta: float


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Completions of the test split's problems, and when they are made."""

    every: int
    problems: int
    batch_size: int
    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int | None
    keep_texts: bool


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often to save and how much to keep."""

    every: int
    keep: int
    best_by: str
    best_mode: str


@dataclasses.dataclass(frozen=True)
class GuardsConfig:
    """How many steps in a row may skip a non-finite update before the run stops."""

    max_skipped: int


@dataclasses.dataclass(frozen=True)
class MonitorsConfig:
    """Thresholds of a step's metrics: ``…_warn`` warns, ``…_stop`` stops; None does neither.

    Entropy in nats a token, approx_kl and kl_ref in nats a token, ratio: the largest of a step, sampler_gap: mean
    absolute difference of the sampler's and the trainer's log-probs in nats, truncated: share of the completions.
    """

    entropy_low_warn: float | None
    entropy_low_stop: float | None
    entropy_high_warn: float | None
    entropy_high_stop: float | None
    approx_kl_high_warn: float | None
    approx_kl_high_stop: float | None
    kl_ref_high_warn: float | None
    kl_ref_high_stop: float | None
    ratio_high_warn: float | None
    ratio_high_stop: float | None
    sampler_gap_high_warn: float | None
    sampler_gap_high_stop: float | None
    grad_norm_high_warn: float | None
    grad_norm_high_stop: float | None
    truncated_high_warn: float | None
    truncated_high_stop: float | None
    patience: int


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """What is written besides metrics.jsonl."""

    tensorboard: bool
    print_every: int


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run, checked. ``task_arguments`` go to the task's factory; a reward >= ``correct_from`` is a success.

    Without ``model.path`` the policy awaits its vocabulary, the tokenizer's: see ``setup.policy_config``.
    """

    seed: int
    steps: int
    init_from: str
    task_name: str
    task_arguments: Mapping[str, Any]
    correct_from: float
    model: ModelConfig
    grading: GradingConfig
    policy: TransformerConfig
    rollouts: RolloutsConfig
    sampling: SamplingConfig
    collection: CollectionConfig
    objective: ObjectiveConfig
    geometry: GeometryConfig
    salt: SaltConfig
    learner: LearnerConfig
    optimizer: OptimizerConfig
    warm_start: WarmStartConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    guards: GuardsConfig
    monitors: MonitorsConfig
    mesh: MeshConfig
    logging: LoggingConfig

    @property
    def rows(self) -> int:
        """N, rollouts in a rollout batch."""
        return self.rollouts.prompts_per_step * self.rollouts.rollouts_per_prompt

    @property
    def minibatch_rows(self) -> int:
        """m, rollouts in a minibatch: the denominator of one optimizer step and SALT's default unit."""
        return self.rows // self.learner.minibatches

    @property
    def unit_rows(self) -> int:
        """Rollouts whose geometry is taken together, from ``salt.scope``."""
        named = {"mini_batch": self.minibatch_rows, "group": self.rollouts.rollouts_per_prompt}
        return named.get(self.geometry.scope) or int(self.geometry.scope)

    @property
    def evaluation_sampling(self) -> SamplingConfig:
        """How completions of the test split are drawn: a filter is allowed there, and a length limit of its own."""
        own = self.evaluation
        return dataclasses.replace(
            self.sampling, temperature=own.temperature, top_p=own.top_p,
            max_new_tokens=own.max_new_tokens or self.sampling.max_new_tokens,
        )
