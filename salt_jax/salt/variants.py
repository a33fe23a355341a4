"""SALT, its ablations and its controls: one function each, and the one dict that names them.

Every variant maps the same `Inputs` to (shared, residual, alpha, new advantages), each (m,) or a scalar:

- shared    P a, the part of the advantages in the dominant subspace (P is the variant's own projector)
- residual  the residual channel before alpha, P⊥[a]₊ unless the variant says otherwise
- alpha     its gain

Equation numbers and App. F.3: arXiv 2606.05800. Rows of padding hold zeros throughout; they are masked at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from salt_jax.geometry.numerics import quadratic_form, safe_ratio
from salt_jax.geometry.spectrum import Spectrum, project


class Inputs(NamedTuple):
    """What a variant may use. gram (m, m) and advantages (m,) are scaled by powers of two, padding is 0."""

    gram: jax.Array
    advantages: jax.Array
    valid: jax.Array  # (m,) bool
    shared: jax.Array  # (m,) P a
    residual: jax.Array  # (m,) P⊥[a]₊
    basis: Spectrum | None  # only for the variants in WHOLE_SPECTRUM
    k: jax.Array
    participation_ratio: jax.Array
    alpha: jax.Array  # clip(1 − n_eff, alpha_min, alpha_max)
    fixed_alpha: float | jax.Array
    key: jax.Array | None
    success_rate: jax.Array | None  # (m,)
    entropy: tuple[Any, Any, Any] | None  # now, running minimum, running maximum


class Channels(NamedTuple):
    """What a variant returns: the channels (m,), the gain () of the residual one, and the advantages (m,)."""

    shared: jax.Array
    residual: jax.Array
    alpha: jax.Array
    advantages: jax.Array


def _positive(x: Inputs) -> jax.Array:
    return jnp.maximum(x.advantages, 0.0)


def _count(x: Inputs) -> jax.Array:
    return x.valid.sum().astype(jnp.int32)


def _split(x: Inputs, alpha: jax.Array) -> Channels:
    """Eq. 17–18: a' = P a + α P⊥[a]₊."""
    return Channels(x.shared, x.residual, alpha, x.shared + alpha * x.residual)


def salt(x: Inputs) -> Channels:
    """a' = P a + α P⊥[a]₊, α = clip(1 − n_eff, α_min, α_max)  (Eq. 12–18)."""
    return _split(x, x.alpha)


def shared_only(x: Inputs) -> Channels:
    """a' = P a."""
    both = _split(x, x.alpha)
    return both._replace(advantages=both.shared)


def residual_only(x: Inputs) -> Channels:
    """a' = α P⊥[a]₊."""
    both = _split(x, x.alpha)
    return both._replace(advantages=both.alpha * both.residual)


def signed(x: Inputs) -> Channels:
    """a' = P a + α P⊥ a; residual is P⊥ a."""
    residual = x.advantages - x.shared
    return Channels(x.shared, residual, x.alpha, x.shared + x.alpha * residual)


def no_projection(x: Inputs) -> Channels:
    """a' = a + α [a]₊; residual is [a]₊."""
    residual = _positive(x)
    return Channels(x.shared, residual, x.alpha, x.advantages + x.alpha * residual)


def random_projection(x: Inputs) -> Channels:
    """a' = P a + α P⊥[a]₊ with P on a uniformly random subspace of the same dimension k."""
    shared, residual = _random_projector(x)(x.advantages), _random_residual(x)
    return Channels(shared, residual, x.alpha, shared + x.alpha * residual)


def fixed_alpha(x: Inputs) -> Channels:
    """α = config.fixed_alpha."""
    return _split(x, jnp.asarray(x.fixed_alpha, jnp.float32))


def pr_alpha(x: Inputs) -> Channels:
    """α = clip(PR / (m − 1), 0, 1)."""
    others = jnp.maximum(_count(x) - 1, 1).astype(jnp.float32)
    return _split(x, jnp.clip(x.participation_ratio / others, 0.0, 1.0))


def entropy_alpha(x: Inputs) -> Channels:
    """α = clip((H − H_min) / (H_max − H_min), 0, 1) with the running minimum and maximum; 0/0 := 0."""
    assert x.entropy is not None
    now, low, high = (jnp.asarray(value, jnp.float32) for value in x.entropy)
    return _split(x, jnp.clip(safe_ratio(now - low, high - low), 0.0, 1.0))


def permuted(x: Inputs) -> Channels:
    """SALT's a' values, permuted at random over the valid rollouts (matched null)."""
    both = _split(x, x.alpha)
    draws_m = _per_valid_rank(x, lambda key: jax.random.uniform(key))
    places_m = jnp.argsort(~x.valid, stable=True)  # the valid positions, in order, then padding
    donors_m = jnp.argsort(jnp.where(x.valid, draws_m, jnp.inf), stable=True)
    return both._replace(advantages=both.advantages.at[places_m].set(both.advantages[donors_m]))


def matched_random(x: Inputs) -> Channels:
    """SALT's a' values, sorted, assigned by the ranking of a random subspace's scores P⊥_random[a]₊."""
    both = _split(x, x.alpha)
    last = jnp.where(x.valid, 0.0, jnp.inf)
    ranking_m = jnp.argsort(_random_residual(x) + last, stable=True)
    values_m = jnp.sort(both.advantages + last)
    return both._replace(advantages=jnp.zeros_like(values_m).at[ranking_m].set(values_m))


def scaled(x: Inputs) -> Channels:
    """Control: a' = a α (1 − p_g), p_g the success rate of the rollout's group; no geometry but α."""
    assert x.success_rate is not None
    rate_m = jnp.where(x.valid, x.success_rate, 0.0)
    return _split(x, x.alpha)._replace(advantages=x.advantages * x.alpha * (1.0 - rate_m))


def positive_only(x: Inputs) -> Channels:
    """Control: a' = [a]₊."""
    return _split(x, x.alpha)._replace(advantages=_positive(x))


def update_norm_matched(x: Inputs) -> Channels:
    """Control: a' = a ‖S a_salt‖ / ‖S a‖, the size of SALT's update without its direction; x/0 := 0.

    A quadratic form below 8 m eps Σ_ij |a_i K_ij a_j| is rounding, hence 0.
    """
    both = _split(x, x.alpha)
    noise = 8 * x.gram.shape[0] * jnp.finfo(jnp.float32).eps
    sizes = []
    for vector in (both.advantages, x.advantages):
        square = quadratic_form(x.gram, vector)
        floor = noise * quadratic_form(jnp.abs(x.gram), jnp.abs(vector))
        sizes.append(jnp.where(square <= floor, 0.0, jnp.sqrt(square)))
    return both._replace(advantages=x.advantages * safe_ratio(sizes[0], sizes[1]))


def amplify(x: Inputs) -> Channels:
    """Control: a' = a + α P⊥[a]₊, the residual is amplified and never dropped."""
    both = _split(x, x.alpha)
    return both._replace(advantages=x.advantages + both.alpha * both.residual)


def complement(x: Inputs) -> Channels:
    """Control: a' = a − P a, the residual channel alone, signed; residual is P⊥ a."""
    residual = x.advantages - x.shared
    return Channels(x.shared, residual, x.alpha, residual)


def soft_filter(x: Inputs) -> Channels:
    """Control: SALT with the soft filter K(K + λI)⁻¹ for P, λ such that its trace is k (λ = 0 where k = rank)."""
    assert x.basis is not None
    basis = x.basis
    exact_m = (basis.values > 0).astype(jnp.float32)
    gains_m = jnp.where(x.k >= basis.rank, exact_m, _damping(basis, x.k.astype(jnp.float32)))

    def smooth(vector: jax.Array) -> jax.Array:
        whole = basis.rank >= basis.n_valid
        return jnp.where(whole & (x.k >= basis.rank), vector, project(basis.vectors, gains_m, vector))

    shared, residual = smooth(x.advantages), _positive(x) - smooth(_positive(x))
    return Channels(shared, residual, x.alpha, shared + x.alpha * residual)


def natural(x: Inputs) -> Channels:
    """Control: a' = (I − K(K + λI)⁻¹) a, the natural policy gradient among the rollouts' features; no one-sidedness.

    S a' = λ (SSᵀ + λI)⁻¹ S a by the push-through identity: the update preconditioned by the damped empirical Fisher
    matrix of the features, times λ. Σ λ_i/(λ_i + λ) = k, but at most rank − 1, ½ where the rank is 1: at k = rank λ
    and with it a' would be 0. shared is K(K + λI)⁻¹ a, residual is a'. Flat spectra give a multiple of a.
    """
    return _natural(x, x.advantages)


def natural_positive(x: Inputs) -> Channels:
    """Control: `natural` of [a]₊: a' = (I − K(K + λI)⁻¹)[a]₊; shared is K(K + λI)⁻¹[a]₊."""
    return _natural(x, _positive(x))


def _natural(x: Inputs, vector: jax.Array) -> Channels:
    assert x.basis is not None
    most = jnp.maximum(x.basis.rank.astype(jnp.float32) - 1.0, 0.5)
    gains_m = _damping(x.basis, jnp.minimum(x.k.astype(jnp.float32), most))
    # From the complementary gains, not as vector − shared: that would cancel where λ is small.
    residual = project(x.basis.vectors, 1.0 - gains_m, vector)
    return Channels(vector - residual, residual, x.alpha, residual)


def _damping(basis: Spectrum, trace: jax.Array) -> jax.Array:
    """(m,) the gains λ_i/(λ_i + λ) of K(K + λI)⁻¹, λ such that they add up to ``trace`` < rank; bisects log λ."""
    values_m = basis.values

    def gains(log_shift: jax.Array) -> jax.Array:
        return safe_ratio(values_m, values_m + jnp.exp(log_shift))

    # Bracket: Σ λ_i/(λ_i + λ) ≤ tr/λ gives the upper end; every kept eigenvalue is above eps · λ_1.
    top = jnp.maximum(values_m[0], jnp.finfo(jnp.float32).tiny)
    low = jnp.log(top) + jnp.log(jnp.finfo(jnp.float32).eps) - jnp.log(float(values_m.shape[0]))
    high = jnp.log(jnp.maximum(values_m.sum(), top)) - jnp.log(jnp.maximum(trace, 0.5))

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        middle = (ends[0] + ends[1]) / 2
        too_much = gains(middle).sum() > trace
        return jnp.where(too_much, middle, ends[0]), jnp.where(too_much, ends[1], middle)

    low, high = lax.fori_loop(0, 40, halve, (low, high))
    return gains((low + high) / 2)


VARIANTS: dict[str, Callable[[Inputs], Channels]] = {
    "salt": salt,
    # ablations of the paper (App. F.3)
    "shared_only": shared_only,
    "residual_only": residual_only,
    "signed": signed,
    "no_projection": no_projection,
    "random_projection": random_projection,
    "fixed_alpha": fixed_alpha,
    "pr_alpha": pr_alpha,
    "entropy_alpha": entropy_alpha,
    # matched nulls
    "permuted": permuted,
    "matched_random": matched_random,
    # controls of this project
    "scaled": scaled,
    "positive_only": positive_only,
    "update_norm_matched": update_norm_matched,
    "amplify": amplify,
    "complement": complement,
    "soft_filter": soft_filter,
    "natural": natural,
    "natural_positive": natural_positive,
}

NEEDS: dict[str, str] = {
    "random_projection": "key",
    "permuted": "key",
    "matched_random": "key",
    "scaled": "success_rate",
    "entropy_alpha": "entropy",
}
"""The extra argument of `reweight` that a variant cannot do without."""

WHOLE_SPECTRUM = ("soft_filter", "natural", "natural_positive")
"""Variants that use every eigenpair of K: always a full `eigh`, whatever config.eigen says."""


def _per_valid_rank(x: Inputs, draw: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """draw(key_r) for the r-th valid rollout, so that padding changes no draw of a real one; (m, ...)."""
    assert x.key is not None
    key = x.key
    rank_m = jnp.cumsum(x.valid.astype(jnp.int32)) - 1
    return jax.vmap(lambda rank: draw(jax.random.fold_in(key, rank)))(rank_m)


def _random_projector(x: Inputs) -> Callable[[jax.Array], jax.Array]:
    """P onto the span of k Gaussian vectors over the valid rollouts: a uniformly random subspace."""
    m = x.advantages.shape[0]
    # normal(key, (m,)) of a longer batch starts with the numbers of a shorter one (partitionable threefry).
    gaussian_mxm = _per_valid_rank(x, lambda key: jax.random.normal(key, (m,))) * x.valid[:, None]
    basis_mxm, _ = jnp.linalg.qr(gaussian_mxm)  # column j completes the span of the first j draws
    kept_m = (jnp.arange(m) < x.k).astype(jnp.float32)
    return lambda vector: jnp.where(x.k >= _count(x), vector, project(basis_mxm, kept_m, vector))


def _random_residual(x: Inputs) -> jax.Array:
    return _positive(x) - _random_projector(x)(_positive(x))
