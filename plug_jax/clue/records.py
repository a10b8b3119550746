"""What the files of CLUE hold, as the tasks see it: one record an answer that is asked for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TextRecord:
    """One text or a pair, and its label, a string of the archive's.

    CLUEWSC: one text with the marks `_span1_` and `[span2]`. CSL: keywords joined by a space, and
    the abstract.
    """

    id: int | str  # what a submission says of it: as in the file, else its running number from 0
    texts: tuple[str, ...]
    label: str | None

    def named_texts(self) -> dict[str, str]:
        """`text`, and of a pair `text_pair`."""
        return dict(zip(("text", "text_pair"), self.texts, strict=False))


@dataclasses.dataclass(frozen=True)
class ChoiceRecord:
    """A question on a passage with two to four choices (C3)."""

    id: int | str
    passage: str  # its lines joined by newlines, in the file's case
    question: str
    choices: tuple[str, ...]
    label: int | None  # index of the last choice that equals the answer


@dataclasses.dataclass(frozen=True)
class BlankRecord:
    """A blank of a passage, and the idioms of its line that may fill it (CHID)."""

    id: str  # the tag: "#idiom000378#"
    line: int  # running number, from 0, of the JSON line: its blanks share the candidates
    left: str  # the passage before the blank, with the tags of others in it
    right: str
    candidates: tuple[str, ...]
    label: int | None  # index of the candidate


@dataclasses.dataclass(frozen=True)
class SpanAnswer:
    """An answer to a question; `start` is its first character in the context, -1 if not there."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True)
class QuestionRecord:
    """A question on a context (CMRC 2018, DRCD); without answers where the file has none."""

    id: int | str
    context: str
    question: str
    answers: tuple[SpanAnswer, ...]


@dataclasses.dataclass(frozen=True, order=True)
class Entity:
    """A named entity: characters `start` to `end` (exclusive) of a text."""

    type: str
    text: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class EntityRecord:
    """A sentence and its named entities (CLUENER); None where the file has none."""

    id: int | str
    text: str
    entities: tuple[Entity, ...] | None


Record = TextRecord | ChoiceRecord | BlankRecord | QuestionRecord | EntityRecord
