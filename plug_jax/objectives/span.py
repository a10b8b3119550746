"""Span extraction: start and end of an answer in a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax import losses
from plug_jax.data.features import Feature
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.metrics import Mean
from plug_jax.objectives.examples import Example
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.objective import count
from plug_jax.objectives.task_heads import OUT_OF_QUESTION, TaskObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span(TaskObjective):
    """The mean of two cross-entropies over a row's tokens: for the first and the last token.

    Without an answer, both targets are [CLS].
    """

    name: ClassVar[str] = "span"
    packs: ClassVar[bool] = False
    torch_class: ClassVar[str] = "BertForQuestionAnswering"
    torch_name: ClassVar[str] = "qa_outputs"

    @property
    def width(self) -> int:
        """Start and end."""
        return 2

    @property
    def features(self) -> tuple[Feature, ...]:
        """The text; 1 at the answer's first and last token, 0 everywhere if unknown."""
        return (*super().features, Feature("span_starts", 2), Feature("span_ends", 2))

    def predictions(self, batch: Batch) -> jax.Array:
        """The labelled examples."""
        return count(batch["span_starts"])

    def distributions(self, forward: Forward) -> tuple[jax.Array, jax.Array]:
        """Logits [B,2,E] over the tokens of a row, and weights [B,2]: an end is half of one."""
        batch = forward.batch
        logits = jnp.swapaxes(self.logits(forward, forward.encoded), 1, 2)
        logits = jnp.where(batch["encoder_segment_ids"][:, None] > 0, logits, OUT_OF_QUESTION)
        half = jnp.max(batch["span_starts"], axis=1) / 2
        return logits, jnp.stack([half, half], axis=1)

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """`span_loss`, and `span_accuracy`: both ends are right."""
        logits, weights = self.distributions(forward)
        batch = forward.batch
        labels = jnp.argmax(jnp.stack([batch["span_starts"], batch["span_ends"]], 1), axis=2)
        scores = losses.score(logits, labels)
        known = jnp.sum(weights, axis=1)
        return {
            "span_loss": Mean(*losses.weighted(jnp.mean(scores.losses, axis=1), known)),
            "span_accuracy": Mean(*losses.weighted(jnp.prod(scores.hits, axis=1), known)),
        }

    def outputs(self, forward: Forward) -> dict[str, jax.Array]:
        """`span_logits` [B,2,E]."""
        return {"span_logits": self.distributions(forward)[0]}

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """The answer."""
        starts, ends = (np.flatnonzero(example[f"span_{which}"]) for which in ("starts", "ends"))
        if not len(starts):
            yield "answer", "unknown"
            return
        first, last = int(starts[0]), int(ends[0])
        ids = example["encoder_input_tokens"][first : last + 1]
        yield "answer", vocabulary.decode(ids) if last else "none in this window"
