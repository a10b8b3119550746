"""Dropout whose random numbers are cheap on CPUs.

They are those of jax.random with its default keys, threefry. Its loop over rounds, which JAX keeps
on CPUs to compile faster, goes through memory in each round: with Flax's dropout that was a ninth
of a small model's step. Here the rounds are written out, so XLA fuses them with what uses them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plug_jax.ops.platform import target_platform

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_THREEFRY = "threefry2x32"


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zero each element with probability `rate`, and scale the others to keep the mean.

    Args:
        x: float.
        rate: in [0, 1).
        key: a JAX random key.

    Returns:
        As x; the same elements are zero as with Flax's dropout, on all devices.
    """
    probability = 1 - rate
    if target_platform() == "cpu" and jax.random.key_impl(key) == _THREEFRY and x.size < 1 << 32:
        kept = _uniform(key, x.shape) < probability
    else:
        kept = jax.random.bernoulli(key, probability, x.shape)
    return jnp.where(kept, x / probability, 0)


def _uniform(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """jax.random.uniform: float32 [*shape] in [0, 1)."""
    mantissas = _bits(key, shape) >> 9 | np.float32(1).view(np.uint32)  # of floats in [1, 2)
    return lax.bitcast_convert_type(mantissas, jnp.float32) - 1


def _bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """jax.random.bits: uint32 [*shape], threefry of each element's index (Salmon et al. 2011)."""
    first, second = jax.random.key_data(key)
    keys = first, second, first ^ second ^ _PARITY
    left, right = jnp.broadcast_to(first, shape), _indices(shape) + second
    for i in range(5):
        for distance in _ROTATIONS[i % 2]:
            left = left + right
            right = left ^ (right << distance | right >> 32 - distance)
        left = left + keys[(i + 1) % 3]
        right = right + keys[(i + 2) % 3] + np.uint32(i + 1)
    return left ^ right


def _indices(shape: Sequence[int]) -> jax.Array:
    """uint32 [*shape], in row-major order; from indices by axis, which any sharding divides."""
    indices = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]))
        indices += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return indices
