"""Dropout with 16 random bits per element.

jax.random.bernoulli, and so Flax's dropout, draws 32 bits per element. With threefry, whose numbers
do not depend on how an array is sharded, that costs as much as a layer's matmuls on a CPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_LEVELS = 1 << 16


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zero each element with probability `rate`, and scale the others to keep the mean.

    The probability is rounded to a multiple of 2^-16, and the scale is exact for that.

    Args:
        x: float, of at least one axis.
        rate: in [0, 1).
        key: a JAX random key.

    Returns:
        As x.
    """
    kept = max(1, round((1 - rate) * _LEVELS))
    return jnp.where(_uniform(key, x.shape) < kept, x * (_LEVELS / kept), 0)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 [*shape], uniform in [0, 2^16): both halves of each word, along the last axis."""
    *outer, size = shape
    words = jax.random.bits(key, (*outer, -(-size // 2)), jnp.uint32)
    halves = [words % _LEVELS, words // _LEVELS]
    return jnp.concatenate(halves, axis=-1)[..., :size]
