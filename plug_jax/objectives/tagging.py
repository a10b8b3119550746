"""Tagging: a tag for each token, such as the beginning or the inside of a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax

from plug_jax import losses
from plug_jax.data.features import Feature
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.metrics import Mean
from plug_jax.objectives.examples import Example
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.objective import count
from plug_jax.objectives.task_heads import TaskObjective, check_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tagging(TaskObjective):
    """Cross-entropy over `labels` at each token; rows may have several examples."""

    labels: tuple[str, ...]

    name: ClassVar[str] = "tagging"
    torch_class: ClassVar[str] = "BertForTokenClassification"
    torch_name: ClassVar[str] = "classifier"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self, self.labels)

    @property
    def width(self) -> int:
        """Number of tags."""
        return len(self.labels)

    @property
    def torch_labels(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    @property
    def features(self) -> tuple[Feature, ...]:
        """The text, and the tag of each token with weight 1, or 0 if it has none."""
        return (
            *super().features,
            Feature("tagging_labels", len(self.labels)),
            Feature("tagging_weights", 2),
        )

    def predictions(self, batch: Batch) -> jax.Array:
        """The tagged tokens."""
        return count(batch["tagging_weights"])

    def distributions(self, forward: Forward) -> tuple[jax.Array, jax.Array]:
        """Logits [B,E,C], and weights [B,E]."""
        return self.logits(forward, forward.encoded), forward.batch["tagging_weights"]

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """`tagging_loss`, and `tagging_accuracy` per token."""
        logits, weights = self.distributions(forward)
        scores = losses.score(logits, forward.batch["tagging_labels"])
        return {
            "tagging_loss": Mean(*losses.weighted(scores.losses, weights)),
            "tagging_accuracy": Mean(*losses.weighted(scores.hits, weights)),
        }

    def outputs(self, forward: Forward) -> dict[str, jax.Array]:
        """`tagging_logits` [B,E,C]."""
        return {"tagging_logits": self.distributions(forward)[0]}

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """The tags except the commonest, as token/tag."""
        tags = [self.labels[i] for i in example["tagging_labels"]]
        known = example["tagging_weights"] > 0
        tokens = example["encoder_input_tokens"]
        shown = (
            f"{vocabulary.id_to_piece(int(token))}/{tag}"
            for token, tag, real in zip(tokens, tags, known, strict=True)
            if real and tag != "O"
        )
        yield "tags", " ".join(shown) or "none"
