"""Matrix products in the precision that their dtypes name.

Left alone a GPU multiplies float32 in TF32, with 11 bits, and a TPU in bfloat16, with 8: log-probs are then off by
some thousandths of a nat, as far as bfloat16 ones. Here float32 is multiplied in full on every device, whatever
`jax_default_matmul_precision` says; who wants the speed asks for bfloat16. Gradients of a product keep its precision.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def precision(dtype: Any) -> lax.Precision:
    """What `precision=` of a product of this dtype has to be: nothing more for bfloat16, else all of it.

    >>> precision(jnp.float32).name, precision(jnp.bfloat16).name
    ('HIGHEST', 'DEFAULT')
    """
    return lax.Precision.DEFAULT if jnp.dtype(dtype) == jnp.bfloat16 else lax.Precision.HIGHEST


def matmul(a: jax.Array, b: jax.Array, sums: Any = None) -> jax.Array:
    """a @ b; ``sums`` is the dtype that is summed in and returned, None: that of the operands.

    >>> matmul(jnp.eye(2), jnp.array([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    at = precision(jnp.promote_types(a.dtype, b.dtype))
    return jnp.matmul(a, b, precision=at, preferred_element_type=sums)


def einsum(equation: str, a: jax.Array, b: jax.Array, sums: Any = None) -> jax.Array:
    """`jnp.einsum` of two arrays, otherwise as `matmul`.

    >>> einsum("i,ij->j", jnp.array([1.0, 2.0]), jnp.eye(2)).tolist()
    [1.0, 2.0]
    """
    at = precision(jnp.promote_types(a.dtype, b.dtype))
    return jnp.einsum(equation, a, b, precision=at, preferred_element_type=sums)
