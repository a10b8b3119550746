"""Attention on plain arrays: masks from segment ids, and dot-product attention.

Axis letters: B batch, Q query length, S key length, H heads, K head size; P prompts.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

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
    residual_name: str | None = None,
) -> jax.Array:
    """softmax(q.k / sqrt(K)) v with a float32 softmax.

    Args:
        query: [B, Q, H, K]; key, value: [B, S, H, K].
        mask: bool, broadcastable to [B, H, Q, S].
        dropout_rate: on the attention weights; applied when `dropout_rng` is given.
        residual_name: `jax.ad_checkpoint` name of the output; saving it avoids its product with the
            values in the backward pass.

    Returns:
        [B, Q, H, K] in the query's dtype; zeros for a query that may see no key at all (padding),
        where a softmax over equal scores would give the mean of the values.
    """
    options = dropout_rate, residual_name
    return _attention(options, query, key, value, mask, dropout_rng)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    options: tuple[float, str | None],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rng: jax.Array | None,
) -> jax.Array:
    """Dot-product attention which keeps the exponentials of the scores, and not their softmax.

    Division by their sum is of the output [B, Q, H, K], not of the weights, here as in the backward
    pass, which has no softmax to go through (FlashAttention, section 3.1). This saves a quarter of
    attention's time on CPUs.
    """
    return _attention_forward(options, query, key, value, mask, rng)[0]


def _attention_forward(
    options: tuple[float, str | None],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rng: jax.Array | None,
) -> tuple[jax.Array, Any]:
    rate, name = options
    scores = jnp.einsum("bqhk,bshk->bhqs", _scaled(query), key).astype(jnp.float32)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    sees_any = jnp.any(mask, axis=-1)  # [B or 1, H or 1, Q]
    shares = jnp.where(sees_any, 1 / jnp.sum(weights, axis=-1), 0)
    shares = shares.swapaxes(1, 2)[..., None]  # [B, Q, H, 1]
    kept = weights if rng is None else dropout(weights, rate, rng)
    output = jnp.einsum("bhqs,bshk->bqhk", kept.astype(query.dtype), value)
    output = (output * shares).astype(query.dtype)
    if name is not None:
        output = named_heads(output, name)
    return output, (query, key, value, weights, kept, shares, output)


def _attention_backward(_: Any, saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    query, key, value, weights, kept, shares, output = saved
    dtype = query.dtype
    gradient = gradient * shares
    # The softmax's inner product of weights and their gradients is that of output and gradient.
    inner = jnp.sum(gradient * output, axis=-1).swapaxes(1, 2)[..., None]  # [B, H, Q, 1]
    gradient = gradient.astype(dtype)
    of_weights = jnp.einsum("bqhk,bshk->bhqs", gradient, value).astype(jnp.float32)
    of_scores = (kept * of_weights - weights * inner).astype(dtype)
    return (
        _scaled(jnp.einsum("bhqs,bshk->bqhk", of_scores, key)),
        jnp.einsum("bhqs,bqhk->bshk", of_scores, _scaled(query)),
        jnp.einsum("bhqs,bqhk->bshk", kept.astype(dtype), gradient),
        None,
        None,
    )


_attention.defvjp(_attention_forward, _attention_backward)


def _scaled(query: jax.Array) -> jax.Array:
    return query / math.sqrt(query.shape[-1])


def named_heads(x: jax.Array, name: str) -> jax.Array:
    """Give [..., H, K] a `jax.ad_checkpoint` name."""
    # Saved as [..., H*K]: a TPU pads the last axis to 128, which would double a head size of 64.
    return checkpoint_name(x.reshape(*x.shape[:-2], -1), name).reshape(x.shape)


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
    by_prompt = _scaled(query).reshape(key.shape[0], -1, *query.shape[2:])
    scores = jnp.einsum("pqhk,phsk->phqs", by_prompt, key.astype(query.dtype))
    scores = jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    output = jnp.einsum("phqs,phsk->pqhk", weights, value.astype(query.dtype))
    return output.reshape(query.shape)
