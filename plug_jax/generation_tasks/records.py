"""Records of generation tasks, and the pairs that a layout makes of them."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

from plug_jax.errors import PlugError, shortened, shown


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a file: its texts, or lists of texts, by name."""

    fields: Mapping[str, Any]
    where: str  # "train.json, line 3", for messages


@dataclasses.dataclass(frozen=True)
class Pair:
    """A source and its references."""

    id: str  # the file's, or the record's number, from 0
    source: tuple[str, ...]  # parts, joined by [SEP]
    references: tuple[str, ...]  # right answers, the first for training; () if unknown

    @property
    def target(self) -> str | None:
        """The training target."""
        return self.references[0] if self.references else None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a record becomes a pair.

    Example: Layout(("答案：{answer}", "上下文：{context}"), "question", target_prefix="问题：")
    has the source 答案：北京[SEP]上下文：中国的首都是北京。 and the target 问题：首都在哪？
    """

    source: tuple[str, ...]  # templates of the parts, with a record's fields in braces
    target: str  # the field with the target text or texts
    target_prefix: str = ""  # generated before it; not in the references

    def pair(self, record: Record, number: int, *, needs_target: bool = True) -> Pair:
        """The pair of a record. PlugError for a field that it lacks.

        Without `needs_target` (a test set) a record may have no target, or an empty one.
        """
        source = tuple(self._part(template, record) for template in self.source)
        own = record.fields.get("id", str(number))
        return Pair(str(own), source, self._references(record, needs_target))

    def _part(self, template: str, record: Record) -> str:
        for _, name, _, _ in string.Formatter().parse(template):
            if name is not None:
                _check_text(_field(record, name), name, record)
        return template.format_map(record.fields)

    def _references(self, record: Record, needs_target: bool) -> tuple[str, ...]:
        if not needs_target and not record.fields.get(self.target):
            return ()
        value = _field(record, self.target)
        if value == []:
            raise PlugError(f"{record.where}: {self.target!r} is an empty list; it must hold texts")
        references = tuple(value) if isinstance(value, list) else (value,)
        for text in references:
            _check_text(text, self.target, record)
        return references


def _field(record: Record, name: str) -> Any:
    if name not in record.fields:
        has = shortened(", ".join(map(repr, record.fields))) or "none"
        raise PlugError(f"{record.where}: there is no {name!r}; the fields are {has}")
    return record.fields[name]


def _check_text(value: Any, name: str, record: Record) -> None:
    if not isinstance(value, str):
        raise PlugError(f"{record.where}: {name!r} must be a text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell it
        raise PlugError(f"{record.where}: {name!r} holds half of a surrogate pair") from error
