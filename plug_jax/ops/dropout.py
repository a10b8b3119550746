"""Dropout whose random numbers are cheap on CPUs.

jax.random.bernoulli, and so Flax's dropout, draws 32 bits per element. With threefry, whose numbers
do not depend on how an array is sharded, that took a ninth of a small model's step on a CPU; so
there two elements share a word. On TPUs, which draw while they compute with x, sharing would take
words through memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plug_jax.ops.platform import target_platform

_LEVELS = 1 << 16


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zero each element with probability `rate`, and scale the others to keep the mean.

    Args:
        x: float, of at least one axis.
        rate: in [0, 1); on CPUs rounded to a multiple of 2^-16.
        key: a JAX random key.

    Returns:
        As x.
    """
    probability = 1 - rate
    if target_platform() == "cpu":
        levels = max(1, round(probability * _LEVELS))
        kept, probability = _uniform(key, x.shape) < levels, levels / _LEVELS
    else:
        kept = jax.random.bernoulli(key, probability, x.shape)
    return jnp.where(kept, x / probability, 0)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 [*shape], uniform in [0, 2^16): both halves of each word, along the last axis."""
    *outer, size = shape
    words = jax.random.bits(key, (*outer, -(-size // 2)), jnp.uint32)
    halves = [words % _LEVELS, words // _LEVELS]
    return jnp.concatenate(halves, axis=-1)[..., :size]
