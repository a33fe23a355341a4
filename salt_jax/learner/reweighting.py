"""From what a forward pass saw of a minibatch to SALT's advantages and the metrics that describe its geometry."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from salt_jax import geometry, salt
from salt_jax.distributed.layout import Layout
from salt_jax.learner.settings import RunConfig
from salt_jax.policy.logprobs import CompletionScores, completion_scores
from salt_jax.products import matmul
from salt_jax.rollout import RolloutBatch, bundle, succeeded

Array = jax.Array
AFTER = ("n_eff_after", "coefficient_distortion", "update_deviation")  # about a', not a


def mini_batch_gram(
    run: RunConfig,
    policy: Any,
    params: Any,
    rollouts: RolloutBatch,
    scores: CompletionScores,
    layout: Layout | None = None,
) -> Array:
    """Gram matrix (m, m) of a minibatch's gradient features, the feature named by ``config.salt.feature``.

    'lm_head' and 'taken_token' use the hidden states of a forward pass that was needed anyway, 'lm_head_sketch' what
    that pass has projected already; 'per_rollout' takes one backward pass a rollout, over the parameters that match
    ``config.salt.subset``.
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
    if settings.feature == "lm_head_sketch":
        if scores.sketch is None:
            raise ValueError("feature 'lm_head_sketch' needs a forward pass that was asked for a sketch")
        return geometry.sketch_gram(scores.sketch, layout=layout)
    if scores.hidden is None:
        raise ValueError(f"feature {settings.feature!r} needs the hidden states of the forward pass")
    observed = (scores.hidden, nnx.merge(policy, params).lm_head, rollouts.completions, mask)
    how: dict[str, Any] = {
        "chunk_size": settings.vocab_chunk,
        "memory_budget": None if settings.memory_mib is None else settings.memory_mib * 2**20,
        "route": settings.route,
        "length_normalize": settings.length_normalize,
        "layout": layout,
    }
    if settings.feature == "taken_token":
        return geometry.taken_token_gram(*observed, **how)
    return geometry.lm_head_gram(*observed, temperature=temperature, log_normalizer=scores.log_normalizer, **how)


def sketch_of(
    run: RunConfig, key: Array, rollouts: RolloutBatch, vocab_size: int, basis: Array | None
) -> geometry.Sketch | None:
    """What the forward pass projects on its way, where ``config.salt.feature`` is 'lm_head_sketch'.

    The same for all parts of a rollout batch: the tokens to keep come from the whole of it, the basis of the hidden
    states from the steps before.
    """
    settings = run.geometry
    if settings.feature != "lm_head_sketch":
        return None
    heavy = geometry.heavy_tokens(
        rollouts.completions, rollouts.loss_mask, vocab_size, settings.rank_vocab,
        length_normalize=settings.length_normalize,
    )
    ranks = settings.rank_vocab, settings.rank_hidden
    return geometry.Sketch(key, heavy, basis, *ranks, settings.length_normalize)


def first_basis(run: RunConfig) -> Array | None:
    """Where the basis of a run's sketches starts; None where hidden states are not projected."""
    settings, width = run.geometry, run.policy.d_model
    if settings.feature != "lm_head_sketch" or settings.rank_hidden >= width:
        return None
    return geometry.start_basis(width, settings.rank_hidden)


def diagonal_blocks(gram: Array, size: int) -> Array:
    """(m, m) -> (m / size, size, size): the Gram matrices of consecutive units of ``size`` rollouts.

    Example:
      >>> diagonal_blocks(jnp.arange(16.0).reshape(4, 4), 2)[1].tolist()
      [[10.0, 11.0], [14.0, 15.0]]
    """
    units = gram.shape[0] // size
    blocks = jnp.reshape(gram, (units, size, units, size))
    return jnp.moveaxis(jnp.diagonal(blocks, axis1=0, axis2=2), -1, 0)


def success_rates(rollouts: RolloutBatch, group_size: int, correct_from: float) -> Array:
    """(m,) the share of each rollout's graded group that succeeded; 0 where nothing was graded."""
    graded = bundle(rollouts.rewarded & rollouts.valid, group_size)
    successes = jnp.sum(succeeded(bundle(rollouts.rewards, group_size), graded, correct_from), axis=1)
    rates = successes / jnp.maximum(jnp.sum(graded, axis=1), 1)
    return jnp.repeat(rates, group_size, total_repeat_length=rollouts.num_rollouts)


def observe_and_reweight(
    run: RunConfig,
    gram: Array,
    advantages: Array,
    rollouts: RolloutBatch,
    key: Array,
    entropy: Any,
    layout: Layout | None = None,
    *,
    rates: Array,
) -> tuple[Array, dict[str, Array]]:
    """Metrics of a minibatch's geometry, and SALT's advantages in place of a where it is enabled.

    Args:
      run: the run; ``salt`` and ``geometry`` are used.
      gram: (m, m).
      advantages: (m,) group-relative advantages a.
      rollouts: the same m rollouts.
      key: for the variants that draw.
      entropy: (now, least, greatest) mean token entropy, nats, for variant 'entropy_alpha'.
      layout: a mesh on which every device does all of this: m x m numbers are not worth a message.
      rates: (m,) ``success_rates`` of the groups, for variant 'scaled'.

    Returns:
      (m,) advantages for the loss, constants; and scalars: ``geometry/*`` of a, ``salt/*`` where enabled.
    """
    seen = jax.lax.stop_gradient((gram, advantages, rollouts.valid & rollouts.rewarded, rates, key, entropy))
    part = functools.partial(_observe_and_reweight, run)
    # By hand: the compiler would split the eigenvalue problem, and exchange bits of it in every round.
    return part(*seen) if layout is None else layout.everywhere(part)(*seen)


def _observe_and_reweight(
    run: RunConfig, gram: Array, advantages: Array, valid: Array, rates: Array, key: Array, entropy: Any
) -> tuple[Array, dict[str, Array]]:
    group_size = run.rollouts.rollouts_per_prompt
    metrics = {"geometry/gram_finite": jnp.all(jnp.isfinite(gram))}
    if not run.geometry.enabled:
        summary = geometry.geometry_summary(gram, advantages, group_size=group_size, valid=valid)
        return advantages, metrics | {f"geometry/{name}": value for name, value in summary.items()}

    size = run.unit_rows
    units = gram.shape[0] // size
    unit_advantages, unit_valid, unit_rates = bundle((advantages, valid, rates), size)

    def reweight(gram: Array, a: Array, valid: Array, key: Array, rate: Array) -> salt.SaltOutput:
        return salt.reweight(gram, a, run.salt, valid=valid, key=key, success_rate=rate, entropy=entropy)

    each = (diagonal_blocks(gram, size), unit_advantages, unit_valid, jax.random.split(key, units), unit_rates)
    if units == 1:  # not mapped: a mapped condition would run both of its branches
        out = jax.tree.map(lambda x: x[None], reweight(*jax.tree.map(lambda x: x[0], each)))
    else:
        out = jax.vmap(reweight)(*each)
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
        "salt/eigh_fallback": jnp.sum(out.fallback),  # units whose iterated eigenvectors were refused
        "salt/cosine": jnp.where(norms > 0, matmul(new, advantages) / jnp.where(norms > 0, norms, 1.0), 0.0),
    }
    summary = geometry.geometry_summary(gram, advantages, group_size=group_size, valid=valid, reweighted=new)
    for name, value in summary.items():
        metrics[f"salt/{name}" if name in AFTER else f"geometry/{name}"] = value
    return new, metrics
