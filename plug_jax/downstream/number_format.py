"""Regression: a text or pair to a number, such as the similarity of the pair."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.examples import Examples, ExamplesBuilder
from plug_jax.downstream.formats import Answer, Format, Outputs
from plug_jax.downstream.records import NumberRecord
from plug_jax.downstream.text_format import characters_cut, joined, row_texts
from plug_jax.downstream.token_texts import token_ids
from plug_jax.errors import PlugError
from plug_jax.objectives.regression import Regression
from plug_jax.objectives.task_heads import TaskObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberFormat(Format[NumberRecord]):
    """[CLS] text [SEP], or [CLS] first [SEP] second [SEP] with the token types 0 and 1.

    The model learns (number - mean) / deviation, so that the same learning rates suit numbers of
    any size; answers are on the files' scale. Long texts are cut as in `TextFormat`.
    """

    mean: float = 0.0
    deviation: float = 1.0

    kind: ClassVar[str] = "number"
    objective: ClassVar[type[TaskObjective]] = Regression

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.mean) and 0 < self.deviation < math.inf):
            raise PlugError(
                "NumberFormat needs a mean and a positive deviation, got "
                f"{self.mean} and {self.deviation}"
            )

    def add(
        self, builder: ExamplesBuilder, records: Sequence[NumberRecord], vocabulary: PlugVocabulary
    ) -> None:
        """One example per record, with the number and a weight of 1 at its [CLS]."""
        ids = token_ids((text for record in records for text in record.texts), vocabulary)
        for index, record in enumerate(records):
            tokens, types = joined(
                [ids[text] for text in record.texts], vocabulary, self.max_length
            )
            targets, weights = np.zeros(len(tokens), np.float32), np.zeros(len(tokens), np.int32)
            if record.number is not None:
                targets[0], weights[0] = (record.number - self.mean) / self.deviation, 1
            vectors = {
                "encoder_input_tokens": tokens,
                "encoder_token_types": types,
                "regression_targets": targets,
                "regression_weights": weights,
            }
            builder.add(index, vectors)

    def left_out(self, record: NumberRecord, vocabulary: PlugVocabulary) -> int:
        """See `Format.left_out`."""
        return characters_cut(record.texts, vocabulary, self.max_length)

    def answers(
        self, records: Sequence[NumberRecord], examples: Examples, outputs: Outputs
    ) -> list[Answer]:
        """The number."""
        values = outputs["regression_values"].astype(np.float64) * self.deviation + self.mean
        return [{"prediction": float(value)} for value in values]

    def metrics(
        self, records: Sequence[NumberRecord], answers: Sequence[Answer]
    ) -> dict[str, float]:
        """`pearson` and `spearman` in percent, NaN if all are equal; `rmse` on the files' scale."""
        pairs = [
            (record.number, answer["prediction"])
            for record, answer in zip(records, answers, strict=True)
            if record.number is not None
        ]
        if not pairs:
            return {}
        gold, predicted = np.array(pairs, np.float64).T
        return {
            "pearson": 100 * correlation(gold, predicted),
            "spearman": 100 * correlation(ranks(gold), ranks(predicted)),
            "rmse": float(np.sqrt(np.mean((gold - predicted) ** 2))),
        }

    def record(self, fields: Mapping[str, Any], number: int) -> NumberRecord:
        """A row with `text`, or `text` and `text_pair` (`sentence`, `sentence1`, `sentence2`)."""
        return NumberRecord(fields.get("id", number), row_texts(fields), None)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation, -1 to 1; NaN if either does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share their mean rank.

    >>> ranks(np.array([0.5, 0.1, 0.5])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
