"""Zero-shot classification: the label whose text the model finds likeliest after a row's text."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import tensorflow as tf

from plug_jax.errors import PlugError
from plug_jax.inference.jobs import ERROR, Answer
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.rows import Row
from plug_jax.inference.scoring import Pairs, Score, pairs_size, score_pairs, target_ids

Normalize = Literal["sum", "mean", "pmi"]

_FIELD = re.compile(r"\{(\w+)\}")
_LABEL = "label"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """Each label's `template` is scored as what follows the prompt; the best is the prediction.

    In the templates {name} stands for a row's field of that name, and {label} for a label's words.
    `normalize` says what is compared:

      sum: the log-likelihood of the label's text, which favours short and common ones.
      mean: the same for each of its tokens.
      pmi: how much more likely the text is than after the prompt without the row's fields,
        log P(text | prompt) - log P(text | prompt with nothing filled in): domain-conditional PMI
        (Holtzman et al. 2021, arXiv 2104.08315), by which a label does not win by being common.

    Probabilities are the softmax of these scores over the labels.

    Raises:
        PlugError: less than two labels, templates without what they need, an unknown `normalize`.
    """

    ANSWERS: ClassVar[tuple[str, ...]] = ("prediction", "probabilities", "scores")

    labels: Mapping[str, str]  # name -> the words that the template gets
    template: str = "{label}"
    prompt_template: str = "{text}"
    normalize: Normalize = "pmi"
    sep: bool = True  # see `Scoring`
    _expected: dict[tuple[tuple[int, ...], ...], np.ndarray] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # of labels' texts, those that were scored last

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise PlugError(f"there must be two labels or more, not {list(self.labels)}")
        if _LABEL not in _FIELD.findall(self.template):
            raise PlugError(f"the template {self.template!r} needs {{label}} somewhere")
        if not _FIELD.findall(self.prompt_template) or _LABEL in _FIELD.findall(
            self.prompt_template
        ):
            raise PlugError(
                f"the prompt template {self.prompt_template!r} needs a row's field, such as "
                "{text}, and no {label}"
            )
        if self.normalize not in get_args(Normalize):
            raise PlugError(
                f"normalize must be one of {', '.join(get_args(Normalize))}, not {self.normalize!r}"
            )

    def settings(self) -> Mapping[str, Any]:
        """Every option."""
        names = ("labels", "template", "prompt_template", "normalize", "sep")
        return {"work": "classify", **{name: getattr(self, name) for name in names}}

    def prepare(self, model: InferenceModel, row: Row, index: int) -> Pairs:
        """Ids of the prompt and of each label's text; PlugError if a field is not there."""
        prompt = model.prompt_ids(_fill(self.prompt_template, row))
        targets = (
            target_ids(model, _fill(self.template, row, words), sep=self.sep)
            for words in self.labels.values()
        )
        return Pairs(prompt, tuple(targets))

    def size(self, item: Pairs) -> tuple[int, ...]:
        """Labels, and the lengths of prompt and longest label."""
        return pairs_size(item)

    def answer(self, model: InferenceModel, items: Sequence[Pairs]) -> list[Answer]:
        """The best label of each, and of every label probability and score."""
        scores = score_pairs(model, items)
        compared = self._compared(scores)
        if self.normalize == "pmi":
            compared -= self._without_fields(model, items)
        answers = []
        for values, of_item in zip(compared, scores, strict=True):
            likely = np.exp(values - values.max())
            fields = {
                "prediction": list(self.labels)[int(values.argmax())],
                "probabilities": self._by_label(likely / likely.sum()),
                "scores": self._by_label(values),
            }
            answers.append(Answer(fields, sum(score.tokens for score in of_item)))
        return answers

    def _by_label(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.labels, values.tolist(), strict=True))

    def _compared(self, scores: Sequence[Sequence[Score]]) -> np.ndarray:
        """float64 [items, labels]."""
        name = "mean_log_likelihood" if self.normalize == "mean" else "log_likelihood"
        return np.array([[getattr(score, name) for score in of_item] for of_item in scores])

    def _without_fields(self, model: InferenceModel, items: Sequence[Pairs]) -> np.ndarray:
        """The log-likelihood of each label's text where the row says nothing, [items, labels].

        With templates of {label} alone the labels' texts are the same for all rows: scored once.
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
    """Counts of predictions, and of those that agree with the rows' own labels."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self._counts: collections.Counter[str] = collections.Counter()
        self._predictions: collections.Counter[str] = collections.Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of `Classification`; its own label is its field `label`, text or number."""
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
        """Counts, and the accuracy over rows that have one of the labels."""
        names = ("rows", "errors", "labeled", "unknown_labels", "correct")
        fields: dict[str, Any] = {name: self._counts[name] for name in names}
        if self._counts["labeled"]:
            fields["accuracy"] = self._counts["correct"] / self._counts["labeled"]
        fields["predictions"] = {name: self._predictions[name] for name in self._labels}
        return fields


def read_labels(text: str) -> dict[str, str]:
    """Labels out of a file, one a line, or separated by commas.

    A line may hold a label's name, a tab, and the words that stand for it in the template; else
    they are the same.

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
    elif "," not in text:
        raise PlugError(f"labels {text!r}: there is no such file; labels themselves need commas")
    else:
        entries = [entry.strip().partition("\t") for entry in text.split(",")]
    labels: dict[str, str] = {}
    for name, _, words in entries:
        name = name.strip()
        if not name:
            raise PlugError(f"labels {text!r}: one of them is empty")
        if name in labels:
            raise PlugError(f"labels {text!r}: {name!r} is there twice")
        labels[name] = words.strip() or name
    return labels


def _fill(template: str, row: Row, label: str | None = None) -> str:
    """The template with a row's fields, and a label's words where there is one."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return label if name == _LABEL and label is not None else row.text((name,))

    return _FIELD.sub(value, template)
