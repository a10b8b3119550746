"""PlugModel: the StructBERT encoder, its heads, and the PALM decoder plugged onto it.

Axis letters: B batch, E encoder length, D decoder length, P predictions per row, M model,
V padded vocabulary, C sentence classes, H heads, K head size; with a cache T new tokens.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax import losses
from plug_jax.config import PlugConfig
from plug_jax.models.attention import CACHE_AXES, Segments
from plug_jax.models.decoder import Decoder, DecoderContext
from plug_jax.models.embeddings import Embeddings
from plug_jax.models.encoder import Encoder
from plug_jax.models.layers import projection
from plug_jax.models.mlm_head import MlmHead
from plug_jax.ops.kv_cache import DecoderCache, LayerCache
from plug_jax.partitioning import Partitioner


class PlugModel(nn.Module):
    """The whole model; with `num_decoder_layers=0` only the encoder and its heads (stage 1).

    With `num_encoder_layers=0` only the decoder: `decoder_states` and `decoder_scores`.

    Call its methods with `model.apply({"params": params}, ..., method="encode")`; calls with
    dropout need `rngs={"dropout": key}`. Cached decoding (`init_cache`, `extend`) needs
    `unstacked_layers` and parameters split by `decoder.split_layers`.
    """

    config: PlugConfig
    unstacked_layers: bool = False

    def setup(self) -> None:
        """Declare the configured modules."""
        c = self.config
        self.embeddings = Embeddings(c)
        if c.num_encoder_layers:
            self.encoder = Encoder(c)
            self.mlm_head = MlmHead(c)
            if c.use_pooler:
                self.pooler = projection(c, c.hidden_size, axes=("embed", "mlp"))
            self.sentence_head = projection(c, c.num_sentence_classes, axes=("embed", None))
        if c.num_decoder_layers:
            self.decoder = Decoder(c, unstacked_layers=self.unstacked_layers)

    def __call__(self, tokens: jax.Array) -> None:
        """Touch every parameter: the initialiser's entry point. int32 [B,S], S >= 1."""
        encoded = None
        if self.config.num_encoder_layers:
            encoded = self.encode(tokens)
            self.mlm_logits(encoded)
            self.sentence_logits(encoded)
        if self.config.num_decoder_layers:
            self.decode(tokens, encoded)

    def encode(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        perturbation: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Contextual states [B,E,M] of int32 tokens [B,E].

        positions (default: 0, 1, ...), token_types (default: 0) and segment_ids (default: one
        segment per row; 0 is padding, with meaningless output) are int32 [B,E]. An optional
        `perturbation` float32 [B,E,M] is added to the first layer's input.
        """
        segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        x = self.embeddings(
            tokens,
            positions=_arange_like(tokens) if positions is None else positions,
            token_types=jnp.zeros_like(tokens) if token_types is None else token_types,
            deterministic=deterministic,
        )
        if perturbation is not None:
            x = (x + perturbation).astype(x.dtype)
        return self.encoder(x, segment_ids=segment_ids, deterministic=deterministic)

    def mlm_logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [B,P,V] for the original token, from encoder states [B,P,M]."""
        return self.mlm_head(hidden, self.embeddings)

    def mlm_scores(self, hidden: jax.Array, labels: jax.Array, *, chunk: int) -> losses.Scores:
        """How well `mlm_logits` of [B,P,M] predict int32 [B,P]; see `losses.chunked_score`."""
        return self.mlm_head.score(hidden, labels, self.embeddings, chunk=chunk)

    def pool(self, hidden: jax.Array) -> jax.Array:
        """tanh(dense h), [...,M] -> [...,M]: BERT's pooler; the identity without one."""
        return nn.tanh(self.pooler(hidden)) if self.config.use_pooler else hidden

    def sentence_logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [...,C], from encoder states at [CLS] [...,M]."""
        return self.sentence_head(self.pool(hidden)).astype(jnp.float32)

    def decode(
        self,
        tokens: jax.Array,
        encoded: jax.Array | None,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        encoder_segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """float32 logits [B,D,V] of the token after each of int32 tokens [B,D].

        Arguments as in `decoder_states`.
        """
        states = self.decoder_states(
            tokens,
            encoded,
            positions=positions,
            segment_ids=segment_ids,
            encoder_segment_ids=encoder_segment_ids,
            deterministic=deterministic,
        )
        return self.embeddings.attend(states)

    def decoder_scores(self, states: jax.Array, labels: jax.Array, *, chunk: int) -> losses.Scores:
        """How well decoder states [B,D,M] predict int32 [B,D]; see `losses.chunked_score`."""
        return self.embeddings.score(states, labels, chunk=chunk)

    def decoder_states(
        self,
        tokens: jax.Array,
        encoded: jax.Array | None,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        encoder_segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Decoder states [B,D,M] of int32 tokens [B,D] over the encoder's [B,E,M].

        The decoder shares the encoder's embeddings (token type 0). A decoder segment attends to
        the encoder segment with the same id; segment 0 is padding on both sides.
        Without an encoder there is no `encoded`: tokens attend to preceding ones of their segment.
        """
        segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        cross_segments = None
        if encoded is not None:
            if encoder_segment_ids is None:
                encoder_segment_ids = jnp.ones(encoded.shape[:2], jnp.int32)
            cross_segments = Segments(segment_ids, encoder_segment_ids)
        context = DecoderContext(
            self_segments=Segments(segment_ids, segment_ids, causal=True),
            cross_segments=cross_segments,
            encoded=encoded,
        )
        x = self.embeddings(
            tokens,
            positions=_arange_like(tokens) if positions is None else positions,
            token_types=jnp.zeros_like(tokens),
            deterministic=deterministic,
        )
        return self.decoder(x, context=context, deterministic=deterministic)

    def init_cache(
        self,
        encoded: jax.Array,
        *,
        encoder_segment_ids: jax.Array | None = None,
        max_length: int,
        rows_per_prompt: int = 1,
    ) -> DecoderCache:
        """An empty cache for texts of `max_length` tokens over encoder states [P,E,M].

        `rows_per_prompt` texts share each prompt's keys and values: B = P * rows_per_prompt rows.
        """
        c = self.config
        prompts = encoded.shape[0]
        if encoder_segment_ids is None:
            encoder_segment_ids = jnp.ones(encoded.shape[:2], jnp.int32)
        rows = prompts * rows_per_prompt
        empty = jnp.zeros((rows, c.num_heads, max_length, c.head_dim), c.dtype)
        empty = nn.with_logical_constraint(empty, CACHE_AXES)
        return DecoderCache(
            layers=tuple(
                LayerCache(empty, empty, key, value)
                for key, value in self.decoder.project_cross(encoded)
            ),
            cross_mask=(encoder_segment_ids > 0)[:, None, None, :],
            lengths=jnp.zeros(rows, jnp.int32),
        )

    def extend(
        self, tokens: jax.Array, cache: DecoderCache, *, active: jax.Array | None = None
    ) -> tuple[jax.Array, DecoderCache]:
        """Append int32 tokens [B,T] to the cache: (decoder states [B,T,M], the new cache).

        The states equal `decoder_states` of the whole texts. Rows that are not `active` (bool [B],
        default: all) keep their length, and their states are meaningless. The caller keeps the
        active rows' lengths + T within the cache and the position table.
        """
        x = self.embeddings(
            tokens,
            positions=_arange_like(tokens) + cache.lengths[:, None],
            token_types=jnp.zeros_like(tokens),
            deterministic=True,
        )
        x, layers = self.decoder.step(x, cache)
        added = tokens.shape[1] if active is None else tokens.shape[1] * active.astype(jnp.int32)
        return x, DecoderCache(layers, cache.cross_mask, cache.lengths + added)

    def decode_step(
        self, tokens: jax.Array, cache: DecoderCache, *, active: jax.Array | None = None
    ) -> tuple[jax.Array, DecoderCache]:
        """`extend`, and float32 logits [B,T,V] of the token after each of `tokens` [B,T]."""
        states, cache = self.extend(tokens, cache, active=active)
        return self.embeddings.attend(states), cache


def cache_shardings(config: PlugConfig, partitioner: Partitioner) -> Any:
    """NamedShardings of a `DecoderCache`: rows over data and fsdp, heads over tensor."""
    keys_and_values: Any = partitioner.sharding(*CACHE_AXES)
    rows: Any = partitioner.batch_sharding
    layer = LayerCache(*[keys_and_values] * 4)
    return DecoderCache((layer,) * config.num_decoder_layers, rows, rows)


def _arange_like(tokens: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
