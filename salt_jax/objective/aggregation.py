"""How per-token losses become one number: the weight of every token in the sum, and the denominator.

======================  ===========  ==============================  =========================================
aggregation             weight w     denominator                     source
======================  ===========  ==============================  =========================================
token_mean              1            Σ mask                          DAPO, arXiv 2503.14476
seq_mean_token_mean     1/|o_i|      rows with a non-empty mask      GRPO, arXiv 2402.03300, eq. 3
seq_mean_token_sum      1            rows with a non-empty mask      BNPO's training script
dr_grpo                 1            rows × max_length               arXiv 2503.20783
token_sum_norm          1            max_length                      verl's ``seq-mean-token-sum-norm``
======================  ===========  ==============================  =========================================

Loss = Σ w·L / max(denominator, 1). Sums and denominators of microbatches add up to those of the whole batch, but
for ``WHOLE_BATCH``: the denominator of ``token_sum_norm`` is one constant whatever the number of rows (verl does not
divide by them), so two microbatches would have twice the denominator. It is for batches that are not split.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
# Takes the mask (N, T) and valid (N,) as floats and max_length, and returns the weight of every token in the sum
# (N, T) and the denominator.
Aggregation = Callable[[Array, Array, int | None], tuple[Array, Array]]


def _token_mean(mask_NxT: Array, valid_N: Array, max_length: int | None) -> tuple[Array, Array]:
    return mask_NxT, jnp.sum(mask_NxT)


def _seq_mean_token_mean(mask_NxT: Array, valid_N: Array, max_length: int | None) -> tuple[Array, Array]:
    lengths_Nx1 = jnp.sum(mask_NxT, axis=1, keepdims=True)
    return mask_NxT / jnp.maximum(lengths_Nx1, 1), _num_nonempty(mask_NxT)


def _seq_mean_token_sum(mask_NxT: Array, valid_N: Array, max_length: int | None) -> tuple[Array, Array]:
    return mask_NxT, _num_nonempty(mask_NxT)


def _dr_grpo(mask_NxT: Array, valid_N: Array, max_length: int | None) -> tuple[Array, Array]:
    assert max_length is not None  # check_aggregation has refused None
    return mask_NxT, jnp.sum(valid_N) * max_length


def _token_sum_norm(mask_NxT: Array, valid_N: Array, max_length: int | None) -> tuple[Array, Array]:
    assert max_length is not None  # check_aggregation has refused None
    return mask_NxT, jnp.asarray(max_length, mask_NxT.dtype)


def _num_nonempty(mask_NxT: Array) -> Array:
    return jnp.sum(jnp.any(mask_NxT > 0, axis=1), dtype=mask_NxT.dtype)


AGGREGATIONS: dict[str, Aggregation] = {
    "token_mean": _token_mean,
    "seq_mean_token_mean": _seq_mean_token_mean,
    "seq_mean_token_sum": _seq_mean_token_sum,
    "dr_grpo": _dr_grpo,
    "token_sum_norm": _token_sum_norm,
}
WHOLE_BATCH = ("token_sum_norm",)  # their denominators do not add up over microbatches
NEED_MAX_LENGTH = ("dr_grpo", "token_sum_norm")


def check_aggregation(aggregation: str, max_length: int | None) -> None:
    """Raises a one-line ValueError that names the option and what it allows.

    Example:
      >>> check_aggregation("token_sum_norm", 512)
      >>> check_aggregation("dr_grpo", None)
      Traceback (most recent call last):
      ValueError: aggregation = 'dr_grpo' needs max_length, the completion limit in tokens (an integer >= 1)
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation = {aggregation!r} is unknown; allowed: {', '.join(AGGREGATIONS)}")
    if max_length is not None and not max_length >= 1:
        raise ValueError(f"max_length = {max_length!r} is not allowed; allowed: None or an integer >= 1")
    if aggregation in NEED_MAX_LENGTH and max_length is None:
        raise ValueError(
            f"aggregation = {aggregation!r} needs max_length, the completion limit in tokens (an integer >= 1)"
        )
