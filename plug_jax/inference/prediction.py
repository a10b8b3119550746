"""Answers of a fine-tuned model to every row of an input: labels, choices, spans, entities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from plug_jax.checkpoints.saved_model import SavedModel
from plug_jax.downstream.examples import Examples
from plug_jax.downstream.formats import Outputs
from plug_jax.downstream.kinds import described_format
from plug_jax.downstream.records import AnyRecord
from plug_jax.inference.fine_tuned import Example, FineTunedModel, text_length
from plug_jax.inference.jobs import Answer, Job
from plug_jax.inference.model import NoNumbersError
from plug_jax.inference.rows import Row


@dataclasses.dataclass(frozen=True)
class Asked:
    """A row as a record, and its examples: one, or the windows of a context."""

    record: AnyRecord
    made: Examples
    examples: Sequence[Example]
    left_out: int  # characters for which they have no room


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Adds a `prediction` and its scores to each row, by the checkpoint's format.

    Rows are answered independently: blanks of a line (CHID) do not share their candidates. Texts
    are cut as in training; the answer counts the characters under "left_out".
    """

    ANSWERS: ClassVar[tuple[str, ...]] = ("prediction", "probabilities", "nbest", "left_out")

    def settings(self) -> Mapping[str, Any]:
        """Empty: everything that answers depend on is in the checkpoint."""
        return {"work": "predict"}

    def check(self, saved: SavedModel) -> None:
        """PlugError for a checkpoint that was not fine-tuned."""
        described_format(saved.task)

    def load(self, saved: SavedModel, job: Job) -> FineTunedModel:
        """The checkpoint's encoder and head."""
        return FineTunedModel.load(
            saved.path,
            job.partitioner,
            job.dtype,
            int8=job.int8,
            batch_size=job.batch_size,
            verify=job.verify_checkpoint,
        )

    def prepare(self, model: FineTunedModel, row: Row, index: int) -> Asked:
        """The row's examples; PlugError if a field is missing or of another type."""
        record = model.format.record(row.fields, index)
        made = model.format.examples([record], model.vocabulary)
        left_out = model.format.left_out(record, model.vocabulary)
        return Asked(record, made, model.examples(made), left_out)

    def size(self, item: Asked) -> tuple[int, ...]:
        """Number of encoder texts, and tokens of the longest."""
        texts = sum(len(example["encoder_segment_ids"]) for example in item.examples)
        return texts, max(map(text_length, item.examples))

    def answer(
        self, model: FineTunedModel, items: Sequence[Asked]
    ) -> list[Answer | NoNumbersError]:
        """The answer to each."""
        outputs = model.outputs([example for item in items for example in item.examples])
        ends = np.cumsum([len(item.examples) for item in items])
        answers: list[Answer | NoNumbersError] = []
        for item, end in zip(items, ends, strict=True):
            own = {name: of_all[end - len(item.examples) : end] for name, of_all in outputs.items()}
            answers.append(_answer(model, item, own))
        return answers


def _answer(model: FineTunedModel, item: Asked, outputs: Outputs) -> Answer | NoNumbersError:
    if not all(np.isfinite(values).all() for values in outputs.values()):
        return NoNumbersError()
    [fields] = model.format.answers([item.record], item.made, outputs)
    tokens = sum(int((one["encoder_segment_ids"] > 0).sum()) for one in item.examples)
    left_out = {"left_out": item.left_out} if item.left_out else {}
    return Answer({**fields, **left_out}, tokens)
