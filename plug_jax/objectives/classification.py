"""Classification: one of a list of labels, from the state at [CLS]."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from plug_jax import losses
from plug_jax.data.features import Feature
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.metrics import Mean
from plug_jax.objectives.examples import Example
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.task_heads import TaskObjective, check_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(TaskObjective):
    """Cross-entropy over `labels`; rows may have several examples, each with its [CLS].

    With `label_smoothing` e the target is 1 - e at the label plus e / C at each of C labels. With
    `class_weights`, one per label, the loss is the mean weighted by the label's weight.
    """

    labels: tuple[str, ...]
    pooler: bool = True
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    name: ClassVar[str] = "classification"
    torch_class: ClassVar[str] = "BertForSequenceClassification"
    torch_name: ClassVar[str] = "classifier"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self, self.labels)
        if not 0 <= self.label_smoothing < 1:
            raise PlugError(
                f"Classification.label_smoothing must be in [0, 1), got {self.label_smoothing}"
            )
        weights = self.class_weights
        if weights and (len(weights) != len(self.labels) or not all(0 < w < 1e30 for w in weights)):
            raise PlugError(
                f"Classification.class_weights must be a positive number for each of the "
                f"{len(self.labels)} labels {', '.join(self.labels)}, got {weights}"
            )

    @property
    def width(self) -> int:
        """Number of labels."""
        return len(self.labels)

    @property
    def torch_labels(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    @property
    def features(self) -> tuple[Feature, ...]:
        """The text, and at its [CLS] the label with weight 1, or 0 if it has none."""
        return (
            *super().features,
            Feature("classification_labels", len(self.labels)),
            Feature("classification_weights", 2),
        )

    def _weights(self, batch: Batch) -> jax.Array:
        weights = batch["classification_weights"].astype(jnp.float32)
        if self.class_weights:
            weights *= jnp.asarray(self.class_weights)[batch["classification_labels"]]
        return weights

    def predictions(self, batch: Batch) -> jax.Array:
        """The labelled examples, each with its weight."""
        return jnp.sum(self._weights(batch))

    def distributions(self, forward: Forward) -> tuple[jax.Array, jax.Array]:
        """Logits [B,E,C], and weights [B,E]."""
        return self.logits(forward, forward.encoded), self._weights(forward.batch)

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """`classification_loss` and `classification_accuracy`."""
        logits, weights = self.distributions(forward)
        batch = forward.batch
        scores = losses.score(logits, batch["classification_labels"])
        loss, smoothing = scores.losses, self.label_smoothing
        if smoothing:
            uniform = logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
            loss = (1 - smoothing) * loss + smoothing * uniform
        return {
            "classification_loss": Mean(*losses.weighted(loss, weights)),
            "classification_accuracy": Mean(
                *losses.weighted(scores.hits, batch["classification_weights"])
            ),
        }

    def outputs(self, forward: Forward) -> dict[str, jax.Array]:
        """`classification_logits` [B,C]."""
        return {"classification_logits": self.logits(forward, forward.encoded[:, 0])}

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """The label."""
        labels = example["classification_labels"][example["classification_weights"] > 0]
        yield "label", ", ".join(self.labels[label] for label in labels) or "none"
