"""The embedding module that encoder and decoder share."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax.config import PlugConfig
from plug_jax.models.layers import ACTIVATION_EMBED, layer_norm, partitioned_normal


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
        self.dropout = nn.Dropout(c.dropout_rate)

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
        x = (
            jnp.take(self.word_embeddings, tokens, axis=0)
            + jnp.take(self.position_embeddings, positions, axis=0)
            + jnp.take(self.token_type_embeddings, token_types, axis=0)
        )
        x = self.layer_norm(x).astype(self.config.dtype)
        x = self.dropout(x, deterministic=deterministic)
        return nn.with_logical_constraint(x, ACTIVATION_EMBED)

    def attend(self, hidden: jax.Array) -> jax.Array:
        """Scores [B,S,V] (float32, V padded) of every vocabulary row against hidden [B,S,M]."""
        table = self.word_embeddings.astype(self.config.dtype)
        logits = jnp.einsum(
            "bsm,vm->bsv",
            hidden.astype(self.config.dtype),
            table,
            preferred_element_type=jnp.float32,
        )
        return nn.with_logical_constraint(
            logits, ("activation_batch", "activation_length", "activation_vocab")
        )
