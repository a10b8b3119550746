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

    def __post_init__(self) -> None:
        """Checks the templates."""
        for template in self.source:
            _check_template(template)

    def pair(self, record: Record, number: int, *, needs_target: bool = True) -> Pair:
        """The pair of a record. PlugError for a field that it lacks.

        Without `needs_target` (a test set) a record may have no target, or an empty one.
        """
        source = tuple(self._part(template, record) for template in self.source)
        own = record.fields.get("id", str(number))
        return Pair(str(own), source, self._references(record, needs_target))

    def _part(self, template: str, record: Record) -> str:
        text = ""
        for literal, name, _, _ in string.Formatter().parse(template):
            text += literal
            if name is not None:
                value = _field(record, name)
                check_text(value, name, record.where)
                text += value
        return text

    def _references(self, record: Record, needs_target: bool) -> tuple[str, ...]:
        if not needs_target and not record.fields.get(self.target):
            return ()
        value = _field(record, self.target)
        if value == []:
            raise PlugError(f"{record.where}: {self.target!r} is an empty list; it must hold texts")
        references = tuple(value) if isinstance(value, list) else (value,)
        for text in references:
            check_text(text, self.target, record.where)
        return references


def _field(record: Record, name: str) -> Any:
    if name not in record.fields:
        has = shortened(", ".join(map(repr, record.fields))) or "none"
        raise PlugError(f"{record.where}: there is no {name!r}; the fields are {has}")
    return record.fields[name]


def check_text(value: Any, name: str, where: str) -> None:
    """PlugError unless a field is a text that files can hold; `where` is "FILE, line N"."""
    if not isinstance(value, str):
        raise PlugError(f"{where}: {name!r} must be a text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell it
        raise PlugError(f"{where}: {name!r} holds half of a surrogate pair") from error


def _check_template(template: str) -> None:
    """PlugError unless it has fields only as {name}."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PlugError(
            f"the template {shown(template)} cannot be read: {error}; fields are {{name}}, and "
            "braces of the text are doubled"
        ) from error
    for _, name, spec, conversion in fields:
        if spec or conversion:
            raise PlugError(
                f"the template {shown(template)} formats the field {shown(name)}; write "
                f"{{{name}}} alone"
            )
