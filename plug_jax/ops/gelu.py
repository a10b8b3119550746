"""The exact GELU, which is fast on XLA's CPU backend."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from plug_jax.ops.platform import target_platform


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x, as PyTorch's and BERT's, in x's dtype.

    Flax's is by erfc, which takes nearly twice as long as erf on CPUs. TPUs keep it: by erf, a step
    of the base model has 1.6% more HBM traffic in its plan.
    """
    if target_platform() != "cpu":
        return nn.gelu(x, approximate=False)
    wide = x.astype(jnp.float32)  # in bfloat16, 1 + erf would lose what is left for negative x
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
