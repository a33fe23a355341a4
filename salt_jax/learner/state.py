"""What training carries from step to step, how it begins, and the optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.sharding import Mesh

from salt_jax.learner.settings import OptimizerConfig
from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.transformer import Decoder

Array = jax.Array
NOT_DECAYED = ("norm", "bias")  # how the names of such parameters end


@struct.dataclass
class TrainState:
    """Everything a checkpoint of the computation holds; the data iterator is saved beside it.

    Attributes:
      step: scalar int32, rollout batches (or warm-start batches) consumed.
      params: nested dict of float32 arrays.
      opt_state: the optimizer's.
      ref_params: the policy at the start, for KL to it; None where the objective needs no reference.
      entropy_range: (2,) float32 nats, least and greatest mean token entropy seen (variant 'entropy_alpha').
      consumed_prompts: scalar int32.
      key: (2,) uint32, key data; what a step draws comes from this key folded with the step.
      sketch_basis: (D, e) float32, the directions of hidden states that a sketch keeps exactly: one round of
        subspace iteration a step. None where config.salt.feature needs none.
    """

    step: Array
    params: Any
    opt_state: Any
    ref_params: Any
    entropy_range: Array
    consumed_prompts: Array
    key: Array
    sketch_basis: Array | None = None

    def step_key(self) -> Array:
        """The PRNG key of the current step."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)


def make_policy(config: TransformerConfig, mesh: Mesh | None = None) -> Any:
    """The static part of the policy; ``nnx.merge(policy, params)`` is the callable model.

    ``mesh`` is where its attention kernels run: config.policy.attention = 'splash' needs it on several devices.
    """
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), mesh=mesh)))[0]


def init_params(config: TransformerConfig, key: Array) -> Any:
    """Random float32 parameters as a nested dict."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(params=key))))


def vocabulary(params: Any) -> int:
    """V, rows of the embedding."""
    return params["embedding"].shape[0]


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW with global-norm clipping; linear warm-up, then constant, or linear or cosine decay to 0.

    Weights decay, scales of norms and biases do not.

    Args:
      config: rates and options.
      total_steps: optimizer steps of the run; where the decay ends.

    Example:
      >>> config = OptimizerConfig(1e-3, 0, "constant", 0.9, 0.999, 1e-8, 0.0, 1.0)
      >>> optimizer = make_optimizer(config, total_steps=10)
      >>> optimizer.init({"w": jnp.zeros(2)}) is not None
      True
    """
    rate, decay_steps = config.learning_rate, max(total_steps - config.warmup_steps, 1)
    after: optax.Schedule
    if config.schedule == "linear":
        after = optax.linear_schedule(rate, 0.0, decay_steps)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, decay_steps)
    else:
        after = optax.constant_schedule(rate)
    warmup = optax.linear_schedule(0.0, rate, config.warmup_steps) if config.warmup_steps else None
    schedule = optax.join_schedules([warmup, after], [config.warmup_steps]) if warmup else after
    adamw = optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        _decay_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


def _decay_weights(rate: float) -> optax.GradientTransformation:
    """``optax.add_decayed_weights`` that leaves norms and biases out.

    Its own ``mask`` would wrap the optimizer's state, and checkpoints from before would no longer fit.
    """
    everything = optax.add_decayed_weights(rate)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def decaying(path: Any, param: Array) -> Array:
            return jnp.zeros_like(param) if path[-1].key.endswith(NOT_DECAYED) else param

        return everything.update(updates, state, jax.tree_util.tree_map_with_path(decaying, params))

    return optax.GradientTransformation(everything.init, update)


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    keep_reference: bool = False,
    sketch_basis: Array | None = None,
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # a copy: the step donates its state, and one buffer cannot be donated twice
        ref_params=jax.tree.map(jnp.copy, params) if keep_reference else None,
        entropy_range=jnp.array([jnp.inf, -jnp.inf], jnp.float32),
        consumed_prompts=jnp.zeros((), jnp.int32),
        key=jnp.copy(jax.random.key_data(key)),  # a buffer of its own, to be donated
        sketch_basis=sketch_basis,
    )
