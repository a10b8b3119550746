"""The decoder's key/value cache: arrays that grow one write at a time.

Axis letters: L layers, B batch, S cache length, E encoder length, H heads, K head size.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax


@flax.struct.dataclass
class DecoderCache:
    """State of cached decoding, for all layers at once."""

    self_key_value: jax.Array  # [L, 2, B, S, H, K] keys and values of the tokens so far
    cross_key_value: jax.Array  # [L, 2, B, E, H, K] projected once from the encoder's output
    cross_mask: jax.Array  # bool [B, 1, 1, E] True at the encoder's real tokens
    length: jax.Array  # int32 scalar: tokens written so far, the same in every row


def append(cache: jax.Array, update: jax.Array, index: jax.Array) -> jax.Array:
    """Write `update` [2, B, T, H, K] into one layer's `cache` [2, B, S, H, K] at S = `index`.

    The caller keeps index + T <= S: XLA would otherwise shift the write back silently.
    """
    return lax.dynamic_update_slice_in_dim(cache, update.astype(cache.dtype), index, axis=2)


def visible(num_new: int, cache_length: int, index: jax.Array) -> jax.Array:
    """bool [1, 1, T, S]: T new tokens at `index` see what is written up to and with themselves."""
    query_positions = index + jnp.arange(num_new)
    return (jnp.arange(cache_length)[None, :] <= query_positions[:, None])[None, None]
