"""Extractive question answering: spans in a context (CMRC 2018, DRCD)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from plug_jax.clue.reading_metrics import exact_match, overlap_f1
from plug_jax.clue.records import QuestionRecord
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.examples import Examples, ExamplesBuilder
from plug_jax.downstream.formats import Answer, Format, Outputs, field
from plug_jax.downstream.token_texts import PlacedTokens, placed_tokens, token_ids
from plug_jax.errors import PlugError
from plug_jax.objectives.span import Span
from plug_jax.objectives.task_heads import TaskObjective


class Window(NamedTuple):
    """The part of a context in an example."""

    first_row: int  # position in the row of its first context token
    starts: np.ndarray  # int32 [c]: the characters of each of its tokens, [start, end)
    ends: np.ndarray
    best: np.ndarray  # bool [c]: this window has the most context around the token


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionFormat(Format[QuestionRecord]):
    """[CLS] question [SEP] part of the context [SEP], token types 0 and 1.

    A long context is split into windows, each `stride` tokens after the previous one. The first
    answer is the training target; windows that do not contain all of it have [CLS] as target. The
    prediction is the best span of at most `max_answer` tokens among the `candidates` likeliest
    starts and ends of each window, restricted to the window with most context around its start. A
    span's score is the sum of its start and end logits.
    """

    max_question: int = 64
    stride: int = 128
    max_answer: int = 50
    candidates: int = 20

    kind: ClassVar[str] = "question"
    objective: ClassVar[type[TaskObjective]] = Span
    not_of_examples: ClassVar[tuple[str, ...]] = ("pooler", "max_answer", "candidates")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_question", "stride", "max_answer", "candidates"):
            if getattr(self, name) < 1:
                raise PlugError(
                    f"QuestionFormat.{name} must be 1 or more, got {getattr(self, name)}"
                )

    @property
    def shortest(self) -> int:
        """Room for a question, and some of the context."""
        return self.max_question + 8

    def add(
        self,
        builder: ExamplesBuilder,
        records: Sequence[QuestionRecord],
        vocabulary: PlugVocabulary,
    ) -> None:
        """One or more examples per question."""
        questions = token_ids((record.question for record in records), vocabulary)
        contexts = placed_tokens((record.context for record in records), vocabulary)
        for number, record in enumerate(records):
            question = questions[record.question][: self.max_question]
            context = contexts[record.context]
            answer = _answer_tokens(record, context)
            head = [vocabulary.cls_id, *question.tolist(), vocabulary.sep_id]
            room = self.max_length - len(head) - 1
            firsts = _window_starts(len(context.ids), room, self.stride)
            best = _most_context(firsts, len(context.ids), room)
            for place, first in enumerate(firsts):
                part = slice(first, first + room)
                ids = context.ids[part]
                tokens = np.array([*head, *ids.tolist(), vocabulary.sep_id], np.int32)
                types = np.array([0] * len(head) + [1] * (len(ids) + 1), np.int32)
                starts, ends = _labels(answer, first, len(ids), len(head), len(tokens))
                if not record.answers:
                    starts[:] = ends[:] = 0
                window = Window(
                    len(head), context.starts[part], context.ends[part], best[part] == place
                )
                vectors = {
                    "encoder_input_tokens": tokens,
                    "encoder_token_types": types,
                    "span_starts": starts,
                    "span_ends": ends,
                }
                builder.add(number, vectors, window)

    def answers(
        self, records: Sequence[QuestionRecord], examples: Examples, outputs: Outputs
    ) -> list[Answer]:
        """The likeliest text, and up to `candidates` with their scores under "nbest"."""
        found: list[dict[str, float]] = [{} for _ in records]
        for number, window, logits in zip(
            examples.records, examples.notes, outputs["span_logits"], strict=True
        ):
            context, of_record = records[number].context, found[number]
            for score, start, end in self._spans(window, logits):
                text = context[start:end].strip()
                if text and score > of_record.get(text, -np.inf):
                    of_record[text] = score
        answers: list[Answer] = []
        for of_record in found:
            ranked = sorted(of_record.items(), key=lambda item: -item[1])[: self.candidates]
            nbest = [{"text": text, "score": score} for text, score in ranked]
            answers.append({"prediction": ranked[0][0] if ranked else "", "nbest": nbest})
        return answers

    def _spans(self, window: Window, logits: np.ndarray) -> list[tuple[float, int, int]]:
        """(score, first character, end) of likely spans of a window; logits [2,E]."""
        size = len(window.starts)
        begins, lasts = logits[:, window.first_row : window.first_row + size]
        likely = np.argsort(-begins, kind="stable")[: self.candidates]
        likely_lasts = np.argsort(-lasts, kind="stable")[: self.candidates]
        return [
            (float(begins[i] + lasts[j]), int(window.starts[i]), int(window.ends[j]))
            for i in likely
            if window.best[i]
            for j in likely_lasts
            if i <= j < i + self.max_answer
        ]

    def metrics(
        self, records: Sequence[QuestionRecord], answers: Sequence[Answer]
    ) -> dict[str, float]:
        """`em` and `f1`."""
        known = [
            ([one.text for one in record.answers], answer["prediction"])
            for record, answer in zip(records, answers, strict=True)
            if record.answers
        ]
        scores = {"em": exact_match, "f1": overlap_f1}
        return {
            name: 100 * float(np.mean([score(*pair) for pair in known]))
            for name, score in scores.items()
            if known
        }

    def record(self, fields: Mapping[str, Any], number: int) -> QuestionRecord:
        """A row with `context` and `question`."""
        context, question = field(fields, "context"), field(fields, "question")
        return QuestionRecord(fields.get("id", number), context, question, ())


def _answer_tokens(record: QuestionRecord, context: PlacedTokens) -> tuple[int, int] | None:
    """The first and last token of the first answer; None if it is not in the context."""
    if not record.answers or record.answers[0].start < 0:
        return None
    start = record.answers[0].start
    end = start + len(record.answers[0].text)
    inside = np.flatnonzero((context.ends > start) & (context.starts < end))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _window_starts(length: int, room: int, stride: int) -> list[int]:
    """The first token of each window over a context.

    >>> _window_starts(10, 4, 3), _window_starts(4, 4, 3), _window_starts(0, 4, 3)
    ([0, 3, 6], [0], [0])
    """
    starts = [0]
    while starts[-1] + room < length:
        starts.append(starts[-1] + min(room, stride))
    return starts


def _most_context(firsts: Sequence[int], length: int, room: int) -> np.ndarray:
    """The window with most context around each token, int [length]; the first of equal ones.

    A window's score for a token is the smaller of the contexts before and after it, plus a
    hundredth of the window's length.
    """
    tokens = np.arange(length)
    scores = np.full((len(firsts), length), -np.inf)
    for number, first in enumerate(firsts):
        last = min(first + room, length) - 1
        of_window = np.minimum(tokens - first, last - tokens) + 0.01 * (last - first + 1)
        inside = (tokens >= first) & (tokens <= last)
        scores[number, inside] = of_window[inside]
    return scores.argmax(axis=0) if length else tokens


def _labels(
    answer: tuple[int, int] | None, first: int, size: int, head: int, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """1 at the answer's first and last token in the row; at [CLS] if it is not all there."""
    starts, ends = np.zeros(row, np.int32), np.zeros(row, np.int32)
    begin = last = 0
    if answer is not None and first <= answer[0] and answer[1] < first + size:
        begin, last = answer[0] - first + head, answer[1] - first + head
    starts[begin], ends[last] = 1, 1
    return starts, ends
