"""Regression: a number, from the state at [CLS]."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax

from plug_jax import losses
from plug_jax.data.features import Feature
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.metrics import Mean
from plug_jax.objectives.examples import Example
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.objective import count
from plug_jax.objectives.task_heads import TaskObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(TaskObjective):
    """The mean squared error; rows may have several examples, each with its [CLS]."""

    pooler: bool = True

    name: ClassVar[str] = "regression"
    torch_class: ClassVar[str] = "BertForSequenceClassification"
    torch_name: ClassVar[str] = "classifier"

    @property
    def width(self) -> int:
        """One number."""
        return 1

    @property
    def torch_labels(self) -> tuple[str, ...]:
        """One: with more, transformers would treat the numbers as classes."""
        return ("value",)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The text, and at its [CLS] the number with weight 1, or 0 if it has none."""
        return (
            *super().features,
            Feature("regression_targets", dtype="float32"),
            Feature("regression_weights", 2),
        )

    def predictions(self, batch: Batch) -> jax.Array:
        """The examples with a number."""
        return count(batch["regression_weights"])

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """`regression_loss`."""
        values = self.logits(forward, forward.encoded)[..., 0]
        errors = (values - forward.batch["regression_targets"]) ** 2
        weights = forward.batch["regression_weights"]
        return {"regression_loss": Mean(*losses.weighted(errors, weights))}

    def outputs(self, forward: Forward) -> dict[str, jax.Array]:
        """`regression_values` [B]."""
        return {"regression_values": self.logits(forward, forward.encoded[:, 0])[..., 0]}

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """`regression_rmse`, the root of the loss."""
        loss = values.get("regression_loss")
        return {} if loss is None else {"regression_rmse": loss**0.5}

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """The number."""
        targets = example["regression_targets"][example["regression_weights"] > 0]
        yield "target", ", ".join(f"{target:g}" for target in targets) or "none"
