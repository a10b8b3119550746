"""Which of several texts is right: choices of a question (C3), idioms for a blank (CHID)."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from plug_jax.clue.blanks import Assignment, decode_blanks
from plug_jax.clue.readers import IDIOM_CHARACTERS, TAG
from plug_jax.clue.records import BlankRecord, ChoiceRecord
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.examples import Examples, ExamplesBuilder
from plug_jax.downstream.formats import Answer, Format, Outputs, accuracy, field, softmax
from plug_jax.downstream.text_format import characters_cut, joined
from plug_jax.downstream.token_texts import token_ids
from plug_jax.errors import PlugError
from plug_jax.objectives.multiple_choice import MultipleChoice
from plug_jax.objectives.task_heads import TaskObjective

_NO_CHOICE = "无效答案"  # the baseline's text for a missing choice
_AROUND_BLANK = 8  # tokens besides the passage: idiom, [CLS], 2 [SEP], the blank
# The baseline's quotation marks and dashes, in replacement order.
_PLAIN_MARKS = (
    ("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("——", "--"), ("—", "-"), ("―", "-"),
    ("…", "..."),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceFormat(Format[ChoiceRecord]):
    """[CLS] passage [SEP] question [SEP] choice [SEP] for each choice; token types 0, then 1.

    Passages are lower-cased; the longest part is cut. As in the baseline, questions with fewer than
    `choices` choices are filled up with invalid ones.
    """

    choices: int = 4

    kind: ClassVar[str] = "choice"
    objective: ClassVar[type[TaskObjective]] = MultipleChoice
    shared: ClassVar[Mapping[str, str]] = {"choices": "choices"}

    @property
    def row_length(self) -> int:
        """Tokens of all choices."""
        return self.choices * self.max_length

    def add(
        self, builder: ExamplesBuilder, records: Sequence[ChoiceRecord], vocabulary: PlugVocabulary
    ) -> None:
        """One example per question."""
        parts = [texts for record in records for texts in _texts_of_choices(record, self.choices)]
        ids = token_ids((text for texts in parts for text in texts), vocabulary)
        for number, record in enumerate(records):
            own = parts[number * self.choices : (number + 1) * self.choices]
            texts = [
                joined([ids[text] for text in texts], vocabulary, self.max_length) for texts in own
            ]
            builder.add(number, _row(texts, self.max_length, record.label))

    def left_out(self, record: ChoiceRecord, vocabulary: PlugVocabulary) -> int:
        """See `Format.left_out`; of the choice that leaves least room."""
        return max(
            characters_cut(parts, vocabulary, self.max_length)
            for parts in _texts_of_choices(record, self.choices)
        )

    def answers(
        self, records: Sequence[ChoiceRecord], examples: Examples, outputs: Outputs
    ) -> list[Answer]:
        """The likeliest choice's index, and each one's probability."""
        answers = []
        for record, logits in zip(records, outputs["choice_logits"], strict=True):
            likely = softmax(logits[: len(record.choices)])
            answers.append({"prediction": int(likely.argmax()), "probabilities": likely.tolist()})
        return answers

    def metrics(
        self, records: Sequence[ChoiceRecord], answers: Sequence[Answer]
    ) -> dict[str, float]:
        """`accuracy`."""
        return accuracy(records, answers)

    def record(self, fields: Mapping[str, Any], number: int) -> ChoiceRecord:
        """A row with `passage`, `question` and `choices`."""
        choices = fields.get("choices")
        if (
            not isinstance(choices, list)
            or not all(isinstance(choice, str) for choice in choices)
            or not 2 <= len(choices) <= self.choices
        ):
            raise PlugError(f"a row needs `choices`, a list of 2 to {self.choices} texts")
        passage, question = field(fields, "passage"), field(fields, "question")
        return ChoiceRecord(fields.get("id", number), passage, question, tuple(choices), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlankFormat(Format[BlankRecord]):
    """[CLS] idiom [SEP] left [unused1] right [SEP] for each candidate; token types 0.

    `left` and `right` are the text next to the blank, with half of the room each, plus what a short
    other side leaves. Other blanks are four [MASK]. A vocabulary without [unused1] uses [UNK].
    `assignment`: how the blanks of a line share its candidates, see `clue.blanks`.
    """

    candidates: int = 10
    assignment: Assignment = "greedy"

    kind: ClassVar[str] = "blank"
    objective: ClassVar[type[TaskObjective]] = MultipleChoice
    shared: ClassVar[Mapping[str, str]] = {"choices": "candidates"}
    not_of_examples: ClassVar[tuple[str, ...]] = ("pooler", "assignment")

    @property
    def shortest(self) -> int:
        """Room for some of the passage besides the rest."""
        return 2 * _AROUND_BLANK

    @property
    def row_length(self) -> int:
        """Tokens of all candidates."""
        return self.candidates * self.max_length

    def add(
        self, builder: ExamplesBuilder, records: Sequence[BlankRecord], vocabulary: PlugVocabulary
    ) -> None:
        """One example per blank."""
        idioms = token_ids((name for one in records for name in one.candidates), vocabulary)
        pieces = token_ids(
            (part for one in records for side in (one.left, one.right) for part in _parts(side)),
            vocabulary,
        )
        masks = np.full(IDIOM_CHARACTERS, vocabulary.mask_id, np.int32)
        blank = _piece_id("[unused1]", vocabulary)

        def tokens(side: str) -> np.ndarray:
            first, *others = (pieces[part] for part in _parts(side))
            return np.concatenate([first, *(x for part in others for x in (masks, part))])

        for number, record in enumerate(records):
            left, right = tokens(record.left), tokens(record.right)
            texts = []
            for name in record.candidates:
                idiom = idioms[name][:IDIOM_CHARACTERS]
                room = self.max_length - len(idiom) - 4  # [CLS], 2 [SEP], the blank
                before, after = _window(len(left), len(right), room)
                text = np.concatenate([
                    [vocabulary.cls_id], idiom, [vocabulary.sep_id],
                    left[len(left) - before :], [blank], right[:after], [vocabulary.sep_id],
                ])  # fmt: skip
                texts.append((text, np.zeros(len(text), np.int32)))
            builder.add(number, _row(texts, self.max_length, record.label))

    def answers(
        self, records: Sequence[BlankRecord], examples: Examples, outputs: Outputs
    ) -> list[Answer]:
        """The candidate's index, decided over all blanks of a line, and probabilities."""
        logits = outputs["choice_logits"]
        chosen = decode_blanks([one.line for one in records], logits, assignment=self.assignment)
        return [
            {"prediction": int(choice), "probabilities": likely.tolist()}
            for choice, likely in zip(chosen, softmax(logits), strict=True)
        ]

    def groups(self, records: Sequence[BlankRecord]) -> list[Hashable]:
        """The lines."""
        return [record.line for record in records]

    def metrics(
        self, records: Sequence[BlankRecord], answers: Sequence[Answer]
    ) -> dict[str, float]:
        """`accuracy` over blanks."""
        return accuracy(records, answers)

    def record(self, fields: Mapping[str, Any], number: int) -> BlankRecord:
        """A row with `left`, `right` and `candidates`, shared by rows with the same `line`."""
        candidates = fields.get("candidates")
        if (
            not isinstance(candidates, list)
            or len(candidates) != self.candidates
            or not all(isinstance(one, str) for one in candidates)
        ):
            raise PlugError(f"a row needs `candidates`, a list of {self.candidates} texts")
        line = fields.get("line", number)
        if not isinstance(line, int):
            raise PlugError("`line` of a row must be a whole number")
        left, right = field(fields, "left"), field(fields, "right")
        return BlankRecord(
            str(fields.get("id", number)), line, left, right, tuple(candidates), None
        )


def _texts_of_choices(record: ChoiceRecord, choices: int) -> list[tuple[str, str, str]]:
    """Passage, question and choice, for each choice."""
    padded = record.choices + (_NO_CHOICE,) * (choices - len(record.choices))
    passage, question = record.passage.lower(), record.question.lower()
    return [(passage, question, choice.lower()) for choice in padded]


def _row(
    texts: Sequence[tuple[np.ndarray, np.ndarray]], length: int, label: int | None
) -> dict[str, np.ndarray]:
    """Tokens and types of several texts, each in its part of the row; see `MultipleChoice`."""
    parts = len(texts)
    row = {
        name: np.zeros((parts, length), np.int32)
        for name in ("input_tokens", "token_types", "segment_ids", "positions")
    }
    for number, (tokens, types) in enumerate(texts):
        size = len(tokens)
        row["input_tokens"][number, :size] = tokens
        row["token_types"][number, :size] = types
        row["segment_ids"][number, :size] = number + 1
        row["positions"][number, :size] = np.arange(size)
    at_cls = np.zeros(parts * length, np.int32)
    at_cls[0] = label is not None
    return {
        **{f"encoder_{name}": values.reshape(-1) for name, values in row.items()},
        "choice_labels": at_cls * (label or 0),
        "choice_weights": at_cls,
    }


def _parts(side: str) -> list[str]:
    """A side of a passage, split at other blanks."""
    for mark, plain in _PLAIN_MARKS:
        side = side.replace(mark, plain)
    return TAG.split(side)


def _window(left: int, right: int, room: int) -> tuple[int, int]:
    """Tokens kept of each side: half of the room, plus what the other leaves.

    >>> _window(100, 100, 56), _window(10, 100, 56), _window(100, 10, 56)
    ((28, 28), (10, 46), (46, 10))
    """
    before = min(left, max(room // 2, room - right))
    return before, min(right, room - before)


def _piece_id(piece: str, vocabulary: PlugVocabulary) -> int:
    """The id of a piece that no text encodes to; [UNK] if there is none."""
    for i in vocabulary.special_ids:
        if vocabulary.id_to_piece(i) == piece:
            return i
    return vocabulary.unk_id
