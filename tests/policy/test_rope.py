"""Scaled rotary frequencies against float64 loops written from the papers, and against transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.policy.rope import KINDS, RopeScaling, rope_table

LLAMA31 = RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = RopeScaling("yarn", 4.0, 32768)
CASES = {
    "linear": (RopeScaling("linear", 4.0), 64, 10_000.0),
    "llama-3.1": (LLAMA31, 128, 500_000.0),
    "llama-3.2": (RopeScaling("llama3", 32.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0), 64, 500_000.0),
    "qwen2.5": (YARN, 128, 1_000_000.0),
    "deepseek": (RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=0.8), 64, 10_000.0),
    "gpt-oss": (RopeScaling("yarn", 32.0, 4096, truncate=False), 64, 150_000.0),
    "given-factor": (RopeScaling("yarn", 4.0, 64, beta_fast=4.0, beta_slow=2.0, attention_factor=1.5), 16, 100.0),
    "blend-without-end": (RopeScaling("yarn", 4.0, 4096), 16, 100.0),  # index C/2 - 1 is not all interpolated
    "ramp-of-no-width": (RopeScaling("yarn", 4.0, 7), 2, 10_000.0),
}
cases = pytest.mark.parametrize(("scaling", "head_dim", "theta"), CASES.values(), ids=CASES)


def loop_frequencies(scaling, head_dim, theta):
    """One frequency at a time, in the papers' terms."""
    found = []
    for i in range(head_dim // 2):
        frequency = theta ** (-2 * i / head_dim)
        s, length = scaling.factor, scaling.original_max_position_embeddings
        if scaling.kind == "linear":
            found.append(frequency / s)
        elif scaling.kind == "llama3":
            wavelength = 2 * math.pi / frequency
            if wavelength > length / scaling.low_freq_factor:
                found.append(frequency / s)
            elif wavelength < length / scaling.high_freq_factor:
                found.append(frequency)
            else:
                width = scaling.high_freq_factor - scaling.low_freq_factor
                smooth = (length / wavelength - scaling.low_freq_factor) / width
                found.append((1 - smooth) * frequency / s + smooth * frequency)
        else:
            # d(r): where theta^(-2d/C) turns r times within the length
            ends = []
            for turns in (scaling.beta_fast, scaling.beta_slow):
                ends.append(head_dim / 2 * math.log(length / (turns * 2 * math.pi), theta))
            if scaling.truncate:
                ends = [math.floor(ends[0]), math.ceil(ends[1])]
            low, high = max(ends[0], 0), min(ends[1], head_dim - 1)
            if low == high:
                high += 0.001
            interpolated = min(max((i - low) / (high - low), 0), 1)
            found.append(interpolated * frequency / s + (1 - interpolated) * frequency)
    return np.array(found)


@cases
def test_frequencies_equal_loops(scaling, head_dim, theta):
    base = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    found = base * scaling.multipliers(head_dim, theta)
    np.testing.assert_allclose(found, loop_frequencies(scaling, head_dim, theta), rtol=1e-13)


@pytest.mark.torch
@cases
def test_frequencies_and_amplitude_equal_transformers(scaling, head_dim, theta):
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = ("low_freq_factor", "high_freq_factor", "attention_factor", "mscale", "mscale_all_dim")
    values = {name: getattr(scaling, name) for name in fields if getattr(scaling, name) is not None}
    if scaling.kind != "linear":
        values["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    if scaling.kind == "yarn":
        values |= {name: getattr(scaling, name) for name in ("beta_fast", "beta_slow", "truncate")}
    longest = int((scaling.original_max_position_embeddings or 64) * scaling.factor)
    config = transformers.LlamaConfig(
        head_dim=head_dim, max_position_embeddings=longest,
        rope_parameters={"rope_type": scaling.kind, "factor": scaling.factor, "rope_theta": theta, **values},
    )  # fmt: skip
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[scaling.kind](config)
    ours = theta ** (-np.arange(0, head_dim, 2) / head_dim) * scaling.multipliers(head_dim, theta)
    np.testing.assert_allclose(ours, frequencies.numpy(), rtol=3e-6)  # theirs are float32
    assert scaling.amplitude == pytest.approx(amplitude, rel=1e-12)


@cases
def test_the_table_beyond_the_trained_length(scaling, head_dim, theta):
    positions = np.array([[0, 1, 15], [64, 1000, 4095]])
    cos, sin = jax.jit(lambda p: rope_table(p, head_dim, theta, scaling))(jnp.asarray(positions))
    angles = positions[..., None] * loop_frequencies(scaling, head_dim, theta)
    assert cos.shape == (2, 3, head_dim // 2)
    assert cos.dtype == jnp.float32
    # an angle of 4095 is rounded to 2^-13 in float32, and its frequency to 2^-24 of itself
    np.testing.assert_allclose(cos, scaling.amplitude * np.cos(angles), atol=1.5e-3)
    np.testing.assert_allclose(sin, scaling.amplitude * np.sin(angles), atol=1.5e-3)
    np.testing.assert_allclose(cos[0], scaling.amplitude * np.cos(angles[0]), atol=5e-6)


def test_a_factor_of_one_changes_nothing():
    positions = jnp.arange(50)
    plain = rope_table(positions, 16, 10_000.0)
    for scaling in (
        RopeScaling("linear", 1.0),
        RopeScaling("llama3", 1.0, 16, low_freq_factor=1.0, high_freq_factor=4.0),
        RopeScaling("yarn", 1.0, 16),
    ):
        for ours, theirs in zip(rope_table(positions, 16, 10_000.0, scaling), plain, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    factor=st.floats(1, 128),
    length=st.integers(8, 10**6),
    half=st.integers(1, 64),
    theta=st.floats(2, 1e7),
    low=st.floats(0.1, 4),
    width=st.floats(0.1, 40),
)
def test_every_frequency_stays_or_falls_by_at_most_the_factor(kind, factor, length, half, theta, low, width):
    ends = {"low_freq_factor": low, "high_freq_factor": low + width, "beta_slow": low, "beta_fast": low + width}
    multipliers = RopeScaling(kind, factor, length, **ends).multipliers(2 * half, theta)
    assert multipliers.shape == (half,)
    assert np.all(multipliers <= 1 + 1e-12)
    assert np.all(multipliers >= 1 / factor - 1e-12)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kind": "dynamic", "factor": 2.0}, "linear, llama3, yarn, got 'dynamic'"),
        ({"kind": "linear", "factor": 0.5}, "factor must be >= 1"),
        ({"kind": "linear", "factor": None}, "factor must be a finite number"),
        ({"kind": "linear", "factor": "2"}, "factor must be a finite number"),
        ({"kind": "linear", "factor": float("nan")}, "factor must be a finite number"),
        ({"kind": "llama3", "factor": 2.0}, "original_max_position_embeddings"),
        ({"kind": "llama3", "factor": 2.0, "original_max_position_embeddings": 8}, "low_freq_factor < high_freq"),
        ({"kind": "yarn", "factor": 2.0}, "original_max_position_embeddings"),
        ({"kind": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "beta_fast": 1.0}, "beta_slow < beta"),
        ({"kind": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "truncate": 1}, "truncate"),
    ],
)
def test_a_wrong_scaling_is_one_line(arguments, named):
    with pytest.raises(ValueError, match=named) as error:
        RopeScaling(**arguments)
    assert "\n" not in str(error.value)
