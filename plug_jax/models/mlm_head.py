"""The masked-LM head, shared by the word structural objective."""

from __future__ import annotations

import flax.linen as nn
import jax

from plug_jax import losses
from plug_jax.config import PlugConfig
from plug_jax.models.embeddings import Embeddings
from plug_jax.models.layers import layer_norm, partitioned_zeros, projection
from plug_jax.ops.gelu import gelu


class MlmHead(nn.Module):
    """LN(gelu(dense h)) . word_embeddings^T + bias, for masked and for shuffled tokens alike."""

    config: PlugConfig

    def setup(self) -> None:
        """Declare the transform and the output bias."""
        c = self.config
        self.dense = projection(c, c.hidden_size, axes=("embed", "mlp"))
        self.layer_norm = layer_norm(c)
        self.bias = self.param("bias", partitioned_zeros(("vocab",)), (c.padded_vocab_size,))

    def __call__(self, hidden: jax.Array, embeddings: Embeddings) -> jax.Array:
        """[B,P,M] -> float32 logits [B,P,V] (V padded)."""
        return embeddings.attend(self._transform(hidden), self.bias)

    def score(
        self, hidden: jax.Array, labels: jax.Array, embeddings: Embeddings, *, chunk: int
    ) -> losses.Scores:
        """How well [B,P,M] predicts int32 labels [B,P]; see `losses.chunked_score`."""
        return embeddings.score(self._transform(hidden), labels, self.bias, chunk=chunk)

    def _transform(self, hidden: jax.Array) -> jax.Array:
        return self.layer_norm(gelu(self.dense(hidden)))
