"""Quality of generated texts by n-gram perplexity and distinct-2."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from plug_jax.demo.ngram_models import KneserNey


@dataclasses.dataclass(frozen=True)
class TextQuality:
    """The quality of several texts together.

    A repetitive model has few distinct pairs, one that produces random characters a high
    perplexity; compare both with human texts.
    """

    ngram_perplexity: float
    distinct_2: float  # distinct pairs of neighbouring ids over all pairs, in [0, 1]


def text_quality(ngrams: KneserNey, texts: Sequence[tuple[np.ndarray, np.ndarray]]) -> TextQuality:
    """Quality of int [n] texts, each with its preceding text, int [m]."""
    pairs = np.concatenate([np.stack((text[:-1], text[1:])) for _, text in texts], axis=1)
    different = np.unique(pairs, axis=1).shape[1]
    return TextQuality(ngrams.perplexity(texts), different / pairs.shape[1])
