"""Attention on plain arrays: masks from segment ids, and dot-product attention.

Axis letters: B batch, Q query length, S key length, H heads, K head size; P prompts.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax.ops.dropout import dropout


def segment_mask(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
    """bool [B, 1, Q, S]: True where a query may see a key, from int32 segment ids [B, Q], [B, S].

    Example: queries [1, 1, 2, 0] over themselves see [[1,1,0,0], [1,1,0,0], [0,0,1,0], [0,0,0,0]]:
    segment 0 is padding, which sees nothing and is seen by nothing.
    """
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return (same & (query_segments[:, :, None] > 0))[:, None]


def causal_mask(length: int) -> jax.Array:
    """bool [1, 1, length, length]: position q sees positions up to q."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
) -> jax.Array:
    """softmax(q.k / sqrt(K)) v with a float32 softmax.

    Args:
        query: [B, Q, H, K]; key, value: [B, S, H, K].
        mask: bool, broadcastable to [B, H, Q, S].
        dropout_rate: on the attention weights; applied when `dropout_rng` is given.

    Returns:
        [B, Q, H, K] in the query's dtype; zeros for a query that may see no key at all (padding),
        where a softmax over equal scores would give the mean of the values.
    """
    weights = nn.dot_product_attention_weights(
        query, key, mask=mask, deterministic=True, force_fp32_for_softmax=True
    )
    if dropout_rng is not None:
        weights = dropout(weights, dropout_rate, dropout_rng)
    output = jnp.einsum("bhqs,bshk->bqhk", weights.astype(query.dtype), value)
    sees_any = jnp.any(mask, axis=-1)  # [B or 1, H or 1, Q]
    return jnp.where(sees_any.swapaxes(-1, -2)[..., None], output, 0)


def cached_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array
) -> jax.Array:
    """softmax(q.k / sqrt(K)) v over cached keys and values, with a float32 softmax.

    Args:
        query: [B, Q, H, K].
        key, value: [P, H, S, K]; the B / P query rows that share one are adjacent.
        mask: bool, broadcastable to [P, H, B / P * Q, S]; every query must see some key.

    Returns:
        [B, Q, H, K] in the query's dtype.
    """
    by_prompt = query.reshape(key.shape[0], -1, *query.shape[2:]) / math.sqrt(query.shape[-1])
    scores = jnp.einsum("pqhk,phsk->phqs", by_prompt, key.astype(query.dtype))
    scores = jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    output = jnp.einsum("phqs,phsk->pqhk", weights, value.astype(query.dtype))
    return output.reshape(query.shape)
