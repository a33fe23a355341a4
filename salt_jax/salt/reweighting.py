"""SALT: reweight advantages by the geometry of the rollouts' gradients (arXiv 2606.05800, Eq. 12–18).

    k   = clip(round(ρ · PR(K)), k_min, min(k_max, m)),  at most the numerical rank of K
    P   = V_k V_kᵀ, V_k the eigenvectors of the k largest eigenvalues of K;   P⊥ = I − P
    α   = clip(1 − n_eff(K, a), α_min, α_max)
    a'  = P a + α P⊥[a]₊

Usable alone, from any JAX trainer: a Gram matrix and advantages in, advantages out. What has no entry in the
paper (edge cases, controls) is defined here and in `salt_jax.salt.variants`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import checkify

from salt_jax.geometry.numerics import (
    normalized,
    power_of_two_exponent,
    quadratic_form,
    safe_ratio,
    times_power_of_two,
)
from salt_jax.geometry.spectrum import spectrum
from salt_jax.geometry.subspace import EIGEN, dominant_of, dominant_part
from salt_jax.salt.variants import NEEDS, VARIANTS, WHOLE_SPECTRUM, Inputs

__all__ = ["VARIANTS", "SaltConfig", "SaltOutput", "reweight"]


@dataclasses.dataclass(frozen=True)
class SaltConfig:
    """How to reweight; hashable, static under jit. A bad value raises a one-line ValueError naming its field.

    >>> SaltConfig(variant="slat")
    Traceback (most recent call last):
    ...
    ValueError: variant must be one of salt, shared_only, ..., natural_positive, got 'slat'
    """

    rho: float = 1.0  # subspace size per unit of participation ratio, > 0 (the release's code: 0.5)
    k_min: int = 1  # directions at least, >= 1
    k_max: int | None = None  # directions at most, >= k_min; None: the number of rollouts (the release: 64)
    alpha_min: float = 0.0  # gain of the residual channel at least, in [0, 1]
    alpha_max: float = 1.0  # at most, in [alpha_min, 1]
    variant: str = "salt"  # a name in VARIANTS
    rescale: bool = False  # give a' the standard deviation of a (over valid rollouts)
    fixed_alpha: float = 0.5  # the gain of variant 'fixed_alpha', in [0, 1]
    eigen: str = "auto"  # eigenvectors: 'full' eigh, 'iterative' (geometry.subspace), 'auto' by m

    def __post_init__(self) -> None:
        if not (_is_number(self.rho) and 0 < self.rho < math.inf):
            raise ValueError(f"rho must be a finite number > 0, got {self.rho!r}")
        if not (_is_integer(self.k_min) and self.k_min >= 1):
            raise ValueError(f"k_min must be an integer >= 1, got {self.k_min!r}")
        if self.k_max is not None and not (_is_integer(self.k_max) and self.k_max >= self.k_min):
            raise ValueError(f"k_max must be None or an integer >= k_min = {self.k_min}, got {self.k_max!r}")
        for name in ("alpha_min", "alpha_max", "fixed_alpha"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= 1):
                raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
        if self.alpha_min > self.alpha_max:
            raise ValueError(f"alpha_min must be <= alpha_max = {self.alpha_max}, got {self.alpha_min}")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        if not isinstance(self.rescale, bool):
            raise ValueError(f"rescale must be True or False, got {self.rescale!r}")
        if self.eigen not in EIGEN:
            raise ValueError(f"eigen must be one of {', '.join(EIGEN)}, got {self.eigen!r}")


class SaltOutput(NamedTuple):
    """The reweighted advantages and what was seen on the way; constants for differentiation, float32.

    advantages (m,): a'.  shared (m,): P a.  residual (m,): the residual channel before α, P⊥[a]₊ for 'salt'.
    alpha (): gain used.  k (): int32, dimension of the dominant subspace.  participation_ratio (): PR(K).
    n_eff (): n_eff(K, a).  eigengap (): (λ_k − λ_{k+1}) / λ_k, small where P is ill-defined.
    ok (): False where nothing could be reweighted and a' = a: K = 0 (participation_ratio 0), or NaN or inf in
      K, a, success_rate or entropy (participation_ratio NaN). Call `raise_if_bad`, or `check` under jit: nothing
      else says so.
    fallback (): True where the iteration was chosen (config.eigen, a large m) and `eigh` had to decide: k too
      large for the block, no gap at k, or no convergence. The result is that of 'full'; only time was lost.
    """

    advantages: jax.Array
    shared: jax.Array
    residual: jax.Array
    alpha: jax.Array
    k: jax.Array
    participation_ratio: jax.Array
    n_eff: jax.Array
    eigengap: jax.Array
    ok: jax.Array
    fallback: jax.Array

    def raise_if_bad(self) -> None:
        """ValueError in one line, saying what was wrong, if ok is False anywhere; waits for the arrays.

        For outputs on the host, mapped ones too; inside jit use `check`.

        >>> reweight(jnp.zeros((2, 2)), jnp.array([1.0, -1.0]), SaltConfig()).raise_if_bad()
        Traceback (most recent call last):
        ...
        ValueError: SALT left the advantages as they were: the Gram matrix is 0, no rollout has a gradient feature
        """
        if isinstance(self.ok, jax.core.Tracer):
            raise ValueError("raise_if_bad() needs values; inside jit, vmap or grad use check() under checkify")
        for fault, what in self._faults():
            if fault.any():
                where = f" in {fault.sum()} of {fault.size} units" if fault.ndim else ""
                raise ValueError(f"SALT left the advantages as they were{where}: {what}")

    def check(self) -> None:
        """`raise_if_bad` for code that is traced: checks of `jax.experimental.checkify`, whose error is then thrown.

        Raises:
          ValueError: by JAX, while compiling, where no `checkify.checkify` is around it.

        >>> def new_advantages(gram, advantages):
        ...     out = reweight(gram, advantages, SaltConfig())
        ...     out.check()
        ...     return out.advantages
        >>> error, _ = jax.jit(checkify.checkify(new_advantages))(jnp.eye(2), jnp.array([1.0, jnp.inf]))
        >>> print(error.get())     # error.throw() raises it
        SALT left the advantages as they were: they are not finite ...
        """
        for fault, what in self._faults():
            checkify.check(~fault.any(), f"SALT left the advantages as they were: {what}")

    def _faults(self) -> tuple[tuple[jax.Array, str], ...]:
        """What can be wrong, each with the units it is true of: arrays of the shape of ok."""
        bad, lost = jnp.logical_not(self.ok), jnp.isnan(self.participation_ratio)
        own = ~jnp.isfinite(self.advantages).all(axis=-1)  # a' = a there
        return (
            (bad & own, "they are not finite"),
            (bad & lost & ~own, "the Gram matrix, success_rate or entropy is not finite"),
            (bad & ~lost, "the Gram matrix is 0, no rollout has a gradient feature"),
        )


def reweight(
    gram: jax.Array,
    advantages: jax.Array,
    config: SaltConfig,
    *,
    valid: jax.Array | None = None,
    key: jax.Array | None = None,
    success_rate: jax.Array | None = None,
    entropy: tuple[Any, Any, Any] | None = None,
) -> SaltOutput:
    """a' = P a + α P⊥[a]₊ (arXiv 2606.05800, Eq. 12–18), or the ablation or control that config.variant names.

    | input | result |
    |---|---|
    | all advantages 0 | a' = 0 exactly, n_eff 0, ok |
    | K = 0 | a' = a, shared = a, residual, α, k, PR, n_eff 0, not ok (ok where no rollout is valid at all) |
    | m = 1 (one valid rollout) | k = 1, a' = a exactly ('salt') |
    | rank-deficient K | k at most the rank |
    | NaN or inf in K, a (valid part) | a' = shared = a, residual, α, k, eigengap 0, PR, n_eff NaN, not ok |
    | padding rows | a' = 0 there, no effect elsewhere |

    Where it is not ok nothing is raised here, so that it can be compiled: `out.raise_if_bad()` raises on the host,
    `out.check()` under jit.

    a' permutes with the rollouts (but for variants that draw from `key`), does not depend on the scale of K and
    scales with a. Pure, deterministic; jit- and vmap-able (vmap over leading axes of the arrays). Above
    `geometry.subspace.FULL_UP_TO` rollouts the eigenvectors are iterated and checked, and P is within 2e-4 of
    that of `eigh`; see `geometry.subspace`, and `fallback` below.

    Args:
      gram: (m, m) of the mini-batch (or group).
      advantages: (m,) group-relative advantages a.
      config: SaltConfig, static.
      valid: (m,) bool, False for padding; None means all. What stands in padding, NaN included, is ignored. Rollouts
        with a_i = 0 count unless they are left out here: without those of unanimous groups PR and k are others.
      key: PRNG key; needed by random_projection, permuted, matched_random.
      success_rate: (m,) success rate p_g in [0, 1] of the rollout's group; needed by scaled.
      entropy: (now, running minimum, running maximum) in nats; needed by entropy_alpha.

    Raises:
      ValueError: shapes that do not fit, or a missing argument that the variant needs.

    >>> K = jnp.diag(jnp.array([4.0, 1.0, 1.0]))
    >>> out = reweight(K, jnp.array([1.0, 1.0, -2.0]), SaltConfig(k_max=1))
    >>> out.raise_if_bad()
    >>> out.advantages.tolist(), int(out.k), float(out.alpha), float(out.n_eff)
    ([1.0, 0.0, 0.0], 1, 0.0, 1.0)
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or advantages.shape != gram.shape[:1]:
        raise ValueError(f"gram must be (m, m) and advantages (m,), got {gram.shape} and {advantages.shape}")
    for name, array in (("valid", valid), ("success_rate", success_rate)):
        if array is not None and array.shape != advantages.shape:
            raise ValueError(f"{name} {array.shape} must have the shape of advantages {advantages.shape}")
    given = {"key": key, "success_rate": success_rate, "entropy": entropy}
    needed = NEEDS.get(config.variant)
    if needed is not None and given[needed] is None:
        raise ValueError(f"variant {config.variant!r} needs the argument {needed}")
    used = {name: value if name == needed else None for name, value in given.items()}
    valid = jnp.ones(advantages.shape, bool) if valid is None else valid.astype(bool)
    numbers = {
        "rho": config.rho,
        "k_min": config.k_min,
        "k_max": gram.shape[0] if config.k_max is None else config.k_max,
        "alpha_min": config.alpha_min,
        "alpha_max": config.alpha_max,
        "fixed_alpha": config.fixed_alpha,
    }
    static = {"variant": config.variant, "rescale": config.rescale, "eigen": config.eigen}
    return _reweight(gram, advantages, valid, numbers, **static, **used)


# The numbers of a configuration are arguments, not constants: a sweep over rho compiles once.
@functools.partial(jax.jit, static_argnames=("variant", "rescale", "eigen"))
def _reweight(
    gram: jax.Array,
    advantages: jax.Array,
    valid: jax.Array,
    numbers: dict[str, Any],
    *,
    variant: str,
    rescale: bool,
    eigen: str,
    key: jax.Array | None,
    success_rate: jax.Array | None,
    entropy: tuple[Any, Any, Any] | None,
) -> SaltOutput:
    gram, advantages = lax.stop_gradient((gram, advantages))
    given_m = jnp.where(valid, jnp.asarray(advantages, jnp.float32), 0.0)
    gram_mxm, _ = normalized(gram, valid)
    # Read from K as given: XLA would repeat the slow transpose that symmetrises K for each reduction over it.
    given_mxm = jnp.where(valid[:, None] & valid[None, :], gram, 0.0)
    finite = jnp.isfinite(given_mxm).all() & jnp.isfinite(given_m).all()
    if success_rate is not None:
        success_rate = jnp.where(valid, lax.stop_gradient(success_rate), 0.0)
        finite &= jnp.isfinite(success_rate).all()
    if entropy is not None:
        entropy = lax.stop_gradient(entropy)
        finite &= jnp.isfinite(jnp.stack([jnp.asarray(value, jnp.float32) for value in entropy])).all()
    empty = jnp.all(jnp.diagonal(given_mxm) == 0)  # a Gram without a diagonal is 0
    usable = finite & ~empty
    # Where there is nothing to decompose, decompose the identity and discard it: no NaN reaches eigh.
    gram_mxm = jnp.where(usable, gram_mxm, jnp.diag(valid.astype(jnp.float32)))
    exponent = power_of_two_exponent(given_m)
    a_m = jnp.where(usable, times_power_of_two(given_m, -exponent), 0.0)

    # Eq. 5, at size already; the square of the norm as a product, for the same reason as above.
    squares = jnp.vdot(gram_mxm, gram_mxm, precision=lax.Precision.HIGHEST)
    pr = safe_ratio(jnp.trace(gram_mxm) ** 2, squares)
    n_eff = safe_ratio(quadratic_form(gram_mxm, a_m), jnp.sum(a_m**2 * jnp.diagonal(gram_mxm)))
    # Clipped before the cast: a huge rho must not overflow an int32.
    k = jnp.clip(jnp.round(numbers["rho"] * pr), 0, gram.shape[0]).astype(jnp.int32)
    k = jnp.minimum(jnp.maximum(k, numbers["k_min"]), numbers["k_max"])
    positive_m = jnp.maximum(a_m, 0.0)
    both_2xm = jnp.stack([a_m, positive_m])
    basis = spectrum(gram_mxm, valid=valid) if variant in WHOLE_SPECTRUM else None
    if basis is not None:
        found = dominant_of(basis, k, both_2xm)
    else:
        found = dominant_part(gram_mxm, k, both_2xm, valid=valid, eigen=eigen)
    k = found.k  # at most the rank <= number of valid rollouts
    alpha = jnp.clip(1.0 - n_eff, numbers["alpha_min"], numbers["alpha_max"])

    inputs = Inputs(
        gram_mxm,
        a_m,
        valid,
        found.projected[0],
        positive_m - found.projected[1],
        basis,
        k,
        pr,
        alpha,
        numbers["fixed_alpha"],
        key,
        success_rate,
        entropy,
    )
    channels = VARIANTS[variant](inputs)
    new_m = jnp.where(valid, channels.advantages, 0.0)
    if rescale:
        new_m = new_m * _std_ratio(a_m, new_m, valid)

    def result(vector: jax.Array, otherwise: jax.Array) -> jax.Array:
        vector = times_power_of_two(jnp.where(valid, vector, 0.0), exponent)
        return jnp.where(usable, vector, otherwise)

    undefined = jnp.where(finite, 0.0, jnp.nan)
    return SaltOutput(
        advantages=result(new_m, given_m),
        shared=result(channels.shared, given_m),
        residual=result(channels.residual, jnp.zeros_like(given_m)),
        alpha=jnp.where(usable, channels.alpha, 0.0),
        k=jnp.where(usable, k, 0),
        participation_ratio=jnp.where(usable, pr, undefined),
        n_eff=jnp.where(usable, n_eff, undefined),
        eigengap=jnp.where(usable, found.eigengap, 0.0),
        ok=finite & (~empty | ~valid.any()),
        fallback=usable & found.fallback,
    )


def _std_ratio(old: jax.Array, new: jax.Array, valid: jax.Array) -> jax.Array:
    """std(old) / std(new) over valid rollouts, 1 where either is 0 (the count cancels, so ddof does not matter)."""
    count = jnp.maximum(valid.sum(), 1).astype(jnp.float32)

    def spread(vector: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.where(valid, vector - vector.sum() / count, 0.0) ** 2))

    ratio = safe_ratio(spread(old), spread(new))
    return jnp.where(ratio > 0, ratio, 1.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
