"""Model FLOPs by part, independent of the implementation.

Every matmul parameter costs 2 FLOPs per token, every attending pair of tokens 4 H K (scores,
weighted values). Causal pairs count once, so half a square. Whole rows count, including padding and
other segments. Embedding look-ups, norms and softmax are not counted.

Axis letters: M model, H heads, K head size, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from plug_jax.config import PlugConfig


class RowShape(NamedTuple):
    """The rows of a batch, and their lengths."""

    batch_size: int
    encoder: int
    decoder: int = 0


def encoder_flops(config: PlugConfig, rows: RowShape) -> dict[str, int]:
    """The encoder's matmuls, and its attention of each token to its whole row."""
    tokens, layers = rows.batch_size * rows.encoder, config.num_encoder_layers
    return {
        "encoder": 2 * tokens * (4 * _projection(config) + _mlp(config)) * layers,
        "attention": _pairs(config, tokens * rows.encoder * layers),
    }


def decoder_flops(config: PlugConfig, rows: RowShape) -> dict[str, int]:
    """The decoder's matmuls, including keys and values from encoder states, and its attention."""
    if not config.num_encoder_layers:
        return _decoder_alone_flops(config, rows)
    tokens, layers = rows.batch_size * rows.decoder, config.num_decoder_layers
    # Per token: query, key, value, output of self-attention; query, output of cross-attention.
    a_token = 6 * _projection(config) + _mlp(config)
    keys_and_values = rows.batch_size * rows.encoder * 2 * _projection(config)
    causal, cross = tokens * rows.decoder / 2, tokens * rows.encoder
    return {
        "decoder": 2 * layers * (tokens * a_token + keys_and_values),
        "attention": _pairs(config, int((causal + cross) * layers)),
    }


def _decoder_alone_flops(config: PlugConfig, rows: RowShape) -> dict[str, int]:
    """A decoder without an encoder, which also reads the encoder's part of the row."""
    length, layers = rows.encoder + rows.decoder, config.num_decoder_layers
    tokens = rows.batch_size * length
    return {
        "decoder": 2 * layers * tokens * (4 * _projection(config) + _mlp(config)),
        "attention": _pairs(config, tokens * length * layers // 2),
    }


def vocabulary_flops(config: PlugConfig, predictions: int) -> int:
    """Logits over the unpadded vocabulary."""
    return 2 * predictions * config.hidden_size * config.vocab_size


def total(*parts: Mapping[str, int]) -> dict[str, int]:
    """The sum by part."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def _projection(config: PlugConfig) -> int:
    return config.hidden_size * config.num_heads * config.head_dim


def _mlp(config: PlugConfig) -> int:
    return 2 * config.hidden_size * config.mlp_dim


def _pairs(config: PlugConfig, pairs: int) -> int:
    return 4 * config.num_heads * config.head_dim * pairs
