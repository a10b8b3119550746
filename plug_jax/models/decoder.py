"""The PALM decoder (arXiv 2004.07159): causal blocks with cross-attention to the encoder.

Without an encoder there is no cross-attention, and the decoder is a language model like GPT-3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
from jax.ad_checkpoint import checkpoint_name

from plug_jax.config import PlugConfig
from plug_jax.models.attention import CrossAttention, Segments, SelfAttention
from plug_jax.models.layers import Dropout, Mlp, layer_norm, residual, stack
from plug_jax.ops.kv_cache import DecoderCache, LayerCache


@flax.struct.dataclass
class DecoderContext:
    """Inputs shared by all decoder blocks."""

    self_segments: Segments  # of the decoder's row
    # With an encoder:
    cross_segments: Segments | None  # of the decoder's row and of the encoder's
    encoded: jax.Array | None  # [B,E,M]


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention and MLP, each with its residual and norm."""

    config: PlugConfig

    def setup(self) -> None:
        """Declare the block's modules."""
        c = self.config
        # The released decoder scales the initialisation of residual outputs by depth.
        std = c.init_std / math.sqrt(2 * (c.num_encoder_layers or c.num_decoder_layers))
        self.self_attention_norm = layer_norm(c)
        self.self_attention = SelfAttention(c, output_std=std)
        if c.num_encoder_layers:
            self.cross_attention_norm = layer_norm(c)
            self.cross_attention = CrossAttention(c, output_std=std)
        self.mlp_norm = layer_norm(c)
        self.mlp = Mlp(c, output_std=std)
        self.dropout = Dropout(c.dropout_rate)

    def __call__(
        self, x: jax.Array, context: DecoderContext, deterministic: bool
    ) -> tuple[jax.Array, None]:
        """x [B,D,M] -> (x, None): the scan's carry, and no output."""
        attend_self = functools.partial(
            self.self_attention, segments=context.self_segments, deterministic=deterministic
        )
        attend_encoder = None
        if context.encoded is not None and context.cross_segments is not None:
            attend_encoder = functools.partial(
                self.cross_attention,
                encoded=context.encoded,
                segments=context.cross_segments,
                deterministic=deterministic,
            )
        x = checkpoint_name(x, "input")
        return self._residuals(x, attend_self, attend_encoder, deterministic), None

    def step(
        self, x: jax.Array, cache: LayerCache, cross_mask: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        """New tokens x [B,T,M], after the first lengths[b] of row b -> (x, the new cache)."""

        def attend_self(y: jax.Array) -> jax.Array:
            nonlocal cache
            y, cache = self.self_attention.step(y, cache, lengths=lengths)
            return y

        def attend_encoder(y: jax.Array) -> jax.Array:
            return self.cross_attention.step(y, cache, mask=cross_mask)

        return self._residuals(x, attend_self, attend_encoder, True), cache

    def project_cross(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """This layer's keys and values, each [P,H,E,K], from the encoder's output [P,E,M]."""
        return self.cross_attention.project(encoded)

    def _residuals(
        self,
        x: jax.Array,
        attend_self: Callable[[jax.Array], jax.Array],
        attend_encoder: Callable[[jax.Array], jax.Array] | None,
        deterministic: bool,
    ) -> jax.Array:
        add = functools.partial(
            residual, self.config, dropout=self.dropout, deterministic=deterministic
        )
        x = add(x, attend_self, norm=self.self_attention_norm)
        if attend_encoder is not None:
            x = add(x, attend_encoder, norm=self.cross_attention_norm)
        return add(x, self.mlp, norm=self.mlp_norm)


class Decoder(nn.Module):
    """`num_decoder_layers` blocks, and a final LayerNorm for pre-norm.

    The layers' parameters are stacked for training, with one compiled layer in a scan. For decoding
    they are separate (`split_layers`): a loop over tokens would otherwise copy each layer's
    parameters and cache out of the stack for every token.
    """

    config: PlugConfig
    unstacked_layers: bool = False

    def setup(self) -> None:
        """Declare the blocks."""
        c = self.config
        self.layers: Any
        if self.unstacked_layers:
            self.layers = [DecoderBlock(c) for _ in range(c.num_decoder_layers)]
        else:
            self.layers = stack(DecoderBlock, c, num_layers=c.num_decoder_layers)(c)
        if c.norm_placement == "pre":
            self.final_norm = layer_norm(c)

    def __call__(self, x: jax.Array, *, context: DecoderContext, deterministic: bool) -> jax.Array:
        """x [B,D,M] -> [B,D,M]."""
        for layer in self.layers if self.unstacked_layers else [self.layers]:
            x, _ = layer(x, context, deterministic)
        return self._final(x)

    def step(self, x: jax.Array, cache: DecoderCache) -> tuple[jax.Array, tuple[LayerCache, ...]]:
        """New tokens x [B,T,M] -> ([B,T,M], the layers' new caches). Needs `unstacked_layers`."""
        caches = []
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x, layer_cache = layer.step(x, layer_cache, cache.cross_mask, cache.lengths)
            caches.append(layer_cache)
        return self._final(x), tuple(caches)

    def project_cross(self, encoded: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Each layer's keys and values [P,H,E,K] from the encoder. Needs `unstacked_layers`."""
        return [layer.project_cross(encoded) for layer in self.layers]

    def _final(self, x: jax.Array) -> jax.Array:
        if self.config.norm_placement == "pre":
            x = self.final_norm(x).astype(self.config.dtype)
        return x


def split_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """A model's parameters with its decoder's layers separated, for cached decoding.

    Works leaf by leaf; parameters outside the decoder are not copied. Shardings are kept.
    """
    decoder = dict(params["decoder"])
    leaves, tree = jax.tree.flatten(decoder.pop("layers"))
    apart = zip(*map(_unstack, leaves), strict=True)
    layers = {f"layers_{i}": jax.tree.unflatten(tree, layer) for i, layer in enumerate(apart)}
    return {**params, "decoder": {**decoder, **layers}}


def _unstack(leaf: Any) -> tuple[Any, ...]:
    return tuple(leaf[i] for i in range(leaf.shape[0]))
