"""Splash attention: JAX's own Pallas flash attention kernel for TPU.

Axis letters: B batch, Q query length, S key length, H heads, K head size.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from plug_jax.errors import PlugError
from plug_jax.ops import attention

LANES = 128  # the kernel's blocks are multiples of this many queries and keys


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    *,
    causal: bool = False,
    block_size: int = 512,
    interpret: bool = False,
    residual_name: str | None = None,
) -> jax.Array:
    """softmax(q.k / sqrt(K)) v within segments, equal to `attention.dot_product_attention`.

    The softmax is float32 whatever the inputs. There is no dropout.

    Args:
        query: [B, Q, H, K]; key, value: [B, S, H, K]. Q and S are multiples of 128.
        query_segments, key_segments: int32 [B, Q], [B, S]; 0 is padding.
        causal: position q sees positions up to q (Q = S).
        block_size: of queries and of keys, a multiple of 128; if it does not divide a length, the
            next smaller one that does.
        interpret: run the kernel as plain JAX operations, slowly, without a TPU.
        residual_name: `jax.ad_checkpoint` name of the forward kernel's residuals, its output and
            log-sum-exp; saving both avoids rerunning the forward kernel.

    Returns:
        [B, Q, H, K] in the query's dtype; zeros for a query that may see no key.

    Raises:
        PlugError: Q or S is not a multiple of 128.
    """
    length, num_heads, head_dim = query.shape[1:]
    block_q, block_kv = _block(length, block_size), _block(key.shape[1], block_size)
    mask = (masks.CausalMask if causal else masks.FullMask)((length, key.shape[1]))
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * num_heads),
        block_sizes=kernels.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            # One backward kernel computes the scores once, two would do so twice. It sums the
            # query's gradient over S / block_kv partial ones, which are few for our rows.
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=residual_name,
        interpret=interpret,
    )
    by_head = (a.swapaxes(1, 2) for a in (query / math.sqrt(head_dim), key, value))
    segments = kernels.SegmentIds(query_segments, key_segments)
    output = jax.vmap(kernel)(*by_head, segments).swapaxes(1, 2)
    # In the kernel padding sees padding, and a query that sees nothing gets the mean of all values.
    visible = attention.segment_mask(query_segments, key_segments)
    if causal:
        visible &= attention.causal_mask(length)
    sees_any = jnp.any(visible, axis=-1)[:, 0]  # [B, Q]
    return jnp.where(sees_any[..., None, None], output, 0)


def _block(length: int, largest: int) -> int:
    """The largest multiple of 128 up to `largest` that divides `length`."""
    if length % LANES:
        raise PlugError(
            f"splash attention needs row lengths that are multiples of {LANES}, not {length}: "
            "change TASK_FEATURE_LENGTHS, or set PlugConfig.attention = 'dot'"
        )
    return max(b for b in range(LANES, largest + 1, LANES) if length % b == 0)
