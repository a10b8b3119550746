"""Repetitive and meaningless texts are distinguished from real ones."""

from __future__ import annotations

import numpy as np
import pytest

from plug_jax.demo.ngram_models import KneserNey
from plug_jax.demo.text_quality import text_quality


def test_worked_example() -> None:
    """The pairs are 12, 21, 12 and 34: three distinct of four, none across two texts."""
    ngrams = KneserNey([np.arange(6)], order=1, vocab_size=6)
    none = np.array([], int)
    found = text_quality(ngrams, [(none, np.array([1, 2, 1, 2])), (none, np.array([3, 4]))])
    assert found.distinct_2 == 3 / 4
    assert found.ngram_perplexity == pytest.approx(6)  # six ids, each once


def test_what_is_wrong_shows() -> None:
    rng = np.random.default_rng(0)
    vocabulary = np.repeat(np.arange(60).reshape(-1, 3), 2, axis=0)  # words of three ids

    def write(words: int) -> np.ndarray:
        return np.concatenate([vocabulary[i] for i in rng.integers(len(vocabulary), size=words)])

    ngrams = KneserNey([write(4000)], order=3, vocab_size=60)
    context = write(2)

    def quality(text: np.ndarray) -> tuple[float, float]:
        found = text_quality(ngrams, [(context, text)])
        return found.ngram_perplexity, found.distinct_2

    real, scrambled = write(60), rng.integers(60, size=180)
    repeated = np.tile(vocabulary[0], 60)
    assert quality(scrambled)[0] > 3 * quality(real)[0]
    assert quality(repeated)[1] < quality(real)[1] / 3
