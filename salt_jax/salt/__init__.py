"""SALT: advantages reweighted by the geometry of the rollouts' gradients (arXiv 2606.05800), ablations, controls."""

from salt_jax.salt.reweighting import VARIANTS, SaltConfig, SaltOutput, reweight

__all__ = ["VARIANTS", "SaltConfig", "SaltOutput", "reweight"]
