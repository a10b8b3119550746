"""cuDNN's flash attention, through JAX's own interface.

Axis letters: B batch, Q query length, S key length, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from plug_jax.errors import PlugError
from plug_jax.ops import attention


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    *,
    causal: bool = False,
) -> jax.Array:
    """softmax(q.k / sqrt(K)) v within segments, equal to `attention.dot_product_attention`.

    The softmax is float32. There is no dropout. Segments are passed to the kernel as a bias
    [B, 1, Q, S] shared by all heads, so that packed rows work on every GPU with cuDNN's kernel.

    Args:
        query: bfloat16 or float16 [B, Q, H, K]; key, value: [B, S, H, K]. Q and S are even, K is a
            multiple of 8 and at most 128 (256 from Hopper on).
        query_segments, key_segments: int32 [B, Q], [B, S]; 0 is padding.
        causal: position q sees positions up to q (Q = S).

    Returns:
        [B, Q, H, K] in the query's dtype; zeros for a query that may see no key.

    Raises:
        PlugError: there is no cuDNN, or its kernel does not support this dtype or shape here.
    """
    visible = attention.segment_mask(query_segments, key_segments)
    try:
        output = jax.nn.dot_product_attention(
            query, key, value, mask=visible, is_causal=causal, implementation="cudnn"
        )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise PlugError(
            f"attention='cudnn' does not run here: {error} Set PlugConfig.attention = 'auto' or "
            "'dot'."
        ) from error
    # The kernel gives a query that sees nothing the mean of all values. (A causal query that has
    # a segment sees itself at least.)
    sees_any = jnp.any(visible, axis=-1)[:, 0]  # [B, Q]
    return jnp.where(sees_any[..., None, None], output, 0)


def cudnn_takes(head_dim: int, lengths: Iterable[int]) -> bool:
    """Whether the kernel supports these head and row sizes on this machine's GPU.

    Without a GPU, as when tracing a program for one: on GPUs since Ampere.
    """
    if head_dim % 8 or head_dim > 128 or any(length % 2 for length in lengths):
        return False
    if jax.default_backend() != "gpu":
        return True
    major = jax.local_devices()[0].compute_capability.split(".")[0]  # AMD's are such as "gfx942"
    return major.isdecimal() and int(major) >= 8
