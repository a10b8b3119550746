"""PALM's objective: the decoder continues the encoder's text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import numpy as np

from plug_jax import losses
from plug_jax.config import PlugConfig
from plug_jax.data import features
from plug_jax.data.features import DECODER, ENCODER, Feature
from plug_jax.data.preprocessors.lengths import sample_lengths
from plug_jax.data.task_settings import AskedLengths, TaskSettings
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.metrics import Mean
from plug_jax.models.flops import RowShape, decoder_flops, vocabulary_flops
from plug_jax.models.torch_tensors import DECODER_ENTRIES, Entry
from plug_jax.objectives.examples import Example, Section, spans
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.objective import Objective, count
from plug_jax.objectives.shares import NO_CHANCE, Share

_LARGEST_EXPONENT = 700.0  # for exp in float64


class Continuation(Objective):
    """Predicts each token of the continuation from the encoder's text and preceding tokens."""

    name: ClassVar[str] = "decoder"
    stage: ClassVar[int | None] = 2
    text_features: ClassVar[tuple[str, ...]] = ("decoder_target_tokens",)
    tensors: ClassVar[tuple[Entry, ...]] = DECODER_ENTRIES

    @property
    def features(self) -> tuple[Feature, ...]:
        """The encoder's text; the decoder's inputs, targets, and their weights."""
        return (*features.ENCODER_TEXT, *features.CONTINUATION)

    def problem(self, config: PlugConfig) -> str | None:
        """It needs a decoder."""
        if config.num_decoder_layers:
            return None
        return (
            "the objective Continuation needs a decoder, and this model has none "
            "(PlugConfig.num_decoder_layers is 0): use runs/palm_pretrain.gin, or other OBJECTIVES"
        )

    def predictions(self, batch: Batch) -> jax.Array:
        """The tokens predicted."""
        return count(batch["decoder_loss_weights"])

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """`decoder_loss` and `decoder_accuracy`."""
        scores, weights = self.scores(forward)
        return {
            "decoder_loss": Mean(*losses.weighted(scores.losses, weights)),
            "decoder_accuracy": Mean(*losses.weighted(scores.hits, weights)),
        }

    def scores(self, forward: Forward) -> tuple[losses.Scores, jax.Array]:
        """The scores of the decoder's tokens [B,D], and their int32 weights [B,D]."""
        batch = forward.batch
        states = forward.apply(
            "decoder_states",
            batch["decoder_input_tokens"],
            forward.context,
            dropout=True,
            positions=batch["decoder_positions"],
            segment_ids=batch["decoder_segment_ids"],
            encoder_segment_ids=batch["encoder_segment_ids"],
        )
        labels = batch["decoder_target_tokens"]
        scores = forward.apply("decoder_scores", states, labels, chunk=forward.chunk)
        return scores, batch["decoder_loss_weights"]

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """`decoder_perplexity` = exp(decoder_loss)."""
        loss = values.get("decoder_loss")
        return (
            {} if loss is None else {"decoder_perplexity": math.exp(min(loss, _LARGEST_EXPONENT))}
        )

    def flops(self, config: PlugConfig, rows: RowShape) -> Mapping[str, int]:
        """The decoder, its attention, and its logits."""
        logits = vocabulary_flops(config, rows.batch_size * rows.decoder)
        return {**decoder_flops(config, rows), "decoder_logits": logits}

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """The number of predicted tokens, if not all."""
        weights = example["decoder_loss_weights"] > 0
        if not weights.all():
            yield "predicted", f"{weights.sum()} of {weights.size} decoder tokens"

    def sections(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[Section]:
        """The decoder's targets, and its inputs if they are not the shifted targets."""
        inputs = example["decoder_input_tokens"].tolist()
        targets = example["decoder_target_tokens"].tolist()
        yield Section("decoder", tuple(spans(targets, vocabulary)))
        if inputs != [vocabulary.cls_id, *targets[:-1]]:
            yield Section("its inputs", tuple(spans(inputs, vocabulary)))

    def asked_lengths(self, settings: TaskSettings) -> dict[str, AskedLengths]:
        """Uniform lengths of both sides."""
        shortest = settings.get(sample_lengths, "min_length")
        longest = settings.get(sample_lengths, "max_length")
        asked = AskedLengths(shortest, longest, uniform=settings.uses(sample_lengths))
        return {ENCODER: asked, DECODER: asked}

    def tally(self, vocabulary: PlugVocabulary, settings: TaskSettings) -> _StepTally:
        """Checks that inputs are the targets shifted by one."""
        return _StepTally(vocabulary.cls_id)


def prompt_and_target(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the encoder's original text, and of its continuation: int32 [e] and [d]."""
    written = example.get("encoder_original_tokens", example["encoder_input_tokens"])
    return written, example["decoder_target_tokens"]


class _StepTally:
    """Counts inputs that differ from the preceding target."""

    def __init__(self, cls_id: int) -> None:
        self._cls_id = cls_id
        self._unshifted = self._positions = 0

    def add(self, flat: Example, sizes: Mapping[str, np.ndarray]) -> None:
        targets = flat["decoder_target_tokens"]
        before = np.roll(targets, 1)
        before[np.cumsum(sizes[DECODER]) - sizes[DECODER]] = self._cls_id
        self._unshifted += int((flat["decoder_input_tokens"] != before).sum())
        self._positions += targets.size

    def shares(self) -> Iterator[Share]:
        yield Share(
            "unshifted", "decoder inputs out of step", self._unshifted, self._positions,
            "decoder positions", 0.0, NO_CHANCE,
        )  # fmt: skip
