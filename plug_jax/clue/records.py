"""Records of CLUE's files, one for each answer to predict."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TextRecord:
    """One text or a pair, and its label as a string in the archive.

    CLUEWSC: one text with the marks `_span1_` and `[span2]`. CSL: keywords joined by a space, and
    the abstract.
    """

    id: int | str  # its id in a submission: the file's, else a running number from 0
    texts: tuple[str, ...]
    label: str | None

    def named_texts(self) -> dict[str, str]:
        """`text`, and for a pair `text_pair`."""
        return dict(zip(("text", "text_pair"), self.texts, strict=False))


@dataclasses.dataclass(frozen=True)
class ChoiceRecord:
    """A question on a passage with two to four choices (C3)."""

    id: int | str
    passage: str  # its lines joined by newlines, in original case
    question: str
    choices: tuple[str, ...]
    label: int | None  # index of the last choice that equals the answer


@dataclasses.dataclass(frozen=True)
class BlankRecord:
    """A blank in a passage, and its line's candidate idioms (CHID)."""

    id: str  # the tag: "#idiom000378#"
    line: int  # number of the JSON line, from 0: its blanks share the candidates
    left: str  # the passage before the blank, including the tags of other blanks
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
    """A question on a context (CMRC 2018, DRCD); without answers if the file has none."""

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
    """A sentence and its named entities (CLUENER), None if the file has none."""

    id: int | str
    text: str
    entities: tuple[Entity, ...] | None


Record = TextRecord | ChoiceRecord | BlankRecord | QuestionRecord | EntityRecord
