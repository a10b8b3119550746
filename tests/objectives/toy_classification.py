"""One of three classes from the state at [CLS], with a head of its own.

It reads the features of the sentence structural objective, so `synthetic.batch()` is a batch of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from plug_jax import losses
from plug_jax.config import PlugConfig
from plug_jax.data import features
from plug_jax.data.features import Feature
from plug_jax.metrics import Mean
from plug_jax.models.flops import RowShape
from plug_jax.models.layers import projection
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.objective import Objective, count


class ToyClassification(Objective):
    """An objective for trying fine-tuning techniques."""

    name: ClassVar[str] = "toy"

    @property
    def features(self) -> tuple[Feature, ...]:
        return (*features.ENCODER_TEXT, *features.SENTENCE_STRUCTURAL)

    def head(self, config: PlugConfig) -> nn.Module:
        return projection(config, 3, axes=("embed", None))

    def predictions(self, batch: Batch) -> jax.Array:
        return count(batch["sentence_weights"])

    def distributions(self, forward: Forward) -> tuple[jax.Array, jax.Array]:
        logits = forward.apply_head(self.name, self.head(forward.config), forward.encoded)
        return logits, forward.batch["sentence_weights"]

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        logits, weights = self.distributions(forward)
        scores = losses.score(logits, forward.batch["sentence_labels"])
        return {
            "toy_loss": Mean(*losses.weighted(scores.losses, weights)),
            "toy_accuracy": Mean(*losses.weighted(scores.hits, weights)),
        }

    def flops(self, config: PlugConfig, rows: RowShape) -> Mapping[str, int]:
        return {"toy_head": 2 * rows.batch_size * rows.encoder * config.hidden_size * 3}
