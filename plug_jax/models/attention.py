"""Self- and cross-attention: projections, and the choice between dot and splash attention.

Axis letters: B batch, Q query length, S key length, E encoder length, M model, H heads, K head
size.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from plug_jax.config import PlugConfig, RematName
from plug_jax.errors import PlugError
from plug_jax.models.layers import projection
from plug_jax.ops import attention, kv_cache
from plug_jax.ops.splash_attention import splash_attention

_ACTIVATION_HEADS = ("activation_batch", "activation_length", "activation_heads", None)


@flax.struct.dataclass
class Segments:
    """Who sees whom in packed rows: a query the keys of its segment. Segment 0 is padding."""

    queries: jax.Array  # int32 [B,Q]
    keys: jax.Array  # int32 [B,S]
    causal: bool = flax.struct.field(pytree_node=False, default=False)  # keys up to its own place

    def mask(self) -> jax.Array:
        """bool [B,1,Q,S]: the same as an array."""
        mask = attention.segment_mask(self.queries, self.keys)
        return mask & attention.causal_mask(self.keys.shape[1]) if self.causal else mask


# In training by segments; with a cache a bool mask that broadcasts to [B,H,Q,S].
Visible = Segments | jax.Array


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

    def __call__(
        self,
        x: jax.Array,
        *,
        visible: Visible,
        deterministic: bool,
        cache: jax.Array | None = None,
        cache_index: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attend within x [B,Q,M], or append x to a layer's `cache` [2,B,S,H,K] and attend to that.

        Returns ([B,Q,M], the new cache or None).
        """
        qkv = _saved(self.qkv(x), "qkv")
        query, key, value = jnp.moveaxis(qkv, -3, 0)  # each [B,Q,H,K]
        if cache is not None:
            assert cache_index is not None
            cache = kv_cache.append(cache, jnp.stack([key, value]), cache_index)
            key, value = cache.astype(x.dtype)
        output = _attend(self, query, key, value, visible=visible, deterministic=deterministic)
        return checkpoint_name(self.out(output), "out"), cache


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

    def project(self, encoded: jax.Array) -> jax.Array:
        """Keys and values [2,B,E,H,K] of the encoder's output [B,E,M]."""
        return jnp.moveaxis(_saved(self.key_value(encoded), "qkv"), -3, 0)

    def __call__(
        self, x: jax.Array, key_value: jax.Array, *, visible: Visible, deterministic: bool
    ) -> jax.Array:
        """Attend from x [B,Q,M] to `key_value` [2,B,E,H,K]."""
        query = _saved(self.query(x), "qkv")
        key, value = key_value.astype(x.dtype)
        output = _attend(self, query, key, value, visible=visible, deterministic=deterministic)
        return checkpoint_name(self.out(output), "out")


def _attend(
    module: SelfAttention | CrossAttention,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    visible: Visible,
    deterministic: bool,
) -> jax.Array:
    """[B,Q,H,K] of queries [B,Q,H,K], keys and values [B,S,H,K]: the one choice of a kernel."""
    config = module.config
    query, key, value = (
        nn.with_logical_constraint(a, _ACTIVATION_HEADS) for a in (query, key, value)
    )
    if isinstance(visible, Segments):
        # The parameters are initialised on a row of one token, which splash does not take.
        if config.attention == "splash" and not module.is_initializing():
            return _splash(config, query, key, value, visible)
        visible = visible.mask()
    rate = config.attention_dropout_rate
    use_dropout = rate > 0.0 and not deterministic
    output = attention.dot_product_attention(
        query,
        key,
        value,
        mask=visible,
        dropout_rate=rate,
        dropout_rng=module.make_rng("dropout") if use_dropout else None,
    )
    return _saved(output, "context")


def _saved(x: jax.Array, name: RematName) -> jax.Array:
    """[..., H, K] under a name of `remat_saved_names`."""
    # Saved as [..., H*K]: a TPU pads the last axis to 128, which would be twice a head size of 64.
    return checkpoint_name(x.reshape(*x.shape[:-2], -1), name).reshape(x.shape)


def _splash(
    config: PlugConfig, query: jax.Array, key: jax.Array, value: jax.Array, segments: Segments
) -> jax.Array:
    """Splash attention of every device over its own rows and heads: GSPMD cannot split a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    platform = jax.default_backend() if mesh.empty else mesh.abstract_device.platform
    if platform not in ("tpu", "cpu"):
        raise PlugError(
            f"attention='splash' is a TPU kernel, and this is a {platform}; set "
            "PlugConfig.attention = 'dot'"
        )
    attend = functools.partial(
        splash_attention,
        causal=segments.causal,
        block_size=config.attention_block_size,
        interpret=platform == "cpu",
        residual_name="context",
    )
    if not mesh.empty:
        heads = nn.logical_to_mesh_axes(("activation_batch", None, "activation_heads", None))
        rows = nn.logical_to_mesh_axes(("activation_batch", None))
        attend = jax.shard_map(
            attend, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False
        )
    return attend(query, key, value, segments.queries, segments.keys)
