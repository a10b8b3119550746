"""Multiple choice: which of several texts, from the states at their [CLS]."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp

from plug_jax import losses
from plug_jax.data.features import Feature
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.metrics import Mean
from plug_jax.objectives.examples import Example
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.objective import count
from plug_jax.objectives.task_heads import OUT_OF_QUESTION, TaskObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(TaskObjective):
    """Cross-entropy over the `choices` texts of an example, equal parts of a row.

    Row length N * L: text n has the tokens from n * L on, positions 0 to L - 1 and segment id
    n + 1, 0 at padding. A text of only padding is no choice.
    """

    choices: int
    pooler: bool = True

    name: ClassVar[str] = "choice"
    packs: ClassVar[bool] = False
    torch_class: ClassVar[str] = "BertForMultipleChoice"
    torch_name: ClassVar[str] = "classifier"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choices < 2:
            raise PlugError(f"MultipleChoice.choices must be 2 or more, got {self.choices}")

    @property
    def width(self) -> int:
        """One score per text."""
        return 1

    @property
    def texts_a_row(self) -> int:
        """The number of choices."""
        return self.choices

    @property
    def features(self) -> tuple[Feature, ...]:
        """The texts; at the first [CLS] the right one's index, with weight 1 or 0."""
        return (
            *super().features,
            Feature("encoder_segment_ids", self.choices + 1),
            Feature("encoder_positions", 2**31 - 1),
            Feature("choice_labels", self.choices),
            Feature("choice_weights", 2),
        )

    def predictions(self, batch: Batch) -> jax.Array:
        """The labelled examples."""
        return count(batch["choice_weights"])

    def distributions(self, forward: Forward) -> tuple[jax.Array, jax.Array]:
        """Logits [B,N], and weights [B]."""
        segments = forward.batch["encoder_segment_ids"]
        rows = len(segments)
        at_cls = forward.encoded.reshape(rows, self.choices, -1, forward.config.hidden_size)[
            :, :, 0
        ]
        present = segments.reshape(rows, self.choices, -1)[:, :, 0] > 0
        logits = jnp.where(present, self.logits(forward, at_cls)[..., 0], OUT_OF_QUESTION)
        return logits, forward.batch["choice_weights"][:, 0]

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """`choice_loss` and `choice_accuracy`."""
        logits, weights = self.distributions(forward)
        scores = losses.score(logits, forward.batch["choice_labels"][:, 0])
        return {
            "choice_loss": Mean(*losses.weighted(scores.losses, weights)),
            "choice_accuracy": Mean(*losses.weighted(scores.hits, weights)),
        }

    def outputs(self, forward: Forward) -> dict[str, jax.Array]:
        """`choice_logits` [B,N]."""
        return {"choice_logits": self.distributions(forward)[0]}

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """The right choice."""
        labels = example["choice_labels"][example["choice_weights"] > 0]
        yield "choice", ", ".join(map(str, labels)) or "none, or of another text of the row"
