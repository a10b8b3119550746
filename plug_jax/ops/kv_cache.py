"""The decoder's KV cache; each row has its own length.

Axis letters: B rows (texts), P prompts, S cache length, E encoder length, T new tokens, H heads,
K head size, L layers. Every layer has its own arrays, [.., H, .., K], so that a step writes in
place and its matmuls read the cache without a copy.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax


@flax.struct.dataclass
class LayerCache:
    """One layer's keys and values."""

    key: jax.Array  # [B, H, S, K] of the tokens so far
    value: jax.Array  # [B, H, S, K]
    cross_key: jax.Array  # [P, H, E, K] of the prompt, projected once
    cross_value: jax.Array  # [P, H, E, K]


@flax.struct.dataclass
class DecoderCache:
    """State of cached decoding: B texts over P prompts, those of a prompt adjacent."""

    layers: tuple[LayerCache, ...]  # L
    cross_mask: jax.Array  # bool [P, 1, 1, E]: True at the prompt's real tokens
    lengths: jax.Array  # int32 [B]: tokens written so far


def append(cache: jax.Array, update: jax.Array, lengths: jax.Array) -> jax.Array:
    """Write `update` [B, T, H, K] into `cache` [B, H, S, K], row b at S = lengths[b].

    The caller ensures lengths + T <= S: otherwise XLA would silently clamp the position.
    """
    update = update.astype(cache.dtype).swapaxes(1, 2)
    return jax.vmap(lambda row, new, at: lax.dynamic_update_slice_in_dim(row, new, at, axis=1))(
        cache, update, lengths
    )


def visible(num_new: int, cache_length: int, lengths: jax.Array) -> jax.Array:
    """bool [B, 1, T, S]: T new tokens see all tokens up to themselves."""
    places = lengths[:, None] + jnp.arange(num_new)  # [B, T]
    return (jnp.arange(cache_length) <= places[:, :, None])[:, None]


def reorder(cache: DecoderCache, parents: jax.Array) -> DecoderCache:
    """Row b becomes a copy of row parents[b] (int32 [B]) of the same prompt."""
    layers = tuple(
        dataclasses.replace(layer, key=layer.key[parents], value=layer.value[parents])
        for layer in cache.layers
    )
    return dataclasses.replace(cache, layers=layers, lengths=cache.lengths[parents])
