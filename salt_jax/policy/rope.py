"""Rotary position embeddings: their frequencies, and the scalings that carry them past the trained length.

A scaling is one factor per frequency, and for YaRN one factor on cos and sin, so that it costs nothing at run
time. Theta is the base, C the head width, L the trained length, s the scaling factor, and a frequency
theta^(-2i/C) turns once in lambda_i = 2 pi theta^(2i/C) positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed; the fields have Hugging Face's names and, where optional, defaults.

    Attributes:
      kind: a key of ``KINDS``.
      factor: s >= 1, how many times longer than L sequences may be.
      original_max_position_embeddings: L, positions; kinds 'llama3' and 'yarn'.
      low_freq_factor: 'llama3': a frequency with fewer turns than this within L is divided by s.
      high_freq_factor: 'llama3': one with more turns than this stays; in between they blend.
      beta_fast: 'yarn': a frequency with more turns than this within L stays.
      beta_slow: 'yarn': one with fewer is divided by s.
      attention_factor: 'yarn': multiplies cos and sin; None derives it, see ``amplitude``.
      mscale: 'yarn': with mscale_all_dim, the other way to derive it.
      mscale_all_dim: see mscale.
      truncate: 'yarn': whether the ends of the blend are rounded outwards to whole frequencies.

    Raises:
      ValueError: naming the field and what is allowed.

    Example:
      >>> RopeScaling("linear", factor=4.0).multipliers(head_dim=4, theta=10_000.0).tolist()
      [0.25, 0.25]
    """

    kind: str
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"rope scaling must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("kind", "truncate") or (value is None and field.name != "factor"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"rope scaling: {field.name} must be a finite number >= 0, got {value!r}")
        if not isinstance(self.truncate, bool):
            raise ValueError(f"rope scaling: truncate must be true or false, got {self.truncate!r}")
        if self.factor < 1:
            raise ValueError(f"rope scaling: factor must be >= 1, got {self.factor}")
        if self.kind != "linear" and not self.original_max_position_embeddings:
            raise ValueError(f"rope scaling {self.kind!r} needs original_max_position_embeddings >= 1")
        if self.kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            if low is None or high is None or not 0 < low < high:
                needs = "0 < low_freq_factor < high_freq_factor"
                raise ValueError(f"rope scaling 'llama3' needs {needs}, got {low} and {high}")
        if self.kind == "yarn" and not 0 < self.beta_slow < self.beta_fast:
            betas = f"{self.beta_slow} and {self.beta_fast}"
            raise ValueError(f"rope scaling 'yarn' needs 0 < beta_slow < beta_fast, got {betas}")

    def multipliers(self, head_dim: int, theta: float) -> np.ndarray:
        """What each of the C/2 frequencies is multiplied by, float64."""
        return KINDS[self.kind](self, head_dim, theta)

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by: YaRN's temperature on attention, 1 for other kinds.

        0.1 ln s + 1 (arXiv 2309.00071, Section 3.4: the square root of 1/t, on queries and on keys). With
        mscale m and mscale_all_dim a it is (0.1 m ln s + 1) / (0.1 a ln s + 1), DeepSeek's variant.
        """
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return float(self.attention_factor)

        def grown(scale: float) -> float:
            return 0.1 * scale * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return grown(self.mscale) / grown(self.mscale_all_dim)
        return grown(1.0)


def _linear(scaling: RopeScaling, head_dim: int, theta: float) -> np.ndarray:
    """Position interpolation: m -> m/s, the same as dividing every frequency by s (arXiv 2306.15595, Eq. 4)."""
    return np.full(head_dim // 2, 1 / scaling.factor)


def _llama3(scaling: RopeScaling, head_dim: int, theta: float) -> np.ndarray:
    """Llama 3.1 (Meta's llama-models, ``apply_scaling``), in turns r = L / lambda within the trained length.

    1 for r > high, 1/s for r < low, and in between (1 - b)/s + b with b = (r - low) / (high - low).
    """
    length, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    assert length is not None  # __post_init__ has seen to it
    assert low is not None
    assert high is not None
    turns = length / (2 * np.pi) * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - blend) / scaling.factor + blend


def _yarn(scaling: RopeScaling, head_dim: int, theta: float) -> np.ndarray:
    """"NTK-by-parts" interpolation (arXiv 2309.00071, Section 3.2), its ramp linear in the frequency's index.

    Index d(r) = C ln(L / (2 pi r)) / (2 ln theta) has r turns within L. Frequencies up to d(beta_fast) stay,
    from d(beta_slow) on they are divided by s.
    """
    length = scaling.original_max_position_embeddings
    assert length is not None

    def index(turns: float) -> float:
        return head_dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    # the upper bound is C - 1, not C/2 - 1: what YaRN's authors and every checkpoint since have used
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low or 0.001), 0.0, 1.0)
    return ramp / scaling.factor + (1 - ramp)


KINDS: dict[str, Callable[[RopeScaling, int, float], np.ndarray]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def rope_table(
    positions: Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
    """cos and sin of the rotary angles, (*positions.shape, head_dim / 2), float32 (Su et al. 2021, Eq. 15).

    Args:
      positions: integers of any shape.
      head_dim: C, even.
      theta: base of the frequencies.
      scaling: how they are changed, None for not at all.

    Example:
      >>> cos, sin = rope_table(jnp.arange(2), head_dim=2, theta=10_000.0, scaling=RopeScaling("linear", factor=2.0))
      >>> [round(float(x), 4) for x in sin[:, 0]]  # the angle of position 1 is 1/2
      [0.0, 0.4794]
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        frequencies = frequencies * jnp.asarray(scaling.multipliers(head_dim, theta), jnp.float32)
    angles = positions.astype(jnp.float32)[..., None] * jnp.reshape(
        frequencies, (1,) * positions.ndim + (head_dim // 2,)
    )
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if scaling is None or scaling.amplitude == 1.0:
        return cos, sin
    return cos * scaling.amplitude, sin * scaling.amplitude
