"""Prediction files, as written by `plug-jax infer`, and reference files."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from plug_jax.errors import PlugError, shortened, shown
from plug_jax.generation_tasks.formats import by_name, json_objects
from plug_jax.generation_tasks.records import check_text

_REFERENCES = ("references", "targets", "target")  # fields to look up, in this order


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A generated text, and its references."""

    fields: Mapping[str, Any]  # the original row
    text: str  # "" for a row with an error
    references: tuple[str, ...]  # () if unknown
    where: str  # "texts.jsonl, line 3", for messages

    @property
    def failed(self) -> bool:
        """Whether the row has an error instead of a text."""
        return "error" in self.fields and "generated" not in self.fields


@dataclasses.dataclass(frozen=True)
class Reference:
    """The references of one record."""

    id: str | None  # None: identified by position
    texts: tuple[str, ...]


def read_predictions(path: str) -> list[Prediction]:
    """The rows of JSON lines, each with the first text of `generated`, or with `prediction`.

    A row's `target_prefix` is removed from the text. Its references are in `references`,
    `targets` or `target`.

    Raises:
        PlugError: no such file, or a row without a text, with its line.
    """
    found = [
        Prediction(row, _text_of(row, where), _references_of(row, where), where)
        for row, where in json_objects(path)
    ]
    if not found:
        raise PlugError(f"{path} has no row")
    return found


def read_references(path: str) -> list[Reference]:
    """References, with ids if present, from a file of JSON lines, TSV or CSV."""
    found = []
    for record in by_name(path):
        texts = _references_of(record.fields, record.where)
        if not texts:
            raise PlugError(
                f"{record.where}: no {', '.join(_REFERENCES)}; the fields are "
                f"{shortened(', '.join(map(repr, record.fields)))}"
            )
        own = record.fields.get("id")
        if own is not None:
            check_text(own, "id", record.where)
        found.append(Reference(own, texts))
    return found


def with_references(
    predictions: Sequence[Prediction], references: Sequence[Reference]
) -> tuple[list[Prediction], int]:
    """Predictions with these references instead of their own, and the number without a prediction.

    They are matched by `id`, or, if neither side has ids, by order.

    Raises:
        PlugError: ids that occur twice, on one side alone, or in the predictions alone; without
            ids, another number of them.
    """
    ids = [str(one.fields["id"]) for one in predictions if "id" in one.fields]
    by_id = {one.id: one for one in references if one.id is not None}
    if not ids or not by_id:
        if len(predictions) != len(references):
            raise PlugError(
                f"There are {len(predictions):,} predictions and {len(references):,} references, "
                "and no ids on both sides to tell which belong together: give both an `id`."
            )
        pairs = zip(predictions, references, strict=True)
        return [dataclasses.replace(one, references=ref.texts) for one, ref in pairs], 0
    _check_ids(ids, len(predictions), "predictions")
    _check_ids([one.id for one in references if one.id is not None], len(references), "references")
    found = []
    for one in predictions:
        reference = by_id.get(str(one.fields["id"]))
        if reference is None:
            raise PlugError(
                f"{one.where}: there is no reference of the id {shown(one.fields['id'])}"
            )
        found.append(dataclasses.replace(one, references=reference.texts))
    return found, len(by_id) - len(found)


def _check_ids(ids: Sequence[str], rows: int, what: str) -> None:
    if len(ids) < rows:
        raise PlugError(
            f"Of {rows:,} {what} only {len(ids):,} have an `id`; give it to all or none"
        )
    if twice := [one for one, times in Counter(ids).items() if times > 1]:
        raise PlugError(f"The id {shown(twice[0])} occurs more than once among the {what}")


def _text_of(row: Mapping[str, Any], where: str) -> str:
    if isinstance(row.get("prediction"), str):
        text = row["prediction"]
    elif isinstance(row.get("generated"), list):
        best = row["generated"][0] if row["generated"] else {"text": ""}
        text = best.get("text") if isinstance(best, dict) else best
    elif "error" in row:
        text = ""
    else:
        text = None
    if not isinstance(text, str):
        raise PlugError(
            f"{where}: expected `generated`, the list of texts of `plug-jax infer`, or "
            f"`prediction`, a text; the fields are {', '.join(map(repr, row))}"
        )
    check_text(text, "prediction" if "prediction" in row else "generated", where)
    prefix = row.get("target_prefix")
    if prefix is None:
        return text
    check_text(prefix, "target_prefix", where)
    begins = _folded(text[: len(prefix)]) == _folded(prefix)
    return text[len(prefix) :] if begins else text


def _folded(text: str) -> str:
    """The text with full-width characters normalised, as by vocabularies."""
    return unicodedata.normalize("NFKC", text).lower()


def _references_of(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    for name in _REFERENCES:
        if name in row:
            value = row[name]
            texts = tuple(value) if isinstance(value, list) else (value,)
            if not all(isinstance(text, str) for text in texts):
                raise PlugError(f"{where}: {name!r} must be a text or a list of texts")
            for text in texts:
                check_text(text, name, where)
            return texts
    return ()
