"""Classification: a text or pair to one of a list of labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from plug_jax.clue.records import TextRecord
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.examples import Examples, ExamplesBuilder
from plug_jax.downstream.formats import Answer, Format, Outputs, accuracy, field, softmax
from plug_jax.downstream.token_texts import placed_tokens, token_ids
from plug_jax.errors import PlugError
from plug_jax.objectives.classification import Classification
from plug_jax.objectives.task_heads import TaskObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFormat(Format[TextRecord]):
    """[CLS] text [SEP], or [CLS] first [SEP] second [SEP] with the token types 0 and 1.

    Long texts are cut at the end, token by token; in a pair the longer one first, the second if
    both are equally long.
    """

    labels: tuple[str, ...]

    kind: ClassVar[str] = "text"
    objective: ClassVar[type[TaskObjective]] = Classification
    shared: ClassVar[Mapping[str, str]] = {"labels": "labels"}

    def add(
        self, builder: ExamplesBuilder, records: Sequence[TextRecord], vocabulary: PlugVocabulary
    ) -> None:
        """One example per record, with the label and a weight of 1 at its [CLS]."""
        ids = token_ids((text for record in records for text in record.texts), vocabulary)
        numbers = {label: number for number, label in enumerate(self.labels)}
        for number, record in enumerate(records):
            if record.label is not None and record.label not in numbers:
                raise PlugError(
                    f"the record {record.id!r} has the label {record.label!r}, none of "
                    f"{', '.join(self.labels)}"
                )
            tokens, types = joined(
                [ids[text] for text in record.texts], vocabulary, self.max_length
            )
            at_cls = np.zeros(len(tokens), np.int32)
            at_cls[0] = record.label is not None
            label = 0 if record.label is None else numbers[record.label]
            vectors = {
                "encoder_input_tokens": tokens,
                "encoder_token_types": types,
                "classification_labels": at_cls * label,
                "classification_weights": at_cls,
            }
            builder.add(number, vectors)

    def left_out(self, record: TextRecord, vocabulary: PlugVocabulary) -> int:
        """See `Format.left_out`."""
        return characters_cut(record.texts, vocabulary, self.max_length)

    def answers(
        self, records: Sequence[TextRecord], examples: Examples, outputs: Outputs
    ) -> list[Answer]:
        """The likeliest label, and each one's probability."""
        return [
            {
                "prediction": self.labels[int(of_labels.argmax())],
                "probabilities": dict(zip(self.labels, of_labels.tolist(), strict=True)),
            }
            for of_labels in softmax(outputs["classification_logits"])
        ]

    def metrics(self, records: Sequence[TextRecord], answers: Sequence[Answer]) -> dict[str, float]:
        """`accuracy`."""
        return accuracy(records, answers)

    def confusion(self, records: Sequence[TextRecord], answers: Sequence[Answer]) -> np.ndarray:
        """How many of each gold label (row) were predicted as each (column): int64 [C,C]."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        counts = np.zeros((len(self.labels), len(self.labels)), np.int64)
        for record, answer in zip(records, answers, strict=True):
            if record.label is not None:
                counts[numbers[record.label], numbers[answer["prediction"]]] += 1
        return counts

    def record(self, fields: Mapping[str, Any], number: int) -> TextRecord:
        """A row with `text`, or `text` and `text_pair` (`sentence`, `sentence1`, `sentence2`)."""
        return TextRecord(fields.get("id", number), row_texts(fields), None)

    def fields(self, record: TextRecord) -> dict[str, Any]:
        """`id`, `text`, `text_pair` for a pair, and `label` if known."""
        label = {} if record.label is None else {"label": record.label}
        return {"id": record.id, **record.named_texts(), **label}


def row_texts(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a row under common field names. PlugError if there are none."""
    for names in (("text", "text_pair"), ("sentence1", "sentence2"), ("text",), ("sentence",)):
        if all(name in fields for name in names):
            return tuple(field(fields, name) for name in names)
    raise PlugError(
        "a row needs `text`, or `text` and `text_pair`; it has "
        f"{', '.join(map(repr, fields)) or 'nothing'}"
    )


def joined(
    parts: Sequence[np.ndarray], vocabulary: PlugVocabulary, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] a [SEP] b [SEP] ... and its token types, 0 for the first part and 1 for others.

    Cut to `max_length`: the longest part first; the last of equally long ones.
    """
    lengths = cut_lengths([len(part) for part in parts], max_length - len(parts) - 1)
    tokens, types = [[vocabulary.cls_id]], [0]
    for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        tokens += [part[:length].tolist(), [vocabulary.sep_id]]
        types += [min(number, 1)] * (length + 1)
    return np.concatenate(tokens).astype(np.int32), np.array(types, np.int32)


def characters_cut(parts: Sequence[str], vocabulary: PlugVocabulary, max_length: int) -> int:
    """The number of characters that `joined` cuts from texts."""
    ids = token_ids(parts, vocabulary)
    tokens = [len(ids[part]) for part in parts]
    lengths = cut_lengths(tokens, max_length - len(parts) - 1)
    cut = [(part, n) for part, n, of in zip(parts, lengths, tokens, strict=True) if n < of]
    places = placed_tokens((part for part, _ in cut), vocabulary)
    return sum(
        len(part) - (int(places[part].ends[length - 1]) if length else 0) for part, length in cut
    )


def cut_lengths(lengths: Sequence[int], room: int) -> list[int]:
    """The lengths to which parts are cut, so that together they fit.

    As if tokens were taken one by one, each from the longest part, the last of equally long ones.

    >>> cut_lengths([5, 9], 10)
    [5, 5]
    >>> cut_lengths([9, 9], 9)
    [5, 4]
    """
    if sum(lengths) <= room:
        return list(lengths)
    # Parts longer than `level` are cut to it; the first `more` of them keep one token more.
    level, more, left = 0, 0, room
    for parts, length in zip(range(len(lengths), 0, -1), sorted(lengths), strict=True):
        level, more = divmod(left, parts)
        if length > level:
            break
        left -= length
    cut = [number for number, length in enumerate(lengths) if length > level]
    return [min(length, level) + (n in cut[:more]) for n, length in enumerate(lengths)]
