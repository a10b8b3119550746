"""Predictions of fine-tuned runs for CLUE's test files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plug_jax.clue.records import Entity
from plug_jax.downstream.entity_format import EntityFormat
from plug_jax.errors import PlugError
from plug_jax.finetuning.ensembles import Method, check_alike, combine
from plug_jax.finetuning.runs import FineTunedRun

_TEST = "test"


def test_predictions(runs: Sequence[FineTunedRun], method: Method) -> dict[Any, Any]:
    """Predictions by test record id, for `plug_jax.clue.submission`.

    Several runs form an ensemble. Raises PlugError for runs of different kinds, or a duplicate id
    in the test file.
    """
    check_alike(runs)
    records = runs[0].records
    answers = records.answers(_TEST, combine([run.outputs(_TEST) for run in runs], method))
    predictions: dict[Any, Any] = {}
    for record, answer in zip(records.records(_TEST), answers, strict=True):
        if record.id in predictions:
            raise PlugError(f"{records.read(_TEST).path} has the id {record.id!r} twice")
        found = answer["prediction"]
        if isinstance(records.format, EntityFormat):
            found = [Entity(**one) for one in found]
        predictions[record.id] = found
    return predictions
