"""Generation in waves of one fixed size, where the rollouts of a batch do not fit the key/value cache at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp

from salt_jax.policy.layers import TransformerConfig
from salt_jax.policy.sampler import SamplingConfig

MIB = 1 << 20
# (rows, V) float32 arrays that one draw holds at once: logits, their exponentials, the blocks of the running sum.
LOGITS_HELD = 3


@dataclasses.dataclass(frozen=True)
class Waves:
    """How a batch of B prompts x G rollouts is generated: so many prompts and rollouts of each at once.

    Attributes:
      prompts: b, prompts in a wave; divides B.
      rollouts: g, rollouts of each prompt in a wave; divides G.
      of: (B, G).

    Example:
      >>> waves = Waves(prompts=2, rollouts=4, of=(4, 8))
      >>> len(waves), list(waves)
      (4, [(0, 0), (0, 4), (2, 0), (2, 4)])
    """

    prompts: int
    rollouts: int
    of: tuple[int, int]

    def __len__(self) -> int:
        """Number of waves."""
        return (self.of[0] // self.prompts) * (self.of[1] // self.rollouts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """First prompt and first rollout of every wave, the waves of a prompt together."""
        return (
            (first, rollout)
            for first in range(0, self.of[0], self.prompts)
            for rollout in range(0, self.of[1], self.rollouts)
        )


def wave_bytes(
    policy: TransformerConfig, sampling: SamplingConfig, prompt_length: int, prompts: int, rollouts: int
) -> int:
    """Bytes that ``prompts`` x ``rollouts`` rollouts hold while they are generated: caches and logits.

    Keys and values of b prompts of P tokens and of b·g completions of T, 2·L·K·C numbers a token, and
    ``LOGITS_HELD`` float32 rows of V a rollout. Parameters and activations are not in it.

    Example:
      >>> policy = TransformerConfig(vocab_size=16, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
      ...                            mlp_dim=16)
      >>> wave_bytes(policy, SamplingConfig(max_new_tokens=8), prompt_length=4, prompts=1, rollouts=2)
      2944
    """
    stored = jnp.dtype(policy.compute_dtype if sampling.cache_dtype == "compute" else sampling.cache_dtype)
    token = 2 * policy.num_layers * policy.num_kv_heads * policy.head_dim * stored.itemsize
    rows = prompts * rollouts
    cache = prompts * prompt_length * token + rows * sampling.max_new_tokens * token
    return cache + rows * LOGITS_HELD * 4 * policy.vocab_size


def plan_waves(
    policy: TransformerConfig,
    sampling: SamplingConfig,
    *,
    prompts: int,
    rollouts: int,
    prompt_length: int,
    budget_mib: int | None,
    shards: int = 1,
) -> Waves:
    """The largest waves that fit a budget: whole groups where they fit, else equal parts of each group.

    Args:
      policy: shapes of the cache.
      sampling: length limit and dtype of the cache.
      prompts: B, of the whole batch.
      rollouts: G, of each prompt.
      prompt_length: P.
      budget_mib: MiB a device, see ``wave_bytes``; None generates all at once.
      shards: devices that the prompts are split over; divides B. A wave has at least one prompt a device.

    Returns:
      The waves; all have the same shape, so that one program is compiled.

    Raises:
      ValueError: not even one rollout a device fits, naming both numbers.

    Example:
      >>> policy = TransformerConfig(vocab_size=32768, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
      ...                            mlp_dim=16)
      >>> sampling = SamplingConfig(max_new_tokens=8)
      >>> wave = plan_waves(policy, sampling, prompts=8, rollouts=4, prompt_length=4, budget_mib=4)
      >>> wave.prompts, wave.rollouts, len(wave)
      (2, 4, 4)
    """
    def fits(b: int, g: int) -> bool:
        there = wave_bytes(policy, sampling, prompt_length, b // shards, g)
        return budget_mib is None or there <= budget_mib * MIB

    whole_groups = (b for b in range(prompts, 0, -1) if prompts % b == 0 and b % shards == 0 and fits(b, rollouts))
    found = next(whole_groups, None)
    if found is not None:
        return Waves(found, rollouts, (prompts, rollouts))
    parts = (g for g in range(rollouts, 0, -1) if rollouts % g == 0 and fits(shards, g))
    g = next(parts, None)
    if g is None:
        least = -(-wave_bytes(policy, sampling, prompt_length, 1, 1) // MIB)
        raise ValueError(f"wave_mib = {budget_mib} is less than the {least} MiB that one rollout a device takes")
    return Waves(shards, g, (prompts, rollouts))
