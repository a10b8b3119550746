"""The embedding module shared by encoder and decoder."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax import losses
from plug_jax.config import PlugConfig
from plug_jax.models.layers import ACTIVATION_EMBED, Dropout, layer_norm, partitioned_normal
from plug_jax.ops.linear import add_bias, linear


class Embeddings(nn.Module):
    """LayerNorm(word + position + token type), and the tied output projection."""

    config: PlugConfig

    def setup(self) -> None:
        """Declare the three tables and the norm."""
        c = self.config
        self.word_embeddings = self._table("word_embeddings", c.padded_vocab_size, "vocab")
        self.position_embeddings = self._table("position_embeddings", c.max_positions, "position")
        self.token_type_embeddings = self._table("token_type_embeddings", c.num_token_types, None)
        self.layer_norm = layer_norm(c)
        self.dropout = Dropout(c.dropout_rate)

    def _table(self, name: str, rows: int, axis: str | None) -> jax.Array:
        init = partitioned_normal(self.config.init_std, (axis, "embed"))
        return self.param(name, init, (rows, self.config.hidden_size))

    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array,
        token_types: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """int32 [B,S] each -> [B,S,M] in the compute dtype."""
        # Look up whole rows: if rows were sharded over `embed`, GSPMD would make every device look
        # up all devices' tokens, and gather the activations.
        word, position, token_type = (
            nn.with_logical_constraint(table, (axis, None))
            for table, axis in (
                (self.word_embeddings, "vocab"),
                (self.position_embeddings, "position"),
                (self.token_type_embeddings, None),
            )
        )
        x = (
            jnp.take(word, tokens, axis=0)
            + jnp.take(position, positions, axis=0)
            + jnp.take(token_type, token_types, axis=0)
        )
        x = self.layer_norm(x).astype(self.config.dtype)
        x = self.dropout(x, deterministic=deterministic)
        return nn.with_logical_constraint(x, ACTIVATION_EMBED)

    def attend(self, hidden: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """float32 logits [B,S,V] (V padded) from hidden [B,S,M], plus an optional bias [V]."""
        return self._logits(self.word_embeddings, bias, hidden)

    def score(
        self, hidden: jax.Array, labels: jax.Array, bias: jax.Array | None = None, *, chunk: int
    ) -> losses.Scores:
        """How well hidden [B,P,M] predicts int32 labels [B,P]; see `losses.chunked_score`."""
        # Gather once, before the chunks; the vocabulary stays sharded.
        table = nn.with_logical_constraint(self.word_embeddings, ("vocab", None))
        project = functools.partial(self._logits, table, bias)
        return losses.chunked_score(project, hidden, labels, chunk=chunk)

    def _logits(self, table: jax.Array, bias: jax.Array | None, hidden: jax.Array) -> jax.Array:
        dtype = self.config.dtype
        logits = linear(
            hidden.astype(dtype),
            table.astype(dtype),
            (((2,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return nn.with_logical_constraint(
            logits if bias is None else add_bias(logits, bias),
            ("activation_batch", "activation_length", "activation_vocab"),
        )
