"""Repeated evaluation of a split."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from plug_jax.data.pipeline import pipeline
from plug_jax.training import evaluate as evaluate_lib
from plug_jax.training.evaluate import Evaluator
from tests import synthetic
from tests.training.program_runs import program_of, run_config, start, write_task


@pytest.mark.parametrize(
    ("keep", "most", "times_opened"),
    [(True, 1 << 28, 1), (True, 10_000, 3), (False, 1 << 28, 3)],
)
def test_every_scoring_is_of_the_whole_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool, most: int, times_opened: int
) -> None:
    """However often its data are read."""
    opened = []
    make_iterator = pipeline.make_iterator

    def counted(*args: Any, **kwargs: Any) -> Any:
        opened.append(1)
        return make_iterator(*args, **kwargs)

    monkeypatch.setattr(pipeline, "make_iterator", counted)
    monkeypatch.setattr(evaluate_lib, "_MOST_KEPT", most)
    data = dataclasses.replace(write_task(tmp_path, "evaluate"), shuffle=False, num_epochs=1)
    config = run_config(model=synthetic.tiny_config(num_decoder_layers=0, vocab_size=38))
    evaluator = Evaluator(
        config.model,
        config.objectives,
        data,
        config.partitioner,
        config.step,
        keep_batches=keep,
    )
    with program_of(config) as program:
        first, second = (start(dataclasses.replace(config, seed=s), program).params for s in (1, 2))
    evaluator.read_ahead()
    scores = [evaluator(params) for params in (first, second, first)]
    assert scores[0] == scores[2] != scores[1]
    assert len(opened) == times_opened
    total = sum(one.weight * scores[0][f"{one.name}_loss"] for one in config.objectives)
    assert scores[0]["loss"] == pytest.approx(total, rel=1e-6) and total > 0
    assert evaluator.metric_names() == scores[0].keys()
