"""The PALM decoder (arXiv 2004.07159): causal blocks with cross-attention to the encoder."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import flax.struct
import jax
from jax.ad_checkpoint import checkpoint_name

from plug_jax.config import PlugConfig
from plug_jax.models.attention import CrossAttention, SelfAttention, Visible
from plug_jax.models.layers import Mlp, layer_norm, residual, stack


@flax.struct.dataclass
class DecoderContext:
    """What every block of the decoder reads besides its own input."""

    self_visible: Visible  # of the decoder's row; cached, bool, broadcastable to [B,H,T,S]
    cross_visible: Visible  # of the encoder's row
    encoded: jax.Array | None = None  # [B,E,M]; None when the keys and values are cached
    cache_index: jax.Array | None = None  # int32 scalar: where new tokens are written


@flax.struct.dataclass
class LayerCache:
    """One layer's share of the cache (stacked over layers outside the scan)."""

    self_key_value: jax.Array  # [2,B,S,H,K]
    cross_key_value: jax.Array  # [2,B,E,H,K]


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention and MLP, each with its residual and norm."""

    config: PlugConfig

    def setup(self) -> None:
        """Declare the block's modules."""
        c = self.config
        # The released decoder scales the initialisation of its residual outputs by the depth.
        std = c.init_std / math.sqrt(2 * c.num_encoder_layers)
        self.self_attention_norm = layer_norm(c)
        self.self_attention = SelfAttention(c, output_std=std)
        self.cross_attention_norm = layer_norm(c)
        self.cross_attention = CrossAttention(c, output_std=std)
        self.mlp_norm = layer_norm(c)
        self.mlp = Mlp(c, output_std=std)
        self.dropout = nn.Dropout(c.dropout_rate)

    def __call__(
        self, x: jax.Array, cache: LayerCache | None, context: DecoderContext, deterministic: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """x [B,D,M] -> (x, this layer's new self-attention keys and values, or None uncached)."""
        new_cache: jax.Array | None = None

        def attend_self(y: jax.Array) -> jax.Array:
            nonlocal new_cache
            output, new_cache = self.self_attention(
                y,
                visible=context.self_visible,
                deterministic=deterministic,
                cache=None if cache is None else cache.self_key_value,
                cache_index=context.cache_index,
            )
            return output

        def attend_encoder(y: jax.Array) -> jax.Array:
            if cache is not None:
                key_value = cache.cross_key_value
            else:
                assert context.encoded is not None
                key_value = self.cross_attention.project(context.encoded)
            return self.cross_attention(
                y, key_value, visible=context.cross_visible, deterministic=deterministic
            )

        add = functools.partial(
            residual, self.config, dropout=self.dropout, deterministic=deterministic
        )
        x = checkpoint_name(x, "input")
        x = add(x, attend_self, norm=self.self_attention_norm)
        x = add(x, attend_encoder, norm=self.cross_attention_norm)
        x = add(x, self.mlp, norm=self.mlp_norm)
        return x, new_cache

    def project_cross(
        self, encoded: jax.Array, cache: None, context: None, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Scan body with the signature of `__call__`: this layer's keys and values of `encoded`."""
        del cache, context, deterministic
        return encoded, self.cross_attention.project(encoded)


class Decoder(nn.Module):
    """`num_decoder_layers` blocks, and for pre-norm a final LayerNorm."""

    config: PlugConfig

    def setup(self) -> None:
        """Declare the stack."""
        self.layers = stack(
            DecoderBlock,
            self.config,
            num_layers=self.config.num_decoder_layers,
            in_axes=(0, nn.broadcast, nn.broadcast),
            methods=("__call__", "project_cross"),
        )(self.config)
        if self.config.norm_placement == "pre":
            self.final_norm = layer_norm(self.config)

    def __call__(
        self,
        x: jax.Array,
        *,
        context: DecoderContext,
        cache: LayerCache | None = None,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array | None]:
        """x [B,D,M] -> ([B,D,M], new self-attention cache [L,2,B,S,H,K] or None)."""
        x, new_cache = self.layers(x, cache, context, deterministic)
        if self.config.norm_placement == "pre":
            x = self.final_norm(x).astype(self.config.dtype)
        return x, new_cache

    def project_cross(self, encoded: jax.Array) -> jax.Array:
        """Cross-attention keys and values [L,2,B,E,H,K] of the encoder's output [B,E,M]."""
        _, key_value = self.layers.project_cross(encoded, None, None, True)
        return key_value
