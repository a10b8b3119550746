"""The exact GELU."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x, as PyTorch's and BERT's, in x's dtype.

    jax.nn.gelu is the same by erfc, which takes nearly twice as long on CPUs. By erf, it takes
    float32: in bfloat16, 1 + erf would lose what is left for negative x.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
