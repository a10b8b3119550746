"""Baselines against a worked example, and plots of the given values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from plug_jax.demo import baselines, plots


def test_worked_example() -> None:
    train = {
        "decoder_target_tokens": np.array([[0, 0, 0, 1, 9]]),
        "decoder_loss_weights": np.array([[1, 1, 1, 1, 0]]),
    }
    counts = baselines.decoder_token_counts([train], 2 + 8)[:2]
    assert counts.tolist() == [3, 1]
    held_out = {
        "decoder_target_tokens": np.array([[0, 1, 1]]),
        "decoder_loss_weights": np.array([[1, 1, 0]]),
        "encoder_original_tokens": np.array([[0, 0, 1, 1]]),
        "encoder_loss_weights": np.array([[1, 1, 1, 0]]),
    }
    got = baselines.context_free_baselines(counts, [held_out])
    assert got.unigram_perplexity == pytest.approx(
        math.exp(-(math.log(4 / 6) + math.log(2 / 6)) / 2)
    )
    assert got.unigram_perplexity == pytest.approx(2.12, abs=0.005)
    assert got.most_frequent_token_accuracy == pytest.approx(2 / 3)
    assert got.sentence_chance == pytest.approx(1 / 3)


def test_ngrams_read_the_end_of_the_encoder_s_text() -> None:
    def example(text: list[int], target: list[int]) -> dict[str, np.ndarray]:
        return {
            "encoder_original_tokens": np.array([8, *text, 9]),
            "decoder_target_tokens": np.array(target),
        }

    train = [example([0, 1, 2, 3], [0, 1, 2, 3, 0, 1, 2, 3]) for _ in range(9)]
    held_out = [example([0, 1], [2]), example([1, 2], [3])]
    models = {n: baselines.ngram_model(train, order=n, vocab_size=10) for n in (1, 2)}
    found = {n: baselines.ngram_perplexity(model, held_out) for n, model in models.items()}
    assert found[1] == pytest.approx(4.0, rel=0.1)  # four ids, equally frequent
    assert found[2] < 1.2  # only [SEP] separates it from its prediction


def test_plots_are_written(tmp_path: Path) -> None:
    records = [{"step": s, "split": "train", "mlm_loss": 5.0 - s} for s in range(3)]
    plots.plot_losses({"a": records, "b": records}, tmp_path / "l.png", marks={"a": (1, "here")})
    lengths = {"x": [3, 4, 5], "y": [9]}
    plots.plot_lengths(lengths, tmp_path / "h.png", bounds={"x": (3, 6), "y": (2, 12)})
    for name in ("l.png", "h.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
