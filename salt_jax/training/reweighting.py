"""From what a forward pass saw of a minibatch to SALT's advantages and the metrics that describe its geometry."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from salt_jax import geometry, salt
from salt_jax.policy.logprobs import CompletionScores, completion_scores
from salt_jax.rollout import RolloutBatch, bundle
from salt_jax.training.config import RunConfig

Array = jax.Array


def mini_batch_gram(
    run: RunConfig, policy: Any, params: Any, rollouts: RolloutBatch, scores: CompletionScores
) -> Array:
    """Gram matrix (m, m) of a minibatch's gradient features, the feature named by ``config.salt.feature``.

    'lm_head' and 'taken_token' use the hidden states of a forward pass that was needed anyway; 'per_rollout'
    takes one backward pass a rollout, over the parameters that match ``config.salt.subset``.
    """
    settings = run.geometry
    temperature, chunk_size = run.sampling.temperature, run.learner.vocab_chunk
    mask = rollouts.loss_mask
    if settings.feature == "per_rollout":

        def negative_log_likelihood(params: Any, rollout: RolloutBatch) -> Array:
            one = jax.tree.map(lambda x: x[None], rollout)
            log_probs = completion_scores(
                nnx.merge(policy, params), one, group_size=1, temperature=temperature, chunk_size=chunk_size
            ).log_probs
            total = -jnp.sum(jnp.where(one.loss_mask, log_probs, 0.0))
            return total / jnp.maximum(jnp.sum(one.loss_mask), 1) if settings.length_normalize else total

        return geometry.per_rollout_gram(
            negative_log_likelihood,
            params,
            rollouts,
            where=lambda path: re.search(settings.subset, path) is not None,
            microbatch=settings.subset_microbatch,
        )
    if scores.hidden is None:
        raise ValueError(f"feature {settings.feature!r} needs the hidden states of the forward pass")
    observed = (scores.hidden, nnx.merge(policy, params).lm_head, rollouts.completions, mask)
    if settings.feature == "taken_token":
        return geometry.taken_token_gram(
            *observed, chunk_size=settings.vocab_chunk, length_normalize=settings.length_normalize
        )
    return geometry.lm_head_gram(
        *observed,
        temperature=temperature,
        chunk_size=settings.vocab_chunk,
        length_normalize=settings.length_normalize,
        log_normalizer=scores.log_normalizer,
    )


def diagonal_blocks(gram: Array, size: int) -> Array:
    """(m, m) -> (m / size, size, size): the Gram matrices of consecutive units of ``size`` rollouts.

    Example:
      >>> diagonal_blocks(jnp.arange(16.0).reshape(4, 4), 2)[1].tolist()
      [[10.0, 11.0], [14.0, 15.0]]
    """
    units = gram.shape[0] // size
    blocks = jnp.reshape(gram, (units, size, units, size))
    return jnp.moveaxis(jnp.diagonal(blocks, axis1=0, axis2=2), -1, 0)


def success_rates(rollouts: RolloutBatch, group_size: int) -> Array:
    """(m,) the share of each rollout's graded group with reward > 0; 0 where nothing was graded."""
    graded = bundle(rollouts.rewarded & rollouts.valid, group_size)
    successes = jnp.sum(graded & (bundle(rollouts.rewards, group_size) > 0), axis=1)
    rates = successes / jnp.maximum(jnp.sum(graded, axis=1), 1)
    return jnp.repeat(rates, group_size, total_repeat_length=rollouts.num_rollouts)


def observe_and_reweight(
    run: RunConfig, gram: Array, advantages: Array, rollouts: RolloutBatch, key: Array, entropy: Any
) -> tuple[Array, dict[str, Array]]:
    """Metrics of a minibatch's geometry, and SALT's advantages in place of a where it is enabled.

    Args:
      run: the run; ``salt`` and ``geometry`` are used.
      gram: (m, m).
      advantages: (m,) group-relative advantages a.
      rollouts: the same m rollouts.
      key: for the variants that draw.
      entropy: (now, least, greatest) mean token entropy, nats, for variant 'entropy_alpha'.

    Returns:
      (m,) advantages for the loss, constants; and scalars: ``geometry/*`` of a, ``salt/*`` where enabled.
    """
    gram, advantages = jax.lax.stop_gradient((gram, advantages))
    group_size = run.rollouts.rollouts_per_prompt
    valid = rollouts.valid & rollouts.rewarded
    summary = geometry.geometry_summary(gram, advantages, group_size=group_size, valid=valid)
    metrics = {f"geometry/{name}": value for name, value in summary.items()}
    metrics["geometry/gram_finite"] = jnp.all(jnp.isfinite(gram))
    if not run.geometry.enabled:
        return advantages, metrics

    size = run.unit_rows
    units = gram.shape[0] // size
    rates = success_rates(rollouts, group_size)
    unit_advantages, unit_valid, unit_rates = bundle((advantages, valid, rates), size)

    def reweight(gram: Array, a: Array, valid: Array, key: Array, rate: Array) -> salt.SaltOutput:
        return salt.reweight(gram, a, run.salt, valid=valid, key=key, success_rate=rate, entropy=entropy)

    out = jax.vmap(reweight)(
        diagonal_blocks(gram, size), unit_advantages, unit_valid, jax.random.split(key, units), unit_rates
    )
    new = jnp.reshape(out.advantages, advantages.shape)
    signal = jnp.any(unit_advantages != 0, axis=1)  # a unanimous unit says nothing about alpha
    signal = signal | ~jnp.any(signal)  # unless all are

    def mean(values: Array) -> Array:
        return jnp.sum(jnp.where(signal, values, 0.0)) / jnp.maximum(jnp.sum(signal), 1)

    for name in ("alpha", "k", "participation_ratio", "n_eff", "eigengap"):
        metrics[f"salt/{name}"] = mean(getattr(out, name).astype(jnp.float32))
    norms = jnp.linalg.norm(new) * jnp.linalg.norm(advantages)
    metrics |= {
        "salt/not_ok": jnp.sum(~out.ok),  # units with nothing to reweight (no gradient at all)
        "salt/n_eff_after": geometry.effective_sample_size(gram, new, valid=valid),
        "salt/cosine": jnp.where(norms > 0, jnp.vdot(new, advantages) / jnp.where(norms > 0, norms, 1.0), 0.0),
        "salt/coefficient_distortion": geometry.coefficient_distortion(new, advantages, valid=valid),
        "salt/update_deviation": geometry.update_deviation(gram, new, advantages, valid=valid),
    }
    return new, metrics
