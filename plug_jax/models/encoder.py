"""The StructBERT encoder (arXiv 1908.04577): a stack of bidirectional Transformer blocks."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from plug_jax.config import PlugConfig
from plug_jax.models.attention import Segments, SelfAttention
from plug_jax.models.layers import Dropout, Mlp, layer_norm, residual, stack


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each with its residual and norm."""

    config: PlugConfig

    def setup(self) -> None:
        """Declare the block's modules."""
        self.attention_norm = layer_norm(self.config)
        self.attention = SelfAttention(self.config)
        self.mlp_norm = layer_norm(self.config)
        self.mlp = Mlp(self.config)
        self.dropout = Dropout(self.config.dropout_rate)

    def __call__(
        self, x: jax.Array, segments: Segments, deterministic: bool
    ) -> tuple[jax.Array, None]:
        """x [B,E,M] -> (x, None): the scan's carry, and no output."""

        def attend(y: jax.Array) -> jax.Array:
            return self.attention(y, segments=segments, deterministic=deterministic)

        add = functools.partial(
            residual, self.config, dropout=self.dropout, deterministic=deterministic
        )
        x = checkpoint_name(x, "input")
        x = add(x, attend, norm=self.attention_norm)
        x = add(x, self.mlp, norm=self.mlp_norm)
        return x, None


class Encoder(nn.Module):
    """`num_encoder_layers` blocks, and a final LayerNorm (once or twice) for pre-norm."""

    config: PlugConfig

    def setup(self) -> None:
        """Declare the stack."""
        num_layers = self.config.num_encoder_layers
        self.layers = stack(EncoderBlock, self.config, num_layers=num_layers)(self.config)
        if self.config.norm_placement == "pre":
            self.final_norm = layer_norm(self.config)

    def __call__(self, x: jax.Array, *, segment_ids: jax.Array, deterministic: bool) -> jax.Array:
        """x [B,E,M], segment_ids int32 [B,E] (0: padding) -> [B,E,M] in the compute dtype."""
        x, _ = self.layers(x, Segments(segment_ids, segment_ids), deterministic)
        if self.config.norm_placement == "pre":
            # Released inference applies the final norm twice, released training once.
            for _ in range(self.config.encoder_final_norm_repeats):
                x = self.final_norm(x).astype(self.config.dtype)
        return x
