"""Zero-shot classification: the label whose text is likeliest after a row's text."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import tensorflow as tf

from plug_jax.downstream.text_format import cut_lengths
from plug_jax.errors import PlugError, shown, shown_path
from plug_jax.field_types import check_fields, typed
from plug_jax.inference.jobs import ERROR, Answer, DecoderWork
from plug_jax.inference.model import InferenceModel, NoNumbersError
from plug_jax.inference.rows import Row, checked_text
from plug_jax.inference.scoring import Pairs, Score, pairs_size, score_pairs, target_ids

Normalize = Literal["sum", "mean", "pmi"]

_FIELD = re.compile(r"\{(\w+)\}")
_LABEL = "label"
_COMMA = re.compile("[,，、]")


@dataclasses.dataclass(frozen=True)
class _Asked(Pairs):
    """A row's prompt and the text of each of its labels."""

    labels: tuple[str, ...] = ()
    left_out: int = 0  # characters of the row's texts cut from the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(DecoderWork):
    """Each label's `template` is scored as the continuation of the prompt; the best one wins.

    In the templates {name} is the row's field of that name, and {label} the label's words.
    `normalize` is the score to compare:

      sum: the log-likelihood of the label's text, which favours short and common ones.
      mean: its mean per token.
      pmi: log P(text | prompt) - log P(text | the empty prompt template), domain-conditional PMI
        (Holtzman et al. 2021, arXiv 2104.08315), so that a label does not win by being common.

    Probabilities are the softmax of these scores over the labels.

    `labels` are the template's words by label name, or the name of a row's field that lists them,
    such as the choices of a question; their names are then "0", "1", ...

    If a prompt exceeds `max_prompt_tokens` (or the model's maximum), the end of the row's longest
    text is cut, and the answer counts the characters under "left_out". None: a prompt that is too
    long for the model is an error of its row.

    Raises:
        PlugError: fewer than two labels, templates without required fields, an unknown `normalize`.
    """

    ANSWERS: ClassVar[tuple[str, ...]] = ("prediction", "probabilities", "scores", "left_out")

    labels: Mapping[str, str] | str
    template: str = "{label}"
    prompt_template: str = "{text}"
    normalize: Normalize = "pmi"
    sep: bool = True  # see `Scoring`
    max_prompt_tokens: int | None = None  # including [CLS] and [SEP]
    _expected: dict[tuple[tuple[int, ...], ...], np.ndarray] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # cached scores of labels' texts

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.labels, str) and len(self.labels) < 2:
            raise PlugError(f"there must be two labels or more, not {shown(list(self.labels))}")
        if _LABEL not in _FIELD.findall(self.template):
            raise PlugError(f"the template {shown(self.template)} needs {{label}} somewhere")
        if not _FIELD.findall(self.prompt_template) or _LABEL in _FIELD.findall(
            self.prompt_template
        ):
            raise PlugError(
                f"the prompt template {shown(self.prompt_template)} needs a row's field, such as "
                "{text}, and no {label}"
            )

    def check_reads(self, field: str) -> None:
        """PlugError if no template reads this field of a row."""
        if field not in _FIELD.findall(self.template + self.prompt_template):
            raise PlugError(
                f"{field} is read only where a template has {{{field}}}: the prompt template is "
                f"{shown(self.prompt_template)}, the template {shown(self.template)}"
            )

    def settings(self) -> Mapping[str, Any]:
        """Every option."""
        fields = dataclasses.fields(self)
        options = {field.name: getattr(self, field.name) for field in fields if field.init}
        return {"work": "classify", **options}

    def prepare(self, model: InferenceModel, row: Row, index: int) -> _Asked:
        """Ids of the prompt and of each label's text; PlugError if a field is missing."""
        labels = _listed(row, self.labels) if isinstance(self.labels, str) else self.labels
        prompt, left_out = self._prompt(model, row)
        texts = _texts(self.template, row)
        targets = (
            target_ids(model, _filled(self.template, {**texts, _LABEL: words}), sep=self.sep)
            for words in labels.values()
        )
        return _Asked(prompt, tuple(targets), labels=tuple(labels), left_out=left_out)

    def _prompt(self, model: InferenceModel, row: Row) -> tuple[list[int], int]:
        """Its ids, and the number of characters cut from the row's texts."""
        texts = _texts(self.prompt_template, row)
        prompt = _filled(self.prompt_template, texts)
        if self.max_prompt_tokens is None:
            return model.prompt_ids(prompt), 0
        whole = sum(map(len, texts.values()))
        room = min(self.max_prompt_tokens, model.config.max_positions) - 2  # [CLS] and [SEP]
        while (excess := len(model.vocabulary.encode(prompt)) - room) > 0:
            lengths = [len(text) for text in texts.values()]
            if not any(lengths):
                raise PlugError(
                    f"the prompt template {shown(self.prompt_template)} alone has "
                    f"{room + excess} tokens, and there is room for {room}"
                )
            # A token is at least one character, so this never cuts too much.
            kept = cut_lengths(lengths, max(sum(lengths) - excess, 0))
            texts = {name: texts[name][:n] for name, n in zip(texts, kept, strict=True)}
            prompt = _filled(self.prompt_template, texts)
        return model.prompt_ids(prompt), whole - sum(map(len, texts.values()))

    def size(self, item: _Asked) -> tuple[int, ...]:
        """Number of labels, and lengths of the prompt and the longest label."""
        return pairs_size(item)

    def answer(
        self, model: InferenceModel, items: Sequence[_Asked]
    ) -> list[Answer | NoNumbersError]:
        """The best label of each, and probabilities and scores of all labels."""
        scores = score_pairs(model, items)
        compared = self._compared(scores)
        if self.normalize == "pmi":
            compared -= self._without_fields(model, items)
        answers: list[Answer | NoNumbersError] = []
        for values, item, of_item in zip(compared, items, scores, strict=True):
            if not np.isfinite(values).all():
                answers.append(NoNumbersError())
                continue
            likely = np.exp(values - values.max())
            fields = {
                "prediction": item.labels[int(values.argmax())],
                "probabilities": _by_label(item, likely / likely.sum()),
                "scores": _by_label(item, values),
                **({"left_out": item.left_out} if item.left_out else {}),
            }
            answers.append(Answer(fields, sum(score.tokens for score in of_item)))
        return answers

    def _compared(self, scores: Sequence[Sequence[Score]]) -> np.ndarray:
        """float64 [items, labels]."""
        name = "mean_log_likelihood" if self.normalize == "mean" else "log_likelihood"
        return np.array([[getattr(score, name) for score in of_item] for of_item in scores])

    def _without_fields(self, model: InferenceModel, items: Sequence[Pairs]) -> np.ndarray:
        """The log-likelihood of each label's text after the empty prompt, [items, labels].

        If the template has only {label}, the labels' texts are equal for all rows and scored once.
        """
        different = dict.fromkeys(item.targets for item in items)
        if not different.keys() <= self._expected.keys():
            nothing = model.prompt_ids(_FIELD.sub("", self.prompt_template))
            targets = list(different) if len(different) == 1 else [item.targets for item in items]
            scores = score_pairs(model, [Pairs(nothing, of_item) for of_item in targets])
            self._expected.clear()
            self._expected.update(zip(targets, self._compared(scores), strict=True))
        return np.stack([self._expected[item.targets] for item in items])


class Accuracy:
    """Counts of predictions, and of those that match the rows' labels."""

    def __init__(self, labels: Collection[str]) -> None:
        """`labels`: the possible predictions."""
        self._labels = labels
        self._counts: collections.Counter[str] = collections.Counter()
        self._predictions: collections.Counter[str] = collections.Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row with its `prediction` and, possibly, its field `label`, a text or number."""
        self._counts["rows"] += 1
        if ERROR in row:
            self._counts["errors"] += 1
            return
        self._predictions[row["prediction"]] += 1
        if row.get(_LABEL) is not None:
            gold = str(row[_LABEL])
            self._counts["labeled" if gold in self._labels else "unknown_labels"] += 1
            self._counts["correct"] += gold == row["prediction"]

    def fields(self) -> dict[str, Any]:
        """Counts, and the accuracy over rows with one of the labels."""
        names = ("rows", "errors", "labeled", "unknown_labels", "correct")
        fields: dict[str, Any] = {name: self._counts[name] for name in names}
        if self._counts["labeled"]:
            fields["accuracy"] = self._counts["correct"] / self._counts["labeled"]
        fields["predictions"] = {name: self._predictions[name] for name in self._labels}
        return fields


@typed
def read_labels(text: str) -> dict[str, str]:
    """Labels from a file, one per line, or separated by commas, also Chinese ones ("，", "、").

    A line may have a label's name, a tab, and its words in the template; else both are the same.

    Raises:
        PlugError: a label twice or without a name.
    """
    path = os.path.expanduser(text)
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            try:
                lines = file.read().decode("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise PlugError(f"the labels {path} are not UTF-8: {error}") from error
        entries = [line.strip().partition("\t") for line in lines if line.strip()]
    elif not _COMMA.search(text):
        raise PlugError(
            f"labels {shown_path(text)}: there is no such file; labels themselves need commas"
        )
    else:
        entries = [entry.strip().partition("\t") for entry in _COMMA.split(text)]
    labels: dict[str, str] = {}
    for name, _, words in entries:
        name = name.strip()
        if not name:
            raise PlugError(f"labels {shown(text)}: one of them is empty")
        if name in labels:
            raise PlugError(f"labels {shown(text)}: {shown(name)} occurs twice")
        labels[name] = words.strip() or name
    return labels


def _by_label(item: _Asked, values: np.ndarray) -> dict[str, float]:
    return dict(zip(item.labels, values.tolist(), strict=True))


def _listed(row: Row, name: str) -> dict[str, str]:
    """The texts listed in a row's field, by number."""
    _, value = row.first((name,))
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str) for v in value):
        raise PlugError(f"field {name!r} must be a list of two texts or more")
    return {str(number): checked_text(text, name) for number, text in enumerate(value)}


def _texts(template: str, row: Row) -> dict[str, str]:
    """The row's fields used in a template, by name."""
    return {name: row.text((name,)) for name in _FIELD.findall(template) if name != _LABEL}


def _filled(template: str, texts: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: texts[match[1]], template)
