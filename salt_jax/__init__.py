"""salt-jax: verified rewards become advantages, and the geometry of their gradients reweights them (SALT).

Three rooms take arrays and return arrays, and are usable alone from any JAX trainer::

    from salt_jax import geometry, objective, salt

Importing the package itself loads nothing: each room is imported where it is used.
"""

from salt_jax import _moved

__version__ = "0.1.0.dev0"

_moved.install()
