"""The sentence structural objective: does B follow A, precede it, or come from elsewhere?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import numpy as np

from plug_jax import losses
from plug_jax.config import PlugConfig
from plug_jax.data import features
from plug_jax.data.features import ENCODER, Feature
from plug_jax.data.preprocessors.sentence_order import (
    FOLLOWS,
    OTHER_DOCUMENT,
    PRECEDES,
    sentence_pairs,
)
from plug_jax.data.task_settings import AskedLengths, TaskSettings
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.metrics import Mean
from plug_jax.models.flops import RowShape
from plug_jax.models.torch_tensors import Entry, linear
from plug_jax.objectives.examples import Example
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.objective import Objective, count
from plug_jax.objectives.shares import Share

LABELS = {
    OTHER_DOCUMENT: "0: B is from another document",
    FOLLOWS: "1: B follows A",
    PRECEDES: "2: B precedes A",
}


class SentenceStructural(Objective):
    """One of three labels for a pair of segments, from the state at its [CLS] (StructBERT, 2.3)."""

    name: ClassVar[str] = "sentence"
    stage: ClassVar[int | None] = 1
    segment_names: ClassVar[Mapping[int, str]] = {0: "A", 1: "B"}
    tensors: ClassVar[tuple[Entry, ...]] = (
        *linear("pooler", "bert.pooler.dense"),
        *linear("sentence_head", "cls.seq_relationship"),
    )

    @property
    def features(self) -> tuple[Feature, ...]:
        """The pair, and its label with a weight of 1 at its [CLS]."""
        return (*features.ENCODER_TEXT, *features.SENTENCE_STRUCTURAL)

    def problem(self, config: PlugConfig) -> str | None:
        """It needs a logit for each label; BERT's head has two."""
        if config.num_sentence_classes >= len(LABELS):
            return None
        return (
            f"the objective SentenceStructural has {len(LABELS)} labels, and this model's sentence "
            f"head {config.num_sentence_classes} (PlugConfig.num_sentence_classes): convert it "
            f"with --fresh sentence_head --num_sentence_classes={len(LABELS)}, or set other "
            "OBJECTIVES"
        )

    def predictions(self, batch: Batch) -> jax.Array:
        """The pairs."""
        return count(batch["sentence_weights"])

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """`sentence_loss` and `sentence_accuracy`."""
        logits = forward.apply("sentence_logits", forward.encoded)
        scores = losses.score(logits, forward.batch["sentence_labels"])
        weights = forward.batch["sentence_weights"]
        return {
            "sentence_loss": Mean(*losses.weighted(scores.losses, weights)),
            "sentence_accuracy": Mean(*losses.weighted(scores.hits, weights)),
        }

    def flops(self, config: PlugConfig, rows: RowShape) -> Mapping[str, int]:
        """The classifier, and the pooler if there is one, at every position of a row."""
        hidden = config.hidden_size
        a_token = hidden * config.num_sentence_classes + (hidden**2 if config.use_pooler else 0)
        return {"sentence_head": 2 * rows.batch_size * rows.encoder * a_token}

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """The labels that count."""
        labels = example["sentence_labels"][example["sentence_weights"] > 0].tolist()
        yield "label", ", ".join(LABELS.get(label, str(label)) for label in labels) or "none"

    def asked_lengths(self, settings: TaskSettings) -> dict[str, AskedLengths]:
        """The maximum length of pairs."""
        longest = settings.get(sentence_pairs, "max_length")
        return {} if longest is None else {ENCODER: AskedLengths(longest=longest)}

    def tally(self, vocabulary: PlugVocabulary, settings: TaskSettings) -> _LabelTally:
        """How often each label occurs."""
        return _LabelTally(equal=settings.uses(sentence_pairs))


class _LabelTally:
    """Counts of the labels; `equal`: whether they should be equally frequent."""

    def __init__(self, *, equal: bool) -> None:
        self._equal = equal
        self._counts = np.zeros(len(LABELS), np.int64)

    def add(self, flat: Example, sizes: Mapping[str, np.ndarray]) -> None:
        labels = flat["sentence_labels"][flat["sentence_weights"] > 0]
        counts = np.bincount(labels, minlength=len(self._counts))
        self._counts = np.pad(self._counts, (0, len(counts) - len(self._counts))) + counts

    def shares(self) -> Iterator[Share]:
        for label, number in enumerate(self._counts.tolist()):
            target = (1 / len(LABELS) if label in LABELS else 0.0) if self._equal else None
            yield Share(
                f"label_{label}", f"label {LABELS.get(label, str(label))}", number,
                int(self._counts.sum()), "labels", target,
                "labels are drawn independently, except that a group of one sentence can only "
                "get label 0, and one without a partner in another document only 1 or 2",
            )  # fmt: skip
