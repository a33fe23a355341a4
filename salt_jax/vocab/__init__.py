"""Streaming over the vocabulary: log-probs, entropy, normalizers and projections without an (N, V) array."""

from salt_jax.vocab.chunks import (
    Chunk,
    Scalar,
    check_positive,
    check_shapes,
    check_temperature,
    fold_chunks,
    open_uniforms,
    residual,
    scaled_logits,
    sign_key,
    signs,
)
from salt_jax.vocab.streaming import (
    DEFAULT_CHUNK,
    TokenLogProbs,
    log_normalizers,
    projected_log_probs,
    token_log_probs,
)

__all__ = [
    "DEFAULT_CHUNK",
    "Chunk",
    "Scalar",
    "TokenLogProbs",
    "check_positive",
    "check_shapes",
    "check_temperature",
    "fold_chunks",
    "log_normalizers",
    "open_uniforms",
    "projected_log_probs",
    "residual",
    "scaled_logits",
    "sign_key",
    "signs",
    "token_log_probs",
]
