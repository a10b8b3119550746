"""PlugModel: the StructBERT encoder, its heads, and the PALM decoder plugged onto it.

Axis letters: B batch, E encoder length, D decoder length, P predictions a row, M model,
V padded vocabulary, C sentence classes, L layers, H heads, K head size.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax import losses
from plug_jax.config import PlugConfig
from plug_jax.models.attention import Segments
from plug_jax.models.decoder import Decoder, DecoderContext, LayerCache
from plug_jax.models.embeddings import Embeddings
from plug_jax.models.encoder import Encoder
from plug_jax.models.layers import projection
from plug_jax.models.mlm_head import MlmHead
from plug_jax.ops import kv_cache
from plug_jax.ops.kv_cache import DecoderCache

# Of the decoder's keys and values [L,2,B,S,H,K]: rows and heads lie where they are computed.
CACHE_AXES = ("layers", None, "activation_batch", None, "activation_heads", None)


class PlugModel(nn.Module):
    """The whole model; with `num_decoder_layers=0` the encoder and its heads alone (stage 1).

    Call its methods with `model.apply({"params": params}, ..., method="encode")`; a call that is
    not deterministic needs `rngs={"dropout": key}`.
    """

    config: PlugConfig

    def setup(self) -> None:
        """Declare the modules that the config asks for."""
        c = self.config
        self.embeddings = Embeddings(c)
        self.encoder = Encoder(c)
        self.mlm_head = MlmHead(c)
        if c.use_pooler:
            self.pooler = projection(c, c.hidden_size, axes=("embed", "mlp"))
        self.sentence_head = projection(c, c.num_sentence_classes, axes=("embed", None))
        if c.num_decoder_layers:
            self.decoder = Decoder(c)

    def __call__(self, tokens: jax.Array) -> None:
        """Touch every parameter: the initialiser's entry point. int32 [B,S], S >= 1."""
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
        deterministic: bool = True,
    ) -> jax.Array:
        """Contextual states [B,E,M] of int32 tokens [B,E].

        positions (default: 0, 1, ...), token_types (default: 0) and segment_ids (default: one
        segment a row; 0 is padding, whose output carries no meaning) are int32 [B,E].
        """
        segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        x = self.embeddings(
            tokens,
            positions=_arange_like(tokens) if positions is None else positions,
            token_types=jnp.zeros_like(tokens) if token_types is None else token_types,
            deterministic=deterministic,
        )
        return self.encoder(x, segment_ids=segment_ids, deterministic=deterministic)

    def mlm_logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [B,P,V] over the original token, from encoder states [B,P,M]."""
        return self.mlm_head(hidden, self.embeddings)

    def mlm_scores(self, hidden: jax.Array, labels: jax.Array, *, chunk: int) -> losses.Scores:
        """How well `mlm_logits` of [B,P,M] predict int32 [B,P]; see `losses.chunked_score`."""
        return self.mlm_head.score(hidden, labels, self.embeddings, chunk=chunk)

    def pool(self, hidden: jax.Array) -> jax.Array:
        """tanh(dense h), [...,M] -> [...,M]: BERT's pooler; the identity where there is none."""
        return nn.tanh(self.pooler(hidden)) if self.config.use_pooler else hidden

    def sentence_logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [...,C], from encoder states at [CLS] [...,M]."""
        return self.sentence_head(self.pool(hidden)).astype(jnp.float32)

    def decode(
        self,
        tokens: jax.Array,
        encoded: jax.Array,
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
        encoded: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        encoder_segment_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Decoder states [B,D,M] of int32 tokens [B,D] over the encoder's [B,E,M].

        The decoder shares the encoder's embeddings (token type 0). A decoder segment attends to
        the encoder segment of the same id; segment 0 is padding on both sides.
        """
        segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        if encoder_segment_ids is None:
            encoder_segment_ids = jnp.ones(encoded.shape[:2], jnp.int32)
        context = DecoderContext(
            self_visible=Segments(segment_ids, segment_ids, causal=True),
            cross_visible=Segments(segment_ids, encoder_segment_ids),
            encoded=encoded,
        )
        x = self.embeddings(
            tokens,
            positions=_arange_like(tokens) if positions is None else positions,
            token_types=jnp.zeros_like(tokens),
            deterministic=deterministic,
        )
        x, _ = self.decoder(x, context=context, deterministic=deterministic)
        return x

    def start_cache(
        self,
        encoded: jax.Array,
        *,
        encoder_segment_ids: jax.Array | None = None,
        max_length: int,
    ) -> DecoderCache:
        """An empty cache for `max_length` tokens over encoder states [B,E,M], one segment a row."""
        c = self.config
        if encoder_segment_ids is None:
            encoder_segment_ids = jnp.ones(encoded.shape[:2], jnp.int32)
        shape = (c.num_decoder_layers, 2, encoded.shape[0], max_length, c.num_heads, c.head_dim)
        return DecoderCache(
            self_key_value=nn.with_logical_constraint(jnp.zeros(shape, c.dtype), CACHE_AXES),
            cross_key_value=nn.with_logical_constraint(
                self.decoder.project_cross(encoded), CACHE_AXES
            ),
            cross_mask=(encoder_segment_ids > 0)[:, None, None, :],
            length=jnp.zeros((), jnp.int32),
        )

    def decode_step(self, tokens: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        """Append int32 tokens [B,T] to the cache: (float32 logits [B,T,V], the new cache).

        The same as `decode` on the whole prefix. The caller keeps cache.length + T within the
        cache's and the position table's length.
        """
        num_new, cache_length = tokens.shape[1], cache.self_key_value.shape[3]
        context = DecoderContext(
            self_visible=kv_cache.visible(num_new, cache_length, cache.length),
            cross_visible=cache.cross_mask,
            cache_index=cache.length,
        )
        x = self.embeddings(
            tokens,
            positions=_arange_like(tokens) + cache.length,
            token_types=jnp.zeros_like(tokens),
            deterministic=True,
        )
        x, self_key_value = self.decoder(
            x,
            context=context,
            cache=LayerCache(cache.self_key_value, cache.cross_key_value),
            deterministic=True,
        )
        assert self_key_value is not None
        self_key_value = nn.with_logical_constraint(self_key_value, CACHE_AXES)
        cache = dataclasses.replace(
            cache, self_key_value=self_key_value, length=cache.length + num_new
        )
        return self.embeddings.attend(x), cache


def _arange_like(tokens: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
