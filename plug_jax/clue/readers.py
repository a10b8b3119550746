"""Readers from the files of each format to records.

A reader takes the files of a split in order, whether they contain answers, and the labels; it
returns records, and the ids of dropped lines by reason. Files without answers are never reduced: a
submission follows the order of the lines.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from plug_jax.clue.json_files import JsonFile, checked, field, shown, strings
from plug_jax.clue.records import (
    BlankRecord,
    ChoiceRecord,
    Entity,
    EntityRecord,
    QuestionRecord,
    Record,
    SpanAnswer,
    TextRecord,
)
from plug_jax.errors import PlugError

Dropped = dict[str, list[int | str]]
Reader = Callable[[Sequence[JsonFile], bool, tuple[str, ...]], tuple[list[Record], Dropped]]
Fields = dict[str, Any]

NO_GOLD_LABEL = "no_gold_label"
CANDIDATES = 10  # per line of CHID
TAG = re.compile(r"#idiom\d+#")
IDIOM_CHARACTERS = 4  # and [MASK]s for each other blank of a passage

_UNDECIDED = "-"  # the annotators did not agree
_MOST_TO_THE_LEFT = 3  # how far a wrong start of an answer is searched for
_ID = (int, str)


def read_texts(texts: Callable[[Fields, str], tuple[str, ...]], id_key: str = "id") -> Reader:
    """A reader of JSON lines with a label; `texts` extracts the texts of a line."""

    def read(
        files: Sequence[JsonFile], answered: bool, labels: tuple[str, ...]
    ) -> tuple[list[Record], Dropped]:
        rows: list[tuple[str, Any]] = []
        allowed = (*labels, _UNDECIDED)
        for number, (where, fields) in enumerate(_lines(files)):
            label = field(fields, "label", str, where) if answered else fields.get("label")
            if answered and label not in allowed:
                raise PlugError(f"{where}: label {shown(label)} is not one of {', '.join(labels)}")
            if not answered and label not in labels:
                label = None
            key = field(fields, id_key, _ID, where) if id_key in fields else number
            rows.append((where, TextRecord(key, texts(fields, where), label)))
        records = _with_ids_apart(rows, answered)
        undecided = [one.id for one in records if one.label == _UNDECIDED]
        kept: list[Record] = [one for one in records if one.label != _UNDECIDED]
        return kept, {NO_GOLD_LABEL: undecided} if undecided else {}

    return read


def one_text(fields: Fields, where: str) -> tuple[str, ...]:
    """A sentence."""
    return (field(fields, "sentence", str, where),)


def pair_of(first: str, second: str) -> Callable[[Fields, str], tuple[str, ...]]:
    """The texts under two keys."""
    return lambda fields, where: (
        field(fields, first, str, where),
        field(fields, second, str, where),
    )


def keywords_and_abstract(fields: Fields, where: str) -> tuple[str, ...]:
    """CSL's keywords, joined by a space, and abstract."""
    keywords = strings(field(fields, "keyword", list, where), where, "'keyword'")
    return " ".join(keywords), field(fields, "abst", str, where)


def marked_text(fields: Fields, where: str) -> tuple[str, ...]:
    """CLUEWSC's text with `_` around span 1 and `[` `]` around span 2, in either order."""
    text = field(fields, "text", str, where)
    target = field(fields, "target", dict, where)
    marks: list[tuple[int, int, str]] = []  # at one position, closing marks come first
    for number, left, right in ((1, "_", "_"), (2, "[", "]")):
        span = field(target, f"span{number}_text", str, where)
        index = field(target, f"span{number}_index", int, where)
        start = _place_of(span, text, index)
        if start is None:
            raise PlugError(
                f"{where}: span{number}_text {shown(span)} is not in the text, at character "
                f"{index} or anywhere"
            )
        marks += [(start, 1, left), (start + len(span), 0, right)]
    for place, _, mark in sorted(marks, key=lambda mark: mark[:2], reverse=True):
        text = text[:place] + mark + text[place:]
    return (text,)


def read_choices(
    files: Sequence[JsonFile], answered: bool, labels: tuple[str, ...]
) -> tuple[list[Record], Dropped]:
    """C3: passages with questions; a question without an id gets a running number."""
    rows: list[tuple[str, Any]] = []
    for file in files:
        passages = checked(file.document(), list, file.path, "the file")
        for number, item in enumerate(passages, start=1):
            where = f"{file.path}, passage {number}"
            if not isinstance(item, list) or len(item) < 2:
                raise PlugError(
                    f"{where} is {shown(item)}; expected [lines, questions, id], a list of three"
                )
            passage = "\n".join(strings(item[0], where, "the lines"))
            for fields in checked(item[1], list, where, "the questions"):
                fields = checked(fields, dict, where, "a question")
                record = _choice(fields, passage, len(rows), answered, where)
                rows.append((where, record))
    return _with_ids_apart(rows, answered), {}


def _choice(fields: Fields, passage: str, number: int, answered: bool, where: str) -> ChoiceRecord:
    question = field(fields, "question", str, where)
    choices = strings(field(fields, "choice", list, where), where, "'choice'")
    if not 2 <= len(choices) <= 4:
        raise PlugError(f"{where}: {shown(question)} has {len(choices)} choices; expected 2 to 4")
    label = None
    if answered:
        answer = field(fields, "answer", str, where)
        equal = [place for place, choice in enumerate(choices) if choice == answer]
        if not equal:
            raise PlugError(f"{where}: the answer {shown(answer)} is not one of {shown(choices)}")
        label = equal[-1]
    key = field(fields, "id", _ID, where) if "id" in fields else number
    return ChoiceRecord(key, passage, question, choices, label)


def read_blanks(
    files: Sequence[JsonFile], answered: bool, labels: tuple[str, ...]
) -> tuple[list[Record], Dropped]:
    """CHID: passages with blanks; with `answered` there is a second file of answers."""
    answers: Fields = {}
    if answered:
        answers = checked(files[1].document(), dict, files[1].path, "the file")
    records: list[Record] = []
    seen: dict[str, str] = {}
    for line, (where, fields) in enumerate(files[0].lines()):
        candidates = strings(field(fields, "candidates", list, where), where, "'candidates'")
        if len(candidates) != CANDIDATES:
            raise PlugError(f"{where} has {len(candidates)} candidates; expected {CANDIDATES}")
        for passage in strings(field(fields, "content", list, where), where, "'content'"):
            for blank in TAG.finditer(passage):
                tag, label = blank.group(), None
                if tag in seen:
                    raise PlugError(f"{where}: the blank {tag} was in {seen[tag]} already")
                seen[tag] = where
                if answered:
                    place = f"{files[1].path}: the answer to {tag} ({where})"
                    label = _candidate(answers.get(tag), place)
                left, right = passage[: blank.start()], passage[blank.end() :]
                records.append(BlankRecord(tag, line, left, right, candidates, label))
    return records, {}


def _candidate(value: Any, place: str) -> int:
    if type(value) is int and 0 <= value < CANDIDATES:
        return value
    found = "not there" if value is None else shown(value)
    raise PlugError(f"{place} is {found}; expected an integer from 0 to {CANDIDATES - 1}")


def read_questions(
    files: Sequence[JsonFile], answered: bool, labels: tuple[str, ...]
) -> tuple[list[Record], Dropped]:
    """CMRC 2018, nested like SQuAD or flat as in its first release, and DRCD."""
    (file,) = files
    document = checked(file.document(), (dict, list), file.path, "the file")
    make = _nested_questions if isinstance(document, dict) else _flat_questions
    records: list[Record] = list(make(document, file.path, answered))
    twice = [key for key, n in collections.Counter(one.id for one in records).items() if n > 1]
    if twice:
        raise PlugError(f"{file.path} has the question {shown(twice[0])} more than once")
    return records, {}


def _nested_questions(document: Fields, path: str, answered: bool) -> Iterable[QuestionRecord]:
    """{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}."""
    for number, article in enumerate(field(document, "data", list, path), start=1):
        where = f"{path}, article {number}"
        article = checked(article, dict, where, "it")
        for paragraph in field(article, "paragraphs", list, where):
            paragraph = checked(paragraph, dict, where, "a paragraph")
            context = field(paragraph, "context", str, where)
            for fields in field(paragraph, "qas", list, where):
                fields = checked(fields, dict, where, "a question")
                key = field(fields, "id", _ID, where)
                place = f"{where}, question {key}"
                question = field(fields, "question", str, place)
                answers = field(fields, "answers", list, place) if answered else []
                found = tuple(_nested_answer(one, context, place) for one in answers)
                if answered and not found:
                    raise PlugError(f"{place} has no answer; expected one at least")
                yield QuestionRecord(key, context, question, found)


def _flat_questions(document: list[Any], path: str, answered: bool) -> Iterable[QuestionRecord]:
    """[{"context_id", "context_text", "qas": [{"query_id", "query_text", "answers"}]}]."""
    for number, fields in enumerate(document, start=1):
        where = f"{path}, context {number}"
        fields = checked(fields, dict, where, "it")
        context = field(fields, "context_text", str, where)
        for query in field(fields, "qas", list, where):
            query = checked(query, dict, where, "a question")
            key = field(query, "query_id", _ID, where)
            place = f"{where}, question {key}"
            question = field(query, "query_text", str, place)
            answers = field(query, "answers", list, place) if answered else []
            texts = [_answer_text(one, context, place) for one in answers]
            if answered and not texts:
                raise PlugError(f"{place} has no answer; expected one at least")
            found = tuple(SpanAnswer(text, context.find(text)) for text in texts)
            yield QuestionRecord(key, context, question, found)


def _nested_answer(fields: Any, context: str, where: str) -> SpanAnswer:
    """An answer with its start as given, or corrected by up to three characters to the left."""
    fields = checked(fields, dict, where, "an answer")
    if "text" not in fields:
        raise PlugError(f"{where}: an answer has no 'text'; it has {shown(list(fields))}")
    text = _answer_text(fields["text"], context, where)
    given = field(fields, "answer_start", int, where)
    starts = range(given, max(given - _MOST_TO_THE_LEFT, 0) - 1, -1)  # none for -1
    return SpanAnswer(text, next((s for s in starts if context.startswith(text, s)), -1))


def _answer_text(value: Any, context: str, where: str) -> str:
    """The text of an answer. A spreadsheet turned some into numbers: 39764.0 for 39764."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        whole = str(value).removesuffix(".0")
        return whole if whole in context else str(value)
    text: str = checked(value, str, where, "an answer's text")
    if not text:
        raise PlugError(f"{where}: an answer is empty")
    return text


def read_entities(
    files: Sequence[JsonFile], answered: bool, labels: tuple[str, ...]
) -> tuple[list[Record], Dropped]:
    """CLUENER: texts, and entities by type and surface string."""
    rows: list[tuple[str, Any]] = []
    for number, (where, fields) in enumerate(_lines(files)):
        text = field(fields, "text", str, where)
        key = field(fields, "id", _ID, where) if "id" in fields else number
        entities = None
        if answered:
            entities = entities_of(field(fields, "label", dict, where), text, labels, where)
        rows.append((where, EntityRecord(key, text, entities)))
    return _with_ids_apart(rows, answered), {}


def entities_of(label: Fields, text: str, types: Sequence[str], where: str) -> tuple[Entity, ...]:
    """The entities of a CLUENER label; its ends are inclusive.

    Example: {"address": {"杭州": [[2, 3]]}} of "王在杭州" has characters 2 to 4, exclusive.

    Raises:
        PlugError: an unknown type, or a span that does not match the text.
    """
    found = []
    for type_, surfaces in label.items():
        if type_ not in types:
            raise PlugError(f"{where}: type {shown(type_)} is not one of {', '.join(types)}")
        for surface, places in checked(surfaces, dict, where, repr(type_)).items():
            for place in checked(places, list, where, repr(surface)):
                if not _is_place(place):
                    raise PlugError(
                        f"{where}: {shown(surface)} is at {shown(place)}; expected [first "
                        "character, last character]"
                    )
                first, last = place
                if not surface or text[first : last + 1] != surface:
                    raise PlugError(
                        f"{where}: {shown(surface)} is not at {shown(place)} of the text, which "
                        f"has {shown(text[first : last + 1])} there (the end is inclusive)"
                    )
                found.append(Entity(type_, surface, first, last + 1))
    return tuple(found)


def _is_place(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(index) is int for index in value)
        and 0 <= value[0] <= value[1]
    )


def _lines(files: Sequence[JsonFile]) -> Iterable[tuple[str, Fields]]:
    for file in files:
        yield from file.lines()


def _place_of(span: str, text: str, index: int) -> int | None:
    """Position of `span` in `text`: `index`, else the nearest one; None if absent."""
    if not span:
        return None
    places = [match.start() for match in re.finditer(f"(?={re.escape(span)})", text)]
    return min(places, key=lambda place: abs(place - index), default=None)


def _with_ids_apart(rows: Sequence[tuple[str, Any]], answered: bool) -> list[Any]:
    """The records of (where, record), with unique ids.

    If a file with answers has duplicate ids, running numbers replace them all. Without answers the
    ids go into the submission, so a duplicate is an error.
    """
    records = [record for _, record in rows]
    first: dict[str, str] = {}
    for where, record in rows:
        if str(record.id) not in first:
            first[str(record.id)] = where
        elif answered:
            return [dataclasses.replace(one, id=number) for number, one in enumerate(records)]
        else:
            before = first[str(record.id)]
            raise PlugError(f"{where}: id {shown(record.id)} was in {before} already")
    return records
