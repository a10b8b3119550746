"""Baselines that use no context, or only a few tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from plug_jax.demo.ngram_models import KneserNey

Example = Mapping[str, np.ndarray]
Batches = Iterable[Example]


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Scores on the model's held-out positions."""

    unigram_perplexity: float  # of the decoder's targets
    most_frequent_token_accuracy: float  # at the masked positions
    sentence_chance: float


def decoder_token_counts(batches: Batches, vocab_size: int) -> np.ndarray:
    """Counts of ids among decoder targets: int64 [vocab_size], over the rows of all batches."""
    counts = np.zeros(vocab_size, np.int64)
    for batch in batches:
        targets = batch["decoder_target_tokens"][batch["decoder_loss_weights"] > 0]
        counts += np.bincount(targets, minlength=vocab_size)
    return counts


def context_free_baselines(
    train_counts: np.ndarray, held_out: Iterable[Mapping[str, np.ndarray]], *, classes: int = 3
) -> Baselines:
    """Baselines from training counts [V] on held-out stage-2 batches.

    The unigram model gives id i the probability (count + 1) / (total + V); the most frequent token
    is guessed at every masked position.

    Example: counts [3, 1] give probabilities 4/6 and 2/6, so held-out targets [0, 1] have the
    perplexity exp(-(ln 4/6 + ln 2/6) / 2) = 2.12; masked labels [0, 0, 1] are guessed with 2/3.
    """
    probabilities = (train_counts + 1) / (train_counts.sum() + len(train_counts))
    guess = int(np.argmax(train_counts))
    loss = targets = hits = masked = 0.0
    for batch in held_out:
        ids = batch["decoder_target_tokens"][batch["decoder_loss_weights"] > 0]
        loss -= float(np.log(probabilities[ids]).sum())
        targets += ids.size
        labels = batch["encoder_original_tokens"][batch["encoder_loss_weights"] > 0]
        hits += float((labels == guess).sum())
        masked += labels.size
    return Baselines(math.exp(loss / targets), hits / masked, 1 / classes)


def ngram_model(train: Iterable[Example], *, order: int, vocab_size: int) -> KneserNey:
    """Kneser-Ney n-grams from stage-2 examples, each feature int32 [n].

    The encoder's text and its target are counted as one text.
    """
    texts = (np.concatenate(_text_and_target(one)) for one in train)
    return KneserNey(texts, order=order, vocab_size=vocab_size)


def ngram_perplexity(model: KneserNey, held_out: Iterable[Example]) -> float:
    """Perplexity of the decoder's targets, with the end of the encoder's text as context."""
    return model.perplexity(map(_text_and_target, held_out))


def _text_and_target(example: Example) -> tuple[np.ndarray, np.ndarray]:
    # The encoder's text without its [CLS] and [SEP], and what follows.
    return example["encoder_original_tokens"][1:-1], example["decoder_target_tokens"]
