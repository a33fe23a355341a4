"""Batched generation with a key/value cache, in one jitted loop that stops when every row is done.

The prompt is prefilled once per group, not once per rollout. Tokens are drawn by inverting the distribution
function at one uniform number per token, all drawn up front: cheaper than one Gumbel per vocabulary entry,
independent of the batch's sharding, and the same distribution.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from salt_jax.policy.transformer import Decoder, left_aligned, states_at
from salt_jax.vocab import open_uniforms, scaled_logits

Array = jax.Array
LEAST = 2.0**-24  # of a uniform number: half a step of its grid of 2^-23


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn.

    Attributes:
      max_new_tokens: T, length limit of a completion in tokens, its end token included.
      temperature: divides the logits; 0 is greedy decoding.
      top_k: keep the k most likely tokens; 0 keeps all. Off in training: it would bias the policy gradient.
      top_p: keep the smallest set of most likely tokens with mass ≥ top_p; 1.0 keeps all. Off in training.
      cache_dtype: of the key/value cache: 'compute' (the policy's compute dtype) or 'bfloat16', which halves the
        cache of a float32 policy and makes the sampler's log-probs differ from the trainer's by its rounding.

    Raises:
      ValueError: naming the field and what is allowed.

    Example:
      >>> SamplingConfig(max_new_tokens=8, temperature=0.0).greedy
      True
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cache_dtype: str = "compute"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and >= 0 (0 is greedy), got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 keeps all), got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1] (1 keeps all), got {self.top_p}")
        if self.cache_dtype not in ("compute", "bfloat16"):
            raise ValueError(f"cache_dtype must be 'compute' or 'bfloat16', got {self.cache_dtype!r}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


@struct.dataclass
class Samples:
    """Completions of N = B·G rollouts, groups contiguous.

    Attributes:
      tokens: (N, T) int32, right-padded with the pad id.
      lengths: (N,) int32, sampled tokens including the end token.
      log_probs: (N, T) float32 nats under the distribution sampled from; 0 after the end and when greedy.
      truncated: (N,) bool, true where no end token came within T tokens.
    """

    tokens: Array
    lengths: Array
    log_probs: Array
    truncated: Array

    @property
    def mask(self) -> Array:
        """(N, T) bool, true on sampled tokens."""
        return jnp.arange(self.tokens.shape[1])[None] < self.lengths[:, None]


def filter_logits(logits: Array, top_k: int = 0, top_p: float = 1.0) -> Array:
    """Sets all but the top-k and the top-p nucleus of logits (N, V) to -inf; ties at the edge are kept.

    Example:
      >>> import jax.numpy as jnp
      >>> filter_logits(jnp.array([[3.0, 1.0, 2.0]]), top_k=2).tolist()
      [[3.0, -inf, 2.0]]
    """
    if top_k and top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1.0:
        ordered = -jnp.sort(-logits, axis=-1)
        mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        last = jnp.sum(mass < top_p, axis=-1, keepdims=True)  # index of the token that reaches top_p
        logits = jnp.where(logits < jnp.take_along_axis(ordered, last, axis=-1), -jnp.inf, logits)
    return logits


def inverse_cdf(weights: Array, uniform: Array) -> Array:
    """Index drawn with probability weights / Σ weights by inverting the distribution function.

    The least index whose running sum exceeds uniform · Σ weights; an index of weight 0 is never drawn. The
    sum runs over blocks first and then within one block, which keeps it short and its rounding error small.
    Neither at the ends of the whole nor at those of a block does rounding draw what has next to no weight: a
    position is at least 2^-24 of the sum away from both.

    Args:
      weights: (N, V) float32, non-negative, at least one positive in a row.
      uniform: (N,) float32 in (0, 1), as ``vocab.open_uniforms`` draws them.

    Returns:
      (N,) int32 indices.

    Example:
      >>> import jax.numpy as jnp
      >>> inverse_cdf(jnp.array([[1.0, 0.0, 3.0]] * 3), jnp.array([0.01, 0.24, 0.26])).tolist()
      [0, 0, 2]
    """
    n, v = weights.shape
    block = 1 << max((v - 1).bit_length() + 1, 2) // 2  # about sqrt(V)
    num_blocks = -(-v // block)
    weights = jnp.pad(weights, ((0, 0), (0, num_blocks * block - v)))
    blocks = jnp.reshape(weights, (n, num_blocks, block))

    def first_past(parts: Array, position: Array) -> tuple[Array, Array]:
        """Where the running sum of parts (N, C) passes position · Σ, and the position within that part, in [0, 1]."""
        # a product with a triangle of ones: a scan would be many small kernels on every backend
        triangle = jnp.triu(jnp.ones((parts.shape[1],) * 2, jnp.float32))
        running = jnp.dot(parts, triangle, precision=jax.lax.Precision.HIGHEST)
        # of the last running sum, not of a sum in another order, which rounding may leave above it: below it always
        level = jnp.clip(position, LEAST, 1 - LEAST) * running[:, -1]
        # a minimum of indices, not argmax: XLA's CPU backend does not vectorise that
        columns = jnp.arange(parts.shape[1])[None]
        past = jnp.min(jnp.where((running > level[:, None]) & (parts > 0), columns, parts.shape[1]), axis=1)
        index = jnp.where(past < parts.shape[1], past, 0)  # 0: weights that are not finite
        upper, lower = (jnp.take_along_axis(running, i[:, None], axis=1)[:, 0] for i in (index, index - 1))
        lower = jnp.where(index > 0, lower, 0.0)
        return index, (level - lower) / (upper - lower)

    which, position = first_past(jnp.sum(blocks, axis=-1), uniform)
    chosen = jnp.take_along_axis(blocks, which[:, None, None], axis=1)[:, 0]
    within, _ = first_past(chosen, position)
    return (which * block + within).astype(jnp.int32)


def choose(logits: Array, uniform: Array) -> tuple[Array, Array]:
    """Draws one token per row of logits (N, V) at ``uniform`` (N,); returns tokens and their log-probs."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    tokens = inverse_cdf(weights, uniform)
    picked = jnp.take_along_axis(logits, tokens[:, None], axis=1) - top
    return tokens, picked[:, 0] - jnp.log(jnp.sum(weights, axis=-1))


def sample(
    model: Decoder,
    prompts: Array,
    prompt_mask: Array,
    key: Array,
    *,
    group_size: int,
    config: SamplingConfig,
    stop_ids: tuple[int, ...],
    pad_id: int,
    part_of: tuple[int, int] | None = None,
    at: tuple[Any, Any] = (0, 0),
) -> Samples:
    """Generates ``group_size`` completions for each prompt. Pure; jit it with the keywords but ``at`` static.

    Args:
      model: the policy.
      prompts: (B, P) int32, left-padded.
      prompt_mask: (B, P) bool, true on real tokens.
      key: PRNG key; the same key gives the same completions on any number of devices.
      group_size: G, rollouts per prompt.
      config: temperature, length limit, filters.
      stop_ids: tokens that end a completion; they belong to it.
      pad_id: fills what follows the end.
      part_of: (B', G') of the batch that these rollouts are a part of, where it is generated in waves; a rollout is
        the same in whatever wave it is made. None: these are the whole batch.
      at: the part's first prompt and first rollout of each group, int32 scalars.

    Returns:
      ``Samples`` with N = B·G rows; rollout i belongs to prompt i // G.

    Raises:
      ValueError: if ``stop_ids`` is empty or group_size < 1.
    """
    if not stop_ids:
        raise ValueError("stop_ids must name at least one token that ends a completion")
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    batch, length = prompts.shape[0], config.max_new_tokens
    n = batch * group_size
    whole = open_uniforms(key, (length, *(part_of or (batch, group_size))))
    uniforms = jnp.reshape(jax.lax.dynamic_slice(whole, (0, *at), (length, batch, group_size)), (length, n))
    stops = jnp.asarray(stop_ids, jnp.int32)
    model = model.in_compute_dtype()
    lm_head = model.lm_head

    def draw(hidden: Array, step: Any, state: dict[str, Array]) -> dict[str, Array]:
        if config.greedy:
            tokens = jnp.argmax(scaled_logits(hidden, lm_head, 1.0), axis=-1).astype(jnp.int32)
            log_probs = jnp.zeros(n, jnp.float32)
        else:
            logits = scaled_logits(hidden, lm_head, config.temperature)
            tokens, log_probs = choose(filter_logits(logits, config.top_k, config.top_p), uniforms[step])
        live = ~state["done"]
        tokens = jnp.where(live, tokens, pad_id)
        log_probs = jnp.where(live, log_probs, 0.0)
        return {
            "tokens": jax.lax.dynamic_update_slice(state["tokens"], tokens[None], (step, 0)),
            "log_probs": jax.lax.dynamic_update_slice(state["log_probs"], log_probs[None], (step, 0)),
            "lengths": state["lengths"] + live,
            "done": state["done"] | jnp.any(tokens[:, None] == stops[None], axis=1),
            "last": tokens,
        }

    prompts, prompt_lengths = left_aligned(prompts, prompt_mask)
    hidden, prompt_kv = model.prefill(prompts, prompt_lengths)
    cache_dtype = jnp.dtype(model.config.compute_dtype if config.cache_dtype == "compute" else config.cache_dtype)
    prompt_kv = jax.tree.map(lambda x: x.astype(cache_dtype), prompt_kv)
    last = states_at(hidden, prompt_lengths[:, None] - 1)[:, 0]
    first = jnp.repeat(last, group_size, axis=0, total_repeat_length=n)
    state = {
        "tokens": jnp.full((length, n), pad_id, jnp.int32),
        "log_probs": jnp.zeros((length, n), jnp.float32),
        "lengths": jnp.zeros(n, jnp.int32),
        "done": jnp.zeros(n, bool),
        "last": jnp.zeros(n, jnp.int32),
    }
    state = draw(first, 0, state)

    def unfinished(loop: tuple[Array, dict[str, Array], Any]) -> Array:
        step, state, _ = loop
        return (step < length) & ~jnp.all(state["done"])

    def advance(loop: tuple[Array, dict[str, Array], Any]) -> tuple[Array, dict[str, Array], Any]:
        step, state, cache = loop
        hidden, cache = model.decode(state["last"], step - 1, prompt_lengths, prompt_kv, cache, blocks)
        return step + 1, draw(hidden, step, state), cache

    blocks = model.blocks()
    cache = model.empty_cache(batch, group_size, length - 1, cache_dtype) if length > 1 else None
    if length > 1:
        _, state, _ = jax.lax.while_loop(unfinished, advance, (jnp.int32(1), state, cache))
    return Samples(
        tokens=state["tokens"].T,
        lengths=state["lengths"],
        log_probs=state["log_probs"].T,
        truncated=~state["done"],
    )
