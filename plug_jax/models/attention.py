"""Self- and cross-attention: projections, and the choice of the attention kernel.

Axis letters: B batch, Q query length, S key length, E encoder length, M model, H heads, K head
size; with a cache P prompts, T new tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from plug_jax.config import Attention, PlugConfig, RematName
from plug_jax.errors import PlugError
from plug_jax.models.layers import projection
from plug_jax.ops import attention, kv_cache
from plug_jax.ops.attention import cached_attention, named_heads
from plug_jax.ops.cudnn_attention import cudnn_attention, cudnn_takes
from plug_jax.ops.kv_cache import LayerCache
from plug_jax.ops.platform import target_platform
from plug_jax.ops.splash_attention import LANES, splash_attention

# Logical axes of cached keys and values [B,H,S,K]: rows and heads stay where they are computed.
CACHE_AXES = ("activation_batch", "activation_heads", None, None)
_CONTEXT: RematName = "context"  # for `remat_saved_names`: what heads return
_ACTIVATION_HEADS = ("activation_batch", "activation_length", "activation_heads", None)


@flax.struct.dataclass
class Segments:
    """Segment ids of packed rows: queries attend to keys of the same segment. 0 is padding."""

    queries: jax.Array  # int32 [B,Q]
    keys: jax.Array  # int32 [B,S]
    causal: bool = flax.struct.field(pytree_node=False, default=False)  # keys up to the query

    def mask(self) -> jax.Array:
        """The same as a mask, bool [B,1,Q,S]."""
        mask = attention.segment_mask(self.queries, self.keys)
        return mask & attention.causal_mask(self.keys.shape[1]) if self.causal else mask


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection of queries, keys and values."""

    config: PlugConfig
    output_std: float | None = None

    def setup(self) -> None:
        """Declare the two projections."""
        c = self.config
        self.qkv = projection(c, (3, c.num_heads, c.head_dim), axes=("embed", None, "heads", "kv"))
        self.out = projection(
            c, c.hidden_size, axes=("heads", "kv", "embed"), contract=2, std=self.output_std
        )

    def __call__(self, x: jax.Array, *, segments: Segments, deterministic: bool) -> jax.Array:
        """Attend within x [B,Q,M] -> [B,Q,M]."""
        qkv = named_heads(self.qkv(x), "qkv")
        query, key, value = jnp.moveaxis(qkv, -3, 0)  # each [B,Q,H,K]
        output = _attend(self, query, key, value, segments=segments, deterministic=deterministic)
        return checkpoint_name(self.out(output), "out")

    def step(
        self, x: jax.Array, cache: LayerCache, *, lengths: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        """Append x [B,T,M] to the cache, row b at lengths[b], and attend to its content."""
        query, key, value = jnp.moveaxis(self.qkv(x), -3, 0)
        cache = dataclasses.replace(
            cache,
            key=_cached(kv_cache.append(cache.key, key, lengths)),
            value=_cached(kv_cache.append(cache.value, value, lengths)),
        )
        visible = kv_cache.visible(x.shape[1], cache.key.shape[2], lengths)
        return self.out(cached_attention(query, cache.key, cache.value, mask=visible)), cache


class CrossAttention(nn.Module):
    """Multi-head attention from the decoder to the encoder's output."""

    config: PlugConfig
    output_std: float | None = None

    def setup(self) -> None:
        """Declare the three projections."""
        c = self.config
        self.query = projection(c, (c.num_heads, c.head_dim), axes=("embed", "heads", "kv"))
        self.key_value = projection(
            c, (2, c.num_heads, c.head_dim), axes=("embed", None, "heads", "kv")
        )
        self.out = projection(
            c, c.hidden_size, axes=("heads", "kv", "embed"), contract=2, std=self.output_std
        )

    def __call__(
        self, x: jax.Array, encoded: jax.Array, *, segments: Segments, deterministic: bool
    ) -> jax.Array:
        """Attend from x [B,Q,M] to the encoder's output [B,E,M] -> [B,Q,M]."""
        key, value = jnp.moveaxis(named_heads(self.key_value(encoded), "qkv"), -3, 0)  # [B,E,H,K]
        query = named_heads(self.query(x), "qkv")
        output = _attend(self, query, key, value, segments=segments, deterministic=deterministic)
        return checkpoint_name(self.out(output), "out")

    def project(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values for a cache, each [P,H,E,K], from the encoder's output [P,E,M]."""
        key, value = jnp.moveaxis(self.key_value(encoded), (-3, -2), (0, 2))
        return _cached(key), _cached(value)

    def step(self, x: jax.Array, cache: LayerCache, *, mask: jax.Array) -> jax.Array:
        """Attend from x [B,T,M] to the cached prompts, where `mask` bool [P,1,1,E] is true."""
        output = cached_attention(self.query(x), cache.cross_key, cache.cross_value, mask=mask)
        return self.out(output)


def attention_kernel(config: PlugConfig, *lengths: int) -> Attention:
    """The configured kernel, with "auto" resolved for these row lengths and the devices in use."""
    if config.attention != "auto":
        return config.attention
    platform = target_platform()
    if config.attention_dropout_rate > 0.0:  # the kernels have no dropout
        return "dot"
    if platform == "tpu" and not any(length % LANES for length in lengths):
        return "splash"
    if platform == "gpu" and config.dtype == "bfloat16" and cudnn_takes(config.head_dim, lengths):
        return "cudnn"
    return "dot"


def _attend(
    module: SelfAttention | CrossAttention,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segments: Segments,
    deterministic: bool,
) -> jax.Array:
    """[B,Q,H,K] from queries [B,Q,H,K], keys and values [B,S,H,K], with the configured kernel."""
    config, lengths = module.config, (query.shape[1], key.shape[1])
    query, key, value = (
        nn.with_logical_constraint(a, _ACTIVATION_HEADS) for a in (query, key, value)
    )
    # Parameters are initialised on a row of one token, which the kernels do not accept.
    kernel = "dot" if module.is_initializing() else attention_kernel(config, *lengths)
    if kernel == "splash":
        return _by_device(_splash(config, segments), query, key, value, segments)
    if kernel == "cudnn":
        attend = functools.partial(cudnn_attention, causal=segments.causal)
        return named_heads(_by_device(attend, query, key, value, segments), _CONTEXT)
    rate = config.attention_dropout_rate
    use_dropout = rate > 0.0 and not deterministic
    return attention.dot_product_attention(
        query,
        key,
        value,
        mask=segments.mask(),
        dropout_rate=rate,
        dropout_rng=module.make_rng("dropout") if use_dropout else None,
        residual_name=_CONTEXT,
    )


def _cached(x: jax.Array) -> jax.Array:
    """Constrain cached keys or values [B,H,S,K] by row and head, as they are computed."""
    return nn.with_logical_constraint(x, CACHE_AXES)


def _splash(config: PlugConfig, segments: Segments) -> Callable[..., jax.Array]:
    """Splash attention on one device's rows and heads."""
    platform = target_platform()
    if platform not in ("tpu", "cpu"):
        raise PlugError(
            f"attention='splash' is a TPU kernel, and this is a {platform}; set "
            "PlugConfig.attention = 'auto' or 'dot'"
        )
    return functools.partial(
        splash_attention,
        causal=segments.causal,
        block_size=config.attention_block_size,
        interpret=platform == "cpu",
        residual_name=_CONTEXT,
    )


def _by_device(
    attend: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: Segments,
) -> jax.Array:
    """Run a kernel on each device's rows and heads, because GSPMD cannot partition it."""
    if not jax.sharding.get_abstract_mesh().empty:
        heads = nn.logical_to_mesh_axes(("activation_batch", None, "activation_heads", None))
        rows = nn.logical_to_mesh_axes(("activation_batch", None))
        attend = jax.shard_map(
            attend, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False
        )
    return attend(query, key, value, segments.queries, segments.keys)
