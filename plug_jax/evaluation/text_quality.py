"""How much texts that a model wrote look like real ones, by counting."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from plug_jax.evaluation.ngram_models import KneserNey


@dataclasses.dataclass(frozen=True)
class TextQuality:
    """Of several texts together.

    A model that repeats itself has few different pairs, one that strings characters together a
    high perplexity; texts of a person are what to compare both with.
    """

    ngram_perplexity: float
    distinct_2: float  # different pairs of neighbouring ids over all pairs, in [0, 1]


def text_quality(ngrams: KneserNey, texts: Sequence[tuple[np.ndarray, np.ndarray]]) -> TextQuality:
    """Of int [n] texts, each given with what it follows, int [m]."""
    pairs = np.concatenate([np.stack((text[:-1], text[1:])) for _, text in texts], axis=1)
    different = np.unique(pairs, axis=1).shape[1]
    return TextQuality(ngrams.perplexity(texts), different / pairs.shape[1])
